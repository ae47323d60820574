//! Instructions of the kernel's own that the CPU may refuse.
//!
//! Some registers exist on some CPUs only, and nothing but trying tells on which. Code that tries names, for each such instruction,
//! where to go on if it is refused; the exception handlers ask here before they report.

use core::{
    mem, ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

static HOOK: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// From now on `fixup` is asked where privileged code goes on after the undefined-instruction or general-protection exception (on
/// AArch64: trapped instruction) at an address. `None` means that it doesn't, and the kernel ends with a report. It runs with
/// interrupts masked. On AArch64 such an exception may change a thread pointer of EL1's or EL0's.
pub fn set(fixup: fn(u64) -> Option<u64>) {
    HOOK.store(fixup as *mut (), Ordering::Release);
}

/// Where to go on after the exception at `at`.
pub(crate) fn find(at: u64) -> Option<u64> {
    let hook = HOOK.load(Ordering::Acquire);
    if hook.is_null() {
        return None;
    }
    // SAFETY: only `set` stores a non-null value, and that is such a function.
    let hook = unsafe { mem::transmute::<*mut (), fn(u64) -> Option<u64>>(hook) };
    hook(at)
}
