//! A sandbox sets all that it can set and leaves by each way there is: the host finds everything as it was, and an interrupted
//! sandbox too.

use alloc::vec::Vec;

use sandbox_mode::{Arch, Backend, CallError, Progress, Val};

use crate::kernel::Line;
use crate::machine::{self, End, Poisoner};
use crate::probe::{code_of, run_with, works};
use crate::state::with_patterns;
use crate::suite::{Sandbox, Suite, cases};
use crate::verdict::{Outcome, skip};

cases! {
    leaves_no_trace,
    leaves_no_trace_where_the_host_uses_it,
    leaves_no_trace_with_interrupts_masked,
    leaves_no_trace_after_non_maskable_interrupts,
}

/// What unprivileged code can use on this machine besides what all have.
pub(super) fn features(suite: &Suite) -> Outcome<u64> {
    let mut sandbox = suite.sandbox()?;
    let mut features = 0;
    for (bit, code) in machine::poison_probes() {
        if sandbox.call(run_with, (Val(code_of(code)), Val(0u64))).is_ok() {
            features |= bit;
        }
    }
    Ok(features)
}

/// Does `work` with patterns in the host's registers and looks at everything afterwards.
fn traceless(suite: &Suite, what: &str, work: &mut dyn FnMut() -> Outcome) -> Outcome {
    let before = suite.auditor.look();
    let mut outcome = Ok(());
    let changed = with_patterns(&mut || outcome = work());
    suite.unchanged_since(&before, format_args!("{what}"))?;
    expect_eq!(changed, 0, "registers of the host's changed in {what}");
    outcome
}

/// Runs a poisoner that ends by itself.
fn ends(sandbox: &mut Sandbox<'_>, poisoner: &Poisoner, features: u64) -> Outcome {
    let result: Result<u64, CallError> = sandbox.call(run_with, (Val(code_of(poisoner.code)), Val(features)));
    match (result, poisoner.end) {
        (Ok(_), End::Returns) => Ok(()),
        (Err(CallError::Exit(exit)), End::Exits(reason)) if exit.reason == reason => Ok(()),
        (other, _) => fail!("{}: {other:x?}", poisoner.what),
    }
}

/// Steps that a spinning poisoner is interrupted in before it is dropped.
const STEPS: usize = 5;
/// Rounds in which it must get as far as spinning.
const ROUNDS: usize = 20;

/// Runs a poisoner until something from outside comes, `STEPS` times, and drops it; `prepare` sees to it that something does.
fn spins(
    suite: &Suite,
    sandbox: &mut Sandbox<'_>,
    poisoner: &Poisoner,
    features: u64,
    prepare: &dyn Fn() -> Outcome,
) -> Outcome {
    for _ in 0..ROUNDS {
        let mut run = Some(sandbox.start(run_with, (Val(code_of(poisoner.code)), Val(features)))?);
        for _ in 0..STEPS {
            traceless(suite, poisoner.what, &mut || {
                prepare()?;
                match run.take().map(sandbox_mode::Run::step).transpose()? {
                    Some(Progress::Suspended(next)) => run = Some(next),
                    Some(Progress::Returned(value)) => fail!("returned {value}"),
                    Some(Progress::Exited(exit)) => fail!("{exit}"),
                    Some(Progress::Preempted(why, _)) => fail!("{why:?}"),
                    None => {}
                }
                Ok(())
            })?;
        }
        traceless(suite, "a run that is dropped", &mut || {
            run = None;
            Ok(())
        })?;
        // It may have been interrupted before it got so far, each time; not in all rounds.
        if lost(sandbox, features).is_empty() {
            return works(sandbox);
        }
    }
    fail!("in {ROUNDS} rounds, what was not kept: {:x?}", lost(sandbox, features))
}

/// What of the poison is not in the registers: what it is, what is there, what must be.
fn lost(sandbox: &Sandbox<'_>, features: u64) -> Vec<(&'static str, u64, u64)> {
    let mut all = machine::poisoned(sandbox.registers(), features);
    all.retain(|(_, found, wanted)| found != wanted);
    all
}

/// Runs all of them; those that wait for an interrupt only if one can come.
fn poison(suite: &Suite, interrupts: bool) -> Outcome {
    let features = features(suite)?;
    suite.note(format_args!("features {features:#b}"));
    let mut sandbox = suite.sandbox()?;
    works(&mut sandbox)?;
    for poisoner in machine::poisoners() {
        if poisoner.end != End::Spins {
            traceless(suite, poisoner.what, &mut || ends(&mut sandbox, &poisoner, features))?;
            works(&mut sandbox)?;
        } else if interrupts {
            spins(suite, &mut sandbox, &poisoner, features, &|| Ok(()))?;
        }
    }
    Ok(())
}

fn leaves_no_trace(suite: &Suite) -> Outcome {
    poison(suite, true)
}

fn leaves_no_trace_where_the_host_uses_it(suite: &Suite) -> Outcome {
    suite.with_unusual_state(&mut || poison(suite, true))
}

fn leaves_no_trace_with_interrupts_masked(suite: &Suite) -> Outcome {
    let state = Backend::mask_interrupts();
    let outcome = poison(suite, false);
    // SAFETY: (1) from `mask_interrupts` above, in this thread.
    unsafe { Backend::restore_interrupts(state) };
    outcome
}

fn leaves_no_trace_after_non_maskable_interrupts(suite: &Suite) -> Outcome {
    let features = features(suite)?;
    let mut sandbox = suite.sandbox()?;
    for poisoner in machine::poisoners().iter().filter(|poisoner| poisoner.end == End::Spins) {
        let before = suite.kernel.handled(Line::NonMaskable);
        spins(suite, &mut sandbox, poisoner, features, &|| suite.kernel.raise_nmi_after(50).or_else(skip))?;
        suite.note(format_args!("{} NMIs", suite.kernel.handled(Line::NonMaskable) - before));
    }
    Ok(())
}
