//! Calls that are stopped from outside: by time, by request, by a host that wants its CPU.
//!
//! Nothing here asks how long a call took, only that it was not stopped before its time.

use alloc::boxed::Box;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use core::time::Duration;

use sandbox_mode::{
    Arch, Backend, CallError, Error, ExitReason, InOut, PageRange, Permissions, Preemption, Progress, Val, VirtAddr,
};

use crate::host::{CANCEL, cancel_after, raise_at_entry, yield_after};
use crate::kernel::Line;
use crate::machine::{RESISTANCE, WAITS};
use crate::probe::{PageOf, address_of, works};
use crate::suite::{Sandbox, Suite, cases};
use crate::verdict::{Outcome, skip};

cases! {
    an_endless_loop_is_stopped,
    what_resists_is_stopped,
    waiting_is_no_way_to_resist,
    what_returns_in_time_is_not_stopped,
    a_call_out_of_time_goes_on_where_it_stopped,
    a_call_out_of_time_can_be_dropped,
    a_cancelled_call_goes_on_where_it_stopped,
    a_call_is_cancelled_from_a_handler,
    a_host_that_asks_gets_its_cpu,
    limits_need_interrupts,
}

const SHORT: Duration = Duration::from_millis(10);
const LONG: Duration = Duration::from_secs(3600);

fn now(suite: &Suite) -> Outcome<u64> {
    suite.kernel.host().now().map_or_else(|| skip("the kernel has no clock"), Ok)
}

/// A sandbox whose calls may take so long.
fn limited(suite: &Suite, limit: Duration) -> Outcome<Sandbox<'static>> {
    now(suite)?;
    let mut sandbox = suite.sandbox()?;
    sandbox.limit_time(Some(limit))?;
    Ok(sandbox)
}

/// What a call that must be stopped was stopped for.
fn stopped(result: Result<u64, CallError>) -> Outcome<Preemption> {
    match result {
        Err(CallError::Exit(exit)) => match exit.reason {
            ExitReason::Preempted(reason) => Ok(reason),
            reason => fail!("ended with {reason}"),
        },
        Err(CallError::Setup(error)) => fail!("the call could not begin: {error}"),
        Ok(value) => fail!("returned {value:#x}"),
    }
}

fn endless() -> u64 {
    loop {
        core::hint::spin_loop();
    }
}

/// Any time may be too short for a machine that has others to serve.
fn works_without_limit(sandbox: &mut Sandbox<'_>) -> Outcome {
    sandbox.limit_time(None)?;
    works(sandbox)
}

fn an_endless_loop_is_stopped(suite: &Suite) -> Outcome {
    let mut sandbox = limited(suite, SHORT)?;
    for _ in 0..3 {
        let start = now(suite)?;
        expect_eq!(stopped(sandbox.call(endless, ()))?, Preemption::Deadline);
        expect!(now(suite)? - start >= SHORT.as_nanos() as u64, "stopped before its time");
        works_without_limit(&mut sandbox)?;
        sandbox.limit_time(Some(SHORT))?;
    }
    Ok(())
}

fn run(code: u64, page: u64) -> u64 {
    // SAFETY: the address of such a function.
    let code = unsafe { core::mem::transmute::<usize, extern "C" fn(u64)>(code as usize) };
    code(page);
    0
}

/// Calls `code` with the address of a page of the sandbox's own.
fn call_on_page(sandbox: &mut Sandbox<'_>, code: extern "C" fn(u64)) -> Result<u64, CallError> {
    let mut page = PageOf::boxed(0);
    let function = |code: u64, page: &mut [u8]| run(code, page.as_mut_ptr() as u64);
    sandbox.call(function, (Val(code as *const () as u64), InOut(&mut page.0[..])))
}

fn what_resists_is_stopped(suite: &Suite) -> Outcome {
    let mut sandbox = limited(suite, SHORT)?;
    for (name, code) in RESISTANCE {
        suite.note(format_args!("{name}"));
        expect_eq!(stopped(call_on_page(&mut sandbox, code))?, Preemption::Deadline, "{name}");
        works_without_limit(&mut sandbox)?;
        sandbox.limit_time(Some(SHORT))?;
    }
    Ok(())
}

fn waiting_is_no_way_to_resist(suite: &Suite) -> Outcome {
    let mut sandbox = limited(suite, LONG)?;
    for (name, code) in WAITS {
        match call_on_page(&mut sandbox, code) {
            Err(CallError::Exit(exit)) => expect_eq!(exit.reason, ExitReason::PrivilegedInstruction, "{name}"),
            other => fail!("{name}: {other:x?}"),
        }
    }
    Ok(())
}

fn what_returns_in_time_is_not_stopped(suite: &Suite) -> Outcome {
    let mut sandbox = limited(suite, LONG)?;
    for _ in 0..10 {
        works(&mut sandbox)?;
    }
    Ok(())
}

/// Where a sandbox counts, for the host to see. On the heap: a kernel may map its statics executable, and those can't be granted.
#[repr(C, align(4096))]
struct Counter {
    steps: AtomicU64,
    _rest: [u8; 4088],
}

static COUNTER: AtomicPtr<Counter> = AtomicPtr::new(ptr::null_mut());

fn counter() -> &'static Counter {
    if COUNTER.load(Ordering::Relaxed).is_null() {
        let counter = Box::new(Counter { steps: AtomicU64::new(0), _rest: [0; 4088] });
        COUNTER.store(Box::leak(counter), Ordering::Relaxed);
    }
    // SAFETY: never null from here on, and never given back.
    unsafe { &*COUNTER.load(Ordering::Relaxed) }
}

/// Counts to `goal`, looking each time whether the counter is where it was left; what it found that wasn't right.
fn count(counter: u64, goal: u64) -> u64 {
    let counter = core::ptr::with_exposed_provenance::<AtomicU64>(counter as usize);
    // SAFETY: a counter that was granted for writing.
    let counter = unsafe { &*counter };
    let mut wrong = 0;
    for step in 0..goal {
        wrong += u64::from(counter.load(Ordering::Relaxed) != step);
        counter.store(step + 1, Ordering::Relaxed);
    }
    wrong
}

fn grant_counter(sandbox: &mut Sandbox<'static>) -> Outcome {
    let page = VirtAddr(address_of(counter())).page();
    // SAFETY: (1) alone on its page; (2) an atomic counter.
    Ok(unsafe { sandbox.grant_range(PageRange::single(page), Permissions::READ_WRITE) }?)
}

fn counted() -> u64 {
    counter().steps.load(Ordering::Relaxed)
}

/// Counts with a limit, going on each time it is stopped for `reason`; `again` makes that happen.
fn count_with_stops(
    suite: &Suite,
    sandbox: &mut Sandbox<'static>,
    reason: Preemption,
    again: &dyn Fn(),
    stops: usize,
) -> Outcome {
    // Long enough to be interrupted, whatever the machine's speed.
    let mut goal = 100_000;
    loop {
        counter().steps.store(0, Ordering::Relaxed);
        let mut seen = 0;
        again();
        let mut run = sandbox.start(count, (Val(address_of(counter())), Val(goal)))?;
        let wrong = loop {
            match run.resume()? {
                Progress::Preempted(found, mut stopped) => {
                    expect_eq!(found, reason);
                    seen += 1;
                    let steps = counted();
                    again();
                    if found == Preemption::Deadline {
                        stopped.limit_time(Some(SHORT))?;
                    }
                    core::hint::spin_loop();
                    expect_eq!(counted(), steps, "steps that it took while it was stopped");
                    run = stopped;
                }
                Progress::Returned(wrong) => break wrong,
                Progress::Exited(exit) => fail!("{exit}"),
                Progress::Suspended(_) => fail!("a run that was to go on until it is stopped"),
            }
        };
        expect_eq!(wrong, 0, "steps that did not go on from the one before");
        expect_eq!(counted(), goal);
        if seen >= stops {
            suite.note(format_args!("{seen} stops in {goal} steps"));
            return Ok(());
        }
        goal *= 2;
    }
}

fn a_call_out_of_time_goes_on_where_it_stopped(suite: &Suite) -> Outcome {
    let mut sandbox = limited(suite, SHORT)?;
    grant_counter(&mut sandbox)?;
    count_with_stops(suite, &mut sandbox, Preemption::Deadline, &|| {}, 3)
}

fn a_call_out_of_time_can_be_dropped(suite: &Suite) -> Outcome {
    let mut sandbox = limited(suite, SHORT)?;
    let mut out = 6u64;
    let run = sandbox.start(
        |out: &mut u64| {
            *out = 7;
            endless()
        },
        (InOut(&mut out),),
    )?;
    let Progress::Preempted(reason, run) = run.resume()? else { fail!("it was not stopped") };
    drop(run);
    expect_eq!((reason, out), (Preemption::Deadline, 6));
    works_without_limit(&mut sandbox)
}

fn a_cancelled_call_goes_on_where_it_stopped(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    grant_counter(&mut sandbox)?;
    sandbox.cancel_by(Some(&CANCEL));
    let again = || {
        CANCEL.reset();
        cancel_after(1);
    };
    let outcome = count_with_stops(suite, &mut sandbox, Preemption::Cancelled, &again, 3);
    cancel_after(usize::MAX);
    CANCEL.reset();
    outcome
}

fn a_call_is_cancelled_from_a_handler(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    sandbox.cancel_by(Some(&CANCEL));
    cancel_after(2);
    let first = stopped(sandbox.call(endless, ()));
    // Every call ends while the request stands.
    let second = stopped(sandbox.call(|| 5u64, ()));
    CANCEL.reset();
    expect_eq!((first?, second?), (Preemption::Cancelled, Preemption::Cancelled));
    works(&mut sandbox)
}

fn a_host_that_asks_gets_its_cpu(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    grant_counter(&mut sandbox)?;
    count_with_stops(suite, &mut sandbox, Preemption::Yield, &|| yield_after(1), 3)?;
    yield_after(0);
    // A call that can't go on ends; an interrupt is handled first.
    let before = suite.kernel.handled(Line::Ordinary);
    raise_at_entry(Line::Ordinary, 1);
    let reason = stopped(sandbox.call(endless, ()))?;
    yield_after(usize::MAX);
    expect_eq!(reason, Preemption::Yield);
    if suite.kernel.raise(Line::Ordinary).is_ok() {
        expect!(suite.kernel.handled(Line::Ordinary) > before, "the interrupt was not handled");
    }
    works(&mut sandbox)
}

fn limits_need_interrupts(suite: &Suite) -> Outcome {
    let mut sandbox = limited(suite, LONG)?;
    let state = Backend::mask_interrupts();
    let timed = sandbox.call(|| 5u64, ());
    let unlimited = sandbox.limit_time(None).map(|()| sandbox.call(|| 5u64, ()));
    sandbox.cancel_by(Some(&CANCEL));
    let cancelled = sandbox.call(|| 5u64, ());
    // SAFETY: (1) from `mask_interrupts` above.
    unsafe { Backend::restore_interrupts(state) };
    let refused = Err(CallError::Setup(Error::InterruptsMasked));
    expect_eq!(timed, refused);
    expect_eq!(unlimited?, Ok(5));
    expect_eq!(cancelled, refused);
    works(&mut sandbox)
}
