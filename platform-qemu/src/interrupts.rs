//! Device interrupts: the CPU's mask and the table of handlers.
//!
//! A line is the number the machine's interrupt controller uses: a vector on x86-64, an INTID on
//! AArch64. Handlers run on the interrupted stack with interrupts masked.

use core::{
    mem, ptr,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering},
};

use crate::machine;
pub use crate::machine::interrupts::{LINES, State, disable, enable, enabled, restore};

static HANDLERS: [AtomicPtr<()>; LINES] = [const { AtomicPtr::new(ptr::null_mut()) }; LINES];
static UNCLAIMED: AtomicU64 = AtomicU64::new(0);

/// Runs `work` with interrupts masked, then restores the mask.
pub fn without<R>(work: impl FnOnce() -> R) -> R {
    let state = disable();
    let result = work();
    restore(state);
    result
}

/// Makes `handler` the one for a line, in place of an earlier one, and lets the line through.
///
/// # Panics
///
/// If the machine has no such line.
pub fn register(line: usize, handler: fn()) {
    HANDLERS[line].store(handler as *mut (), Ordering::Release);
    machine::interrupts::open(line);
}

/// How many interrupts arrived on a line without a handler.
pub fn unclaimed() -> u64 {
    UNCLAIMED.load(Ordering::Relaxed)
}

/// Calls a line's handler. The machine's interrupt entry calls this; it also tells the interrupt
/// controller that the interrupt was served.
pub(crate) fn dispatch(line: usize) {
    let handler = HANDLERS[line].load(Ordering::Acquire);
    if handler.is_null() {
        UNCLAIMED.fetch_add(1, Ordering::Relaxed);
        return;
    }
    // SAFETY: only `register` stores a non-null value, and that is a `fn()`.
    let handler = unsafe { mem::transmute::<*mut (), fn()>(handler) };
    handler();
}
