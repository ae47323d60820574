//! The last words of a kernel that took an exception it can't handle.

use super::exit;
use super::vectors::Registers;
use crate::console::print_unlocked;
use crate::cpu;
use crate::fixup;
use crate::panic::Reporter;
use core::fmt::{self, Display, Formatter};

/// An exception during a report ends the machine without words.
static REPORTER: Reporter = Reporter::new();

/// The vector of synchronous exceptions of the kernel's.
const SYNCHRONOUS: u64 = 4;

/// Prints the registers and ends the machine with the failing status. Returns, with another place to go on in `registers`, if
/// the instruction was one that may be refused. The vectors call this.
pub(super) extern "C" fn report(registers: &mut Registers, vector: u64) {
    if vector == SYNCHRONOUS
        && is_refusal(registers.esr)
        && let Some(next) = fixup::find(registers.elr)
    {
        registers.elr = next;
        return;
    }
    if REPORTER.begin() {
        // Whoever holds the console's lock was interrupted and won't run again.
        print_unlocked(format_args!("{}", Report { registers, vector }));
    }
    exit::exit(false)
}

/// Whether a syndrome is of an instruction that is undefined or trapped (Arm ARM, ESR_EL1, field EC).
fn is_refusal(esr: u64) -> bool {
    matches!(esr >> 26 & 0x3f, 0x00 | 0x07 | 0x09 | 0x18 | 0x19 | 0x1d)
}

/// The names of the four kinds and the four sources, in the order of the vectors.
const KINDS: [&str; 4] = ["synchronous exception", "IRQ", "FIQ", "SError"];
const SOURCES: [&str; 4] = ["EL1 on SP_EL0", "EL1", "EL0 (AArch64)", "EL0 (AArch32)"];

/// What to print.
struct Report<'a> {
    registers: &'a Registers,
    /// Number of the vector, from the start of the table.
    vector: u64,
}

impl Display for Report<'_> {
    fn fmt(&self, out: &mut Formatter) -> fmt::Result {
        let Self { registers, vector } = *self;
        let kind = KINDS[vector as usize % KINDS.len()];
        let source = SOURCES[vector as usize / KINDS.len() % SOURCES.len()];
        writeln!(out, "\nfatal: {kind} from {source} on CPU {}", cpu::index())?;
        writeln!(out, "esr  {:016x}  {}", registers.esr, class(registers.esr))?;
        writeln!(out, "far  {:016x}  elr  {:016x}", registers.far, registers.elr)?;
        writeln!(out, "spsr {:016x}  sp   {:016x}", registers.spsr, registers.sp)?;
        for (row, values) in registers.general.chunks(2).enumerate() {
            for (column, value) in values.iter().enumerate() {
                let separator = if column == 0 { "" } else { "  " };
                write!(out, "{separator}x{:<3} {value:016x}", row * 2 + column)?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

/// The exception class of a syndrome, for the classes that a kernel can meet.
fn class(esr: u64) -> &'static str {
    match esr >> 26 & 0x3f {
        0x00 => "unknown (undefined instruction)",
        0x01 => "WFI or WFE",
        0x07 => "vector or floating-point instruction",
        0x09 => "pointer authentication instruction",
        0x0d => "branch target",
        0x0e => "illegal execution state",
        0x15 => "SVC",
        0x16 => "HVC",
        0x17 => "SMC",
        0x18 => "system instruction",
        0x19 => "SVE instruction",
        0x1c => "pointer authentication failure",
        0x1d => "SME instruction",
        0x20 | 0x21 => "instruction abort",
        0x22 => "PC alignment",
        0x24 | 0x25 => data_abort(esr),
        0x26 => "SP alignment",
        0x2f => "SError",
        0x30 | 0x31 => "hardware breakpoint",
        0x32 | 0x33 => "software step",
        0x34 | 0x35 => "watchpoint",
        0x3c => "BRK",
        _ => "other",
    }
}

/// Whether a data abort was a write (bit 6 of the syndrome).
fn data_abort(esr: u64) -> &'static str {
    if esr >> 6 & 1 == 1 { "data abort, write" } else { "data abort, read" }
}
