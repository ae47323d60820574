//! Threads: one CPU's, in a ring, each with its own stack and, if it is a process's, its own lower half.
//!
//! In the kernel SP_EL0 points to the current thread, and TPIDR_EL1 to the CPU's own data, from where an exception gets the same
//! pointer again. A thread lets go by [`yield_now`], or at a tick while [`preempt`] is on.

use alloc::boxed::Box;
use core::arch::naked_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use crate::layout::PAGE;
use crate::registers::{Lock, masked, read, write};
use crate::tables;
use crate::vectors::Frame;

/// What a thread has while another runs, on top of what [`switch`] pushes.
#[derive(Debug)]
#[repr(C)]
struct Saved {
    sp: u64,
    /// TTBR0_EL1: the root of its lower half, and the ASID.
    lower: u64,
    sp_el0: u64,
    tpidr: u64,
    tpidrro: u64,
}

/// A thread.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Thread {
    saved: core::cell::UnsafeCell<Saved>,
    /// Number of the process, if it is one's.
    pub(crate) process: Option<usize>,
    stack_end: u64,
    next: AtomicPtr<Thread>,
}

// SAFETY: `saved` is used by the switch alone, with interrupts masked, on the only CPU.
unsafe impl Sync for Thread {}

/// The CPU's own data.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Cpu {
    pub(crate) current: AtomicPtr<Thread>,
    index: usize,
}

static CPU: Cpu = Cpu { current: AtomicPtr::new(core::ptr::null_mut()), index: 0 };

static PREEMPTING: AtomicBool = AtomicBool::new(false);
static STRANGE_POINTERS: AtomicU64 = AtomicU64::new(0);
/// Held while the ring changes.
static RING: Lock<()> = Lock::new(());

const STACK_PAGES: u64 = 64;

/// Makes what runs now the first thread, and the lower half what `lower` names.
pub(crate) fn start(lower: u64) {
    let first: &'static Thread = thread(None, lower, 0, 0);
    first.next.store(core::ptr::from_ref(first).cast_mut(), Ordering::Relaxed);
    CPU.current.store(core::ptr::from_ref(first).cast_mut(), Ordering::Relaxed);
    // SAFETY: the kernel's own registers: what they are for from here on.
    unsafe {
        write!("tpidr_el1", (&raw const CPU).expose_provenance() as u64);
        write!("sp_el0", core::ptr::from_ref(first).expose_provenance() as u64);
    }
}

fn thread(process: Option<usize>, lower: u64, tpidrro: u64, stack_end: u64) -> &'static mut Thread {
    let saved = Saved { sp: 0, lower, sp_el0: 0, tpidr: 0, tpidrro };
    let next = AtomicPtr::new(core::ptr::null_mut());
    let thread = Box::leak(Box::new(Thread { saved: saved.into(), process, stack_end, next }));
    thread.saved.get_mut().sp_el0 = core::ptr::from_ref(&*thread).expose_provenance() as u64;
    thread
}

/// The CPU's data, by its own register.
fn cpu() -> &'static Cpu {
    let cpu = core::ptr::with_exposed_provenance::<Cpu>(read!("tpidr_el1") as usize);
    // SAFETY: `start` put the address of a static there, and nothing else is ever.
    unsafe { &*cpu }
}

/// Which CPU this is.
pub(crate) fn cpu_index() -> usize {
    cpu().index
}

/// The current thread, by the CPU's data.
pub(crate) fn current_by_cpu() -> &'static Thread {
    // SAFETY: set by `start` before anything else here, to what lives for ever.
    unsafe { &*cpu().current.load(Ordering::Relaxed) }
}

/// The current thread, by SP_EL0, if that is what it must be.
pub(crate) fn current() -> Option<&'static Thread> {
    let known = current_by_cpu();
    (read!("sp_el0") == core::ptr::from_ref(known).expose_provenance() as u64).then_some(known)
}

/// An interrupt found something else in SP_EL0 than the current thread.
pub(crate) fn count_strange_pointer() {
    STRANGE_POINTERS.fetch_add(1, Ordering::Relaxed);
}

/// How often one did.
pub(crate) fn strange_pointers() -> u64 {
    STRANGE_POINTERS.load(Ordering::Relaxed)
}

/// Adds a thread that runs `body(argument)`, which never ends, in the lower half that `lower` names.
pub(crate) fn spawn(body: extern "C" fn(usize) -> !, argument: usize, lower: u64, tpidrro: u64) -> &'static Thread {
    let stack = tables::map_scattered(STACK_PAGES).expect("memory for a stack");
    let new = thread(Some(argument), lower, tpidrro, stack + STACK_PAGES * PAGE);
    let first = Pushed {
        x: [body as usize as u64, argument as u64, 0, 0, 0, 0, 0, 0, 0, 0, 0, begin as *const () as u64],
        d: [0; 8],
        fpcr: 0,
        reserved: 0,
    };
    // The body builds its program's frame at the stack's end.
    let at = new.stack_end - (size_of::<Frame>() + size_of::<Pushed>()) as u64;
    let pointer = core::ptr::with_exposed_provenance_mut::<Pushed>(at as usize);
    // SAFETY: the end of the stack that was just mapped.
    unsafe { pointer.write(first) };
    new.saved.get_mut().sp = at;
    let new: &'static Thread = new;
    RING.with(|()| {
        let current = current_by_cpu();
        new.next.store(current.next.load(Ordering::Relaxed), Ordering::Relaxed);
        current.next.store(core::ptr::from_ref(new).cast_mut(), Ordering::Relaxed);
    });
    new
}

/// The end of the current thread's stack.
pub(crate) fn stack_end() -> u64 {
    current_by_cpu().stack_end
}

/// Whether ticks switch threads.
pub(crate) fn preempt(on: bool) {
    PREEMPTING.store(on, Ordering::Relaxed);
}

/// Lets the next thread run.
pub(crate) fn yield_now() {
    masked(switch_to_next);
}

/// A tick is over, which may have hit any thread anywhere.
pub(crate) fn switch_from_interrupt() {
    if PREEMPTING.load(Ordering::Relaxed) {
        switch_to_next();
    }
}

fn switch_to_next() {
    let from = current_by_cpu();
    let next = from.next.load(Ordering::Relaxed);
    if core::ptr::eq(next, from) {
        return;
    }
    cpu().current.store(next, Ordering::Relaxed);
    // SAFETY: (1) masked by the caller; (2) both are of the ring and live for ever; the next one stopped here, or was made to look so.
    unsafe { switch(from.saved.get(), (*next).saved.get()) };
}

/// What [`switch`] pushes: what a function must keep, floating-point control included.
#[repr(C, align(16))]
struct Pushed {
    /// x19 to x30.
    x: [u64; 12],
    d: [u64; 8],
    fpcr: u64,
    reserved: u64,
}

/// Where a new thread begins: x19 is its body, x20 the argument.
#[unsafe(naked)]
unsafe extern "C" fn begin() -> ! {
    naked_asm!("msr daifclr, #0b1111", "mov x29, xzr", "mov x0, x20", "br x19")
}

/// Saves what runs in `from` and goes on with `to`: its lower half, its thread registers, its stack.
///
/// # Safety
///
/// 1. Interrupts are masked.
/// 2. `to` was saved by this function, or made to look so, and is not running.
#[unsafe(naked)]
unsafe extern "C" fn switch(from: *mut Saved, to: *const Saved) {
    naked_asm!(
        "sub sp, sp, #{size}",
        "stp x19, x20, [sp, #{x}]",
        "stp x21, x22, [sp, #{x} + 16]",
        "stp x23, x24, [sp, #{x} + 32]",
        "stp x25, x26, [sp, #{x} + 48]",
        "stp x27, x28, [sp, #{x} + 64]",
        "stp x29, x30, [sp, #{x} + 80]",
        "stp d8, d9, [sp, #{d}]",
        "stp d10, d11, [sp, #{d} + 16]",
        "stp d12, d13, [sp, #{d} + 32]",
        "stp d14, d15, [sp, #{d} + 48]",
        "mrs x9, fpcr",
        "str x9, [sp, #{fpcr}]",
        "mov x9, sp",
        "str x9, [x0, #{sp}]",
        "mrs x9, ttbr0_el1",
        "str x9, [x0, #{lower}]",
        "mrs x9, sp_el0",
        "str x9, [x0, #{sp_el0}]",
        "mrs x9, tpidr_el0",
        "str x9, [x0, #{tpidr}]",
        "mrs x9, tpidrro_el0",
        "str x9, [x0, #{tpidrro}]",
        "ldr x9, [x1, #{lower}]",
        "msr ttbr0_el1, x9",
        "isb",
        "ldr x9, [x1, #{sp_el0}]",
        "msr sp_el0, x9",
        "ldr x9, [x1, #{tpidr}]",
        "msr tpidr_el0, x9",
        "ldr x9, [x1, #{tpidrro}]",
        "msr tpidrro_el0, x9",
        "ldr x9, [x1, #{sp}]",
        "mov sp, x9",
        "ldr x9, [sp, #{fpcr}]",
        "msr fpcr, x9",
        "ldp d8, d9, [sp, #{d}]",
        "ldp d10, d11, [sp, #{d} + 16]",
        "ldp d12, d13, [sp, #{d} + 32]",
        "ldp d14, d15, [sp, #{d} + 48]",
        "ldp x19, x20, [sp, #{x}]",
        "ldp x21, x22, [sp, #{x} + 16]",
        "ldp x23, x24, [sp, #{x} + 32]",
        "ldp x25, x26, [sp, #{x} + 48]",
        "ldp x27, x28, [sp, #{x} + 64]",
        "ldp x29, x30, [sp, #{x} + 80]",
        "add sp, sp, #{size}",
        "ret",
        size = const size_of::<Pushed>(),
        x = const offset_of!(Pushed, x),
        d = const offset_of!(Pushed, d),
        fpcr = const offset_of!(Pushed, fpcr),
        sp = const offset_of!(Saved, sp),
        lower = const offset_of!(Saved, lower),
        sp_el0 = const offset_of!(Saved, sp_el0),
        tpidr = const offset_of!(Saved, tpidr),
        tpidrro = const offset_of!(Saved, tpidrro),
    )
}
