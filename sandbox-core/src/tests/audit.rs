//! What must hold of all views together, whatever was done before.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use super::layout::{ADDRESS, EXECUTE, GLOBAL, LEAF, PRESENT, READ, SimFormat, USER, USER_EXECUTE, WRITE};
use super::machine::Machine;
use super::rig::{Rig, SimSandbox};
use crate::addr::{Frame, Page};
use crate::format::{Format, Roots, pages_at};
use crate::host::{FrameKind, Host};
use crate::record::FrameUse;

/// A leaf entry and where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapped {
    pub(super) page: Page,
    pub(super) level: u8,
    raw: u64,
    /// In a table of the template's.
    shared: bool,
}

/// All leaves and tables below some roots.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) leaves: Vec<Mapped>,
    pub(super) own_tables: Vec<Frame>,
    shared_tables: Vec<Frame>,
}

pub(super) fn contents(machine: &Machine, roots: &Roots) -> Contents {
    fn visit(machine: &Machine, root: usize, table: Frame, level: u8, base: u64, shared: bool, into: &mut Contents) {
        if shared { &mut into.shared_tables } else { &mut into.own_tables }.push(table);
        let entries = machine.entries(table);
        // Tables are mostly empty, and looking at each entry takes long under Miri.
        let parts = entries.as_chunks::<16>().0.iter().enumerate().filter(|&(_, part)| *part != [0; 16]);
        let entries = parts.flat_map(|(number, part)| (16 * number..).zip(part.iter().copied()));
        for (index, raw) in entries.filter(|&(_, raw)| raw != 0) {
            assert!(raw & PRESENT != 0);
            let number = base + index as u64 * pages_at(level);
            if raw & LEAF != 0 {
                into.leaves.push(Mapped { page: machine.layout.page(root, number), level, raw, shared });
            } else {
                let shared = shared || raw & SimFormat::SHARED != 0;
                visit(machine, root, Frame::containing(raw & ADDRESS), level - 1, number, shared, into);
            }
        }
    }
    let mut into = Contents::default();
    for (root, table) in roots.iter().enumerate() {
        if let Some(table) = *table {
            visit(machine, root, table, machine.layout.levels[root] - 1, 0, false, &mut into);
        }
    }
    into
}

pub(super) fn view(rig: &Rig, sandbox: &SimSandbox<'_>) -> Contents {
    contents(&rig.machine, sandbox.view.tables().roots())
}

/// A stretch of translations: first page, pages, first frame, permission bits.
pub(super) type Stretch = (Page, u64, Frame, u64);

/// What a view translates, however its tables are cut.
pub(super) fn translations(rig: &Rig, sandbox: &SimSandbox<'_>) -> Vec<Stretch> {
    let mut all: Vec<Stretch> = Vec::new();
    for leaf in view(rig, sandbox).leaves {
        let frame = Frame::containing(leaf.raw & ADDRESS);
        let bits = leaf.raw & (READ | WRITE | EXECUTE | USER | USER_EXECUTE);
        let count = pages_at(leaf.level);
        match all.last_mut() {
            Some((page, before, first, same))
                if page.checked_add(*before) == Some(leaf.page) && first.add(*before) == frame && *same == bits =>
            {
                *before += count;
            }
            _ => all.push((leaf.page, count, frame, bits)),
        }
    }
    all
}

/// How many translations a view has for unprivileged code.
pub(super) fn unprivileged(rig: &Rig, sandbox: &SimSandbox<'_>) -> Vec<Stretch> {
    translations(rig, sandbox).into_iter().filter(|&(_, _, _, bits)| bits & USER != 0).collect()
}

/// Checks everything that must hold while `sandboxes` are all there are.
pub(super) fn audit(rig: &Rig, sandboxes: &[&SimSandbox<'_>]) {
    // It looks at each page of everything.
    if cfg!(miri) {
        return;
    }
    let (hal, machine) = (rig.hal(), &*rig.machine);
    let host = hal.host();
    let (gate_text, gate_data) = (rig.layout.gate_code(), rig.layout.gates(0, 24));
    let gate_frames: BTreeSet<Frame> =
        gate_text.pages().chain(gate_data.pages()).filter_map(|page| Some(machine.host_page(page)?.frame)).collect();
    let mut executable: BTreeSet<Frame> = machine
        .text
        .iter()
        .flat_map(|range| range.pages())
        .filter_map(|page| machine.host_page(page).map(|found| found.frame))
        .collect();
    let mut writable = BTreeSet::new();
    let mut claims: BTreeMap<Frame, FrameUse> = BTreeMap::new();
    let mut known: BTreeSet<Frame> = [hal.empty].into();
    known.extend(machine.gates().into_iter().filter(|&frame| machine.is_taken(frame)));

    let (template, own) = hal.template.with(|template| {
        let of = |roots| contents(machine, roots);
        (of(template.tables.roots()), [of(template.gate.roots()), of(template.kept.roots())])
    });
    let shareable: BTreeSet<Frame> = template.own_tables.iter().copied().collect();
    let views = sandboxes.iter().map(|sandbox| view(rig, sandbox));
    let all = [template].into_iter().chain(own).chain(views);
    for (number, Contents { leaves, own_tables, shared_tables }) in all.enumerate() {
        for table in own_tables {
            assert!(known.insert(table), "{table:?} is in two places");
            assert!(machine.is_taken(table));
            assert_eq!(hal.frames.purpose(table), FrameUse::Table);
        }
        for table in shared_tables {
            assert!(number >= 3 && shareable.contains(&table), "{table:?} is not the template's");
        }
        for leaf in leaves {
            assert_eq!(leaf.raw & GLOBAL, 0);
            let user = leaf.raw & USER != 0;
            let (write, execute) = (leaf.raw & WRITE != 0, leaf.raw & (EXECUTE | USER_EXECUTE) != 0);
            assert!(!(write && execute), "{leaf:x?} is writable and executable");
            let owned = leaf.raw & SimFormat::OWNED != 0;
            for offset in 0..pages_at(leaf.level) {
                let page = leaf.page.checked_add(offset).unwrap();
                let frame = Frame::containing(leaf.raw & ADDRESS).add(offset);
                let purpose = hal.frames.purpose(frame);
                if owned {
                    assert!(number >= 3 && user && rig.machine.window.contains(page));
                    assert!(known.insert(frame) && machine.is_taken(frame));
                    assert_eq!(purpose, FrameUse::Private);
                    continue;
                }
                assert!(!machine.window.contains(page));
                let there = machine.host_page(page).unwrap_or_else(|| panic!("the host has nothing at {page:?}"));
                assert_eq!(there.frame, frame);
                assert!(there.write || !write, "{page:?} can be written, but not by the host");
                assert!(there.execute || !execute, "{page:?} can be executed, but not by the host");
                assert_eq!(gate_text.contains(page) || gate_data.contains(page), !user, "{page:?}");
                assert!(!machine.is_taken(frame) || !user);
                if user {
                    assert!(!gate_frames.contains(&frame), "the gate's {frame:?} is at {page:?}");
                    assert_eq!(host.frame_kind(frame), FrameKind::Ram);
                    assert!(!write || !there.execute, "{page:?} can be written, and the host executes it");
                    if write {
                        writable.insert(frame);
                    }
                    if execute {
                        executable.insert(frame);
                    }
                }
            }
            if leaf.raw & SimFormat::CLAIMED != 0 && !leaf.shared && (write || execute) {
                for offset in 0..pages_at(leaf.level) {
                    let frame = Frame::containing(leaf.raw & ADDRESS).add(offset);
                    let count = claims.entry(frame).or_insert(FrameUse::None);
                    *count = match *count {
                        FrameUse::None if write => FrameUse::Writable(1),
                        FrameUse::None => FrameUse::Executable(1),
                        FrameUse::Writable(count) if write => FrameUse::Writable(count + 1),
                        FrameUse::Executable(count) if execute => FrameUse::Executable(count + 1),
                        other => panic!("{frame:?} is written and executed ({other:?})"),
                    };
                }
            }
        }
    }
    assert_eq!(writable.intersection(&executable).next(), None, "writable here, executable there");
    for frame in sandboxes.iter().filter_map(|sandbox| sandbox.vectors.as_ref()).flat_map(|vectors| vectors.frames()) {
        assert!(known.insert(frame) && machine.is_taken(frame));
        assert_eq!(hal.frames.purpose(frame), FrameUse::Private);
    }
    for (&frame, &count) in claims.iter() {
        assert_eq!(hal.frames.purpose(frame), count, "{frame:?}");
    }
    // Whatever the HAL has is for something.
    for frame in machine.taken() {
        let directory = hal.frames.purpose(frame) == FrameUse::Gate;
        assert!(known.contains(&frame) || directory || hal.frames.is_node(frame), "{frame:?} has leaked");
    }
}
