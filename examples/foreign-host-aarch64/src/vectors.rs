//! The exception vectors, and what they lead to.
//!
//! Every exception saves everything that the interrupted code can see, vector registers included (this kernel is compiled for
//! them), in a [`Frame`] on the stack of the current thread, calls [`trapped`], and puts everything back. An exception from EL0
//! also makes SP_EL0 the pointer to the current thread again, as it is throughout the kernel.

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicUsize, Ordering};

use sandbox_mode::{Arch, Backend, VirtAddr};

use crate::console::print_last;
use crate::exit::exit;
use crate::gic::{self, Kind};
use crate::registers::{read, write};
use crate::threads::{self, Cpu, Thread};
use crate::{layout, process, suite, time};

/// What the interrupted code had.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Frame {
    pub(crate) x: [u64; 31],
    pub(crate) sp_el0: u64,
    pub(crate) pc: u64,
    pub(crate) pstate: u64,
    syndrome: u64,
    address: u64,
    fpcr: u64,
    fpsr: u64,
    q: [u128; 32],
}

impl Frame {
    /// Of a program at EL0 that is about to begin.
    pub(crate) fn of_program(pc: u64, stack: u64, argument: u64) -> Frame {
        let mut x = [0; 31];
        x[0] = argument;
        // PSTATE zero is EL0 with nothing masked.
        Frame { x, sp_el0: stack, pc, pstate: 0, syndrome: 0, address: 0, fpcr: 0, fpsr: 0, q: [0; 32] }
    }
}

const _: () = assert!(size_of::<Frame>().is_multiple_of(16) && offset_of!(Frame, q).is_multiple_of(16));

// vector N: on SP_EL1, all masked. From EL0 (8 and above) SP_EL1 is the end of the current thread's stack, and TPIDR_EL1 leads
// to the current thread; otherwise it is wherever the thread was.
//
//   | the frame is filled: general registers, SP_EL0, ELR and SPSR, syndrome, vector registers
//   | from EL0: SP_EL0 = the current thread, FPCR = 0
//   | trapped(the frame, N)
//   v kernel_return: the same back, from the frame at sp; eret
global_asm!(
    ".macro vector number",
    ".balign 0x80",
    "sub sp, sp, #{size}",
    "stp x0, x1, [sp, #{x}]",
    "mov x1, #\\number",
    "b kernel_save",
    ".endm",

    ".pushsection .text.vectors, \"ax\"",
    ".balign 0x800",
    ".global kernel_vectors",
    "kernel_vectors:",
    "vector 0", "vector 1", "vector 2", "vector 3",
    "vector 4", "vector 5", "vector 6", "vector 7",
    "vector 8", "vector 9", "vector 10", "vector 11",
    "vector 12", "vector 13", "vector 14", "vector 15",
    ".balign 0x80",

    "kernel_save:",
    "stp x2, x3, [sp, #{x} + 16]",
    "stp x4, x5, [sp, #{x} + 16 * 2]",
    "stp x6, x7, [sp, #{x} + 16 * 3]",
    "stp x8, x9, [sp, #{x} + 16 * 4]",
    "stp x10, x11, [sp, #{x} + 16 * 5]",
    "stp x12, x13, [sp, #{x} + 16 * 6]",
    "stp x14, x15, [sp, #{x} + 16 * 7]",
    "stp x16, x17, [sp, #{x} + 16 * 8]",
    "stp x18, x19, [sp, #{x} + 16 * 9]",
    "stp x20, x21, [sp, #{x} + 16 * 10]",
    "stp x22, x23, [sp, #{x} + 16 * 11]",
    "stp x24, x25, [sp, #{x} + 16 * 12]",
    "stp x26, x27, [sp, #{x} + 16 * 13]",
    "stp x28, x29, [sp, #{x} + 16 * 14]",
    "mrs x20, sp_el0",
    "stp x30, x20, [sp, #{x} + 16 * 15]",
    "mrs x20, elr_el1",
    "mrs x21, spsr_el1",
    "stp x20, x21, [sp, #{pc}]",
    "mrs x20, esr_el1",
    "mrs x21, far_el1",
    "stp x20, x21, [sp, #{syndrome}]",
    "mrs x20, fpcr",
    "mrs x21, fpsr",
    "stp x20, x21, [sp, #{fpcr}]",
    "stp q0, q1, [sp, #{q}]",
    "stp q2, q3, [sp, #{q} + 32]",
    "stp q4, q5, [sp, #{q} + 32 * 2]",
    "stp q6, q7, [sp, #{q} + 32 * 3]",
    "stp q8, q9, [sp, #{q} + 32 * 4]",
    "stp q10, q11, [sp, #{q} + 32 * 5]",
    "stp q12, q13, [sp, #{q} + 32 * 6]",
    "stp q14, q15, [sp, #{q} + 32 * 7]",
    "stp q16, q17, [sp, #{q} + 32 * 8]",
    "stp q18, q19, [sp, #{q} + 32 * 9]",
    "stp q20, q21, [sp, #{q} + 32 * 10]",
    "stp q22, q23, [sp, #{q} + 32 * 11]",
    "stp q24, q25, [sp, #{q} + 32 * 12]",
    "stp q26, q27, [sp, #{q} + 32 * 13]",
    "stp q28, q29, [sp, #{q} + 32 * 14]",
    "stp q30, q31, [sp, #{q} + 32 * 15]",
    "cmp x1, #{first_of_el0}",
    "b.lo 1f",
    "mrs x20, tpidr_el1",
    "ldr x20, [x20, #{current}]",
    "msr sp_el0, x20",
    "msr fpcr, xzr",
    // Frames of EL1 follow x29; there is no caller of EL0's code.
    "mov x29, xzr",
    "1:",
    "mov x0, sp",
    "bl {trapped}",

    ".global kernel_return",
    "kernel_return:",
    "msr daifset, #0b1111",
    "ldp q0, q1, [sp, #{q}]",
    "ldp q2, q3, [sp, #{q} + 32]",
    "ldp q4, q5, [sp, #{q} + 32 * 2]",
    "ldp q6, q7, [sp, #{q} + 32 * 3]",
    "ldp q8, q9, [sp, #{q} + 32 * 4]",
    "ldp q10, q11, [sp, #{q} + 32 * 5]",
    "ldp q12, q13, [sp, #{q} + 32 * 6]",
    "ldp q14, q15, [sp, #{q} + 32 * 7]",
    "ldp q16, q17, [sp, #{q} + 32 * 8]",
    "ldp q18, q19, [sp, #{q} + 32 * 9]",
    "ldp q20, q21, [sp, #{q} + 32 * 10]",
    "ldp q22, q23, [sp, #{q} + 32 * 11]",
    "ldp q24, q25, [sp, #{q} + 32 * 12]",
    "ldp q26, q27, [sp, #{q} + 32 * 13]",
    "ldp q28, q29, [sp, #{q} + 32 * 14]",
    "ldp q30, q31, [sp, #{q} + 32 * 15]",
    "ldp x20, x21, [sp, #{fpcr}]",
    "msr fpcr, x20",
    "msr fpsr, x21",
    "ldp x20, x21, [sp, #{pc}]",
    "msr elr_el1, x20",
    "msr spsr_el1, x21",
    // Back to EL1 (SPSR_EL1.M[2] is set) SP_EL0 stays.
    "tbnz x21, #2, 1f",
    "ldr x20, [sp, #{sp_el0}]",
    "msr sp_el0, x20",
    "1:",
    "ldp x2, x3, [sp, #{x} + 16]",
    "ldp x4, x5, [sp, #{x} + 16 * 2]",
    "ldp x6, x7, [sp, #{x} + 16 * 3]",
    "ldp x8, x9, [sp, #{x} + 16 * 4]",
    "ldp x10, x11, [sp, #{x} + 16 * 5]",
    "ldp x12, x13, [sp, #{x} + 16 * 6]",
    "ldp x14, x15, [sp, #{x} + 16 * 7]",
    "ldp x16, x17, [sp, #{x} + 16 * 8]",
    "ldp x18, x19, [sp, #{x} + 16 * 9]",
    "ldp x20, x21, [sp, #{x} + 16 * 10]",
    "ldp x22, x23, [sp, #{x} + 16 * 11]",
    "ldp x24, x25, [sp, #{x} + 16 * 12]",
    "ldp x26, x27, [sp, #{x} + 16 * 13]",
    "ldp x28, x29, [sp, #{x} + 16 * 14]",
    "ldr x30, [sp, #{x} + 16 * 15]",
    "ldp x0, x1, [sp, #{x}]",
    "add sp, sp, #{size}",
    "eret",
    ".popsection",
    ".purgem vector",
    size = const size_of::<Frame>(),
    x = const offset_of!(Frame, x),
    sp_el0 = const offset_of!(Frame, sp_el0),
    pc = const offset_of!(Frame, pc),
    syndrome = const offset_of!(Frame, syndrome),
    fpcr = const offset_of!(Frame, fpcr),
    q = const offset_of!(Frame, q),
    first_of_el0 = const FIRST_OF_EL0,
    current = const offset_of!(Cpu, current),
    trapped = sym trapped,
);

// Pairs that are stored together.
const _: () = assert!(offset_of!(Frame, sp_el0) == offset_of!(Frame, x) + 31 * size_of::<u64>());
const _: () = assert!(offset_of!(Frame, pstate) == offset_of!(Frame, pc) + size_of::<u64>());
const _: () = assert!(offset_of!(Frame, address) == offset_of!(Frame, syndrome) + size_of::<u64>());
const _: () = assert!(offset_of!(Frame, fpsr) == offset_of!(Frame, fpcr) + size_of::<u64>());

unsafe extern "C" {
    static kernel_vectors: u8;
}

/// Makes these vectors the CPU's.
pub(crate) fn install() {
    // SAFETY: they handle what comes from here on.
    unsafe { write!("vbar_el1", (&raw const kernel_vectors).expose_provenance() as u64) };
}

/// Puts a frame in force and goes to EL0 on it.
///
/// # Safety
///
/// 1. `frame` is the last thing on the current thread's stack; its `pstate` is EL0's.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn go_to_program(frame: *const Frame) -> ! {
    core::arch::naked_asm!("mov sp, x0", "b kernel_return")
}

/// Vectors: of EL1 on SP_EL1, and of EL0 in AArch64.
const SYNC_EL1: u64 = 4;
const IRQ_EL1: u64 = 5;
const FIQ_EL1: u64 = 6;
const FIRST_OF_EL0: u64 = 8;
const SYNC_EL0: u64 = 8;
const IRQ_EL0: u64 = 9;
const FIQ_EL0: u64 = 10;

/// Exception classes (ESR_EL1.EC): unknown instruction, trapped system register, system call.
const CLASS_SHIFT: u32 = 26;
const UNKNOWN: u64 = 0x00;
const TRAPPED_REGISTER: u64 = 0x18;
const SYSTEM_CALL: u64 = 0x15;

/// Where to go on after an instruction of the kernel's that the CPU doesn't know, if somebody expects one.
static FIXUP: AtomicUsize = AtomicUsize::new(0);

/// Sets what is asked where to go on.
pub(crate) fn set_fixup(fixup: fn(u64) -> Option<u64>) {
    FIXUP.store(fixup as usize, Ordering::Relaxed);
}

fn fixed_up(frame: &Frame) -> Option<u64> {
    let fixup = FIXUP.load(Ordering::Relaxed);
    if fixup == 0 {
        return None;
    }
    // SAFETY: `set_fixup` stored such a function.
    let fixup = unsafe { core::mem::transmute::<usize, fn(u64) -> Option<u64>>(fixup) };
    fixup(frame.pc)
}

/// Every exception comes here.
extern "C" fn trapped(frame: &mut Frame, vector: u64) {
    let class = frame.syndrome >> CLASS_SHIFT;
    match vector {
        IRQ_EL1 | FIQ_EL1 => {
            notice(frame);
            interrupted(if vector == IRQ_EL1 { Kind::Irq } else { Kind::Fiq });
        }
        IRQ_EL0 => interrupted(Kind::Irq),
        FIQ_EL0 => interrupted(Kind::Fiq),
        SYNC_EL0 if class == SYSTEM_CALL => process::called(frame),
        SYNC_EL1 if matches!(class, UNKNOWN | TRAPPED_REGISTER) => match fixed_up(frame) {
            Some(pc) => frame.pc = pc,
            None => fatal(frame, vector),
        },
        _ => fatal(frame, vector),
    }
}

/// The exception level in a PSTATE.
fn level(pstate: u64) -> u64 {
    pstate >> 2 & 0b11
}

/// What an interrupt of the kernel's own code has to find, which a sandbox that ran just before could have spoilt.
fn notice(frame: &Frame) {
    if frame.sp_el0 != core::ptr::from_ref::<Thread>(threads::current_by_cpu()).expose_provenance() as u64 {
        threads::count_strange_pointer();
    }
    let in_gate = Backend::gate_text().contains(VirtAddr(frame.pc).page());
    assert!(layout::text().contains(&frame.pc) && !in_gate, "an interrupt at {:#x}", frame.pc);
    assert!(level(frame.pstate) == 1, "an interrupt of PSTATE {:#x}", frame.pstate);
}

fn interrupted(kind: Kind) {
    let Some(line) = gic::acknowledge(kind) else { return };
    if kind == Kind::Irq {
        // A second one may come in the middle, with a frame of its own.
        // SAFETY: the handlers of FIQs share nothing with those of IRQs.
        unsafe { core::arch::asm!("msr daifclr, #0b0001", options(nostack, preserves_flags)) };
    }
    match line {
        time::TICK => time::tick(),
        time::SECOND_TIMER => time::second_tick(),
        time::AFTER_TICK => time::after_tick(),
        time::CLOCK => time::alarm(),
        line => suite::handle(line),
    }
    // SAFETY: as they were.
    unsafe { core::arch::asm!("msr daifset, #0b0001", options(nostack, preserves_flags)) };
    gic::end(line, kind);
    if line == time::TICK {
        threads::switch_from_interrupt();
    }
}

/// Reports what cannot be handled, and ends the machine.
fn fatal(frame: &Frame, vector: u64) -> ! {
    let (class, level) = (frame.syndrome >> CLASS_SHIFT, level(frame.pstate));
    print_last(format_args!(
        "exception: vector {vector}, class {class:#x}, syndrome {:#x}, at {:#x} of EL{level}, address {:#x}\n",
        frame.syndrome, frame.pc, frame.address,
    ));
    for (number, value) in frame.x.iter().enumerate() {
        print_last(format_args!("x{number:<2} {value:#018x}{}", if number % 4 == 3 { "\n" } else { "  " }));
    }
    print_last(format_args!("sp_el0 {:#x}, spsr {:#x}, ttbr0 {:#x}\n", frame.sp_el0, frame.pstate, read!("ttbr0_el1")));
    exit(false)
}
