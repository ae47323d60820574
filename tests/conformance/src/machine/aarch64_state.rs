//! Unusual state of the host's on AArch64, and what a sandbox can do to it.

use alloc::vec::Vec;
use core::arch::{asm, naked_asm};

use aarch64_cpu::registers::{ID_AA64MMFR2_EL1, ID_AA64PFR0_EL1, ID_AA64PFR1_EL1, Readable};

use super::{Spoiler, USED_BY_CODE};

macro_rules! read {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: the register exists, and reading it has no effect.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

/// Writes a register; the barrier makes it count at once.
macro_rules! write {
    ($name:literal, $value:expr) => {
        asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) $value, options(nostack, preserves_flags))
    };
}

/// ID_AA64PFR0_EL1.DIT.
const PFR0_DIT_SHIFT: u32 = 48;

fn has_dit() -> bool {
    ID_AA64PFR0_EL1.get() >> PFR0_DIT_SHIFT & 0b1111 != 0
}

/// ID_AA64PFR1_EL1.SSBS: from 2 on there is a register for it. ID_AA64MMFR2_EL1.UAO.
const PFR1_SSBS_SHIFT: u32 = 4;
const MMFR2_UAO_SHIFT: u32 = 4;

fn has_ssbs() -> bool {
    ID_AA64PFR1_EL1.get() >> PFR1_SSBS_SHIFT & 0b1111 >= 2
}

fn has_uao() -> bool {
    ID_AA64MMFR2_EL1.get() >> MMFR2_UAO_SHIFT & 0b1111 != 0
}

fn has_sve() -> bool {
    ID_AA64PFR0_EL1.read(ID_AA64PFR0_EL1::SVE) != 0
}

const SECRET: u64 = 0x5ec2_8765_4321_0000;
/// SCTLR_EL1: UMA, DZE, UCT, nTWI, nTWE, UCI.
const SCTLR_OPEN: u64 = 1 << 9 | 1 << 14 | 1 << 15 | 1 << 16 | 1 << 18 | 1 << 26;
/// CPACR_EL1: FPEN, and ZEN where there is SVE.
const CPACR_FP: u64 = 0b11 << 20;
const CPACR_SVE: u64 = 0b11 << 16;
/// CNTKCTL_EL1: EL0VTEN, EL0PTEN.
const CNTKCTL_OPEN: u64 = 0b11 << 8;
/// PMUSERENR_EL0: EN, SW, CR, ER.
const PMUSERENR_OPEN: u64 = 0b1111;
/// MDSCR_EL1: MDE set, TDCC clear.
const MDSCR_MDE: u64 = 1 << 15;
const MDSCR_TDCC: u64 = 1 << 12;
/// OSLSR_EL1: debug exceptions are locked off, which is how a CPU comes out of reset.
const OSLSR_LOCKED: u64 = 1 << 1;
/// DBGBCR0_EL1: enabled, at EL0, for all bytes of an instruction.
const BREAKPOINT: u64 = 1 | 0b10 << 1 | 0b1111 << 5;

/// Runs `work` with registers at values that a host might have there: a sandbox must neither see them nor leave others.
///
/// Much is open to unprivileged code then, floating point works, and a breakpoint is armed on a function that sandboxes call.
pub(crate) fn with_unusual_state(work: &mut dyn FnMut()) {
    let thread = (read!("sp_el0"), read!("tpidr_el0"), read!("tpidrro_el0"));
    let control =
        (read!("sctlr_el1"), read!("cpacr_el1"), read!("cntkctl_el1"), read!("pmuserenr_el0"), read!("mdscr_el1"));
    let debug_lock = read!("oslsr_el1") & OSLSR_LOCKED;
    // A kernel with vector registers in its code keeps SVE, which its sandboxes don't have, off for itself.
    let vectors = CPACR_FP | if has_sve() && !USED_BY_CODE { CPACR_SVE } else { 0 };
    // SAFETY: nothing in the kernel uses these: no thread locals, no code at EL0 but sandboxes, no floating point, no debugger.
    // All are put back below.
    unsafe {
        write!("sp_el0", SECRET);
        write!("tpidr_el0", SECRET + 1);
        write!("tpidrro_el0", SECRET + 2);
        write!("sctlr_el1", control.0 | SCTLR_OPEN);
        write!("cpacr_el1", control.1 | vectors);
        write!("cntkctl_el1", control.2 | CNTKCTL_OPEN);
        write!("pmuserenr_el0", PMUSERENR_OPEN);
        write!("oslar_el1", 0u64);
        write!("dbgbvr0_el1", spoil_and_return as *const () as u64);
        write!("dbgbcr0_el1", BREAKPOINT);
        write!("mdscr_el1", control.4 & !MDSCR_TDCC | MDSCR_MDE);
        if has_dit() {
            write!("s3_3_c4_c2_5", 1u64 << 24);
        }
        // An exception clears both.
        if has_ssbs() {
            write!("s3_3_c4_c2_6", 1u64 << 12);
        }
        if has_uao() {
            write!("s3_0_c4_c2_4", 1u64 << 23);
        }
        work();
        if has_uao() {
            write!("s3_0_c4_c2_4", 0u64);
        }
        if has_ssbs() {
            write!("s3_3_c4_c2_6", 0u64);
        }
        if has_dit() {
            write!("s3_3_c4_c2_5", 0u64);
        }
        write!("mdscr_el1", control.4);
        write!("dbgbcr0_el1", 0u64);
        write!("dbgbvr0_el1", 0u64);
        write!("oslar_el1", u64::from(debug_lock != 0));
        write!("pmuserenr_el0", control.3);
        write!("cntkctl_el1", control.2);
        write!("cpacr_el1", control.1);
        write!("sctlr_el1", control.0);
        write!("tpidrro_el0", thread.2);
        write!("tpidr_el0", thread.1);
        write!("sp_el0", thread.0);
    }
}

/// Puts `value` into v0 to v31, if the kernel's code leaves it there.
pub(crate) fn fill_vectors(value: u64) {
    if USED_BY_CODE {
        return;
    }
    let access = read!("cpacr_el1");
    // SAFETY: the kernel itself uses none of them, and these instructions alone run with access to them.
    unsafe {
        write!("cpacr_el1", access | CPACR_FP);
        asm!(
            ".set suite_vector, 0",
            ".rept 32",
            ".inst 0x4e080c00 | suite_vector", // dup vN.2d, x0
            ".set suite_vector, suite_vector + 1",
            ".endr",
            in("x0") value,
            options(nomem, nostack, preserves_flags),
        );
        write!("cpacr_el1", access);
    }
}

/// Sets the flags, the stack pointer and the thread pointer, then returns to the host on the spot.
#[unsafe(naked)]
extern "C" fn spoil_and_return() {
    naked_asm!("mov x0, #-0x5e", "msr nzcv, x0", "mov sp, x0", "msr tpidr_el0, x0", "svc #0")
}

/// The same, then ends by a fault.
#[unsafe(naked)]
extern "C" fn spoil_and_fault() {
    naked_asm!("mov x0, #-0x5e", "msr nzcv, x0", "mov sp, x0", "msr tpidr_el0, x0", "udf #0")
}

/// Switches data-independent timing on.
#[unsafe(naked)]
extern "C" fn spoil_timing() {
    naked_asm!("mov x0, #1 << 24", "msr s3_3_c4_c2_5, x0", "svc #0")
}

/// Switches it off.
#[unsafe(naked)]
extern "C" fn spoil_timing_otherwise() {
    naked_asm!("msr s3_3_c4_c2_5, xzr", "udf #0")
}

/// Everything that unprivileged code can change.
pub(crate) fn spoilers() -> Vec<Spoiler> {
    let mut all = Vec::from([
        Spoiler::new("flags and pointers", true, spoil_and_return),
        Spoiler::new("flags and pointers", false, spoil_and_fault),
        Spoiler::new("general registers", false, super::spoil_registers),
        Spoiler::new("general registers", true, super::spoil_registers_and_return),
    ]);
    if has_dit() {
        all.push(Spoiler::new("data-independent timing", true, spoil_timing));
        all.push(Spoiler::new("data-dependent timing", false, spoil_timing_otherwise));
    }
    all
}

#[unsafe(naked)]
extern "C" fn read_tpidr() -> u64 {
    naked_asm!("mrs x0, tpidr_el0", "ret")
}

#[unsafe(naked)]
extern "C" fn read_tpidrro() -> u64 {
    naked_asm!("mrs x0, tpidrro_el0", "ret")
}

/// A read at the address in the thread pointer.
#[unsafe(naked)]
pub(crate) extern "C" fn use_thread_base() {
    naked_asm!("mrs x0, tpidr_el0", "ldr x0, [x0]", "ret")
}

/// What a sandbox can read of registers that are neither general nor its own: each must read as zero.
pub(crate) fn readable_state() -> Vec<(&'static str, extern "C" fn() -> u64)> {
    Vec::from([("TPIDR_EL0", read_tpidr as extern "C" fn() -> u64), ("TPIDRRO_EL0", read_tpidrro)])
}
