//! Long-mode page tables, 4 or 5 levels (Intel SDM volume 3, section 5.5; AMD APM volume 2, section 5.3).
//!
//! What must hold: the host runs with EFER.NXE and CR0.WP on (checked by `probe`), so that what an entry denies is denied.
//! Entries of the HAL's own tables never restrict below them: the leaf alone decides.

use sandbox_core::format::{Entry, Format, Leaf, MemoryType, Privilege};
use sandbox_core::{Access, Frame, Permissions, VirtAddr};
use x86_64::structures::paging::PageTableFlags as Flags;

/// Bits 12 to 51 of an entry: the physical address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// The PAT bit of a page; in a block's entry this is the page-size bit.
const PAT_PAGE: u64 = 1 << 7;
/// The PAT bit of a block.
const PAT_BLOCK: u64 = 1 << 12;

/// The memory type, independent of the level: PWT, PCD and PAT as the bits 0 to 2 of an index into the PAT register.
const PWT: u64 = 1 << 0;
const PCD: u64 = 1 << 1;
const PAT: u64 = 1 << 2;

/// The format, with the number of levels the machine runs with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LongMode {
    levels: u8,
}

impl LongMode {
    /// Tables of four levels (48-bit addresses), or five with `la57` (57 bits).
    pub const fn new(la57: bool) -> LongMode {
        LongMode { levels: if la57 { 5 } else { 4 } }
    }

    /// Whether `address` is canonical: all bits above the translated ones equal the highest of those.
    pub const fn is_canonical(self, address: u64) -> bool {
        let unused = 64 - (12 + 9 * self.levels as u32);
        (((address << unused) as i64) >> unused) as u64 == address
    }
}

fn is_set(raw: u64, flag: Flags) -> bool {
    raw & flag.bits() != 0
}

impl Format for LongMode {
    const SHARED: u64 = Flags::BIT_9.bits();
    const OWNED: u64 = Flags::BIT_10.bits();
    const CLAIMED: u64 = Flags::BIT_11.bits();

    fn levels(&self, _root: usize) -> u8 {
        self.levels
    }

    fn root_of(&self, address: VirtAddr) -> Option<usize> {
        self.is_canonical(address.0).then_some(0)
    }

    fn decode(&self, level: u8, raw: u64) -> Entry {
        if !is_set(raw, Flags::PRESENT) {
            return Entry::Absent;
        }
        let permissions = Permissions::new(true, is_set(raw, Flags::WRITABLE), !is_set(raw, Flags::NO_EXECUTE));
        let user = is_set(raw, Flags::USER_ACCESSIBLE);
        let block = level > 0 && is_set(raw, Flags::HUGE_PAGE);
        if level > 0 && !block {
            return Entry::Table { frame: Frame::containing(raw & ADDRESS), limit: permissions, unprivileged: user };
        }
        let pat = if block { PAT_BLOCK } else { PAT_PAGE };
        let address = raw & ADDRESS & !(if block { PAT_BLOCK } else { 0 });
        let memory = [(Flags::WRITE_THROUGH.bits(), PWT), (Flags::NO_CACHE.bits(), PCD), (pat, PAT)];
        Entry::Leaf(Leaf {
            frame: Frame::containing(address),
            permissions,
            privilege: if user { Privilege::Unprivileged } else { Privilege::Privileged },
            memory: MemoryType(memory.iter().filter(|(bit, _)| raw & bit != 0).map(|(_, ours)| ours).sum()),
        })
    }

    fn encode_table(&self, table: Frame) -> u64 {
        table.start() | (Flags::PRESENT | Flags::WRITABLE | Flags::USER_ACCESSIBLE | Flags::ACCESSED).bits()
    }

    fn encode_leaf(&self, level: u8, leaf: Leaf) -> u64 {
        let mut flags = Flags::PRESENT | Flags::ACCESSED | Flags::DIRTY;
        flags.set(Flags::WRITABLE, leaf.permissions.allows(Access::Write));
        flags.set(Flags::NO_EXECUTE, !leaf.permissions.allows(Access::Execute));
        flags.set(Flags::USER_ACCESSIBLE, leaf.privilege == Privilege::Unprivileged);
        flags.set(Flags::HUGE_PAGE, level > 0);
        flags.set(Flags::WRITE_THROUGH, leaf.memory.0 & PWT != 0);
        flags.set(Flags::NO_CACHE, leaf.memory.0 & PCD != 0);
        let pat = if level > 0 { PAT_BLOCK } else { PAT_PAGE };
        leaf.frame.start() | flags.bits() | if leaf.memory.0 & PAT != 0 { pat } else { 0 }
    }

    fn ordinary_memory(&self) -> MemoryType {
        // Entry 0 of the PAT register: write-back after reset (SDM 3, table 13-12) and in every kernel we know of.
        MemoryType(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: LongMode = LongMode::new(false);

    #[test]
    fn canonical() {
        for (address, four, five) in [
            (0, true, true),
            (0x0000_7fff_ffff_ffff, true, true),
            (0x0000_8000_0000_0000, false, true),
            (0xffff_7fff_ffff_ffff, false, true),
            (0xffff_8000_0000_0000, true, true),
            (0x00ff_ffff_ffff_ffff, false, true),
            (0x0100_0000_0000_0000, false, false),
            (0xfeff_ffff_ffff_ffff, false, false),
            (0xff00_0000_0000_0000, false, true),
            (u64::MAX, true, true),
        ] {
            assert_eq!(LongMode::new(false).is_canonical(address), four, "{address:#x}");
            assert_eq!(LongMode::new(true).is_canonical(address), five, "{address:#x}");
        }
    }

    #[test]
    fn leaves_survive_encoding() {
        for level in 0..3 {
            for permissions in [Permissions::READ, Permissions::READ_WRITE, Permissions::READ_EXECUTE] {
                for privilege in [Privilege::Privileged, Privilege::Unprivileged] {
                    for memory in 0..8 {
                        let frame = Frame::from_start(0x000f_ffff_c000_0000).unwrap();
                        let leaf = Leaf { frame, permissions, privilege, memory: MemoryType(memory) };
                        let raw = FORMAT.encode_leaf(level, leaf);
                        assert_eq!(FORMAT.decode(level, raw), Entry::Leaf(leaf));
                        assert_eq!(raw & (LongMode::SHARED | LongMode::OWNED | LongMode::CLAIMED), 0);
                        assert!(!is_set(raw, Flags::GLOBAL) && is_set(raw, Flags::ACCESSED));
                    }
                }
            }
        }
    }

    #[test]
    fn tables_limit_what_is_below() {
        let table = Frame::from_start(0x5000).unwrap();
        let raw = FORMAT.encode_table(table);
        assert_eq!(FORMAT.decode(3, raw), Entry::Table { frame: table, limit: Permissions::ALL, unprivileged: true });
        let narrow = Flags::PRESENT | Flags::NO_EXECUTE;
        assert_eq!(
            FORMAT.decode(1, 0x5000 | narrow.bits()),
            Entry::Table { frame: table, limit: Permissions::READ, unprivileged: false }
        );
        assert_eq!(FORMAT.decode(0, 0x5000), Entry::Absent);
    }

    #[test]
    fn the_pat_bit_of_a_page_is_no_block() {
        let page = 0x5000 | Flags::PRESENT.bits() | PAT_PAGE;
        assert!(matches!(FORMAT.decode(0, page), Entry::Leaf(Leaf { memory: MemoryType(PAT), .. })));
    }
}
