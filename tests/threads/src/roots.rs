//! A host that changes its page-table root, and the stack for interrupts of user programs, as schedulers do.

use alloc::vec::Vec;

use platform_qemu::interrupts::without;
use platform_qemu::lock::MaskedLock;
use platform_qemu::paging::{self, Root};
use platform_qemu::threads::{self, Options};
use platform_qemu::{cpu, memory};
use sandbox_mode::{InOut, Permissions, Progress, Val};

use crate::alarm::Quiet;
use crate::machine;
use crate::probe::{chain, compute, take_turns};
use crate::suite::{Suite, cases, on};
use crate::verdict::Outcome;
use crate::words::{FREE, STOP, Words};

cases! {
    threads_with_roots_of_their_own_take_turns_inside: 1,
    the_root_changes_between_runs: 1,
    the_root_changes_while_a_run_is_interrupted: 1,
    roots_go_from_cpu_to_cpu: 2,
}

fn root() -> Outcome<Root> {
    match Root::new() {
        Some(root) => Ok(root),
        None => fail!("no memory for a root"),
    }
}

/// The root in force is the thread's own, before and after each call, and the stack for interrupts is the thread's too.
fn threads_with_roots_of_their_own_take_turns_inside(suite: &Suite) -> Outcome {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 4;
    let hal = suite.hal;
    let words = Words::new();
    let mut running = Vec::new();
    for me in 0..THREADS {
        // One of them has the kernel's.
        let own = if me == 0 { None } else { Some(root()?) };
        let address = own.as_ref().map(Root::address);
        running.push(threads::spawn_with(Options { cpu: Some(0), root: own }, move || -> Outcome {
            let (before, stack) = (paging::root(), machine::kernel_stack());
            expect!(address.is_none_or(|address| address == before), "the root is not the thread's own");
            let mut sandbox = hal.sandbox()?;
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            let seed = 7000 + me;
            let arguments = (Val(words.address()), Val(me), Val(THREADS), Val(ROUNDS), Val(seed));
            expect_eq!(sandbox.call(take_turns, arguments)?, chain(seed, ROUNDS));
            expect_eq!((paging::root(), machine::kernel_stack()), (before, stack));
            Ok(())
        })?);
    }
    running.into_iter().try_for_each(threads::JoinHandle::join)
}

fn the_root_changes_between_runs(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    let words = Words::new();
    on(0, move || {
        let mut sandbox = hal.sandbox()?;
        words.grant(&mut sandbox, Permissions::READ_WRITE)?;
        let (seed, mut steps) = (8000, 0);
        let mut run = sandbox.start(compute, (Val(words.address()), Val(seed), InOut(&mut steps)))?;
        let mut changes = 0;
        let found = loop {
            let here = paging::root();
            match run.step()? {
                Progress::Suspended(next) => run = next,
                Progress::Returned(value) => break value,
                Progress::Exited(exit) => return Err(exit.into()),
                Progress::Preempted(reason, _) => fail!("{reason:?}"),
            }
            expect_eq!(paging::root(), here, "the root after a step");
            drop(threads::replace_root(if changes % 3 == 2 { None } else { Some(root()?) }));
            without(|| machine::set_kernel_stack(0xffff_f000 + changes * 16));
            expect!(paging::root() != here, "the root is the same");
            changes += 1;
            if changes == 10 {
                words.set(STOP, 1);
            }
        };
        drop(threads::replace_root(None));
        expect_eq!(found, chain(seed, steps), "{steps} steps");
        Ok(())
    })?
    .join()
}

/// What the handler puts in, and what it took out.
static SPARE: MaskedLock<Option<Root>> = MaskedLock::new(None);
const STACK: u64 = 0xffff_fa00_0000_1230;

/// The handler of an interrupt in the sandbox changes both: they are the new ones after the run.
fn the_root_changes_while_a_run_is_interrupted(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    on(cpu::count() - 1, move || {
        let mut sandbox = hal.sandbox()?;
        for round in 0..4 {
            let words = Words::new();
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            let next = if round % 2 == 0 { Some(root()?) } else { None };
            SPARE.with(|spare| *spare = next);
            let quiet = Quiet::new();
            let stack = machine::kernel_stack();
            quiet.when_inside(words, |words| {
                SPARE.with(|spare| *spare = threads::replace_root(spare.take()));
                machine::set_kernel_stack(STACK);
                words.set(FREE, paging::root());
                words.set(FREE + 1, machine::kernel_stack());
                words.set(STOP, 1);
            });
            let (before, mut steps) = (paging::root(), 0);
            let found = sandbox.call(compute, (Val(words.address()), Val(round), InOut(&mut steps)))?;
            let after = (paging::root(), machine::kernel_stack());
            machine::set_kernel_stack(stack);
            drop(quiet);
            drop(SPARE.with(Option::take));
            expect_eq!(found, chain(round, steps), "{steps} steps");
            expect_eq!(after, (words.get(FREE), words.get(FREE + 1)), "root and stack after the run");
            expect!(after.0 != before, "the handler changed nothing");
        }
        drop(threads::replace_root(None));
        Ok(())
    })?
    .join()
}

/// Free threads with roots: wherever one goes, its root goes with it, and an idle CPU keeps none.
fn roots_go_from_cpu_to_cpu(suite: &Suite) -> Outcome {
    const MOVES: u64 = 8;
    let hal = suite.hal;
    let mut running = Vec::new();
    for me in 0..cpu::count() as u64 {
        let own = root()?;
        let address = own.address();
        running.push(threads::spawn_with(Options { cpu: None, root: Some(own) }, move || -> Outcome {
            let mut sandbox = hal.sandbox()?;
            for step in 0..MOVES {
                threads::pin(Some((me + step) as usize % cpu::count()));
                expect_eq!(paging::root(), address, "the root on CPU {}", cpu::index());
                expect_eq!(sandbox.call(chain, (Val(step), Val(5000)))?, chain(step, 5000));
                expect_eq!(memory::frame_kind(address), memory::FrameKind::PageTable);
            }
            Ok(())
        })?);
    }
    running.into_iter().try_for_each(threads::JoinHandle::join)
}
