//! Writing page tables: those of a view, of the image template, of the gate.
//!
//! Tables begin empty; pages are added here, restricted and removed in `changes`. What must hold:
//!
//! * A table entry marked shared points into the template's tables. They are never written through a view: whoever changes
//!   something below copies the tables on the path first, and only those.
//! * A leaf marked owned is a frame that goes back to the host with its mapping; one marked claimed is a frame of the
//!   host's that is counted in the record. Copies of shared leaves are neither.
//! * An operation that fails leaves every translation as it was. It may leave empty or copied tables, which go back with
//!   the rest.
//!
//! The TLB contract: operations return a [`Change`]. After [`Change::Added`] nothing needs to be done, since no CPU that this
//! HAL runs on caches the absence of a translation. After [`Change::Lowered`] stale translations may be cached wherever the
//! tables were in use: they must not be used again before those are gone, and frames must not be given back to the host
//! while a stale entry could still be *used*; a view is changed only while it isn't running, and every entry either drops
//! what is stale on its way or runs under a tag that the view has not had before (`tags`).

use core::sync::atomic::Ordering;

use crate::addr::{Frame, Page, PageRange};
use crate::arch::Arch;
use crate::error::Error;
use crate::format::{Entry, Format, Leaf, MAX_ROOTS, Roots, pages_at};
use crate::frames::Frames;
use crate::host::Host;
use crate::record::FrameUse;
use crate::walk::{Mapping, walk};

/// What an operation means for cached translations.
#[must_use = "cached translations may be stale"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Only pages that had no translation got one.
    Added,
    /// Translations were removed or restricted.
    Lowered,
}

/// Who a new leaf's frame belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ownership {
    /// The tables': it goes back to the host when unmapped.
    Owned,
    /// The host's, claimed in the record.
    Claimed,
    /// Somebody else's, with nothing to give back.
    Borrowed,
}

/// A set of page tables.
pub(crate) struct Tables<F: Format> {
    format: F,
    roots: Roots,
    /// Other tables share these, and CPUs may run on those at any time: what they are made of stays until the end, even
    /// when nothing is left in it.
    lasting: bool,
    /// Something here is, or was, a page of the host's that the host maps globally.
    global: bool,
}

/// Whether the table that a table entry points to is the template's.
pub(crate) fn is_shared<F: Format>(raw: u64) -> bool {
    raw & F::SHARED != 0
}

/// What the HAL's bits of a leaf entry say.
fn ownership<F: Format>(raw: u64) -> Ownership {
    if raw & F::OWNED != 0 {
        Ownership::Owned
    } else if raw & F::CLAIMED != 0 {
        Ownership::Claimed
    } else {
        Ownership::Borrowed
    }
}

fn mark<F: Format>(ownership: Ownership) -> u64 {
    match ownership {
        Ownership::Owned => F::OWNED,
        Ownership::Claimed => F::CLAIMED,
        Ownership::Borrowed => 0,
    }
}

impl<F: Format> Tables<F> {
    pub(crate) const fn new(format: F) -> Self {
        Tables { format, roots: [None; MAX_ROOTS], lasting: false, global: false }
    }

    /// Tables that others are going to share.
    pub(crate) const fn lasting(format: F) -> Self {
        Tables { lasting: true, ..Tables::new(format) }
    }

    /// Whether others share these tables.
    pub(crate) fn is_lasting(&self) -> bool {
        self.lasting
    }

    /// Whether a page of the host's that the host maps globally was taken over.
    pub(crate) fn has_global(&self) -> bool {
        self.global
    }

    /// Says whether one was.
    pub(crate) fn set_global(&mut self, global: bool) {
        self.global = global;
    }

    pub(crate) fn format(&self) -> F {
        self.format
    }

    /// The roots; `None` where nothing is mapped.
    pub(crate) fn roots(&self) -> &Roots {
        &self.roots
    }

    /// What is mapped at `page`.
    pub(crate) fn lookup<H: Host, A: Arch>(&self, frames: &Frames<H, A>, page: Page) -> Option<Mapping> {
        walk(self.format, &self.roots, page, |table, index| frames.read(table, index))
    }

    /// Tables with the same content as `self`, all of it shared.
    pub(crate) fn share<H: Host, A: Arch>(&self, frames: &Frames<H, A>) -> Result<Self, Error> {
        let mut copy = Tables { global: self.global, ..Tables::new(self.format) };
        for (index, root) in self.roots.iter().enumerate() {
            if let Some(root) = *root {
                let level = self.format.levels(index) - 1;
                match copy_shared(self.format, frames, root, level) {
                    Ok(table) => copy.roots[index] = Some(table),
                    Err(error) => {
                        copy.destroy(frames);
                        return Err(error);
                    }
                }
            }
        }
        Ok(copy)
    }

    /// Maps `leaf` at `level`, where `page` and the leaf's frame begin a block of that level.
    pub(crate) fn map<H: Host, A: Arch>(
        &mut self,
        frames: &Frames<H, A>,
        page: Page,
        level: u8,
        leaf: Leaf,
        owner: Ownership,
    ) -> Result<Change, Error> {
        // Before anything is copied or split on the way.
        let block = PageRange::new(page, pages_at(level)).ok_or(Error::NonCanonical(page.start()))?;
        if let Some(page) = Tables::first_mapped(self.format, &self.roots, frames, block) {
            return Err(Error::Overlap(page));
        }
        let (table, index) = self.descend(frames, page, level)?;
        let raw = frames.read(table, index);
        match self.format.decode(level, raw) {
            Entry::Absent => {}
            // Without content, as has been seen: left behind by something that failed.
            Entry::Table { .. } if self.lasting => return Err(Error::Overlap(page)),
            Entry::Table { .. } if is_shared::<F>(raw) => {}
            Entry::Table { frame, .. } => {
                frames.write(table, index, 0);
                self.destroy_table(frames, frame, level - 1);
            }
            Entry::Leaf(_) => return Err(Error::Overlap(page)),
        }
        frames.write(table, index, self.format.encode_leaf(level, leaf) | mark::<F>(owner));
        Ok(Change::Added)
    }

    /// Finds the entry for `page` at `level`, making, copying and splitting tables on the way.
    pub(crate) fn descend<H: Host, A: Arch>(
        &mut self,
        frames: &Frames<H, A>,
        page: Page,
        level: u8,
    ) -> Result<(Frame, usize), Error> {
        let root = self.format.root_of(page.start()).ok_or(Error::NonCanonical(page.start()))?;
        let mut table = match self.roots[root] {
            Some(table) => table,
            None => *self.roots[root].insert(frames.allocate(FrameUse::Table)?),
        };
        for upper in (level + 1..self.format.levels(root)).rev() {
            let index = self.format.index(page, upper);
            table = match self.private_table(frames, table, index, upper)? {
                Some(table) => table,
                None => {
                    let new = frames.allocate(FrameUse::Table)?;
                    frames.write(table, index, self.format.encode_table(new));
                    new
                }
            };
        }
        Ok((table, self.format.index(page, level)))
    }

    /// The table that entry `index` of `table` points to, after making it private; `None` if the entry is absent.
    pub(crate) fn private_table<H: Host, A: Arch>(
        &self,
        frames: &Frames<H, A>,
        table: Frame,
        index: usize,
        level: u8,
    ) -> Result<Option<Frame>, Error> {
        let raw = frames.read(table, index);
        let new = match self.format.decode(level, raw) {
            Entry::Absent => return Ok(None),
            Entry::Table { frame, .. } if !is_shared::<F>(raw) => return Ok(Some(frame)),
            Entry::Table { frame, .. } => copy_shared(self.format, frames, frame, level - 1)?,
            Entry::Leaf(leaf) => {
                let new = frames.allocate(FrameUse::Table)?;
                for (part, entry) in frames.table(new).iter().enumerate() {
                    let leaf = Leaf { frame: leaf.frame.add(part as u64 * pages_at(level - 1)), ..leaf };
                    let bits = raw & (F::OWNED | F::CLAIMED);
                    entry.store(self.format.encode_leaf(level - 1, leaf) | bits, Ordering::Release);
                }
                new
            }
        };
        frames.write(table, index, self.format.encode_table(new));
        Ok(Some(new))
    }

    /// Whether anything is mapped in `range`, and where first.
    pub(crate) fn first_mapped<H: Host, A: Arch>(
        format: F,
        roots: &Roots,
        frames: &Frames<H, A>,
        range: PageRange,
    ) -> Option<Page> {
        let mut rest = range;
        while !rest.is_empty() {
            let page = rest.start();
            let root = format.root_of(page.start())?;
            let mut table = roots[root];
            let mut step = format.pages(root);
            for level in (0..format.levels(root)).rev() {
                let Some(frame) = table else { break };
                step = pages_at(level);
                match format.decode(level, frames.read(frame, format.index(page, level))) {
                    Entry::Absent => break,
                    Entry::Leaf(_) => return Some(page),
                    Entry::Table { frame, .. } => table = Some(frame),
                }
            }
            rest = rest.skip(step - (page.number() & (step - 1)));
        }
        None
    }

    /// Gives back all tables, all owned frames and all claims.
    pub(crate) fn destroy<H: Host, A: Arch>(&mut self, frames: &Frames<H, A>) {
        for root in 0..self.roots.len() {
            if let Some(table) = self.roots[root].take() {
                self.destroy_table(frames, table, self.format.levels(root) - 1);
            }
        }
    }

    fn destroy_table<H: Host, A: Arch>(&self, frames: &Frames<H, A>, table: Frame, level: u8) {
        for entry in frames.table(table) {
            let raw = entry.load(Ordering::Relaxed);
            if raw == 0 {
                continue;
            }
            match self.format.decode(level, raw) {
                Entry::Absent => {}
                Entry::Leaf(leaf) => self.release(frames, raw, level, leaf),
                Entry::Table { frame, .. } if !is_shared::<F>(raw) => self.destroy_table(frames, frame, level - 1),
                Entry::Table { .. } => {}
            }
        }
        // SAFETY: (1) private tables come from `allocate`; the only entry that pointed to this one is going away with its table or
        // has been taken, and no CPU uses these tables: a view is only destroyed when it isn't running, and cached walks
        // are dropped, or left under a tag that nobody has, before its roots could be used again.
        unsafe { frames.free(table) };
    }

    /// Gives back what a leaf that is going away stands for.
    pub(crate) fn release<H: Host, A: Arch>(&self, frames: &Frames<H, A>, raw: u64, level: u8, leaf: Leaf) {
        match ownership::<F>(raw) {
            // SAFETY: (1) owned frames come from `allocate`, and this leaf was the only thing that referred to the frame, by
            // the rule at the top; the view isn't running.
            Ownership::Owned => unsafe { frames.free(leaf.frame) },
            Ownership::Claimed => self.unclaim(frames, raw, level, leaf),
            Ownership::Borrowed => {}
        }
    }

    /// Takes back what was counted for a leaf, if that was.
    pub(crate) fn unclaim<H: Host, A: Arch>(&self, frames: &Frames<H, A>, raw: u64, level: u8, leaf: Leaf) {
        if ownership::<F>(raw) == Ownership::Claimed {
            for page in 0..pages_at(level) {
                frames.unclaim(leaf.frame.add(page), leaf.permissions);
            }
        }
    }
}

/// A copy of `table` in which everything is shared.
fn copy_shared<F: Format, H: Host, A: Arch>(
    format: F,
    frames: &Frames<H, A>,
    table: Frame,
    level: u8,
) -> Result<Frame, Error> {
    let copy = frames.allocate(FrameUse::Table)?;
    for (from, to) in frames.table(table).iter().zip(frames.table(copy)) {
        let raw = from.load(Ordering::Relaxed);
        if raw == 0 {
            continue;
        }
        let raw = match format.decode(level, raw) {
            Entry::Absent => 0,
            Entry::Table { .. } => raw | F::SHARED,
            Entry::Leaf(_) => raw & !(F::OWNED | F::CLAIMED),
        };
        to.store(raw, Ordering::Release);
    }
    Ok(copy)
}
