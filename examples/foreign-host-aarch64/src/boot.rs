//! From the machine's reset state to Rust code in the upper half.
//!
//! What must hold at `entry`: translation is off, and the image lies where `kernel.ld` loads it. The kernel may begin at EL1 or at
//! EL2. From EL2 it goes down to EL1 where the CPU has nothing better; where it has virtualization host extensions it stays,
//! as big kernels do, with the names of EL1's registers standing for those of EL2.
//!
//! The first tables are constants: an identity map, and in the upper half the first GiB of RAM twice (as RAM and as the image)
//! and the devices.

use core::arch::naked_asm;

use crate::layout::{DEVICES, DIRECT, GIB, IMAGE_OFFSET, LOWER_BITS, RAM, UPPER_BITS};
use crate::tables::{self, DEVICE, EXECUTABLE, PRIVATE, WRITABLE};

/// A table.
#[repr(C, align(4096))]
pub(crate) struct Table(pub(crate) [u64; 512]);

/// Which entry of a table of 1 GiB blocks an address of the upper half has.
const fn slot(address: u64) -> usize {
    ((address & ((1 << UPPER_BITS) - 1)) / GIB) as usize
}

const fn block(physical: u64, attributes: u64) -> u64 {
    physical | attributes | tables::VALID
}

/// Only boot code executes from here, so it need not be writable; but data of the stage before `main` is.
const IMAGE: u64 = WRITABLE | EXECUTABLE;

static FIRST_LOWER: Table = {
    let mut table = [0; 512];
    table[(RAM / GIB) as usize] = block(RAM, IMAGE);
    Table(table)
};

static FIRST_UPPER: Table = {
    let mut table = [0; 512];
    table[slot(RAM + IMAGE_OFFSET)] = block(RAM, IMAGE);
    table[slot(DIRECT)] = block(RAM, WRITABLE | PRIVATE);
    table[slot(DEVICES)] = block(0, DEVICE);
    Table(table)
};

/// MAIR_EL1: write-back memory, devices without gathering and reordering, memory past the caches.
pub(crate) const MAIR: u64 = 0x44_00_ff;

/// CPACR_EL1.FPEN: floating point and vectors work at EL1 and EL0.
const VECTORS_ON: u64 = 0b11 << 20;

/// SCTLR_EL1: bits that must be one; SED, ITD; M, C, I, SA, SA0. As in Linux, processes may use DC ZVA, read CTR_EL0, maintain
/// caches, and wait for events (DZE, UCT, UCI, nTWE).
const SCTLR: u64 = 0x3050_0800 & !(1 << 23)
    | 1 << 8
    | 1 << 7
    | 1 << 0
    | 1 << 2
    | 1 << 12
    | 1 << 3
    | 1 << 4
    | 1 << 14
    | 1 << 15
    | 1 << 26
    | 1 << 18;

/// TCR_EL1: the upper half's size; 4 KiB granules; walks through the caches, shared inner.
const TCR: u64 = (64 - UPPER_BITS) << 16 | 0b10 << 30 | 0b11 << 12 | 0b11 << 28 | 0b0101 << 8 | 0b0101 << 24;
/// The lower half's size at first, for which the first table is a root, and then.
const TCR_FIRST: u64 = TCR | (64 - UPPER_BITS);
const T0SZ_MASK: u64 = 0b11_1111;
/// Physical addresses of up to 48 bits (TCR_EL1.IPS); 16-bit ASIDs (AS).
const IPS_48: u64 = 0b101;
const IPS_SHIFT: u64 = 32;
const AS_SHIFT: u64 = 36;
/// TCR_EL1.E0PD1: EL0 gets no timing from walks of the upper half.
pub(crate) const TCR_E0PD1: u64 = 1 << 56;

/// HCR_EL2.RW: EL1 is AArch64. With E2H and TGE it is EL2 that a kernel and its processes live under.
const HCR_EL1_KERNEL: u64 = 1 << 31;
const HCR_EL2_KERNEL: u64 = 1 << 31 | 1 << 34 | 1 << 27;
/// CNTHCTL_EL2: EL1 may use counters and timers. CPTR_EL2: nothing traps. ICC_SRE_EL2: system registers, for EL1 too.
const CNTHCTL: u64 = 0b11;
const CPTR: u64 = 0x33ff;
const ICC_SRE: u64 = 0b1111;
/// SPSR_EL2: EL1 on its own stack pointer, all masked.
const SPSR_EL1H: u64 = 0x3c5;

/// Where the machine starts, physically, with any registers. Goes to [`crate::main`] on the first stack, all masked.
///
/// # Safety
///
/// 1. Only the machine comes here.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.entry")]
unsafe extern "C" fn entry() -> ! {
    naked_asm!(
        "msr daifset, #0b1111",
        "msr spsel, #1",
        "mrs x9, currentel",
        "cmp x9, #{el2}",
        "b.ne 2f",
        // EL2. With the extensions (ID_AA64MMFR1_EL1.VH) it is as good as EL1.
        "mrs x9, icc_sre_el2",
        "orr x9, x9, #{icc_sre}",
        "msr icc_sre_el2, x9",
        "isb",
        "mrs x9, id_aa64mmfr1_el1",
        "ubfx x9, x9, #8, #4",
        "ldr x10, ={hcr_el2}",
        "cbnz x9, 1f",
        "mov x10, #{hcr_el1}",
        "msr hcr_el2, x10",
        "mov x10, #{cnthctl}",
        "msr cnthctl_el2, x10",
        "msr cntvoff_el2, xzr",
        "mov x10, #{cptr}",
        "msr cptr_el2, x10",
        "msr hstr_el2, xzr",
        "mrs x10, midr_el1",
        "msr vpidr_el2, x10",
        "mrs x10, mpidr_el1",
        "msr vmpidr_el2, x10",
        "mov x10, #{spsr}",
        "msr spsr_el2, x10",
        "adr x10, 2f",
        "msr elr_el2, x10",
        "eret",
        "1:",
        "msr hcr_el2, x10",
        "isb",
        "2:",
        "mov x9, #{vectors}",
        "msr cpacr_el1, x9",
        "ldr x9, ={mair}",
        "msr mair_el1, x9",
        "ldr x9, ={tcr}",
        "mrs x10, id_aa64mmfr0_el1",
        "and x11, x10, #0b1111",
        "mov x12, #{ips_48}",
        "cmp x11, x12",
        "csel x11, x11, x12, lo",
        "bfi x9, x11, #{ips_shift}, #3",
        "ubfx x11, x10, #5, #1", // ID_AA64MMFR0_EL1.ASIDBits is 0b0010 for 16
        "bfi x9, x11, #{as_shift}, #1",
        "msr tcr_el1, x9",
        "adrp x9, {lower}",
        "msr ttbr0_el1, x9",
        "adrp x9, {upper}",
        "msr ttbr1_el1, x9",
        "isb",
        "ic iallu",
        "tlbi vmalle1",
        "dsb nsh",
        "isb",
        "ldr x9, ={sctlr}",
        "msr sctlr_el1, x9",
        "isb",
        "ldr x9, =3f",
        "br x9",
        "3:",
        "ldr x9, =stack_top",
        "mov sp, x9",
        "mov x29, xzr",
        "mov x30, xzr",
        "bl {main}",
        "brk #0",
        ".ltorg",
        el2 = const 2 << 2,
        icc_sre = const ICC_SRE,
        hcr_el2 = const HCR_EL2_KERNEL,
        hcr_el1 = const HCR_EL1_KERNEL,
        cnthctl = const CNTHCTL,
        cptr = const CPTR,
        spsr = const SPSR_EL1H,
        vectors = const VECTORS_ON,
        mair = const MAIR,
        tcr = const TCR_FIRST,
        ips_48 = const IPS_48,
        ips_shift = const IPS_SHIFT,
        as_shift = const AS_SHIFT,
        lower = sym FIRST_LOWER,
        upper = sym FIRST_UPPER,
        sctlr = const SCTLR,
        main = sym crate::main,
    )
}

/// Puts the kernel's own tables in force: no two translations of an address at a time, so the code runs from the identity map,
/// without the upper half, while one goes and the other comes. `lower` is the root of the lower half from then on, with
/// addresses of all its bits.
///
/// # Safety
///
/// 1. The first tables are in force, interrupts are masked.
/// 2. `upper` maps the image, the stack and all else that is used, where the first tables have it; `lower` is a table.
pub(crate) unsafe fn replace_tables(upper: u64, lower: u64) {
    let physical = (switch as *const () as u64 - IMAGE_OFFSET) as usize;
    let tcr = crate::registers::read!("tcr_el1") & !T0SZ_MASK | (64 - LOWER_BITS);
    let e0pd = if crate::registers::cpu::has_e0pd() { TCR_E0PD1 } else { 0 };
    // SAFETY: the identity map has the same code there.
    let switch = unsafe { core::mem::transmute::<usize, unsafe extern "C" fn(u64, u64, u64)>(physical) };
    // SAFETY: (1), (2).
    unsafe { switch(upper, lower, tcr | e0pd) }
}

/// # Safety
///
/// 1. As [`replace_tables`], and called at its physical address; `tcr` is the new TCR_EL1.
#[unsafe(naked)]
#[unsafe(link_section = ".text.entry")]
unsafe extern "C" fn switch(upper: u64, lower: u64, tcr: u64) {
    naked_asm!(
        // Walks of the upper half are off (EPD1) until its root is right.
        "orr x3, x2, #{epd1}",
        "mrs x4, tcr_el1",
        "orr x4, x4, #{epd1}",
        "msr tcr_el1, x4",
        "isb",
        "tlbi vmalle1",
        "dsb nsh",
        "isb",
        "msr ttbr1_el1, x0",
        "isb",
        "bic x4, x4, #{epd1}",
        "msr tcr_el1, x4",
        "isb",
        // And from the upper half the same with the lower.
        "ldr x5, =1f",
        "br x5",
        "1:",
        "msr ttbr0_el1, x1",
        "msr tcr_el1, x2",
        "isb",
        "tlbi vmalle1",
        "dsb nsh",
        "isb",
        "ret",
        ".ltorg",
        epd1 = const 1u64 << 23,
    )
}
