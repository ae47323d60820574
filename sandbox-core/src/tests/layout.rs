//! Address spaces of three shapes, and a page-table format for all of them.
//!
//! The bits are nobody's; the shapes are real ones: one root with limits at every level, two roots of different depth with
//! limits, one root of three levels without limits.

use crate::addr::{Frame, Page, PageRange, VirtAddr};
use crate::format::{ENTRIES, Entry, Format, Leaf, MemoryType, Privilege};
use crate::permissions::Permissions;

/// The shape of an address space, and where the simulated host has its things.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    pub(super) name: &'static str,
    pub(super) roots: usize,
    pub(super) levels: [u8; 2],
    /// Whether a table entry's bits limit what lies below.
    pub(super) hierarchical: bool,
    /// First address of the host's half.
    pub(super) top: u64,
    /// Whether the gate runs on pages of its own.
    pub(super) remaps_gate_code: bool,
}

const ONE_ROOT: Layout = Layout {
    name: "one root",
    roots: 1,
    levels: [4, 0],
    hierarchical: true,
    top: 0xffff_8000_0000_0000,
    remaps_gate_code: false,
};
pub(super) const TWO_ROOTS: Layout = Layout {
    name: "two roots",
    roots: 2,
    levels: [3, 4],
    hierarchical: true,
    top: 0xffff_0000_0000_0000,
    remaps_gate_code: true,
};
const THREE_LEVELS: Layout = Layout {
    name: "three levels",
    roots: 1,
    levels: [3, 0],
    hierarchical: false,
    top: 0xffff_ffc0_0000_0000,
    remaps_gate_code: false,
};
/// Those that tests go through; under Miri, which is about pointers, the one with the least tables must do.
pub(super) const LAYOUTS: &[Layout] = if cfg!(miri) { &[THREE_LEVELS] } else { &[ONE_ROOT, TWO_ROOTS, THREE_LEVELS] };
/// One of them.
pub(super) const USUAL: Layout = LAYOUTS[0];

const GIB: u64 = 1 << 30;

fn page_at(address: u64) -> Page {
    Page::from_start(VirtAddr(address)).unwrap()
}

fn pages_from(page: Page, first: u64, count: u64) -> PageRange {
    PageRange::new(page.checked_add(first).unwrap(), count).unwrap()
}

impl Layout {
    fn bits(self, root: usize) -> u32 {
        12 + 9 * u32::from(self.levels[root])
    }

    /// Pages of the direct map, which shows physical memory from 0 on.
    pub(super) fn direct(self, first: u64, count: u64) -> PageRange {
        pages_from(page_at(self.top), first, count)
    }

    /// Where the direct map shows `frame`.
    pub(super) fn alias(self, frame: Frame) -> PageRange {
        self.direct(frame.number(), 1)
    }

    /// Pages of the image: text from 0 on, read-only data from 1024 on.
    pub(super) fn image(self, first: u64, count: u64) -> PageRange {
        pages_from(page_at(self.top + 8 * GIB), first, count)
    }

    /// Pages of the host's data.
    pub(super) fn data(self, first: u64, count: u64) -> PageRange {
        pages_from(page_at(self.top + 9 * GIB), first, count)
    }

    /// Pages where the gates' data appears.
    pub(super) fn gates(self, first: u64, count: u64) -> PageRange {
        pages_from(page_at(self.top + 10 * GIB), first, count)
    }

    /// Pages of the window.
    pub(super) fn window(self, first: u64, count: u64) -> PageRange {
        pages_from(page_at(self.top + 12 * GIB), first, count)
    }

    /// The pages of the gate's code, inside the text.
    pub(super) fn gate_text(self) -> PageRange {
        self.image(516, 2)
    }

    /// Where the gate's code runs.
    pub(super) fn gate_code(self) -> PageRange {
        match self.remaps_gate_code {
            true => pages_from(page_at(self.top + 11 * GIB), 0, 2),
            false => self.gate_text(),
        }
    }

    /// The last page below the host's half that can be translated.
    pub(super) fn last_low(self) -> Page {
        let bits = if self.roots == 2 { self.bits(0) } else { self.bits(0) - 1 };
        page_at((1 << bits) - 0x1000)
    }

    /// The root that translates `address`.
    pub(super) fn root(self, address: u64) -> Option<usize> {
        let upper = |root: usize| (address as i64) >> (self.bits(root) - u32::from(self.roots == 1));
        match self.roots {
            1 => matches!(upper(0), 0 | -1).then_some(0),
            _ if upper(0) == 0 => Some(0),
            _ => (upper(1) == -1).then_some(1),
        }
    }

    /// The page that entry numbers from the root down lead to.
    pub(super) fn page(self, root: usize, number: u64) -> Page {
        let bits = self.bits(root);
        let address = number << 12;
        let negative = if self.roots == 2 { root == 1 } else { address >> (bits - 1) & 1 == 1 };
        page_at(if negative { address | u64::MAX << bits } else { address })
    }
}

pub(super) const PRESENT: u64 = 1;
pub(super) const LEAF: u64 = 1 << 1;
pub(super) const READ: u64 = 1 << 2;
pub(super) const WRITE: u64 = 1 << 3;
/// Privileged code may execute.
pub(super) const EXECUTE: u64 = 1 << 4;
/// Unprivileged code may use it.
pub(super) const USER: u64 = 1 << 5;
/// Unprivileged code may execute, if it may use it.
pub(super) const USER_EXECUTE: u64 = 1 << 6;
pub(super) const GLOBAL: u64 = 1 << 7;
/// Other entries for the page can't be borne.
pub(super) const UNUSUAL: u64 = 1 << 62;
pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Where the memory type is: in another place for blocks.
fn memory_shift(level: u8) -> u32 {
    if level == 0 { 8 } else { 59 }
}

const MEMORY: u64 = 7;
/// The type of the HAL's own frames.
pub(super) const CACHED: MemoryType = MemoryType(5);

/// The format, for a layout.
#[derive(Clone, Copy, Debug)]
pub(super) struct SimFormat(pub(super) Layout);

impl Format for SimFormat {
    const SHARED: u64 = 1 << 52;
    const OWNED: u64 = 1 << 53;
    const CLAIMED: u64 = 1 << 54;

    fn levels(&self, root: usize) -> u8 {
        self.0.levels[root]
    }

    fn root_of(&self, address: VirtAddr) -> Option<usize> {
        self.0.root(address.0)
    }

    fn decode(&self, level: u8, raw: u64) -> Entry {
        if raw & PRESENT == 0 {
            return Entry::Absent;
        }
        let frame = Frame::containing(raw & ADDRESS);
        if raw & LEAF == 0 {
            let limit = if self.0.hierarchical {
                Permissions::new(raw & READ != 0, raw & WRITE != 0, raw & EXECUTE != 0)
            } else {
                Permissions::ALL
            };
            return Entry::Table { frame, limit, unprivileged: !self.0.hierarchical || raw & USER != 0 };
        }
        let (privilege, execute) = match raw & USER {
            0 => (Privilege::Privileged, EXECUTE),
            _ => (Privilege::Unprivileged, USER_EXECUTE),
        };
        Entry::Leaf(Leaf {
            frame,
            permissions: Permissions::new(raw & READ != 0, raw & WRITE != 0, raw & execute != 0),
            privilege,
            memory: MemoryType(raw >> memory_shift(level) & MEMORY),
        })
    }

    fn encode_table(&self, table: Frame) -> u64 {
        table.start() | PRESENT | READ | WRITE | EXECUTE | USER
    }

    fn encode_leaf(&self, level: u8, leaf: Leaf) -> u64 {
        use crate::permissions::Access;
        assert!(leaf.frame.number().is_multiple_of(1 << (9 * level)), "a block of level {level} at {:?}", leaf.frame);
        let user = leaf.privilege == Privilege::Unprivileged;
        let set = |bit: u64, on: bool| if on { bit } else { 0 };
        leaf.frame.start()
            | PRESENT
            | LEAF
            | set(READ, leaf.permissions.allows(Access::Read))
            | set(WRITE, leaf.permissions.allows(Access::Write))
            | set(if user { USER_EXECUTE } else { EXECUTE }, leaf.permissions.allows(Access::Execute))
            | set(USER, user)
            | leaf.memory.0 << memory_shift(level)
    }

    fn ordinary_memory(&self) -> MemoryType {
        CACHED
    }

    fn is_global(&self, raw: u64) -> bool {
        raw & GLOBAL != 0
    }

    fn is_compatible(&self, host: u64, own: u64) -> bool {
        (host ^ own) & ADDRESS == 0 && host & UNUSUAL == 0
    }
}

/// What the simulated hardware makes of tables: written without the code under test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Translation {
    pub(super) frame: Frame,
    pub(super) level: u8,
    pub(super) read: bool,
    pub(super) write: bool,
    /// By privileged code.
    pub(super) execute: bool,
    pub(super) user: bool,
    /// By unprivileged code.
    pub(super) user_execute: bool,
    pub(super) memory: u64,
}

/// Translates `address`. `read` returns an entry of a table.
pub(super) fn translate(
    layout: Layout,
    roots: [Option<Frame>; 2],
    address: u64,
    read: impl Fn(Frame, usize) -> u64,
) -> Option<Translation> {
    let root = layout.root(address)?;
    let mut table = roots[root]?;
    let mut limit = u64::MAX;
    for level in (0..layout.levels[root]).rev() {
        let raw = read(table, (address >> (12 + 9 * level)) as usize % ENTRIES);
        if raw & PRESENT == 0 {
            return None;
        }
        if raw & LEAF == 0 {
            table = Frame::containing(raw & ADDRESS);
            if layout.hierarchical {
                limit &= if raw & EXECUTE != 0 { raw | USER_EXECUTE } else { raw & !USER_EXECUTE };
            }
            continue;
        }
        let has = |bit: u64| raw & bit != 0 && (limit & bit != 0);
        return Some(Translation {
            frame: Frame::containing((raw & ADDRESS) + (address & ((0x1000 << (9 * level)) - 1))),
            level,
            read: has(READ),
            write: has(WRITE),
            execute: has(EXECUTE),
            user: has(USER),
            user_execute: has(USER) && has(USER_EXECUTE),
            memory: raw >> memory_shift(level) & MEMORY,
        });
    }
    None
}
