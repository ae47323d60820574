//! The machine's CPUs: which one this is, how many run, and how to have all of them do something.
//!
//! The boot CPU is number 0 and runs `main`. The others come up before `main` is called, with the same
//! control registers and tables of their own, tick like the boot CPU, and wait for interrupts until
//! somebody gives them work: [`on_each`], or the scheduler in [`crate::threads`].
//!
//! What belongs to a CPU is found through a register of the machine's. A thread that may be preempted can be
//! on another CPU by the time it looks at what it read, so all that is used with interrupts masked.

use core::{
    hint::spin_loop,
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering},
};

use crate::{
    interrupts::{self, without},
    machine,
    stack::Stack,
    threads, time,
};

/// The most CPUs that are brought up.
pub const MAX_CPUS: usize = 8;

/// How long the others may take to come up, in nanoseconds. QEMU's own CPUs wait for the host's.
const PATIENCE: u64 = 120_000_000_000;

/// What belongs to one CPU and is used by it alone, interrupts masked. Atomic so that it can be shared;
/// nothing is ordered by it.
#[repr(C, align(64))]
pub(crate) struct Local {
    /// The address of this, for machines that find it through a segment.
    pub(crate) own: AtomicPtr<Local>,
    pub(crate) index: AtomicUsize,
    /// The frame of the interrupt that is being handled; null if there is none.
    pub(crate) interrupted: AtomicPtr<machine::Frame>,
    /// Whether the tick is on.
    pub(crate) ticking: AtomicBool,
    pub(crate) threads: threads::Local,
    pub(crate) machine: machine::local::Extra,
}

impl Local {
    const fn new() -> Self {
        Self {
            own: AtomicPtr::new(ptr::null_mut()),
            index: AtomicUsize::new(0),
            interrupted: AtomicPtr::new(ptr::null_mut()),
            ticking: AtomicBool::new(false),
            threads: threads::Local::new(),
            machine: machine::local::Extra::new(),
        }
    }
}

static LOCALS: [Local; MAX_CPUS] = [const { Local::new() }; MAX_CPUS];

/// How many CPUs run.
static COUNT: AtomicUsize = AtomicUsize::new(1);

/// How many beside the boot CPU are ready.
static READY: AtomicUsize = AtomicUsize::new(0);

/// Which CPU this is. What it was, unless interrupts are masked or the thread is pinned.
#[inline]
pub fn index() -> usize {
    machine::local::index()
}

/// How many CPUs run: their indices are below this.
#[inline]
pub fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// What belongs to this CPU.
pub(crate) fn local() -> &'static Local {
    machine::local::current()
}

/// What belongs to the CPU `index`.
pub(crate) fn local_of(index: usize) -> &'static Local {
    &LOCALS[index]
}

/// Makes this CPU number `index`. The first thing that it does in Rust.
pub(crate) fn install(index: usize) {
    let local = &LOCALS[index];
    local.own.store(ptr::from_ref(local).cast_mut(), Ordering::Relaxed);
    local.index.store(index, Ordering::Relaxed);
    machine::local::install(local);
}

/// Brings the other CPUs up. Called once, on the boot CPU, when the heap, the clock and the final
/// tables are there.
pub(crate) fn start_others() {
    interrupts::register(machine::interrupts::KICK, || {
        threads::yield_now();
    });
    let count = machine::secondary::present().min(MAX_CPUS);
    if count < 2 {
        return;
    }
    interrupts::register(machine::interrupts::CALL, on_call);
    let mut tops = [0; MAX_CPUS];
    for top in &mut tops[1..count] {
        *top = Stack::new().expect("memory for the stacks of the CPUs").leak();
    }
    machine::secondary::start(count, &tops);
    let patience = time::now() + PATIENCE;
    while READY.load(Ordering::Acquire) < count - 1 {
        assert!(time::now() < patience, "{} of {} CPUs came up", READY.load(Ordering::Relaxed) + 1, count);
        spin_loop();
    }
    COUNT.store(count, Ordering::Relaxed);
}

/// The last stretch of another CPU's start: on its own stack, with everything of the machine's set up
/// and interrupts masked.
pub(crate) fn run_secondary() -> ! {
    time::start_tick();
    READY.fetch_add(1, Ordering::Release);
    interrupts::enable();
    idle()
}

/// What a CPU does that has nothing to do.
pub(crate) fn idle() -> ! {
    loop {
        machine::interrupts::wait();
        threads::yield_now();
    }
}

/// Something that all CPUs do.
struct Call<'a> {
    work: &'a (dyn Fn() + Sync),
    /// How many other CPUs have not done it yet.
    left: AtomicUsize,
}

/// The call in progress.
static CALL: AtomicPtr<Call<'static>> = AtomicPtr::new(ptr::null_mut());

/// Held by whoever makes one. Not with interrupts masked: the holder waits for the others.
static TURN: spin::Mutex<()> = spin::Mutex::new(());

/// Runs `work` once on each CPU, interrupts masked, and returns when all have done so. On the other CPUs
/// it interrupts what runs there.
///
/// # Panics
///
/// If there are other CPUs and interrupts are masked, or this is an interrupt handler: two CPUs that
/// waited for one another so would hang.
pub fn on_each(work: &(dyn Fn() + Sync)) {
    if count() == 1 {
        return without(work);
    }
    assert!(interrupts::enabled() && interrupts::interrupted().is_none(), "on_each waits for other CPUs");
    let call = Call { work, left: AtomicUsize::new(count() - 1) };
    let _turn = TURN.lock();
    without(|| {
        // The others stop using the call when `left` is zero, and this function waits for that.
        CALL.store(ptr::from_ref(&call).cast_mut().cast(), Ordering::Release);
        let this = index();
        (0..count()).filter(|&cpu| cpu != this).for_each(|cpu| interrupts::send(cpu, machine::interrupts::CALL));
        work();
    });
    while call.left.load(Ordering::Acquire) != 0 {
        spin_loop();
    }
}

fn on_call() {
    // SAFETY: whoever sent this interrupt keeps the call until `left` says that all are done.
    let call = unsafe { &*CALL.load(Ordering::Acquire) };
    (call.work)();
    call.left.fetch_sub(1, Ordering::Release);
}
