//! Views that change between runs on different CPUs.

use platform_qemu::{cpu, threads};
use sandbox_mode::{
    Access, CallError, ExitReason, FaultKind, InOut, PAGE_SIZE, PageRange, Permissions, Progress, Val, VirtAddr,
};

use crate::probe::{compute, load, store};
use crate::suite::{Sandbox, Suite, cases, on};
use crate::verdict::Outcome;
use crate::words::{FREE, STOP, Words};

cases! {
    what_one_cpu_changes_the_next_one_sees: 1,
    two_sandboxes_alternate_on_every_cpu: 1,
    a_view_changes_after_its_run_was_given_up_elsewhere: 1,
    buffers_that_were_replaced_are_gone_on_every_cpu: 1,
}

const WORD: u64 = FREE as u64;

fn next_cpu(step: &mut usize) {
    *step += 1;
    threads::pin(Some(*step % cpu::count()));
}

fn faults(sandbox: &mut Sandbox<'_>, words: &Words, access: Access, kind: FaultKind) -> Outcome {
    let page = words.address();
    let result = match access {
        Access::Write => sandbox.call(store, (Val(page), Val(WORD), Val(1u64))),
        _ => sandbox.call(load, (Val(page), Val(WORD))).map(drop),
    };
    match result {
        Err(CallError::Exit(exit)) => match exit.reason {
            ExitReason::MemoryFault(fault) => {
                expect_eq!((fault.address, fault.access, fault.kind), (VirtAddr(page + WORD * 8), access, kind));
            }
            other => fail!("{other}"),
        },
        other => fail!("{other:?}"),
    }
    Ok(())
}

/// Every change and every use is on another CPU than the one before, and each CPU has used the page under the old rules.
fn what_one_cpu_changes_the_next_one_sees(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    on(0, move || {
        let words = Words::new();
        let range = PageRange::single(words.page());
        let mut sandbox = hal.sandbox()?;
        let mut step = 0;
        for round in 0..10u64 {
            faults(&mut sandbox, words, Access::Read, FaultKind::Unmapped)?;
            next_cpu(&mut step);
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            for _ in 0..=cpu::count() {
                next_cpu(&mut step);
                sandbox.call(store, (Val(words.address()), Val(WORD), Val(round)))?;
                expect_eq!(words.get(FREE), round);
            }
            sandbox.restrict(range, Permissions::READ)?;
            for _ in 0..=cpu::count() {
                next_cpu(&mut step);
                faults(&mut sandbox, words, Access::Write, FaultKind::Permission)?;
                expect_eq!(sandbox.call(load, (Val(words.address()), Val(WORD)))?, round);
            }
            sandbox.revoke(range)?;
            for _ in 0..=cpu::count() {
                next_cpu(&mut step);
                faults(&mut sandbox, words, Access::Read, FaultKind::Unmapped)?;
            }
        }
        Ok(())
    })?
    .join()
}

/// Both have different memory at the same addresses: no CPU may remember the other's.
fn two_sandboxes_alternate_on_every_cpu(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    on(0, move || {
        let mut sandbox = hal.sandbox()?;
        let mut other = hal.sandbox()?;
        let mut step = 0;
        for round in 0..8u64 {
            for sandbox in [&mut sandbox, &mut other] {
                let mut value = round;
                sandbox.call(|value: &mut u64| *value = *value * 3 + 1, (InOut(&mut value),))?;
                expect_eq!(value, round * 3 + 1);
                next_cpu(&mut step);
            }
        }
        Ok(())
    })?
    .join()
}

fn a_view_changes_after_its_run_was_given_up_elsewhere(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    on(0, move || {
        let words = Words::new();
        let control = Words::new();
        let mut sandbox = hal.sandbox()?;
        control.grant(&mut sandbox, Permissions::READ_WRITE)?;
        let mut step = 0;
        for _ in 0..6 {
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            sandbox.call(store, (Val(words.address()), Val(WORD), Val(1u64)))?;
            let mut steps = 0;
            let run = sandbox.start(compute, (Val(control.address()), Val(1u64), InOut(&mut steps)))?;
            let Progress::Suspended(run) = run.step()? else { fail!("a run that was not suspended") };
            next_cpu(&mut step);
            // It goes on here until the next interrupt, then it is given up elsewhere.
            let Progress::Suspended(run) = run.step()? else { fail!("a run that was not suspended") };
            next_cpu(&mut step);
            drop(run);
            expect_eq!(steps, 0, "the output of a run that was given up");
            sandbox.revoke(PageRange::single(words.page()))?;
            for _ in 0..=cpu::count() {
                faults(&mut sandbox, words, Access::Read, FaultKind::Unmapped)?;
                next_cpu(&mut step);
            }
        }
        control.set(STOP, 1);
        Ok(())
    })?
    .join()
}

fn fill(bytes: &mut [u8], value: u8) {
    bytes.fill(value);
}

fn buffers_that_were_replaced_are_gone_on_every_cpu(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    on(0, move || {
        let mut sandbox = hal.sandbox()?;
        let mut step = 0;
        for round in 1..=12u8 {
            // Each larger than the last: the buffer's pages are unmapped and others take their place.
            let mut bytes = alloc::vec![0; usize::from(round) * PAGE_SIZE / 2];
            sandbox.call(fill, (InOut(&mut *bytes), Val(round)))?;
            expect!(bytes.iter().all(|&byte| byte == round), "round {round}");
            next_cpu(&mut step);
        }
        Ok(())
    })?
    .join()
}
