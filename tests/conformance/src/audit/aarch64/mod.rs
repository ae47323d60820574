//! What EL1 can read on AArch64: every system register that has an encoding, and the vector registers.
//!
//! Not readable, and so not here: SP_EL1, which is the stack pointer in use, and ZA, which is off as SVCR shows.

mod names;
pub(crate) mod registers;
mod vectors;

use core::arch::asm;
use core::fmt;

use aarch64_cpu::registers::{ID_AA64MMFR1_EL1, Readable as _, SCTLR_EL1};
use alloc::vec::Vec;

use registers::encoding;
pub(super) use registers::fixup;

use super::{Ignored, Register, Snapshot};
use crate::machine::USED_BY_CODE;

const SYSTEM: &str = "system register";
const DAIF: &str = "DAIF";

const fn ignored(encoding: u16, name: &'static str, bits: u64, reason: &'static str) -> Ignored {
    Ignored { register: Register::of(SYSTEM, encoding as u32), name, bits, reason }
}

const COUNTS: &str = "counts";
const LAST_EXCEPTION: &str = "of the last exception, and only handlers read it, after one of their own";
const PENDING: &str = "interrupts that are pending at this moment";
const ACKNOWLEDGES: &str = "not read: reading acknowledges an interrupt";
const CONSUMES: &str = "not read: reading takes a word out of the debug channel";
const RANDOM: &str = "not read: a random number each time";

/// What may differ.
pub(super) const IGNORED: &[Ignored] = &[
    ignored(encoding(3, 3, 14, 0, 1), "CNTPCT_EL0", u64::MAX, COUNTS),
    ignored(encoding(3, 3, 14, 0, 2), "CNTVCT_EL0", u64::MAX, COUNTS),
    ignored(encoding(3, 3, 14, 0, 5), "CNTPCTSS_EL0", u64::MAX, COUNTS),
    ignored(encoding(3, 3, 14, 0, 6), "CNTVCTSS_EL0", u64::MAX, COUNTS),
    ignored(encoding(3, 3, 14, 2, 0), "CNTP_TVAL_EL0", u64::MAX, COUNTS),
    ignored(encoding(3, 3, 14, 3, 0), "CNTV_TVAL_EL0", u64::MAX, COUNTS),
    ignored(encoding(3, 3, 14, 3, 1), "CNTV_CTL_EL0.ISTATUS", 1 << 2, PENDING),
    ignored(
        encoding(3, 3, 14, 3, 2),
        "CNTV_CVAL_EL0",
        u64::MAX,
        "when the next tick is due: the tick's handler changes it",
    ),
    ignored(encoding(3, 3, 9, 13, 0), "PMCCNTR_EL0", u64::MAX, COUNTS),
    ignored(encoding(3, 0, 12, 1, 0), "ISR_EL1", u64::MAX, PENDING),
    ignored(encoding(3, 0, 12, 8, 2), "ICC_HPPIR0_EL1", u64::MAX, PENDING),
    ignored(encoding(3, 0, 12, 12, 2), "ICC_HPPIR1_EL1", u64::MAX, PENDING),
    ignored(encoding(3, 0, 4, 0, 0), "SPSR_EL1", u64::MAX, LAST_EXCEPTION),
    ignored(encoding(3, 0, 4, 0, 1), "ELR_EL1", u64::MAX, LAST_EXCEPTION),
    ignored(encoding(3, 0, 5, 2, 0), "ESR_EL1", u64::MAX, LAST_EXCEPTION),
    ignored(encoding(3, 0, 6, 0, 0), "FAR_EL1", u64::MAX, LAST_EXCEPTION),
    ignored(encoding(3, 3, 4, 2, 0), "NZCV", u64::MAX, "results of the last instruction, undefined after any call"),
];

/// What is not read.
pub(super) const NOT_READ: &[Ignored] = &[
    ignored(encoding(3, 0, 12, 8, 0), "ICC_IAR0_EL1", u64::MAX, ACKNOWLEDGES),
    ignored(encoding(3, 0, 12, 12, 0), "ICC_IAR1_EL1", u64::MAX, ACKNOWLEDGES),
    ignored(encoding(3, 0, 12, 9, 5), "ICC_NMIAR1_EL1", u64::MAX, ACKNOWLEDGES),
    ignored(encoding(2, 3, 0, 4, 0), "DBGDTR_EL0", u64::MAX, CONSUMES),
    ignored(encoding(2, 3, 0, 5, 0), "DBGDTRRX_EL0", u64::MAX, CONSUMES),
    ignored(encoding(3, 3, 2, 4, 0), "RNDR", u64::MAX, RANDOM),
    ignored(encoding(3, 3, 2, 4, 1), "RNDRRS", u64::MAX, RANDOM),
];

/// How a register is called that is one of many.
pub(super) fn name(group: &str, number: u32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match group {
        SYSTEM => {
            let number = number as u16;
            registers::name(number, f)?;
            names::of(number).map_or(Ok(()), |name| write!(f, " ({name})"))
        }
        group => write!(f, "{group}, word {number}"),
    }
}

/// The masks, which masking interrupts changes.
pub(super) fn look_before_masking(snapshot: &mut Snapshot) {
    let daif: u64;
    // SAFETY: reading has no effect.
    unsafe { asm!("mrs {}, daif", out(reg) daif, options(nomem, nostack, preserves_flags)) };
    snapshot.only(DAIF, daif);
}

/// What this CPU lets be read.
pub(super) struct Readable {
    system: Vec<u16>,
}

/// Words of the vector registers at most: 2048 bits in each of 32, a bit for each byte in predicates.
const VECTOR_WORDS: usize = 32 * 32 + 17 * 4 + 8;

impl Readable {
    pub(super) fn find() -> Readable {
        // SAFETY: (1) registers are read, which leaves no trace in vector registers; (2) interrupts are masked.
        let system = unsafe { vectors::with_access(|| registers::readable(|number| !is_left_out(number))) };
        Readable { system }
    }

    /// How many words a snapshot has at most.
    pub(super) fn words(&self) -> usize {
        self.system.len() + VECTOR_WORDS + 8
    }

    /// Reads everything. Interrupts are masked.
    pub(super) fn look(&self, snapshot: &mut Snapshot) {
        // As they are before the auditor gives itself access.
        snapshot.only("CPACR_EL1 in force", vectors::access());
        // SAFETY: (1) registers are read; (2) interrupts are masked.
        unsafe {
            vectors::with_access(|| {
                for &number in &self.system {
                    // One that is refused now is missing, and that is a difference.
                    if let Some(value) = registers::read(number) {
                        snapshot.number(SYSTEM, number.into(), value);
                    }
                }
                // What code is compiled to use has changed before anybody looks again.
                if !USED_BY_CODE {
                    vectors::look(snapshot);
                }
            });
        }
    }
}

fn is_left_out(number: u16) -> bool {
    /// FPSR, which computations change.
    const RESULTS: u16 = encoding(3, 3, 4, 4, 1);
    if USED_BY_CODE && number == RESULTS {
        return true;
    }
    // Masking interrupts changed this one; it is looked at before.
    const MASKS: u16 = encoding(3, 3, 4, 2, 1);
    number == MASKS || NOT_READ.iter().any(|other| other.register == Register::of(SYSTEM, number.into()))
}

/// Protections of the kernel's: whether the CPU has each, and whether it is on.
pub(crate) fn protections() -> impl Iterator<Item = (&'static str, bool, bool)> {
    /// SCTLR_EL1.SPAN: clear if exceptions set PSTATE.PAN.
    const SPAN: u64 = 1 << 23;
    /// PSTATE.PAN in its register.
    const PAN: u64 = 1 << 22;
    const PAN_REGISTER: u16 = encoding(3, 0, 4, 2, 3);
    let sctlr = SCTLR_EL1.get();
    let has_pan = ID_AA64MMFR1_EL1.read(ID_AA64MMFR1_EL1::PAN) != 0;
    let pan = has_pan && registers::read(PAN_REGISTER).is_some_and(|value| value & PAN != 0);
    [
        ("PAN", has_pan, pan && sctlr & SPAN == 0),
        ("SCTLR_EL1.WXN", true, SCTLR_EL1.is_set(SCTLR_EL1::WXN)),
        ("SCTLR_EL1.SA", true, SCTLR_EL1.is_set(SCTLR_EL1::SA)),
    ]
    .into_iter()
}
