//! What unprivileged code can set on AArch64, all at once, and what it can read.

use alloc::vec::Vec;
use core::arch::naked_asm;

use sandbox_mode::{Access, ExitReason, FaultKind};

use super::{End, PATTERN, Poisoner, Registers};
use crate::audit::registers;
use crate::probe::fault;

/// Features that a poisoner may use, by their bits' numbers.
const DIT: u64 = 0;
const SSBS: u64 = 1;
const TCO: u64 = 2;

/// All four condition flags.
const NZCV: u64 = 0b1111 << 28;

/// Sets the flags, the thread pointer, the exclusive monitor and all registers, then does `$end`.
macro_rules! poison {
    ($($end:literal),+ $(; $name:ident = const $value:expr)?) => {
        naked_asm!(
            "ldxr w1, [sp]",
            "tbz x0, #{dit}, 2f",
            "mov x1, #1 << 24",
            "msr s3_3_c4_c2_5, x1",
            "2: tbz x0, #{ssbs}, 2f",
            "mov x1, #1 << 12",
            "msr s3_3_c4_c2_6, x1",
            "2: tbz x0, #{tco}, 2f",
            "mov x1, #1 << 25",
            "msr s3_3_c4_c2_7, x1",
            "2: ldr x0, ={pattern}",
            "msr tpidr_el0, x0",
            "mov x1, #{nzcv}",
            "msr nzcv, x1",
            "mov sp, x0",
            ".irp number, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30",
            "mov x\\number, x0",
            ".endr",
            $($end,)+
            ".ltorg",
            dit = const DIT,
            ssbs = const SSBS,
            tco = const TCO,
            nzcv = const NZCV,
            pattern = const PATTERN,
            $($name = const $value,)?
        )
    };
}

#[unsafe(naked)]
extern "C" fn poison_and_return() {
    poison!("svc #0")
}

const CALL: u64 = 77;

#[unsafe(naked)]
extern "C" fn poison_and_call() {
    poison!("svc #{call}"; call = const CALL)
}

#[unsafe(naked)]
extern "C" fn poison_and_be_illegal() {
    poison!("udf #0")
}

#[unsafe(naked)]
extern "C" fn poison_and_load() {
    poison!("mov x1, #0", "ldr x1, [x1]")
}

#[unsafe(naked)]
extern "C" fn poison_and_break() {
    poison!("brk #1")
}

#[unsafe(naked)]
extern "C" fn poison_and_spin() {
    poison!("2: b 2b")
}

/// One for each way out.
pub(crate) fn poisoners() -> Vec<Poisoner> {
    let poisoner = |what, code: extern "C" fn(), end| Poisoner { what, code, end };
    Vec::from([
        poisoner("a return", poison_and_return, End::Returns),
        poisoner("a host call", poison_and_call, End::Exits(ExitReason::HostCall(CALL))),
        poisoner("an illegal instruction", poison_and_be_illegal, End::Exits(ExitReason::IllegalInstruction)),
        poisoner("a data abort", poison_and_load, End::Exits(fault(0, Access::Read, FaultKind::Unmapped))),
        poisoner("a breakpoint", poison_and_break, End::Exits(ExitReason::Breakpoint)),
        poisoner("an interrupt", poison_and_spin, End::Spins),
    ])
}

#[unsafe(naked)]
extern "C" fn try_dit() {
    naked_asm!("mrs x0, s3_3_c4_c2_5", "ret")
}

#[unsafe(naked)]
extern "C" fn try_ssbs() {
    naked_asm!("mrs x0, s3_3_c4_c2_6", "ret")
}

#[unsafe(naked)]
extern "C" fn try_tco() {
    naked_asm!("mrs x0, s3_3_c4_c2_7", "ret")
}

/// Functions that return where the feature of the number can be used.
pub(crate) fn poison_probes() -> Vec<(u64, extern "C" fn())> {
    Vec::from([(1 << DIT, try_dit as extern "C" fn()), (1 << SSBS, try_ssbs), (1 << TCO, try_tco)])
}

/// What a poisoner that spins has set and an interrupted run must keep: what it is, what it must be.
pub(crate) fn poisoned(registers: &Registers, features: u64) -> Vec<(&'static str, u64, u64)> {
    const PSTATE_DIT: u64 = 1 << 24;
    let mut all: Vec<_> = registers.x.iter().map(|&value| ("one of x0 to x30", value, PATTERN)).collect();
    all.push(("sp", registers.sp, PATTERN));
    all.push(("TPIDR_EL0", registers.tpidr, PATTERN));
    all.push(("NZCV", registers.pstate & NZCV, NZCV));
    if features & 1 << DIT != 0 {
        all.push(("DIT", registers.pstate & PSTATE_DIT, PSTATE_DIT));
    }
    all
}

/// What was in the registers of an interrupted run, as far as it can be read there.
pub(crate) fn visible(registers: &Registers) -> Vec<(&'static str, u64)> {
    let mut all: Vec<_> = registers.x.iter().map(|&value| ("one of x0 to x30", value)).collect();
    all.extend([("sp", registers.sp), ("NZCV", registers.pstate & NZCV), ("TPIDR_EL0", registers.tpidr)]);
    all
}

#[unsafe(naked)]
extern "C" fn read_v0() -> u64 {
    // fmov x0, d0
    naked_asm!(".inst 0x9e660000", "ret")
}

/// Functions that return what they read of other registers, where they can: all encodings there are.
pub(crate) fn reads() -> Vec<(&'static str, u64)> {
    let system = (0..registers::ENCODINGS).map(|number| ("a system register", registers::code(number)));
    system.chain([("v0", read_v0 as *const () as u64)]).collect()
}
