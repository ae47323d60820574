//! VMSAv8-64 page tables, 4 KiB granule, 48-bit descriptors (Arm ARM, section D8.3).
//!
//! Levels are counted from the pages up, as in the core: level 0 here is the architecture's level 3.
//!
//! What must hold: the parameters are those the CPU translates with, and stay so (`start_cpu` compares). Entries of the
//! HAL's own tables never restrict below them: the leaf alone decides. Addresses come without tags, even where the CPU
//! ignores the top byte: one page must have one name, or checks by address could be walked around. [`Vmsa::untagged`]
//! gives that name to an address that the CPU reported.
//!
//! What a walk calls is marked for inlining, since the core's walk is compiled in another crate.

use sandbox_core::addr::PAGE_SHIFT;
use sandbox_core::format::{ENTRIES, Entry, Format, Leaf, MAX_ROOTS, MemoryType, Privilege};
use sandbox_core::{Access, Frame, Page, Permissions, Unsupported, VirtAddr};

/// Bit 0: the entry is valid. Bit 1: a table, or at level 0 a page (Arm ARM, table D8-49).
const VALID: u64 = 1 << 0;
const TABLE_OR_PAGE: u64 = 1 << 1;
/// Bits 12 to 47: the output address.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// Attributes of a leaf (Arm ARM, section D8.3.1.2).
const ATTRIBUTE_INDEX: u64 = 0b111 << ATTRIBUTE_INDEX_SHIFT;
const ATTRIBUTE_INDEX_SHIFT: u32 = 2;
/// Which physical address space, in Secure state; ignored in others.
const NON_SECURE: u64 = 1 << 5;
const UNPRIVILEGED: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const SHAREABILITY: u64 = 0b11 << 8;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESSED: u64 = 1 << 10;
const NOT_GLOBAL: u64 = 1 << 11;
/// Branch targets are checked in this page.
const GUARDED: u64 = 1 << 50;
/// The page is one of sixteen that the CPU may cache as one.
const CONTIGUOUS: u64 = 1 << 52;
const PRIVILEGED_EXECUTE_NEVER: u64 = 1 << 53;
const UNPRIVILEGED_EXECUTE_NEVER: u64 = 1 << 54;

/// What [`MemoryType`] holds, all of it at the same place at every level. Being global or not counts for the gate's pages alone,
/// which are the same in all address spaces; everything unprivileged is not.
const MEMORY: u64 = ATTRIBUTE_INDEX | NON_SECURE | SHAREABILITY | GUARDED | NOT_GLOBAL;

/// Attributes of a table entry, which limit what is below (Arm ARM, section D8.3.1.1).
const TABLE_PRIVILEGED_EXECUTE_NEVER: u64 = 1 << 59;
const TABLE_NO_UNPRIVILEGED: u64 = 1 << 61;
const TABLE_READ_ONLY: u64 = 1 << 62;
/// Changes the meaning of [`NON_SECURE`] below.
const TABLE_NON_SECURE: u64 = 1 << 63;

/// MAIR_EL1 for normal memory, write-back, read and write allocate, inner and outer.
const NORMAL_WRITE_BACK: u8 = 0xff;

/// Largest and smallest size of a half's addresses in bits, with a 4 KiB granule and 48-bit descriptors.
const MOST_BITS: u8 = 48;
const LEAST_BITS: u8 = 16;
/// Bits that a table resolves.
const TABLE_BITS: u8 = ENTRIES.trailing_zeros() as u8;

/// The highest level that can hold blocks: 1 GiB.
const HIGHEST_BLOCK_LEVEL: u8 = 2;

/// Fields of TCR_EL1 (Arm ARM, section D23.2.150), for the low half and the high one.
const SIZE_SHIFT: [u32; MAX_ROOTS] = [0, 16];
const SIZE_MASK: u64 = 0b11_1111;
const DISABLED: [u64; MAX_ROOTS] = [1 << 7, 1 << 23];
const GRANULE_SHIFT: [u32; MAX_ROOTS] = [14, 30];
const GRANULE_MASK: u64 = 0b11;
/// A granule of 4 KiB; the two halves encode it differently.
const GRANULE_4K: [u64; MAX_ROOTS] = [0b00, 0b10];
const TOP_BYTE_IGNORED: [u64; MAX_ROOTS] = [1 << 37, 1 << 38];
const HIERARCHY_DISABLED: [u64; MAX_ROOTS] = [1 << 41, 1 << 42];
const DESCRIPTORS_52_BITS: u64 = 1 << 59;

/// SCTLR_EL1.WXN: what is writable is not executable.
const WXN: u64 = 1 << 19;

/// One half of the address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Half {
    /// How many bits of an address its tables translate; 0: it is not in use.
    bits: u8,
    /// Whether data accesses ignore the top byte.
    tags: bool,
}

/// The format, with the parameters that the machine was started with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vmsa {
    /// The low half and the high one.
    halves: [Half; MAX_ROOTS],
    /// Whether table entries limit what is below.
    hierarchy: bool,
    /// Whether what is writable is never executable.
    wxn: bool,
    /// The host's descriptor bits for ordinary memory.
    ordinary: MemoryType,
}

impl Vmsa {
    /// The format that these values of TCR_EL1, MAIR_EL1 and SCTLR_EL1 make.
    ///
    /// # Errors
    ///
    /// What the values have on that this backend can't read, or lack that it needs.
    pub fn from_registers(tcr: u64, mair: u64, sctlr: u64) -> Result<Vmsa, Unsupported> {
        if tcr & DESCRIPTORS_52_BITS != 0 {
            return Err(Unsupported::Enabled("52-bit descriptors (TCR_EL1.DS)"));
        }
        let mut halves = [Half { bits: 0, tags: false }; MAX_ROOTS];
        let mut hierarchy = false;
        for (index, half) in halves.iter_mut().enumerate() {
            if tcr & DISABLED[index] != 0 {
                continue;
            }
            if tcr >> GRANULE_SHIFT[index] & GRANULE_MASK != GRANULE_4K[index] {
                return Err(Unsupported::Missing("a 4 KiB granule in each half that is in use (TCR_EL1.TG0, TG1)"));
            }
            half.bits = 64 - (tcr >> SIZE_SHIFT[index] & SIZE_MASK) as u8;
            if !(LEAST_BITS..=MOST_BITS).contains(&half.bits) {
                return Err(Unsupported::Enabled("addresses of more than 48 bits (TCR_EL1.T0SZ, T1SZ)"));
            }
            half.tags = tcr & TOP_BYTE_IGNORED[index] != 0;
            // An entry doesn't say which half it is in. Where only one ignores these bits, honouring them in both may refuse a
            // grant, and never allows one too many.
            hierarchy |= tcr & HIERARCHY_DISABLED[index] == 0;
        }
        let index = mair.to_le_bytes().iter().position(|&attribute| attribute == NORMAL_WRITE_BACK);
        let Some(index) = index else {
            return Err(Unsupported::Missing("normal write-back memory (0xff) in MAIR_EL1"));
        };
        let ordinary = MemoryType((index as u64) << ATTRIBUTE_INDEX_SHIFT | INNER_SHAREABLE);
        Ok(Vmsa { halves, hierarchy, wxn: sctlr & WXN != 0, ordinary })
    }

    /// `address` as pages are named: without the tag, where the CPU ignores it.
    pub fn untagged(&self, address: u64) -> VirtAddr {
        // Bit 55 says which half it is (Arm ARM, section D8.2.1).
        const TAG_BITS: u32 = 8;
        let extended = ((address << TAG_BITS) as i64 >> TAG_BITS) as u64;
        let half = self.halves[usize::from(extended >> 63 != 0)];
        VirtAddr(if half.tags { extended } else { address })
    }

    #[inline]
    fn half_of(&self, page: Page) -> Half {
        self.halves[usize::from(page.start().0 >> 63 != 0)]
    }
}

impl Format for Vmsa {
    // Hardware ignores bits 51 to 58 of table entries and leaves 55 to 58 of leaves to software.
    const SHARED: u64 = 1 << 55;
    const OWNED: u64 = 1 << 56;
    const CLAIMED: u64 = 1 << 57;

    #[inline]
    fn levels(&self, root: usize) -> u8 {
        self.halves[root].bits.saturating_sub(PAGE_SHIFT as u8).div_ceil(TABLE_BITS).max(1)
    }

    #[inline]
    fn root_of(&self, address: VirtAddr) -> Option<usize> {
        let root = usize::from(address.0 >> 63 != 0);
        let extension = if root == 0 { address.0 } else { !address.0 };
        let bits = self.halves[root].bits;
        (bits != 0 && extension >> bits == 0).then_some(root)
    }

    #[inline]
    fn decode(&self, level: u8, raw: u64) -> Entry {
        if raw & VALID == 0 {
            return Entry::Absent;
        }
        if level > 0 && raw & TABLE_OR_PAGE != 0 {
            return self.decode_table(raw);
        }
        if level > HIGHEST_BLOCK_LEVEL || (level == 0 && raw & TABLE_OR_PAGE == 0) {
            // Reserved: the CPU takes them for invalid.
            return Entry::Absent;
        }
        // A page that the CPU may make writable by itself (the DBM bit) counts as it stands: written by a sandbox it
        // would have to be marked dirty for the host, which the HAL doesn't do.
        let writable = raw & READ_ONLY == 0;
        let (privilege, never) = match raw & UNPRIVILEGED {
            0 => (Privilege::Privileged, PRIVILEGED_EXECUTE_NEVER),
            _ => (Privilege::Unprivileged, UNPRIVILEGED_EXECUTE_NEVER),
        };
        let executable = raw & never == 0 && !(writable && self.wxn);
        let below = (1 << (PAGE_SHIFT + u32::from(TABLE_BITS) * u32::from(level))) - 1;
        Entry::Leaf(Leaf {
            frame: Frame::containing(raw & ADDRESS & !below),
            permissions: Permissions::new(true, writable, executable),
            privilege,
            memory: MemoryType(raw & MEMORY),
        })
    }

    fn encode_table(&self, table: Frame) -> u64 {
        // Where hardware keeps an accessed bit in table entries too, this is it; elsewhere it is ignored.
        table.start() | VALID | TABLE_OR_PAGE | ACCESSED
    }

    fn encode_leaf(&self, level: u8, leaf: Leaf) -> u64 {
        let mut raw = leaf.frame.start() | leaf.memory.0 | VALID | ACCESSED;
        if level == 0 {
            raw |= TABLE_OR_PAGE;
        }
        if !leaf.permissions.allows(Access::Write) {
            raw |= READ_ONLY;
        }
        let executable = leaf.permissions.allows(Access::Execute);
        raw | match leaf.privilege {
            Privilege::Privileged if executable => UNPRIVILEGED_EXECUTE_NEVER,
            Privilege::Unprivileged if executable => NOT_GLOBAL | UNPRIVILEGED | PRIVILEGED_EXECUTE_NEVER,
            Privilege::Privileged => UNPRIVILEGED_EXECUTE_NEVER | PRIVILEGED_EXECUTE_NEVER,
            Privilege::Unprivileged => {
                NOT_GLOBAL | UNPRIVILEGED | UNPRIVILEGED_EXECUTE_NEVER | PRIVILEGED_EXECUTE_NEVER
            }
        }
    }

    #[inline]
    fn ordinary_memory(&self) -> MemoryType {
        self.ordinary
    }

    fn is_global(&self, raw: u64) -> bool {
        raw & NOT_GLOBAL == 0
    }

    fn is_compatible(&self, host: u64, own: u64) -> bool {
        // Permissions may differ: the CPU takes those of either (Arm ARM, "Using break-before-make when updating translation table entries").
        (host ^ own) & (ADDRESS | MEMORY | CONTIGUOUS) == 0
    }

    #[inline]
    fn index(&self, page: Page, level: u8) -> usize {
        // The top table of a half may have fewer entries, and the bits above it are all ones in the high half.
        let bits = self.half_of(page).bits.saturating_sub(PAGE_SHIFT as u8);
        let number = page.number() & ((1 << bits) - 1);
        (number >> (u32::from(TABLE_BITS) * u32::from(level))) as usize & (ENTRIES - 1)
    }

    #[inline]
    fn pages(&self, root: usize) -> u64 {
        1 << self.halves[root].bits.saturating_sub(PAGE_SHIFT as u8)
    }
}

impl Vmsa {
    #[inline]
    fn decode_table(&self, raw: u64) -> Entry {
        let frame = Frame::containing(raw & ADDRESS);
        // Another physical address space may begin here: nothing below is what it seems.
        if raw & TABLE_NON_SECURE != 0 {
            return Entry::Table { frame, limit: Permissions::NONE, unprivileged: false };
        }
        if !self.hierarchy {
            return Entry::Table { frame, limit: Permissions::ALL, unprivileged: true };
        }
        let writable = raw & TABLE_READ_ONLY == 0;
        let executable = raw & TABLE_PRIVILEGED_EXECUTE_NEVER == 0;
        let limit = Permissions::new(true, writable, executable);
        Entry::Table { frame, limit, unprivileged: raw & TABLE_NO_UNPRIVILEGED == 0 }
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
