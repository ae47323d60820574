//! What a page table's entries look like: the one thing about translation that differs between architectures.
//!
//! All formats here have 4 KiB pages and tables of 512 eight-byte entries in one frame; level 0 holds the pages, each
//! level above covers 512 times as much per entry. Three bits of an entry that hardware ignores are the HAL's: one on a
//! table entry says that the subtree is shared (it belongs to the image template), two on a leaf whose frame it is. With
//! them a view's tables *are* the record of what it must give back.

use crate::addr::{Frame, PAGE_SHIFT, Page, VirtAddr};
use crate::permissions::Permissions;

/// Entries in a table.
pub const ENTRIES: usize = 512;
/// The most levels a format may have.
pub const MAX_LEVELS: u8 = 5;
/// The most table roots that translate together (AArch64 has one for each half of the address space).
pub const MAX_ROOTS: usize = 2;

/// Roots of a set of tables. Index 0 translates low addresses (or all, where there is one root), index 1 high ones.
pub type Roots = [Option<Frame>; MAX_ROOTS];

/// How the memory behind a leaf is to be cached and shared, in the format's own bits, made independent of the level.
/// It is only ever copied from the host's tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct MemoryType(pub u64);

/// Who may use a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Privilege {
    /// Only the privileged mode: the gate.
    Privileged,
    /// Unprivileged code: everything else in a view.
    Unprivileged,
}

/// A decoded entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Translates nothing.
    Absent,
    /// Points to the table of the next lower level.
    Table {
        /// The table.
        frame: Frame,
        /// What the entry leaves of the permissions below it (hierarchical bits).
        limit: Permissions,
        /// Whether unprivileged code may use anything below it.
        unprivileged: bool,
    },
    /// Maps a page or, above level 0, a block.
    Leaf(Leaf),
}

/// What a leaf entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// First frame of the page or block.
    pub frame: Frame,
    /// What the code that [`privilege`](Leaf::privilege) names may do with it, as far as this entry decides. Of the host's
    /// own tables only privileged leaves matter; that what is executable for user code is not so for the kernel is seen to
    /// by whoever grants.
    pub permissions: Permissions,
    /// Who may use it.
    pub privilege: Privilege,
    /// How it is cached.
    pub memory: MemoryType,
}

/// An architecture's page-table format, with the parameters that the machine was started with.
pub trait Format: Copy + Send + Sync + 'static {
    /// Bit of a table entry that hardware ignores: the table below belongs to the image template.
    const SHARED: u64;
    /// Bit of a leaf entry that hardware ignores: the frame is the view's own and goes back with it.
    const OWNED: u64;
    /// Bit of a leaf entry that hardware ignores: the frame is the host's, and the record counts this use of it.
    const CLAIMED: u64;

    /// How many levels tables under root `root` have (at most [`MAX_LEVELS`]).
    fn levels(&self, root: usize) -> u8;

    /// Which root translates `address`; `None` for an address that no table can translate.
    fn root_of(&self, address: VirtAddr) -> Option<usize>;

    /// What the entry `raw` of a table at `level` says.
    fn decode(&self, level: u8, raw: u64) -> Entry;

    /// An entry that points to `table` and limits nothing.
    fn encode_table(&self, table: Frame) -> u64;

    /// An entry at `level` that maps `leaf`, without the host's global attribute, and with accessed and dirty state set
    /// beforehand so that the walker never writes it.
    fn encode_leaf(&self, level: u8, leaf: Leaf) -> u64;

    /// Cached, inner-shareable memory: what the HAL's own frames are.
    fn ordinary_memory(&self) -> MemoryType;

    /// Whether the CPU may find the host's entry `raw`, a leaf, in every address space, whatever the tag. Views that share such a
    /// page run without tags. To be on the safe side all may, by default.
    fn is_global(&self, raw: u64) -> bool {
        let _ = raw;
        true
    }

    /// Whether the CPU can bear both of two entries for one page to be cached, `host` in the host's tables and `own` in the
    /// HAL's. They map the gate, which is executed and accessed while roots change.
    fn is_compatible(&self, host: u64, own: u64) -> bool {
        let _ = (host, own);
        true
    }

    /// Index of `page`'s entry in its table at `level`.
    fn index(&self, page: Page, level: u8) -> usize {
        (page.number() >> (9 * u32::from(level))) as usize & (ENTRIES - 1)
    }

    /// The top-level index space of a root may be smaller than a table; this is the number of pages it translates.
    fn pages(&self, root: usize) -> u64 {
        1 << (9 * u32::from(self.levels(root)))
    }
}

/// How many pages an entry at `level` covers.
pub const fn pages_at(level: u8) -> u64 {
    1 << (9 * level as u32)
}

/// How many bytes an entry at `level` covers.
pub const fn bytes_at(level: u8) -> u64 {
    pages_at(level) << PAGE_SHIFT
}
