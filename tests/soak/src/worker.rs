//! A worker: calls at random, each checked.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;

use fastrand::Rng;
use platform_qemu::cpu;
use platform_qemu::host::Qemu;
use sandbox_mode::{
    Access, CallError, Cancel, Config, ExitReason, FaultKind, Hal, In, Out, PAGE_SIZE, PageRange, Permissions,
    Preemption, Progress, Sandbox, Val, VirtAddr,
};

use crate::work::{compute, dig, is_fault, read, transform, write};

/// By which workers are cancelled; each uses one of them, and shares it with others when there are more workers.
pub(crate) static CANCELS: [Cancel; 4] = [const { Cancel::new() }; 4];
static NEXT_CANCEL: AtomicUsize = AtomicUsize::new(0);

/// Steps of a computation: short ones end before anything happens, long ones take a few ticks.
const STEPS: u64 = 1 << 18;
/// The longest time limit.
const LIMIT: u64 = 4_000_000;
/// The largest buffer.
const BUFFER: usize = 3 * PAGE_SIZE;

/// What a worker has seen.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    calls: u64,
    faults: u64,
    deadlines: u64,
    cancellations: u64,
    resumed: u64,
    abandoned: u64,
    sandboxes: u64,
    migrations: u64,
    pub(crate) disturbances: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Tally) {
        self.calls += other.calls;
        self.faults += other.faults;
        self.deadlines += other.deadlines;
        self.cancellations += other.cancellations;
        self.resumed += other.resumed;
        self.abandoned += other.abandoned;
        self.sandboxes += other.sandboxes;
        self.migrations += other.migrations;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} calls returned, {} faulted; {} ran out of time, {} were cancelled, {} of those went on, {} were given up; {} \
             sandboxes, {} changes of CPU within a call, {} disturbances",
            self.calls,
            self.faults,
            self.deadlines,
            self.cancellations,
            self.resumed,
            self.abandoned,
            self.sandboxes,
            self.migrations,
            self.disturbances
        )
    }
}

/// A page that is granted and taken back.
#[repr(C, align(4096))]
struct Granted([u8; PAGE_SIZE]);

struct Worker<'a> {
    hal: &'static Hal<Qemu>,
    sandbox: Sandbox<'a, Qemu>,
    cancel: &'static Cancel,
    random: Rng,
    tally: Tally,
}

/// Does `work` things; fails with what was not as it must be.
pub(crate) fn run(hal: &'static Hal<Qemu>, random: Rng, work: u64) -> Result<Tally, String> {
    let cancel = &CANCELS[NEXT_CANCEL.fetch_add(1, Ordering::Relaxed) % CANCELS.len()];
    let page = Box::new(Granted([0x5a; PAGE_SIZE]));
    let sandbox = hal.sandbox().map_err(|error| error.to_string())?;
    let mut worker = Worker { hal, sandbox, cancel, random, tally: Tally::default() };
    worker.tally.sandboxes += 1;
    for step in 0..work {
        worker.act(&page).map_err(|what| format!("step {step}: {what}"))?;
    }
    let tally = worker.tally;
    drop(worker.sandbox);
    drop(page);
    Ok(tally)
}

impl Worker<'_> {
    fn act(&mut self, page: &Granted) -> Result<(), String> {
        match self.random.u32(0..10) {
            0 | 1 => self.compute(),
            2 | 3 => self.copy(),
            4 => self.fault(),
            5 | 6 => self.run_out_of_time(),
            7 => self.be_cancelled(),
            8 => self.renew(),
            _ => self.grant(page),
        }
    }

    fn steps(&mut self) -> u64 {
        let most = 1 << self.random.u32(0..=STEPS.ilog2());
        self.random.u64(0..most)
    }

    fn compute(&mut self) -> Result<(), String> {
        let (start, steps) = (self.random.u64(..), self.steps());
        let before = cpu::index();
        let found = self.sandbox.call(compute, (Val(start), Val(steps))).map_err(|error| error.to_string())?;
        self.tally.migrations += u64::from(cpu::index() != before);
        self.tally.calls += 1;
        expect("a computation", found, compute(start, steps))
    }

    fn copy(&mut self) -> Result<(), String> {
        let len = self.random.usize(1..BUFFER);
        let mut input = vec![0; len];
        self.random.fill(&mut input);
        let mut output = vec![0xcc; len];
        let key = self.random.u8(..);
        let arguments = (In(&input[..]), Out(&mut output[..]), Val(key));
        let sum = self.sandbox.call(transform, arguments).map_err(|error| error.to_string())?;
        let mut wanted = vec![0; len];
        expect("a sum", sum, transform(&input, &mut wanted, key))?;
        self.tally.calls += 1;
        expect("an output", output == wanted, true)
    }

    fn fault(&mut self) -> Result<(), String> {
        let kernel_data = (&raw const CANCELS).expose_provenance() as u64;
        let (result, access, kind) = match self.random.u32(0..4) {
            0 => (self.sandbox.call(read, (Val(8u64),)), Access::Read, FaultKind::Unmapped),
            1 => (self.sandbox.call(write, (Val(kernel_data),)), Access::Write, FaultKind::Unmapped),
            2 => (self.sandbox.call(write, (Val(write as *const () as u64),)), Access::Write, FaultKind::Permission),
            _ => (self.sandbox.call(dig, (Val(0u64),)), Access::Write, FaultKind::StackOverflow),
        };
        self.tally.faults += 1;
        match result {
            Err(CallError::Exit(exit)) if is_fault(exit.reason, access, kind) => Ok(()),
            other => Err(format!("{access} refused for {kind:?}, wanted; found {other:x?}")),
        }
    }

    /// A computation under a limit, which goes on or is given up when it was stopped for `reason`.
    fn race(&mut self, reason: Preemption) -> Result<(), String> {
        let (start, steps) = (self.random.u64(..), self.steps());
        let goes_on = self.random.bool();
        let before = cpu::index();
        let mut run = self.sandbox.start(compute, (Val(start), Val(steps))).map_err(|error| error.to_string())?;
        let mut stopped = false;
        let found = loop {
            match run.resume().map_err(|error| error.to_string())? {
                Progress::Returned(value) => break Some(value),
                Progress::Preempted(found, next) if found == reason => {
                    stopped = true;
                    match reason {
                        Preemption::Deadline => self.tally.deadlines += 1,
                        _ => self.tally.cancellations += 1,
                    }
                    if !goes_on {
                        break None;
                    }
                    self.cancel.reset();
                    run = next;
                }
                Progress::Preempted(other, _) => return Err(format!("stopped for {other:?}, not for {reason:?}")),
                Progress::Exited(exit) => return Err(exit.to_string()),
                Progress::Suspended(_) => return Err("a resumed run was only suspended".to_string()),
            }
        };
        self.tally.migrations += u64::from(cpu::index() != before);
        let Some(found) = found else {
            self.tally.abandoned += 1;
            return Ok(());
        };
        self.tally.calls += 1;
        self.tally.resumed += u64::from(stopped);
        expect("a computation that was stopped", found, compute(start, steps))
    }

    fn run_out_of_time(&mut self) -> Result<(), String> {
        let limit = Duration::from_nanos(self.random.u64(0..LIMIT));
        self.sandbox.limit_time(Some(limit)).map_err(|error| error.to_string())?;
        let result = self.race(Preemption::Deadline);
        self.sandbox.limit_time(None).map_err(|error| error.to_string())?;
        result
    }

    fn be_cancelled(&mut self) -> Result<(), String> {
        self.sandbox.cancel_by(Some(self.cancel));
        let result = self.race(Preemption::Cancelled);
        self.sandbox.cancel_by(None);
        self.cancel.reset();
        result
    }

    /// Another sandbox, with a stack of another size.
    fn renew(&mut self) -> Result<(), String> {
        let pages = self.random.usize(2..20);
        let config = Config::default().stack_size(pages * PAGE_SIZE);
        let fresh = self.hal.sandbox_with(config).map_err(|error| error.to_string())?;
        self.sandbox = fresh;
        self.tally.sandboxes += 1;
        self.compute()
    }

    fn grant(&mut self, page: &Granted) -> Result<(), String> {
        let address = page.0.as_ptr().expose_provenance() as u64;
        let range = PageRange::single(VirtAddr(address).page());
        // SAFETY: (1) the page outlives the grant, which is taken back below; (2) reading only.
        unsafe { self.sandbox.grant_range(range, Permissions::READ) }.map_err(|error| error.to_string())?;
        let offset = self.random.u64(0..PAGE_SIZE as u64);
        let found = self.sandbox.call(read, (Val(address + offset),)).map_err(|error| error.to_string())?;
        let written = self.sandbox.call(write, (Val(address + offset),));
        self.sandbox.revoke(range).map_err(|error| error.to_string())?;
        let revoked = self.sandbox.call(read, (Val(address + offset),));
        self.tally.calls += 1;
        self.tally.faults += 2;
        expect("a granted byte", found, 0x5a)?;
        expect("a refused write", reason_of(&written), Some((Access::Write, FaultKind::Permission)))?;
        expect("a read of what was revoked", reason_of(&revoked), Some((Access::Read, FaultKind::Unmapped)))
    }
}

fn reason_of(result: &Result<u64, CallError>) -> Option<(Access, FaultKind)> {
    match result {
        Err(CallError::Exit(exit)) => match exit.reason {
            ExitReason::MemoryFault(fault) => Some((fault.access, fault.kind)),
            _ => None,
        },
        _ => None,
    }
}

fn expect<T: PartialEq + fmt::Debug>(what: &str, found: T, wanted: T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:x?} instead of {wanted:x?}")) }
}
