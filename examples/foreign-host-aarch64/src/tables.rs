//! Page tables: the kernel's, of three levels, and those of processes, of four.
//!
//! What must hold: a table is in RAM, and its frame is marked as a table. An address is mapped once, and never unmapped.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::frames::{self, Use};
use crate::layout::{self, BLOCK, DEVICES, DIRECT, GIB, IMAGE_OFFSET, LOWER_BITS, PAGE, RAM, RUN, UPPER_BITS, direct};
use crate::registers::Lock;

/// Descriptor bits (Arm ARM, section D8.3).
pub(crate) const VALID: u64 = 1 << 0;
const TABLE_OR_PAGE: u64 = 1 << 1;
/// Of processes: EL0 may access it.
const USER: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const INNER_SHARED: u64 = 0b11 << 8;
const ACCESSED: u64 = 1 << 10;
const NOT_GLOBAL: u64 = 1 << 11;
const CONTIGUOUS: u64 = 1 << 52;
const NEVER_PRIVILEGED: u64 = 1 << 53;
const NEVER_USER: u64 = 1 << 54;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const NO_ADDRESS: u64 = !ADDRESS;

/// Indices of MAIR_EL1, in place: 0 and 1.
const NORMAL: u64 = INNER_SHARED;
const REGISTERS: u64 = 1 << 2;

/// What a mapping is good for; what is not [`EXECUTABLE`] says [`PRIVATE`].
pub(crate) const WRITABLE: u64 = NORMAL | ACCESSED | NEVER_USER;
pub(crate) const CONSTANT: u64 = WRITABLE | READ_ONLY;
pub(crate) const EXECUTABLE: u64 = 0;
pub(crate) const PRIVATE: u64 = NEVER_PRIVILEGED;
/// Device registers.
pub(crate) const DEVICE: u64 = REGISTERS | ACCESSED | NEVER_USER | NEVER_PRIVILEGED;
/// A process's memory: for EL0 all of it readable, writable and executable.
pub(crate) const PROCESS: u64 = NORMAL | ACCESSED | USER | NEVER_PRIVILEGED | NOT_GLOBAL;

const ENTRIES: u64 = 512;

/// A set of tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tables {
    root: u64,
    bits: u64,
    /// Added to every descriptor of memory.
    always: u64,
}

impl Tables {
    /// Tables without a mapping.
    pub(crate) fn new(bits: u64, global: bool) -> Option<Tables> {
        Some(Tables { root: table()?, bits, always: if global { 0 } else { NOT_GLOBAL } })
    }

    /// A process's.
    pub(crate) fn of_process() -> Option<Tables> {
        Tables::new(LOWER_BITS, false)
    }

    /// The physical address of the root.
    pub(crate) fn root(&self) -> u64 {
        self.root
    }

    /// Whether what is mapped here is kept for all ASIDs.
    pub(crate) fn is_global(&self) -> bool {
        self.always & NOT_GLOBAL == 0
    }

    /// Maps `size` bytes in the largest pieces that fit, none larger than `most`. `None`: out of memory.
    pub(crate) fn map(&self, address: u64, physical: u64, size: u64, attributes: u64, most: u64) -> Option<()> {
        let attributes = attributes | self.always;
        let mut done = 0;
        while done < size {
            let (address, physical, left) = (address + done, physical + done, size - done);
            let fits = |piece: u64| piece <= most && piece <= left && (address | physical).is_multiple_of(piece);
            let piece = [GIB, BLOCK, RUN, PAGE].into_iter().find(|&piece| fits(piece))?;
            match piece {
                GIB | BLOCK => self.enter(address, piece, physical | attributes | VALID)?,
                // The 16 entries all say that they are one of a run.
                RUN => {
                    for page in (0..RUN).step_by(PAGE as usize) {
                        let entry = (physical + page) | attributes | VALID | TABLE_OR_PAGE | CONTIGUOUS;
                        self.enter(address + page, PAGE, entry)?;
                    }
                }
                _ => self.enter(address, PAGE, physical | attributes | VALID | TABLE_OR_PAGE)?,
            }
            done += piece;
        }
        publish();
        Some(())
    }

    /// Writes the entry for `address` in the table whose entries map `size` bytes each.
    fn enter(&self, address: u64, size: u64, entry: u64) -> Option<()> {
        let mut at = self.root;
        let mut reach = self.top();
        while reach > size {
            let slot = slot(at, address, reach);
            // SAFETY: an entry of a table of ours, which the kernel alone writes.
            let found = unsafe { slot.read_volatile() };
            at = if found & VALID != 0 {
                assert!(found & TABLE_OR_PAGE != 0, "{address:#x} is mapped already");
                found & ADDRESS
            } else {
                let next = table()?;
                // SAFETY: as above; the table it names is empty.
                unsafe { slot.write_volatile(next | VALID | TABLE_OR_PAGE) };
                next
            };
            reach /= ENTRIES;
        }
        // SAFETY: as above.
        unsafe {
            let slot = slot(at, address, reach);
            assert!(slot.read_volatile() & VALID == 0, "{address:#x} is mapped already");
            slot.write_volatile(entry);
        }
        Some(())
    }

    /// What an entry of the root maps.
    fn top(&self) -> u64 {
        let levels = (self.bits - 12).div_ceil(9);
        PAGE << (9 * (levels - 1))
    }

    /// The descriptor that translates `address`, and how many bytes it maps.
    pub(crate) fn find(&self, address: u64) -> Option<(u64, u64)> {
        let mut at = self.root;
        let mut reach = self.top();
        loop {
            // SAFETY: as in `enter`.
            let entry = unsafe { slot(at, address, reach).read_volatile() };
            match (entry & VALID != 0, entry & TABLE_OR_PAGE != 0) {
                (false, _) => return None,
                (true, true) if reach > PAGE => at = entry & ADDRESS,
                _ => return Some((entry, reach)),
            }
            reach /= ENTRIES;
        }
    }
}

fn slot(table: u64, address: u64, reach: u64) -> *mut u64 {
    direct(table).cast::<u64>().wrapping_add((address / reach % ENTRIES) as usize)
}

/// Lets walks see what was written.
fn publish() {
    // SAFETY: barriers change nothing.
    unsafe { core::arch::asm!("dsb ishst", "isb", options(nostack, preserves_flags)) };
}

fn table() -> Option<u64> {
    let frame = frames::allocate(Use::Table)?;
    // SAFETY: the frame is ours.
    unsafe { direct(frame).write_bytes(0, PAGE as usize) };
    Some(frame)
}

/// The kernel's tables, once they are made.
static KERNEL: Lock<Option<Tables>> = Lock::new(None);

/// Makes and remembers the kernel's tables; `ram` is how much there is of it from its start on. The caller puts them in force.
pub(crate) fn make(ram: u64, global: bool) -> Option<Tables> {
    let tables = Tables::new(UPPER_BITS, global)?;
    tables.map(DIRECT, RAM, ram, WRITABLE | PRIVATE, GIB)?;
    let (text, constants) = (layout::text(), layout::constants());
    let (variables, stack) = (layout::variables(), layout::first_stack());
    for (range, attributes, most) in [
        (text, CONSTANT | EXECUTABLE, BLOCK),
        (constants, CONSTANT | PRIVATE, RUN),
        (variables, WRITABLE | PRIVATE, PAGE),
        (stack, WRITABLE | PRIVATE, PAGE),
    ] {
        tables.map(range.start, range.start - IMAGE_OFFSET, range.end - range.start, attributes, most)?;
    }
    KERNEL.with(|kernel| *kernel = Some(tables));
    Some(tables)
}

/// Calls `work` with the kernel's tables, which don't change meanwhile.
pub(crate) fn with<R>(work: impl FnOnce(&Tables) -> R) -> R {
    KERNEL.with(|tables| work(tables.as_ref().expect("made before anybody asks")))
}

/// Maps a device's registers where [`layout::device`] says they are.
pub(crate) fn map_device(physical: u64, size: u64) -> Option<()> {
    with(|tables| tables.map(physical + DEVICES, physical, size, DEVICE, RUN))
}

/// Where the next scattered pages go.
static SCATTERED: AtomicU64 = AtomicU64::new(layout::SCATTERED.start);

/// Maps `pages` frames from anywhere at consecutive addresses, with an unmapped page before them; returns the first.
pub(crate) fn map_scattered(pages: u64) -> Option<u64> {
    let size = (pages + 1) * PAGE;
    let start = SCATTERED.fetch_add(size, Ordering::Relaxed) + PAGE;
    if start + pages * PAGE > layout::SCATTERED.end {
        return None;
    }
    for page in 0..pages {
        let frame = frames::allocate(Use::Memory)?;
        with(|tables| tables.map(start + page * PAGE, frame, PAGE, WRITABLE | PRIVATE, PAGE))?;
    }
    Some(start)
}

/// The descriptor of a page without its address: for checks that look at how something is mapped.
pub(crate) fn attributes(entry: u64) -> u64 {
    entry & NO_ADDRESS
}

/// Whether a descriptor's translations are kept for all ASIDs, and whether it is one of a run.
pub(crate) fn is_global(entry: u64) -> bool {
    attributes(entry) & NOT_GLOBAL == 0
}

/// Whether a descriptor is one of a run of 16.
pub(crate) fn is_contiguous(entry: u64) -> bool {
    attributes(entry) & CONTIGUOUS != 0
}
