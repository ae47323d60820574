//! Bringing up the other CPUs.
//!
//! All of them start at once, in real mode, at the page that the startup interrupt names. The code there enters long mode on
//! the boot tables, which still map the first 4 GiB in place, goes to the high half, takes a number, and enters Rust on
//! the final tables and a stack of its own.

use core::{
    arch::global_asm,
    slice,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use x86_64::registers::control::{Cr0Flags, Cr4Flags, EferFlags};

use super::{IMAGE_OFFSET, apic, boot, cpu as modes, interrupts, paging, pit, segments};
use crate::{
    cpu::{self, MAX_CPUS},
    fw_cfg, memory,
};

/// Where the code for real mode goes: a page of conventional memory that nobody uses after the boot.
const TRAMPOLINE: u64 = 0x8000;

/// The root that the CPUs go on with, and the tops of their stacks.
static ROOT: AtomicU64 = AtomicU64::new(0);
static STACKS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// How many of the stacks there are.
static COUNT: AtomicU32 = AtomicU32::new(0);
/// The number that the next CPU takes.
static NEXT: AtomicU32 = AtomicU32::new(1);

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
}

// In:  real mode at TRAMPOLINE:0 as after INIT and a startup interrupt; interrupts off.
// Out: secondary_start(number) in 64-bit mode on the final tables and the number's stack; interrupts off, flags clear. A CPU
//      without a number halts.
// Symbols are linked high: physical is symbol - IMAGE_OFFSET.
global_asm!(
    ".pushsection .rodata.trampoline, \"a\", @progbits",
    ".code16",
    ".global trampoline_start",
    "trampoline_start:",
    "cli",
    "movw %cs, %ax",
    "movw %ax, %ds",
    "movl ${pae}, %eax",
    "movl %eax, %cr4",
    "movl ${tables} - {image}, %eax",
    "movl %eax, %cr3",
    "movl ${efer}, %ecx",
    "rdmsr",
    "orl ${efer_flags}, %eax",
    "wrmsr",
    "lgdtl trampoline_gdt - trampoline_start",
    // Paging and protection at once: long mode begins with the jump. The caches, off after INIT, go on.
    "movl ${cr0}, %eax",
    "movl %eax, %cr0",
    "ljmpl ${code_selector}, $secondary_low - {image}",
    ".balign 8",
    "trampoline_gdt:",
    ".word {gdt_limit}",
    ".long boot_gdt - {image}",
    ".global trampoline_end",
    "trampoline_end:",
    ".popsection",
    ".pushsection .text.boot.secondary, \"ax\", @progbits",
    ".code64",
    "secondary_low:",
    "movabsq $2f, %rax",
    "jmpq *%rax",
    // In the high half from here.
    "2: movl ${data_selector}, %eax",
    "movl %eax, %ss",
    "movl %eax, %ds",
    "movl %eax, %es",
    "xorl %eax, %eax",
    "movl %eax, %fs",
    "movl %eax, %gs",
    "movq {root}(%rip), %rax",
    "movq %rax, %cr3",
    "movl $1, %edi",
    "lock xaddl %edi, {next}(%rip)",
    "cmpl {count}(%rip), %edi",
    "jae 4f",
    "leaq {stacks}(%rip), %rax",
    "movq (%rax, %rdi, {stack_size}), %rsp",
    "xorl %ebp, %ebp",
    "pushq $2", // only the flag that is always set
    "popfq",
    "callq {start}",
    "ud2",
    "4: hlt",
    "jmp 4b",
    ".popsection",
    image = const IMAGE_OFFSET as i64,
    tables = sym boot::BOOT_TABLES,
    pae = const Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits(),
    efer = const boot::EFER,
    efer_flags = const EferFlags::LONG_MODE_ENABLE.bits() | EferFlags::NO_EXECUTE_ENABLE.bits(),
    cr0 = const Cr0Flags::PAGING.bits() | Cr0Flags::WRITE_PROTECT.bits() | Cr0Flags::PROTECTED_MODE_ENABLE.bits(),
    code_selector = const boot::BOOT_CODE_SELECTOR,
    data_selector = const boot::BOOT_DATA_SELECTOR,
    gdt_limit = const boot::BOOT_GDT_SIZE - 1,
    root = sym ROOT,
    next = sym NEXT,
    count = sym COUNT,
    stacks = sym STACKS,
    stack_size = const size_of::<AtomicU64>(),
    start = sym secondary_start,
    options(att_syntax),
);

/// How many CPUs the machine has, this one included.
pub(crate) fn present() -> usize {
    // Without the device, nobody said anything of others.
    fw_cfg::cpu_count().unwrap_or(1)
}

/// Starts all but this one, as far as there are stacks.
pub(crate) fn start(count: usize, stacks: &[u64; MAX_CPUS]) {
    for (slot, stack) in STACKS.iter().zip(stacks) {
        slot.store(*stack, Ordering::Relaxed);
    }
    COUNT.store(count as u32, Ordering::Relaxed);
    ROOT.store(paging::root(), Ordering::Relaxed);
    let first = &raw const trampoline_start;
    // SAFETY: both symbols are of the same piece of constants.
    let code = unsafe { slice::from_raw_parts(first, (&raw const trampoline_end).offset_from_unsigned(first)) };
    // SAFETY: the page is RAM, in the direct map, and reserved: what the firmware left there was read at boot.
    unsafe { memory::direct(TRAMPOLINE).copy_from_nonoverlapping(code.as_ptr(), code.len()) };
    // The times are SDM 3, section 9.4.4 ("MP Initialization Example"), and more.
    let wait = || pit::hundredth(|| {}, || {});
    apic::send_init_to_others();
    wait();
    for _ in 0..2 {
        apic::send_startup_to_others((TRAMPOLINE / crate::layout::PAGE_SIZE) as u8);
        wait();
    }
}

/// The first Rust code of another CPU.
extern "C" fn secondary_start(index: u32) -> ! {
    let index = index as usize;
    segments::init(index);
    cpu::install(index);
    interrupts::load();
    modes::init();
    apic::init_cpu();
    cpu::run_secondary()
}
