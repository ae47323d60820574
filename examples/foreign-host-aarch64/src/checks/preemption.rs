//! Interrupts of every kind while sandboxes run, and calls that are stopped, with a tick and without.

use core::time::Duration;

use sandbox_mode::{CallError, ExitReason, Preemption, Val};

use super::{Bench, Outcome, checks, fail, must_be};
use crate::time::{self, Counter};

checks! {
    every_interrupt_goes_on_while_a_sandbox_waits
    a_tick_stops_a_call
    without_a_tick_the_timer_stops_a_call
    without_a_tick_a_call_goes_on_where_it_stopped
}

/// Computes until the counter at `counter` has moved by `wanted`; how long it took, in rounds.
pub(super) fn wait_for(counter: u64, wanted: u64) -> u64 {
    let counter = core::ptr::with_exposed_provenance::<u64>(counter as usize);
    // SAFETY: a counter that was granted.
    let read = || unsafe { counter.read_volatile() };
    let start = read();
    let mut rounds = 0u64;
    while read() - start < wanted {
        rounds += 1;
    }
    rounds
}

fn every_interrupt_goes_on_while_a_sandbox_waits(bench: &'static Bench) -> Outcome {
    super::needs_ticks()?;
    let counters: [(&str, &'static Counter, u64); 4] = [
        ("the tick", &time::TICKS, 50),
        ("the second timer, as FIQ", &time::FAST_TICKS, 50),
        ("the software interrupt of each tick", &time::AFTER_TICKS, 50),
        ("the clock", &time::ALARMS, 1),
    ];
    for (name, counter, wanted) in counters {
        let mut sandbox = bench.hal.sandbox()?;
        let address = time::grant(&mut sandbox, counter)?;
        let before = counter.get();
        sandbox.call(wait_for, (Val(address), Val(wanted)))?;
        if counter.get() < before + wanted {
            fail!("{name} went from {before} to {}", counter.get());
        }
    }
    Ok(())
}

fn endless() -> u64 {
    loop {
        core::hint::spin_loop();
    }
}

const LIMIT: Duration = Duration::from_millis(5);

fn stopped_in_time(bench: &'static Bench) -> Outcome {
    let mut sandbox = bench.hal.sandbox()?;
    sandbox.limit_time(Some(LIMIT))?;
    for _ in 0..5 {
        let start = time::now();
        let end = sandbox.call(endless, ());
        let Err(CallError::Exit(exit)) = end else { fail!("{end:?}") };
        must_be!(exit.reason, ExitReason::Preempted(Preemption::Deadline));
        if time::now() - start < LIMIT.as_nanos() as u64 {
            fail!("stopped before its time");
        }
        must_be!(sandbox.call(|number: u64| number + 1, (Val(1u64),))?, 2);
    }
    Ok(())
}

fn a_tick_stops_a_call(bench: &'static Bench) -> Outcome {
    super::needs_ticks()?;
    stopped_in_time(bench)
}

/// Does `work` while nothing interrupts by itself.
fn without_ticks(work: impl FnOnce() -> Outcome) -> Outcome {
    let ticking = time::is_ticking();
    time::stop_ticking();
    let outcome = work();
    if ticking {
        time::start_ticking();
    }
    outcome
}

fn without_a_tick_the_timer_stops_a_call(bench: &'static Bench) -> Outcome {
    without_ticks(|| {
        let (ticks, shots) = (time::TICKS.get(), time::ONE_SHOTS.get());
        stopped_in_time(bench)?;
        must_be!(time::TICKS.get(), ticks);
        if time::ONE_SHOTS.get() == shots {
            fail!("the timer did not fire");
        }
        Ok(())
    })
}

fn without_a_tick_a_call_goes_on_where_it_stopped(bench: &'static Bench) -> Outcome {
    use sandbox_mode::Progress;
    without_ticks(|| {
        let mut sandbox = bench.hal.sandbox()?;
        sandbox.limit_time(Some(LIMIT))?;
        let count = |goal: u64| (0..goal).fold(0u64, |sum, step| core::hint::black_box(sum ^ step.rotate_left(7)));
        let mut goal = 200_000u64;
        loop {
            let mut run = sandbox.start(count, (Val(goal),))?;
            let mut stops = 0;
            let sum = loop {
                match run.resume()? {
                    Progress::Preempted(reason, mut stopped) => {
                        must_be!(reason, Preemption::Deadline);
                        stops += 1;
                        stopped.limit_time(Some(LIMIT))?;
                        run = stopped;
                    }
                    Progress::Returned(sum) => break sum,
                    Progress::Exited(exit) => fail!("{exit}"),
                    Progress::Suspended(_) => fail!("suspended instead of resumed"),
                }
            };
            must_be!(sum, count(goal));
            if stops >= 3 {
                return Ok(());
            }
            goal *= 2;
        }
    })
}
