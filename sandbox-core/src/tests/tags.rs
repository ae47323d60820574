//! Views under tags, on CPUs that keep what they have cached until somebody flushes it: a stale translation that is used ends
//! the test.

use super::audit::audit;
use super::layout::{LAYOUTS, Layout, TWO_ROOTS, USUAL};
use super::machine::Machine;
use super::model::Random;
use super::processor::{cpu, next, refused};
use super::rig::{Rig, SimSandbox, grant};
use crate::addr::PageRange;
use crate::arch::{Cause, Trap};
use crate::argument::In;
use crate::error::Error;
use crate::permissions::{Access, Permissions};
use crate::run::Progress;

const R: Permissions = Permissions::READ;
const RW: Permissions = Permissions::READ_WRITE;

/// A host that maps nothing globally, and CPU 0 started with these numbers.
fn rig(layout: Layout, first: u16, last: u16) -> Rig {
    let rig = Rig::stopped(Machine::mapped(layout, false)).unwrap();
    rig.start_cpu_with(0, Some((first, last))).unwrap();
    rig
}

fn nothing() {}

/// Runs the sandbox and says under which tag.
fn run(sandbox: &mut SimSandbox<'_>) -> Option<u16> {
    sandbox.call(nothing, ()).unwrap();
    cpu(|cpu| *cpu.tags.last().unwrap())
}

/// Lets the sandbox look at `range`, page by page; whether it could read all of it.
fn reads(sandbox: &mut SimSandbox<'_>, range: PageRange) -> bool {
    next(move |guest| {
        for page in range.pages() {
            guest.reach(page.start().0, Access::Read)?;
        }
        Ok(Trap::Returned)
    });
    sandbox.call(nothing, ()).is_ok()
}

fn flushes() -> usize {
    cpu(|cpu| cpu.tag_flushes)
}

#[test]
fn a_view_keeps_its_tag() {
    for &layout in LAYOUTS {
        let rig = rig(layout, 3, 9);
        let (mut one, mut two) = (rig.sandbox(), rig.sandbox());
        for _ in 0..3 {
            assert_eq!((run(&mut one), run(&mut two)), (Some(3), Some(4)));
        }
        // Nobody knows what was cached when the numbers were given.
        assert_eq!(flushes(), 1);
        drop(one);
        assert_eq!(run(&mut rig.sandbox()), Some(5));
        audit(&rig, &[&two]);
    }
}

#[test]
fn every_change_takes_a_new_tag() {
    let rig = rig(USUAL, 1, 100);
    rig.map_data(0, 8, RW);
    let mut sandbox = rig.sandbox();
    let mut last = run(&mut sandbox);
    let mut changed = |sandbox: &mut SimSandbox<'_>, what: &str| {
        let now = run(sandbox);
        assert!(now.is_some() && now != last, "{what}");
        assert_eq!(run(sandbox), now, "{what}");
        last = now;
    };
    grant(&mut sandbox, rig.layout.data(0, 2), RW).unwrap();
    changed(&mut sandbox, "grant");
    sandbox.restrict(rig.layout.data(0, 1), R).unwrap();
    changed(&mut sandbox, "restrict");
    sandbox.revoke(rig.layout.data(0, 1)).unwrap();
    changed(&mut sandbox, "revoke");
    sandbox.revoke(rig.layout.image(513, 1)).unwrap();
    changed(&mut sandbox, "revoke in the image");
    sandbox.call(|_: &[u8; 5000]| (), (In(&[0; 5000]),)).unwrap();
    changed(&mut sandbox, "a larger buffer");
    // What fails may have changed tables.
    grant(&mut sandbox, rig.layout.data(6, 4), R).unwrap_err();
    changed(&mut sandbox, "a grant that fails");
    // A spurious fault: whatever is cached under the tag is no good.
    let address = sandbox.window.stack().start().start().0;
    next(move |_| Err(refused(address, Access::Read)));
    changed(&mut sandbox, "a stale page");
    rig.start_cpu_with(1, Some((1, 100))).unwrap();
    cpu(|cpu| cpu.index = 0);
    changed(&mut sandbox, "another CPU's gate");
    assert_eq!(flushes(), 1);
}

#[test]
fn numbers_come_back_after_a_flush() {
    let rig = rig(TWO_ROOTS, 7, 8);
    rig.map_data(0, 4, RW);
    let page = |index| rig.layout.data(index, 1);
    let mut sandboxes: [SimSandbox<'_>; 3] = core::array::from_fn(|_| rig.sandbox());
    for (index, sandbox) in (0..).zip(&mut sandboxes) {
        grant(sandbox, page(index), RW).unwrap();
    }
    for round in 0..4 {
        for (index, sandbox) in (0..).zip(&mut sandboxes) {
            assert!(reads(sandbox, page(index)));
            assert!(!reads(sandbox, page((index + 1) % 3)), "round {round}");
        }
    }
    // Three views by turns with two numbers: every other entry of a fresh one begins a generation.
    assert_eq!(flushes(), 6);
    let tags = cpu(|cpu| cpu.tags.clone());
    assert!(tags.iter().all(|tag| matches!(tag, Some(7 | 8))));
    // One number is enough, if not for much.
    let other = self::rig(TWO_ROOTS, 5, 5);
    let (mut one, mut two) = (other.sandbox(), other.sandbox());
    assert_eq!([run(&mut one), run(&mut one), run(&mut two), run(&mut one)], [Some(5); 4]);
    assert_eq!(flushes(), 3);
}

#[test]
fn each_cpu_has_its_own_numbers() {
    let rig = rig(USUAL, 1, 50);
    rig.start_cpu_with(1, Some((1, 50))).unwrap();
    rig.start_cpu_with(2, None).unwrap();
    rig.map_data(0, 4, RW);
    let (mut one, mut two) = (rig.sandbox(), rig.sandbox());
    let on = |index: usize, sandbox: &mut SimSandbox<'_>| {
        cpu(|cpu| cpu.index = index);
        run(sandbox)
    };
    assert_eq!([on(0, &mut one), on(0, &mut two)], [Some(1), Some(2)]);
    // Elsewhere the same numbers are somebody else's.
    assert_eq!([on(1, &mut two), on(1, &mut one)], [Some(1), Some(2)]);
    // Back again, with what was changed meanwhile.
    grant(&mut one, rig.layout.data(0, 1), R).unwrap();
    assert_eq!([on(0, &mut one), on(0, &mut two)], [Some(3), Some(4)]);
    assert!(reads(&mut one, rig.layout.data(0, 1)));
    assert_eq!([on(2, &mut one), on(2, &mut two)], [None, None]);
    assert_eq!(on(0, &mut one), Some(5));
    sandbox_moves_while_suspended(&rig, &mut one);
}

/// A run is left on CPU 0, goes on on CPU 1, and comes back.
fn sandbox_moves_while_suspended(rig: &Rig, sandbox: &mut SimSandbox<'_>) {
    let page = rig.layout.data(0, 1).start().start().0;
    let look = move |then: Trap<u32>| {
        next(move |guest| {
            guest.reach(page, Access::Read)?;
            Ok::<_, Cause>(then)
        })
    };
    let before = cpu(|cpu| cpu.tags.len());
    look(Trap::Interrupt(1));
    look(Trap::Interrupt(1));
    look(Trap::Interrupt(1));
    look(Trap::Returned);
    let mut run = sandbox.start(nothing, ()).unwrap();
    for index in [0, 1, 1, 0] {
        cpu(|cpu| cpu.index = index);
        match run.step().unwrap() {
            Progress::Suspended(rest) => run = rest,
            Progress::Returned(()) => break,
            _ => panic!(),
        }
        if index == 0 {
            // The host takes a CPU into use meanwhile: the view gets its gate with the next entry.
            rig.start_cpu_with(3, None).unwrap();
        }
    }
    let tags = cpu(|cpu| cpu.tags.split_off(before));
    assert_eq!(tags, [Some(5), Some(3), Some(3), Some(6)]);
}

#[test]
fn what_is_global_in_the_host_rules_tags_out() {
    let rig = rig(USUAL, 1, 50);
    rig.map_data(0, 2, RW);
    rig.machine.map_globally(true);
    rig.map_data(2, 2, RW);
    let (mut sandbox, mut other) = (rig.sandbox(), rig.sandbox());
    grant(&mut sandbox, rig.layout.data(0, 2), R).unwrap();
    assert!(run(&mut sandbox).is_some());
    // A grant that comes to nothing leaves nothing.
    rig.machine.limit_allocations(Some(0));
    grant(&mut other, rig.layout.data(2, 1), R).unwrap_err();
    rig.machine.limit_allocations(None);
    assert_eq!(grant(&mut sandbox, rig.layout.data(3, 2), R), Err(Error::NotMapped(rig.layout.data(4, 1).start())));
    assert!(run(&mut sandbox).is_some());
    grant(&mut sandbox, rig.layout.data(2, 1), R).unwrap();
    assert_eq!(run(&mut sandbox), None);
    assert!(run(&mut other).is_some());
    // The host's entry may be cached still.
    sandbox.revoke(rig.layout.data(2, 1)).unwrap();
    assert_eq!(run(&mut sandbox), None);
    // The gate's data of a CPU that came then is global, as in the views.
    rig.start_cpu_with(1, Some((1, 50))).unwrap();
    assert!(run(&mut other).is_some());

    // A host with a global image has no tagged views at all.
    let rig = Rig::stopped(Machine::new(USUAL)).unwrap();
    rig.start_cpu_with(0, Some((1, 50))).unwrap();
    assert_eq!(run(&mut rig.sandbox()), None);
    assert_eq!(flushes(), 0);
}

#[test]
fn the_host_may_change_what_it_took_back() {
    let rig = rig(TWO_ROOTS, 1, 3);
    let data = rig.layout.data(0, 1);
    let mut sandbox = rig.sandbox();
    for _ in 0..6 {
        rig.map_data(0, 1, RW);
        grant(&mut sandbox, data, R).unwrap();
        assert!(reads(&mut sandbox, data));
        sandbox.revoke(data).unwrap();
        assert!(!reads(&mut sandbox, data));
    }
}

/// Views that change, move and come and go at random, on three CPUs with few numbers.
#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn nothing_stale_is_ever_used() {
    for (seed, &layout) in (1..).zip(LAYOUTS) {
        let rig = rig(layout, 1, 4);
        rig.start_cpu_with(1, Some((0, 2))).unwrap();
        rig.start_cpu_with(2, Some((9, 9))).unwrap();
        rig.map_data(0, 24, RW);
        let mut random = Random(0x2545_f491_4f6c_dd1d * seed);
        let mut sandboxes: [SimSandbox<'_>; 4] = core::array::from_fn(|_| rig.sandbox());
        let mut done = [0; 5];
        for _ in 0..3000 {
            cpu(|cpu| cpu.index = random.below(3));
            let which = random.below(sandboxes.len());
            let sandbox = &mut sandboxes[which];
            let range = layout.data(random.below(20) as u64, 1 + random.below(4) as u64);
            let operation = random.below(10);
            let worked = match operation {
                0 => grant(sandbox, range, if random.below(2) == 0 { R } else { RW }).is_ok(),
                1 => sandbox.restrict(range, R).is_ok(),
                2 => sandbox.revoke(range).is_ok(),
                3 => {
                    sandboxes[which] = rig.sandbox();
                    true
                }
                _ => {
                    for page in layout.data(0, 24).pages().filter(|_| random.below(4) == 0) {
                        reads(sandbox, PageRange::single(page));
                    }
                    let stack = sandbox.window.stack();
                    assert!(reads(sandbox, stack) && reads(sandbox, layout.image(513, 1)));
                    true
                }
            };
            done[operation.min(4)] += usize::from(worked);
        }
        assert!(!done.contains(&0), "{done:?}");
        assert!(cpu(|cpu| cpu.tags.iter().all(Option::is_some)));
        audit(&rig, &sandboxes.each_ref());
    }
}
