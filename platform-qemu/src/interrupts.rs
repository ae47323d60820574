//! Device interrupts: the CPU's mask and the table of handlers.
//!
//! A line is the number the machine's interrupt controller uses: a vector on x86-64, an INTID on
//! AArch64. Handlers run on the interrupted stack with interrupts masked; they may unmask them, and are then interrupted
//! themselves.

use core::{
    mem, ptr,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering},
};

pub use crate::machine::interrupts::{LINES, State, disable, enable, enabled, restore, send, wait};
use crate::{cpu, machine, threads};

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

/// What an interrupt handler may know of the code that was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted {
    /// The instruction that comes next.
    pub instruction: u64,
    /// The stack pointer.
    pub stack: u64,
    /// The code was the kernel's.
    pub privileged: bool,
    /// It had interrupts enabled.
    pub enabled: bool,
}

/// What the interrupt that is being handled on this CPU interrupted; `None` outside of handlers.
pub fn interrupted() -> Option<Interrupted> {
    without(|| {
        let frame = cpu::local().interrupted.load(Ordering::Relaxed);
        // SAFETY: the frame is on the stack below its handler, which hasn't returned.
        unsafe { frame.as_ref() }.map(machine::Frame::interrupted)
    })
}

/// How many interrupts arrived on a line without a handler.
pub fn unclaimed() -> u64 {
    UNCLAIMED.load(Ordering::Relaxed)
}

/// Calls a line's handler, has `end` tell the interrupt controller that the interrupt was served, and lets another
/// thread run if that is due. The machine's interrupt entry calls this, interrupts masked.
pub(crate) fn handle(line: usize, frame: &machine::Frame, end: impl FnOnce()) {
    let local = cpu::local();
    let outer = local.interrupted.load(Ordering::Relaxed);
    local.interrupted.store(ptr::from_ref(frame).cast_mut(), Ordering::Relaxed);
    dispatch(line);
    // A handler may have unmasked them, to be interrupted itself. It still is on the same CPU.
    disable();
    end();
    local.interrupted.store(outer, Ordering::Relaxed);
    if outer.is_null() {
        threads::on_interrupt_end(&local.threads);
    }
}

fn dispatch(line: usize) {
    let handler = HANDLERS[line].load(Ordering::Acquire);
    if handler.is_null() {
        UNCLAIMED.fetch_add(1, Ordering::Relaxed);
        return;
    }
    // SAFETY: only `register` stores a non-null value, and that is a `fn()`.
    let handler = unsafe { mem::transmute::<*mut (), fn()>(handler) };
    handler();
}
