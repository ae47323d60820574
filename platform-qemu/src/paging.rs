//! The kernel's page tables.
//!
//! There is one set of them, built at boot. It only grows afterwards, except that a failed
//! [`crate::gate::map_gate_pages`] takes its pages away again. A thread may have a [`Root`] of its own above
//! the same tables.

use core::sync::atomic::{AtomicU64, Ordering};

pub use crate::machine::paging::{root, translate};
use crate::{
    layout::{DEVICES, PAGE_SIZE},
    lock::MaskedLock,
    machine,
};

/// What kernel code may do with a page. Nothing is both writable and executable, and nothing is
/// open to unprivileged code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Normal memory, readable and executable.
    Code,
    /// Normal memory, readable.
    ReadOnly,
    /// Normal memory, readable and writable.
    ReadWrite,
    /// Device memory, readable and writable.
    Device,
}

/// What the page tables say of an address; permissions are combined over all levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Physical address of the byte.
    pub physical: u64,
    /// The kernel may write here.
    pub writable: bool,
    /// The kernel may execute here.
    pub executable: bool,
    /// Unprivileged code may come here.
    pub user: bool,
}

/// A page-table root beside the kernel's, with the same kernel half: whatever is mapped there later is in both. Where a machine
/// has a root for each half of the address space, it is one of each.
#[derive(Debug)]
pub struct Root(machine::paging::OwnRoot);

impl Root {
    /// Makes one. `None` if memory is short.
    pub fn new() -> Option<Self> {
        machine::paging::OwnRoot::new().map(Self)
    }

    /// What [`root`] says while it is in force.
    pub fn address(&self) -> u64 {
        self.0.address()
    }
}

/// Makes `root`, or the kernel's, the one in force on this CPU. Interrupts are masked, and the root stays until another is
/// in force.
pub(crate) fn use_root(root: Option<&Root>) {
    machine::paging::use_root(root.map(|root| &root.0));
}

/// Held while the tables change.
static TABLES: MaskedLock<()> = MaskedLock::new(());

static NEXT_DEVICE: AtomicU64 = AtomicU64::new(DEVICES.start);

/// Runs `work` while nobody changes the tables. Mapping in `work` hangs.
pub fn unchanged<R>(work: impl FnOnce() -> R) -> R {
    TABLES.with(|()| work())
}

/// Maps one page. `None` if a frame for a table is missing.
///
/// # Safety
///
/// 1. `virt` is a page that the caller owns and that isn't mapped.
/// 2. Whoever uses the mapping has a right to `phys` as `access` says.
pub(crate) unsafe fn map(virt: u64, phys: u64, access: Access) -> Option<()> {
    // SAFETY: the caller answers for the same conditions.
    TABLES.with(|()| unsafe { machine::paging::map_page(virt, phys, access) })
}

/// Takes one page away and returns its frame, or `None` if there was none.
///
/// # Safety
///
/// `virt` was mapped by [`map`], and nothing uses it any more.
pub(crate) unsafe fn unmap(virt: u64) -> Option<u64> {
    // SAFETY: the caller answers for the same condition.
    TABLES.with(|()| unsafe { machine::paging::unmap_page(virt) })
}

/// Maps device registers at fresh addresses, readable and writable.
///
/// # Panics
///
/// If memory or [`DEVICES`] is used up.
pub fn map_device(phys: u64, len: u64) -> *mut u8 {
    let offset = phys % PAGE_SIZE;
    let pages = (offset + len).div_ceil(PAGE_SIZE);
    let base = NEXT_DEVICE.fetch_add(pages * PAGE_SIZE, Ordering::Relaxed);
    assert!(base + pages * PAGE_SIZE <= DEVICES.end, "out of device addresses");
    for page in 0..pages {
        let at = page * PAGE_SIZE;
        // SAFETY: the pages are fresh. The pointer that we return is raw: its users answer for
        // what they do with it.
        let mapped = unsafe { map(base + at, phys - offset + at, Access::Device) };
        mapped.expect("a frame for a page table");
    }
    (base + offset) as *mut u8
}
