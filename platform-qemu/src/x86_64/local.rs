//! Finding what belongs to this CPU: GS points to it, in the kernel always.

use core::{
    arch::asm,
    mem::offset_of,
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use x86_64::{VirtAddr, registers::model_specific::GsBase};

use crate::cpu::{Local, local_of};

pub(crate) use super::segments::{kernel_stack, kernel_stack_of, set_kernel_stack};

/// What this machine keeps for a CPU.
pub(crate) struct Extra {
    /// Its local APIC's number.
    pub(super) apic: AtomicU32,
}

impl Extra {
    pub(crate) const fn new() -> Self {
        Self { apic: AtomicU32::new(0) }
    }
}

/// Makes `local` this CPU's.
pub(crate) fn install(local: &'static Local) {
    GsBase::write(VirtAddr::from_ptr(ptr::from_ref(local)));
}

/// This CPU's.
pub(crate) fn current() -> &'static Local {
    let local: *const Local;
    // SAFETY: GS points to the CPU's `Local`, which begins the life of each CPU with `install`, and which holds its own address.
    // Not `pure`: the answer differs after a switch.
    unsafe {
        asm!("mov {}, gs:[{own}]", out(reg) local, own = const offset_of!(Local, own), options(nostack, preserves_flags, readonly));
        &*local
    }
}

/// This CPU's index.
#[inline]
pub(crate) fn index() -> usize {
    let index: usize;
    // SAFETY: as in `current`.
    unsafe {
        asm!("mov {}, gs:[{index}]", out(reg) index, index = const offset_of!(Local, index), options(nostack, preserves_flags, readonly));
    }
    index
}

/// The local APIC of a CPU.
pub(super) fn apic_of(cpu: usize) -> u32 {
    local_of(cpu).machine.apic.load(Ordering::Relaxed)
}
