//! From PVH's 32-bit entry to the kernel's `main`.
//!
//! QEMU loads the image at its physical addresses, zeroes its bss, and jumps to the address in the
//! Xen note with `ebx` = physical address of the start info, flat segments, paging and interrupts
//! off, and no stack. The assembly maps the first 4 GiB three times over (in place, as the direct
//! map, and as the image) and enters Rust in the high half. Rust then builds the final tables.

use core::{alloc::Layout, arch::global_asm, ops::Range};

use pvh::start_info::{
    MemmapType,
    reader::{MemMap, StartInfoReader},
};
use x86_64::registers::control::{Cr0Flags, Cr4Flags, EferFlags};

use super::{IMAGE_OFFSET, apic, cpu, interrupts, paging, pic, segments};
use crate::{
    layout::{DIRECT_MAP, WINDOW},
    memory, start,
};

/// What the boot tables map, from physical address 0.
const BOOT_MAPPED: u64 = 4 << 30;
const LARGE_PAGE: u64 = 2 << 20;
const PAGE_DIRECTORIES: usize = (BOOT_MAPPED >> 30) as usize;

/// Firmware's and QEMU's tables lie here, the start info among them.
const LOW_MEMORY: Range<u64> = 0..1 << 20;

const MAX_RANGES: usize = 32;

const BOOT_CPU: usize = 0;

/// The tables that the assembly fills in. In .bss, so zero at first. The other CPUs begin on them too.
#[repr(C, align(4096))]
pub(super) struct BootTables {
    top: [u64; 512],
    low: [u64; 512],
    high: [u64; 512],
    directories: [[u64; 512]; PAGE_DIRECTORIES],
}

pub(super) static mut BOOT_TABLES: BootTables =
    BootTables { top: [0; 512], low: [0; 512], high: [0; 512], directories: [[0; 512]; PAGE_DIRECTORIES] };

unsafe extern "C" {
    // The physical address of `boot_entry`: the linker script defines it.
    fn pvh_entry_physical() -> !;
}

pvh::xen_elfnote_phys32_entry!(pvh_entry_physical);

/// Flat segments for the way to long mode, as the processor wants them.
const BOOT_CODE: u64 = 0x00af_9b00_0000_ffff;
const BOOT_DATA: u64 = 0x00cf_9300_0000_ffff;
pub(super) const BOOT_CODE_SELECTOR: u64 = 8;
pub(super) const BOOT_DATA_SELECTOR: u64 = 16;
/// With a null descriptor before them.
pub(super) const BOOT_GDT_SIZE: usize = 3 * size_of::<u64>();

/// The number of the register that switches long mode on.
pub(super) const EFER: u32 = 0xc000_0080;

/// Present and writable; with `LARGE`, a 2 MiB page.
const TABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

const fn top_slot(address: u64) -> u64 {
    (address >> 39) & 511
}

const fn second_slot(address: u64) -> u64 {
    (address >> 30) & 511
}

// In:  ebx = physical address of the start info; 32-bit protected mode, no paging, no stack.
// Out: boot_start(start info) in 64-bit mode on the boot stack, interrupts off, flags clear.
// Symbols are linked high: physical is symbol - IMAGE_OFFSET.
global_asm!(
    ".pushsection .text.boot, \"ax\", @progbits",
    ".code32",
    ".global boot_entry",
    "boot_entry:",
    "cld",
    // The page directories: every 2 MiB page of the first 4 GiB.
    "movl ${tables} + {directories} - {image}, %edi",
    "movl ${table} | {large}, %eax",
    "movl ${pages}, %ecx",
    "2: movl %eax, (%edi)",
    "addl ${large_page}, %eax",
    "addl $8, %edi",
    "decl %ecx",
    "jnz 2b",
    // The level above points at each directory in turn.
    "movl ${tables} + {low} - {image}, %edi",
    "movl ${tables} + {directories} + {table} - {image}, %eax",
    "movl ${directory_count}, %ecx",
    "2: movl %eax, (%edi)",
    "addl ${page}, %eax",
    "addl $8, %edi",
    "decl %ecx",
    "jnz 2b",
    // The image's gigabyte is the first one of RAM.
    "movl ${tables} + {directories} + {table} - {image}, %eax",
    "movl %eax, {tables} + {high} + 8 * {image_second} - {image}",
    "movl ${tables} + {low} + {table} - {image}, %eax",
    "movl %eax, {tables} - {image}",
    "movl %eax, {tables} + 8 * {direct_top} - {image}",
    "movl ${tables} + {high} + {table} - {image}, %eax",
    "movl %eax, {tables} + 8 * {image_top} - {image}",
    // Long mode.
    "movl ${pae}, %eax",
    "movl %eax, %cr4",
    "movl ${tables} - {image}, %eax",
    "movl %eax, %cr3",
    "movl ${efer}, %ecx",
    "rdmsr",
    "orl ${lme}, %eax",
    "wrmsr",
    "movl %cr0, %eax",
    "orl ${paging}, %eax",
    "movl %eax, %cr0",
    "lgdt boot_gdt_pointer - {image}",
    "ljmpl ${code_selector}, $3f - {image}",
    ".code64",
    "3: movabsq $4f, %rax",
    "jmpq *%rax",
    // In the high half from here.
    "4: movl ${data_selector}, %eax",
    "movl %eax, %ss",
    "movl %eax, %ds",
    "movl %eax, %es",
    "xorl %eax, %eax",
    "movl %eax, %fs",
    "movl %eax, %gs",
    "movabsq $__stack_top, %rsp",
    "xorl %ebp, %ebp",
    "pushq $2", // only the flag that is always set
    "popfq",
    "movl %ebx, %edi",
    "callq {start}",
    "ud2",
    ".popsection",
    ".pushsection .rodata.boot, \"a\", @progbits",
    ".balign 8",
    ".global boot_gdt",
    "boot_gdt: .quad 0, {code}, {data}",
    "boot_gdt_pointer:",
    ".word {gdt_size} - 1",
    ".long boot_gdt - {image}",
    ".popsection",
    image = const IMAGE_OFFSET as i64,
    tables = sym BOOT_TABLES,
    low = const core::mem::offset_of!(BootTables, low),
    high = const core::mem::offset_of!(BootTables, high),
    directories = const core::mem::offset_of!(BootTables, directories),
    directory_count = const PAGE_DIRECTORIES,
    pages = const BOOT_MAPPED / LARGE_PAGE,
    large_page = const LARGE_PAGE,
    page = const size_of::<[u64; 512]>(),
    table = const TABLE,
    large = const LARGE,
    direct_top = const top_slot(DIRECT_MAP),
    image_top = const top_slot(IMAGE_OFFSET),
    image_second = const second_slot(IMAGE_OFFSET),
    pae = const Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits(),
    efer = const EFER,
    lme = const EferFlags::LONG_MODE_ENABLE.bits(),
    paging = const Cr0Flags::PAGING.bits() | Cr0Flags::WRITE_PROTECT.bits(),
    gdt_size = const BOOT_GDT_SIZE,
    code = const BOOT_CODE,
    data = const BOOT_DATA,
    code_selector = const BOOT_CODE_SELECTOR,
    data_selector = const BOOT_DATA_SELECTOR,
    start = sym boot_start,
    options(att_syntax),
);

/// Reads the start info through the direct map that the boot tables have.
struct BootMap;

impl MemMap for BootMap {
    fn ptr(&self, phys: usize, layout: Layout) -> *const u8 {
        let fits = (phys as u64).checked_add(layout.size() as u64).is_some_and(|end| end <= BOOT_MAPPED);
        let aligned = phys.is_multiple_of(layout.align());
        if fits && aligned { memory::direct(phys as u64) } else { core::ptr::null() }
    }
}

/// The RAM that the start info tells of.
struct Ram {
    ranges: [Range<u64>; MAX_RANGES],
    count: usize,
}

impl Ram {
    fn read(start_info: u32) -> Self {
        // SAFETY: QEMU passed the address; it and what it points to lie below 4 GiB, where nothing
        // was written yet.
        let reader = unsafe { StartInfoReader::from_paddr(start_info, BootMap) };
        let reader = reader.expect("PVH start info");
        let mut ram = Self { ranges: [const { 0..0 }; MAX_RANGES], count: 0 };
        let usable = reader.memmap().iter().filter(|e| e.ty == u32::from(MemmapType::Ram));
        for entry in usable.take(MAX_RANGES) {
            ram.ranges[ram.count] = entry.addr..entry.addr + entry.size;
            ram.count += 1;
        }
        ram
    }

    fn ranges(&self) -> &[Range<u64>] {
        &self.ranges[..self.count]
    }
}

/// The first Rust code: on the boot stack and the boot tables.
extern "C" fn boot_start(start_info: u32) -> ! {
    const { assert!(top_slot(WINDOW.start) != top_slot(IMAGE_OFFSET)) };
    super::console::init();
    segments::init(BOOT_CPU);
    crate::cpu::install(BOOT_CPU);
    interrupts::init();
    cpu::init();
    let ram = Ram::read(start_info);
    // SAFETY: 1. the start info says so, and what firmware left is below 1 MiB. 2. The boot tables
    // map that much, and the final ones map all RAM. 3. This is the only call.
    let heap = unsafe { memory::init(ram.ranges(), &[LOW_MEMORY], BOOT_MAPPED) };
    paging::init(ram.ranges());
    pic::init();
    apic::init();
    start::run(heap)
}
