//! Taking things out of a view again, and lowering them.

use super::audit::{audit, translations, view};
use super::layout::{CACHED, LAYOUTS, SimFormat, TWO_ROOTS, USUAL};
use super::machine::{Machine, image_frame};
use super::rig::{Rig, SimSandbox, block_of_frames, grant};
use crate::addr::PageRange;
use crate::error::Error;
use crate::format::{Leaf, Privilege};
use crate::permissions::{Access, Permissions};
use crate::tables::{Change, Ownership, Tables};

const R: Permissions = Permissions::READ;
const RW: Permissions = Permissions::READ_WRITE;
const RX: Permissions = Permissions::READ_EXECUTE;

fn own_tables(rig: &Rig, sandbox: &SimSandbox<'_>) -> usize {
    view(rig, sandbox).own_tables.len()
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of pages")]
fn a_change_inside_the_image_copies_the_path_alone() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let (mut a, b) = (rig.sandbox(), rig.sandbox());
        let untouched = translations(&rig, &b);
        let before = own_tables(&rig, &a);
        // The root is the view's own already; a block's page needs a table more than a page. The level below the root may be
        // its own because of the window.
        a.revoke(layout.image(520, 1)).unwrap();
        let levels = usize::from(layout.levels[layout.roots - 1]);
        assert!(own_tables(&rig, &a) - before < levels, "{}", layout.name);
        let page = own_tables(&rig, &a);
        a.revoke(layout.image(521, 1)).unwrap();
        assert_eq!(own_tables(&rig, &a), page);
        a.revoke(layout.image(100, 1)).unwrap();
        assert_eq!(own_tables(&rig, &a), page + 1);
        assert_eq!(translations(&rig, &b), untouched);
        for gone in [100, 520, 521] {
            assert!(a.view.lookup(rig.hal(), layout.image(gone, 1).start()).is_none());
        }
        assert!(a.view.allows(rig.hal(), layout.image(101, 1).start().start(), Access::Execute));
        audit(&rig, &[&a, &b]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn a_grant_inside_the_image_copies_the_path_alone() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        rig.machine.map_range(layout.image(540, 1), rig.machine.take(), 0, RW);
        let (mut a, b) = (rig.sandbox(), rig.sandbox());
        let (before, untouched) = (own_tables(&rig, &a), translations(&rig, &b));
        grant(&mut a, layout.image(540, 1), RW).unwrap();
        assert!(own_tables(&rig, &a) - before < usize::from(layout.levels[layout.roots - 1]));
        assert_eq!(translations(&rig, &b), untouched);
        audit(&rig, &[&a, &b]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn the_whole_image_can_go() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let (mut a, b) = (rig.sandbox(), rig.sandbox());
        let untouched = translations(&rig, &b);
        for (first, count) in [(0, 516), (518, 4), (523, 5), (1024, 515), (1541, 3)] {
            a.revoke(layout.image(first, count)).unwrap();
        }
        assert!(layout.image(0, 2048).pages().all(|page| !a.view.allows(rig.hal(), page.start(), Access::Read)));
        assert_eq!(translations(&rig, &b), untouched);
        audit(&rig, &[&a, &b]);
        // What is left is enough to run.
        a.call(|| (), ()).unwrap();
    }
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn what_is_not_there_is_not_taken() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        rig.map_data(0, 8, RW);
        let mut sandbox = rig.sandbox();
        grant(&mut sandbox, layout.data(2, 2), RW).unwrap();
        let before = translations(&rig, &sandbox);
        let page = |index| layout.data(index, 1).start();
        assert_eq!(sandbox.revoke(layout.data(2, 3)), Err(Error::NotGranted(page(4))));
        assert_eq!(sandbox.revoke(layout.data(1, 2)), Err(Error::NotGranted(page(1))));
        assert_eq!(sandbox.restrict(layout.data(2, 3), R), Err(Error::NotGranted(page(4))));
        let gate = layout.gate_code();
        assert_eq!(sandbox.revoke(gate), Err(Error::SandboxMemory(gate.start())));
        let text = layout.gate_text().start();
        let error = if layout.remaps_gate_code { Error::NotGranted(text) } else { Error::SandboxMemory(text) };
        assert_eq!(sandbox.revoke(layout.image(514, 6)), Err(error));
        let data = layout.gates(0, 1);
        assert_eq!(sandbox.restrict(data, R), Err(Error::SandboxMemory(data.start())));
        let everything = PageRange::new(layout.data(2, 1).start(), 1 << 20).unwrap();
        let window = Err(Error::SandboxMemory(rig.machine.window.start()));
        assert_eq!((sandbox.revoke(everything), grant(&mut sandbox, everything, R)), (window, window));
        let much = PageRange::new(layout.data(2, 1).start(), 1 << 19).unwrap();
        assert_eq!(sandbox.revoke(much), Err(Error::NotGranted(page(4))));
        assert_eq!(translations(&rig, &sandbox), before);
        audit(&rig, &[&sandbox]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn permissions_only_go_down() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        rig.map_data(0, 4, RW);
        let mut sandbox = rig.sandbox();
        grant(&mut sandbox, layout.data(0, 4), RW).unwrap();
        sandbox.restrict(layout.data(1, 2), R).unwrap();
        let before = translations(&rig, &sandbox);
        let page = layout.data(1, 1).start();
        assert_eq!(sandbox.restrict(layout.data(0, 4), RW), Err(Error::Escalation { page, host: R, wanted: RW }));
        assert_eq!(
            sandbox.restrict(layout.data(0, 1), RX),
            Err(Error::Escalation { page: layout.data(0, 1).start(), host: RW, wanted: RX })
        );
        for wanted in [Permissions::NONE, Permissions::ALL] {
            assert_eq!(sandbox.restrict(layout.data(0, 1), wanted), Err(Error::BadPermissions(wanted)));
        }
        assert_eq!(translations(&rig, &sandbox), before);
        sandbox.restrict(layout.data(0, 1), RW).unwrap();
        sandbox.restrict(layout.data(1, 2), R).unwrap();
        assert_eq!(translations(&rig, &sandbox), before);
        sandbox.restrict(layout.image(10, 505), R).unwrap();
        let executable = |page| sandbox.view.allows(rig.hal(), layout.image(page, 1).start().start(), Access::Execute);
        assert!(executable(9) && !executable(10) && !executable(514) && executable(515));
        audit(&rig, &[&sandbox]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of pages")]
fn blocks_are_changed_as_blocks() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let block = layout.data(512, 512);
        rig.machine.map_range(block, block_of_frames(), 1, RW);
        let mut sandbox = rig.sandbox();
        grant(&mut sandbox, block, RW).unwrap();
        let tables = own_tables(&rig, &sandbox);
        sandbox.restrict(block, R).unwrap();
        sandbox.restrict(layout.image(0, 512), R).unwrap();
        let blocks = view(&rig, &sandbox).leaves.iter().filter(|leaf| leaf.level == 1).count();
        assert_eq!(blocks, 3, "{}", layout.name);
        audit(&rig, &[&sandbox]);
        // The tables above the image at most.
        assert!(own_tables(&rig, &sandbox) - tables < usize::from(layout.levels[layout.roots - 1]));
        sandbox.restrict(layout.data(700, 1), R).unwrap();
        sandbox.revoke(layout.data(701, 1)).unwrap();
        audit(&rig, &[&sandbox]);
        sandbox.revoke(layout.data(512, 701 - 512)).unwrap();
        sandbox.revoke(layout.data(702, 1024 - 702)).unwrap();
        grant(&mut sandbox, block, RW).unwrap();
        audit(&rig, &[&sandbox]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn both_roots_are_looked_after() {
    let layout = TWO_ROOTS;
    let rig = Rig::new(layout);
    // The same entry numbers below both roots.
    let low = |page: u64| PageRange::new(crate::VirtAddr(0x4000_0000 + page * 4096).page(), 4).unwrap();
    let high = |page: u64| layout.direct(0x4_0000 + page, 4);
    for range in [low(0), high(0)] {
        rig.machine.map_range(range, rig.machine.take_many(4), 0, RW);
    }
    let mut sandbox = rig.sandbox();
    assert!(sandbox.view.tables().roots()[0].is_none());
    grant(&mut sandbox, low(0), RW).unwrap();
    grant(&mut sandbox, high(0), RW).unwrap();
    sandbox.revoke(low(0).take(2)).unwrap();
    sandbox.restrict(high(0).skip(2), R).unwrap();
    let allowed = |range: PageRange| -> std::vec::Vec<_> {
        let pages = range.pages();
        pages.map(|page| sandbox.view.lookup(rig.hal(), page).map(|found| found.permissions)).collect()
    };
    assert_eq!(allowed(low(0)), [None, None, Some(RW), Some(RW)]);
    assert_eq!(allowed(high(0)), [Some(RW), Some(RW), Some(R), Some(R)]);
    audit(&rig, &[&sandbox]);
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn tables_are_published_after_every_change() {
    use super::processor::cpu;
    let rig = Rig::new(USUAL);
    rig.map_data(0, 1, RW);
    let published = || cpu(|cpu| core::mem::take(&mut cpu.published)) > 0;
    assert!(published());
    let mut sandbox = rig.sandbox();
    assert!(published());
    grant(&mut sandbox, rig.data(0), RW).unwrap();
    assert!(published());
    sandbox.restrict(rig.data(0), R).unwrap();
    assert!(published());
    sandbox.revoke(rig.data(0)).unwrap();
    assert!(published());
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of pages")]
fn a_whole_table_of_the_image_is_changed_in_a_copy() {
    for &layout in LAYOUTS {
        // A table full of pages, all of it text.
        let mut machine = Machine::new(layout);
        let pages = layout.image(2048, 512);
        machine.map_range(pages, image_frame(2048), 0, RX);
        machine.text.push(pages);
        let rig = Rig::stopped(machine).unwrap();
        let (mut a, mut b) = (rig.sandbox(), rig.sandbox());
        let untouched = translations(&rig, &b);
        a.restrict(pages, R).unwrap();
        assert_eq!(translations(&rig, &b), untouched);
        assert!(pages.pages().all(|page| a.view.lookup(rig.hal(), page).unwrap().permissions == R));
        let before = own_tables(&rig, &b);
        b.revoke(pages).unwrap();
        // What goes as a whole is not copied first.
        assert!(own_tables(&rig, &b) - before < usize::from(layout.levels[layout.roots - 1]) - 1);
        assert!(pages.pages().all(|page| a.view.lookup(rig.hal(), page).unwrap().permissions == R));
        audit(&rig, &[&a, &b]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn tables_know_where_addresses_end() {
    for layout in LAYOUTS.iter().copied().filter(|layout| layout.roots == 1) {
        let rig = Rig::new(layout);
        let frames = &rig.hal().frames;
        let mut tables = Tables::new(SimFormat(layout));
        // One root translates both, and numbers from the root's first page on follow each other.
        let (low, high) = (layout.last_low(), layout.direct(0, 1).start());
        for page in [low, high] {
            let leaf =
                Leaf { frame: rig.machine.take(), permissions: R, privilege: Privilege::Unprivileged, memory: CACHED };
            let _ = tables.map(frames, page, 0, leaf, Ownership::Borrowed).unwrap();
        }
        let both = PageRange::new(low, 2).unwrap();
        let hole = low.checked_add(1).unwrap();
        assert_eq!(tables.unmap(frames, both), Err(Error::NonCanonical(hole.start())));
        assert!(tables.lookup(frames, low).is_some() && tables.lookup(frames, high).is_some());
        assert_eq!(tables.unmap(frames, PageRange::single(low)), Ok(Change::Lowered));
        assert!(tables.lookup(frames, low).is_none() && tables.lookup(frames, high).is_some());
        tables.destroy(frames);
    }
}
