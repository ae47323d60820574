//! How a run can end, and what is said of it.

use super::audit::audit;
use super::layout::{LAYOUTS, USUAL};
use super::processor::{cpu, next, refused};
use super::rig::{Rig, SimSandbox, grant};
use crate::addr::{Page, VirtAddr};
use crate::arch::{Cause, Refusal, Trap};
use crate::argument::{In, Out};
use crate::exit::{ExitReason, FaultKind, MemoryFault, Syndrome};
use crate::permissions::{Access, Permissions};
use crate::sandbox::CallError;

fn nothing() {}

/// Calls a function whose place the next steps take, and says how it ended.
fn outcome(sandbox: &mut SimSandbox<'_>) -> Option<ExitReason> {
    match sandbox.call(nothing, ()) {
        Ok(()) => None,
        Err(CallError::Exit(exit)) => Some(exit.reason),
        Err(CallError::Setup(error)) => panic!("{error}"),
    }
}

/// Lets the sandbox access `address`.
fn access(sandbox: &mut SimSandbox<'_>, address: u64, access: Access) -> Option<FaultKind> {
    next(move |guest| guest.reach(address, access).map(|_| Trap::Returned));
    match outcome(sandbox) {
        None => None,
        Some(ExitReason::MemoryFault(fault)) => {
            assert_eq!((fault.address, fault.access), (VirtAddr(address), access));
            Some(fault.kind)
        }
        Some(other) => panic!("{other}"),
    }
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn faults_are_told_apart() {
    use Access::{Execute, Read, Write};
    use FaultKind::{GuardPage, NonCanonical, Permission, StackOverflow, Unmapped};
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        rig.map_data(0, 2, Permissions::READ_WRITE);
        let mut sandbox = rig.sandbox();
        grant(&mut sandbox, rig.data(0), Permissions::READ).unwrap();
        // Two buffers: the second behind the first, a guard between.
        sandbox.call(|_: &[u8; 5], _: &mut [u8; 4097]| (), (In(&[0; 5]), Out(&mut [0; 4097]))).unwrap();

        let window = rig.machine.window.start().start().0;
        let page = |index: u64| window + index * 4096;
        // The stack is on pages 1 and 2, the buffers on page 4 and pages 6 and 7.
        let cases = [
            (page(0), Write, Some(StackOverflow)),
            (page(0) + 4095, Read, Some(StackOverflow)),
            (page(1), Write, None),
            (page(2) + 4095, Read, None),
            (page(1), Execute, Some(Permission)),
            (page(3), Read, Some(GuardPage)),
            (page(4), Write, None),
            (page(5), Write, Some(GuardPage)),
            (page(6), Read, None),
            (page(7) + 4095, Write, None),
            (page(8), Read, Some(GuardPage)),
            (page(9), Read, Some(Unmapped)),
            (window - 1, Read, Some(Unmapped)),
            (page(512), Read, Some(Unmapped)),
            (rig.data(0).start().start().0, Read, None),
            (rig.data(0).start().start().0, Write, Some(Permission)),
            (rig.data(1).start().start().0, Read, Some(Unmapped)),
            (layout.image(513, 1).start().start().0, Execute, None),
            (layout.image(513, 1).start().start().0, Write, Some(Permission)),
            (layout.image(1536, 1).start().start().0, Execute, Some(Permission)),
            (layout.gate_code().start().start().0, Read, Some(Permission)),
            (layout.gates(0, 1).start().start().0, Write, Some(Permission)),
            (0, Read, Some(Unmapped)),
            (u64::MAX, Execute, Some(Unmapped)),
            (layout.last_low().start().0 + 4096, Read, Some(NonCanonical)),
            (layout.top - 1, Read, Some(NonCanonical)),
        ];
        for (address, how, expected) in cases {
            assert_eq!(access(&mut sandbox, address, how), expected, "{how} at {address:#x}, {}", layout.name);
        }
        audit(&rig, &[&sandbox]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn causes_become_reasons() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    let syndrome = Syndrome { class: 7, detail: 9 };
    let cases = [
        (Cause::Illegal, ExitReason::IllegalInstruction),
        (Cause::Privileged, ExitReason::PrivilegedInstruction),
        (Cause::Arithmetic, ExitReason::Arithmetic),
        (Cause::FloatingPoint, ExitReason::FloatingPoint),
        (Cause::Breakpoint, ExitReason::Breakpoint),
        (Cause::SingleStep, ExitReason::SingleStep),
        (Cause::Unknown(syndrome), ExitReason::Unknown(syndrome)),
    ];
    for (cause, reason) in cases {
        next(move |guest| {
            guest.registers.at = 0x1234;
            Err(cause)
        });
        let Err(CallError::Exit(exit)) = sandbox.call(nothing, ()) else { panic!() };
        assert_eq!((exit.reason, exit.at), (reason, VirtAddr(0x1234)));
    }
    let refusals = [
        (Refusal::Alignment, FaultKind::Misaligned),
        (Refusal::NonCanonical, FaultKind::NonCanonical),
        (Refusal::External, FaultKind::External),
        (Refusal::Restriction, FaultKind::Permission),
    ];
    for (refusal, kind) in refusals {
        let (address, access) = (VirtAddr(0x5000), Access::Write);
        next(move |_| Err(Cause::Memory { address, access, refusal }));
        assert_eq!(outcome(&mut sandbox), Some(ExitReason::MemoryFault(MemoryFault { address, access, kind })));
    }
    next(|_| Ok(Trap::HostCall(42)));
    assert_eq!(outcome(&mut sandbox), Some(ExitReason::HostCall(42)));
}

/// Reports a refusal that the tables don't explain.
fn refuse(at: u64, page: Page) {
    next(move |guest| {
        guest.registers.at = at;
        guest.reach(page.start().0, Access::Read)?;
        Err(refused(page.start().0, Access::Read))
    });
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn a_refusal_that_the_tables_do_not_explain_is_tried_again() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    let page = USUAL.image(513, 1).start();
    refuse(1, page);
    assert_eq!(outcome(&mut sandbox), None);
    // The page was flushed before the next entry, once.
    assert_eq!(cpu(|cpu| (cpu.flushed.clone(), cpu.entered)), ([page].into(), 2));
    assert_eq!(outcome(&mut sandbox), None);
    assert_eq!(cpu(|cpu| cpu.flushed.len()), 1);
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn every_call_may_meet_stale_translations_anew() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    for _ in 0..40 {
        refuse(1, USUAL.image(513, 1).start());
        assert_eq!(outcome(&mut sandbox), None);
    }
    // So may code that an interrupt of the host's comes between.
    for _ in 0..40 {
        refuse(1, USUAL.image(513, 1).start());
        next(|_| Ok(Trap::Interrupt(3)));
    }
    assert_eq!(outcome(&mut sandbox), None);
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of pages")]
fn one_instruction_may_meet_many_stale_translations() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    // A block copy: two pages at a time, each new.
    for page in 0..40 {
        refuse(1, USUAL.image(page, 1).start());
        refuse(1, USUAL.image(page + 100, 1).start());
    }
    assert_eq!(outcome(&mut sandbox), None);
    // And code that gets on may meet the same ones.
    for at in 0..40 {
        refuse(at, USUAL.image(513, 1).start());
    }
    assert_eq!(outcome(&mut sandbox), None);
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn refusals_without_end_come_to_an_end() {
    let rig = Rig::new(USUAL);
    for pages in 1..=4 {
        let mut sandbox = rig.sandbox();
        let start = cpu(|cpu| cpu.entered);
        let mut run = sandbox.start(nothing, ()).unwrap();
        let exit = loop {
            let page = (cpu(|cpu| cpu.entered) - start) as u64 % pages;
            refuse(1, USUAL.image(512 + page, 1).start());
            match run.step().unwrap() {
                crate::Progress::Suspended(next) => run = next,
                crate::Progress::Exited(exit) => break exit,
                crate::Progress::Returned(()) | crate::Progress::Preempted(..) => panic!(),
            }
            assert!(cpu(|cpu| cpu.entered) - start < 64, "{pages} pages are refused for ever");
        };
        assert!(matches!(
            exit.reason,
            ExitReason::MemoryFault(MemoryFault { kind: FaultKind::Unexplained, access: Access::Read, .. })
        ));
    }
}

#[test]
fn a_diagnosis_sees_what_the_sandbox_sees() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let frame = rig.map_data(0, 1, Permissions::READ_EXECUTE);
        rig.map_data(1, 1, Permissions::READ);
        // SAFETY: the frame is the host's, and has all these bytes.
        unsafe { rig.machine.bytes(frame).add(4088).copy_from_nonoverlapping([1u8, 2, 3, 4, 5, 6, 7, 8].as_ptr(), 8) };
        let mut sandbox = rig.sandbox();
        grant(&mut sandbox, rig.data(0), Permissions::READ_EXECUTE).unwrap();
        grant(&mut sandbox, rig.data(1), Permissions::READ).unwrap();
        let start = rig.data(0).start().start().0;
        let mut probe = |address: u64| {
            cpu(|cpu| cpu.probe = Some(VirtAddr(address)));
            next(|_| Err(Cause::Illegal));
            outcome(&mut sandbox);
            cpu(|cpu| cpu.probed.take()).unwrap()
        };
        let word = u64::from_le_bytes([1, 2, 3, 4, 5, 6, 7, 8]);
        // The next page can be read, but not executed.
        assert_eq!(probe(start + 4088), ([1, 2, 3, 4, 5, 6, 7, 8].into(), Some(word)));
        assert_eq!(probe(start + 4092), ([5, 6, 7, 8].into(), Some(word >> 32)));
        assert_eq!(probe(start + 8190), ([].into(), None));
        assert_eq!(probe(layout.gate_code().start().start().0), ([].into(), None));
        assert_eq!(probe(layout.last_low().start().0 + 4096), ([].into(), None));
        assert_eq!(probe(u64::MAX - 3), ([].into(), None));
    }
}
