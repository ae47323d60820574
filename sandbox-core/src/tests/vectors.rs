//! Vector registers of sandboxes' own.

use super::audit::audit;
use super::layout::{LAYOUTS, USUAL};
use super::machine::Machine;
use super::processor::{CONTROL, VECTORS, cpu, next};
use super::rig::{Rig, SimSandbox};
use crate::arch::Trap;
use crate::error::{Error, Unsupported};
use crate::permissions::Permissions;
use crate::run::Progress;
use crate::sandbox::{CallError, Config};

const HOST: [u8; VECTORS] = [0xa7; VECTORS];

fn fresh() -> [u8; VECTORS] {
    let mut registers = [0; VECTORS];
    registers[VECTORS - 1] = CONTROL;
    registers
}

fn config(rig: &Rig) -> Config {
    rig.config().vectors(true)
}

/// A step that finds `found` in the registers, leaves `left` there and ends so.
fn swap(found: [u8; VECTORS], left: [u8; VECTORS], end: Trap<u32>) {
    next(move |_| {
        assert_eq!(cpu(|cpu| core::mem::replace(&mut cpu.vectors, left)), found);
        Ok(end)
    });
}

fn hosts_are_there() {
    assert_eq!(cpu(|cpu| cpu.vectors), HOST);
}

fn call(sandbox: &mut SimSandbox<'_>) {
    swap(fresh(), [3; VECTORS], Trap::Returned);
    sandbox.call(|| (), ()).unwrap();
    hosts_are_there();
}

#[test]
fn they_are_fresh_in_each_call_and_kept_in_it() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        cpu(|cpu| cpu.vectors = HOST);
        let mut sandbox = rig.hal().sandbox_with(config(&rig)).unwrap();
        let mut other = rig.hal().sandbox_with(config(&rig)).unwrap();
        call(&mut sandbox);
        // Interrupted, on one CPU and another, with other sandboxes in between.
        rig.start_cpu(1).unwrap();
        swap(fresh(), [4; VECTORS], Trap::Interrupt(1));
        let run = sandbox.start(|| (), ()).unwrap();
        let Progress::Suspended(run) = run.step().unwrap() else { panic!() };
        hosts_are_there();
        call(&mut other);
        cpu(|cpu| {
            cpu.index = 0;
            cpu.vectors = [0x99; VECTORS];
        });
        swap([4; VECTORS], [5; VECTORS], Trap::Again);
        let Progress::Suspended(run) = run.step().unwrap() else { panic!() };
        assert_eq!(cpu(|cpu| cpu.vectors), [0x99; VECTORS]);
        cpu(|cpu| cpu.vectors = HOST);
        // Given up, and after a fault: the next call begins afresh.
        drop(run);
        call(&mut sandbox);
        next(|_| {
            cpu(|cpu| cpu.vectors = [6; VECTORS]);
            Err(super::processor::refused(0, crate::permissions::Access::Read))
        });
        assert!(matches!(sandbox.call(|| (), ()), Err(CallError::Exit(_))));
        hosts_are_there();
        call(&mut sandbox);
        audit(&rig, &[&sandbox, &other]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn limits_change_nothing() {
    let rig = Rig::new(USUAL);
    cpu(|cpu| cpu.vectors = HOST);
    super::limits::set_clock(&rig.machine, 1000);
    let cancel = crate::cancel::Cancel::new();
    let mut sandbox = rig.hal().sandbox_with(config(&rig)).unwrap();
    sandbox.limit_time(Some(core::time::Duration::from_nanos(100))).unwrap();
    call(&mut sandbox);
    sandbox.cancel_by(Some(&cancel));
    call(&mut sandbox);
    sandbox.limit_time(None).unwrap();
    sandbox.cancel_by(None);
    call(&mut sandbox);
    // A limit that comes later, to a sandbox without.
    let mut sandbox = rig.sandbox();
    let mut run = sandbox.start(|| (), ()).unwrap();
    run.limit_time(Some(core::time::Duration::from_nanos(100))).unwrap();
    super::limits::set_clock(&rig.machine, 1050);
    assert!(matches!(run.step(), Ok(Progress::Returned(()))));
    assert_eq!(cpu(|cpu| cpu.armed.last().copied()), Some(1100));
}

#[test]
fn without_them_nothing_is_saved() {
    let rig = Rig::new(USUAL);
    cpu(|cpu| {
        cpu.vectors = HOST;
        cpu.no_vectors = Some(Unsupported::Missing("vectors"));
    });
    swap(HOST, HOST, Trap::Returned);
    let mut sandbox = rig.sandbox();
    sandbox.call(|| (), ()).unwrap();
    assert!(sandbox.vectors.is_none());
}

#[test]
fn what_forbids_them_is_said_at_once() {
    let rig = Rig::new(USUAL);
    let before = rig.machine.outstanding();
    let why = Unsupported::Enabled("something");
    cpu(|cpu| cpu.no_vectors = Some(why));
    assert_eq!(rig.hal().sandbox_with(config(&rig)).err(), Some(Error::Unsupported(why)));
    assert_eq!(rig.machine.outstanding(), before);
    rig.hal().sandbox_with(rig.config().vectors(false)).unwrap();
    // Or at the entry, if it came later.
    cpu(|cpu| cpu.no_vectors = None);
    let mut sandbox = rig.hal().sandbox_with(config(&rig)).unwrap();
    cpu(|cpu| cpu.no_vectors = Some(why));
    assert_eq!(sandbox.call(|| (), ()), Err(CallError::Setup(Error::Unsupported(why))));
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn their_frames_cannot_be_granted() {
    let rig = Rig::new(USUAL);
    let mut other = rig.sandbox();
    let sandbox = rig.hal().sandbox_with(config(&rig)).unwrap();
    for frame in sandbox.vectors.as_ref().unwrap().frames() {
        let page = rig.data(3);
        rig.machine.map_range(page, frame, 0, Permissions::READ_WRITE);
        for permissions in [Permissions::READ, Permissions::READ_WRITE] {
            assert_eq!(super::rig::grant(&mut other, page, permissions), Err(Error::SandboxMemory(page.start())));
        }
        rig.machine.edit(page.start(), 0, |_| 0);
    }
}

#[test]
fn their_frames_come_back() {
    for &layout in LAYOUTS {
        let rig = Rig::stopped(Machine::new(layout)).unwrap();
        let before = rig.machine.outstanding();
        let (mut failures, mut without) = (0, 0);
        for (vectors, count) in [(false, &mut without), (true, &mut failures)] {
            for budget in 0.. {
                rig.machine.limit_allocations(Some(budget));
                let result = rig.hal().sandbox_with(rig.config().vectors(vectors));
                rig.machine.limit_allocations(None);
                match result {
                    Ok(sandbox) => {
                        audit(&rig, &[&sandbox]);
                        assert_eq!(sandbox.vectors.is_some(), vectors);
                        break;
                    }
                    Err(error) => assert_eq!(error, Error::OutOfFrames),
                }
                *count += 1;
                assert_eq!(rig.machine.outstanding(), before);
                audit(&rig, &[]);
            }
        }
        // The record may need frames of its own for them.
        assert!(failures >= without + 2);
        assert_eq!(rig.machine.outstanding(), before);
    }
}

#[test]
fn they_are_in_memory_of_their_own() {
    let rig = Rig::new(USUAL);
    let sandbox = rig.hal().sandbox_with(config(&rig)).unwrap();
    let frames = sandbox.vectors.as_ref().unwrap().frames();
    for mapped in super::audit::translations(&rig, &sandbox) {
        let (_, count, first, _) = mapped;
        assert!(frames.iter().all(|&frame| !(first..first.add(count)).contains(&frame)));
    }
}
