//! What stops a call from outside: time limits, cancellation, a host that wants its CPU.

use std::sync::Arc;
use std::time::Duration;
use std::vec;

use super::layout::USUAL;
use super::machine::Machine;
use super::processor::{cpu, interrupts_masked, next};
use super::rig::{Rig, SimSandbox};
use crate::arch::{Arch, Trap};
use crate::cancel::Cancel;
use crate::error::Error;
use crate::exit::{Exit, ExitReason, Preemption};
use crate::run::Progress;
use crate::sandbox::CallError;

const TENTH: Duration = Duration::from_nanos(100);

pub(super) fn set_clock(machine: &Arc<Machine>, now: u64) {
    machine.state().clock = Some(now);
}

/// The sandbox computes until the clock shows `now`, when an interrupt comes.
fn run_until(rig: &Rig, now: u64) {
    let machine = rig.machine.clone();
    next(move |_| {
        set_clock(&machine, now);
        Ok(Trap::Interrupt(1))
    });
}

fn limited(rig: &Rig) -> SimSandbox<'_> {
    set_clock(&rig.machine, 1000);
    let mut sandbox = rig.sandbox();
    sandbox.limit_time(Some(TENTH)).unwrap();
    sandbox
}

fn preempted(reason: Preemption) -> Result<u8, CallError> {
    Err(CallError::Exit(Exit { reason: ExitReason::Preempted(reason), at: crate::VirtAddr(7) }))
}

/// Where the simulated code stops.
fn stop_at_seven() {
    next(|guest| {
        guest.registers.at = 7;
        Ok(Trap::Again)
    });
}

#[test]
fn time_runs_out() {
    let rig = Rig::new(USUAL);
    let mut sandbox = limited(&rig);
    stop_at_seven();
    run_until(&rig, 1099);
    run_until(&rig, 1100);
    assert_eq!(sandbox.call(|| 5u8, ()), preempted(Preemption::Deadline));
    assert!(!interrupts_masked());
    // The interrupt that ended it was handled first, and each entry had its timer.
    assert_eq!(cpu(|cpu| (cpu.forwarded.len(), cpu.armed.clone())), (2, vec![1100; 3]));
    // The next call has time of its own.
    assert_eq!(sandbox.call(|| 5u8, ()), Ok(5));
    assert_eq!(cpu(|cpu| cpu.armed.last().copied()), Some(1200));
    sandbox.limit_time(None).unwrap();
    assert_eq!(sandbox.call(|| 5u8, ()), Ok(5));
    assert_eq!(cpu(|cpu| cpu.armed.len()), 4);
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn a_call_that_ran_out_of_time_goes_on() {
    let rig = Rig::new(USUAL);
    let mut sandbox = limited(&rig);
    run_until(&rig, 5000);
    let Progress::Preempted(Preemption::Deadline, mut run) = sandbox.start(|| 5u8, ()).unwrap().resume().unwrap()
    else {
        panic!()
    };
    run.limit_time(Some(TENTH)).unwrap();
    run_until(&rig, 5099);
    run_until(&rig, 5100);
    let Progress::Preempted(Preemption::Deadline, run) = run.resume().unwrap() else { panic!() };
    // Without another limit it has none.
    run_until(&rig, 9999);
    assert!(matches!(run.resume(), Ok(Progress::Returned(5))));
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn time_passes_between_steps_too() {
    let rig = Rig::new(USUAL);
    let mut sandbox = limited(&rig);
    let run = sandbox.start(|| 5u8, ()).unwrap();
    set_clock(&rig.machine, 1100);
    assert!(matches!(run.step(), Ok(Progress::Preempted(Preemption::Deadline, _))));
    assert_eq!(cpu(|cpu| cpu.entered), 0);
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn limits_without_means_are_refused() {
    let rig = Rig::new(USUAL);
    let cancel = Cancel::new();
    let mut sandbox = rig.sandbox();
    assert_eq!(sandbox.limit_time(Some(TENTH)), Err(Error::NoClock));
    assert_eq!(sandbox.limit_time(None), Ok(()));
    let masked = crate::tests::processor::SimArch::mask_interrupts();
    // Without limits a masked caller may call.
    assert_eq!(sandbox.call(|| 5u8, ()), Ok(5));
    sandbox.cancel_by(Some(&cancel));
    assert_eq!(sandbox.call(|| 5u8, ()), Err(CallError::Setup(Error::InterruptsMasked)));
    assert!(interrupts_masked());
    sandbox.cancel_by(None);
    set_clock(&rig.machine, 1);
    sandbox.limit_time(Some(TENTH)).unwrap();
    assert_eq!(sandbox.call(|| 5u8, ()), Err(CallError::Setup(Error::InterruptsMasked)));
    // SAFETY: (1) from `mask_interrupts` above.
    unsafe { crate::tests::processor::SimArch::restore_interrupts(masked) };
    // A limit longer than any clock is no limit.
    sandbox.limit_time(Some(Duration::MAX)).unwrap();
    run_until(&rig, u64::MAX - 1);
    assert_eq!(sandbox.call(|| 5u8, ()), Ok(5));
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn a_run_is_not_entered_masked_with_limits() {
    let rig = Rig::new(USUAL);
    let mut sandbox = limited(&rig);
    let run = sandbox.start(|| 5u8, ()).unwrap();
    let masked = crate::tests::processor::SimArch::mask_interrupts();
    assert!(matches!(run.step(), Err(Error::InterruptsMasked)));
    assert!(interrupts_masked());
    // SAFETY: (1) from `mask_interrupts` above.
    unsafe { crate::tests::processor::SimArch::restore_interrupts(masked) };
}

#[test]
fn a_cancelled_call_ends() {
    let rig = Rig::new(USUAL);
    static CANCEL: Cancel = Cancel::new();
    let cancel = &CANCEL;
    let mut sandbox = rig.sandbox();
    sandbox.cancel_by(Some(cancel));
    assert_eq!(sandbox.call(|| 5u8, ()), Ok(5));
    // From another CPU while it runs: that CPU is interrupted.
    stop_at_seven();
    let host = super::host::SimHost(rig.machine.clone());
    next(move |_| {
        cancel.cancel(&host);
        Ok(Trap::Interrupt(1))
    });
    assert_eq!(sandbox.call(|| 5u8, ()), preempted(Preemption::Cancelled));
    assert_eq!(cpu(|cpu| (cpu.kicked.clone(), cpu.forwarded.clone())), (vec![0], vec![1]));
    assert!(!interrupts_masked());
    // The request stands, and nobody is interrupted for a sandbox that doesn't run.
    let entered = cpu(|cpu| cpu.entered);
    assert!(matches!(sandbox.call(|| 5u8, ()), Err(CallError::Exit(_))));
    cancel.cancel(rig.hal().host());
    assert_eq!(cpu(|cpu| (cpu.entered, cpu.kicked.len())), (entered, 1));
    let run = sandbox.start(|| 6u8, ()).unwrap();
    let Progress::Preempted(Preemption::Cancelled, run) = run.resume().unwrap() else { panic!() };
    assert!(cancel.is_cancelled());
    cancel.reset();
    assert!(matches!(run.resume(), Ok(Progress::Returned(6))));
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn a_host_gets_its_cpu() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    // Nobody is asked before an interrupt was handled.
    cpu(|cpu| cpu.yields = true);
    assert_eq!(sandbox.call(|| 5u8, ()), Ok(5));
    next(|_| Ok(Trap::Interrupt(1)));
    let run = sandbox.start(|| 5u8, ()).unwrap();
    let Progress::Preempted(Preemption::Yield, run) = run.resume().unwrap() else { panic!() };
    assert_eq!(cpu(|cpu| cpu.forwarded.len()), 1);
    // Even if it goes on asking, the run gets on.
    next(|_| Ok(Trap::Interrupt(2)));
    let Progress::Preempted(Preemption::Yield, run) = run.resume().unwrap() else { panic!() };
    assert!(matches!(run.resume(), Ok(Progress::Returned(5))));
    stop_at_seven();
    next(|_| Ok(Trap::Interrupt(3)));
    assert_eq!(sandbox.call(|| 5u8, ()), preempted(Preemption::Yield));
    cpu(|cpu| cpu.yields = false);
    assert_eq!(sandbox.call(|| 5u8, ()), Ok(5));
}
