//! The kernel's tables.
//!
//! | top-level entry | addresses | |
//! | --- | --- | --- |
//! | 0 | 16 MiB | the image, where it is loaded: 2 MiB pages, global |
//! | 1 | 512 GiB | a process's own; in its root only |
//! | 192 | 96 TiB | the window of the sandboxes: nothing |
//! | 288 | | the direct map of the first gigabyte: one page if the CPU has such, global |
//! | 320 | | what the HAL asked for: 4 KiB pages |
//! | 336 | | devices: 2 MiB pages, uncached, global |
//!
//! Each process has a root of its own with the same entries but its own. The tables below them are shared, so what is mapped there later
//! is in all.

use core::ops::Range;

use x86_64::registers::control::{Cr3, Cr3Flags, Cr4, Cr4Flags};
use x86_64::structures::paging::{PageTableFlags as Flags, PhysFrame};

use crate::lock::Masked;
use crate::memory::{self, FRAME, State};

/// Where processes are, and how much of it a root maps at most.
pub(crate) const PROCESS: u64 = 1 << 39;
/// Where sandboxes have their stacks.
pub(crate) const WINDOW: Range<u64> = 192 << 39..(192 << 39) + (1 << 30);
/// The direct map's entry in a root.
pub(crate) const DIRECT_SLOT: u64 = 288;
const DIRECT: u64 = high(DIRECT_SLOT);
const GATE: u64 = high(320);
const GATE_END: u64 = GATE + (1 << 21);
const DEVICES: u64 = high(336);
/// The first of the devices: the I/O APIC; the HPET and the local APIC follow.
const DEVICE_FRAMES: Range<u64> = 0xfec0_0000..0xff00_0000;

const HUGE: u64 = 1 << 30;
const HUGE_PAGES: u32 = 1 << 26;

const CONSTANT: Flags = Flags::PRESENT.union(Flags::NO_EXECUTE);
const CODE: Flags = Flags::PRESENT;
const VARIABLE: Flags = CONSTANT.union(Flags::WRITABLE);
const ANYTHING: Flags = Flags::PRESENT.union(Flags::WRITABLE);
const UNCACHED: Flags = Flags::NO_CACHE.union(Flags::WRITE_THROUGH);

/// The address of a top-level entry of the upper half.
const fn high(slot: u64) -> u64 {
    0xffff << 48 | slot << 39
}

unsafe extern "C" {
    static kernel_code: u8;
    static kernel_code_end: u8;
    static kernel_constants: u8;
    static kernel_constants_end: u8;
    static kernel_variables: u8;
    static kernel_variables_end: u8;
}

fn between(start: &'static u8, end: &'static u8) -> Range<u64> {
    (&raw const *start).addr() as u64..(&raw const *end).addr() as u64
}

/// The image's code.
pub(crate) fn code() -> Range<u64> {
    // SAFETY: the linker script's; only the addresses are used.
    unsafe { between(&kernel_code, &kernel_code_end) }
}

/// Its constants.
pub(crate) fn constants() -> Range<u64> {
    // SAFETY: as above.
    unsafe { between(&kernel_constants, &kernel_constants_end) }
}

/// All of it.
pub(crate) fn image() -> Range<u64> {
    // SAFETY: as above.
    unsafe { between(&kernel_code, &kernel_variables_end) }
}

fn variables() -> Range<u64> {
    // SAFETY: as above.
    unsafe { between(&kernel_variables, &kernel_variables_end) }
}

/// The kernel's access to a frame of the first gigabyte.
pub(crate) fn direct(frame: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut((DIRECT + frame) as usize)
}

/// The address of a device's registers.
pub(crate) fn device(physical: u64) -> u64 {
    assert!(DEVICE_FRAMES.contains(&physical));
    DEVICES + (physical - DEVICE_FRAMES.start)
}

struct Tables {
    root: u64,
    gate_next: u64,
}

static TABLES: Masked<Tables> = Masked::new(Tables { root: 0, gate_next: GATE });

fn table() -> Option<u64> {
    let table = memory::allocate(State::Table)?;
    // SAFETY: the frame is ours, and the direct map has it.
    unsafe { direct(table).write_bytes(0, FRAME as usize) };
    Some(table)
}

/// The entry for `address` in the table at `level` (3: the root), with the tables above it made if they aren't there.
fn entry(root: u64, address: u64, level: u32) -> Option<*mut u64> {
    let at =
        |table: u64, level: u32| direct(table).cast::<u64>().wrapping_add((address >> (12 + 9 * level)) as usize % 512);
    let mut here = at(root, 3);
    for below in (level..3).rev() {
        // SAFETY: an entry of a table of ours.
        let value = unsafe { here.read_volatile() };
        let next = match value {
            0 => {
                let next = table()?;
                let user = if address >> 39 == PROCESS >> 39 { Flags::USER_ACCESSIBLE } else { Flags::empty() };
                // SAFETY: as above; the new table is empty.
                unsafe { here.write_volatile(next | (ANYTHING | user).bits()) };
                next
            }
            value => value & 0x000f_ffff_ffff_f000,
        };
        here = at(next, below);
    }
    Some(here)
}

fn map_large(root: u64, addresses: Range<u64>, physical: u64, flags: Flags, level: u32) {
    let size = FRAME << (9 * level);
    let flags = flags | Flags::HUGE_PAGE | Flags::GLOBAL;
    for (address, frame) in addresses.step_by(size as usize).zip((physical..).step_by(size as usize)) {
        let entry = entry(root, address, level).expect("RAM for the first tables");
        // SAFETY: an entry of a table that no CPU uses yet.
        unsafe { entry.write_volatile(frame | flags.bits()) };
    }
}

/// Makes the kernel's root and switches to it. With `open` the whole image can be read, written and executed.
pub(crate) fn init(open: bool) {
    let root = table().expect("RAM");
    for (part, flags) in [(code(), CODE), (constants(), CONSTANT), (variables(), VARIABLE)] {
        map_large(root, part.clone(), part.start, if open { ANYTHING } else { flags }, 1);
    }
    // SAFETY: CPUID exists.
    let huge = core::arch::x86_64::__cpuid(0x8000_0001).edx & HUGE_PAGES != 0;
    map_large(root, DIRECT..DIRECT + HUGE, 0, VARIABLE, if huge { 2 } else { 1 });
    let devices = DEVICES..DEVICES + (DEVICE_FRAMES.end - DEVICE_FRAMES.start);
    map_large(root, devices, DEVICE_FRAMES.start, VARIABLE | UNCACHED, 1);
    // Before there are processes, so that they share the tables.
    entry(root, GATE, 0).expect("RAM");
    TABLES.with(|tables| tables.root = root);
    // SAFETY: the tables map all that is in use: the image and its stack, and the direct map. Nothing global was cached before.
    unsafe {
        activate(root);
        Cr4::update(|flags| flags.insert(Cr4Flags::PAGE_GLOBAL));
    }
}

/// The kernel's own root.
pub(crate) fn root() -> u64 {
    TABLES.with(|tables| tables.root)
}

/// The root in force.
pub(crate) fn current() -> u64 {
    Cr3::read().0.start_address().as_u64()
}

/// Switches to a root.
///
/// # Safety
///
/// 1. It is one of this module's, and what the caller uses of a process's is in it.
pub(crate) unsafe fn activate(root: u64) {
    let frame = PhysFrame::containing_address(x86_64::PhysAddr::new(root));
    // SAFETY: (1).
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
}

/// A new root with all that the kernel has.
pub(crate) fn make_root() -> u64 {
    let new = table().expect("RAM for a process");
    // SAFETY: two tables of ours; nobody uses the new one.
    unsafe { direct(new).copy_from_nonoverlapping(direct(root()), FRAME as usize) };
    new
}

/// Maps a frame for a process: user code may read it, with `writable` also write, with `executable` also execute it.
pub(crate) fn map_process(root: u64, address: u64, frame: u64, writable: bool, executable: bool) {
    assert_eq!(address >> 39, PROCESS >> 39);
    let mut flags = Flags::PRESENT | Flags::USER_ACCESSIBLE;
    flags.set(Flags::WRITABLE, writable);
    flags.set(Flags::NO_EXECUTE, !executable);
    let entry = entry(root, address, 0).expect("RAM for a process");
    // SAFETY: an entry of a process's own part that nobody has used yet.
    unsafe { entry.write_volatile(frame | flags.bits()) };
}

/// Maps frames side by side in every root, readable and writable, for good.
pub(crate) fn map_shared(frames: impl ExactSizeIterator<Item = u64>) -> Option<u64> {
    TABLES.with(|tables| {
        let start = tables.gate_next;
        let end = start + frames.len() as u64 * FRAME;
        if end > GATE_END {
            return None;
        }
        for (address, frame) in (start..end).step_by(FRAME as usize).zip(frames) {
            // SAFETY: an entry of the shared table that nobody has used yet.
            unsafe { entry(tables.root, address, 0)?.write_volatile(frame | VARIABLE.bits()) };
        }
        tables.gate_next = end;
        Some(start)
    })
}

/// Calls `work` while no table changes.
pub(crate) fn unchanged<R>(work: impl FnOnce() -> R) -> R {
    TABLES.with(|_| work())
}
