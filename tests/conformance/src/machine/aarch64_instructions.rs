//! Instructions that must end a sandbox on AArch64.
//!
//! Those that the assembler takes only for other CPUs, or not without vector registers, are written as numbers.

use core::arch::global_asm;

use aarch64_cpu::registers::{ID_AA64PFR0_EL1, Readable};
use sandbox_mode::{Access, ExitReason, FaultKind};

use super::{Instruction, instruction};
use crate::probe::fault;

const ILLEGAL: ExitReason = ExitReason::IllegalInstruction;
const PRIVILEGED: ExitReason = ExitReason::PrivilegedInstruction;

/// Instructions that do not exist, or do nothing but stop a debugger. The third is the one by which a kernel ends the emulator.
pub(crate) fn illegal() -> [Instruction; 4] {
    [
        instruction!(ILLEGAL, "udf #0"),
        instruction!(ILLEGAL, "udf #0xffff"),
        instruction!(ILLEGAL, "hlt #0xf000"),
        instruction!(ILLEGAL, "dcps1"),
    ]
}

/// Instructions that only the kernel may execute, or that a run takes from unprivileged code.
pub(crate) fn privileged() -> impl Iterator<Item = Instruction> {
    [
        instruction!(PRIVILEGED, "msr daifset, #0b1111"),
        instruction!(PRIVILEGED, "msr daifclr, #0b0010"),
        instruction!(PRIVILEGED, "mrs x0, daif"),
        instruction!(PRIVILEGED, "msr daif, x0"),
        instruction!(PRIVILEGED, "msr spsel, #0"),
        instruction!(PRIVILEGED, "mrs x0, currentel"),
        instruction!(PRIVILEGED, "mrs x0, sctlr_el1"),
        instruction!(PRIVILEGED, "msr sctlr_el1, x0"),
        instruction!(PRIVILEGED, "mrs x0, ttbr0_el1"),
        instruction!(PRIVILEGED, "msr ttbr0_el1, x0"),
        instruction!(PRIVILEGED, "mrs x0, ttbr1_el1"),
        instruction!(PRIVILEGED, "msr ttbr1_el1, x0"),
        instruction!(PRIVILEGED, "msr tcr_el1, x0"),
        instruction!(PRIVILEGED, "msr vbar_el1, x0"),
        instruction!(PRIVILEGED, "msr cpacr_el1, x0"),
        instruction!(PRIVILEGED, "mrs x0, sp_el0"),
        instruction!(PRIVILEGED, "mrs x0, elr_el1"),
        instruction!(PRIVILEGED, "msr spsr_el1, x0"),
        instruction!(PRIVILEGED, "mrs x0, tpidr_el1"),
        instruction!(PRIVILEGED, "msr tpidrro_el0, x0"),
        instruction!(PRIVILEGED, "mrs x0, esr_el1"),
        instruction!(PRIVILEGED, "mrs x0, far_el1"),
        instruction!(PRIVILEGED, "mrs x0, midr_el1"),
        instruction!(PRIVILEGED, "msr mdscr_el1, x0"),
        instruction!(PRIVILEGED, "msr oslar_el1, x0"),
        instruction!(PRIVILEGED, "msr cntkctl_el1, x0"),
        instruction!(PRIVILEGED, "mrs x0, cntv_ctl_el0"),
        instruction!(PRIVILEGED, "msr cntv_ctl_el0, xzr"),
        instruction!(PRIVILEGED, "msr cntp_cval_el0, x0"),
        instruction!(PRIVILEGED, "mrs x0, pmccntr_el0"),
        instruction!(PRIVILEGED, "msr pmcr_el0, x0"),
        instruction!(PRIVILEGED, "msr pmuserenr_el0, x0"),
        instruction!(PRIVILEGED, "mrs x0, s3_0_c12_c12_0"), // ICC_IAR1_EL1
        instruction!(PRIVILEGED, "msr s3_0_c12_c12_1, x0"), // ICC_EOIR1_EL1
        instruction!(PRIVILEGED, "tlbi vmalle1"),
        instruction!(PRIVILEGED, "tlbi vaae1, x0"),
        instruction!(PRIVILEGED, "ic iallu"),
        instruction!(PRIVILEGED, "dc isw, x0"),
        instruction!(PRIVILEGED, "dc ivac, x0"),
        instruction!(PRIVILEGED, "at s1e1r, x0"),
        instruction!(PRIVILEGED, "dc civac, x0"),
        instruction!(PRIVILEGED, "dc cvau, x0"),
        instruction!(PRIVILEGED, "ic ivau, x0"),
        instruction!(PRIVILEGED, "dc zva, x0"),
        instruction!(PRIVILEGED, "mrs x0, ctr_el0"),
        instruction!(PRIVILEGED, "wfi"),
        instruction!(PRIVILEGED, "eret"),
        instruction!(PRIVILEGED, "drps"),
    ]
    .into_iter()
}

/// Instructions that enter something above the kernel.
pub(crate) fn system_calls() -> [Instruction; 4] {
    [
        instruction!(PRIVILEGED, "hvc #0"),
        instruction!(PRIVILEGED, "hvc #0xffff"),
        instruction!(PRIVILEGED, "smc #0"),
        instruction!(PRIVILEGED, "smc #0xffff"),
    ]
}

unsafe extern "C" {
    static suite_software_interrupts: u8;
}

const BYTES_EACH: usize = 8;
const BYTES_OF_CALL: u64 = 4;

global_asm!(
    ".pushsection .text.suite, \"ax\", @progbits",
    ".balign 16",
    ".global suite_software_interrupts",
    "suite_software_interrupts:",
    ".set suite_number, 0",
    ".rept 256",
    "svc #suite_number",
    "ret",
    ".set suite_number, suite_number + 1",
    ".endr",
    ".popsection",
);

/// `svc #n` for every small number but the return's: its code, how it must end, and how many bytes on.
pub(crate) fn software_interrupts() -> impl Iterator<Item = (usize, u64, ExitReason, u64)> {
    let code = |number: usize| (&raw const suite_software_interrupts).addr() + number * BYTES_EACH;
    (1..256).map(move |number| (number, code(number) as u64, ExitReason::HostCall(number as u64), BYTES_OF_CALL))
}

/// Requests to the host of every size of number.
pub(crate) fn host_calls() -> [Instruction; 3] {
    let call = ExitReason::HostCall;
    [
        instruction!(call(1), "nop", "svc #1"),
        instruction!(call(0x8000), "nop", "svc #0x8000"),
        instruction!(call(0xffff), "nop", "svc #0xffff"),
    ]
}

/// A breakpoint.
pub(crate) fn breakpoint() -> Instruction {
    instruction!(ExitReason::Breakpoint, "brk #0")
}

/// Vector and floating-point instructions of every kind.
pub(crate) fn floating_point() -> impl Iterator<Item = Instruction> {
    const FP: ExitReason = ExitReason::FloatingPoint;
    let sve = ID_AA64PFR0_EL1.read(ID_AA64PFR0_EL1::SVE) != 0;
    [
        instruction!(FP, ".inst 0x9e6703e0"),      // fmov d0, xzr
        instruction!(FP, ".inst 0x1e202800"),      // fadd s0, s0, s0
        instruction!(FP, ".inst 0x4f00e400"),      // movi v0.16b, #0
        instruction!(FP, ".inst 0x3c9f0fe0"),      // str q0, [sp, #-16]!
        instruction!(FP, ".inst 0x9e660000"),      // fmov x0, d0
        instruction!(FP, "mrs x0, s3_3_c4_c4_0"),  // FPCR
        instruction!(FP, "msr s3_3_c4_c4_1, xzr"), // FPSR
    ]
    .into_iter()
    .chain(sve.then(|| instruction!(FP, ".inst 0x04bf5020"))) // rdvl x0, #1
}

/// A single step, and in how many bytes from the function's start it must stop; or why there is none.
pub(crate) fn single_step() -> Result<(extern "C" fn(), u64), &'static str> {
    Err("unprivileged code of AArch64 cannot make itself stop after each instruction")
}

/// Accesses to addresses that don't exist, other than by a plain move: the code, which finds `address` in x0, and how it ends.
pub(crate) fn odd_accesses(address: u64) -> impl Iterator<Item = Instruction> {
    let at = move |offset: i64, access| fault(address.wrapping_add_signed(offset), access, FaultKind::NonCanonical);
    [
        instruction!(at(0, Access::Read), "ldp x1, x2, [x0]"),
        instruction!(at(16, Access::Write), "str x1, [x0, #16]!"),
        instruction!(at(0, Access::Write), "stp x1, x2, [x0], #16"),
        instruction!(at(8, Access::Read), "mov x1, #1", "ldr x1, [x0, x1, lsl #3]"),
        instruction!(at(0, Access::Read), "ldxr x1, [x0]"),
        instruction!(at(0, Access::Read), "ldar x1, [x0]"),
        instruction!(at(0, Access::Write), "stlr x1, [x0]"),
        instruction!(at(0, Access::Read), "ldtr x1, [x0]"),
        instruction!(at(0, Access::Read), "mov sp, x0", "ldr x1, [sp]"),
        instruction!(at(-16, Access::Write), "mov sp, x0", "stp x29, x30, [sp, #-16]!"),
        instruction!(at(0, Access::Execute), "blr x0"),
        instruction!(at(0, Access::Execute), "mov x30, x0", "nop"),
    ]
    .into_iter()
}

/// Accesses that `address`, an odd one, makes misaligned.
pub(crate) fn misaligned(address: u64) -> impl Iterator<Item = Instruction> {
    let reason = fault(address, Access::Read, FaultKind::Misaligned);
    [instruction!(reason, "ldxr x1, [x0]"), instruction!(reason, "ldaxr w1, [x0]")].into_iter()
}
