//! Small kernel threads under a preemptive round-robin scheduler, on all CPUs.
//!
//! A kernel that wants them calls [`start`]; nobody else pays for them. From then on the tick takes a CPU
//! away from a thread, at the end of the tick's handler and on the interrupted stack, and gives it to the one
//! that has waited longest, wherever that one ran before. A thread may be pinned to a CPU. There is nothing
//! to sleep on: who waits for something calls [`yield_now`] in a loop.
//!
//! What a thread may not do is hold a [`MaskedLock`] while it yields: the next
//! thread might want it.

mod scheduler;
mod thread;

use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::{cpu, interrupts, lock::MaskedLock, machine, paging::Root, time};

pub(crate) use scheduler::{Local, on_interrupt_end, on_tick};
use thread::Thread;

/// How a thread is to be.
#[derive(Debug, Default)]
pub struct Options {
    /// The CPU it stays on; `None`: any.
    pub cpu: Option<usize>,
    /// Its own page-table root, which is in force whenever it runs; `None`: the kernel's.
    pub root: Option<Root>,
}

/// No more threads can be made: memory is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// A thread's result, when it has one.
pub struct JoinHandle<T> {
    thread: Arc<Thread>,
    result: Arc<MaskedLock<Option<T>>>,
}

/// Starts the scheduler. The caller becomes the thread number 0, pinned to its CPU.
///
/// # Panics
///
/// If called twice, or without memory for the idle thread's stack.
pub fn start() {
    scheduler::start();
}

/// Makes a thread that any CPU may run.
///
/// # Errors
///
/// [`OutOfMemory`] if there is none for its stack.
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>, OutOfMemory> {
    spawn_with(Options::default(), work)
}

/// Makes a thread as `options` say.
///
/// # Errors
///
/// [`OutOfMemory`] if there is none for its stack.
///
/// # Panics
///
/// If the scheduler wasn't started, or there is no such CPU.
pub fn spawn_with<T: Send + 'static>(
    options: Options,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, OutOfMemory> {
    assert!(scheduler::is_running(), "threads::start comes first");
    assert!(options.cpu.is_none_or(|cpu| cpu < cpu::count()), "there is no CPU {:?}", options.cpu);
    let result = Arc::new(MaskedLock::new(None));
    let slot = Arc::clone(&result);
    let work = Box::new(move || {
        let value = work();
        slot.with(|slot| *slot = Some(value));
    });
    let thread = Thread::new(options, work).ok_or(OutOfMemory)?;
    scheduler::make_ready(Arc::clone(&thread));
    Ok(JoinHandle { thread, result })
}

impl<T> JoinHandle<T> {
    /// Waits until the thread has ended and given everything back; returns what its function did.
    ///
    /// # Panics
    ///
    /// In an interrupt handler.
    pub fn join(self) -> T {
        assert!(interrupts::interrupted().is_none(), "an interrupt handler can't wait for a thread");
        while !self.is_finished() {
            if !yield_now() && time::is_ticking() {
                machine::interrupts::wait();
            }
        }
        self.result.with(Option::take).expect("the thread's function has returned")
    }

    /// Whether the thread has ended and given everything back.
    pub fn is_finished(&self) -> bool {
        self.thread.is_gone()
    }

    /// The thread's number.
    pub fn id(&self) -> u64 {
        self.thread.id()
    }
}

/// Lets other threads run first; whether there was one that could. In an interrupt handler: takes the CPU from
/// the interrupted thread when the handler, and those that it interrupted, have returned.
pub fn yield_now() -> bool {
    scheduler::yield_now()
}

/// Lets the running thread run on `cpu` only, or on any. Returns when it is there; in an interrupt handler, the interrupted thread
/// goes there when the handlers have returned.
///
/// # Panics
///
/// Without a scheduler, or if there is no such CPU.
pub fn pin(cpu: Option<usize>) {
    assert!(scheduler::is_running(), "threads::start comes first");
    assert!(cpu.is_none_or(|cpu| cpu < cpu::count()), "there is no CPU {cpu:?}");
    scheduler::with_current(|thread| thread.map(|thread| thread.pin_to(cpu)));
    yield_now();
}

/// The number of the thread that is running; 0 for the boot thread, or without a scheduler.
pub fn current() -> u64 {
    scheduler::with_current(|thread| thread.map_or(0, Thread::id))
}

/// How often the running thread has been given a CPU.
pub fn turns() -> u64 {
    scheduler::with_current(|thread| thread.map_or(0, Thread::turns))
}

/// Gives the running thread another page-table root, at once, and returns the one that it had of its own. May be called in an
/// interrupt handler. `None`: the kernel's root.
///
/// # Panics
///
/// Without a scheduler.
pub fn replace_root(root: Option<Root>) -> Option<Root> {
    scheduler::with_current(|thread| thread.expect("there is a scheduler").replace_root(root))
}

/// The number of the next thread.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

fn next_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}
