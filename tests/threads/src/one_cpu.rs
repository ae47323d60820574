//! Several threads on one CPU, each in a sandbox of its own.

use alloc::vec::Vec;

use platform_qemu::threads;
use sandbox_mode::{InOut, Permissions, Progress, Val};

use crate::probe::{chain, compute, take_turns};
use crate::suite::{Patience, Suite, cases, on};
use crate::verdict::Outcome;
use crate::words::{FREE, STOP, Words};

cases! {
    sandboxes_take_turns_while_all_are_inside: 1,
    threads_are_switched_inside_their_runs: 1,
    a_switched_thread_that_faults_gets_its_own_fault: 1,
}

const CPU: usize = 0;
const THREADS: u64 = 4;

/// Each sandbox is called once and waits inside for the others: none could go on if the CPU weren't taken from it there.
fn sandboxes_take_turns_while_all_are_inside(suite: &Suite) -> Outcome {
    const ROUNDS: u64 = 5;
    let hal = suite.hal;
    let words = Words::new();
    let mut running = Vec::new();
    for me in 0..THREADS {
        running.push(on(CPU, move || {
            let mut sandbox = hal.sandbox()?;
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            let seed = 1000 + me;
            let arguments = (Val(words.address()), Val(me), Val(THREADS), Val(ROUNDS), Val(seed));
            expect_eq!(sandbox.call(take_turns, arguments)?, chain(seed, ROUNDS));
            Ok(())
        })?);
    }
    running.into_iter().try_for_each(threads::JoinHandle::join)
}

fn threads_are_switched_inside_their_runs(suite: &Suite) -> Outcome {
    const SWITCHES: u64 = 5;
    let hal = suite.hal;
    let words = Words::new();
    let mut running = Vec::new();
    for me in 0..THREADS {
        running.push(on(CPU, move || {
            let mut sandbox = hal.sandbox()?;
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            let (seed, mut steps) = (2000 + me, 0);
            let mut run = sandbox.start(compute, (Val(words.address()), Val(seed), InOut(&mut steps)))?;
            let found = loop {
                let turns = threads::turns();
                match run.step()? {
                    Progress::Suspended(next) => run = next,
                    Progress::Returned(value) => break value,
                    Progress::Exited(exit) => return Err(exit.into()),
                    Progress::Preempted(reason, _) => fail!("{reason:?}"),
                }
                if threads::turns() > turns {
                    words.count(FREE + me as usize);
                }
            };
            expect_eq!(found, chain(seed, steps), "{steps} steps");
            Ok(steps)
        })?);
    }
    let patience = Patience::new();
    while (0..THREADS as usize).any(|me| words.get(FREE + me) < SWITCHES) {
        if let Err(verdict) = patience.check() {
            words.set(STOP, 1);
            return Err(verdict);
        }
        threads::yield_now();
    }
    words.set(STOP, 1);
    for thread in running {
        let steps = thread.join()?;
        suite.note(format_args!("{steps} steps"));
    }
    Ok(())
}

/// Faults of many threads at once: each is told of its own.
fn a_switched_thread_that_faults_gets_its_own_fault(suite: &Suite) -> Outcome {
    use sandbox_mode::{CallError, ExitReason};
    const ROUNDS: u64 = 200;
    let hal = suite.hal;
    let mut running = Vec::new();
    for me in 0..THREADS {
        running.push(on(CPU, move || {
            let mut sandbox = hal.sandbox()?;
            for round in 0..ROUNDS {
                let page = (1 + me * ROUNDS + round) * 4096;
                match sandbox.call(crate::probe::load, (Val(page), Val(me))) {
                    Err(CallError::Exit(exit)) => match exit.reason {
                        ExitReason::MemoryFault(fault) => expect_eq!(fault.address.0, page + me * 8),
                        other => fail!("{other}"),
                    },
                    other => fail!("{other:?}"),
                }
                threads::yield_now();
            }
            Ok(())
        })?);
    }
    running.into_iter().try_for_each(threads::JoinHandle::join)
}
