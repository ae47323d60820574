//! What interrupt handlers see and do while a sandbox runs.

use core::sync::atomic::{AtomicU64, Ordering};

use platform_qemu::interrupts::{self, disable, enable, interrupted, register};
use platform_qemu::{cpu, layout, threads, time};
use sandbox_mode::{CallError, InOut, Permissions, Val};

use crate::alarm::Quiet;
use crate::machine::{self, ORDINARY, URGENT};
use crate::probe::{chain, compute};
use crate::suite::{Patience, Sandbox, Suite, cases, on};
use crate::verdict::{Outcome, Verdict};
use crate::words::{FREE, INSIDE, STOP, Words};

cases! {
    a_handler_sees_the_kernel_with_interrupts_on: 1,
    a_handler_of_another_cpus_interrupt_sees_the_same: 2,
    a_masked_caller_has_its_sandbox_masked: 1,
    interrupts_of_other_cpus_wait_for_a_masked_caller: 2,
    handlers_nest: 1,
    a_handler_switches_threads: 1,
    spurious_ones_leave_no_trace: 2,
    non_maskable_ones_of_another_cpu: 2,
}

/// The CPU that is interrupted.
const TARGET: usize = 1;

/// Where a handler notes what it saw.
const NOTED: usize = FREE;
const INSTRUCTION: usize = FREE + 1;
const STACK: usize = FREE + 2;
const MODE: usize = FREE + 3;

/// A handler that notes what it interrupted, and ends the sandbox.
fn note(words: &'static Words) {
    if let Some(code) = interrupted() {
        words.set(INSTRUCTION, code.instruction);
        words.set(STACK, code.stack);
        words.set(MODE, u64::from(code.privileged) << 1 | u64::from(code.enabled));
    }
    words.count(NOTED);
    words.set(STOP, 1);
}

/// What was noted is the kernel's code, on this thread's stack, in the caller's state.
fn check_note(words: &Words, local: &u64) -> Outcome {
    expect_eq!(words.get(NOTED), 1, "handlers that ran");
    expect_eq!(words.get(MODE), 0b11, "kernel mode, interrupts enabled");
    let instruction = words.get(INSTRUCTION);
    expect!(layout::image().text.contains(&instruction), "{instruction:#x} is not in the kernel's text");
    let (stack, here) = (words.get(STACK), (&raw const *local).addr() as u64);
    expect!(here.abs_diff(stack) < platform_qemu::stack::STACK_SIZE, "stack {stack:#x}, the thread's is at {here:#x}");
    Ok(())
}

/// Calls [`compute`] and checks what it found.
fn compute_right(sandbox: &mut Sandbox<'_>, words: &Words, seed: u64) -> Outcome {
    let mut steps = 0;
    let found = sandbox.call(compute, (Val(words.address()), Val(seed), InOut(&mut steps)))?;
    expect_eq!(found, chain(seed, steps), "{steps} steps");
    Ok(())
}

fn a_handler_sees_the_kernel_with_interrupts_on(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    on(0, move || {
        let local = 0;
        let mut sandbox = hal.sandbox()?;
        for seed in 0..20 {
            let words = Words::new();
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            let quiet = Quiet::new();
            quiet.when_inside(words, note);
            compute_right(&mut sandbox, words, seed)?;
            drop(quiet);
            check_note(words, &local)?;
        }
        Ok(())
    })?
    .join()
}

/// The page that the handler of [`ORDINARY`] uses.
static NOTE_IN: core::sync::atomic::AtomicPtr<Words> = core::sync::atomic::AtomicPtr::new(core::ptr::null_mut());

fn note_there() {
    // SAFETY: only pages that live for ever are stored; null before.
    if let Some(words) = unsafe { NOTE_IN.load(Ordering::SeqCst).as_ref() } {
        note(words);
    }
}

fn a_handler_of_another_cpus_interrupt_sees_the_same(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    register(ORDINARY, note_there);
    for seed in 0..20 {
        let words = Words::new();
        NOTE_IN.store((&raw const *words).cast_mut(), Ordering::SeqCst);
        let thread = on(TARGET, move || {
            let local = 0;
            let mut sandbox = hal.sandbox()?;
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            let quiet = Quiet::new();
            compute_right(&mut sandbox, words, seed)?;
            drop(quiet);
            check_note(words, &local)
        })?;
        words.wait_for(INSIDE, 1)?;
        interrupts::send(TARGET, ORDINARY);
        thread.join()?;
    }
    Ok(())
}

static ALARMS: AtomicU64 = AtomicU64::new(0);

fn a_masked_caller_has_its_sandbox_masked(suite: &Suite) -> Outcome {
    const DELAY: u64 = 100_000;
    let hal = suite.hal;
    on(0, move || {
        let mut sandbox = hal.sandbox()?;
        let quiet = Quiet::new();
        let before = ALARMS.load(Ordering::SeqCst);
        let state = disable();
        time::on_alarm(|| {
            ALARMS.fetch_add(1, Ordering::SeqCst);
        });
        let due = time::now() + DELAY;
        time::arm(due);
        let mut result = Ok(());
        // Into the sandbox again and again, until the alarm has been due for as long as it took.
        while result.is_ok() && time::now() < due + DELAY {
            result = match sandbox.call(chain, (Val(1u64), Val(1000u64))) {
                Ok(value) if value == chain(1, 1000) => Ok(()),
                Ok(_) => Err(Verdict::Failed("a wrong result".into())),
                Err(error) => Err(error.into()),
            };
        }
        let (during, masked) = (ALARMS.load(Ordering::SeqCst), !interrupts::enabled());
        interrupts::restore(state);
        let patience = Patience::new();
        while ALARMS.load(Ordering::SeqCst) == before {
            patience.check()?;
        }
        drop(quiet);
        result?;
        expect!(masked, "interrupts are on after a masked call");
        expect_eq!(during, before, "alarms that were handled while interrupts were masked");
        Ok(())
    })?
    .join()
}

fn interrupts_of_other_cpus_wait_for_a_masked_caller(suite: &Suite) -> Outcome {
    const WAIT: u64 = 3_000_000;
    let hal = suite.hal;
    register(ORDINARY, note_there);
    let words = Words::new();
    NOTE_IN.store((&raw const *words).cast_mut(), Ordering::SeqCst);
    let thread = on(TARGET, move || {
        let mut sandbox = hal.sandbox()?;
        words.grant(&mut sandbox, Permissions::READ_WRITE)?;
        let state = disable();
        let result = compute_right(&mut sandbox, words, 1);
        let handled = words.get(NOTED);
        interrupts::restore(state);
        words.wait_for(NOTED, 1)?;
        result?;
        expect_eq!(handled, 0, "handlers that ran while interrupts were masked");
        Ok(())
    })?;
    words.wait_for(INSIDE, 1)?;
    interrupts::send(TARGET, ORDINARY);
    let until = time::now() + WAIT;
    while time::now() < until {
        core::hint::spin_loop();
    }
    let early = words.get(NOTED);
    words.set(STOP, 1);
    thread.join()?;
    expect_eq!(early, 0, "handlers that ran in a masked sandbox");
    Ok(())
}

/// The page of the case about nesting.
fn nest(words: &'static Words) {
    NOTE_IN.store((&raw const *words).cast_mut(), Ordering::SeqCst);
    enable();
    interrupts::send(cpu::index(), URGENT);
    // The sandbox is still inside. That nothing comes is found out by its own patience.
    let patience = Patience::new();
    while words.get(NOTED) == 0 && patience.check().is_ok() {}
    disable();
    words.set(FREE + 4, 1);
    words.set(STOP, 1);
}

fn handlers_nest(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    machine::prepare_urgent();
    register(URGENT, note_there);
    on(0, move || {
        let local = 0;
        let mut sandbox = hal.sandbox()?;
        for seed in 0..20 {
            let words = Words::new();
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            let quiet = Quiet::new();
            quiet.when_inside(words, nest);
            compute_right(&mut sandbox, words, seed)?;
            drop(quiet);
            check_note(words, &local)?;
            expect_eq!(words.get(FREE + 4), 1, "outer handlers that came to their end");
        }
        Ok(())
    })?
    .join()
}

/// With no tick, the other thread runs only because the handler lets it, and only it ends the sandbox.
fn a_handler_switches_threads(suite: &Suite) -> Outcome {
    let hal = suite.hal;
    for seed in 0..10 {
        let words = Words::new();
        let other = on(0, move || {
            let patience = Patience::new();
            while words.get(INSIDE) == 0 {
                patience.check()?;
                threads::yield_now();
            }
            words.set(STOP, 1);
            Ok(())
        })?;
        let thread = on(0, move || {
            let mut sandbox = hal.sandbox()?;
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            let quiet = Quiet::new();
            quiet.when_inside(words, |_| {
                threads::yield_now();
            });
            compute_right(&mut sandbox, words, seed)?;
            drop(quiet);
            Ok(())
        })?;
        thread.join()?;
        other.join()?;
    }
    Ok(())
}

/// Interrupts without a source, again and again, at whatever point the other CPU is.
fn spurious_ones_leave_no_trace(suite: &Suite) -> Outcome {
    const WANTED: u64 = 20;
    let hal = suite.hal;
    let words = Words::new();
    let before = machine::spurious_count();
    let thread = on(TARGET, move || {
        let mut sandbox = hal.sandbox()?;
        words.grant(&mut sandbox, Permissions::READ_WRITE)?;
        let quiet = Quiet::new();
        compute_right(&mut sandbox, words, 9)?;
        drop(quiet);
        Ok(())
    })?;
    let mut outcome = words.wait_for(INSIDE, 1);
    let patience = Patience::new();
    while outcome.is_ok() && machine::spurious_count() < before + WANTED {
        machine::send_spurious(TARGET);
        outcome = patience.check();
    }
    words.set(STOP, 1);
    thread.join()?;
    outcome
}

fn non_maskable_ones_of_another_cpu(suite: &Suite) -> Outcome {
    const WANTED: u64 = 300;
    let hal = suite.hal;
    let words = Words::new();
    let before = machine::nmi_count();
    machine::send_nmi(TARGET).map_err(Verdict::Skipped)?;
    let thread = on(TARGET, move || {
        let mut sandbox = hal.sandbox()?;
        let mut calls = 0;
        while words.get(STOP) == 0 {
            expect_eq!(sandbox.call(chain, (Val(calls), Val(50)))?, chain(calls, 50));
            let fault = sandbox.call(crate::probe::load, (Val(0u64), Val(1u64)));
            expect!(matches!(fault, Err(CallError::Exit(_))), "a load from address 8: {fault:?}");
            calls += 1;
        }
        Ok(calls)
    })?;
    let patience = Patience::new();
    let mut outcome = Ok(());
    while outcome.is_ok() && !thread.is_finished() && machine::nmi_count() < before + WANTED {
        outcome = machine::send_nmi(TARGET).map_err(Verdict::Skipped).and_then(|()| patience.check());
    }
    words.set(STOP, 1);
    let calls = thread.join()?;
    suite.note(format_args!("{calls} calls"));
    outcome
}
