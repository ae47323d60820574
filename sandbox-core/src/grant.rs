//! Taking pages of the host's over into a view, checked against the host's own permissions.
//!
//! What must hold: nothing is granted that the host's privileged mode does not have itself; nothing that can be written can
//! be executed anywhere; frames that the HAL needs for itself are granted to nobody.

use crate::addr::PageRange;
use crate::arch::Arch;
use crate::error::Error;
use crate::format::{Format, Leaf, Privilege, Roots, bytes_at, pages_at};
use crate::frames::Frames;
use crate::host::Host;
use crate::permissions::{Access, Permissions};
use crate::tables::{Change, Ownership, Tables};
use crate::walk::walk;

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
        let global = tables.has_global();
        while !rest.is_empty() {
            match self.grant_one(tables, rest) {
                Ok(pages) => rest = rest.skip(pages),
                Err(error) => {
                    let done = range.take(range.count() - rest.count());
                    // Only what was just added goes away again, whole leaves in tables that are private by now: this cannot fail.
                    let _ = tables.unmap(self.frames, done);
                    tables.set_global(global);
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
        // What is executable for the host's user programs is not so for the host itself; the leaf alone decides whose permission
        // to execute it tells, even where a level above keeps user programs out.
        let host = match mapping.leaf.privilege {
            Privilege::Unprivileged => mapping.permissions.intersection(Permissions::READ_WRITE),
            Privilege::Privileged => mapping.permissions,
        };
        let Some(permissions) = host.downgrade(self.permissions) else {
            return Err(Error::Escalation { page, host, wanted: self.permissions });
        };
        // What the sandbox writes must not be something that is executed outside it.
        if permissions.allows(Access::Write) && mapping.permissions.allows(Access::Execute) {
            return Err(Error::WritableAndExecutable(page));
        }
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
        // The gate's own pages are the same in all address spaces.
        if self.privilege == Privilege::Unprivileged && self.format.is_global(mapping.raw) {
            tables.set_global(true);
        }
        Ok(pages)
    }
}
