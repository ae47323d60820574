//! What is in the tables that GDTR, IDTR, LDTR and TR point to.

use core::arch::asm;

use x86_64::instructions::tables::{sgdt, sidt};

use super::super::Snapshot;
use super::read;

/// Bits of a selector that are no index.
const SELECTOR_FLAGS: u64 = 0b111;

/// Bytes of a 64-bit system descriptor, whose limit counts bytes (SDM 3, figure 9-4).
const SYSTEM_DESCRIPTOR: u64 = 16;

/// The words from `base` on, as far as they fit into `bytes`.
///
/// # Safety
///
/// 1. So many bytes are mapped there.
unsafe fn words(base: u64, bytes: u64) -> impl Iterator<Item = u64> {
    let start: *const u64 = core::ptr::with_exposed_provenance(base as usize);
    // SAFETY: (1). Tables need not be aligned.
    (0..bytes as usize / size_of::<u64>()).map(move |index| unsafe { start.add(index).read_unaligned() })
}

/// The base and size of what a selector of the descriptor table's names, if it names something.
fn system_segment(selector: u64) -> Option<(u64, u64)> {
    let gdtr = sgdt();
    let offset = selector & !SELECTOR_FLAGS;
    if offset == 0 || offset + SYSTEM_DESCRIPTOR > u64::from(gdtr.limit) + 1 {
        return None;
    }
    // SAFETY: (1) inside the table, by its limit.
    let mut descriptor = unsafe { words(gdtr.base.as_u64() + offset, SYSTEM_DESCRIPTOR) };
    let (low, high) = (descriptor.next()?, descriptor.next()?);
    let base = low >> 16 & 0xff_ffff | (low >> 56 & 0xff) << 24 | high << 32;
    let limit = low & 0xffff | low >> 32 & 0xf_0000;
    Some((base, limit + 1))
}

/// Reads the tables.
pub(super) fn look(snapshot: &mut Snapshot) {
    for (name, table) in [("GDT", sgdt()), ("IDT", sidt())] {
        // SAFETY: (1) the CPU itself reads the table so far.
        snapshot.all(name, unsafe { words(table.base.as_u64(), u64::from(table.limit) + 1) });
    }
    for (name, selector) in [("LDT", read!("sldt {}")), ("TSS", read!("str {}"))] {
        if let Some((base, bytes)) = system_segment(selector) {
            // SAFETY: (1) the CPU itself reads the table so far.
            snapshot.all(name, unsafe { words(base, bytes) });
        }
    }
}
