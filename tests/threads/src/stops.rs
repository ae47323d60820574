//! Runs that are stopped from outside. Only the reason is looked at: how long it took depends on everything else.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use platform_qemu::host::{Qemu, set_should_yield};
use platform_qemu::lock::MaskedLock;
use platform_qemu::{cpu, threads};
use sandbox_mode::{CallError, Cancel, ExitReason, Hal, InOut, Permissions, Preemption, Progress, Val};

use crate::alarm::Quiet;
use crate::probe::{chain, compute, resist};
use crate::suite::{Suite, cases, on};
use crate::verdict::Outcome;
use crate::words::{INSIDE, STOP, Words};

cases! {
    a_run_is_cancelled_from_another_cpu: 2,
    a_cancelled_run_goes_on_elsewhere: 2,
    cancelling_races_with_returning: 2,
    a_handler_cancels_the_run_that_it_interrupted: 1,
    deadlines_end_runs_on_all_cpus: 1,
    deadlines_end_runs_on_cpus_without_a_tick: 1,
    a_deadline_holds_wherever_the_run_moves: 2,
    a_host_that_wants_its_cpu_gets_it: 1,
}

/// The CPU whose runs are stopped by others.
const TARGET: usize = 1;

fn was_stopped(result: Result<(), CallError>, reason: Preemption) -> Outcome {
    match result {
        Err(CallError::Exit(exit)) => expect_eq!(exit.reason, ExitReason::Preempted(reason)),
        other => fail!("{other:?} instead of {reason:?}"),
    }
    Ok(())
}

fn cancel() -> &'static Cancel {
    Box::leak(Box::default())
}

/// Without a tick there: nothing but the cancelling itself interrupts the run.
fn a_run_is_cancelled_from_another_cpu(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    for _ in 0..20 {
        let (words, cancel) = (Words::new(), cancel());
        let thread = on(TARGET, move || {
            let mut sandbox = hal.sandbox()?;
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            sandbox.cancel_by(Some(cancel));
            let quiet = Quiet::new();
            let result = sandbox.call(resist, (Val(words.address()),));
            drop(quiet);
            was_stopped(result, Preemption::Cancelled)?;
            // The request stands.
            was_stopped(sandbox.call(resist, (Val(words.address()),)), Preemption::Cancelled)?;
            cancel.reset();
            expect_eq!(sandbox.call(chain, (Val(3u64), Val(4u64)))?, chain(3, 4));
            Ok(())
        })?;
        words.wait_for(INSIDE, 1)?;
        cancel.cancel(hal.host());
        thread.join()?;
    }
    Ok(())
}

fn a_cancelled_run_goes_on_elsewhere(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    let (words, cancel) = (Words::new(), cancel());
    let thread = on(TARGET, move || {
        let mut sandbox = hal.sandbox()?;
        words.grant(&mut sandbox, Permissions::READ_WRITE)?;
        sandbox.cancel_by(Some(cancel));
        let (seed, mut steps) = (11, 0);
        let mut run = sandbox.start(compute, (Val(words.address()), Val(seed), InOut(&mut steps)))?;
        let mut stops = 0;
        let found = loop {
            match run.step()? {
                Progress::Suspended(next) => run = next,
                Progress::Returned(value) => break value,
                Progress::Exited(exit) => return Err(exit.into()),
                Progress::Preempted(reason, next) => {
                    expect_eq!(reason, Preemption::Cancelled);
                    run = next;
                    stops += 1;
                    threads::pin(Some(0));
                    cancel.reset();
                    words.set(STOP, 1);
                }
            }
        };
        expect_eq!(stops, 1, "times it was stopped");
        expect_eq!(found, chain(seed, steps), "{steps} steps");
        Ok(())
    })?;
    words.wait_for(INSIDE, 1)?;
    cancel.cancel(hal.host());
    thread.join()
}

/// Short calls that may be over before they are stopped: each ends in one way or the other.
fn cancelling_races_with_returning(suite: &Suite) -> Outcome {
    const CALLS: u64 = 300;
    let hal = suite.hal;
    let (words, cancel) = (Words::new(), cancel());
    let thread = on(TARGET, move || {
        let mut sandbox = hal.sandbox()?;
        sandbox.cancel_by(Some(cancel));
        let (mut returned, mut stopped) = (0u64, 0u64);
        for call in 0..CALLS {
            words.set(INSIDE, call + 1);
            let steps = call % 13 * 4000;
            match sandbox.call(chain, (Val(call), Val(steps))) {
                Ok(value) => {
                    expect_eq!(value, chain(call, steps));
                    returned += 1;
                }
                Err(CallError::Exit(exit)) if exit.reason == ExitReason::Preempted(Preemption::Cancelled) => {
                    stopped += 1;
                }
                Err(error) => return Err(error.into()),
            }
            cancel.reset();
        }
        Ok((returned, stopped))
    })?;
    let mut seen = 0;
    while !thread.is_finished() {
        let call = words.get(INSIDE);
        if call != seen {
            seen = call;
            // Later and later.
            for _ in 0..call % 7 * 200 {
                core::hint::spin_loop();
            }
            cancel.cancel(hal.host());
        }
    }
    let (returned, stopped) = thread.join()?;
    suite.note(format_args!("{returned} returned, {stopped} stopped"));
    expect_eq!(returned + stopped, CALLS);
    Ok(())
}

/// For the handler.
static CANCEL: Cancel = Cancel::new();
static HAL: MaskedLock<Option<&'static Hal<Qemu>>> = MaskedLock::new(None);

fn a_handler_cancels_the_run_that_it_interrupted(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    let words = Words::new();
    CANCEL.reset();
    HAL.with(|slot| *slot = Some(hal));
    on(0, move || {
        let mut sandbox = hal.sandbox()?;
        words.grant(&mut sandbox, Permissions::READ_WRITE)?;
        sandbox.cancel_by(Some(&CANCEL));
        let quiet = Quiet::new();
        quiet.when_inside(words, |_| {
            if let Some(hal) = HAL.with(|hal| *hal) {
                CANCEL.cancel(hal.host());
            }
        });
        let result = sandbox.call(resist, (Val(words.address()),));
        drop(quiet);
        was_stopped(result, Preemption::Cancelled)
    })?
    .join()
}

fn each_cpu_has_a_deadline(suite: &Suite, tick: bool) -> Outcome {
    let hal = suite.hal;
    let mut running = Vec::new();
    for index in 0..cpu::count() {
        running.push(on(index, move || {
            let words = Words::new();
            let mut sandbox = hal.sandbox()?;
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            sandbox.limit_time(Some(Duration::from_millis(2)))?;
            for _ in 0..5 {
                let quiet = (!tick).then(Quiet::new);
                let result = sandbox.call(resist, (Val(words.address()),));
                drop(quiet);
                was_stopped(result, Preemption::Deadline)?;
            }
            sandbox.limit_time(Some(Duration::from_secs(100)))?;
            expect_eq!(sandbox.call(chain, (Val(5u64), Val(6u64)))?, chain(5, 6));
            Ok(())
        })?);
    }
    running.into_iter().try_for_each(threads::JoinHandle::join)
}

fn deadlines_end_runs_on_all_cpus(suite: &Suite) -> Outcome {
    each_cpu_has_a_deadline(suite, true)
}

fn deadlines_end_runs_on_cpus_without_a_tick(suite: &Suite) -> Outcome {
    each_cpu_has_a_deadline(suite, false)
}

/// The thread is free and has company, so it moves; its time is up all the same.
fn a_deadline_holds_wherever_the_run_moves(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    let mut running = Vec::new();
    for _ in 0..=cpu::count() {
        running.push(threads::spawn(move || -> Outcome {
            let words = Words::new();
            let mut sandbox = hal.sandbox()?;
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            sandbox.limit_time(Some(Duration::from_millis(60)))?;
            was_stopped(sandbox.call(resist, (Val(words.address()),)), Preemption::Deadline)
        })?);
    }
    running.into_iter().try_for_each(threads::JoinHandle::join)
}

fn a_host_that_wants_its_cpu_gets_it(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    let words = Words::new();
    on(0, move || {
        let mut sandbox = hal.sandbox()?;
        words.grant(&mut sandbox, Permissions::READ_WRITE)?;
        let (seed, mut steps) = (12, 0);
        set_should_yield(true);
        let run = sandbox.start(compute, (Val(words.address()), Val(seed), InOut(&mut steps)))?;
        let progress = run.resume()?;
        set_should_yield(false);
        let Progress::Preempted(Preemption::Yield, run) = progress else { fail!("the run did not yield") };
        words.set(STOP, 1);
        let Progress::Returned(found) = run.resume()? else { fail!("the run did not go on") };
        expect_eq!(found, chain(seed, steps), "{steps} steps");
        Ok(())
    })?
    .join()
}
