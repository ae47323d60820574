//! Sandboxes and runs that go from CPU to CPU.

use platform_qemu::{cpu, threads};
use sandbox_mode::{InOut, Permissions, Progress, Val};

use crate::alarm::Quiet;
use crate::probe::{chain, compute};
use crate::suite::{Patience, Suite, cases, on};
use crate::verdict::Outcome;
use crate::words::{INSIDE, STOP, Words};

cases! {
    a_sandbox_is_made_called_and_dropped_on_different_cpus: 2,
    a_suspended_run_goes_on_on_another_cpu: 2,
    a_run_moves_while_its_interrupt_is_handled: 2,
    runs_move_as_the_scheduler_likes: 2,
}

/// The CPU that is so many further.
fn after(cpu: usize, further: usize) -> usize {
    (cpu + further) % cpu::count()
}

fn a_sandbox_is_made_called_and_dropped_on_different_cpus(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    for first in 0..cpu::count() {
        let made = on(first, move || Ok(hal.sandbox()?))?.join()?;
        let mut sandbox = made;
        for further in 1..=2 * cpu::count() {
            let here = after(first, further);
            sandbox = on(here, move || {
                let mut sandbox = sandbox;
                let (seed, mut state) = (further as u64, 5u64);
                expect_eq!(sandbox.call(chain, (Val(seed), Val(1000)))?, chain(seed, 1000));
                sandbox.call(|state: &mut u64| *state = chain(*state, 10), (InOut(&mut state),))?;
                expect_eq!(state, chain(5, 10));
                Ok(sandbox)
            })?
            .join()?;
        }
        on(after(first, 2), move || {
            drop(sandbox);
            Ok(())
        })?
        .join()?;
    }
    Ok(())
}

/// One thread, which goes elsewhere whenever its run is suspended.
fn a_suspended_run_goes_on_on_another_cpu(suite: &Suite) -> Outcome {
    const MOVES: usize = 12;
    let hal = suite.hal;
    let words = Words::new();
    on(0, move || {
        let mut sandbox = hal.sandbox()?;
        words.grant(&mut sandbox, Permissions::READ_WRITE)?;
        let (seed, mut steps) = (4000, 0);
        let mut run = sandbox.start(compute, (Val(words.address()), Val(seed), InOut(&mut steps)))?;
        let mut moves = 0;
        let found = loop {
            match run.step()? {
                Progress::Suspended(next) => run = next,
                Progress::Returned(value) => break value,
                Progress::Exited(exit) => return Err(exit.into()),
                Progress::Preempted(reason, _) => fail!("{reason:?}"),
            }
            let here = cpu::index();
            threads::pin(Some(after(here, 1)));
            expect_eq!(cpu::index(), after(here, 1), "the CPU");
            moves += usize::from(words.get(INSIDE) != 0);
            if moves == MOVES {
                words.set(STOP, 1);
            }
        };
        expect!(moves >= MOVES, "{moves} moves");
        expect_eq!(found, chain(seed, steps), "{steps} steps");
        Ok(())
    })?
    .join()
}

/// The handler of an interrupt in the sandbox sends the thread elsewhere, so the run leaves the gate of one CPU and comes back
/// to another.
fn a_run_moves_while_its_interrupt_is_handled(suite: &Suite) -> Outcome {
    const FROM: usize = 1;
    let hal = suite.hal;
    for to in (0..cpu::count()).filter(|&to| to != FROM) {
        let words = Words::new();
        words.set(crate::words::FREE, to as u64);
        on(FROM, move || {
            let mut sandbox = hal.sandbox()?;
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            let quiet = Quiet::new();
            quiet.when_inside(words, |words| {
                threads::pin(Some(words.get(crate::words::FREE) as usize));
                words.set(STOP, 1);
            });
            let (seed, mut steps) = (5000, 0);
            let mut run = sandbox.start(compute, (Val(words.address()), Val(seed), InOut(&mut steps)))?;
            let mut moved = false;
            let found = loop {
                let before = cpu::index();
                let inside = words.get(STOP) == 0;
                let progress = run.step()?;
                moved |= inside && (before, cpu::index()) == (FROM, to);
                match progress {
                    Progress::Suspended(next) => run = next,
                    Progress::Returned(value) => break value,
                    Progress::Exited(exit) => return Err(exit.into()),
                    Progress::Preempted(reason, _) => fail!("{reason:?}"),
                }
            };
            // The tick that is off is the first CPU's.
            threads::pin(Some(FROM));
            drop(quiet);
            expect!(moved, "no step began on CPU {FROM} and ended on CPU {to}");
            expect_eq!(found, chain(seed, steps), "{steps} steps");
            Ok(())
        })?
        .join()?;
    }
    Ok(())
}

/// Free threads, one more than CPUs: the one that waits goes wherever time is up first.
fn runs_move_as_the_scheduler_likes(suite: &Suite) -> Outcome {
    const MOVES: u64 = 3;
    let hal = suite.hal;
    let words = Words::new();
    let mut running = alloc::vec::Vec::new();
    let count = cpu::count() + 1;
    for me in 0..count {
        running.push(threads::spawn(move || -> Outcome {
            let mut sandbox = hal.sandbox()?;
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            let (seed, mut steps) = (6000 + me as u64, 0);
            let mut run = sandbox.start(compute, (Val(words.address()), Val(seed), InOut(&mut steps)))?;
            let found = loop {
                let before = cpu::index();
                match run.step()? {
                    Progress::Suspended(next) => run = next,
                    Progress::Returned(value) => break value,
                    Progress::Exited(exit) => return Err(exit.into()),
                    Progress::Preempted(reason, _) => fail!("{reason:?}"),
                }
                if cpu::index() != before {
                    words.count(crate::words::FREE);
                }
            };
            expect_eq!(found, chain(seed, steps), "{steps} steps");
            Ok(())
        })?);
    }
    let patience = Patience::new();
    while words.get(crate::words::FREE) < MOVES * count as u64 {
        if let Err(verdict) = patience.check() {
            words.set(STOP, 1);
            return Err(verdict);
        }
        threads::yield_now();
    }
    words.set(STOP, 1);
    running.into_iter().try_for_each(threads::JoinHandle::join)
}
