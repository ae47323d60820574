//! A sandbox's registers, in the layout in which they pass the gate.

use core::mem::offset_of;

/// The registers of a sandbox that isn't running.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Registers {
    /// x0 to x30.
    pub x: [u64; 31],
    /// The stack pointer (SP_EL0).
    pub sp: u64,
    /// The instruction it stopped at.
    pub pc: u64,
    /// Its processor state, as SPSR_EL1 has it.
    pub pstate: u64,
    /// Its thread pointer (TPIDR_EL0).
    pub tpidr: u64,
    /// Keeps what follows a pair.
    pub(crate) reserved: u64,
    /// The syndrome of the last exception of its own that ended a run (ESR_EL1).
    pub esr: u64,
    /// The address that the exception is about, if it has one (FAR_EL1).
    pub far: u64,
}

// SP_EL1 stands at the end of such a frame during a run.
const _: () = assert!(size_of::<Registers>().is_multiple_of(16));
// Pairs that enter.s and exit.s load and store together; the first is x30 and sp.
const _: () = assert!(offset_of!(Registers, sp) == 31 * size_of::<u64>());
const _: () = assert!(offset_of!(Registers, pstate) == offset_of!(Registers, pc) + size_of::<u64>());
const _: () = assert!(offset_of!(Registers, esr).is_multiple_of(16));
const _: () = assert!(offset_of!(Registers, far) == offset_of!(Registers, esr) + size_of::<u64>());

/// The pairs of words that [`Registers`] are.
#[cfg(all(target_arch = "aarch64", target_os = "none"))]
const PAIRS: usize = size_of::<Registers>() / PAIR;
#[cfg(all(target_arch = "aarch64", target_os = "none"))]
const PAIR: usize = 2 * size_of::<u64>();
/// The pairs before those that only an exception of the sandbox's own changes.
#[cfg(all(target_arch = "aarch64", target_os = "none"))]
const INTERRUPTED: usize = offset_of!(Registers, esr) / PAIR;

// Without vector registers the compiler calls a routine for what follows, one that is made for any length.
#[cfg(all(target_arch = "aarch64", target_os = "none"))]
impl Registers {
    /// Sets all to zero.
    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        // SAFETY: writes `self`, which may hold any bits, and nothing else.
        unsafe {
            core::arch::asm!(
                ".rept {pairs}",
                "stp xzr, xzr, [{to}], #{pair}",
                ".endr",
                to = inout(reg) &raw mut *self => _,
                pairs = const PAIRS,
                pair = const PAIR,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Copies all from `source`.
    ///
    /// # Safety
    ///
    /// 1. `source` can be read.
    #[inline(always)]
    pub(crate) unsafe fn copy_from(&mut self, source: *const Registers) {
        // SAFETY: (1); all there are.
        unsafe { self.copy_pairs::<PAIRS>(source) };
    }

    /// Copies from `source` what an interrupt finds: all but the syndrome and the address of an exception.
    ///
    /// # Safety
    ///
    /// 1. `source` can be read.
    #[inline(always)]
    pub(crate) unsafe fn copy_interrupted(&mut self, source: *const Registers) {
        // SAFETY: (1); fewer than there are.
        unsafe { self.copy_pairs::<INTERRUPTED>(source) };
    }

    /// # Safety
    ///
    /// 1. `source` can be read, and there are so many pairs.
    #[inline(always)]
    unsafe fn copy_pairs<const COUNT: usize>(&mut self, source: *const Registers) {
        // SAFETY: (1); writes `self`, which may hold any bits, and nothing else.
        unsafe {
            core::arch::asm!(
                ".rept {pairs}",
                "ldp {first}, {second}, [{from}], #{pair}",
                "stp {first}, {second}, [{to}], #{pair}",
                ".endr",
                from = inout(reg) source => _,
                to = inout(reg) &raw mut *self => _,
                first = out(reg) _,
                second = out(reg) _,
                pairs = const COUNT,
                pair = const PAIR,
                options(nostack, preserves_flags),
            );
        }
    }
}
