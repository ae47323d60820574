//! The kernel's final page tables: built at boot, write-xor-execute, the low half empty.

use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use x86_64::{
    PhysAddr, VirtAddr,
    registers::control::Cr3,
    structures::paging::{
        FrameAllocator, Mapper, OffsetPageTable, Page, PageTable, PageTableFlags, PhysFrame, Size2MiB, Size4KiB,
    },
};

use crate::{
    layout::{self, DIRECT_MAP, DIRECT_MAP_END, PAGE_SIZE},
    memory,
    paging::{Access, Translation},
};

const LARGE_PAGE: u64 = 2 << 20;
const LEVELS: u32 = 4;

/// Upper-level entries forbid nothing but unprivileged access: the pages decide.
const TABLE: PageTableFlags = PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE);

/// Frames for page tables.
struct Tables;

// SAFETY: the allocator hands out each frame once, zeroed.
unsafe impl FrameAllocator<Size4KiB> for Tables {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        memory::allocate_table().map(|table| PhysFrame::containing_address(PhysAddr::new(table)))
    }
}

fn flags(access: Access) -> PageTableFlags {
    let base = PageTableFlags::PRESENT;
    match access {
        Access::Code => base,
        Access::ReadOnly => base | PageTableFlags::NO_EXECUTE,
        Access::ReadWrite => base | PageTableFlags::NO_EXECUTE | PageTableFlags::WRITABLE,
        Access::Device => {
            let uncached = PageTableFlags::NO_CACHE | PageTableFlags::WRITE_THROUGH;
            base | PageTableFlags::NO_EXECUTE | PageTableFlags::WRITABLE | uncached
        }
    }
}

/// The kernel's root.
static KERNEL_ROOT: AtomicU64 = AtomicU64::new(0);

/// A root with the kernel's entries.
#[derive(Debug)]
pub(crate) struct OwnRoot(u64);

impl OwnRoot {
    pub(crate) fn new() -> Option<Self> {
        let copy = memory::allocate_table()?;
        let kernel = memory::direct(KERNEL_ROOT.load(Ordering::Relaxed));
        // SAFETY: both are tables, the copy ours alone. The other's entries don't change: those that anything may be mapped below
        // were made at boot.
        unsafe { memory::direct(copy).copy_from_nonoverlapping(kernel, PAGE_SIZE as usize) };
        Some(Self(copy))
    }

    pub(crate) fn address(&self) -> u64 {
        self.0
    }
}

impl Drop for OwnRoot {
    fn drop(&mut self) {
        assert!(root() != self.0, "a root was given back that is in force");
        memory::free_frame(self.0);
    }
}

/// Makes a root, or the kernel's, the active one.
pub(crate) fn use_root(wanted: Option<&OwnRoot>) {
    let wanted = wanted.map_or_else(|| KERNEL_ROOT.load(Ordering::Relaxed), OwnRoot::address);
    if wanted != root() {
        let frame = PhysFrame::containing_address(PhysAddr::new(wanted));
        // SAFETY: all roots have the kernel's entries; the lower half, which differs, is not used by the kernel.
        unsafe { Cr3::write(frame, Cr3::read().1) };
    }
}

/// Physical address of the root table that is active.
pub fn root() -> u64 {
    Cr3::read().0.start_address().as_u64()
}

/// # Safety
///
/// `root` is a root table, and nobody else changes or holds the tables meanwhile.
unsafe fn tables(root: u64) -> OffsetPageTable<'static> {
    // SAFETY: page tables lie in RAM, which the direct map has; the caller answers for the rest.
    unsafe {
        let top = &mut *memory::direct(root).cast::<PageTable>();
        OffsetPageTable::new(top, VirtAddr::new(DIRECT_MAP))
    }
}

/// What the active tables say of an address, permissions combined over the levels.
pub fn translate(virt: u64) -> Option<Translation> {
    let mut table = root();
    let mut translation = Translation { physical: 0, writable: true, executable: true, user: true };
    for level in (1..=LEVELS).rev() {
        let shift = 12 + 9 * (level - 1);
        // SAFETY: tables lie in RAM, which the direct map has, and are never freed.
        let entry = unsafe { memory::direct(table).cast::<u64>().add((virt >> shift) as usize % 512).read_volatile() };
        let flags = PageTableFlags::from_bits_retain(entry);
        if !flags.contains(PageTableFlags::PRESENT) {
            return None;
        }
        translation.writable &= flags.contains(PageTableFlags::WRITABLE);
        translation.executable &= !flags.contains(PageTableFlags::NO_EXECUTE);
        translation.user &= flags.contains(PageTableFlags::USER_ACCESSIBLE);
        let size = 1 << shift;
        let address = entry & PHYSICAL_MASK;
        if level == 1 || flags.contains(PageTableFlags::HUGE_PAGE) {
            translation.physical = address & !(size - 1) | virt & (size - 1);
            return Some(translation);
        }
        table = address;
    }
    None
}

/// The address bits of an entry.
const PHYSICAL_MASK: u64 = 0x000f_ffff_ffff_f000;

fn page(virt: u64) -> Page {
    Page::containing_address(VirtAddr::new(virt))
}

/// Maps one page in the active tables.
///
/// # Safety
///
/// As for [`crate::paging::map`]; the caller holds the lock on the tables.
pub(crate) unsafe fn map_page(virt: u64, phys: u64, access: Access) -> Option<()> {
    // SAFETY: the caller holds the lock.
    let mut tables = unsafe { tables(root()) };
    // SAFETY: the caller answers for the page and the frame.
    unsafe { map_in(&mut tables, virt, phys, access) }
}

/// # Safety
///
/// As for [`map_page`].
unsafe fn map_in(tables: &mut OffsetPageTable, virt: u64, phys: u64, access: Access) -> Option<()> {
    use x86_64::structures::paging::mapper::MapToError;
    let frame = PhysFrame::containing_address(PhysAddr::new(phys));
    // SAFETY: the caller answers for the page and the frame.
    match unsafe { tables.map_to_with_table_flags(page(virt), frame, flags(access), TABLE, &mut Tables) } {
        Ok(flush) => {
            flush.flush();
            Some(())
        }
        Err(MapToError::FrameAllocationFailed) => None,
        Err(error) => panic!("{virt:#x} can't be mapped: {error:?}"),
    }
}

/// Takes one page away from the active tables and returns its frame.
///
/// # Safety
///
/// As for [`crate::paging::unmap`]; the caller holds the lock on the tables.
pub(crate) unsafe fn unmap_page(virt: u64) -> Option<u64> {
    // SAFETY: the caller holds the lock.
    let mut tables = unsafe { tables(root()) };
    let (frame, flush) = tables.unmap(page(virt)).ok()?;
    flush.flush();
    Some(frame.start_address().as_u64())
}

/// Builds the final tables and switches to them.
///
/// # Panics
///
/// If memory runs out.
pub(super) fn init(ram: &[Range<u64>]) {
    let root = memory::allocate_table().expect("a frame for the root table");
    // SAFETY: a zeroed table, ours alone.
    let mut tables = unsafe { tables(root) };

    let image = layout::image();
    let guard = layout::stack_guard();
    for (part, access) in [
        (image.text, Access::Code),
        (image.rodata, Access::ReadOnly),
        (image.data.start..guard.start, Access::ReadWrite),
        (guard.end..image.data.end, Access::ReadWrite),
    ] {
        for virt in part.step_by(PAGE_SIZE as usize) {
            // SAFETY: the tables are new and not active; the image is where it was linked.
            unsafe { map_in(&mut tables, virt, virt - layout::IMAGE, access) }.expect("memory for page tables");
        }
    }
    for range in ram {
        // SAFETY: the tables are new and not active; the direct map has only RAM.
        unsafe { map_ram(&mut tables, range) }.expect("memory for page tables");
    }

    for start in layout::GROWING {
        let table = memory::allocate_table().expect("memory for page tables");
        tables.level_4_table_mut()[VirtAddr::new(start).p4_index()].set_addr(PhysAddr::new(table), TABLE);
    }
    KERNEL_ROOT.store(root, Ordering::Relaxed);

    let frame = PhysFrame::containing_address(PhysAddr::new(root));
    // SAFETY: the code, the stack and all data that is in use have the same addresses as before.
    unsafe { Cr3::write(frame, Cr3::read().1) };
}

/// Puts a range of RAM into the direct map, with large pages where they fit.
///
/// # Safety
///
/// As for [`map_page`].
unsafe fn map_ram(tables: &mut OffsetPageTable, range: &Range<u64>) -> Option<()> {
    let mut phys = range.start.next_multiple_of(PAGE_SIZE);
    let end = range.end.min(DIRECT_MAP_END - DIRECT_MAP);
    let end = end - end % PAGE_SIZE;
    while phys < end {
        let virt = DIRECT_MAP + phys;
        if !phys.is_multiple_of(LARGE_PAGE) || end - phys < LARGE_PAGE {
            // SAFETY: the caller answers for it.
            unsafe { map_in(tables, virt, phys, Access::ReadWrite)? };
            phys += PAGE_SIZE;
            continue;
        }
        let large = Page::<Size2MiB>::containing_address(VirtAddr::new(virt));
        let frame = PhysFrame::containing_address(PhysAddr::new(phys));
        // SAFETY: the caller answers for it.
        let mapped =
            unsafe { tables.map_to_with_table_flags(large, frame, flags(Access::ReadWrite), TABLE, &mut Tables) };
        mapped.ok()?.ignore();
        phys += LARGE_PAGE;
    }
    Some(())
}
