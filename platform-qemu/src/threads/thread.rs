//! One thread.

use alloc::{boxed::Box, sync::Arc};
use core::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use super::{Options, next_id, scheduler};
use crate::{
    lock::MaskedLock,
    machine::{self, context},
    paging::{self, Root},
    stack::Stack,
};

const ANY: usize = usize::MAX;

type Work = Box<dyn FnOnce() + Send>;

/// A thread. What changes is changed by the CPU that runs it, or by whoever holds it while nobody does.
pub(super) struct Thread {
    id: u64,
    /// The only CPU it may run on, or `ANY`.
    cpu: AtomicUsize,
    /// Its stack pointer while it doesn't run.
    pub(super) stack_pointer: AtomicU64,
    /// Where an unprivileged program's interrupts would push: the end of its stack, which differs from thread to thread.
    kernel_stack: u64,
    /// None for those that the scheduler found running.
    stack: MaskedLock<Option<Stack>>,
    work: MaskedLock<Option<Work>>,
    root: MaskedLock<Option<Root>>,
    turns: AtomicU64,
    finished: AtomicBool,
    gone: AtomicBool,
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread").field("id", &self.id).field("cpu", &self.cpu).finish_non_exhaustive()
    }
}

impl Thread {
    /// A thread that will run `work`. `None` if there is no memory for its stack.
    pub(super) fn new(options: Options, work: Work) -> Option<Arc<Self>> {
        let stack = Stack::new()?;
        let mut thread = Self::running(options.cpu, stack.top());
        // SAFETY: (1) a fresh stack; (2) `begin` never returns.
        thread.stack_pointer = AtomicU64::new(unsafe { context::prepare(stack.top(), scheduler::begin) });
        thread.stack = MaskedLock::new(Some(stack));
        thread.work = MaskedLock::new(Some(work));
        thread.root = MaskedLock::new(options.root);
        Some(Arc::new(thread))
    }

    /// A thread for code that is running on `cpu` already.
    pub(super) fn running(cpu: Option<usize>, kernel_stack: u64) -> Self {
        Self {
            id: next_id(),
            cpu: AtomicUsize::new(cpu.unwrap_or(ANY)),
            stack_pointer: AtomicU64::new(0),
            kernel_stack,
            stack: MaskedLock::new(None),
            work: MaskedLock::new(None),
            root: MaskedLock::new(None),
            turns: AtomicU64::new(0),
            finished: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    pub(super) fn may_run_on(&self, cpu: usize) -> bool {
        matches!(self.cpu.load(Ordering::Relaxed), only if only == ANY || only == cpu)
    }

    /// The only CPU it may run on, if there is one.
    pub(super) fn pinned_to(&self) -> Option<usize> {
        Some(self.cpu.load(Ordering::Relaxed)).filter(|&only| only != ANY)
    }

    pub(super) fn pin_to(&self, cpu: Option<usize>) {
        self.cpu.store(cpu.unwrap_or(ANY), Ordering::Relaxed);
    }

    pub(super) fn take_work(&self) -> Option<Work> {
        self.work.with(Option::take)
    }

    /// Puts what belongs to the thread into the CPU's registers. Interrupts are masked, and the thread is about to run here.
    pub(super) fn activate(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
        self.root.with(|root| paging::use_root(root.as_ref()));
        machine::local::set_kernel_stack(self.kernel_stack);
    }

    /// Replaces the root of the thread, which is the running one.
    pub(super) fn replace_root(&self, root: Option<Root>) -> Option<Root> {
        self.root.with(|own| {
            let before = core::mem::replace(own, root);
            paging::use_root(own.as_ref());
            before
        })
    }

    /// Notes that the thread's function has returned.
    pub(super) fn finish(&self) {
        self.finished.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Relaxed)
    }

    /// Gives back what the thread had. It is finished, and no CPU is on its stack or root any more.
    pub(super) fn release(&self) {
        drop(self.root.with(Option::take));
        drop(self.stack.with(Option::take));
        self.gone.store(true, Ordering::Release);
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}
