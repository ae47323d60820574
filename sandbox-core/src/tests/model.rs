//! Random changes to several views, compared with what a simple model of grants says.

use std::collections::BTreeMap;
use std::vec::Vec;

use super::audit::{audit, translations};
use super::layout::LAYOUTS;
use super::rig::{Rig, SimSandbox, block_of_frames, grant};
use crate::addr::{Frame, Page, PageRange};
use crate::error::Error;
use crate::permissions::{Access, Permissions};

const R: Permissions = Permissions::READ;
const RW: Permissions = Permissions::READ_WRITE;
const RX: Permissions = Permissions::READ_EXECUTE;

/// Numbers that look random and are the same each time (xorshift).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

const VIEWS: usize = 3;

/// What each view has, page by page.
struct Model {
    host: BTreeMap<Page, (Frame, Permissions)>,
    views: [BTreeMap<Page, Permissions>; VIEWS],
}

impl Model {
    fn clashes(&self, frame: Frame, wanted: Permissions) -> bool {
        let against = match (wanted.allows(Access::Write), wanted.allows(Access::Execute)) {
            (true, _) => Access::Execute,
            (_, true) => Access::Write,
            _ => return false,
        };
        let has = |view: &BTreeMap<Page, Permissions>| {
            view.iter().any(|(page, permissions)| self.host[page].0 == frame && permissions.allows(against))
        };
        self.views.iter().any(has)
    }

    fn grant(&mut self, view: usize, range: PageRange, wanted: Permissions) -> bool {
        let allowed = range.pages().all(|page| {
            let Some(&(frame, has)) = self.host.get(&page) else { return false };
            has.contains(wanted) && !self.views[view].contains_key(&page) && !self.clashes(frame, wanted)
        });
        if allowed {
            self.views[view].extend(range.pages().map(|page| (page, wanted)));
        }
        allowed
    }

    fn restrict(&mut self, view: usize, range: PageRange, wanted: Option<Permissions>) -> bool {
        let has = &mut self.views[view];
        let enough = |page| has.get(&page).is_some_and(|has| has.contains(wanted.unwrap_or(Permissions::NONE)));
        if !range.pages().all(enough) {
            return false;
        }
        for page in range.pages() {
            match wanted {
                Some(permissions) => has.insert(page, permissions),
                None => has.remove(&page),
            };
        }
        true
    }
}

/// Compares a view with the model, page by page.
fn compare(rig: &Rig, sandbox: &SimSandbox<'_>, model: &Model, view: usize, all: &[Page]) {
    for &page in all {
        let found = sandbox.view.lookup(rig.hal(), page).map(|found| (found.frame, found.permissions));
        let expected = model.views[view].get(&page).map(|&permissions| (model.host[&page].0, permissions));
        assert_eq!(found, expected, "{page:?} in view {view}");
    }
}

fn play(layout: super::layout::Layout, seed: u64, steps: usize) {
    let rig = Rig::new(layout);
    let mut random = Random(seed);
    let mut model = Model { host: BTreeMap::new(), views: Default::default() };
    let mut map = |range: PageRange, frame: Frame, level: u8, permissions: Permissions| {
        rig.machine.map_range(range, frame, level, permissions);
        for (offset, page) in range.pages().enumerate() {
            model.host.insert(page, (frame.add(offset as u64), permissions));
        }
    };
    // Pages and blocks, for writing here and for execution there, with nothing at 24 to 28.
    let frame = rig.machine.take_many(32);
    map(layout.data(0, 24), frame, 0, RW);
    map(layout.data(28, 24), frame.add(8), 0, RX);
    let mut all: Vec<Page> = layout.data(0, 60).pages().collect();
    if !cfg!(miri) {
        let block = block_of_frames();
        map(layout.data(512, 512), block, 1, RW);
        map(layout.data(1024, 512), block, 1, RX);
        all.extend(layout.data(512, 1024).pages());
    }

    let mut sandboxes: [SimSandbox<'_>; VIEWS] = core::array::from_fn(|_| rig.sandbox());
    let mut done = [0; 5];
    for step in 0..steps {
        let view = random.below(VIEWS);
        let range = match random.below(4) + if cfg!(miri) { 2 } else { 0 } {
            0 => layout.data(random.pick(&[512, 1024]), 512),
            1 => layout.data(500 + random.below(1000) as u64, 1 + random.below(600) as u64),
            _ => layout.data(random.below(52) as u64, 1 + random.below(8) as u64),
        };
        let wanted = random.pick(&[R, RW, RX]);
        let operation = random.below(8);
        let starved = random.below(4) == 0;
        if starved {
            rig.machine.limit_allocations(Some(random.below(4)));
        }
        let before = (!cfg!(miri)).then(|| translations(&rig, &sandboxes[view]));
        let result = match operation {
            0..=2 => grant(&mut sandboxes[view], range, wanted),
            3 | 4 => sandboxes[view].restrict(range, wanted),
            5 | 6 => sandboxes[view].revoke(range),
            _ => rig.hal().sandbox_with(rig.config()).map(|fresh| sandboxes[view] = fresh),
        };
        rig.machine.limit_allocations(None);
        if starved && result == Err(Error::OutOfFrames) {
            assert!(before.is_none_or(|before| before == translations(&rig, &sandboxes[view])));
            done[4] += 1;
        } else {
            let allowed = match operation {
                0..=2 => model.grant(view, range, wanted),
                3 | 4 => model.restrict(view, range, Some(wanted)),
                5 | 6 => model.restrict(view, range, None),
                _ => {
                    model.views[view].clear();
                    true
                }
            };
            assert_eq!(result.is_ok(), allowed, "{result:?} for {operation} of {range:?}, {wanted} ({})", layout.name);
            if allowed && operation < 7 {
                done[operation / 2] += 1;
            }
        }
        compare(&rig, &sandboxes[view], &model, view, &all);
        if step % 16 == 0 {
            audit(&rig, &sandboxes.each_ref());
        }
    }
    audit(&rig, &sandboxes.each_ref());
    assert!(cfg!(miri) || !done.contains(&0), "{done:?}");
}

#[test]
fn views_are_what_a_model_says() {
    for (number, layout) in LAYOUTS.iter().copied().enumerate() {
        play(layout, 0x9e37_79b9_7f4a_7c15 + number as u64, if cfg!(miri) { 12 } else { 1500 });
    }
}
