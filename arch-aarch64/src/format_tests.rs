//! Tests of the page-table format.

use super::*;

/// TCR_EL1 with these sizes and a 4 KiB granule in both halves.
fn tcr(low_bits: u64, high_bits: u64) -> u64 {
    (64 - low_bits) | (64 - high_bits) << SIZE_SHIFT[1] | GRANULE_4K[1] << GRANULE_SHIFT[1]
}

/// Device memory at index 0, write-back at 1.
const MAIR: u64 = 0xff04;

fn format(tcr: u64) -> Vmsa {
    Vmsa::from_registers(tcr, MAIR, 0).unwrap()
}

const WIDE: fn() -> Vmsa = || format(tcr(48, 48));

#[test]
fn the_host_decides_the_sizes() {
    for (bits, levels, top_entries) in
        [(48, 4, 512), (42, 4, 8), (40, 4, 2), (39, 3, 512), (32, 3, 4), (30, 2, 512), (16, 1, 16)]
    {
        let format = format(tcr(bits, bits));
        for root in 0..MAX_ROOTS {
            assert_eq!(format.levels(root), levels);
            assert_eq!(format.pages(root), 1 << (bits - 12));
        }
        let last = VirtAddr((1 << bits) - 1);
        let first_high = VirtAddr(u64::MAX << bits);
        assert_eq!(format.root_of(last), Some(0));
        assert_eq!(format.root_of(VirtAddr(last.0 + 1)), None);
        assert_eq!(format.root_of(first_high), Some(1));
        assert_eq!(format.root_of(VirtAddr(first_high.0 - 1)), None);
        assert_eq!(format.root_of(VirtAddr(u64::MAX)), Some(1));
        for (address, index) in [(0, 0), (last.0, top_entries - 1), (first_high.0, 0), (u64::MAX, top_entries - 1)] {
            assert_eq!(format.index(VirtAddr(address).page(), levels - 1), index, "{address:#x} of {bits} bits");
        }
        assert_eq!(format.index(VirtAddr(u64::MAX).page(), 0), if bits < 21 { top_entries - 1 } else { 511 });
    }
}

#[test]
fn a_disabled_half_translates_nothing() {
    // Its size and granule don't matter.
    let format = format(16 | DISABLED[1] | 0b11 << GRANULE_SHIFT[1]);
    assert_eq!(format.root_of(VirtAddr(0x1000)), Some(0));
    assert_eq!(format.root_of(VirtAddr(u64::MAX)), None);
    assert!(format.levels(1) >= 1);
}

#[test]
fn what_cannot_be_read_is_refused() {
    for bad in [
        tcr(48, 48) | DESCRIPTORS_52_BITS,
        tcr(48, 48) | 0b01 << GRANULE_SHIFT[0],
        tcr(48, 48) & !(0b11 << GRANULE_SHIFT[1]) | 0b01 << GRANULE_SHIFT[1],
        tcr(52, 48),
        tcr(48, 52),
        tcr(48, 12),
    ] {
        assert!(Vmsa::from_registers(bad, MAIR, 0).is_err(), "{bad:#x}");
    }
    assert!(matches!(Vmsa::from_registers(tcr(48, 48), 0x0444, 0), Err(Unsupported::Missing(_))));
}

#[test]
fn ordinary_memory_is_the_hosts() {
    assert_eq!(WIDE().ordinary_memory(), MemoryType(1 << ATTRIBUTE_INDEX_SHIFT | INNER_SHAREABLE));
    let format = Vmsa::from_registers(tcr(48, 48), 0xff << 56, 0).unwrap();
    assert_eq!(format.ordinary_memory(), MemoryType(7 << ATTRIBUTE_INDEX_SHIFT | INNER_SHAREABLE));
}

#[test]
fn tags_are_not_part_of_a_name() {
    let address = 0xab00_0000_0000_1000;
    let high = 0xabff_0000_0000_1000;
    assert_eq!(WIDE().untagged(address), VirtAddr(address));
    assert_eq!(WIDE().root_of(VirtAddr(address)), None);
    let format = format(tcr(48, 48) | TOP_BYTE_IGNORED[0]);
    assert_eq!(format.untagged(address), VirtAddr(0x1000));
    assert_eq!(format.untagged(high), VirtAddr(high));
    assert_eq!(format.root_of(VirtAddr(address)), None);
    let format = self::format(tcr(48, 48) | TOP_BYTE_IGNORED[1]);
    assert_eq!(format.untagged(address), VirtAddr(address));
    assert_eq!(format.untagged(high), VirtAddr(0xffff_0000_0000_1000));
    // Bits that are neither tag nor translated still count.
    assert_eq!(format.untagged(0xab80_0000_0000_1000), VirtAddr(0xff80_0000_0000_1000));
    assert_eq!(format.root_of(VirtAddr(0xff80_0000_0000_1000)), None);
}

#[test]
fn leaves_survive_encoding() {
    let memories = [0, ATTRIBUTE_INDEX, NON_SECURE, SHAREABILITY, GUARDED, NOT_GLOBAL, MEMORY];
    for level in 0..=HIGHEST_BLOCK_LEVEL {
        for permissions in [Permissions::READ, Permissions::READ_WRITE, Permissions::READ_EXECUTE] {
            for privilege in [Privilege::Privileged, Privilege::Unprivileged] {
                for memory in memories.map(MemoryType) {
                    let frame = Frame::from_start(0x0000_ffff_c000_0000).unwrap();
                    let leaf = Leaf { frame, permissions, privilege, memory };
                    let raw = WIDE().encode_leaf(level, leaf);
                    // Whatever the host has, nothing unprivileged is global; the gate is what it is in the host.
                    let own = match privilege {
                        Privilege::Privileged => memory,
                        Privilege::Unprivileged => MemoryType(memory.0 | NOT_GLOBAL),
                    };
                    assert_eq!(WIDE().decode(level, raw), Entry::Leaf(Leaf { memory: own, ..leaf }));
                    assert_eq!(WIDE().is_global(raw), own.0 & NOT_GLOBAL == 0);
                    assert_eq!(raw & (Vmsa::SHARED | Vmsa::OWNED | Vmsa::CLAIMED), 0);
                    assert!(raw & ACCESSED != 0);
                    // Neither contiguous nor managed by hardware.
                    assert_eq!(raw & (1 << 51 | 1 << 52), 0);
                }
            }
        }
    }
}

#[test]
fn nobody_executes_what_is_the_others() {
    for permissions in [Permissions::READ, Permissions::READ_WRITE, Permissions::READ_EXECUTE] {
        for privilege in [Privilege::Privileged, Privilege::Unprivileged] {
            let frame = Frame::from_start(0x5000).unwrap();
            let raw = WIDE().encode_leaf(0, Leaf { frame, permissions, privilege, memory: MemoryType(0) });
            let never = match privilege {
                Privilege::Privileged => UNPRIVILEGED_EXECUTE_NEVER,
                Privilege::Unprivileged => PRIVILEGED_EXECUTE_NEVER,
            };
            assert_ne!(raw & never, 0);
            assert_eq!(raw & UNPRIVILEGED != 0, privilege == Privilege::Unprivileged);
        }
    }
}

#[test]
fn reserved_encodings_are_invalid() {
    for (level, raw) in [(0, 0x5001), (3, 0x5001), (0, 0x5002), (1, 0x5000), (3, 0x5002)] {
        assert_eq!(WIDE().decode(level, raw), Entry::Absent, "{raw:#x} at {level}");
    }
    assert!(matches!(WIDE().decode(0, 0x5003), Entry::Leaf(_)));
    for level in 1..=3 {
        assert!(matches!(WIDE().decode(level, 0x5003), Entry::Table { .. }));
    }
}

#[test]
fn blocks_ignore_the_low_address_bits() {
    // Bit 16 has another meaning in blocks; what is between is reserved.
    for (level, start) in [(1, 0x4060_0000), (2, 0x4000_0000)] {
        let Entry::Leaf(leaf) = WIDE().decode(level, 0x4060_0000 | 1 << 16 | 1 << 12 | VALID) else { panic!() };
        assert_eq!(leaf.frame.start(), start);
    }
}

#[test]
fn host_leaves() {
    let permissions = |format: Vmsa, raw| match format.decode(0, 0x5003 | raw) {
        Entry::Leaf(leaf) => (leaf.permissions, leaf.privilege),
        other => panic!("{other:?}"),
    };
    let (user, kernel) = (Privilege::Unprivileged, Privilege::Privileged);
    let no_one = UNPRIVILEGED_EXECUTE_NEVER | PRIVILEGED_EXECUTE_NEVER;
    for (raw, expected) in [
        (no_one, (Permissions::READ_WRITE, kernel)),
        (no_one | READ_ONLY, (Permissions::READ, kernel)),
        (UNPRIVILEGED_EXECUTE_NEVER | READ_ONLY, (Permissions::READ_EXECUTE, kernel)),
        (PRIVILEGED_EXECUTE_NEVER | READ_ONLY, (Permissions::READ, kernel)),
        (UNPRIVILEGED_EXECUTE_NEVER, (Permissions::ALL, kernel)),
        (no_one | UNPRIVILEGED, (Permissions::READ_WRITE, user)),
        (PRIVILEGED_EXECUTE_NEVER | UNPRIVILEGED | READ_ONLY, (Permissions::READ_EXECUTE, user)),
        // Contiguous and hardware-managed entries are like others.
        (no_one | READ_ONLY | 1 << 51 | 1 << 52, (Permissions::READ, kernel)),
    ] {
        assert_eq!(permissions(WIDE(), raw), expected, "{raw:#x}");
    }
    let wxn = Vmsa::from_registers(tcr(48, 48), MAIR, WXN).unwrap();
    assert_eq!(permissions(wxn, UNPRIVILEGED_EXECUTE_NEVER).0, Permissions::READ_WRITE);
    assert_eq!(permissions(wxn, UNPRIVILEGED_EXECUTE_NEVER | READ_ONLY).0, Permissions::READ_EXECUTE);
}

#[test]
fn tables_limit_what_is_below() {
    let frame = Frame::from_start(0x5000).unwrap();
    let table = |limit, unprivileged| Entry::Table { frame, limit, unprivileged };
    assert_eq!(WIDE().decode(3, WIDE().encode_table(frame)), table(Permissions::ALL, true));
    let both = format(tcr(48, 48) | HIERARCHY_DISABLED[0] | HIERARCHY_DISABLED[1]);
    let one = format(tcr(48, 48) | HIERARCHY_DISABLED[0]);
    let only = format(tcr(48, 48) | HIERARCHY_DISABLED[0] | DISABLED[1]);
    for (raw, limited) in [
        (TABLE_READ_ONLY, table(Permissions::READ_EXECUTE, true)),
        (TABLE_PRIVILEGED_EXECUTE_NEVER, table(Permissions::READ_WRITE, true)),
        (TABLE_NO_UNPRIVILEGED, table(Permissions::ALL, false)),
        // What only unprivileged code may not execute, the host may.
        (1 << 60, table(Permissions::ALL, true)),
    ] {
        for format in [WIDE(), one] {
            assert_eq!(format.decode(1, 0x5003 | raw), limited);
        }
        for format in [both, only] {
            assert_eq!(format.decode(1, 0x5003 | raw), table(Permissions::ALL, true));
        }
    }
    for format in [WIDE(), both] {
        assert_eq!(format.decode(1, 0x5003 | TABLE_NON_SECURE), table(Permissions::NONE, false));
    }
}

#[test]
fn what_conflicts_in_a_tlb_is_told() {
    let format = WIDE();
    let memory = MemoryType(1 << ATTRIBUTE_INDEX_SHIFT | INNER_SHAREABLE);
    for permissions in [Permissions::READ_WRITE, Permissions::READ_EXECUTE] {
        let frame = Frame::from_start(0x1000_0000).unwrap();
        let own = format.encode_leaf(0, Leaf { frame, permissions, privilege: Privilege::Privileged, memory });
        // Permissions, what software keeps, and what hardware notes may differ.
        for bit in [7, 10, 51, 53, 54, 55, 56, 57, 58] {
            assert!(format.is_compatible(own ^ 1 << bit, own), "bit {bit}");
        }
        // Address, attributes, shareability, being global, guarded, contiguous.
        for bit in [2, 3, 4, 5, 8, 9, 11, 12, 30, 47, 50, 52] {
            assert!(!format.is_compatible(own ^ 1 << bit, own), "bit {bit}");
        }
    }
}
