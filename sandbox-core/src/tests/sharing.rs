//! No frame is writable in one view and executable in another, or in the host's text.

use super::audit::audit;
use super::layout::{LAYOUTS, USUAL};
use super::rig::{Rig, block_of_frames, grant};
use crate::addr::PageRange;
use crate::error::Error;
use crate::permissions::Permissions;

const R: Permissions = Permissions::READ;
const RW: Permissions = Permissions::READ_WRITE;
const RX: Permissions = Permissions::READ_EXECUTE;

/// One frame, at one page for writing and at the next for execution.
fn aliases(rig: &Rig) -> (PageRange, PageRange) {
    let frame = rig.machine.take();
    rig.machine.map(rig.data(0).start(), frame, 0, RW);
    rig.machine.map(rig.data(1).start(), frame, 0, RX);
    (rig.data(0), rig.data(1))
}

#[test]
fn a_frame_is_written_or_executed() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let (write, execute) = aliases(&rig);
        for (first, has, second, wants) in [(write, RW, execute, RX), (execute, RX, write, RW)] {
            let (mut a, mut b) = (rig.sandbox(), rig.sandbox());
            let clash = Err(Error::WritableAndExecutable(second.start()));
            grant(&mut a, first, has).unwrap();
            assert_eq!(grant(&mut b, second, wants), clash);
            assert_eq!(grant(&mut a, second, wants), clash);
            grant(&mut b, second, R).unwrap();
            b.revoke(second).unwrap();
            audit(&rig, &[&a, &b]);

            // Two have it: both must let go.
            grant(&mut b, first, has).unwrap();
            a.revoke(first).unwrap();
            assert_eq!(grant(&mut a, second, wants), clash);
            b.restrict(first, R).unwrap();
            grant(&mut a, second, wants).unwrap();
            assert_eq!(b.restrict(first, has), Err(Error::Escalation { page: first.start(), host: R, wanted: has }));
            audit(&rig, &[&a, &b]);

            // Going away is letting go.
            b.revoke(first).unwrap();
            drop(a);
            grant(&mut b, first, has).unwrap();
            audit(&rig, &[&b]);
        }
    }
}

#[test]
fn what_fails_claims_nothing() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let (write, execute) = aliases(&rig);
        let both = PageRange::new(write.start(), 2).unwrap();
        let (mut a, mut b) = (rig.sandbox(), rig.sandbox());
        let (page, host) = (execute.start(), RX);
        assert_eq!(grant(&mut a, both, RW), Err(Error::Escalation { page, host, wanted: RW }));
        grant(&mut b, execute, RX).unwrap();
        assert_eq!(grant(&mut b, execute, RX), Err(Error::Overlap(execute.start())));
        b.revoke(execute).unwrap();
        grant(&mut a, write, RW).unwrap();
        audit(&rig, &[&a, &b]);
    }
}

#[test]
fn a_block_is_claimed_page_by_page() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let frame = block_of_frames();
        let block = layout.data(512, 512);
        rig.machine.map_range(block, frame, 1, RW);
        rig.machine.map(rig.data(0).start(), frame.add(300), 0, RX);
        let (mut a, mut b) = (rig.sandbox(), rig.sandbox());
        grant(&mut a, rig.data(0), RX).unwrap();
        assert_eq!(grant(&mut b, block, RW), Err(Error::WritableAndExecutable(layout.data(812, 1).start())));
        a.revoke(rig.data(0)).unwrap();
        grant(&mut b, block, RW).unwrap();
        let clash = Err(Error::WritableAndExecutable(rig.data(0).start()));
        assert_eq!(grant(&mut a, rig.data(0), RX), clash);
        // Another page of the block goes: this one is still written.
        b.revoke(layout.data(811, 1)).unwrap();
        assert_eq!(grant(&mut a, rig.data(0), RX), clash);
        b.restrict(layout.data(812, 1), R).unwrap();
        grant(&mut a, rig.data(0), RX).unwrap();
        audit(&rig, &[&a, &b]);
    }
}

#[test]
fn the_hosts_text_is_never_written() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        // A page of the text, one inside a block of it, and one that the host leaves out of views.
        for (data, page) in [512, 77, 522].into_iter().enumerate() {
            let frame = rig.machine.host_page(layout.image(page, 1).start()).unwrap().frame;
            let alias = rig.data(data as u64);
            rig.machine.map(alias.start(), frame, 0, RW);
            let mut sandbox = rig.sandbox();
            assert_eq!(
                grant(&mut sandbox, alias, RW),
                Err(Error::WritableAndExecutable(alias.start())),
                "page {page} of the text"
            );
            grant(&mut sandbox, alias, R).unwrap();
            // That a sandbox has lost the text does not take it from the host.
            if page != 522 {
                sandbox.revoke(layout.image(page, 1)).unwrap();
            }
            sandbox.revoke(alias).unwrap();
            assert_eq!(grant(&mut sandbox, alias, RW), Err(Error::WritableAndExecutable(alias.start())));
            audit(&rig, &[&sandbox]);
        }
    }
}

#[test]
fn what_the_host_could_execute_is_not_written() {
    let rig = Rig::new(USUAL);
    rig.map_data(0, 1, Permissions::ALL);
    let mut sandbox = rig.sandbox();
    assert_eq!(grant(&mut sandbox, rig.data(0), RW), Err(Error::WritableAndExecutable(rig.data(0).start())));
    grant(&mut sandbox, rig.data(0), RX).unwrap();
    audit(&rig, &[&sandbox]);
}

#[test]
fn the_hosts_task_state_is_not_granted() {
    use super::machine::Machine;
    use super::processor::cpu;
    let rig = Rig::stopped(Machine::new(USUAL)).unwrap();
    rig.map_data(0, 1, RW);
    cpu(|cpu| cpu.task_state = [rig.data(0).start()].into());
    rig.start_cpu(0).unwrap();
    // The next CPU's lies on the same page.
    rig.start_cpu(1).unwrap();
    let mut sandbox = rig.sandbox();
    for permissions in [R, RW] {
        assert_eq!(grant(&mut sandbox, rig.data(0), permissions), Err(Error::SandboxMemory(rig.data(0).start())));
    }
    audit(&rig, &[&sandbox]);
}

#[test]
fn what_a_sandbox_writes_does_not_become_a_gate() {
    use super::machine::Machine;
    use super::processor::cpu;
    let rig = Rig::stopped(Machine::new(USUAL)).unwrap();
    let frame = rig.map_data(0, 1, RW);
    let mut sandbox = rig.sandbox();
    grant(&mut sandbox, rig.data(0), RW).unwrap();
    cpu(|cpu| cpu.task_state = [rig.data(0).start()].into());
    assert_eq!(rig.start_cpu(0), Err(Error::FrameInUse(frame)));
    sandbox.revoke(rig.data(0)).unwrap();
    rig.start_cpu(0).unwrap();
    audit(&rig, &[&sandbox]);
}
