//! Vector registers of a sandbox's own: V0 to V31, FPCR and FPSR.
//!
//! `vectors_swap.s` wraps the entry (`vectors.s` is the exception vectors): it exchanges the registers right before
//! and right after, so that no compiled code, which may use them, ever finds the sandbox's. What goes beyond those registers,
//! the upper parts that SVE and SME give them, would be lost by writing them; so hosts that have those on for themselves are
//! refused, when the sandbox is made and again at each entry. What a sandbox finds of them traps.

use core::mem::offset_of;

use sandbox_core::{PAGE_SIZE, Unsupported};

/// One set of registers, as it waits in a frame. All zero is what a reset leaves, as far as the architecture says.
#[repr(C, align(16))]
pub(crate) struct Set {
    fpcr: u64,
    fpsr: u64,
    v: [u128; 32],
}

const _: () = assert!(size_of::<Set>() <= PAGE_SIZE && align_of::<Set>() <= PAGE_SIZE);
const _: () = assert!(offset_of!(Set, fpsr) == offset_of!(Set, fpcr) + size_of::<u64>());

/// ID_AA64PFR0_EL1: floating point and Advanced SIMD are missing. They come together (Arm ARM, section D24.2, "FP" and
/// "AdvSIMD").
const PFR0_FP: u32 = 16;
const PFR0_FP_MISSING: u64 = 0b1111;
/// CPACR_EL1: the lower bits of ZEN and SMEN, with which EL1 can use the unit.
pub(crate) const CPACR_SVE: u64 = 1 << 16;
pub(crate) const CPACR_SME: u64 = 1 << 24;

/// Whether sandboxes can have vector registers on a CPU that identifies itself so and has this in CPACR_EL1.
pub(crate) fn check(pfr0: u64, cpacr: u64) -> Result<(), Unsupported> {
    if pfr0 >> PFR0_FP & 0b1111 == PFR0_FP_MISSING {
        return Err(Unsupported::Missing("floating point and Advanced SIMD, for sandboxes that are to have them"));
    }
    check_host(cpacr)
}

/// Whether the host lets itself use registers that are not saved.
#[inline(always)]
pub(crate) fn check_host(cpacr: u64) -> Result<(), Unsupported> {
    match cpacr {
        _ if cpacr & CPACR_SVE != 0 => Err(Unsupported::Enabled("SVE for the kernel itself (CPACR_EL1.ZEN)")),
        _ if cpacr & CPACR_SME != 0 => Err(Unsupported::Enabled("SME for the kernel itself (CPACR_EL1.SMEN)")),
        _ => Ok(()),
    }
}

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
pub(crate) use code::{reset, sandbox_vectors_enter};

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
mod code {
    use core::mem::offset_of;

    use super::Set;
    use crate::gate::Enter;
    use crate::registers::Registers;

    /// What surrounds code for vector registers: kernels without them are assembled without their instructions.
    #[cfg(not(target_feature = "neon"))]
    macro_rules! assembler {
        (begin) => {
            ".arch_extension fp\n.arch_extension simd"
        };
        (end) => {
            ".arch_extension nosimd\n.arch_extension nofp"
        };
    }
    #[cfg(target_feature = "neon")]
    macro_rules! assembler {
        ($place:ident) => {
            ""
        };
    }

    core::arch::global_asm!(
        assembler!(begin),
        include_str!("vectors_swap.s"),
        assembler!(end),
        V = const offset_of!(Set, v),
        FPCR = const offset_of!(Set, fpcr),
        PAIR = const 2 * size_of::<u128>(),
        FRAME = const 4 * size_of::<u64>(),
        AREA = const 2 * size_of::<u64>(),
    );

    unsafe extern "C" {
        /// As `sandbox_gate_enter`, with the registers of `sandbox` while it runs, which it may change; the host's wait in `host`.
        /// Changes no vector register, whatever the calling convention lets a function do. The protocol is in
        /// `vectors_swap.s`.
        ///
        /// # Safety
        ///
        /// 1. As `sandbox_gate_enter`, which `enter` is.
        /// 2. `sandbox` and `host` are a frame each, for this alone; the former holds a [`Set`].
        /// 3. CPACR_EL1.FPEN traps nothing; its ZEN and SMEN trap everything.
        pub(crate) fn sandbox_vectors_enter(
            sp: *mut u8,
            registers: *const Registers,
            sandbox: *mut u8,
            host: *mut u8,
            enter: Enter,
        ) -> u64;
    }

    /// Writes a set that is as after a reset.
    ///
    /// # Safety
    ///
    /// 1. A frame of the caller's begins at `set`.
    pub(crate) unsafe fn reset(set: *mut u8) {
        const PAIR: usize = 2 * size_of::<u64>();
        const { assert!(size_of::<Set>().is_multiple_of(PAIR)) };
        // Not `write_bytes`: without vector registers that calls a routine, one that is made for any length.
        // SAFETY: (1): a set is less than a frame.
        unsafe {
            core::arch::asm!(
                ".rept {pairs}",
                "stp xzr, xzr, [{to}], #{pair}",
                ".endr",
                to = inout(reg) set => _,
                pairs = const size_of::<Set>() / PAIR,
                pair = const PAIR,
                options(nostack, preserves_flags),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn hosts_with_wider_registers_are_refused() {
        assert_eq!(check(0, 0), Ok(()));
        // FPEN, and the upper bits, which concern EL0.
        assert_eq!(check(0x1111, 0b11 << 20 | 1 << 17 | 1 << 25), Ok(()));
        assert_eq!(check(1 << 16, 0b11 << 20), Ok(()));
        assert!(matches!(check(0, CPACR_SVE), Err(Unsupported::Enabled(_))));
        assert!(matches!(check(0, CPACR_SME), Err(Unsupported::Enabled(_))));
        assert!(matches!(check(0b1111 << 16, 0), Err(Unsupported::Missing(_))));
    }

    /// Between the exchanges there is the entry and nothing else.
    #[test]
    fn the_entry_is_all_that_runs_with_the_sandboxs() {
        let source = include_str!("vectors_swap.s");
        let lines: Vec<_> = source
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default().trim())
            .filter(|line| !line.is_empty())
            .collect();
        let entry = lines.iter().position(|&line| line == "sandbox_vectors_enter:").unwrap();
        assert_eq!(
            lines[entry + 1..],
            [
                "hint #34",
                "stp x29, x30, [sp, #-{FRAME}]!",
                "mov x29, sp",
                "stp x2, x3, [sp, #{AREA}]",
                "sandbox_vectors_save x3",
                "sandbox_vectors_load x2",
                "blr x4",
                "ldp x2, x3, [sp, #{AREA}]",
                "sandbox_vectors_save x2",
                "sandbox_vectors_load x3",
                "ldp x29, x30, [sp], #{FRAME}",
                "ret",
                ".text",
            ]
        );
    }
}
