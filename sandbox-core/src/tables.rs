//! Writing page tables: those of a view, of the image template, of the gate.
//!
//! Tables begin empty; pages are added, restricted and removed. What must hold:
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
//! while a stale entry could still be *used*; a view is changed only while it isn't running, and every entry passes
//! through a root switch that drops what is stale.

use crate::addr::{Frame, Page, PageRange};
use crate::arch::Arch;
use crate::error::Error;
use crate::format::{ENTRIES, Entry, Format, Leaf, Privilege, Roots, bytes_at, pages_at};
use crate::frames::Frames;
use crate::host::Host;
use crate::permissions::{Access, Permissions};
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
        Tables { format, roots: [None; 2] }
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
        let mut copy = Tables::new(self.format);
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
        let (table, index) = self.descend(frames, page, level)?;
        if self.format.decode(level, frames.read(table, index)) != Entry::Absent {
            return Err(Error::Overlap(page));
        }
        frames.write(table, index, self.format.encode_leaf(level, leaf) | mark::<F>(owner));
        Ok(Change::Added)
    }

    /// Finds the entry for `page` at `level`, making, copying and splitting tables on the way.
    fn descend<H: Host, A: Arch>(
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
    fn private_table<H: Host, A: Arch>(
        &self,
        frames: &Frames<H, A>,
        table: Frame,
        index: usize,
        level: u8,
    ) -> Result<Option<Frame>, Error> {
        let raw = frames.read(table, index);
        let new = match self.format.decode(level, raw) {
            Entry::Absent => return Ok(None),
            Entry::Table { frame, .. } if raw & F::SHARED == 0 => return Ok(Some(frame)),
            Entry::Table { frame, .. } => copy_shared(self.format, frames, frame, level - 1)?,
            Entry::Leaf(leaf) => {
                let new = frames.allocate(FrameUse::Table)?;
                for part in 0..ENTRIES {
                    let leaf = Leaf { frame: leaf.frame.add(part as u64 * pages_at(level - 1)), ..leaf };
                    let bits = raw & (F::OWNED | F::CLAIMED);
                    frames.write(new, part, self.format.encode_leaf(level - 1, leaf) | bits);
                }
                new
            }
        };
        frames.write(table, index, self.format.encode_table(new));
        Ok(Some(new))
    }

    /// Removes every translation in `range`; what was not mapped stays so.
    pub(crate) fn unmap<H: Host, A: Arch>(&mut self, frames: &Frames<H, A>, range: PageRange) -> Result<Change, Error> {
        self.for_each_root(range, |tables, root, level, range| {
            tables.unmap_below(frames, root, level, 0, range).map(drop)
        })?;
        Ok(Change::Lowered)
    }

    /// Restricts every translation in `range` to `permissions`, which must be a subset of what each has and include reading.
    /// All of the range must be mapped.
    pub(crate) fn protect<H: Host, A: Arch>(
        &mut self,
        frames: &Frames<H, A>,
        range: PageRange,
        permissions: Permissions,
    ) -> Result<Change, Error> {
        if !permissions.allows(Access::Read) || permissions.writable_and_executable() {
            return Err(Error::BadPermissions(permissions));
        }
        for page in range.pages() {
            let mapping = self.lookup(frames, page).ok_or(Error::NotGranted(page))?;
            if mapping.permissions.downgrade(permissions).is_none() {
                return Err(Error::Escalation { page, host: mapping.permissions, wanted: permissions });
            }
        }
        // First every table that must be private, which can fail; then the entries, which cannot.
        for page in range.pages() {
            self.descend(frames, page, 0)?;
        }
        for page in range.pages() {
            let (table, index) = self.descend(frames, page, 0)?;
            let raw = frames.read(table, index);
            match self.format.decode(0, raw) {
                Entry::Leaf(leaf) if leaf.permissions != permissions => {
                    // What is left of a smaller set never writes or executes, so nothing is counted in its place.
                    if ownership::<F>(raw) == Ownership::Claimed {
                        frames.unclaim(leaf.frame, leaf.permissions);
                    }
                    let bits = raw & (F::OWNED | F::CLAIMED);
                    frames.write(table, index, self.format.encode_leaf(0, Leaf { permissions, ..leaf }) | bits);
                }
                _ => {}
            }
        }
        Ok(Change::Lowered)
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
        for index in 0..ENTRIES {
            let raw = frames.read(table, index);
            match self.format.decode(level, raw) {
                Entry::Absent => {}
                Entry::Leaf(leaf) => self.release(frames, raw, level, leaf),
                Entry::Table { frame, .. } if raw & F::SHARED == 0 => self.destroy_table(frames, frame, level - 1),
                Entry::Table { .. } => {}
            }
        }
        // SAFETY: (1) private tables come from `allocate`; the only entry that pointed to this one is going away with its table or
        // has been taken, and no CPU uses these tables: a view is only destroyed when it isn't running, and cached walks
        // are dropped before its roots could be used again.
        unsafe { frames.free(table) };
    }

    /// Gives back what a leaf that is going away stands for.
    fn release<H: Host, A: Arch>(&self, frames: &Frames<H, A>, raw: u64, level: u8, leaf: Leaf) {
        match ownership::<F>(raw) {
            // SAFETY: (1) owned frames come from `allocate`, and this leaf was the only thing that referred to the frame, by
            // the rule at the top; the view isn't running.
            Ownership::Owned => unsafe { frames.free(leaf.frame) },
            Ownership::Claimed => {
                for page in 0..pages_at(level) {
                    frames.unclaim(leaf.frame.add(page), leaf.permissions);
                }
            }
            Ownership::Borrowed => {}
        }
    }

    /// Calls `f` for each root with its level and the part of `range` that it translates, as page numbers from the root's
    /// first.
    fn for_each_root(
        &mut self,
        range: PageRange,
        mut f: impl FnMut(&mut Self, Frame, u8, core::ops::Range<u64>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut rest = range;
        while !rest.is_empty() {
            let page = rest.start();
            let root = self.format.root_of(page.start()).ok_or(Error::NonCanonical(page.start()))?;
            let pages = self.format.pages(root);
            let first = page.number() & (pages - 1);
            let part = rest.take(pages - first);
            if let Some(table) = self.roots[root] {
                f(self, table, self.format.levels(root) - 1, first..first + part.count())?;
            }
            rest = rest.skip(part.count());
        }
        Ok(())
    }

    /// Unmaps the pages `range` below `table`, whose first entry translates page `base`. Returns whether the table is empty
    /// now.
    fn unmap_below<H: Host, A: Arch>(
        &mut self,
        frames: &Frames<H, A>,
        table: Frame,
        level: u8,
        base: u64,
        range: core::ops::Range<u64>,
    ) -> Result<bool, Error> {
        let step = pages_at(level);
        let first = ((range.start.max(base) - base) / step) as usize;
        for index in first..ENTRIES {
            let start = base + index as u64 * step;
            if start >= range.end {
                break;
            }
            let whole = range.start <= start && start + step <= range.end;
            let raw = frames.read(table, index);
            match self.format.decode(level, raw) {
                Entry::Absent => {}
                Entry::Leaf(leaf) if whole => {
                    frames.write(table, index, 0);
                    self.release(frames, raw, level, leaf);
                }
                Entry::Table { .. } if whole && raw & F::SHARED != 0 => frames.write(table, index, 0),
                _ => {
                    if let Some(below) = self.private_table(frames, table, index, level)?
                        && self.unmap_below(frames, below, level - 1, start, range.clone())?
                    {
                        frames.write(table, index, 0);
                        // SAFETY: (1) a private table, empty, whose entry has just been cleared; see `destroy_table`.
                        unsafe { frames.free(below) };
                    }
                }
            }
        }
        Ok((0..ENTRIES).all(|index| frames.read(table, index) == 0))
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
    for index in 0..ENTRIES {
        let raw = frames.read(table, index);
        if raw == 0 {
            continue;
        }
        let raw = match format.decode(level, raw) {
            Entry::Absent => 0,
            Entry::Table { .. } => raw | F::SHARED,
            Entry::Leaf(_) => raw & !(F::OWNED | F::CLAIMED),
        };
        frames.write(copy, index, raw);
    }
    Ok(copy)
}

/// Takes pages of the host's over into tables of the HAL's, checked against the host's own permissions.
pub(crate) struct HostGrant<'a, F: Format, H: Host, A: Arch> {
    pub(crate) frames: &'a Frames<H, A>,
    pub(crate) format: F,
    pub(crate) host_roots: &'a Roots,
    pub(crate) privilege: Privilege,
    pub(crate) permissions: Permissions,
}

impl<F: Format, H: Host, A: Arch> HostGrant<'_, F, H, A> {
    /// Grants `range` in `tables`, in blocks as large as the host's where they fit; all of it or nothing.
    pub(crate) fn grant(&self, tables: &mut Tables<F>, range: PageRange) -> Result<Change, Error> {
        let mut rest = range;
        while !rest.is_empty() {
            match self.grant_one(tables, rest) {
                Ok(pages) => rest = rest.skip(pages),
                Err(error) => {
                    let done = range.take(range.count() - rest.count());
                    // Only what was just added goes away again, in tables that are private by now: this cannot fail.
                    let _ = tables.unmap(self.frames, done);
                    return Err(error);
                }
            }
        }
        Ok(Change::Added)
    }

    /// Grants the largest block that `rest` begins with; returns its pages.
    fn grant_one(&self, tables: &mut Tables<F>, rest: PageRange) -> Result<u64, Error> {
        let page = rest.start();
        if self.format.root_of(page.start()).is_none() {
            return Err(Error::NonCanonical(page.start()));
        }
        let mapping = walk(self.format, self.host_roots, page, |table, index| self.frames.read(table, index))
            .ok_or(Error::NotMapped(page))?;
        let Some(permissions) = mapping.permissions.downgrade(self.permissions) else {
            return Err(Error::Escalation { page, host: mapping.permissions, wanted: self.permissions });
        };
        let level = (0..=mapping.level)
            .rev()
            .find(|&level| page.start().0.is_multiple_of(bytes_at(level)) && rest.count() >= pages_at(level))
            .unwrap_or(0);
        let pages = pages_at(level);
        let leaf = Leaf { frame: mapping.frame, permissions, privilege: self.privilege, memory: mapping.leaf.memory };
        // The gate is the HAL's business and not claimed: it is privileged in every view.
        let owner = if self.privilege == Privilege::Privileged { Ownership::Borrowed } else { Ownership::Claimed };
        let mut claimed = 0;
        let result = (|| {
            while owner == Ownership::Claimed && claimed < pages {
                let page = page.checked_add(claimed).ok_or(Error::NonCanonical(page.start()))?;
                self.frames.claim(page, mapping.frame.add(claimed), permissions)?;
                claimed += 1;
            }
            tables.map(self.frames, page, level, leaf, owner)
        })();
        if let Err(error) = result {
            for index in 0..claimed {
                self.frames.unclaim(mapping.frame.add(index), permissions);
            }
            return Err(error);
        }
        Ok(pages)
    }
}
