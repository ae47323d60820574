//! The host's debugger and a sandbox's own stepping: each gets what is its own.

use alloc::boxed::Box;
use core::arch::{asm, naked_asm};

use sandbox_mode::{
    Arch, Backend, CallError, Error, ExitReason, FaultKind, PageRange, Permissions, Unsupported, Val, VirtAddr,
};

use super::x86_64_exceptions::{DR6_CLEAR, Seen, with_debugger};
use crate::host::{gate_data, raise_at_entry};
use crate::kernel::Line;
use crate::probe::{self, BYTE, PageOf, address_of, code_of, exit_of, exit_with, fault, run_with, works};
use crate::suite::{Sandbox, Suite, cases};
use crate::verdict::{Outcome, Verdict};

cases! {
    a_breakpoint_on_an_instruction_is_the_hosts,
    a_breakpoint_on_data_is_the_hosts,
    a_breakpoint_behind_a_stack_load_is_the_hosts,
    a_breakpoint_in_the_gate_stops_nothing,
    a_breakpoint_comes_before_the_sandboxs_own_step,
    a_sandboxs_own_steps_are_not_the_hosts,
    a_breakpoint_and_an_interrupt_both_arrive,
    the_debug_status_comes_back,
    guarded_debug_registers_are_respected,
    a_host_can_step_over_calls,
    a_host_can_step_over_calls_with_breakpoints_armed,
}

const ENABLE: u64 = 0b11;
const FIXED: u64 = 1 << 10;
const GUARD: u64 = 1 << 13;
const TRAP_FLAG: u64 = 1 << 8;
const SINGLE_STEP: u64 = 1 << 14;

/// What a breakpoint watches (SDM 3, section 19.2.4): the kind, and the length of data: eight
/// bytes.
#[derive(Clone, Copy)]
enum Watch {
    Execution = 0b0000,
    Writes = 0b1001,
    Accesses = 0b1011,
}

fn write_dr6(value: u64) {
    // SAFETY: controls nothing.
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

fn read_dr6() -> u64 {
    let value: u64;
    // SAFETY: the suite is the debugger.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

fn write_dr7(value: u64) {
    // SAFETY: the suite is the debugger, and handles what it arms.
    unsafe { asm!("mov dr7, {}", in(reg) value, options(nostack, preserves_flags)) };
}

fn read_dr7() -> u64 {
    let value: u64;
    // SAFETY: the suite is the debugger.
    unsafe { asm!("mov {}, dr7", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Arms breakpoints 2 and 3, so that a mistake in counting them shows. Returns DR7.
fn arm(second: (u64, Watch), third: Option<(u64, Watch)>) -> u64 {
    let (other, kind) = third.unwrap_or((0, Watch::Execution));
    // SAFETY: the suite is the debugger.
    unsafe {
        asm!("mov dr2, {}", in(reg) second.0, options(nomem, nostack, preserves_flags));
        asm!("mov dr3, {}", in(reg) other, options(nomem, nostack, preserves_flags));
    }
    let enable = ENABLE << 4 | if third.is_some() { ENABLE << 6 } else { 0 };
    let dr7 = FIXED | enable | (second.1 as u64) << 24 | (kind as u64) << 28;
    write_dr7(dr7);
    dr7
}

fn disarm() {
    write_dr7(FIXED);
    // SAFETY: as above.
    unsafe {
        asm!("mov dr2, {}", in(reg) 0u64, options(nomem, nostack, preserves_flags));
        asm!("mov dr3, {}", in(reg) 0u64, options(nomem, nostack, preserves_flags));
    }
    write_dr6(DR6_CLEAR);
}

/// Runs `work` with breakpoints armed; how it ended and what the debugger saw.
fn debugged<T>(
    second: (u64, Watch),
    third: Option<(u64, Watch)>,
    work: impl FnOnce() -> Outcome<T>,
) -> Outcome<(T, Seen)> {
    let mut result = None;
    with_debugger(|slot| {
        let dr7 = arm(second, third);
        let outcome = work();
        let after = read_dr7();
        disarm();
        result = Some(outcome.map(|value| (value, slot.seen(), dr7, after)));
    });
    let Some(result) = result else { fail!("nothing was done") };
    let (value, seen, dr7, after) = result?;
    expect_eq!(after, dr7, "DR7 afterwards");
    if seen.count != 0 {
        expect_eq!(seen.dr7, dr7, "DR7 in the handler");
    }
    Ok((value, seen))
}

/// The debugger saw breakpoint 2, so many times, in kernel code with interrupts so.
fn saw(seen: Seen, count: usize, interrupts: bool) -> Outcome {
    expect_eq!(seen.count, count, "calls of the debugger");
    expect_eq!(seen.dr6, 1 << 2, "DR6");
    expect!(seen.is_privileged(interrupts), "the frame: {seen:x?}");
    Ok(())
}

fn saw_nothing(seen: Seen) -> Outcome {
    expect_eq!(seen.count, 0, "calls of the debugger");
    Ok(())
}

/// Runs `work` with interrupts on, then masked.
fn on_and_masked(mut work: impl FnMut(bool) -> Outcome) -> Outcome {
    work(true)?;
    let state = Backend::mask_interrupts();
    let outcome = work(false);
    // SAFETY: (1) from `mask_interrupts` above, in this thread.
    unsafe { Backend::restore_interrupts(state) };
    outcome
}

/// Adds one for each round; the addition is where [`COUNT_AT`] says.
#[unsafe(naked)]
extern "C" fn count(rounds: u64) -> u64 {
    naked_asm!("xor eax, eax", "add rax, 1", "dec rdi", "jnz 2f", "ret", "2: jmp {count} + 2", count = sym count)
}

const COUNT_AT: u64 = 2;

fn counting(sandbox: &mut Sandbox<'_>, rounds: u64) -> Outcome {
    expect_eq!(sandbox.call(run_with, (Val(count as *const () as u64), Val(rounds)))?, rounds);
    Ok(())
}

fn a_breakpoint_on_an_instruction_is_the_hosts(suite: &Suite) -> Outcome {
    const ROUNDS: u64 = 7;
    let mut sandbox = suite.sandbox()?;
    let at = count as *const () as u64 + COUNT_AT;
    on_and_masked(|interrupts| {
        let ((), seen) = debugged((at, Watch::Execution), None, || counting(&mut sandbox, ROUNDS))?;
        saw(seen, ROUNDS as usize, interrupts)?;
        works(&mut sandbox)
    })
}

/// A page of the host's that a sandbox may read, and its address.
fn shared_page(sandbox: &mut Sandbox<'_>, permissions: Permissions) -> Outcome<(Box<PageOf>, u64)> {
    let page = PageOf::boxed(BYTE);
    let address = address_of(&raw const *page);
    probe::grant(sandbox, PageRange::single(VirtAddr(address).page()), permissions)?;
    Ok((page, address))
}

fn a_breakpoint_on_data_is_the_hosts(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let (page, address) = shared_page(&mut sandbox, Permissions::READ_WRITE)?;
    on_and_masked(|interrupts| {
        let (found, seen) =
            debugged((address, Watch::Accesses), None, || probe::readable(&mut sandbox, address + 7, BYTE))?;
        saw(seen, 1, interrupts)?;
        let ((), seen) = debugged((address, Watch::Writes), None, || {
            probe::readable(&mut sandbox, address, BYTE)?;
            Ok(sandbox.call(probe::store, (Val(address),))?)
        })?;
        saw(seen, 1, interrupts)?;
        let ((), seen) = debugged((address, Watch::Writes), None, || probe::readable(&mut sandbox, address + 8, BYTE))?;
        saw_nothing(seen)?;
        Ok(found)
    })?;
    drop(sandbox);
    expect!(page.is_full_of(BYTE));
    Ok(())
}

#[unsafe(naked)]
extern "C" fn stack_selector() -> u64 {
    naked_asm!("mov eax, ss", "ret")
}

/// Functions that load SS from where rdi points, and do something else with the very next instruction. What watches the load is
/// reported behind that, which may be in privileged code (SDM 3, section 7.8.3).
fn behind_a_stack_load(trap: ExitReason) -> [(&'static str, extern "C" fn(), Option<ExitReason>); 8] {
    macro_rules! behind {
        ($end:expr, $($text:literal),+) => {{
            #[unsafe(naked)]
            extern "C" fn code() {
                naked_asm!("xor eax, eax", $($text,)+ "xor eax, eax", "int 4")
            }
            (concat!($($text, "; "),+), code as extern "C" fn(), $end)
        }};
    }
    [
        behind!(None, "mov ss, word ptr [rdi]", "nop"),
        behind!(None, "mov ss, word ptr [rdi]", "int 4"),
        behind!(Some(ExitReason::IllegalInstruction), "mov ss, word ptr [rdi]", "syscall"),
        behind!(Some(ExitReason::IllegalInstruction), "mov ss, word ptr [rdi]", "ud2"),
        behind!(Some(ExitReason::PrivilegedInstruction), "mov ss, word ptr [rdi]", "int 0x80"),
        behind!(Some(ExitReason::Breakpoint), "mov ss, word ptr [rdi]", "int3"),
        behind!(Some(trap), "mov ss, word ptr [rdi]", ".byte 0xf1"),
        behind!(
            Some(fault(0, sandbox_mode::Access::Read, FaultKind::Unmapped)),
            "mov ss, word ptr [rdi]",
            "mov al, [rax]"
        ),
    ]
}

fn a_breakpoint_behind_a_stack_load_is_the_hosts(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let (mut page, address) = shared_page(&mut sandbox, Permissions::READ)?;
    let selector = probe::result_of(&mut sandbox, stack_selector)?;
    page.0[..2].copy_from_slice(&(selector as u16).to_le_bytes());
    let trap = debug_instruction_reason(&mut sandbox)?;
    on_and_masked(|interrupts| {
        for (name, code, end) in behind_a_stack_load(trap) {
            let call = || Ok(sandbox.call(run_with, (Val(code_of(code)), Val(address))));
            let (result, seen) = debugged((address, Watch::Accesses), None, call)?;
            match (result, end) {
                (Ok(_), None) => {}
                (Err(CallError::Exit(exit)), Some(reason)) => expect_eq!(exit.reason, reason, "{name}"),
                (other, _) => fail!("{name}: {other:x?}"),
            }
            // Where the next instruction faults, the CPU may have forgotten the breakpoint.
            if end.is_none() || seen.count != 0 {
                saw(seen, 1, interrupts)?;
            }
            works(&mut sandbox)?;
        }
        Ok(())
    })
}

fn a_breakpoint_in_the_gate_stops_nothing(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    works(&mut sandbox)?;
    let code = Backend::gate_text();
    let at = count as *const () as u64 + COUNT_AT;
    let places = code.pages().map(|page| (page.start().0, Watch::Execution));
    let data =
        gate_data().flat_map(|page| (0..4096).step_by(8).map(move |offset| (page.start().0 + offset, Watch::Accesses)));
    for place in places.chain(data.step_by(7)) {
        let call = || {
            counting(&mut sandbox, 2)?;
            exit_of(&mut sandbox, probe::load, (Val(0u64),)).map(drop)
        };
        // With another one that hits.
        let ((), seen) = debugged((at, Watch::Execution), Some(place), call)?;
        // The HAL itself looks at the gate's data too, outside of the gate.
        expect_eq!(seen.second, 2, "hits with a breakpoint at {:#x}: {seen:x?}", place.0);
    }
    works(&mut sandbox)
}

/// Sets the trap flag, and reads the word at rdi with the instruction that is stepped.
#[unsafe(naked)]
extern "C" fn step_over_load() {
    naked_asm!("pushfq", "or qword ptr [rsp], {flag}", "popfq", "mov rax, [rdi]", "ud2", flag = const TRAP_FLAG)
}

fn a_breakpoint_comes_before_the_sandboxs_own_step(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let (_page, address) = shared_page(&mut sandbox, Permissions::READ)?;
    on_and_masked(|interrupts| {
        let call = || exit_with(&mut sandbox, step_over_load, address);
        let (exit, seen) = debugged((address, Watch::Accesses), None, call)?;
        expect_eq!(exit.reason, ExitReason::SingleStep);
        // Two exceptions or one.
        saw(Seen { count: seen.count.min(1), ..seen }, 1, interrupts)
    })
}

#[unsafe(naked)]
extern "C" fn step_into_exit() {
    naked_asm!("xor eax, eax", "pushfq", "or qword ptr [rsp], {flag}", "popfq", "int 4", flag = const TRAP_FLAG)
}

#[unsafe(naked)]
extern "C" fn debug_instruction() {
    naked_asm!(".byte 0xf1", "ud2")
}

/// QEMU 7.2 knows the instruction as one for its own debugger only.
fn debug_instruction_reason(sandbox: &mut Sandbox<'_>) -> Outcome<ExitReason> {
    let exit = exit_with(sandbox, debug_instruction, 0)?;
    expect!(matches!(exit.reason, ExitReason::SingleStep | ExitReason::IllegalInstruction), "{}", exit.reason);
    Ok(exit.reason)
}

fn a_sandboxs_own_steps_are_not_the_hosts(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let (_page, address) = shared_page(&mut sandbox, Permissions::READ)?;
    let elsewhere = address + 0x800;
    let trap = debug_instruction_reason(&mut sandbox)?;
    on_and_masked(|_| {
        // What is left in DR6 from before is not new.
        write_dr6(DR6_CLEAR | 0b100);
        let call = || {
            let result: u64 = sandbox.call(run_with, (Val(code_of(step_into_exit)), Val(0u64)))?;
            for (code, reason) in
                [(step_over_load as extern "C" fn(), ExitReason::SingleStep), (debug_instruction, trap)]
            {
                let exit = exit_with(&mut sandbox, code, address)?;
                expect_eq!(exit.reason, reason);
            }
            Ok(result)
        };
        let (_, seen) = debugged((elsewhere, Watch::Accesses), None, call)?;
        saw_nothing(seen)
    })
}

fn a_breakpoint_and_an_interrupt_both_arrive(suite: &Suite) -> Outcome {
    const ROUNDS: u64 = 3;
    let mut sandbox = suite.sandbox()?;
    let at = count as *const () as u64 + COUNT_AT;
    for line in [Line::Ordinary, Line::NonMaskable] {
        if suite.kernel.raise(line).is_err() {
            continue;
        }
        for _ in 0..100 {
            core::hint::spin_loop();
        }
        let before = suite.kernel.handled(line);
        let call = || {
            raise_at_entry(line, 4);
            counting(&mut sandbox, ROUNDS)
        };
        let ((), seen) = debugged((at, Watch::Execution), None, call)?;
        saw(seen, ROUNDS as usize, true)?;
        expect!(suite.kernel.handled(line) > before, "{line:?} was lost");
        raise_at_entry(line, 0);
    }
    works(&mut sandbox)
}

fn the_debug_status_comes_back(suite: &Suite) -> Outcome {
    const STALE: u64 = DR6_CLEAR | 0b1000 | 1 << 15;
    let mut sandbox = suite.sandbox()?;
    let (_page, address) = shared_page(&mut sandbox, Permissions::READ)?;
    let ((), seen) = debugged((address, Watch::Accesses), None, || {
        write_dr6(STALE);
        works(&mut sandbox)?;
        exit_of(&mut sandbox, probe::load, (Val(0u64),))?;
        exit_with(&mut sandbox, step_into_nothing, 0)?;
        expect_eq!(read_dr6(), STALE, "DR6 after calls that hit nothing");
        probe::readable(&mut sandbox, address, BYTE)
    })?;
    expect_eq!(seen.count, 1);
    expect_eq!(seen.dr6, 1 << 2 | STALE & !DR6_CLEAR, "DR6 in the handler");
    Ok(())
}

#[unsafe(naked)]
extern "C" fn step_into_nothing() {
    naked_asm!("pushfq", "or qword ptr [rsp], {flag}", "popfq", "nop", "ud2", flag = const TRAP_FLAG)
}

/// The CPU clears the guard when it tells the debugger of an access. Where it can be read, whoever let it be read is told.
fn guarded_debug_registers_are_respected(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    works(&mut sandbox)?;
    let mut outcome = Ok(());
    with_debugger(|slot| {
        write_dr7(FIXED | GUARD);
        let result = sandbox.call(|number: u64| number + 1, (Val(1u64),));
        let seen = slot.seen();
        write_dr7(FIXED);
        disarm();
        outcome = match result {
            Ok(2) if seen.count == 1 && seen.dr6 == GUARD => Ok(()),
            Err(CallError::Setup(Error::Unsupported(Unsupported::Enabled(_)))) if seen.count == 0 => Ok(()),
            other => Err(Verdict::Failed(alloc::format!("{other:x?}, and the debugger saw {seen:x?}"))),
        };
    });
    outcome?;
    works(&mut sandbox)
}

fn set_trap_flag(on: bool) {
    // SAFETY: the suite is the debugger. The second form is stepped once more at most.
    unsafe {
        match on {
            true => asm!("pushfq", "or qword ptr [rsp], {}", "popfq", const TRAP_FLAG),
            false => asm!("pushfq", "and qword ptr [rsp], {}", "popfq", const !(TRAP_FLAG as i32)),
        }
    }
}

/// Calls that end in all ways, while the host steps through itself.
fn stepped(suite: &Suite, sandbox: &mut Sandbox<'_>) -> Outcome {
    counting(sandbox, 3)?;
    exit_of(sandbox, probe::load, (Val(0u64),))?;
    let exit = exit_with(sandbox, step_into_nothing, 0)?;
    expect_eq!(exit.reason, ExitReason::SingleStep);
    for line in [Line::Ordinary, Line::NonMaskable] {
        if suite.kernel.raise(line).is_ok() {
            raise_at_entry(line, 1);
            counting(sandbox, 3)?;
        }
    }
    Ok(())
}

/// What a debugger sees that has the trap flag set around `work`: it is still set afterwards.
fn with_trap_flag(work: impl FnOnce() -> Outcome) -> Outcome<Seen> {
    let mut result = Ok(Seen::default());
    with_debugger(|slot| {
        set_trap_flag(true);
        let outcome = work();
        let steps = slot.seen().count;
        core::hint::black_box(steps);
        let later = slot.seen().count;
        set_trap_flag(false);
        disarm();
        result = outcome.map(|()| slot.seen());
        if result.is_ok() && later == steps {
            result = Err(Verdict::Failed("the host is not stepping any more".into()));
        }
    });
    result
}

fn a_host_can_step_over_calls(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    works(&mut sandbox)?;
    on_and_masked(|_| {
        let seen = with_trap_flag(|| stepped(suite, &mut sandbox))?;
        expect_eq!(seen.dr6, SINGLE_STEP, "DR6 of {} steps", seen.count);
        Ok(())
    })?;
    works(&mut sandbox)
}

fn a_host_can_step_over_calls_with_breakpoints_armed(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    works(&mut sandbox)?;
    let at = count as *const () as u64 + COUNT_AT;
    let seen = with_trap_flag(|| {
        arm((at, Watch::Execution), None);
        let outcome = stepped(suite, &mut sandbox);
        write_dr7(FIXED);
        outcome
    })?;
    expect_eq!(seen.dr6, SINGLE_STEP | 1 << 2, "DR6 of {} steps", seen.count);
    works(&mut sandbox)
}
