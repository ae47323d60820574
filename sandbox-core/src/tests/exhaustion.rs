//! Memory runs out at every allocation of every operation, one after the other.

use super::audit::{audit, translations};
use super::layout::LAYOUTS;
use super::machine::Machine;
use super::processor::next;
use super::rig::{Rig, SimSandbox, block_of_frames, grant};
use crate::arch::Trap;
use crate::argument::{In, Out};
use crate::error::Error;
use crate::permissions::Permissions;
use crate::sandbox::CallError;

const RW: Permissions = Permissions::READ_WRITE;

/// Every number of allocations that an operation can be left with; under Miri some of them.
fn budgets() -> impl Iterator<Item = usize> {
    (0..).step_by(if cfg!(miri) { 5 } else { 1 })
}

/// Runs `operation` with more and more memory until there is enough, and `check` after each failure. Returns the failures.
fn exhaust<T>(
    machine: &Machine,
    mut operation: impl FnMut() -> Result<T, Error>,
    mut check: impl FnMut(),
) -> (T, usize) {
    for (failures, budget) in budgets().enumerate() {
        machine.limit_allocations(Some(budget));
        let result = operation();
        machine.limit_allocations(None);
        match result {
            Ok(value) => return (value, failures),
            Err(error) => assert_eq!(error, Error::OutOfFrames, "with {budget} allocations"),
        }
        check();
    }
    unreachable!()
}

#[test]
fn a_hal_can_run_out_while_it_is_made() {
    for &layout in LAYOUTS {
        let mut failures = 0;
        for budget in budgets() {
            let machine = Machine::new(layout);
            machine.limit_allocations(Some(budget));
            // That it kept nothing is checked where it is made.
            match Rig::stopped(machine) {
                Ok(_) => break,
                Err(error) => assert_eq!(error, Error::OutOfFrames),
            }
            failures += 1;
        }
        assert!(failures > if cfg!(miri) { 2 } else { 15 });
    }
}

#[test]
fn a_cpu_can_run_out_while_it_is_started() {
    for &layout in LAYOUTS {
        let rig = Rig::stopped(Machine::new(layout)).unwrap();
        let sandbox = rig.sandbox();
        let before = translations(&rig, &sandbox);
        let mut last = usize::MAX;
        let ((), failures) = exhaust(
            &rig.machine,
            || rig.start_cpu(0),
            || {
                // Once the host has mapped a gate its frames stay taken: views must be as before for all that.
                assert!(translations(&rig, &sandbox).len() >= before.len());
                audit(&rig, &[&sandbox]);
                last = rig.machine.outstanding();
            },
        );
        assert!(failures > 0 && last < usize::MAX);
        audit(&rig, &[&sandbox]);
        drop(sandbox);
        rig.sandbox().call(|| (), ()).unwrap();
    }
}

#[test]
fn a_sandbox_can_run_out_while_it_is_made() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let before = rig.machine.outstanding();
        let check = || {
            assert_eq!(rig.machine.outstanding(), before);
            audit(&rig, &[]);
        };
        let (sandbox, failures) = exhaust(&rig.machine, || rig.hal().sandbox_with(rig.config()), check);
        assert!(failures >= if cfg!(miri) { 1 } else { 4 });
        audit(&rig, &[&sandbox]);
    }
}

#[test]
fn a_grant_can_run_out() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        rig.map_data(500, 12, RW);
        rig.machine.map_range(layout.data(512, 512), block_of_frames(), 1, RW);
        // Frames in three leaves of the record, pages in two or three tables.
        let range = layout.data(500, if cfg!(miri) { 16 } else { 600 - 88 });
        let (mut sandbox, other) = (rig.sandbox(), rig.sandbox());
        let before = translations(&rig, &sandbox);
        let failures = {
            let sandbox = core::cell::RefCell::new(&mut sandbox);
            exhaust(
                &rig.machine,
                || grant(&mut sandbox.borrow_mut(), range, RW),
                || {
                    assert_eq!(translations(&rig, &sandbox.borrow()), before);
                    audit(&rig, &[&sandbox.borrow(), &other]);
                },
            )
            .1
        };
        assert!(failures > 0);
        audit(&rig, &[&sandbox, &other]);
        sandbox.revoke(range).unwrap();
        assert_eq!(translations(&rig, &sandbox), before);
    }
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of pages")]
fn tables_that_a_failure_left_are_in_nobodys_way() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        rig.map_data(512, 1, RW);
        let mut sandbox = rig.sandbox();
        // All but the last table on the way to the page; then there is a block where that one would be, and above.
        for budget in 0..8 {
            rig.machine.limit_allocations(Some(budget));
            let result = grant(&mut sandbox, rig.data(512), Permissions::READ);
            rig.machine.limit_allocations(None);
            if result == Ok(()) {
                sandbox.revoke(rig.data(512)).unwrap();
                break;
            }
            rig.machine.edit(rig.data(512).start(), 1, |_| 0);
            rig.machine.map(rig.data(512).start(), block_of_frames(), 1, RW);
            grant(&mut sandbox, layout.data(512, 512), Permissions::READ).unwrap();
            audit(&rig, &[&sandbox]);
            sandbox.revoke(layout.data(512, 512)).unwrap();
            rig.machine.edit(rig.data(512).start(), 1, |_| 0);
            rig.map_data(512, 1, RW);
        }
        if cfg!(miri) {
            continue;
        }
        rig.machine.limit_allocations(Some(1));
        assert_eq!(grant(&mut sandbox, rig.data(512), Permissions::READ), Err(Error::OutOfFrames));
        rig.machine.limit_allocations(None);
        rig.machine.edit(rig.data(0).start(), 2, |_| 0);
        rig.machine.map(rig.data(0).start(), crate::addr::Frame::from_start(1 << 30).unwrap(), 2, RW);
        grant(&mut sandbox, layout.data(0, 512 * 512), Permissions::READ).unwrap();
        audit(&rig, &[&sandbox]);
    }
}

/// Runs a change of a view out of memory.
fn change(
    prepare: impl Fn(&Rig, &mut SimSandbox<'_>),
    change: impl Fn(&Rig, &mut SimSandbox<'_>) -> Result<(), Error>,
) {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        rig.machine.map_range(layout.data(512, 512), block_of_frames(), 1, RW);
        rig.machine.map_range(layout.data(1024, 512), block_of_frames().add(512), 1, RW);
        let (mut sandbox, other) = (rig.sandbox(), rig.sandbox());
        prepare(&rig, &mut sandbox);
        let (before, untouched) = (translations(&rig, &sandbox), translations(&rig, &other));
        let failures = {
            let sandbox = core::cell::RefCell::new(&mut sandbox);
            exhaust(
                &rig.machine,
                || change(&rig, &mut sandbox.borrow_mut()),
                || {
                    assert_eq!(translations(&rig, &sandbox.borrow()), before);
                    audit(&rig, &[&sandbox.borrow(), &other]);
                },
            )
            .1
        };
        assert!(failures > 0);
        assert_ne!(translations(&rig, &sandbox), before);
        assert_eq!(translations(&rig, &other), untouched);
        audit(&rig, &[&sandbox, &other]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of pages")]
fn a_revocation_can_run_out() {
    // Two blocks are cut, and the image's tables copied.
    change(
        |rig, sandbox| grant(sandbox, rig.layout.data(512, 1024), RW).unwrap(),
        |rig, sandbox| sandbox.revoke(rig.layout.data(700, 600)),
    );
    change(|_, _| (), |rig, sandbox| sandbox.revoke(rig.layout.image(300, 216)));
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of pages")]
fn a_restriction_can_run_out() {
    change(
        |rig, sandbox| grant(sandbox, rig.layout.data(512, 1024), RW).unwrap(),
        |rig, sandbox| sandbox.restrict(rig.layout.data(700, 600), Permissions::READ),
    );
    change(|_, _| (), |rig, sandbox| sandbox.restrict(rig.layout.image(300, 216), Permissions::READ));
}

#[test]
fn a_call_can_run_out() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let mut sandbox = rig.sandbox();
        sandbox.call(|_: &[u8]| (), (In(&[1; 10][..]),)).unwrap();
        let pages = if cfg!(miri) { 3 } else { 9 };
        let mut failures = 0;
        for budget in budgets() {
            rig.machine.limit_allocations(Some(budget));
            let (input, mut output) = (std::vec![1u8; pages * 4096], std::vec![2u8; 4097]);
            let function = |input: &[u8], output: &mut [u8]| output.fill(input[4096]);
            let result = sandbox.call(function, (In(&input[..]), Out(&mut output[..])));
            rig.machine.limit_allocations(None);
            audit(&rig, &[&sandbox]);
            if result == Ok(()) {
                assert_eq!(output, std::vec![1; 4097]);
                break;
            }
            assert_eq!(result, Err(CallError::Setup(Error::OutOfFrames)));
            assert_eq!(output, std::vec![2; 4097]);
            failures += 1;
            // Whatever is left of the buffers, the sandbox works.
            next(|guest| {
                let (address, _) = guest.part(0)?;
                guest.store(address, &[5])?;
                Ok(Trap::Returned)
            });
            let mut small = [0];
            sandbox.call(|_: &mut [u8; 1]| (), (Out(&mut small),)).unwrap();
            assert_eq!(small, [5]);
        }
        assert!(failures > 0);
    }
}

#[test]
fn taking_over_a_new_gate_can_run_out() {
    for &layout in LAYOUTS {
        let rig = Rig::stopped(Machine::new(layout)).unwrap();
        let mut sandbox = rig.sandbox();
        // Before the first gate there was nothing of it in the template to share.
        rig.start_cpu(0).unwrap();
        let mut failures = 0;
        for budget in 0.. {
            rig.machine.limit_allocations(Some(budget));
            let result = sandbox.call(|| 7u8, ());
            rig.machine.limit_allocations(None);
            audit(&rig, &[&sandbox]);
            match result {
                Ok(value) => {
                    assert_eq!(value, 7);
                    break;
                }
                Err(error) => assert_eq!(error, CallError::Setup(Error::OutOfFrames)),
            }
            failures += 1;
        }
        assert!(failures > 0, "{}", layout.name);
    }
}
