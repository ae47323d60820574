//! What can be granted, as what, and what is refused.

use super::audit::{audit, translations, view};
use super::layout::{EXECUTE, LAYOUTS, READ, USUAL, WRITE};
use super::rig::{Rig, SimSandbox, block_of_frames, frame_of, grant};
use crate::addr::{Page, PageRange, VirtAddr};
use crate::error::Error;
use crate::host::FrameKind;
use crate::permissions::Permissions;

const R: Permissions = Permissions::READ;
const RW: Permissions = Permissions::READ_WRITE;
const RX: Permissions = Permissions::READ_EXECUTE;

/// Grants, expects a refusal, and checks that nothing has changed.
fn refuse(rig: &Rig, sandbox: &mut SimSandbox<'_>, range: PageRange, permissions: Permissions) -> Error {
    let before = translations(rig, sandbox);
    let error = grant(sandbox, range, permissions).expect_err("this should be refused");
    assert_eq!(translations(rig, sandbox), before);
    error
}

#[test]
fn permissions_are_as_asked() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        rig.map_data(0, 2, RW);
        rig.map_data(2, 1, RX);
        let mut sandbox = rig.sandbox();
        for (page, permissions) in [(0, R), (1, RW), (2, RX)] {
            grant(&mut sandbox, rig.data(page), permissions).unwrap();
            let found = sandbox.view.lookup(rig.hal(), rig.data(page).start()).unwrap();
            assert!(found.permissions == permissions && found.unprivileged);
            assert_eq!(found.frame, rig.machine.host_page(rig.data(page).start()).unwrap().frame);
        }
        audit(&rig, &[&sandbox]);
    }
}

#[test]
fn all_levels_of_the_host_have_a_say() {
    for layout in LAYOUTS.iter().copied().filter(|layout| layout.hierarchical) {
        for level in 1..layout.levels[layout.roots - 1] {
            let rig = Rig::new(layout);
            rig.map_data(0, 1, Permissions::ALL);
            let page = rig.data(0).start();
            let mut sandbox = rig.sandbox();
            rig.machine.edit(page, level, |raw| raw & !WRITE);
            assert_eq!(refuse(&rig, &mut sandbox, rig.data(0), RW), Error::Escalation { page, host: RX, wanted: RW });
            rig.machine.edit(page, level, |raw| raw & !EXECUTE);
            assert_eq!(refuse(&rig, &mut sandbox, rig.data(0), RX), Error::Escalation { page, host: R, wanted: RX });
            grant(&mut sandbox, rig.data(0), R).unwrap();
            rig.machine.edit(page, level, |raw| raw | WRITE | EXECUTE);
            audit(&rig, &[&sandbox]);
            rig.machine.edit(page, level, |raw| raw & !READ);
            assert_eq!(
                refuse(&rig, &mut rig.sandbox(), rig.data(0), R),
                Error::Escalation { page, host: Permissions::new(false, true, true), wanted: R }
            );
        }
    }
}

#[test]
fn more_than_the_host_has_is_refused() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        rig.map_data(0, 1, R);
        let page = rig.data(0).start();
        let mut sandbox = rig.sandbox();
        for wanted in [RW, RX] {
            assert_eq!(refuse(&rig, &mut sandbox, rig.data(0), wanted), Error::Escalation { page, host: R, wanted });
        }
        for wanted in [Permissions::NONE, Permissions::ALL, Permissions::new(false, true, false)] {
            assert_eq!(refuse(&rig, &mut sandbox, rig.data(0), wanted), Error::BadPermissions(wanted));
        }
    }
}

#[test]
fn what_only_user_code_may_execute_is_not_granted_for_execution() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let page = rig.data(0).start();
        rig.machine.map_user(page, rig.machine.take());
        let mut sandbox = rig.sandbox();
        assert_eq!(refuse(&rig, &mut sandbox, rig.data(0), RX), Error::Escalation { page, host: R, wanted: RX });
        grant(&mut sandbox, rig.data(0), R).unwrap();
    }
}

#[test]
fn frames_that_are_not_memory_are_refused() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let first = rig.map_data(0, 4, RW);
        rig.machine.set_kind(first.add(1), FrameKind::PageTable);
        rig.machine.set_kind(first.add(2), FrameKind::Device);
        rig.machine.set_kind(first.add(3), FrameKind::Reserved);
        let mut sandbox = rig.sandbox();
        let page = |page| rig.data(page).start();
        for permissions in [R, RW] {
            assert_eq!(refuse(&rig, &mut sandbox, rig.data(1), permissions), Error::PageTable(page(1)));
            assert_eq!(refuse(&rig, &mut sandbox, rig.data(2), permissions), Error::Device(page(2)));
            assert_eq!(refuse(&rig, &mut sandbox, rig.data(3), permissions), Error::Reserved(page(3)));
            // Somewhere in a range, the page that is wrong is named, and what came before it is not left behind.
            assert_eq!(refuse(&rig, &mut sandbox, layout.data(0, 3), permissions), Error::PageTable(page(1)));
        }
        assert_eq!(refuse(&rig, &mut sandbox, layout.data(4, 1), R), Error::NotMapped(page(4)));
        grant(&mut sandbox, rig.data(0), RW).unwrap();
        assert_eq!(refuse(&rig, &mut sandbox, layout.data(0, 4), R), Error::Overlap(page(0)));
        audit(&rig, &[&sandbox]);
    }
}

#[test]
fn the_memory_of_the_hal_is_refused_wherever_it_appears() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        rig.machine.map_directly();
        let other = rig.sandbox();
        let mut sandbox = rig.sandbox();
        // Tables, stacks, the record, the gate's data: all that the HAL ever took.
        for frame in rig.machine.taken() {
            for permissions in [R, RW] {
                let alias = layout.alias(frame);
                let error = refuse(&rig, &mut sandbox, alias, permissions);
                assert_eq!(error, Error::SandboxMemory(alias.start()), "{frame:?}");
            }
        }
        let stack = other.window.stack();
        let alias = layout.alias(frame_of(&other, stack.start())).start();
        assert_eq!(
            refuse(&rig, &mut sandbox, layout.alias(frame_of(&other, stack.start())), R),
            Error::SandboxMemory(alias)
        );
        assert_eq!(refuse(&rig, &mut sandbox, stack, R), Error::SandboxMemory(stack.start()));
        audit(&rig, &[&sandbox, &other]);
    }
}

#[test]
fn the_gate_is_refused_wherever_it_appears() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let mut sandbox = rig.sandbox();
        let text = layout.gate_text();
        let data = layout.gates(0, 1);
        rig.machine.map(rig.data(0).start(), rig.machine.host_page(text.start()).unwrap().frame, 0, RW);
        rig.machine.map(rig.data(1).start(), rig.machine.host_page(data.start()).unwrap().frame, 0, RW);
        let code = layout.gate_code().take(1);
        for range in [PageRange::single(text.start()), code, data, rig.data(0), rig.data(1)] {
            assert_eq!(refuse(&rig, &mut sandbox, range, R), Error::SandboxMemory(range.start()));
        }
        for range in [data, rig.data(0), rig.data(1)] {
            assert_eq!(refuse(&rig, &mut sandbox, range, RW), Error::SandboxMemory(range.start()));
        }
        audit(&rig, &[&sandbox]);
    }
}

#[test]
fn a_page_is_granted_once() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        rig.map_data(0, 8, RW);
        let mut sandbox = rig.sandbox();
        grant(&mut sandbox, layout.data(2, 2), RW).unwrap();
        for range in [layout.data(2, 2), layout.data(0, 3), layout.data(3, 5), layout.data(0, 8)] {
            for permissions in [R, RW] {
                let page = layout.data(if range.start() == layout.data(3, 1).start() { 3 } else { 2 }, 1).start();
                assert_eq!(refuse(&rig, &mut sandbox, range, permissions), Error::Overlap(page));
            }
        }
        let text = layout.image(513, 1);
        assert_eq!(refuse(&rig, &mut sandbox, text, R), Error::Overlap(text.start()));
        sandbox.revoke(layout.data(2, 2)).unwrap();
        grant(&mut sandbox, layout.data(0, 8), R).unwrap();
        audit(&rig, &[&sandbox]);
    }
}

#[test]
fn an_overlap_inside_a_block_is_named() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let frame = block_of_frames();
        rig.machine.map_range(layout.data(512, 512), frame, 1, RW);
        let mut sandbox = rig.sandbox();
        grant(&mut sandbox, layout.data(600, 2), R).unwrap();
        assert_eq!(refuse(&rig, &mut sandbox, layout.data(512, 512), RW), Error::Overlap(layout.data(600, 1).start()));
        audit(&rig, &[&sandbox]);
    }
}

#[test]
fn ranges_are_checked() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    let empty = USUAL.data(0, 0);
    assert_eq!(refuse(&rig, &mut sandbox, empty, R), Error::Empty(empty.start().start()));
    assert_eq!(sandbox.revoke(empty), Err(Error::Empty(empty.start().start())));
    let hole = PageRange::single(USUAL.last_low().checked_add(1).unwrap());
    assert_eq!(refuse(&rig, &mut sandbox, hole, R), Error::NonCanonical(hole.start().start()));
    let window = rig.machine.window;
    let last = window.pages().last().unwrap();
    for range in [window, PageRange::single(last), PageRange::new(last, 9).unwrap()] {
        assert_eq!(refuse(&rig, &mut sandbox, range, R), Error::SandboxMemory(range.start()));
        assert_eq!(sandbox.revoke(range), Err(Error::SandboxMemory(range.start())));
        assert_eq!(sandbox.restrict(range, R), Err(Error::SandboxMemory(range.start())));
    }
}

#[test]
fn the_last_page_of_the_address_space_is_a_page() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let last = PageRange::single(VirtAddr(u64::MAX).page());
        let before = PageRange::single(VirtAddr(u64::MAX - 4096).page());
        rig.machine.map_range(PageRange::new(before.start(), 2).unwrap(), rig.machine.take_many(2), 0, RW);
        let mut sandbox = rig.sandbox();
        grant(&mut sandbox, last, RW).unwrap();
        assert_eq!(
            refuse(&rig, &mut sandbox, PageRange::new(before.start(), 2).unwrap(), R),
            Error::Overlap(last.start())
        );
        sandbox.restrict(last, R).unwrap();
        sandbox.revoke(last).unwrap();
        grant(&mut sandbox, PageRange::new(before.start(), 2).unwrap(), R).unwrap();
        audit(&rig, &[&sandbox]);
    }
}

#[test]
fn the_edges_of_the_untranslatable_addresses_are_apart() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let low = PageRange::single(layout.last_low());
        let high = layout.direct(0, 1);
        rig.machine.map_range(low, rig.machine.take(), 0, RW);
        rig.machine.map_range(high, rig.machine.take(), 0, RW);
        let mut sandbox = rig.sandbox();
        grant(&mut sandbox, low, R).unwrap();
        grant(&mut sandbox, high, R).unwrap();
        let both = PageRange::new(low.start(), 2).unwrap();
        let behind = low.start().checked_add(1).unwrap();
        assert_eq!(sandbox.revoke(both), Err(Error::NotGranted(behind)));
        assert_eq!(sandbox.restrict(both, R), Err(Error::NotGranted(behind)));
        assert_eq!(refuse(&rig, &mut sandbox, PageRange::single(behind), R), Error::NonCanonical(behind.start()));
        sandbox.revoke(low).unwrap();
        assert!(sandbox.view.lookup(rig.hal(), high.start()).is_some());
        assert_eq!(refuse(&rig, &mut sandbox, both, R), Error::NonCanonical(behind.start()));
        assert!(sandbox.view.lookup(rig.hal(), high.start()).is_some());
        audit(&rig, &[&sandbox]);
    }
}

#[repr(C, align(4096))]
struct Whole([u8; 8192]);

#[test]
fn borrowed_data_must_be_whole_pages() {
    let rig = Rig::new(USUAL);
    let data = std::boxed::Box::new(Whole([7; 8192]));
    let mut sandbox = rig.sandbox();
    // The simulated host's tables know nothing of this process's memory.
    let page = VirtAddr::of(&*data).page();
    assert_eq!(sandbox.grant(&*data), Err(Error::NotMapped(page)));
    let address = VirtAddr::of(&data.0[1]);
    assert_eq!(sandbox.grant(&data.0[1..4097]), Err(Error::NotWholePages { address, len: 4096 }));
    let address = VirtAddr::of(&data.0);
    assert_eq!(sandbox.grant(&data.0[..100]), Err(Error::NotWholePages { address, len: 100 }));
    assert_eq!(sandbox.grant(&data.0[..0]), Err(Error::Empty(address)));
    rig.machine.map_range(PageRange::new(page, 2).unwrap(), rig.machine.take_many(2), 0, RW);
    sandbox.grant(&*data).unwrap();
    assert_eq!(sandbox.view.lookup(rig.hal(), page).unwrap().permissions, R);
    audit(&rig, &[&sandbox]);
}

fn levels(rig: &Rig, sandbox: &SimSandbox<'_>, range: PageRange) -> std::vec::Vec<u8> {
    let in_range = |page: Page| range.contains(page);
    view(rig, sandbox).leaves.iter().filter(|leaf| in_range(leaf.page)).map(|leaf| leaf.level).collect()
}

#[test]
fn blocks_are_granted_as_blocks_where_they_fit() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let frame = block_of_frames();
        let block = layout.data(512, 512);
        rig.machine.map_range(block, frame, 1, RW);
        rig.machine.map_range(layout.data(1024, 4), rig.machine.take_many(4), 0, RW);
        let mut sandbox = rig.sandbox();
        let before = rig.machine.outstanding();
        grant(&mut sandbox, layout.data(512, 516), RW).unwrap();
        assert_eq!(levels(&rig, &sandbox, layout.data(512, 516)), [1, 0, 0, 0, 0]);
        assert!(rig.machine.outstanding() - before <= 6);
        audit(&rig, &[&sandbox]);
        sandbox.revoke(layout.data(512, 516)).unwrap();
        // From the middle on, or not to the end: in pages.
        for (range, count) in [(layout.data(513, 515), 515), (layout.data(512, 511), 511)] {
            grant(&mut sandbox, range, RW).unwrap();
            assert_eq!(levels(&rig, &sandbox, block), [0].repeat(511));
            assert_eq!(levels(&rig, &sandbox, range).len(), count);
            audit(&rig, &[&sandbox]);
            sandbox.revoke(range).unwrap();
        }
    }
}

#[test]
fn a_gigabyte_is_one_entry_until_a_page_of_it_goes() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let gigabyte = layout.data(0, 512 * 512);
        rig.machine.map(gigabyte.start(), crate::addr::Frame::from_start(1 << 30).unwrap(), 2, RW);
        let mut sandbox = rig.sandbox();
        grant(&mut sandbox, gigabyte, R).unwrap();
        assert_eq!(levels(&rig, &sandbox, gigabyte), [2]);
        sandbox.revoke(layout.data(70_000, 1)).unwrap();
        assert_eq!(levels(&rig, &sandbox, gigabyte).len(), 511 + 511);
        sandbox.revoke(layout.data(0, 70_000)).unwrap();
        sandbox.revoke(layout.data(70_001, 512 * 512 - 70_001)).unwrap();
        grant(&mut sandbox, gigabyte, R).unwrap();
        assert_eq!(levels(&rig, &sandbox, gigabyte), [2]);
        audit(&rig, &[&sandbox]);
        assert_eq!(
            sandbox.view.lookup(rig.hal(), layout.data(70_000, 1).start()).unwrap().frame.number(),
            0x40000 + 70_000
        );
    }
}

#[test]
fn memory_types_are_the_hosts() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        rig.map_data(0, 1, RW);
        let frame = block_of_frames();
        rig.machine.map_range(layout.data(512, 512), frame, 1, RW);
        // The type has another place in a block's entry.
        rig.machine.edit(rig.data(0).start(), 0, |raw| raw & !(7 << 8) | 3 << 8);
        rig.machine.edit(rig.data(512).start(), 1, |raw| raw & !(7 << 59) | 2 << 59);
        let mut sandbox = rig.sandbox();
        grant(&mut sandbox, rig.data(0), R).unwrap();
        grant(&mut sandbox, layout.data(512, 512), R).unwrap();
        let roots = *sandbox.view.tables().roots();
        let memory = |page: u64| rig.machine.translate(roots, rig.data(page).start().start().0).unwrap().memory;
        assert_eq!((memory(0), memory(512)), (3, 2));
        sandbox.revoke(rig.data(515)).unwrap();
        assert_eq!(memory(516), 2);
    }
}

#[test]
fn a_frame_that_the_host_hands_out_twice_is_noticed() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let frame = rig.map_data(0, 1, RW);
        let mut sandbox = rig.sandbox();
        grant(&mut sandbox, rig.data(0), RW).unwrap();
        let stack = frame_of(&sandbox, sandbox.window.stack().start());
        for (in_use, granted) in [(stack, false), (frame, true)] {
            rig.machine.offer(in_use);
            let before = translations(&rig, &sandbox);
            assert_eq!(rig.hal().sandbox_with(rig.config()).err(), Some(Error::FrameInUse(in_use)));
            assert_eq!(translations(&rig, &sandbox), before);
            if granted {
                rig.machine.forget(in_use);
            }
        }
        audit(&rig, &[&sandbox]);
    }
}

#[test]
fn what_a_level_above_keeps_user_code_from_is_still_user_codes_to_execute() {
    for layout in LAYOUTS.iter().copied().filter(|layout| layout.hierarchical) {
        let rig = Rig::new(layout);
        let page = rig.data(0).start();
        rig.machine.map_user(page, rig.machine.take());
        rig.machine.edit(page, 1, |raw| raw & !super::layout::USER);
        assert_eq!(refuse(&rig, &mut rig.sandbox(), rig.data(0), RX), Error::Escalation { page, host: R, wanted: RX });
    }
}
