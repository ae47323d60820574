//! Processes go on as if nothing happened while the kernel calls sandboxes in their address spaces.

use sandbox_mode::{CallError, ExitReason, InOut, Val};

use super::{Bench, Outcome, checks, fail, in_process, later, must_be};
use crate::process::{self, COUNT};
use crate::{threads, time};

checks! {
    system_calls_work_before_between_and_after
    each_calls_sandboxes_on_its_own_tables
    all_call_sandboxes_at_once
    a_run_is_left_for_a_process_and_goes_on
    a_process_is_out_of_reach
}

/// Waits until every process has called the kernel a few times more.
fn all_visit() -> Outcome {
    let before: [u64; COUNT] = core::array::from_fn(process::visits);
    while (0..COUNT).any(|number| process::visits(number) < before[number] + 5) {
        super::sound()?;
        threads::yield_now();
    }
    super::sound()
}

fn system_calls_work_before_between_and_after(bench: &'static Bench) -> Outcome {
    all_visit()?;
    let mut sandbox = bench.hal.sandbox()?;
    for number in 0..10u64 {
        must_be!(sandbox.call(|number: u64| number * number, (Val(number),))?, number * number);
        all_visit()?;
    }
    drop(sandbox);
    all_visit()
}

fn square_and_sum(numbers: &mut [u64]) -> u64 {
    numbers.iter_mut().for_each(|number| *number *= *number);
    numbers.iter().sum()
}

/// Calls, some of which fault, with the tables of process `number` in force.
fn work(bench: &'static Bench, number: usize, rounds: u64) -> Outcome {
    let mut sandbox = bench.hal.sandbox()?;
    for round in 0..rounds {
        let mut numbers = [round, round + 1, number as u64];
        let sum = sandbox.call(square_and_sum, (InOut(&mut numbers[..]),))?;
        must_be!(numbers, [round * round, (round + 1) * (round + 1), (number * number) as u64]);
        must_be!(sum, numbers.iter().sum());
        if !process::is_in_force(number) {
            fail!("the tables of process {number} are no longer in force");
        }
        if round % 8 == 0 {
            let end = sandbox.call(read, (Val(process::PROGRAM),));
            let Err(CallError::Exit(exit)) = end else { fail!("a sandbox read the process's memory: {end:?}") };
            let ExitReason::MemoryFault(fault) = exit.reason else { fail!("{exit}") };
            must_be!(fault.address.0, process::PROGRAM);
        }
    }
    Ok(())
}

fn read(address: u64) -> u64 {
    // SAFETY: none: the CPU decides.
    unsafe { core::ptr::with_exposed_provenance::<u64>(address as usize).read_volatile() }
}

fn each_calls_sandboxes_on_its_own_tables(bench: &'static Bench) -> Outcome {
    for number in 0..COUNT {
        all_visit()?;
        in_process(number, move || work(bench, number, 50))?;
        all_visit()?;
    }
    Ok(())
}

fn all_call_sandboxes_at_once(bench: &'static Bench) -> Outcome {
    const ROUNDS: u64 = 400;
    let all: [_; COUNT] = core::array::from_fn(|number| later(number, move || work(bench, number, ROUNDS)));
    let mut sandbox = bench.hal.sandbox()?;
    for round in 0..ROUNDS {
        must_be!(sandbox.call(|number: u64| number ^ 0x55, (Val(round),))?, round ^ 0x55);
    }
    for (number, place) in all.into_iter().enumerate() {
        place.wait(number)?;
    }
    all_visit()
}

/// Waits in a sandbox for something that only another thread brings about.
fn a_run_is_left_for_a_process_and_goes_on(bench: &'static Bench) -> Outcome {
    const VISITS: u64 = 30;
    super::needs_ticks()?;
    let mut sandbox = bench.hal.sandbox()?;
    let address = time::grant(&mut sandbox, &process::VISITS)?;
    let before = process::VISITS.get();
    let spent = sandbox.call(super::preemption::wait_for, (Val(address), Val(VISITS)))?;
    if spent == 0 || process::VISITS.get() < before + VISITS {
        fail!("{spent} rounds, and the counter went from {before} to {}", process::VISITS.get());
    }
    Ok(())
}

fn a_process_is_out_of_reach(bench: &'static Bench) -> Outcome {
    in_process(1, move || {
        let mut sandbox = bench.hal.sandbox()?;
        for address in [process::PROGRAM, process::PROGRAM + 4088] {
            let end = sandbox.call(read, (Val(address),));
            let Err(CallError::Exit(exit)) = end else { fail!("a sandbox read the process's memory: {end:?}") };
            let ExitReason::MemoryFault(fault) = exit.reason else { fail!("{exit}") };
            must_be!(fault.address.0, address);
        }
        Ok(())
    })
}
