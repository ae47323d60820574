//! Taking translations out of tables, and lowering them.
//!
//! Both work in two steps: first all that the change writes is made private, which can fail and changes no translation; then
//! the entries are changed, which cannot fail.

use core::ops::Range;
use core::sync::atomic::Ordering;

use crate::addr::Frame;
use crate::addr::PageRange;
use crate::arch::Arch;
use crate::error::Error;
use crate::format::{ENTRIES, Entry, Format, Leaf, pages_at};
use crate::frames::Frames;
use crate::host::Host;
use crate::permissions::{Access, Permissions};
use crate::tables::{Change, Tables, is_shared};

/// Which entries of a table a change reaches, and what for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To remove translations: what the template has goes as a whole, where all of it goes.
    Remove,
    /// To rewrite leaves: each must be in a private table.
    Rewrite,
}

impl<F: Format> Tables<F> {
    /// Removes every translation in `range`; what was not mapped stays so. All or nothing.
    pub(crate) fn unmap<H: Host, A: Arch>(&mut self, frames: &Frames<H, A>, range: PageRange) -> Result<Change, Error> {
        self.for_each_root(range, |root, level, part| self.isolate(frames, root, level, 0, part, Purpose::Remove))?;
        self.for_each_root(range, |root, level, part| {
            self.clear(frames, root, level, 0, part);
            Ok(())
        })?;
        Ok(Change::Lowered)
    }

    /// Restricts every translation in `range` to `permissions`, which must be a subset of what each has and include reading.
    /// All of the range must be mapped. All or nothing.
    pub(crate) fn protect<H: Host, A: Arch>(
        &mut self,
        frames: &Frames<H, A>,
        range: PageRange,
        permissions: Permissions,
    ) -> Result<Change, Error> {
        if !permissions.allows(Access::Read) || permissions.writable_and_executable() {
            return Err(Error::BadPermissions(permissions));
        }
        let mut rest = range;
        while !rest.is_empty() {
            let page = rest.start();
            let mapping = self.lookup(frames, page).ok_or(Error::NotGranted(page))?;
            if mapping.permissions.downgrade(permissions).is_none() {
                return Err(Error::Escalation { page, host: mapping.permissions, wanted: permissions });
            }
            rest = rest.skip(mapping.pages_from(page));
        }
        self.for_each_root(range, |root, level, part| self.isolate(frames, root, level, 0, part, Purpose::Rewrite))?;
        self.for_each_root(range, |root, level, part| {
            self.lower(frames, root, level, 0, part, permissions);
            Ok(())
        })?;
        Ok(Change::Lowered)
    }

    /// Calls `f` with each root, its level and the part of `range` that one of its entries translates, as page numbers from
    /// the root's first.
    fn for_each_root(
        &self,
        range: PageRange,
        mut f: impl FnMut(Frame, u8, Range<u64>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let format = self.format();
        let mut rest = range;
        while !rest.is_empty() {
            let page = rest.start();
            let root = format.root_of(page.start()).ok_or(Error::NonCanonical(page.start()))?;
            let level = format.levels(root) - 1;
            let first = page.number() & (format.pages(root) - 1);
            // Entry by entry: behind the last one before addresses that cannot be translated comes another root, or the same
            // one's first entry for high addresses.
            let part = rest.take(pages_at(level) - (first & (pages_at(level) - 1)));
            if let Some(table) = self.roots()[root] {
                f(table, level, first..first + part.count())?;
            }
            rest = rest.skip(part.count());
        }
        Ok(())
    }

    /// Makes private what a change of the pages `range` below `table` writes, where the table's first entry translates page
    /// `base`. Afterwards each leaf is wholly inside the range or wholly outside.
    fn isolate<H: Host, A: Arch>(
        &self,
        frames: &Frames<H, A>,
        table: Frame,
        level: u8,
        base: u64,
        range: Range<u64>,
        purpose: Purpose,
    ) -> Result<(), Error> {
        for (index, start, whole) in entries(level, base, &range) {
            let inside = match self.format().decode(level, frames.read(table, index)) {
                Entry::Absent => false,
                Entry::Leaf(_) => !whole,
                Entry::Table { .. } => !whole || purpose == Purpose::Rewrite,
            };
            if inside && let Some(below) = self.private_table(frames, table, index, level)? {
                self.isolate(frames, below, level - 1, start, range.clone(), purpose)?;
            }
        }
        Ok(())
    }

    /// Unmaps the pages `range` below `table`, which were isolated. Returns whether the table is empty now.
    fn clear<H: Host, A: Arch>(
        &self,
        frames: &Frames<H, A>,
        table: Frame,
        level: u8,
        base: u64,
        range: Range<u64>,
    ) -> bool {
        for (index, start, _) in entries(level, base, &range) {
            let raw = frames.read(table, index);
            match self.format().decode(level, raw) {
                Entry::Absent => {}
                Entry::Leaf(leaf) => {
                    frames.write(table, index, 0);
                    self.release(frames, raw, level, leaf);
                }
                Entry::Table { .. } if is_shared::<F>(raw) => frames.write(table, index, 0),
                Entry::Table { frame, .. } => {
                    if self.clear(frames, frame, level - 1, start, range.clone()) && !self.is_lasting() {
                        frames.write(table, index, 0);
                        // SAFETY: (1) a private table, empty, whose entry has just been cleared; see `destroy_table`.
                        unsafe { frames.free(frame) };
                    }
                }
            }
        }
        frames.table(table).iter().all(|entry| entry.load(Ordering::Relaxed) == 0)
    }

    /// Restricts the pages `range` below `table`, which were isolated.
    fn lower<H: Host, A: Arch>(
        &self,
        frames: &Frames<H, A>,
        table: Frame,
        level: u8,
        base: u64,
        range: Range<u64>,
        permissions: Permissions,
    ) {
        for (index, start, _) in entries(level, base, &range) {
            let raw = frames.read(table, index);
            match self.format().decode(level, raw) {
                Entry::Leaf(leaf) if leaf.permissions != permissions => {
                    let bits = raw & (F::OWNED | F::CLAIMED);
                    frames.write(table, index, self.format().encode_leaf(level, Leaf { permissions, ..leaf }) | bits);
                    // What is left of a smaller set never writes or executes, so nothing is counted in its place.
                    self.unclaim(frames, raw, level, leaf);
                }
                Entry::Table { frame, .. } => self.lower(frames, frame, level - 1, start, range.clone(), permissions),
                Entry::Leaf(_) | Entry::Absent => {}
            }
        }
    }
}

/// The entries of a table at `level`, whose first translates page `base`, that translate any page of `range`: the index, the
/// first page, and whether all pages are in the range.
fn entries(level: u8, base: u64, range: &Range<u64>) -> impl Iterator<Item = (usize, u64, bool)> + use<> {
    let step = pages_at(level);
    let range = range.clone();
    let first = (range.start.max(base) - base) / step;
    (first..ENTRIES as u64)
        .map(move |index| (index as usize, base + index * step))
        .take_while(move |&(_, start)| start < range.end)
        .map({
            let Range { start: from, end } = range.clone();
            move |(index, start)| (index, start, from <= start && start + step <= end)
        })
}
