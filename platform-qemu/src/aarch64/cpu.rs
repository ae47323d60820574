//! What the kernel sets in the CPU beyond the MMU: hardening, and the counter of instructions.
//!
//! EL0 is denied everything that EL1 may grant it: counters, timers, the PMU, debug channels,
//! vector and floating-point registers. PAN is on if the CPU has it.

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    CNTKCTL_EL1, CPACR_EL1, ID_AA64DFR0_EL1, ID_AA64MMFR1_EL1, MDSCR_EL1, Readable, Writeable,
};
use core::arch::asm;

/// PSTATE.PAN, as the PAN register shows it.
const PAN: u64 = 1 << 22;

/// PMCR_EL0: enable, reset the cycle counter, which has 64 bits.
const PMCR_ENABLE: u64 = 1 << 0;
const PMCR_RESET_CYCLES: u64 = 1 << 2;
const PMCR_LONG_CYCLES: u64 = 1 << 6;
/// The cycle counter in PMCNTENSET_EL0.
const CYCLE_COUNTER: u64 = 1 << 31;
/// PMCCFILTR_EL0: no exception level is left out.
const COUNT_EVERYWHERE: u64 = 0;

/// Denies EL0 the debug communication channel (MDSCR_EL1.TDCC), all else off.
const MDSCR: u64 = 1 << 12;

/// ID_AA64DFR0_EL1.PMUVer: none, and one that isn't Arm's.
const PMU_NONE: u64 = 0;
const PMU_OTHER: u64 = 0xf;

/// Sets all of it up for this CPU.
pub(super) fn init() {
    // Vector, floating-point, SVE and SME instructions trap at EL0 and EL1 (FPEN, ZEN, SMEN = 0).
    CPACR_EL1.set(0);
    CNTKCTL_EL1.set(0);
    MDSCR_EL1.set(MDSCR);
    if ID_AA64MMFR1_EL1.read(ID_AA64MMFR1_EL1::PAN) != 0 {
        // SAFETY: the CPU has PAN. No page is open to EL0, so the kernel loses no access. The
        // register's name is spelled out because older assemblers' CPUs don't have it.
        unsafe { asm!("msr s3_0_c4_c2_3, {}", in(reg) PAN, options(nostack, preserves_flags)) };
    }
    init_counter();
    barrier::isb(barrier::SY);
}

/// Starts the cycle counter, for EL1 and EL0, closed to EL0.
fn init_counter() {
    let version = ID_AA64DFR0_EL1.read(ID_AA64DFR0_EL1::PMUVer);
    assert!(version != PMU_NONE && version != PMU_OTHER, "the CPU has no PMU, which counts the instructions");
    // SAFETY: the CPU has a PMU. Counting changes nothing else; its interrupts are off.
    unsafe {
        asm!(
            "msr pmuserenr_el0, xzr",
            "msr pmintenclr_el1, {all}",
            "msr pmccfiltr_el0, {filter}",
            "msr pmcntenset_el0, {cycles}",
            "msr pmcr_el0, {control}",
            all = in(reg) u64::from(u32::MAX),
            filter = in(reg) COUNT_EVERYWHERE,
            cycles = in(reg) CYCLE_COUNTER,
            control = in(reg) PMCR_ENABLE | PMCR_RESET_CYCLES | PMCR_LONG_CYCLES,
            options(nostack, preserves_flags),
        );
    }
}

/// The cycle counter. Under `-icount shift=0` QEMU counts one cycle for each instruction.
pub fn instructions() -> u64 {
    let count: u64;
    // SAFETY: reads a counter that `init` has enabled. Not `pure`: two reads differ.
    unsafe {
        asm!(
            "isb",
            "mrs {}, pmccntr_el0",
            out(reg) count,
            options(nostack, preserves_flags)
        );
    }
    count
}
