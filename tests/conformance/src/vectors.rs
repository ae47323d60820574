//! Vector registers: a sandbox that has them has its own, and the host's are the host's.
//!
//! Kernels without vector registers in their code keep the patterns through anything but a mistake of the HAL's. In those with
//! them, compiled code may use what the calling convention lets it use, so less can be looked at; what the sandbox finds is
//! looked at for the host's patterns all the same.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use sandbox_mode::{
    Arch, Backend, CallError, Config, Error, ExitReason, In, InOut, PageRange, Permissions, Progress, Val, VirtAddr,
};

use crate::host::raise_at_entry;
use crate::kernel::Line;
use crate::machine::{self, USED_BY_CODE, Vectors};
use crate::probe::{address_of, code_of, exit_of, load, run_with, stops, works};
use crate::suite::{Sandbox, Suite, cases};
use crate::verdict::{Outcome, skip};

cases! {
    a_computation_is_right,
    a_call_begins_with_fresh_ones,
    the_hosts_are_there_after_a_return,
    the_hosts_are_there_after_a_fault,
    the_hosts_are_there_after_interrupts,
    the_hosts_are_there_after_a_dropped_run,
    the_hosts_are_there_with_interrupts_masked,
    the_hosts_are_there_after_a_call_without,
    a_sandboxs_survive_ticks,
    a_sandboxs_survive_interrupts_at_entry,
    two_sandboxes_take_turns,
    exceptions_are_explained,
    without_them_the_first_use_ends_the_sandbox,
    what_forbids_them_is_named,
    frames_come_back,
}

/// What the host has in its registers.
const HOST: u64 = 0x77;

fn config() -> Config {
    Config::default().vectors(true)
}

fn sandbox(suite: &Suite) -> Outcome<Sandbox<'static>> {
    Ok(suite.sandbox_with(config())?)
}

type Words = Vec<(&'static str, usize, u64)>;

fn same(found: Words, wanted: Words, what: &str) -> Outcome {
    let mut differences = String::new();
    for ((name, number, found), (_, _, wanted)) in found.iter().zip(&wanted) {
        if found != wanted {
            // A string takes everything.
            let _ = write!(differences, " {name}{number} is {found:#x} and not {wanted:#x}");
        }
    }
    expect!(differences.is_empty() && found.len() == wanted.len(), "{what}:{differences}");
    Ok(())
}

/// Does `work` with patterns in the host's registers, open to it and closed; they and what opens them are the same afterwards.
fn with_hosts(what: &str, work: &mut dyn FnMut() -> Outcome) -> Outcome {
    for open in [true, false] {
        let vectors = Vectors::pattern(HOST);
        let before = machine::vector_control();
        let mut outcome = Ok(());
        let mut control = (0, 1);
        let found = machine::with_vectors(&vectors, open, &mut || {
            control.0 = machine::vector_control();
            outcome = work();
            control.1 = machine::vector_control();
        });
        outcome?;
        expect_eq!(control.1, control.0, "what opens the registers, after {what}");
        expect_eq!(machine::vector_control(), before);
        same(found.kept_by_calls().collect(), vectors.kept_by_calls().collect(), what)?;
    }
    Ok(())
}

fn dump(found: &mut Vectors) {
    machine::store_vectors(found);
}

/// What a call finds in the registers where it begins: nothing of anybody's.
fn finds_fresh_ones(sandbox: &mut Sandbox<'_>) -> Outcome {
    let mut found = Vectors::pattern(0x99);
    sandbox.call(dump, (InOut(&mut found),))?;
    is_fresh(&found)
}

fn is_fresh(found: &Vectors) -> Outcome {
    if !USED_BY_CODE {
        return same(found.words().collect(), Vectors::reset().words().collect(), "where a call begins");
    }
    // What is in front of the function may have used some.
    let hosts = Vectors::pattern(HOST);
    for (name, number, value) in found.words() {
        let secret = hosts.words().any(|(_, _, secret)| secret == value && secret > u64::from(u32::MAX));
        expect!(!secret, "{name}{number} holds {value:#x} of the host's");
    }
    Ok(())
}

/// Fills all registers and returns in the middle.
fn spoil_and_return(vectors: &Vectors) {
    machine::spoil_vectors_and_return(vectors);
}

/// Fills all registers and ends by a fault.
fn spoil_and_fault(vectors: &Vectors) {
    machine::spoil_vectors_and_fault(vectors);
}

fn spoils() -> [Vectors; 2] {
    [Vectors::pattern(3), Vectors::hostile()]
}

fn multiply_and_add(a: &[u64], b: &[u64]) -> u64 {
    // SAFETY: (1) both have `count` numbers.
    unsafe { machine::multiply_and_add(a.as_ptr(), b.as_ptr(), a.len().min(b.len()) as u64) }
}

fn a_computation_is_right(suite: &Suite) -> Outcome {
    // Small whole numbers, so that binary64 makes no difference.
    let (a, b): (Vec<u32>, Vec<u32>) = (1..=500).map(|n| (n, 3 * n % 97)).unzip();
    let sum: u32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
    let bits = |numbers: &[u32]| numbers.iter().map(|&n| f64::from(n).to_bits()).collect::<Vec<_>>();
    let (a, b) = (bits(&a), bits(&b));
    let mut sandbox = sandbox(suite)?;
    for _ in 0..3 {
        expect_eq!(sandbox.call(multiply_and_add, (In(&a[..]), In(&b[..])))?, f64::from(sum).to_bits());
    }
    works(&mut sandbox)
}

fn a_call_begins_with_fresh_ones(suite: &Suite) -> Outcome {
    let mut sandbox = sandbox(suite)?;
    finds_fresh_ones(&mut sandbox)?;
    with_hosts("a dump", &mut || finds_fresh_ones(&mut sandbox))?;
    for vectors in spoils() {
        sandbox.call(spoil_and_return, (In(&vectors),))?;
        finds_fresh_ones(&mut sandbox)?;
        exit_of(&mut sandbox, spoil_and_fault, (In(&vectors),))?;
        finds_fresh_ones(&mut sandbox)?;
    }
    Ok(())
}

fn the_hosts_are_there_after_a_return(suite: &Suite) -> Outcome {
    let mut sandbox = sandbox(suite)?;
    with_hosts("a return", &mut || works(&mut sandbox))?;
    for vectors in spoils() {
        with_hosts("a return in the middle", &mut || Ok(sandbox.call(spoil_and_return, (In(&vectors),))?))?;
    }
    Ok(())
}

fn the_hosts_are_there_after_a_fault(suite: &Suite) -> Outcome {
    let mut sandbox = sandbox(suite)?;
    for vectors in spoils() {
        with_hosts("a fault", &mut || {
            let exit = exit_of(&mut sandbox, spoil_and_fault, (In(&vectors),))?;
            expect_eq!(exit.reason, ExitReason::IllegalInstruction);
            Ok(())
        })?;
    }
    with_hosts("a fault in memory", &mut || exit_of(&mut sandbox, load, (Val(0u64),)).map(drop))
}

/// A sandbox with vector registers that can read the tick counter, and the counter's address.
fn sandbox_with_ticks(suite: &Suite) -> Outcome<(Sandbox<'static>, u64)> {
    let mut sandbox = sandbox(suite)?;
    let address = address_of(suite.kernel.ticks());
    // SAFETY: (1) the counter is a static alone on its page, and no secret; (2) reading only.
    unsafe { sandbox.grant_range(PageRange::single(VirtAddr(address).page()), Permissions::READ)? };
    Ok((sandbox, address))
}

/// Holds patterns until the tick counter has moved by `wanted`, computing meanwhile.
fn hold(sandbox: &mut Sandbox<'_>, ticks: u64, wanted: u64, seed: u64) -> Outcome<u64> {
    let vectors = Vectors::pattern(seed);
    let mut found = Vectors::reset();
    let arguments = (In(&vectors), Val(ticks), Val(wanted), InOut(&mut found));
    let rounds = sandbox.call(
        |vectors: &Vectors, ticks: u64, wanted: u64, found: &mut Vectors| {
            machine::hold_vectors(vectors, ticks, wanted, found)
        },
        arguments,
    )?;
    same(found.words().collect(), vectors.after_rounds(rounds).words().collect(), "what a sandbox held")?;
    Ok(rounds)
}

fn the_hosts_are_there_after_interrupts(suite: &Suite) -> Outcome {
    let (mut sandbox, ticks) = sandbox_with_ticks(suite)?;
    with_hosts("ticks", &mut || hold(&mut sandbox, ticks, 5, 4).map(drop))?;
    suite.kernel.raise(Line::Ordinary).or_else(skip)?;
    with_hosts("interrupts at entry", &mut || {
        raise_at_entry(Line::Ordinary, 4);
        hold(&mut sandbox, ticks, 0, 5).map(drop)
    })
}

fn the_hosts_are_there_after_a_dropped_run(suite: &Suite) -> Outcome {
    let (mut sandbox, ticks) = sandbox_with_ticks(suite)?;
    let vectors = Vectors::pattern(6);
    with_hosts("a dropped run", &mut || {
        let mut found = Vectors::reset();
        let function = |vectors: &Vectors, ticks: u64, wanted: u64, found: &mut Vectors| {
            machine::hold_vectors(vectors, ticks, wanted, found)
        };
        let arguments = (In(&vectors), Val(ticks), Val(1000u64), InOut(&mut found));
        let run = sandbox.start(function, arguments)?;
        // It holds its patterns, or has not come to that.
        let Progress::Suspended(run) = run.step()? else { fail!("a run of a thousand ticks ended with none") };
        drop(run);
        finds_fresh_ones(&mut sandbox)
    })
}

fn the_hosts_are_there_with_interrupts_masked(suite: &Suite) -> Outcome {
    let mut sandbox = sandbox(suite)?;
    let vectors = Vectors::hostile();
    let state = Backend::mask_interrupts();
    let outcome = with_hosts("masked calls", &mut || {
        sandbox.call(spoil_and_return, (In(&vectors),))?;
        exit_of(&mut sandbox, spoil_and_fault, (In(&vectors),))?;
        finds_fresh_ones(&mut sandbox)
    });
    // SAFETY: (1) from `mask_interrupts` above, in this thread.
    unsafe { Backend::restore_interrupts(state) };
    outcome
}

fn the_hosts_are_there_after_a_call_without(suite: &Suite) -> Outcome {
    if USED_BY_CODE {
        return skip("any function of this kernel may use vector registers, so none may be called without");
    }
    let mut sandbox = suite.sandbox_with(Config::default().vectors(false))?;
    let vectors = Vectors::pattern(7);
    with_hosts("calls without", &mut || {
        works(&mut sandbox)?;
        let exit = exit_of(&mut sandbox, spoil_and_return, (In(&vectors),))?;
        expect_eq!(exit.reason, ExitReason::FloatingPoint);
        Ok(())
    })
}

fn a_sandboxs_survive_ticks(suite: &Suite) -> Outcome {
    let (mut sandbox, ticks) = sandbox_with_ticks(suite)?;
    let rounds = hold(&mut sandbox, ticks, 30, 8)?;
    suite.note(format_args!("{rounds} rounds in 30 ticks"));
    finds_fresh_ones(&mut sandbox)
}

fn a_sandboxs_survive_interrupts_at_entry(suite: &Suite) -> Outcome {
    suite.kernel.raise(Line::Ordinary).or_else(skip)?;
    let (mut sandbox, ticks) = sandbox_with_ticks(suite)?;
    for times in 1..20 {
        raise_at_entry(Line::Ordinary, times);
        hold(&mut sandbox, ticks, 0, 9)?;
    }
    Ok(())
}

fn two_sandboxes_take_turns(suite: &Suite) -> Outcome {
    let (mut first, ticks) = sandbox_with_ticks(suite)?;
    let mut second = sandbox(suite)?;
    let mut without = suite.sandbox()?;
    let (vectors, mut found) = (Vectors::pattern(10), Vectors::reset());
    let hostile = Vectors::hostile();
    with_hosts("two sandboxes", &mut || {
        let function = |vectors: &Vectors, ticks: u64, wanted: u64, found: &mut Vectors| {
            machine::hold_vectors(vectors, ticks, wanted, found)
        };
        let mut run = first.start(function, (In(&vectors), Val(ticks), Val(4u64), InOut(&mut found)))?;
        // The other is called whenever the first is suspended, which is in its loop but for the first time, perhaps.
        let rounds = loop {
            match run.step()? {
                Progress::Suspended(next) => run = next,
                Progress::Returned(rounds) => break rounds,
                Progress::Exited(exit) => fail!("{exit}"),
                Progress::Preempted(reason, _) => fail!("{reason:?} of nobody's"),
            }
            finds_fresh_ones(&mut second)?;
            second.call(spoil_and_return, (In(&hostile),))?;
            works(&mut without)?;
        };
        same(found.words().collect(), vectors.after_rounds(rounds).words().collect(), "what the first held")
    })
}

fn exceptions_are_explained(suite: &Suite) -> Outcome {
    let mut sandbox = sandbox(suite)?;
    let mut explained = 0;
    for instruction in machine::floating_point_exceptions().or_else(skip)? {
        match sandbox.call(run_with, (Val(code_of(instruction.code)), Val(0u64))) {
            // Not every machine raises all.
            Ok(_) => suite.note(format_args!("this machine lets pass: {}", instruction.name)),
            Err(CallError::Exit(_)) => {
                stops(&mut sandbox, &instruction)?;
                explained += 1;
            }
            Err(error) => return Err(error.into()),
        }
        finds_fresh_ones(&mut sandbox)?;
    }
    if explained == 0 { skip("this machine raises no exceptions of floating point") } else { Ok(()) }
}

fn without_them_the_first_use_ends_the_sandbox(suite: &Suite) -> Outcome {
    if USED_BY_CODE {
        return skip("any function of this kernel may use vector registers, so none may be called without");
    }
    let mut sandbox = suite.sandbox()?;
    let mut other = self::sandbox(suite)?;
    for instruction in machine::floating_point() {
        works(&mut other)?;
        stops(&mut sandbox, &instruction)?;
    }
    Ok(())
}

fn what_forbids_them_is_named(suite: &Suite) -> Outcome {
    let mut before = sandbox(suite)?;
    let mut outcome = Ok(());
    let mut check = |name: &str| {
        let made = suite.sandbox_with(config()).map(drop);
        expect!(matches!(made, Err(Error::Unsupported(_))), "{name}: {made:?}");
        let text = alloc::format!("{}", made.err().unwrap_or(Error::OutOfFrames));
        expect!(text.contains(name), "\"{text}\" does not name {name}");
        // One that was made before is not entered.
        let called = before.call(|| 1u8, ());
        expect!(matches!(called, Err(CallError::Setup(Error::Unsupported(_)))), "{name}: {called:?}");
        if !USED_BY_CODE {
            works(&mut suite.sandbox()?)?;
        }
        Ok(())
    };
    machine::forbid_vectors(&mut |name| {
        if outcome.is_ok() {
            outcome = check(name);
        }
    })
    .or_else(skip)?;
    outcome?;
    works(&mut before)
}

fn frames_come_back(suite: &Suite) -> Outcome {
    let free = suite.kernel.free_frames();
    let taken = |config| {
        let sandbox = suite.sandbox_with(config)?;
        let taken = free - suite.kernel.free_frames();
        drop(sandbox);
        Ok::<_, Error>(taken)
    };
    // The record of frames may need one for them.
    let more = taken(config())? - taken(Config::default().vectors(false))?;
    expect!((2..4).contains(&more), "{more} frames more than without");
    for _ in 0..200 {
        let mut sandbox = sandbox(suite)?;
        sandbox.call(spoil_and_return, (In(&Vectors::pattern(11)),))?;
    }
    expect_eq!(suite.kernel.free_frames(), free);
    Ok(())
}
