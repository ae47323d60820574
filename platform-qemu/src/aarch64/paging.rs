//! The kernel's final page tables, in TTBR1.
//!
//! Every mapping is privileged, inner shareable, never writable and executable at once
//! (SCTLR_EL1.WXN holds the kernel to it), and global unless the argument `asids=` asks for the opposite. TTBR0 leads to an
//! empty table.

use alloc::vec::Vec;

use super::device_tree::DeviceTree;
use super::{IMAGE_OFFSET, mair};
use crate::layout::{self, DIRECT_MAP, DIRECT_MAP_END, PAGE_SIZE};
use crate::lock::MaskedLock;
use crate::memory::{self, direct};
use crate::paging::{Access, Translation};
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{ReadWriteable, Readable, SCTLR_EL1, TCR_EL1, TTBR0_EL1, TTBR1_EL1, Writeable};
use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{El1Attributes, PhysicalAddress};
use aarch64_paging::paging::{Constraints, El1And0, MemoryRegion, PageTable, VaRange};
use core::arch::{asm, naked_asm};
use core::ops::{Range, RangeInclusive};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// In every descriptor. EL0 may never execute what the kernel maps for itself.
const COMMON: El1Attributes = El1Attributes::VALID.union(El1Attributes::ACCESSED).union(El1Attributes::UXN);

/// Whether mappings belong to the kernel's ASID.
static NOT_GLOBAL: AtomicBool = AtomicBool::new(false);

/// The descriptor bits for what the kernel may do with a page.
fn attributes(access: Access) -> El1Attributes {
    let common = match NOT_GLOBAL.load(Ordering::Relaxed) {
        true => COMMON | El1Attributes::NON_GLOBAL,
        false => COMMON,
    };
    let memory = common | mair::NORMAL_ATTRIBUTES;
    match access {
        Access::Code => memory | El1Attributes::READ_ONLY,
        Access::ReadOnly => memory | El1Attributes::READ_ONLY | El1Attributes::PXN,
        Access::ReadWrite => memory | El1Attributes::PXN,
        Access::Device => common | mair::DEVICE_ATTRIBUTES | El1Attributes::PXN,
    }
}

/// A table without entries: the root of the lower half.
#[repr(C, align(4096))]
struct EmptyTable([u64; PAGE_SIZE as usize / size_of::<u64>()]);

static EMPTY: EmptyTable = EmptyTable([0; PAGE_SIZE as usize / size_of::<u64>()]);

/// Tables that a new page may need below the root.
const LEVELS_BELOW_ROOT: usize = 3;

/// Where the root's part of an address begins, and how much it is; the descriptor of a table.
const ROOT_SHIFT: u32 = 39;
const ROOT_MASK: usize = 511;
const TABLE: u64 = 0b11;

/// Each level of the tables resolves this many bits of the address.
const LEVEL_BITS: usize = 9;

/// Frames set aside for tables: the crate that edits the tables can't be told that there are none,
/// so enough for a page are taken before it is called.
struct Reserve([Option<u64>; LEVELS_BELOW_ROOT]);

impl Reserve {
    /// Takes frames until the reserve is full; `None` when memory is short.
    fn fill(&mut self) -> Option<()> {
        for slot in &mut self.0 {
            if slot.is_none() {
                *slot = Some(memory::allocate_table()?);
            }
        }
        Some(())
    }
}

static RESERVE: MaskedLock<Reserve> = MaskedLock::new(Reserve([None; LEVELS_BELOW_ROOT]));

/// Where the tables come from.
struct Tables;

impl aarch64_paging::paging::Translation<El1Attributes> for Tables {
    fn allocate_table(&mut self) -> (NonNull<PageTable<El1Attributes>>, PhysicalAddress) {
        let frame = RESERVE
            .with(|reserve| reserve.0.iter_mut().find_map(Option::take))
            .or_else(memory::allocate_table)
            .expect("no memory for the kernel's page tables");
        let frame = PhysicalAddress(frame as usize);
        (self.physical_to_virtual(frame), frame)
    }

    unsafe fn deallocate_table(&mut self, table: NonNull<PageTable<El1Attributes>>) {
        memory::free_frame(memory::physical(table.as_ptr().cast()));
    }

    fn physical_to_virtual(&self, address: PhysicalAddress) -> NonNull<PageTable<El1Attributes>> {
        NonNull::new(direct(address.0 as u64).cast()).expect("the direct map isn't at zero")
    }
}

/// The root of the final tables.
static KERNEL_ROOT: AtomicU64 = AtomicU64::new(0);

/// The kernel's root of the upper half.
pub(super) fn kernel_root() -> u64 {
    KERNEL_ROOT.load(Ordering::Relaxed)
}

/// The kernel's root of the lower half.
pub(super) fn empty_root() -> u64 {
    &raw const EMPTY as u64 - IMAGE_OFFSET
}

/// A root for each half: the upper with the kernel's entries, the lower empty.
#[derive(Debug)]
pub(crate) struct OwnRoot {
    upper: u64,
    lower: u64,
}

impl OwnRoot {
    pub(crate) fn new() -> Option<Self> {
        let upper = memory::allocate_table()?;
        let Some(lower) = memory::allocate_table() else {
            memory::free_frame(upper);
            return None;
        };
        // SAFETY: both are tables, the copy ours alone. The other's entries don't change: those that anything may be mapped below
        // were made at boot.
        unsafe { direct(upper).copy_from_nonoverlapping(direct(kernel_root()), PAGE_SIZE as usize) };
        barrier::dsb(barrier::ISHST);
        Some(Self { upper, lower })
    }

    pub(crate) fn address(&self) -> u64 {
        self.upper
    }
}

impl Drop for OwnRoot {
    fn drop(&mut self) {
        assert!(root() != self.upper, "a root was given back that is in force");
        // A CPU that used them may remember what was in them: of the upper one, the same as in the kernel's; of the lower one,
        // nothing.
        memory::free_frame(self.upper);
        memory::free_frame(self.lower);
    }
}

/// Makes a root, or the kernel's, the one in force, for both halves.
pub(crate) fn use_root(wanted: Option<&OwnRoot>) {
    let (upper, lower) = wanted.map_or_else(|| (kernel_root(), empty_root()), |own| (own.upper, own.lower));
    if upper != root() {
        // Both have the same translations for the kernel, so nothing has to be forgotten in between.
        TTBR0_EL1.set(lower | TTBR0_EL1.get() & ASID_MASK);
        TTBR1_EL1.set(upper | TTBR1_EL1.get() & ASID_MASK);
        barrier::isb(barrier::SY);
    }
}

static KERNEL: MaskedLock<Option<Mapping<Tables, El1And0>>> = MaskedLock::new(None);

/// Runs `work` on the final tables.
fn with<R>(work: impl FnOnce(&mut Mapping<Tables, El1And0>) -> R) -> R {
    KERNEL.with(|kernel| work(kernel.as_mut().expect("the final tables are built at boot")))
}

fn region(range: &Range<u64>) -> MemoryRegion {
    MemoryRegion::new(range.start as usize, range.end as usize)
}

/// Builds the final tables: the image and the direct map. Devices follow by
/// [`crate::paging::map_device`], then [`activate`].
pub(super) fn build(tree: &DeviceTree) {
    let mut kernel = Mapping::with_asid_and_va_range(Tables, 0, 0, El1And0, VaRange::Upper);
    let mut map = |virt: Range<u64>, phys: u64, access| {
        kernel
            .map_range(
                &region(&virt),
                PhysicalAddress(phys as usize),
                attributes(access),
                Constraints::NO_CONTIGUOUS_HINT,
            )
            .expect("the kernel's own ranges can be mapped");
    };

    let image = layout::image();
    let guard = layout::stack_guard();
    for (range, access) in [
        (image.text, Access::Code),
        (image.rodata, Access::ReadOnly),
        (image.data.start..guard.start, Access::ReadWrite),
        (guard.end..image.data.end, Access::ReadWrite),
    ] {
        let phys = range.start - IMAGE_OFFSET;
        map(range, phys, access);
    }

    let limit = DIRECT_MAP_END - DIRECT_MAP;
    for ram in tree.memory() {
        let end = ram.end.min(limit);
        if ram.start < end {
            map(DIRECT_MAP + ram.start..DIRECT_MAP + end, ram.start, Access::ReadWrite);
        }
    }
    make_room(&kernel);
    KERNEL.with(|slot| *slot = Some(kernel));
}

/// Gives the ranges in which the tables grow a table below the root, which copies of the root then share. The tables are not in
/// use yet.
fn make_room(kernel: &Mapping<Tables, El1And0>) {
    let root = direct(kernel.root_address().0 as u64).cast::<u64>();
    for start in layout::GROWING {
        // SAFETY: an entry of the root of tables that nobody uses yet; a new table goes where nothing is.
        unsafe {
            let entry = root.add(start as usize >> ROOT_SHIFT & ROOT_MASK);
            if entry.read() == 0 {
                entry.write(memory::allocate_table().expect("memory for page tables") | TABLE);
            }
        }
    }
}

/// Makes the final tables the CPU's.
pub(super) fn activate() {
    let root = with(|kernel| {
        // From here on the crate does the TLB maintenance and checks break-before-make.
        kernel.mark_active();
        kernel.root_address().0 as u64
    });
    KERNEL_ROOT.store(root, Ordering::Relaxed);
    // SAFETY: (1) the new root maps the image where it runs, with the permissions that its parts need,
    // the stack that this runs on, and the direct map; (2) interrupts are masked at boot, before WXN.
    unsafe { install(root) };
}

/// Makes `root` the root of the upper half, and the table without entries that of the lower.
///
/// # Safety
///
/// 1. As [`switch`], but for TTBR0.
/// 2. Interrupts are masked, SCTLR_EL1.WXN is off (the identity map could not be executed), TTBR0 has the boot tables.
unsafe fn install(root: u64) {
    barrier::dsb(barrier::ISHST);
    // SAFETY: (1), (2).
    unsafe { switch(root, empty_root()) };
    TTBR0_EL1.set(empty_root());
    barrier::isb(barrier::SY);
    SCTLR_EL1.modify(SCTLR_EL1::WXN::Enable);
    barrier::isb(barrier::SY);
    flush();
}

/// Makes another CPU's tables and controls those of the first: leaves the identity map, for good, turns WXN on. The upper half is
/// that of the final tables already.
pub(super) fn finish() {
    TTBR0_EL1.set(empty_root());
    barrier::isb(barrier::SY);
    SCTLR_EL1.modify(SCTLR_EL1::WXN::Enable);
    barrier::isb(barrier::SY);
    flush();
    if has_asid() {
        take_asid();
    }
}

/// Drops all cached translations of this CPU.
fn flush() {
    // SAFETY: what is in the tables is found again.
    unsafe { asm!("tlbi vmalle1", "dsb nsh", "isb", options(nostack, preserves_flags)) };
}

/// Where the kernel has its ASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AsidHalf {
    /// In TTBR0_EL1.
    Low,
    /// In TTBR1_EL1.
    High,
}

/// The kernel's ASID, where it has one.
const OWN_ASID: u64 = 5 << 48;
/// Its field of a root.
const ASID_MASK: u64 = !0 << 48;
/// Those that it never uses: few enough for sandboxes to use them up often.
pub(super) const FREE_ASIDS: RangeInclusive<u16> = 6..=11;

/// Whether it is the upper half's root that has it.
static HIGH: AtomicBool = AtomicBool::new(false);

/// Maps everything not-global from here on and runs the kernel under an ASID: as a kernel does that shares translations with
/// nobody. Called at most once, while this CPU is the only one that runs.
pub(super) fn use_asid(half: AsidHalf) {
    unsafe extern "C" {
        static __boot_root: u8;
    }
    let mut leaves = Vec::new();
    with(|kernel| {
        let all = region(&(DIRECT_MAP..!(PAGE_SIZE - 1)));
        kernel
            .walk_range(&all, &mut |part, descriptor, level| {
                if descriptor.is_valid() && (level == LEVELS_BELOW_ROOT || !descriptor.is_table_or_page()) {
                    leaves.push((part.clone(), descriptor.output_address(), descriptor.flags()));
                }
                Ok(())
            })
            .expect("the kernel's tables can be walked");
    });
    let mut copy = Mapping::with_asid_and_va_range(Tables, 0, 0, El1And0, VaRange::Upper);
    for (part, physical, flags) in leaves {
        let flags = flags.difference(El1Attributes::TABLE_OR_PAGE) | El1Attributes::NON_GLOBAL;
        copy.map_range(&part, physical, flags, Constraints::NO_CONTIGUOUS_HINT).expect("a part of the kernel's half");
    }
    make_room(&copy);
    NOT_GLOBAL.store(true, Ordering::Relaxed);
    copy.mark_active();
    let root = copy.root_address().0 as u64;
    // Back to the boot tables, as they were before `activate`.
    SCTLR_EL1.modify(SCTLR_EL1::WXN::Disable);
    TTBR0_EL1.set(&raw const __boot_root as u64 - IMAGE_OFFSET);
    barrier::isb(barrier::SY);
    flush();
    // SAFETY: (1) the copy maps what the tables in force map; (2) so it was just set, and interrupts are masked at boot.
    unsafe { install(root) };
    KERNEL_ROOT.store(root, Ordering::Relaxed);
    HIGH.store(half == AsidHalf::High, Ordering::Relaxed);
    take_asid();
    if let Some(old) = KERNEL.with(|kernel| kernel.replace(copy)) {
        old.mark_inactive();
    }
}

/// Gives the kernel its ASID, in the root that counts; that changes for the same tables.
fn take_asid() {
    if HIGH.load(Ordering::Relaxed) {
        TCR_EL1.modify(TCR_EL1::A1::TTBR1);
        barrier::isb(barrier::SY);
        TTBR1_EL1.set(kernel_root() | OWN_ASID);
    } else {
        TTBR0_EL1.set(empty_root() | OWN_ASID);
    }
    barrier::isb(barrier::SY);
}

/// Whether the kernel's mappings belong to an ASID of its own.
pub(super) fn has_asid() -> bool {
    NOT_GLOBAL.load(Ordering::Relaxed)
}

/// Replaces the root of the upper half. Runs from the identity map meanwhile, because old and new
/// tables must not be seen together: entries for one address with different sizes conflict in the
/// TLB. No stack, no memory access; clobbers x9 and x10.
///
/// # Safety
///
/// 1. `root` is the physical address of a table that maps the caller, its stack and its data where
///    they are now; `empty` that of a table without entries.
/// 2. TTBR0 still has the identity map of the boot tables, and interrupts are masked.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn switch(root: u64, empty: u64) {
    naked_asm!(
        "adr x9, 1f",
        "ldr x10, ={offset}",
        "sub x9, x9, x10",
        "br x9",
        "1:",
        "msr ttbr1_el1, x1",
        "isb",
        "tlbi vmalle1",
        "dsb nsh",
        "isb",
        "msr ttbr1_el1, x0",
        "isb",
        // Back to the upper half.
        "ret",
        ".ltorg",
        offset = const IMAGE_OFFSET,
    )
}

/// Maps one page for the kernel. `None` when there is no memory for the tables.
///
/// # Safety
///
/// 1. `virt` is a page of the upper half that the caller owns and that isn't mapped.
/// 2. Whoever uses the mapping has a right to `phys` as `access` says.
pub(crate) unsafe fn map_page(virt: u64, phys: u64, access: Access) -> Option<()> {
    RESERVE.with(Reserve::fill)?;
    let page = region(&(virt..virt + PAGE_SIZE));
    let frame = PhysicalAddress(phys as usize);
    with(|kernel| {
        kernel
            .map_range(&page, frame, attributes(access), Constraints::NO_CONTIGUOUS_HINT)
            .expect("a fresh page of the upper half")
    });
    Some(())
}

/// Takes a page away and returns its frame, or `None` if there was none.
///
/// # Safety
///
/// 1. `virt` was mapped by [`map_page`].
/// 2. Nothing uses it any more.
pub(crate) unsafe fn unmap_page(virt: u64) -> Option<u64> {
    let frame = translate(virt)?.physical;
    let page = region(&(virt..virt + PAGE_SIZE));
    with(|kernel| {
        kernel
            .map_range(&page, PhysicalAddress(0), El1Attributes::empty(), Constraints::NO_CONTIGUOUS_HINT)
            .expect("a page that is mapped can be unmapped")
    });
    Some(frame)
}

/// Physical address of the root of the kernel's half: what TTBR1_EL1 holds, without the ASID.
pub fn root() -> u64 {
    TTBR1_EL1.get_baddr()
}

/// What the kernel's tables say of an address. The lower half has no mappings.
pub fn translate(virt: u64) -> Option<Translation> {
    let page = virt - virt % PAGE_SIZE;
    // The last page of the address space ends at no address; nothing is mapped there.
    let end = page.checked_add(PAGE_SIZE)?;
    let mut found = None;
    // The tables on the way have no permission bits of their own, so the last descriptor says all.
    let walked = with(|kernel| {
        kernel.walk_range(&region(&(page..end)), &mut |_, descriptor, level| {
            if descriptor.is_valid() {
                let size = PAGE_SIZE << (LEVEL_BITS * (LEVELS_BELOW_ROOT - level));
                let flags = descriptor.flags();
                let writable = !flags.contains(El1Attributes::READ_ONLY);
                found = Some(Translation {
                    physical: descriptor.output_address().0 as u64 + virt % size,
                    writable,
                    // SCTLR_EL1.WXN
                    executable: !writable && !flags.contains(El1Attributes::PXN),
                    user: flags.contains(El1Attributes::USER),
                });
            }
            Ok(())
        })
    });
    // An address outside of the upper half is the only error.
    walked.ok().and(found)
}
