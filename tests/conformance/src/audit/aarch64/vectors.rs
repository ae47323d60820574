//! V0 to V31, and with SVE the whole of Z0 to Z31, P0 to P15 and FFR, in the length that the kernel has set (ZCR_EL1): what is
//! beyond can be reached neither by the kernel nor by a sandbox.
//!
//! The instructions are spelled out in numbers: the kernel is built for a CPU without them.

use core::arch::global_asm;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CPACR_EL1, ID_AA64PFR0_EL1, ID_AA64PFR1_EL1, Readable, Writeable};

use super::super::Snapshot;

/// CPACR_EL1: ZEN, FPEN, SMEN.
const ZEN: u64 = 0b11 << 16;
const FPEN: u64 = 0b11 << 20;
const SMEN: u64 = 0b11 << 24;
/// ID_AA64PFR0_EL1.FP: all ones if there is none.
const PFR0_FP: u32 = 16;
const NONE: u64 = 0b1111;
/// ID_AA64PFR1_EL1.SME.
const PFR1_SME: u32 = 24;

/// The longest registers there are, in words; predicates and FFR have a bit for each byte.
const Z_WORDS: usize = 2048 / 64;
const P_WORDS: usize = Z_WORDS / 8;
const P_REGISTERS: usize = 17;

fn has_fp() -> bool {
    ID_AA64PFR0_EL1.get() >> PFR0_FP & NONE != NONE
}

fn has_sve() -> bool {
    ID_AA64PFR0_EL1.read(ID_AA64PFR0_EL1::SVE) != 0
}

fn has_sme() -> bool {
    ID_AA64PFR1_EL1.get() >> PFR1_SME & 0b1111 != 0
}

/// What EL1 and EL0 may use now.
pub(super) fn access() -> u64 {
    CPACR_EL1.get()
}

/// Runs `work` with access to all vector registers.
///
/// # Safety
///
/// 1. `work` leaves them alone.
/// 2. Interrupts are masked.
pub(super) unsafe fn with_access<R>(work: impl FnOnce() -> R) -> R {
    let before = CPACR_EL1.get();
    let units = [(has_fp(), FPEN), (has_sve(), ZEN), (has_sme(), SMEN)];
    let all = units.iter().filter(|(present, _)| *present).fold(before, |bits, (_, unit)| bits | unit);
    CPACR_EL1.set(all);
    barrier::isb(barrier::SY);
    let result = work();
    CPACR_EL1.set(before);
    barrier::isb(barrier::SY);
    result
}

// audit_vectors(x0 = 32 * 16 bytes): V0 to V31, `str qN, [x0], #16` each.
// audit_vector_length() -> x0: bytes of a Z register, `rdvl x0, #1`.
// audit_long_vectors(x0 = 32 registers, x1 = 17 predicates): `str zN, [x0, #N, mul vl]`, `str pN, [x1, #N, mul vl]`, and
// P0 again with FFR in it: `rdffr p0.b`, stored as the 17th; P0 is put back.
global_asm!(
    ".pushsection .text.audit, \"ax\", @progbits",
    ".global audit_vectors",
    "audit_vectors:",
    ".set audit_vector, 0",
    ".rept 32",
    ".inst 0x3c810400 | audit_vector",
    ".set audit_vector, audit_vector + 1",
    ".endr",
    "ret",
    ".global audit_vector_length",
    "audit_vector_length:",
    ".inst 0x04bf5020",
    "ret",
    ".global audit_long_vectors",
    "audit_long_vectors:",
    ".set audit_vector, 0",
    ".rept 32",
    // The number of the slot is in bits 21 to 16 and 12 to 10.
    ".inst 0xe5804000 | ((audit_vector >> 3) << 16) | ((audit_vector & 7) << 10) | audit_vector",
    ".set audit_vector, audit_vector + 1",
    ".endr",
    ".set audit_vector, 0",
    ".rept 16",
    ".inst 0xe5800020 | ((audit_vector >> 3) << 16) | ((audit_vector & 7) << 10) | audit_vector",
    ".set audit_vector, audit_vector + 1",
    ".endr",
    ".inst 0x2519f000",             // rdffr p0.b
    ".inst 0xe5800020 | (2 << 16)", // str p0, [x1, #16, mul vl]
    ".inst 0x85800020",             // ldr p0, [x1]
    "ret",
    ".popsection",
);

unsafe extern "C" {
    /// # Safety
    ///
    /// 1. FPEN is open.
    fn audit_vectors(into: &mut [u64; 64]);
    /// # Safety
    ///
    /// 1. The CPU has SVE, and ZEN is open.
    fn audit_vector_length() -> u64;
    /// # Safety
    ///
    /// 1. As above.
    fn audit_long_vectors(registers: &mut [u64; 32 * Z_WORDS], predicates: &mut [u64; P_REGISTERS * P_WORDS]);
}

/// Reads them. Called in [`with_access`].
pub(super) fn look(snapshot: &mut Snapshot) {
    if has_sve() {
        let mut registers = [0; 32 * Z_WORDS];
        let mut predicates = [0; P_REGISTERS * P_WORDS];
        // SAFETY: (1) of each: `with_access`.
        let length = unsafe {
            audit_long_vectors(&mut registers, &mut predicates);
            audit_vector_length() as usize
        };
        snapshot.all("Z0 to Z31", registers.into_iter().take(32 * length / size_of::<u64>()));
        // In bits, since predicates are 2 bytes at least.
        snapshot.all("P0 to P15 and FFR", predicates.into_iter().take((P_REGISTERS * length / 8).div_ceil(8)));
    } else if has_fp() {
        let mut registers = [0; 64];
        // SAFETY: (1) `with_access`.
        unsafe { audit_vectors(&mut registers) };
        snapshot.all("V0 to V31", registers);
    }
}
