//! What the machine must have, and must not have, for the rules to hold.

use sandbox_core::Unsupported;

use crate::format::Vmsa;

/// SCTLR_EL1 bits that this version cannot run with (Arm ARM, section D23.2.131).
const FORBIDDEN_SCTLR: [(u64, &str); 4] = [
    (
        1 << 13 | 1 << 27 | 1 << 30 | 1 << 31,
        "pointer authentication, whose keys EL0 would share (SCTLR_EL1.EnIA to EnDB)",
    ),
    (1 << 25, "big-endian data at EL1 (SCTLR_EL1.EE)"),
    (0b1111 << 38 | 1 << 42 | 1 << 43, "memory tagging (SCTLR_EL1.TCF, ATA)"),
    (1 << 61, "non-maskable interrupts (SCTLR_EL1.NMI)"),
];
/// SCTLR_EL1.M: translation is on.
const SCTLR_M: u64 = 1 << 0;

/// SCTLR2_EL1 bits: NMEA lets an SError through PSTATE.A, EASE brings external aborts to another vector.
const FORBIDDEN_SCTLR2: u64 = 1 << 2 | 1 << 5;

/// TCR2_EL1.HAFT, an accessed bit in table entries, is the only thing there that the format can live with.
const TCR2_HAFT: u64 = 1 << 11;

/// TCR_EL1.E0PD0 and E0PD1: EL0 can't use the half at all.
const TCR_E0PD: u64 = 1 << 55 | 1 << 56;

/// What the probe looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) exception_level: u64,
    /// Whether the stack pointer in use is the exception level's own.
    pub(crate) own_stack_pointer: bool,
    pub(crate) sctlr: u64,
    /// 0 on CPUs without.
    pub(crate) sctlr2: u64,
    pub(crate) tcr: u64,
    /// 0 on CPUs without.
    pub(crate) tcr2: u64,
    pub(crate) mair: u64,
    /// GCSCR_EL1 and GCSCRE0_EL1 together; 0 on CPUs without.
    pub(crate) guarded_stacks: u64,
}

impl Cpu {
    /// Checks all but [`keeps_el0_out`](Cpu::keeps_el0_out), which `start_cpu` may change; returns the format of the tables.
    pub(crate) fn check(&self) -> Result<Vmsa, Unsupported> {
        if self.exception_level != 1 {
            return Err(Unsupported::Mode(self.exception_level));
        }
        if !self.own_stack_pointer {
            return Err(Unsupported::Missing("a kernel on SP_EL1 (PSTATE.SP = 1)"));
        }
        if self.sctlr & SCTLR_M == 0 {
            return Err(Unsupported::Missing("address translation (SCTLR_EL1.M)"));
        }
        for (bits, name) in FORBIDDEN_SCTLR {
            if self.sctlr & bits != 0 {
                return Err(Unsupported::Enabled(name));
            }
        }
        if self.sctlr2 & FORBIDDEN_SCTLR2 != 0 {
            return Err(Unsupported::Enabled("unmasked or redirected error exceptions (SCTLR2_EL1.NMEA, EASE)"));
        }
        if self.tcr2 & !TCR2_HAFT != 0 {
            return Err(Unsupported::Enabled(
                "permission indirection or other extended translation control (TCR2_EL1)",
            ));
        }
        if self.guarded_stacks != 0 {
            return Err(Unsupported::Enabled("guarded control stacks (GCSCR_EL1, GCSCRE0_EL1)"));
        }
        Vmsa::from_registers(self.tcr, self.mair, self.sctlr)
    }

    /// Whether EL0 is kept out of a half of the address space, as a defence against timing attacks.
    pub(crate) fn keeps_el0_out(&self) -> bool {
        self.tcr & TCR_E0PD != 0
    }
}

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
mod cpu {
    use aarch64_cpu::registers::{
        CurrentEL, ID_AA64DFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64MMFR2_EL1, ID_AA64PFR0_EL1, ID_AA64PFR1_EL1, MAIR_EL1,
        Readable, SCTLR_EL1, SPSel, TCR_EL1, Writeable,
    };

    use super::{Cpu, TCR_E0PD};
    use crate::state::{Units, pstate};
    use crate::system;

    /// A four-bit field of an identification register.
    fn field(register: u64, shift: u32) -> u64 {
        register >> shift & 0b1111
    }

    /// ID_AA64MMFR3_EL1: TCR2_EL1 and SCTLR2_EL1 exist.
    const MMFR3_TCRX: u32 = 0;
    const MMFR3_SCTLRX: u32 = 4;
    /// ID_AA64PFR1_EL1: PSTATE.SSBS exists, and from 2 on a register for it; from 2 on memory tags have effects; guarded
    /// control stacks exist.
    const PFR1_SSBS: u32 = 4;
    const PFR1_MTE: u32 = 8;
    const PFR1_GCS: u32 = 44;
    /// ID_AA64PFR0_EL1.
    const PFR0_RAS: u32 = 28;
    const PFR0_AMU: u32 = 44;
    const PFR0_DIT: u32 = 48;
    /// ID_AA64MMFR1_EL1.
    const MMFR1_PAN: u32 = 20;
    /// ID_AA64MMFR2_EL1.
    const MMFR2_UAO: u32 = 4;
    /// ID_AA64DFR0_EL1: performance monitors exist; 15 means that they aren't Arm's.
    const DFR0_PMU: u32 = 8;

    impl Cpu {
        /// Reads this CPU's registers.
        pub(crate) fn read() -> Cpu {
            let exception_level = CurrentEL.read(CurrentEL::EL);
            if exception_level != 1 {
                // The other registers are those of EL1, whatever they mean to code elsewhere.
                return Cpu { exception_level, ..Cpu::default() };
            }
            // SAFETY: reserved identification registers read as zero.
            let mmfr3 = unsafe { system::read_mmfr3() };
            let if_present = |present: u64, read: unsafe fn() -> u64| match present {
                0 => 0,
                // SAFETY: the CPU has the register.
                _ => unsafe { read() },
            };
            let guarded = field(ID_AA64PFR1_EL1.get(), PFR1_GCS);
            Cpu {
                exception_level,
                own_stack_pointer: SPSel.read(SPSel::SP) != 0,
                sctlr: SCTLR_EL1.get(),
                sctlr2: if_present(field(mmfr3, MMFR3_SCTLRX), system::read_sctlr2),
                tcr: TCR_EL1.get(),
                tcr2: if_present(field(mmfr3, MMFR3_TCRX), system::read_tcr2),
                mair: MAIR_EL1.get(),
                guarded_stacks: if_present(guarded, system::read_gcscr) | if_present(guarded, system::read_gcscre0),
            }
        }
    }

    /// Lets EL0 use both halves of the address space on this CPU.
    ///
    /// # Safety
    ///
    /// 1. The host agrees.
    pub(crate) unsafe fn let_el0_in() {
        TCR_EL1.set(TCR_EL1.get() & !TCR_E0PD);
        aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    }

    /// The bits of PSTATE beyond the first architecture's that this CPU has, and a register for.
    pub(crate) fn pstate_features() -> u64 {
        [
            (pstate::PAN, field(ID_AA64MMFR1_EL1.get(), MMFR1_PAN) != 0),
            (pstate::UAO, field(ID_AA64MMFR2_EL1.get(), MMFR2_UAO) != 0),
            (pstate::DIT, field(ID_AA64PFR0_EL1.get(), PFR0_DIT) != 0),
            (pstate::SSBS, field(ID_AA64PFR1_EL1.get(), PFR1_SSBS) >= 2),
            (pstate::TCO, field(ID_AA64PFR1_EL1.get(), PFR1_MTE) >= 2),
        ]
        .iter()
        .filter_map(|&(bit, present)| present.then_some(bit))
        .sum()
    }

    /// The units that this CPU has.
    pub(crate) fn units() -> Units {
        Units {
            performance_monitors: !matches!(field(ID_AA64DFR0_EL1.get(), DFR0_PMU), 0 | 15),
            activity_monitors: field(ID_AA64PFR0_EL1.get(), PFR0_AMU) != 0,
            deferred_errors: field(ID_AA64PFR0_EL1.get(), PFR0_RAS) != 0,
        }
    }
}

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
pub(crate) use cpu::{let_el0_in, pstate_features, units};

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Cpu = Cpu {
        exception_level: 1,
        own_stack_pointer: true,
        sctlr: 0x30d0_1805 & !(1 << 13),
        sctlr2: 0,
        tcr: 16 | 16 << 16 | 0b10 << 30,
        tcr2: 0,
        mair: 0xff,
        guarded_stacks: 0,
    };

    #[test]
    fn an_ordinary_host_passes() {
        assert!(GOOD.check().is_ok());
        assert!(Cpu { tcr2: TCR2_HAFT, ..GOOD }.check().is_ok());
        // Hardware-managed access and dirty bits, and an ASID from either half.
        assert!(Cpu { tcr: GOOD.tcr | 1 << 22 | 1 << 39 | 1 << 40, ..GOOD }.check().is_ok());
    }

    #[test]
    fn what_is_not_handled_is_refused() {
        let enabled = |cpu: Cpu| matches!(cpu.check(), Err(Unsupported::Enabled(_)));
        for bit in [13, 25, 27, 30, 31, 38, 39, 40, 41, 42, 43, 61] {
            assert!(enabled(Cpu { sctlr: GOOD.sctlr | 1 << bit, ..GOOD }), "SCTLR_EL1 bit {bit}");
        }
        for bit in [2, 5] {
            assert!(enabled(Cpu { sctlr2: 1 << bit, ..GOOD }), "SCTLR2_EL1 bit {bit}");
        }
        for bit in (0..64).filter(|&bit| 1 << bit != TCR2_HAFT) {
            assert!(enabled(Cpu { tcr2: 1 << bit, ..GOOD }), "TCR2_EL1 bit {bit}");
        }
        assert!(enabled(Cpu { guarded_stacks: 1, ..GOOD }));
        assert!(enabled(Cpu { tcr: GOOD.tcr | 1 << 59, ..GOOD }));
        for level in [0, 2, 3] {
            assert_eq!(Cpu { exception_level: level, ..GOOD }.check(), Err(Unsupported::Mode(level)));
        }
        for cpu in [
            Cpu { own_stack_pointer: false, ..GOOD },
            Cpu { sctlr: GOOD.sctlr & !SCTLR_M, ..GOOD },
            Cpu { mair: 0, ..GOOD },
        ] {
            assert!(matches!(cpu.check(), Err(Unsupported::Missing(_))));
        }
    }

    #[test]
    fn e0pd_needs_consent() {
        assert!(!GOOD.keeps_el0_out());
        for bit in [55, 56] {
            let cpu = Cpu { tcr: GOOD.tcr | 1 << bit, ..GOOD };
            assert!(cpu.keeps_el0_out() && cpu.check().is_ok());
        }
    }
}
