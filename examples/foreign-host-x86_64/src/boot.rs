//! From QEMU's 32-bit entry to Rust: four tables that the assembler has filled in, and a few registers.
//!
//! The note names [`start32`] at the address it is linked at, which is where it is loaded. EBX holds the address of the start
//! information (the Xen project's «x86/HVM direct boot ABI»). The tables map the first gigabyte twice, in place and where the direct map
//! will be, in large pages that allow everything; `paging` makes better ones.

use core::arch::global_asm;
use core::ops::Range;

use x86_64::registers::control::{Cr0Flags, Cr4Flags, EferFlags};

use crate::{cpu, paging};

/// The type of the note, its name, and the magic number of the start information.
const PHYS32_ENTRY: u32 = 18;
const START_MAGIC: u32 = 0x336e_c578;
const MEMORY: u32 = 1;

const CODE: u64 = 0x00af_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const CODE_SELECTOR: u32 = 8;
const DATA_SELECTOR: u32 = 16;
const STACK_SIZE: u64 = 512 << 10;

global_asm!(
    ".pushsection .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 4, {note}",
    ".asciz \"Xen\"",
    ".long start32",
    ".popsection",

    ".pushsection .data.boot, \"aw\", @progbits",
    ".balign 4096",
    ".global boot_top",
    "boot_top:",
    ".quad boot_upper + 3",
    ".fill {slots_before}, 8, 0",
    ".quad boot_upper + 3",
    ".fill {slots_behind}, 8, 0",
    "boot_upper:",
    ".quad boot_lower + 3",
    ".fill 511, 8, 0",
    "boot_lower:",
    ".set boot_page, 0",
    ".rept 512",
    ".quad boot_page + 0x83",
    ".set boot_page, boot_page + 0x200000",
    ".endr",
    "boot_segments: .quad 0, {code}, {data}",
    "boot_segments_end:",
    "boot_gdtr: .word boot_segments_end - boot_segments - 1",
    ".long boot_segments",
    ".popsection",

    ".pushsection .bss.boot, \"aw\", @nobits",
    ".balign 16",
    "boot_stack: .skip {stack}",
    "boot_stack_top:",
    ".popsection",

    ".pushsection .text.boot, \"ax\", @progbits",
    ".code32",
    ".global start32",
    "start32:",
    "cli",
    "cld",
    "mov esp, offset boot_stack_top",
    "mov edi, ebx",
    "mov eax, {pae}",
    "mov cr4, eax",
    "mov eax, offset boot_top",
    "mov cr3, eax",
    "mov ecx, {efer}",
    "rdmsr",
    "or eax, {long_mode}",
    "wrmsr",
    "mov eax, {paging}",
    "mov cr0, eax",
    "lgdt [boot_gdtr]",
    "push {code_selector}",
    "mov eax, offset start64",
    "push eax",
    "retf",
    ".code64",
    "start64:",
    "mov eax, {data_selector}",
    "mov ss, eax",
    "mov ds, eax",
    "mov es, eax",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov rsp, offset boot_stack_top",
    "xor ebp, ebp",
    "mov edi, edi",
    "call {start}",
    "ud2",
    ".popsection",
    note = const PHYS32_ENTRY,
    slots_before = const paging::DIRECT_SLOT - 1,
    slots_behind = const 511 - paging::DIRECT_SLOT,
    code = const CODE,
    data = const DATA,
    stack = const STACK_SIZE,
    pae = const Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits(),
    efer = const cpu::EFER,
    long_mode = const EferFlags::LONG_MODE_ENABLE.bits() | EferFlags::NO_EXECUTE_ENABLE.bits(),
    paging = const (Cr0Flags::PAGING.bits() | Cr0Flags::WRITE_PROTECT.bits() | Cr0Flags::PROTECTED_MODE_ENABLE.bits()
        | Cr0Flags::NUMERIC_ERROR.bits() | Cr0Flags::EXTENSION_TYPE.bits()) as i64 as i32,
    code_selector = const CODE_SELECTOR,
    data_selector = const DATA_SELECTOR,
    start = sym start,
);

unsafe extern "C" {
    static boot_top: u8;
}

/// The root of the boot tables.
pub(crate) fn root() -> u64 {
    (&raw const boot_top).addr() as u64
}

#[repr(C)]
struct StartInformation {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_entries: u32,
}

#[repr(C)]
struct MemoryEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// The machine's RAM, as the start information has it.
pub(crate) struct Ram(*const StartInformation);

impl Ram {
    /// Its parts.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Range<u64>> {
        // SAFETY: QEMU passed the address of the information and in it that of the list; both lie in the first megabyte, which nobody
        // writes, and are read before the boot tables' map of it is gone.
        let entries = unsafe {
            let list = core::ptr::with_exposed_provenance::<MemoryEntry>((*self.0).memory_map as usize);
            core::slice::from_raw_parts(list, (*self.0).memory_entries as usize)
        };
        entries.iter().filter(|entry| entry.kind == MEMORY).map(|entry| entry.address..entry.address + entry.size)
    }
}

extern "C" fn start(information: u64) -> ! {
    let information = core::ptr::with_exposed_provenance::<StartInformation>(information as usize);
    // SAFETY: as in `Ram::parts`.
    assert_eq!(unsafe { (*information).magic }, START_MAGIC, "this kernel is started by QEMU's -kernel");
    crate::main(&Ram(information))
}
