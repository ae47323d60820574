//! What every view has from the beginning: the image, without the gate and what the host leaves out.

use super::audit::{audit, translations, unprivileged, view};
use super::layout::{EXECUTE, LAYOUTS, READ, USER, USER_EXECUTE};
use super::machine::{Machine, image_frame};
use super::rig::{Rig, SimSandbox, grant};
use crate::addr::PageRange;
use crate::error::Error;
use crate::permissions::Permissions;

#[test]
fn a_view_begins_with_the_image_without_its_holes() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let sandbox = rig.sandbox();
        let text = READ | USER | USER_EXECUTE;
        let stretch = |first, count, bits| (layout.image(first, count).start(), count, image_frame(first), bits);
        let gate = stretch(516, 2, READ | EXECUTE);
        let expected = [
            stretch(0, 516, text),
            stretch(518, 4, text),
            stretch(523, 5, text),
            stretch(1024, 515, READ | USER),
            stretch(1541, 3, READ | USER),
        ];
        let image = layout.image(0, 2048);
        let found = translations(&rig, &sandbox);
        let found_in_image = found.iter().filter(|&&part| image.contains(part.0) && part != gate);
        assert!(found_in_image.eq(&expected), "{}: {found:x?}", layout.name);
        // The gate is there, or where the host has mapped it once more.
        let (page, count, frame, bits) = gate;
        let gate = (layout.gate_code().start(), count, frame, bits);
        assert_eq!(found.iter().filter(|&&(_, _, at, _)| at == frame).collect::<std::vec::Vec<_>>(), [&gate]);
        assert_eq!(gate.0 == page, !layout.remaps_gate_code);
        audit(&rig, &[&sandbox]);
    }
}

#[test]
fn large_pages_stay_large() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let sandbox = rig.sandbox();
        let blocks: std::vec::Vec<_> =
            view(&rig, &sandbox).leaves.iter().filter(|leaf| leaf.level == 1).map(|leaf| leaf.page).collect();
        assert_eq!(blocks, [layout.image(0, 1).start(), layout.image(1024, 1).start()]);
    }
}

#[test]
fn a_part_of_a_block_is_not_the_block() {
    for &layout in LAYOUTS {
        let mut machine = Machine::new(layout);
        machine.text = [layout.image(10, 518)].into();
        let rig = Rig::stopped(machine).unwrap();
        let sandbox = rig.sandbox();
        assert!(
            view(&rig, &sandbox)
                .leaves
                .iter()
                .all(|leaf| leaf.level == 0 || leaf.page == layout.image(1024, 1).start())
        );
        assert_eq!(unprivileged(&rig, &sandbox)[0].0, layout.image(10, 1).start());
        audit(&rig, &[&sandbox]);
    }
}

#[test]
fn a_sandbox_costs_what_it_has_of_its_own() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let first = rig.sandbox();
        let before = rig.machine.outstanding();
        let second = rig.sandbox();
        // The stack, the tables on its path, and the roots that the image is in.
        let levels = u64::from(layout.levels[layout.roots - 1]);
        assert!((rig.machine.outstanding() - before) as u64 <= super::rig::STACK + levels, "{}", layout.name);
        audit(&rig, &[&first, &second]);
    }
}

#[test]
fn a_view_has_nothing_of_the_other_half() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let low = PageRange::single(layout.last_low());
        rig.machine.map_range(low, rig.machine.take(), 0, Permissions::READ_WRITE);
        let mut sandbox = rig.sandbox();
        assert!(sandbox.view.lookup(sandbox.hal, low.start()).is_none());
        grant(&mut sandbox, low, Permissions::READ).unwrap();
        assert!(sandbox.view.lookup(sandbox.hal, low.start()).is_some());
        audit(&rig, &[&sandbox]);
    }
}

fn refused(machine: Machine) -> Error {
    Rig::stopped(machine).err().expect("this host should be refused")
}

#[test]
fn a_host_that_describes_itself_wrongly_is_refused() {
    for &layout in LAYOUTS {
        let new = || Machine::new(layout);
        let with = |change: &dyn Fn(&mut Machine)| {
            let mut machine = new();
            change(&mut machine);
            refused(machine)
        };
        let small = layout.window(0, 511);
        assert_eq!(with(&|machine| machine.window = small), Error::BadWindow(small));
        let in_use = layout.image(0, 2048);
        assert_eq!(with(&|machine| machine.window = in_use), Error::BadWindow(in_use));
        let at_null = PageRange::new(crate::VirtAddr(0).page(), 512).unwrap();
        assert_eq!(with(&|machine| machine.window = at_null), Error::BadWindow(at_null));
        let text = [layout.image(0, 500)];
        assert_eq!(with(&|machine| machine.text = text.into()), Error::BadImage(layout.gate_text()));
        let unmapped = [layout.image(512, 17)];
        assert_eq!(with(&|machine| machine.text = unmapped.into()), Error::NotMapped(layout.image(528, 1).start()));
        let page = layout.image(1536, 1).start();
        let no_text = [layout.image(512, 16), layout.image(1536, 1)];
        assert_eq!(
            with(&|machine| machine.text = no_text.into()),
            Error::Escalation { page, host: Permissions::READ, wanted: Permissions::READ_EXECUTE }
        );
        let twice = [layout.image(512, 16), layout.image(513, 1)];
        assert_eq!(with(&|machine| machine.text = twice.into()), Error::Overlap(layout.image(513, 1).start()));
        assert_eq!(with(&|machine| machine.cpus = 4097), Error::TooManyCpus { cpus: 4097, most: 4096 });
    }
}

#[test]
fn a_window_does_not_span_the_addresses_that_no_table_translates() {
    for &layout in LAYOUTS {
        let end = layout.window(0, 512).start().checked_add(512).unwrap().start();
        let mut machine = Machine::new(layout);
        machine.window = PageRange::from_addresses(layout.last_low().start(), end).unwrap();
        let window = machine.window;
        assert_eq!(refused(machine), Error::BadWindow(window));
    }
}

#[test]
fn the_image_outlives_many_sandboxes() {
    let rig = Rig::new(LAYOUTS[0]);
    let before = rig.machine.outstanding();
    for _ in 0..50 {
        let sandboxes: [SimSandbox<'_>; 3] = core::array::from_fn(|_| rig.sandbox());
        audit(&rig, &sandboxes.each_ref());
    }
    assert_eq!(rig.machine.outstanding(), before);
}
