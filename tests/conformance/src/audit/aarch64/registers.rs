//! System registers: one instruction for each encoding there is.

use alloc::vec::Vec;
use core::arch::{asm, global_asm};
use core::fmt;

/// Encodings: a bit of op0 (2 or 3), op1, CRn, CRm and op2 (Arm ARM, section C5.1.3).
pub(crate) const ENCODINGS: u16 = 1 << 15;
/// `mrs x0, S2_0_C0_C0_0`; the encoding goes where the register is named.
const MRS: u32 = 0xd530_0000;
const REGISTER_SHIFT: u32 = 5;
/// Bytes of the two instructions for each.
const ENTRY: usize = 8;

/// The number of `S<op0>_<op1>_C<n>_C<m>_<op2>`.
pub(crate) const fn encoding(op0: u16, op1: u16, n: u16, m: u16, op2: u16) -> u16 {
    (op0 & 1) << 14 | op1 << 11 | n << 7 | m << 3 | op2
}

/// How an assembler writes it.
pub(crate) fn name(number: u16, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let op0 = 2 + (number >> 14 & 1);
    let (op1, n, m, op2) = (number >> 11 & 7, number >> 7 & 15, number >> 3 & 15, number & 7);
    write!(f, "S{op0}_{op1}_C{n}_C{m}_{op2}")
}

// audit_mrs + 8 * encoding: reads the register into x0 and returns to x30.
// audit_mrs_refused: where such an instruction goes on that the CPU refuses: x1 = 0, and back.
global_asm!(
    ".pushsection .text.audit, \"ax\", @progbits",
    ".balign {entry}",
    ".global audit_mrs",
    "audit_mrs:",
    ".set audit_encoding, 0",
    ".rept {encodings}",
    ".inst {mrs} | (audit_encoding << {shift})",
    "ret",
    ".set audit_encoding, audit_encoding + 1",
    ".endr",
    ".global audit_mrs_refused",
    "audit_mrs_refused:",
    "mov x1, #0",
    "ret",
    ".popsection",
    entry = const ENTRY,
    encodings = const ENCODINGS,
    mrs = const MRS,
    shift = const REGISTER_SHIFT,
);

unsafe extern "C" {
    static audit_mrs: u8;
    static audit_mrs_refused: u8;
}

/// The address of the code that reads a register: `extern "C" fn() -> u64`.
pub(crate) fn code(number: u16) -> u64 {
    ((&raw const audit_mrs).addr() + usize::from(number) * ENTRY) as u64
}

/// Where to go on after a refusal at `at`.
pub(in crate::audit) fn fixup(at: u64) -> Option<u64> {
    let offset = at.wrapping_sub(code(0));
    (offset < u64::from(ENCODINGS) * ENTRY as u64).then_some((&raw const audit_mrs_refused).addr() as u64)
}

/// Reads a register, if the CPU lets it. Not those whose reading has an effect.
pub(super) fn read(number: u16) -> Option<u64> {
    let value: u64;
    let granted: u64;
    // SAFETY: an auditor exists only where the kernel has taken the fixup, which leads back with x1 changed and nothing
    // else. The code writes x0, and the call x30.
    unsafe {
        asm!(
            "blr {code}",
            code = in(reg) code(number),
            out("x0") value,
            inout("x1") 1_u64 => granted,
            out("x30") _,
            options(nomem, nostack, preserves_flags),
        );
    }
    (granted != 0).then_some(value)
}

/// All of those wanted that can be read.
pub(super) fn readable(wanted: impl Fn(u16) -> bool) -> Vec<u16> {
    // The kernel's handler may lose these over a refusal.
    let (thread, read_only): (u64, u64);
    // SAFETY: reading has no effect.
    unsafe {
        asm!(
            "mrs {}, tpidr_el1",
            "mrs {}, tpidrro_el0",
            out(reg) thread,
            out(reg) read_only,
            options(nomem, nostack, preserves_flags),
        );
    }
    let found = (0..ENCODINGS).filter(|&number| wanted(number) && read(number).is_some()).collect();
    // SAFETY: what was there before.
    unsafe {
        asm!(
            "msr tpidr_el1, {}",
            "msr tpidrro_el0, {}",
            in(reg) thread,
            in(reg) read_only,
            options(nostack, preserves_flags),
        );
    }
    found
}
