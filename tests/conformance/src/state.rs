//! The CPU's state: what a sandbox finds, and what it leaves.

use sandbox_mode::{Arch, Backend, CallError, ExitReason, FaultKind, Host, Progress, Val};

use crate::host::raise_at_entry;
use crate::kernel::Line;
use crate::machine::{self, Registers};
use crate::probe::{self, code_of, exit_of, run_with, works};
use crate::suite::{Sandbox, Suite, cases};
use crate::verdict::{Outcome, skip};

cases! {
    general_registers_are_clear_at_entry,
    no_general_register_holds_a_value_of_the_hosts,
    other_registers_are_clear_in_a_sandbox,
    other_registers_are_clear_where_the_host_uses_them,
    the_thread_base_is_not_the_hosts,
    what_a_sandbox_changes_stays_there,
    what_a_sandbox_changes_stays_there_where_the_host_uses_it,
    what_a_sandbox_changes_stays_there_with_interrupts_masked,
    an_interrupted_run_leaves_the_hosts_state,
    a_fault_leaves_the_hosts_state,
    callee_saved_registers_are_kept,
}

fn general_registers_are_clear_at_entry(suite: &Suite) -> Outcome {
    // An interrupt that is pending at entry is taken before the first instruction: what is kept then is what was there.
    suite.kernel.raise(Line::Ordinary).or_else(skip)?;
    let mut sandbox = suite.sandbox()?;
    for round in 0..3 {
        if round == 2 {
            let _ = sandbox.call(run_with, (Val(code_of(machine::spoil_registers)), Val(0u64))).map(|_: u64| ());
        }
        raise_at_entry(Line::Ordinary, 1);
        expect!(matches!(sandbox.start(|| (), ())?.step()?, Progress::Suspended(_)));
        let registers: &Registers = sandbox.registers();
        for (name, value) in machine::cleared_at_entry(registers) {
            expect_eq!(value, 0, "{name}, round {round}");
        }
    }
    Ok(())
}

/// What a register may hold where a sandboxed function begins: something small, or an address of the sandbox's own memory, or
/// of the image that it can read anyway.
pub(crate) fn is_harmless(suite: &Suite, value: u64) -> bool {
    let page = sandbox_mode::VirtAddr(value).page();
    let image = suite.hal.host().image();
    let gate = Backend::gate_text();
    value < 4096
        || suite.window().contains(page)
        || image.text.iter().chain(image.read_only).any(|range| range.contains(page)) && !gate.contains(page)
}

fn no_general_register_holds_a_value_of_the_hosts(suite: &Suite) -> Outcome {
    let mut outcome = Ok(());
    with_patterns(&mut || outcome = dump_is_harmless(suite));
    outcome
}

fn dump_is_harmless(suite: &Suite) -> Outcome {
    let dump = suite.sandbox()?.call(probe::dump, ())?;
    for (number, value) in dump.general.into_iter().enumerate() {
        expect!(is_harmless(suite, value), "register {number} holds {value:#x}");
    }
    Ok(())
}

/// Runs `work` with patterns in all registers; how many of those that must be kept were not.
pub(crate) fn with_patterns(work: &mut dyn FnMut()) -> u64 {
    unsafe extern "C" fn call(work: *mut ()) {
        // SAFETY: `work` is the pointer below, which is used once at a time.
        unsafe { (*work.cast::<&mut dyn FnMut()>())() }
    }
    let mut work = work;
    // SAFETY: (1) `call` takes a pointer to such a reference.
    unsafe { machine::with_patterns(call, (&raw mut work).cast()) }
}

fn other_registers_are_clear_in_a_sandbox(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    for (name, read) in machine::readable_state() {
        expect_eq!(probe::result_of(&mut sandbox, read)?, 0, "{name}");
    }
    Ok(())
}

fn other_registers_are_clear_where_the_host_uses_them(suite: &Suite) -> Outcome {
    suite.with_unusual_state(&mut || other_registers_are_clear_in_a_sandbox(suite))
}

fn the_thread_base_is_not_the_hosts(suite: &Suite) -> Outcome {
    suite.with_unusual_state(&mut || uses_thread_base(suite))
}

fn uses_thread_base(suite: &Suite) -> Outcome {
    let exit = exit_of(&mut suite.sandbox()?, run_with, (Val(code_of(machine::use_thread_base)), Val(0u64)))?;
    expect_eq!(exit.reason, probe::fault(0, sandbox_mode::Access::Read, FaultKind::Unmapped));
    Ok(())
}

/// Calls everything that changes the CPU's state and looks at it afterwards.
fn spoil(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    works(&mut sandbox)?;
    for machine::Spoiler { what, code, returns } in machine::spoilers() {
        let before = suite.auditor.look();
        let result: Result<u64, CallError> = sandbox.call(run_with, (Val(code_of(code)), Val(0u64)));
        suite.unchanged_since(&before, format_args!("{what}"))?;
        match result {
            Ok(_) if returns => {}
            Err(CallError::Exit(exit)) if !returns && exit.reason == ExitReason::IllegalInstruction => {}
            other => fail!("{what}: {other:x?}"),
        }
        works(&mut sandbox)?;
    }
    Ok(())
}

fn what_a_sandbox_changes_stays_there(suite: &Suite) -> Outcome {
    spoil(suite)
}

fn what_a_sandbox_changes_stays_there_where_the_host_uses_it(suite: &Suite) -> Outcome {
    suite.with_unusual_state(&mut || spoil(suite))
}

fn what_a_sandbox_changes_stays_there_with_interrupts_masked(suite: &Suite) -> Outcome {
    let state = Backend::mask_interrupts();
    let outcome = spoil(suite);
    // SAFETY: (1) from `mask_interrupts` above, in this thread.
    unsafe { Backend::restore_interrupts(state) };
    outcome
}

/// `work` leaves the state as it is, the ordinary one and the unusual.
fn leaves_state(suite: &Suite, what: &str, work: &mut dyn FnMut(&mut Sandbox<'static>) -> Outcome) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let mut once = || {
        let before = suite.auditor.look();
        work(&mut sandbox)?;
        suite.unchanged_since(&before, format_args!("{what}"))
    };
    once()?;
    suite.with_unusual_state(&mut || once())
}

fn an_interrupted_run_leaves_the_hosts_state(suite: &Suite) -> Outcome {
    suite.kernel.raise(Line::Ordinary).or_else(skip)?;
    leaves_state(suite, "interrupts", &mut |sandbox| {
        raise_at_entry(Line::Ordinary, 4);
        expect_eq!(sandbox.call(|a: u64| a + 1, (Val(1u64),))?, 2);
        Ok(())
    })
}

fn a_fault_leaves_the_hosts_state(suite: &Suite) -> Outcome {
    leaves_state(suite, "faults", &mut |sandbox| {
        exit_of(sandbox, probe::load, (Val(0u64),))?;
        exit_of(sandbox, probe::store, (Val(u64::MAX / 2),))?;
        for call in machine::host_calls() {
            probe::stops(sandbox, &call)?;
        }
        Ok(())
    })
}

fn callee_saved_registers_are_kept(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    for code in [machine::spoil_registers, machine::spoil_registers_and_return] {
        let mut end = None;
        let changed = with_patterns(&mut || {
            end = Some(sandbox.call(run_with, (Val(code_of(code)), Val(0u64))).map(|_: u64| ()));
        });
        expect_eq!(changed, 0, "registers that changed in {end:?}");
        works(&mut sandbox)?;
    }
    Ok(())
}
