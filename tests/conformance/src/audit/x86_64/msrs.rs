//! Model-specific registers: all that the CPU lets be read of the ranges in use.

use alloc::vec::Vec;
use core::arch::global_asm;
use core::ops::Range;

/// Intel's architectural ones and those of its models, a hypervisor's, AMD64's, AMD's (SDM 4, chapter 2; APM 2, appendix A).
const RANGES: [Range<u32>; 5] = [
    0..LOCAL_APIC.start,
    LOCAL_APIC.end..0x2000,
    0x4000_0000..0x4000_0200,
    0xc000_0000..0xc000_0200,
    0xc001_0000..0xc001_0200,
];
/// The local APIC in x2APIC mode.
pub(super) const LOCAL_APIC: Range<u32> = 0x800..0x900;

// audit_read_msr(edi = number, rsi = where the value goes) -> eax = 1, or 0 if the CPU refuses: then the general-protection
// exception at `audit_rdmsr` goes on at `audit_rdmsr_refused`.
global_asm!(
    ".pushsection .text.audit, \"ax\", @progbits",
    ".global audit_read_msr",
    "audit_read_msr:",
    "mov ecx, edi",
    ".global audit_rdmsr",
    "audit_rdmsr:",
    "rdmsr",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [rsi], rax",
    "mov eax, 1",
    "ret",
    ".global audit_rdmsr_refused",
    "audit_rdmsr_refused:",
    "xor eax, eax",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    static audit_rdmsr: u8;
    static audit_rdmsr_refused: u8;

    /// # Safety
    ///
    /// 1. [`fixup`](super::fixup) is in force, or the register exists.
    /// 2. Ring 0.
    fn audit_read_msr(number: u32, value: &mut u64) -> u32;
}

/// Where to go on after a refusal at `at`.
pub(in crate::audit) fn fixup(at: u64) -> Option<u64> {
    (at == (&raw const audit_rdmsr).addr() as u64).then_some((&raw const audit_rdmsr_refused).addr() as u64)
}

/// Reads one, if the CPU lets it.
pub(super) fn read(number: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: (1) an auditor exists only where the kernel has taken the fixup; (2) the kernel's code. Reading the registers of
    // the ranges above has no effect.
    (unsafe { audit_read_msr(number, &mut value) } != 0).then_some(value)
}

/// All that can be read.
pub(super) fn readable() -> Vec<u32> {
    RANGES.into_iter().flatten().filter(|&number| read(number).is_some()).collect()
}
