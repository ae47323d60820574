//! The first instructions of every interrupt and exception.
//!
//! They rely on nothing that the interrupted code chose but its stack, which in privileged mode is
//! the kernel's: the direction flag is cleared; GS is the kernel's own whenever kernel code runs. The alignment-check flag may still be
//! set and lift SMAP; no handler touches unprivileged memory.

use core::{arch::global_asm, fmt};

use super::exceptions::on_interrupt;
use crate::interrupts::Interrupted;

/// What the stack holds when [`on_interrupt`] runs, lowest address first.
///
/// The stub pushed the vector, and a zero where the processor has no error code; the rest below it
/// is the general registers, above it the processor's own frame.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Frame {
    pub(super) registers: [u64; REGISTERS.len()],
    pub(super) vector: u64,
    pub(super) error: u64,
    pub(super) rip: u64,
    pub(super) cs: u64,
    pub(super) flags: u64,
    pub(super) rsp: u64,
    pub(super) ss: u64,
}

// The processor aligns the stack to 16 before its frame, so the frame's size decides whether the
// Rust function gets the alignment it expects.
const _: () = assert!(size_of::<Frame>().is_multiple_of(16));

/// The registers in the order of [`Frame::registers`].
const REGISTERS: [&str; 15] =
    ["r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rbp", "rdi", "rsi", "rdx", "rcx", "rbx", "rax"];

/// Vectors with an error code, one bit each.
const ERROR_CODES: u64 = {
    let vectors = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30];
    let mut bits = 0;
    let mut i = 0;
    while i < vectors.len() {
        bits |= 1 << vectors[i];
        i += 1;
    }
    bits
};

/// Distance from one vector's stub to the next.
pub(super) const STUB_SIZE: u64 = 16;

unsafe extern "C" {
    /// The stub of vector 0.
    pub(super) static interrupt_stubs: u8;
}

// In:  the processor's frame, with an error code or not, on a 16-byte aligned stack; interrupts
//      off; the direction flag and every register as the interrupted code had them.
// Out: every register and flag as it was, unless `on_interrupt` changed the frame.
global_asm!(
    ".pushsection .text.interrupt_entry, \"ax\", @progbits",
    ".balign {stub_size}",
    ".global interrupt_stubs",
    "interrupt_stubs:",
    ".set interrupt_vector, 0",
    ".rept 256",
    ".balign {stub_size}",
    ".if (interrupt_vector >= 64) || ((({error_codes}) >> (interrupt_vector & 63)) & 1) == 0",
    "push 0",
    ".endif",
    "push interrupt_vector",
    "jmp 2f",
    ".set interrupt_vector, interrupt_vector + 1",
    ".endr",
    "2:",
    "push rax",
    "push rbx",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push rbp",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "call {handler}",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rbp",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rbx",
    "pop rax",
    "add rsp, {pushed}", // vector and error code
    "iretq",
    ".popsection",
    stub_size = const STUB_SIZE,
    error_codes = const ERROR_CODES,
    pushed = const core::mem::offset_of!(Frame, rip) - core::mem::offset_of!(Frame, vector),
    handler = sym on_interrupt,
);

/// The privilege level in a selector, and the interrupt flag.
const CS_RPL: u64 = 0b11;
const FLAGS_IF: u64 = 1 << 9;

impl Frame {
    /// What handlers may know of it.
    pub(crate) fn interrupted(&self) -> Interrupted {
        Interrupted {
            instruction: self.rip,
            stack: self.rsp,
            privileged: self.cs & CS_RPL == 0,
            enabled: self.flags & FLAGS_IF != 0,
        }
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { error, rip, cs, flags, rsp, ss, .. } = *self;
        writeln!(f, "error code {error:#x}")?;
        writeln!(f, "rip {cs:02x}:{rip:016x}  rsp {ss:02x}:{rsp:016x}  flags {flags:#x}")?;
        for (i, (name, value)) in REGISTERS.iter().zip(self.registers).enumerate() {
            let end = if i % 4 == 3 { "\n" } else { "  " };
            write!(f, "{name:>3} {value:016x}{end}")?;
        }
        Ok(())
    }
}
