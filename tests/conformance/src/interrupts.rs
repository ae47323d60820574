//! Interrupts that arrive while a sandbox runs, or should.

use core::sync::atomic::Ordering;

use sandbox_mode::{Arch, Backend, InOut, PageRange, Permissions, Progress, Val, VirtAddr};

use crate::host::raise_at_entry;
use crate::kernel::Line;
use crate::probe::{address_of, exit_of, load, load_word, works};
use crate::suite::{Sandbox, Suite, cases};
use crate::verdict::{Outcome, skip};

cases! {
    the_tick_goes_on_while_a_sandbox_computes,
    one_that_is_pending_at_entry_is_handled,
    a_fast_one_that_is_pending_at_entry_is_handled,
    each_of_many_is_handled_once,
    one_suspends_a_run,
    a_suspended_run_can_be_dropped,
    a_suspended_run_goes_on,
    one_that_is_pending_comes_before_a_fault,
    a_masked_caller_has_its_sandbox_masked,
    non_maskable_ones_before_entries_are_counted,
    each_non_maskable_one_is_handled_wherever_it_arrives,
}

/// One step of a computation whose result depends on every step.
fn advance(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407).rotate_left(17)
}

/// Computes until the tick counter at `ticks` has moved by `wanted`; the state afterwards, and how many steps it took.
fn compute(ticks: u64, wanted: u64, steps: &mut u64) -> u64 {
    let start = load_word(ticks);
    let mut state = start;
    while load_word(ticks) - start < wanted {
        state = advance(state);
        *steps += 1;
    }
    state ^ start.rotate_left(32)
}

fn ticks(suite: &Suite) -> u64 {
    suite.kernel.ticks().load(Ordering::Relaxed)
}

/// A sandbox that can read the tick counter.
fn sandbox_with_ticks(suite: &Suite) -> Outcome<(Sandbox<'static>, u64)> {
    let mut sandbox = suite.sandbox()?;
    let address = address_of(suite.kernel.ticks());
    // SAFETY: (1) the counter is a static alone on its page, and no secret; (2) reading only.
    unsafe { sandbox.grant_range(PageRange::single(VirtAddr(address).page()), Permissions::READ)? };
    Ok((sandbox, address))
}

fn the_tick_goes_on_while_a_sandbox_computes(suite: &Suite) -> Outcome {
    const TICKS: u64 = 50;
    let (mut sandbox, address) = sandbox_with_ticks(suite)?;
    let before = ticks(suite);
    let mut steps = 0;
    let found = sandbox.call(compute, (Val(address), Val(TICKS), InOut(&mut steps)))?;
    let after = ticks(suite);
    expect!(after - before >= TICKS, "{} ticks", after - before);
    // The sandbox read the counter once before it began.
    let matches = (before..=after - TICKS).any(|start| {
        let state = (0..steps).fold(start, |state, _| advance(state));
        found == state ^ start.rotate_left(32)
    });
    expect!(matches, "the result of {steps} steps");
    suite.note(format_args!("{steps} steps in {TICKS} ticks"));
    Ok(())
}

/// Nothing of an earlier case is pending, and the kernel can raise this.
fn handled_after(suite: &Suite, line: Line) -> Outcome<u64> {
    let before = suite.kernel.handled(line);
    suite.kernel.raise(line).or_else(skip)?;
    let patience = ticks(suite) + 20;
    while suite.kernel.handled(line) == before {
        expect!(ticks(suite) < patience, "the kernel itself gets no interrupt");
    }
    expect_eq!(suite.kernel.handled(line), before + 1, "without a sandbox");
    Ok(before + 1)
}

fn pending_at_entry(suite: &Suite, line: Line) -> Outcome {
    let before = handled_after(suite, line)?;
    let mut sandbox = suite.sandbox()?;
    raise_at_entry(line, 1);
    expect_eq!(sandbox.call(|| 5u8, ())?, 5);
    expect_eq!(suite.kernel.handled(line), before + 1);
    Ok(())
}

fn one_that_is_pending_at_entry_is_handled(suite: &Suite) -> Outcome {
    pending_at_entry(suite, Line::Ordinary)
}

fn a_fast_one_that_is_pending_at_entry_is_handled(suite: &Suite) -> Outcome {
    pending_at_entry(suite, Line::Fast)
}

fn each_of_many_is_handled_once(suite: &Suite) -> Outcome {
    const CALLS: u64 = 500;
    let before = handled_after(suite, Line::Ordinary)?;
    let mut sandbox = suite.sandbox()?;
    for call in 1..=CALLS {
        raise_at_entry(Line::Ordinary, 1);
        expect_eq!(sandbox.call(|number: u64| number + 1, (Val(call),))?, call + 1);
        expect_eq!(suite.kernel.handled(Line::Ordinary), before + call);
    }
    Ok(())
}

fn one_suspends_a_run(suite: &Suite) -> Outcome {
    let before = handled_after(suite, Line::Ordinary)?;
    let mut sandbox = suite.sandbox()?;
    raise_at_entry(Line::Ordinary, 1);
    let run = sandbox.start(|| 1u8, ())?;
    expect!(matches!(run.step()?, Progress::Suspended(_)), "the step ends with the interrupt");
    expect_eq!(suite.kernel.handled(Line::Ordinary), before + 1, "handled when the step returns");
    Ok(())
}

fn a_suspended_run_can_be_dropped(suite: &Suite) -> Outcome {
    handled_after(suite, Line::Ordinary)?;
    let mut sandbox = suite.sandbox()?;
    let mut number = 6u64;
    for _ in 0..10 {
        raise_at_entry(Line::Ordinary, 1);
        let run = sandbox.start(|number: &mut u64| *number = 7, (InOut(&mut number),))?;
        expect!(matches!(run.step()?, Progress::Suspended(_)));
        expect_eq!(number, 6, "the output of a call that was given up");
        works(&mut sandbox)?;
    }
    Ok(())
}

fn a_suspended_run_goes_on(suite: &Suite) -> Outcome {
    handled_after(suite, Line::Ordinary)?;
    let mut sandbox = suite.sandbox()?;
    let mut number = 6u64;
    let triple = |number: &mut u64| {
        *number *= 3;
        *number + 1
    };
    raise_at_entry(Line::Ordinary, 5);
    let mut run = sandbox.start(triple, (InOut(&mut number),))?;
    let mut steps = 1;
    let found = loop {
        match run.step()? {
            Progress::Suspended(next) => run = next,
            Progress::Returned(value) => break value,
            Progress::Exited(exit) => fail!("{exit}"),
            Progress::Preempted(reason, _) => fail!("{reason:?} of nobody's"),
        }
        steps += 1;
    };
    expect!(steps >= 6, "{steps} steps with five interrupts");
    expect_eq!((found, number), (19, 18));
    Ok(())
}

fn one_that_is_pending_comes_before_a_fault(suite: &Suite) -> Outcome {
    let before = handled_after(suite, Line::Ordinary)?;
    let mut sandbox = suite.sandbox()?;
    raise_at_entry(Line::Ordinary, 1);
    let exit = exit_of(&mut sandbox, load, (Val(0u64),))?;
    expect_eq!(exit.at.0, crate::machine::load as *const () as u64);
    expect_eq!(suite.kernel.handled(Line::Ordinary), before + 1);
    Ok(())
}

/// How often the tick counter moves in so many steps.
fn count_moves(ticks: u64, steps: u64) -> u64 {
    let mut moves = 0;
    let mut last = load_word(ticks);
    for _ in 0..steps {
        let now = load_word(ticks);
        moves += u64::from(now != last);
        last = now;
    }
    moves
}

fn a_masked_caller_has_its_sandbox_masked(suite: &Suite) -> Outcome {
    let (mut sandbox, address) = sandbox_with_ticks(suite)?;
    let mut steps = 10_000u64;
    while sandbox.call(count_moves, (Val(address), Val(steps)))? < 3 {
        steps *= 2;
    }
    let state = Backend::mask_interrupts();
    let masked = sandbox.call(count_moves, (Val(address), Val(steps)));
    let still_masked = !suite.kernel.interrupts_enabled();
    let fault = exit_of(&mut sandbox, load, (Val(0u64),)).map(drop);
    let masked_after_fault = !suite.kernel.interrupts_enabled();
    let moved = count_moves(address, steps);
    // SAFETY: (1) from `mask_interrupts` above, in this thread.
    unsafe { Backend::restore_interrupts(state) };
    expect_eq!(masked?, 0, "ticks in the sandbox");
    expect!(still_masked, "interrupts are masked after the call");
    fault?;
    expect!(masked_after_fault, "interrupts are masked after a fault");
    expect_eq!(moved, 0, "ticks in the host");
    // On a busy machine the next tick may be many steps away.
    while sandbox.call(count_moves, (Val(address), Val(steps)))? == 0 {}
    Ok(())
}

fn non_maskable_ones_before_entries_are_counted(suite: &Suite) -> Outcome {
    const CALLS: u64 = 3000;
    let before = handled_after(suite, Line::NonMaskable)?;
    let mut sandbox = suite.sandbox()?;
    for call in 1..=CALLS {
        raise_at_entry(Line::NonMaskable, 1);
        expect_eq!(sandbox.call(|number: u64| number + 1, (Val(call),))?, call + 1);
    }
    expect_eq!(suite.kernel.handled(Line::NonMaskable), before + CALLS);
    Ok(())
}

fn each_non_maskable_one_is_handled_wherever_it_arrives(suite: &Suite) -> Outcome {
    const SHOTS: u64 = 4000;
    let mut sandbox = suite.sandbox()?;
    let first = suite.kernel.handled(Line::NonMaskable);
    let mut calls = 0;
    for shot in 1..=SHOTS {
        suite.kernel.raise_nmi_after((shot % 61) as u16).or_else(skip)?;
        let patience = ticks(suite) + 20;
        while suite.kernel.handled(Line::NonMaskable) < first + shot {
            expect!(ticks(suite) < patience, "number {shot} was lost");
            call_and_fault(&mut sandbox, calls)?;
            calls += 3;
        }
        expect_eq!(suite.kernel.handled(Line::NonMaskable), first + shot);
    }
    suite.note(format_args!("{SHOTS} NMIs in {calls} calls"));
    Ok(())
}

/// Calls, long and short, that return and that fault.
fn call_and_fault(sandbox: &mut Sandbox<'_>, number: u64) -> Outcome {
    expect_eq!(sandbox.call(|number: u64| number + 1, (Val(number),))?, number + 1);
    let mut state = number;
    sandbox.call(|state: &mut u64| *state = (0..100).fold(*state, |state, _| advance(state)), (InOut(&mut state),))?;
    expect_eq!(state, (0..100).fold(number, |state, _| advance(state)));
    exit_of(sandbox, load, (Val(0u64),))?;
    Ok(())
}
