//! Who runs next, and the switch.
//!
//! One queue for all CPUs. A thread is in one place at a time: in the queue, current on a CPU, or (from the
//! moment that its CPU turns to the next until the next has taken over) left there. Only what took over puts it
//! into the queue or buries it, since until then its stack is in use. No lock is held across the switch.

use alloc::{collections::VecDeque, sync::Arc};
use core::{
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering},
};

use super::thread::Thread;
use crate::{
    cpu, interrupts,
    interrupts::without,
    lock::MaskedLock,
    machine::{self, context},
    stack::Stack,
};

/// One CPU's part.
pub(crate) struct Local {
    /// The thread that runs; null without a scheduler.
    current: AtomicPtr<Thread>,
    /// The thread that runs when no other can.
    idle: AtomicPtr<Thread>,
    /// The thread that was left in the last switch, until the next one has taken over.
    left: AtomicPtr<Thread>,
    /// Another thread is to run as soon as the handlers have returned.
    wanted: AtomicBool,
}

impl Local {
    pub(crate) const fn new() -> Self {
        Self {
            current: AtomicPtr::new(ptr::null_mut()),
            idle: AtomicPtr::new(ptr::null_mut()),
            left: AtomicPtr::new(ptr::null_mut()),
            wanted: AtomicBool::new(false),
        }
    }
}

static RUNNING: AtomicBool = AtomicBool::new(false);

/// The threads that could run, the longest waiting first.
static READY: MaskedLock<VecDeque<Arc<Thread>>> = MaskedLock::new(VecDeque::new());

/// How many threads there are: the queue has room for all of them, so that handlers needn't allocate.
static THREADS: AtomicUsize = AtomicUsize::new(0);

pub(super) fn is_running() -> bool {
    RUNNING.load(Ordering::Acquire)
}

pub(super) fn start() {
    static STARTED: AtomicBool = AtomicBool::new(false);
    assert!(!STARTED.swap(true, Ordering::Relaxed), "the scheduler was started before");
    without(|| {
        let this = cpu::index();
        let keep = |thread: Arc<Thread>| Arc::into_raw(thread).cast_mut();
        let boot = keep(Arc::new(Thread::running(Some(this), machine::local::kernel_stack())));
        for index in 0..cpu::count() {
            let local = &cpu::local_of(index).threads;
            let idle = if index == this {
                local.current.store(boot, Ordering::Relaxed);
                let stack = Stack::new().expect("memory for the idle thread's stack").leak();
                let thread = Thread::running(Some(index), stack);
                // SAFETY: (1) a fresh stack; (2) `begin_idle` never returns.
                thread.stack_pointer.store(unsafe { context::prepare(stack, begin_idle) }, Ordering::Relaxed);
                keep(Arc::new(thread))
            } else {
                let idle = keep(Arc::new(Thread::running(Some(index), machine::local::kernel_stack_of(index))));
                local.current.store(idle, Ordering::Relaxed);
                idle
            };
            local.idle.store(idle, Ordering::Relaxed);
        }
        THREADS.store(1, Ordering::Relaxed);
        READY.with(|ready| ready.reserve(1));
        RUNNING.store(true, Ordering::Release);
    });
}

/// Queues a new thread.
pub(super) fn make_ready(thread: Arc<Thread>) {
    let threads = THREADS.fetch_add(1, Ordering::Relaxed) + 1;
    READY.with(|ready| ready.reserve(threads.saturating_sub(ready.len())));
    enqueue(thread);
}

/// Queues a thread, and tells the CPU that has to run it. (Where any will do, idle ones look at each interrupt.)
fn enqueue(thread: Arc<Thread>) {
    let only = thread.pinned_to();
    without(|| {
        READY.with(|ready| ready.push_back(thread));
        if let Some(cpu) = only.filter(|&cpu| cpu != cpu::index()) {
            interrupts::send(cpu, machine::interrupts::KICK);
        }
    });
}

/// Calls `work` with the running thread; `None` without a scheduler.
pub(super) fn with_current<R>(work: impl FnOnce(Option<&Thread>) -> R) -> R {
    without(|| {
        let current = cpu::local().threads.current.load(Ordering::Relaxed);
        // SAFETY: a current thread is alive, and stays so while interrupts are masked.
        work(unsafe { current.as_ref() })
    })
}

pub(super) fn yield_now() -> bool {
    if !is_running() {
        return false;
    }
    without(|| {
        let local = cpu::local();
        if !local.interrupted.load(Ordering::Relaxed).is_null() {
            local.threads.wanted.store(true, Ordering::Relaxed);
            return false;
        }
        give_way()
    })
}

/// The tick: time is up for whoever runs.
pub(crate) fn on_tick() {
    if is_running() {
        cpu::local().threads.wanted.store(true, Ordering::Relaxed);
    }
}

/// The outermost interrupt handler has returned and the controller knows; interrupts are masked.
pub(crate) fn on_interrupt_end(local: &Local) {
    if local.wanted.load(Ordering::Relaxed) {
        local.wanted.store(false, Ordering::Relaxed);
        give_way();
    }
}

/// Runs another thread, if there is one. Interrupts are masked.
fn give_way() -> bool {
    let index = cpu::index();
    let local = &cpu::local().threads;
    let current = local.current.load(Ordering::Relaxed);
    let next = READY.with(|ready| {
        let position = ready.iter().position(|thread| thread.may_run_on(index))?;
        ready.remove(position)
    });
    // SAFETY: the current thread is alive.
    let must_go = unsafe { (*current).is_finished() || !(*current).may_run_on(index) };
    let next = match next {
        Some(thread) => Arc::into_raw(thread).cast_mut(),
        None if must_go => local.idle.load(Ordering::Relaxed),
        None => return false,
    };
    local.left.store(current, Ordering::Relaxed);
    local.current.store(next, Ordering::Relaxed);
    // SAFETY: (1) both threads are alive: what was left isn't released before `take_over`; (2) `next` is no other CPU's, since it
    // was taken from the queue or is this CPU's idle thread; (3) interrupts are masked.
    unsafe {
        (*next).activate();
        context::switch((*current).stack_pointer.as_ptr(), (*next).stack_pointer.load(Ordering::Relaxed));
    }
    // Here when the thread runs again, on whatever CPU.
    take_over();
    true
}

/// Puts the thread that ran here before where it belongs. The first thing that a thread does when it gets a CPU.
fn take_over() {
    let local = &cpu::local().threads;
    let left = local.left.swap(ptr::null_mut(), Ordering::Relaxed);
    if left.is_null() || left == local.idle.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: the pointer is one of `Arc::into_raw`, and nobody else has it now.
    let left = unsafe { Arc::from_raw(left) };
    if left.is_finished() {
        THREADS.fetch_sub(1, Ordering::Relaxed);
        left.release();
    } else {
        enqueue(left);
    }
}

/// Where a new thread begins, interrupts masked.
pub(super) extern "C" fn begin() -> ! {
    take_over();
    let work = with_current(|thread| thread.and_then(Thread::take_work)).expect("a new thread has something to do");
    interrupts::enable();
    work();
    interrupts::disable();
    with_current(|thread| thread.map(Thread::finish));
    give_way();
    unreachable!("a thread that is over runs again");
}

/// Where an idle thread that wasn't running begins.
extern "C" fn begin_idle() -> ! {
    take_over();
    interrupts::enable();
    cpu::idle()
}
