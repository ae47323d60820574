//! Instructions that a sandbox may not execute, and those that raise exceptions.

use sandbox_mode::{Access, CallError, ExitReason, FaultKind, In, PAGE_SIZE, Val};

use crate::machine;
use crate::probe::{code_of, exit_at, exit_of, exit_with, fault, jump, run_with, stops};
use crate::suite::{Suite, cases};
use crate::verdict::{Outcome, skip};

cases! {
    illegal_ones_end_the_sandbox,
    privileged_ones_end_the_sandbox,
    privileged_ones_end_the_sandbox_where_the_host_allows_more,
    system_calls_end_the_sandbox,
    software_interrupts_end_the_sandbox,
    host_calls_are_not_allowed,
    dividing_by_zero_is_arithmetic,
    a_breakpoint_ends_the_sandbox,
    a_single_step_ends_the_sandbox,
    floating_point_ends_the_sandbox,
    floating_point_ends_the_sandbox_where_the_host_uses_it,
    a_panic_ends_the_sandbox,
    a_misaligned_access_is_explained,
    a_misaligned_jump_is_explained,
}

fn illegal_ones_end_the_sandbox(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    machine::illegal().iter().try_for_each(|instruction| stops(&mut sandbox, instruction))
}

fn privileged_ones_end_the_sandbox(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    machine::privileged().try_for_each(|instruction| stops(&mut sandbox, &instruction))
}

fn privileged_ones_end_the_sandbox_where_the_host_allows_more(suite: &Suite) -> Outcome {
    suite.with_unusual_state(&mut || privileged_ones_end_the_sandbox(suite))
}

fn system_calls_end_the_sandbox(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    machine::system_calls().iter().try_for_each(|instruction| stops(&mut sandbox, instruction))
}

fn software_interrupts_end_the_sandbox(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    for (number, code, reason, bytes) in machine::software_interrupts() {
        let exit = exit_at(&mut sandbox, code)?;
        expect_eq!((exit.reason, exit.at.0), (reason, code + bytes), "number {number}");
    }
    Ok(())
}

fn host_calls_are_not_allowed(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    machine::host_calls().iter().try_for_each(|instruction| stops(&mut sandbox, instruction))
}

fn dividing_by_zero_is_arithmetic(suite: &Suite) -> Outcome {
    machine::DIVIDE_TRAPS.or_else(skip)?;
    let mut sandbox = suite.sandbox()?;
    let exit = exit_with(&mut sandbox, machine::divide_by_zero, 0)?;
    expect_eq!((exit.reason, exit.at.0), (ExitReason::Arithmetic, code_of(machine::divide_by_zero)));
    Ok(())
}

fn a_breakpoint_ends_the_sandbox(suite: &Suite) -> Outcome {
    stops(&mut suite.sandbox()?, &machine::breakpoint())
}

fn a_single_step_ends_the_sandbox(suite: &Suite) -> Outcome {
    let (code, bytes) = machine::single_step().or_else(skip)?;
    let exit = exit_with(&mut suite.sandbox()?, code, 0)?;
    expect_eq!(exit.reason, ExitReason::SingleStep);
    let start = code_of(code);
    expect!((start + 1..start + bytes).contains(&exit.at.0), "stopped at {}, the function is at {start:#x}", exit.at);
    Ok(())
}

fn floating_point_ends_the_sandbox(suite: &Suite) -> Outcome {
    if machine::USED_BY_CODE {
        return skip("sandboxes of this kernel have vector registers, since any of its functions may use them");
    }
    let mut sandbox = suite.sandbox()?;
    machine::floating_point().try_for_each(|instruction| stops(&mut sandbox, &instruction))
}

fn floating_point_ends_the_sandbox_where_the_host_uses_it(suite: &Suite) -> Outcome {
    suite.with_unusual_state(&mut || floating_point_ends_the_sandbox(suite))
}

fn a_panic_ends_the_sandbox(suite: &Suite) -> Outcome {
    let numbers = [1u64, 2, 3];
    let past_the_end = |numbers: &[u64], index: u64| numbers[index as usize];
    let mut sandbox = suite.sandbox()?;
    // Whatever the kernel's panic handler does first that a sandbox can't; it must not return.
    let exit = exit_of(&mut sandbox, past_the_end, (In(&numbers[..]), Val(3u64)))?;
    suite.note(format_args!("a panic ends so: {exit}"));
    Ok(())
}

fn a_misaligned_access_is_explained(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let address = suite.window().start().start().0 + PAGE_SIZE as u64 + 1;
    let mut explained = 0;
    for instruction in machine::misaligned(address) {
        match sandbox.call(run_with, (Val(code_of(instruction.code)), Val(address))) {
            // Not every machine checks, and then it works.
            Ok(_) => {}
            Err(CallError::Exit(exit)) => {
                expect_eq!(exit.reason, instruction.reason, "{}", instruction.name);
                explained += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if explained == 0 { skip("this machine does not check the alignment of accesses") } else { Ok(()) }
}

fn a_misaligned_jump_is_explained(suite: &Suite) -> Outcome {
    if machine::CODE_ALIGNMENT == 1 {
        return skip("instructions of this machine begin at any address");
    }
    let target = machine::load as *const () as u64 + machine::CODE_ALIGNMENT / 2;
    let exit = exit_of(&mut suite.sandbox()?, jump, (Val(target),))?;
    expect_eq!(exit.reason, fault(target, Access::Execute, FaultKind::Misaligned));
    Ok(())
}
