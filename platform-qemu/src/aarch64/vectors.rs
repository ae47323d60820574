//! The exception vectors.
//!
//! IRQ and FIQ from the kernel save what a function call may change, ELR_EL1 and SPSR_EL1, call
//! Rust and go back; an interrupt may therefore nest once a handler unmasks. Everything else is an
//! error of the kernel: the registers are reported and the machine ends with the failing status.
//! That path runs on a stack of its own, because the exception may be the overflow of the kernel's.
//! It goes back only after an instruction that may be refused (see [`crate::fixup`]).

use super::{interrupts, report};
use crate::cpu::{Local, MAX_CPUS};
use crate::interrupts::Interrupted;
use aarch64_cpu::registers::{VBAR_EL1, Writeable};
use core::arch::{asm, global_asm};
use core::mem::offset_of;

/// What an interrupt saves: the registers that a function call may change, and where to go back.
#[repr(C)]
pub(crate) struct InterruptFrame {
    /// x0 to x18; the slot after x18 keeps the pairs aligned.
    general: [u64; 20],
    /// x29 and x30: the frame pointer makes the interrupted function show up in a backtrace.
    frame_and_link: [u64; 2],
    elr: u64,
    spsr: u64,
}

const _: () = assert!(size_of::<InterruptFrame>().is_multiple_of(16));

/// SPSR_EL1: the exception level, and the mask of IRQs (Arm ARM, "SPSR_EL1").
const SPSR_LEVEL: u64 = 0b1100;
const SPSR_I: u64 = 1 << 7;

impl InterruptFrame {
    /// What handlers may know of it.
    pub(crate) fn interrupted(&self) -> Interrupted {
        Interrupted {
            instruction: self.elr,
            // The frame is on the interrupted stack.
            stack: core::ptr::from_ref(self) as u64 + size_of::<Self>() as u64,
            privileged: self.spsr & SPSR_LEVEL != 0,
            enabled: self.spsr & SPSR_I == 0,
        }
    }
}

/// The registers at a fatal exception, the argument of [`report::report`].
#[repr(C)]
pub(super) struct Registers {
    /// x0 to x30.
    pub(super) general: [u64; 31],
    pub(super) sp: u64,
    pub(super) elr: u64,
    pub(super) spsr: u64,
    pub(super) esr: u64,
    pub(super) far: u64,
}

const REPORT_STACK_SIZE: usize = 16 * 1024;

/// Where the fatal path saves the registers, and the stack that it then uses: the stack grows down
/// from the registers.
#[repr(C, align(16))]
pub(super) struct ReportArea {
    stack: [u8; REPORT_STACK_SIZE],
    registers: Registers,
}

// The vectors add the offset in one instruction, which takes a multiple of 4096.
const _: () = assert!(offset_of!(ReportArea, registers).is_multiple_of(4096));

const NO_REPORT: ReportArea = ReportArea {
    stack: [0; REPORT_STACK_SIZE],
    registers: Registers { general: [0; 31], sp: 0, elr: 0, spsr: 0, esr: 0, far: 0 },
};

/// Written by the vectors only, each CPU its own. No exception is expected in the fatal path, so it is used once at a
/// time.
static mut REPORT_AREAS: [ReportArea; MAX_CPUS] = [NO_REPORT; MAX_CPUS];

/// A CPU's own.
pub(super) fn report_area(cpu: usize) -> *mut ReportArea {
    assert!(cpu < MAX_CPUS);
    // SAFETY: the index is in the array; no reference is made.
    unsafe { (&raw mut REPORT_AREAS).cast::<ReportArea>().add(cpu) }
}

// `interrupt`: SP_EL1 is a good stack with room for the frame (it is the interrupted code's own).
// Interrupts are masked until the handler unmasks them, and masked again before ELR_EL1 and
// SPSR_EL1 are written, whatever the handler did.
//
// `fatal`: any state of the kernel, SP included; TPIDR_EL1 points to the CPU's `Local`. x0 survives in
// TPIDRRO_EL0, which the kernel doesn't use: it is zero otherwise;
// after `fatal`, x0 is the address of the saved registers and x1 the number of the vector. If the
// report returns, so does the exception, to the saved registers as the report left them.
global_asm!(
    ".macro __save_pair first, second",
    "stp x\\first, x\\second, [sp, #{general} + {size} * \\first]",
    ".endm",
    ".macro __load_pair first, second",
    "ldp x\\first, x\\second, [sp, #{general} + {size} * \\first]",
    ".endm",

    ".macro __interrupt handler",
    "sub sp, sp, #{frame_size}",
    "__save_pair 0, 1",
    "__save_pair 2, 3",
    "__save_pair 4, 5",
    "__save_pair 6, 7",
    "__save_pair 8, 9",
    "__save_pair 10, 11",
    "__save_pair 12, 13",
    "__save_pair 14, 15",
    "__save_pair 16, 17",
    "str x18, [sp, #{general} + {size} * 18]",
    "stp x29, x30, [sp, #{frame_and_link}]",
    "mrs x9, elr_el1",
    "mrs x10, spsr_el1",
    "stp x9, x10, [sp, #{frame_elr}]",
    "mov x0, sp",
    "bl \\handler",
    "b __interrupt_return",
    ".endm",

    ".macro __fatal vector",
    ".balign {slot}",
    "msr tpidrro_el0, x0",
    "mrs x0, tpidr_el1",
    "ldr x0, [x0, #{area}]",
    "add x0, x0, #{registers}",
    "stp x1, x2, [x0, #{saved} + {size}]",
    "mov x1, #\\vector",
    "b __fatal_common",
    ".endm",

    ".pushsection .text.vectors, \"ax\"",
    ".balign 2048",
    ".global __vectors",
    "__vectors:",
    // Current level, SP_EL0: the kernel never runs on it.
    "__fatal 0",
    "__fatal 1",
    "__fatal 2",
    "__fatal 3",
    // Current level, SP_EL1.
    "__fatal 4",
    ".balign {slot}",
    "__interrupt {irq}",
    ".balign {slot}",
    "__interrupt {fiq}",
    "__fatal 7",
    // Lower level, AArch64 and AArch32: this table isn't the one in use while such code runs.
    "__fatal 8",
    "__fatal 9",
    "__fatal 10",
    "__fatal 11",
    "__fatal 12",
    "__fatal 13",
    "__fatal 14",
    "__fatal 15",
    ".balign {slot}",

    "__interrupt_return:",
    "msr daifset, #0b1111",
    "ldp x9, x10, [sp, #{frame_elr}]",
    "msr elr_el1, x9",
    "msr spsr_el1, x10",
    "ldp x29, x30, [sp, #{frame_and_link}]",
    "ldr x18, [sp, #{general} + {size} * 18]",
    "__load_pair 16, 17",
    "__load_pair 14, 15",
    "__load_pair 12, 13",
    "__load_pair 10, 11",
    "__load_pair 8, 9",
    "__load_pair 6, 7",
    "__load_pair 4, 5",
    "__load_pair 2, 3",
    "__load_pair 0, 1",
    "add sp, sp, #{frame_size}",
    "eret",

    "__fatal_common:",
    ".macro __keep_pair first, second",
    "stp x\\first, x\\second, [x0, #{saved} + {size} * \\first]",
    ".endm",
    "__keep_pair 3, 4",
    "__keep_pair 5, 6",
    "__keep_pair 7, 8",
    "__keep_pair 9, 10",
    "__keep_pair 11, 12",
    "__keep_pair 13, 14",
    "__keep_pair 15, 16",
    "__keep_pair 17, 18",
    "__keep_pair 19, 20",
    "__keep_pair 21, 22",
    "__keep_pair 23, 24",
    "__keep_pair 25, 26",
    "__keep_pair 27, 28",
    "__keep_pair 29, 30",
    "mrs x2, tpidrro_el0",
    "msr tpidrro_el0, xzr",
    "str x2, [x0, #{saved}]",
    "mov x2, sp",
    "mrs x3, elr_el1",
    "mrs x4, spsr_el1",
    "mrs x5, esr_el1",
    "mrs x6, far_el1",
    "str x2, [x0, #{sp}]",
    "str x3, [x0, #{elr}]",
    "str x4, [x0, #{spsr}]",
    "str x5, [x0, #{esr}]",
    "str x6, [x0, #{far}]",
    "mov sp, x0",
    "mov x29, xzr",
    "bl {report}",
    "mov x0, sp",
    "ldr x1, [x0, #{sp}]",
    "mov sp, x1",
    "ldr x1, [x0, #{elr}]",
    "ldr x2, [x0, #{spsr}]",
    "msr elr_el1, x1",
    "msr spsr_el1, x2",
    ".macro __back_pair first, second",
    "ldp x\\first, x\\second, [x0, #{saved} + {size} * \\first]",
    ".endm",
    "__back_pair 29, 30",
    "__back_pair 27, 28",
    "__back_pair 25, 26",
    "__back_pair 23, 24",
    "__back_pair 21, 22",
    "__back_pair 19, 20",
    "__back_pair 17, 18",
    "__back_pair 15, 16",
    "__back_pair 13, 14",
    "__back_pair 11, 12",
    "__back_pair 9, 10",
    "__back_pair 7, 8",
    "__back_pair 5, 6",
    "__back_pair 3, 4",
    "__back_pair 1, 2",
    "ldr x0, [x0, #{saved}]",
    "eret",
    ".popsection",

    ".purgem __save_pair",
    ".purgem __load_pair",
    ".purgem __keep_pair",
    ".purgem __back_pair",
    ".purgem __interrupt",
    ".purgem __fatal",
    slot = const 0x80,
    size = const size_of::<u64>(),
    frame_size = const size_of::<InterruptFrame>(),
    general = const offset_of!(InterruptFrame, general),
    frame_and_link = const offset_of!(InterruptFrame, frame_and_link),
    frame_elr = const offset_of!(InterruptFrame, elr),
    area = const offset_of!(Local, machine.report),
    registers = const offset_of!(ReportArea, registers),
    saved = const offset_of!(Registers, general),
    sp = const offset_of!(Registers, sp),
    elr = const offset_of!(Registers, elr),
    spsr = const offset_of!(Registers, spsr),
    esr = const offset_of!(Registers, esr),
    far = const offset_of!(Registers, far),
    irq = sym interrupts::irq,
    fiq = sym interrupts::fiq,
    report = sym report::report,
);

// `stp` of ELR and SPSR as a pair.
const _: () = assert!(offset_of!(InterruptFrame, spsr) == offset_of!(InterruptFrame, elr) + size_of::<u64>());

/// Makes this table the CPU's.
pub(super) fn install() {
    let vectors: u64;
    // SAFETY: computes the address of a symbol of the image, nothing else.
    unsafe {
        asm!(
            "adrp {0}, __vectors",
            "add {0}, {0}, #:lo12:__vectors",
            out(reg) vectors,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    VBAR_EL1.set(vectors);
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
}
