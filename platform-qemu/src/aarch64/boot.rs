//! The first instructions: from the machine's reset state to Rust code in the upper half.
//!
//! What must hold when `_start` is reached: exception level 1, MMU off, the image loaded at the
//! physical addresses that `link/virt/kernel.ld` gave it, its zero-filled part zeroed by the loader. The
//! content of every general register is ignored; the device tree is found at the start of RAM.

use super::machine_map::{RAM_START, UART};
use super::mair;
use super::secondary::{HANDOVER, Handover, start_secondary};
use crate::layout::{DIRECT_MAP, PAGE_SIZE};
use aarch64_cpu::registers::{CurrentEL, SCTLR_EL1, TCR_EL1};
use core::arch::{global_asm, naked_asm};
use core::mem::offset_of;

/// Virtual minus physical address of everything in the image; `link/virt/kernel.ld` has the same number.
pub const IMAGE_OFFSET: u64 = 0xffff_ff80_0000_0000;

/// The boot tables' direct map has the physical addresses below this one.
pub(super) const DIRECT_MAPPED: u64 = BLOCKS * GIB;

/// Entries of a table, and what one of the boot tables' blocks maps.
const BLOCKS: u64 = 512;
const GIB: u64 = 1 << 30;

/// The top-level slot of an address.
const fn slot(address: u64) -> u64 {
    address >> 39 & (BLOCKS - 1)
}

// The boot tables hold three slots: the identity map's, the direct map's, the image's. The blocks
// begin with physical address zero, and the first is for devices alone.
const _: () = assert!(slot(DIRECT_MAP) > 0 && slot(IMAGE_OFFSET) > slot(DIRECT_MAP));
const _: () = assert!(DIRECT_MAP.trailing_zeros() >= 39 && IMAGE_OFFSET.trailing_zeros() >= 39);
const _: () = assert!(UART < GIB && RAM_START == GIB);

/// Bits of SCTLR_EL1 that older versions of the architecture define as one.
const SCTLR_RES1: u64 = 1 << 29 | 1 << 28 | 1 << 22 | 1 << 20 | 1 << 11;
/// AArch32's IT instructions (in part) and SETEND are undefined at EL0.
const SCTLR_ITD_SED: u64 = 1 << 7 | 1 << 8;

/// Everything that EL0 could be allowed (cache maintenance, DC ZVA, WFI, WFE, the mask bits) is
/// denied; SPAN = 0 sets PSTATE.PAN on each exception. WXN follows once the final tables are in.
const SCTLR: u64 = SCTLR_RES1
    | SCTLR_ITD_SED
    | SCTLR_EL1::M::Enable.value
    | SCTLR_EL1::C::Cacheable.value
    | SCTLR_EL1::I::Cacheable.value
    | SCTLR_EL1::SA::Enable.value
    | SCTLR_EL1::SA0::Enable.value;

/// 48-bit addresses in both halves, 4 KiB granule, walks through the caches, no top-byte ignore,
/// no hardware update of descriptors. The physical size and the ASID size are the CPU's own.
const TCR: u64 = TCR_EL1::T0SZ.val(16).value
    | TCR_EL1::TG0::KiB_4.value
    | TCR_EL1::SH0::Inner.value
    | TCR_EL1::ORGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable.value
    | TCR_EL1::IRGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable.value
    | TCR_EL1::T1SZ.val(16).value
    | TCR_EL1::TG1::KiB_4.value
    | TCR_EL1::SH1::Inner.value
    | TCR_EL1::ORGN1::WriteBack_ReadAlloc_WriteAlloc_Cacheable.value
    | TCR_EL1::IRGN1::WriteBack_ReadAlloc_WriteAlloc_Cacheable.value;

/// Position of the field and the largest value that a 4 KiB granule without LPA2 can use (48 bits).
const TCR_IPS_SHIFT: u32 = 32;
const IPS_48_BITS: u64 = 0b101;
const TCR_AS_SHIFT: u32 = 36;

/// Fields of ID_AA64MMFR0_EL1.
const PARANGE_SHIFT: u32 = 0;
const ASID_BITS_SHIFT: u32 = 4;
const ID_FIELD_WIDTH: u32 = 4;
const ASID_16_BITS: u64 = 0b0010;

/// Descriptor bits of the boot tables.
const VALID: u64 = 1 << 0;
const TABLE: u64 = 1 << 1 | VALID;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESSED: u64 = 1 << 10;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const NORMAL_BLOCK: u64 = VALID | (mair::NORMAL << 2) | INNER_SHAREABLE | ACCESSED | UXN;
const DEVICE_BLOCK: u64 = VALID | (mair::DEVICE << 2) | ACCESSED | PXN | UXN;

// One root serves both halves: its first slot is the identity map (from TTBR0), the other two are
// the direct map and the place where the image is linked (from TTBR1). All lead to the same table
// of 1 GiB blocks: devices first, then memory. Out of use after `paging::activate`.
global_asm!(
    ".pushsection .rodata.boot_tables, \"a\"",
    ".balign {table_size}",
    ".global __boot_root",
    "__boot_root:",
    ".quad __boot_blocks - {offset} + {table}",
    ".fill {direct_slot} - 1, {entry_size}, 0",
    ".quad __boot_blocks - {offset} + {table}",
    ".fill {image_slot} - {direct_slot} - 1, {entry_size}, 0",
    ".quad __boot_blocks - {offset} + {table}",
    ".balign {table_size}",
    "__boot_blocks:",
    ".quad {device}",
    ".set __block, {gib}",
    ".rept {blocks} - 1",
    ".quad __block + {normal}",
    ".set __block, __block + {gib}",
    ".endr",
    ".popsection",
    table_size = const PAGE_SIZE,
    entry_size = const size_of::<u64>(),
    offset = const IMAGE_OFFSET,
    direct_slot = const slot(DIRECT_MAP),
    image_slot = const slot(IMAGE_OFFSET),
    table = const TABLE,
    device = const DEVICE_BLOCK,
    normal = const NORMAL_BLOCK,
    blocks = const BLOCKS,
    gib = const GIB,
);

/// The entry point, at its physical address with the MMU off.
///
/// Goes to the upper half by way of [`enter`], and calls [`super::start`] on the boot stack, all interrupts masked. Uses x9 to
/// x12.
///
/// # Safety
///
/// 1. Only the machine may enter here, in the state that the module's head names.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.boot")]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        "ldr x12, =2f",
        "b {enter}",
        "2:",
        "adrp x9, __stack_top",
        "mov sp, x9",
        "mov x29, xzr",
        "mov x30, xzr",
        "bl {start}",
        "brk #0",
        ".ltorg",
        enter = sym enter,
        start = sym super::start,
    )
}

/// The entry point of the other CPUs, at its physical address with the MMU off, the CPU's number in x0.
///
/// Goes to the upper half by way of [`enter`], to the final tables, to the stack in [`HANDOVER`], and calls
/// [`start_secondary`], all interrupts masked. Uses x9 to x12 and x19.
///
/// # Safety
///
/// 1. Only the firmware may enter here, at exception level 1 with the MMU off, when [`HANDOVER`] is filled in.
#[unsafe(naked)]
#[unsafe(link_section = ".text.boot.secondary")]
pub(super) unsafe extern "C" fn secondary() -> ! {
    naked_asm!(
        "mov x19, x0",
        "ldr x12, =2f",
        "b {enter}",
        "2:",
        "adrp x9, {handover}",
        "add x9, x9, #:lo12:{handover}",
        "ldr x0, [x9, #{root}]",
        "ldr x1, [x9, #{empty}]",
        "bl {switch}",
        "adrp x9, {handover}",
        "add x9, x9, #:lo12:{handover}",
        "add x9, x9, #{stacks}",
        "ldr x9, [x9, x19, lsl #{stack_shift}]",
        "mov sp, x9",
        "mov x0, x19",
        "mov x29, xzr",
        "mov x30, xzr",
        "bl {start}",
        "brk #0",
        ".ltorg",
        enter = sym enter,
        handover = sym HANDOVER,
        root = const offset_of!(Handover, root),
        empty = const offset_of!(Handover, empty),
        stacks = const offset_of!(Handover, stacks),
        stack_shift = const size_of::<u64>().trailing_zeros(),
        switch = sym super::paging::switch,
        start = sym start_secondary,
    )
}

/// Sets up the translation of the boot tables, turns the MMU and the caches on, and goes on at x12, an address in the upper
/// half. Uses x9 to x11.
///
/// # Safety
///
/// 1. Only entry points may branch here, the MMU still off.
#[unsafe(naked)]
#[unsafe(link_section = ".text.boot.enter")]
unsafe extern "C" fn enter() -> ! {
    naked_asm!(
        "mrs x9, CurrentEL",
        "cmp x9, #{el1}",
        "b.ne {wrong_level}",
        "msr daifset, #0b1111",
        "msr spsel, #1",
        "ic iallu",
        "tlbi vmalle1",
        "dsb nsh",
        "isb",
        "ldr x9, ={mair}",
        "msr mair_el1, x9",
        // The physical address size: the CPU's, 48 bits at the most.
        "ldr x9, ={tcr}",
        "mrs x10, id_aa64mmfr0_el1",
        "ubfx x11, x10, #{parange}, #{id_width}",
        "cmp x11, #{ips_48}",
        "b.ls 1f",
        "mov x11, #{ips_48}",
        "1:",
        "bfi x9, x11, #{ips}, #3",
        "ubfx x11, x10, #{asid_bits}, #{id_width}",
        "cmp x11, #{asid_16}",
        "cset x11, eq",
        "bfi x9, x11, #{asid_size}, #1",
        "msr tcr_el1, x9",
        "adrp x9, __boot_root",
        "msr ttbr0_el1, x9",
        "msr ttbr1_el1, x9",
        "isb",
        "ldr x9, ={sctlr}",
        "msr sctlr_el1, x9",
        "isb",
        "br x12",
        ".ltorg",
        el1 = const CurrentEL::EL::EL1.value,
        wrong_level = sym wrong_level,
        mair = const mair::VALUE,
        tcr = const TCR,
        parange = const PARANGE_SHIFT,
        id_width = const ID_FIELD_WIDTH,
        ips_48 = const IPS_48_BITS,
        ips = const TCR_IPS_SHIFT,
        asid_bits = const ASID_BITS_SHIFT,
        asid_16 = const ASID_16_BITS,
        asid_size = const TCR_AS_SHIFT,
        sctlr = const SCTLR,
    )
}

/// Prints a message with the MMU off and ends the machine with the failing status. Reached from
/// [`enter`] on any exception level but 1, where the registers that it sets aren't the ones
/// that count. Uses x0, x1, x9 and w10.
///
/// # Safety
///
/// 1. Only [`enter`] may branch here, the MMU still off.
#[unsafe(naked)]
#[unsafe(link_section = ".text.boot")]
unsafe extern "C" fn wrong_level() -> ! {
    naked_asm!(
        "mov x9, #{uart}",
        "adr x1, 2f",
        "1:",
        "ldrb w10, [x1], #1",
        "cbz w10, 3f",
        "str w10, [x9]",
        "b 1b",
        "2:",
        ".asciz \"platform-qemu: not started at EL1; leave virtualization= and secure= off\\n\"",
        ".balign 8",
        "4:",
        ".quad {stopped}, {failure}",
        "3:",
        "mov x0, #{sys_exit}",
        "adr x1, 4b",
        "hlt #0xf000",
        "5:",
        "wfe",
        "b 5b",
        uart = const UART,
        stopped = const super::exit::STOPPED_APPLICATION_EXIT,
        failure = const super::exit::FAILURE,
        sys_exit = const super::exit::SYS_EXIT,
    )
}
