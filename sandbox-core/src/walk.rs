//! Reading page tables: the host's, to learn what it may do itself, and a view's.

use crate::addr::{Frame, Page};
use crate::format::{Entry, Format, Leaf, Privilege, Roots, pages_at};
use crate::permissions::Permissions;

/// What a set of tables says about one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The page's own frame.
    pub frame: Frame,
    /// The level of the leaf: 0 for a page, more for a block.
    pub level: u8,
    /// The permissions that remain after every level has had its say.
    pub permissions: Permissions,
    /// The leaf as it stands in the table.
    pub leaf: Leaf,
    /// The leaf's entry itself.
    pub raw: u64,
    /// Whether unprivileged code may use the page, by all levels.
    pub unprivileged: bool,
}

impl Mapping {
    /// How many pages from `page` on, which this maps, the same leaf maps.
    pub(crate) fn pages_from(&self, page: Page) -> u64 {
        pages_at(self.level) - (page.number() & (pages_at(self.level) - 1))
    }
}

/// Looks `page` up. `read` returns an entry of a table.
pub fn walk<F: Format>(format: F, roots: &Roots, page: Page, read: impl Fn(Frame, usize) -> u64) -> Option<Mapping> {
    let root = format.root_of(page.start())?;
    let mut table = roots[root]?;
    let mut limit = Permissions::ALL;
    let mut allowed = true;
    for level in (0..format.levels(root)).rev() {
        let raw = read(table, format.index(page, level));
        match format.decode(level, raw) {
            Entry::Absent => return None,
            Entry::Table { frame, limit: here, unprivileged } => {
                table = frame;
                limit = limit.intersection(here);
                allowed &= unprivileged;
            }
            Entry::Leaf(leaf) => {
                return Some(Mapping {
                    frame: leaf.frame.add(page.number() & (pages_at(level) - 1)),
                    level,
                    permissions: limit.intersection(leaf.permissions),
                    leaf,
                    raw,
                    unprivileged: allowed && leaf.privilege == Privilege::Unprivileged,
                });
            }
        }
    }
    None
}
