//! Finding what belongs to this CPU: TPIDR_EL1 points to it, in the kernel always.

use core::{
    arch::asm,
    mem::offset_of,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering},
};

use super::vectors::ReportArea;
use crate::cpu::{Local, local_of};

/// What this machine keeps for a CPU.
pub(crate) struct Extra {
    /// Where its fatal exceptions save the registers.
    pub(super) report: AtomicPtr<ReportArea>,
    /// Its affinity, as in MPIDR_EL1.
    pub(super) affinity: AtomicU64,
}

impl Extra {
    pub(crate) const fn new() -> Self {
        Self { report: AtomicPtr::new(ptr::null_mut()), affinity: AtomicU64::new(0) }
    }
}

/// Makes `local` this CPU's.
pub(crate) fn install(local: &'static Local) {
    local.machine.report.store(super::vectors::report_area(local.index.load(Ordering::Relaxed)), Ordering::Relaxed);
    // SAFETY: nothing but this module and the vectors looks at the register.
    unsafe { asm!("msr tpidr_el1, {}", in(reg) local, options(nostack, preserves_flags)) };
}

/// This CPU's.
pub(crate) fn current() -> &'static Local {
    let local: *const Local;
    // SAFETY: the register points to the CPU's `Local`, since each CPU begins with `install`. Not `pure`: the answer differs
    // after a switch.
    unsafe {
        asm!("mrs {}, tpidr_el1", out(reg) local, options(nomem, nostack, preserves_flags));
        &*local
    }
}

/// This CPU's index.
#[inline]
pub(crate) fn index() -> usize {
    let index: usize;
    // SAFETY: as in `current`. Both instructions belong together no more than the caller sees to.
    unsafe {
        asm!(
            "mrs {index}, tpidr_el1",
            "ldr {index}, [{index}, #{offset}]",
            index = out(reg) index,
            offset = const offset_of!(Local, index),
            options(nostack, preserves_flags, readonly),
        );
    }
    index
}

/// The affinity of a CPU.
pub(super) fn affinity_of(cpu: usize) -> u64 {
    local_of(cpu).machine.affinity.load(Ordering::Relaxed)
}

/// This machine switches to no stack of the kernel's by itself.
pub(crate) fn kernel_stack() -> u64 {
    0
}

/// See [`kernel_stack`].
pub(crate) fn kernel_stack_of(_cpu: usize) -> u64 {
    0
}

/// See [`kernel_stack`].
pub(crate) fn set_kernel_stack(_top: u64) {}
