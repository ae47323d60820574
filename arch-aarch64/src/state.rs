//! The register table: every piece of CPU state that unprivileged code can read, change or be affected by, and what a run does
//! with it.
//!
//! | state | on entry | on exit | where | shown by |
//! | --- | --- | --- | --- | --- |
//! | x0 to x30 | the sandbox's; zero at the start of a call except argument and function | callee-saved ones and x18 popped, the rest the compiler's | enter.s, exit.s | leaks, poison, `callee_saved_registers_are_kept` |
//! | SP_EL0 | the sandbox's | the host's, read at this entry | enter.s, exit.s | auditor, poison |
//! | SP_EL1 | the gate's frame | the host's, read at this entry | enter.s, exit.s | every call that returns |
//! | PC, ELR_EL1, SPSR_EL1 | the sandbox's | the host's ELR and SPSR, read at this entry | enter.s, exit.s | `an_interrupted_run_leaves_the_hosts_state` |
//! | ESR_EL1, FAR_EL1 | host values; not readable | what the sandbox's last exception left; only handlers read them, after an exception of their own | - | leaks (reading), the auditor's reason |
//! | NZCV | the sandbox's own; clear at the start of a call | undefined, as after any call | [`sandbox_pstate`] | poison; unit test |
//! | PSTATE.D, I, F | the caller's; EL0 cannot change them (SCTLR_EL1.UMA) | all masked, until the HAL restores the caller's | [`sandbox_pstate`] | `a_masked_caller_has_its_sandbox_masked`; unit test |
//! | PSTATE.A | set: an SError waits for the host's own mask | masked | [`sandbox_pstate`] | unit tests here and in gate.rs; note below |
//! | DISR_EL1 | the host's; written by EL0's ESB | as before, or the host is told: note below | arch.rs | auditor; unit test |
//! | PSTATE.PAN, UAO, TCO | PAN set, the others clear; without meaning at EL0, except TCO where the host uses no tags | the host's, where the CPU has them | exit.s | auditor, poison; unit test |
//! | PSTATE.DIT | the host's or the sandbox's own, whichever is stricter | the host's | exit.s | auditor, poison; unit test |
//! | PSTATE.SSBS | the host's; clear (the strict value) where the CPU can't tell | the host's, or what every exception sets | exit.s | auditor, poison; unit test |
//! | PSTATE.SS, IL, BTYPE, M | clear: EL0, AArch64 | set by the exception | [`sandbox_pstate`] | unit test |
//! | TTBR0_EL1, TTBR1_EL1 | the view's; ASID 0, or one of the CPU's for sandboxes; no common translations | the host's bit for bit, read at this entry | enter.s, exit.s | auditor, translations; unit tests in gate.rs, asids.rs |
//! | TCR_EL1 | the host's; A1 turned over while the host's ASID is in the half without the gate | the host's bit for bit, read at this entry | roots.s | auditor; unit tests in gate.rs, asids.rs |
//! | VBAR_EL1 | the gate's vectors | the host's, read at this entry | enter.s, exit.s | auditor; unit tests in gate.rs |
//! | TPIDR_EL0 | the sandbox's own, zero at first | the host's | enter.s, exit.s | leaks, poison, `the_thread_base_is_not_the_hosts` |
//! | TPIDRRO_EL0 | zero | the host's | enter.s, exit.s | leaks, auditor |
//! | TPIDR_EL1, CONTEXTIDR_EL1, PAR_EL1 and other registers of EL1 | out of reach | unchanged | - | leaks (reading), auditor |
//! | TPIDR2_EL0, SCXTNUM_EL0, FPMR | trap (SCTLR_EL1.EnTP2, TSCXT, EnFPM) | as before | [`Controls`] | leaks; unit test |
//! | V0 to V31, FPCR, FPSR | trap (CPACR_EL1.FPEN); in a sandbox with vectors its own, zero at the start of a call | as before; with vectors loaded, before any compiled code | [`Controls`], vectors_swap.s | auditor, `floating_point_ends_the_sandbox_where_the_host_uses_it`, vectors |
//! | SVE and SME registers, and what they add to V0 to V31 | trap (CPACR_EL1.ZEN, SMEN); no vectors for sandboxes if the host has them on for EL1 | as before | [`Controls`], vectors.rs | auditor; unit tests in vectors.rs |
//! | POR_EL0 | traps (CPACR_EL1.E0POE) | as before | [`Controls`] | unit test |
//! | DAIF, WFI, WFE, cache maintenance, DC ZVA, CTR_EL0, prediction restriction, LD64B, transactions | trap (SCTLR_EL1) | as before | [`Controls`] | `privileged_ones_end_the_sandbox_where_the_host_allows_more`; unit test |
//! | data endianness | little (SCTLR_EL1.E0E) | as before | [`Controls`] | unit test |
//! | alignment checks, BTI, MOPS, WXN | as the host configured them (SCTLR_EL1) | unchanged | - | auditor |
//! | timers | trap (CNTKCTL_EL1.EL0VTEN, EL0PTEN) | as before | [`Controls`] | `privileged_ones_end_the_sandbox_where_the_host_allows_more` |
//! | counters, CNTFRQ_EL0, RNDR | as the host configured them | read-only | - | leaks (reading) |
//! | performance monitors | trap (PMUSERENR_EL0) | as before | [`Controls`] | `privileged_ones_end_the_sandbox_where_the_host_allows_more` |
//! | activity monitors | trap (AMUSERENR_EL0) | as before | [`Controls`] | unit test (QEMU's CPUs have none) |
//! | debug channel, single step, breakpoints, watchpoints, system PMU | off or trap (MDSCR_EL1) | as before | [`Controls`] | auditor; calls under the suite's breakpoint; unit test |
//! | statistical profiling, trace buffers | as the host configured them; their buffers aren't in the view, so what is on at EL0 stops with a buffer fault | - | - | review: QEMU has neither |
//! | implementation-defined registers | as the host configured them (ACTLR_EL1, SCTLR_EL1.TIDCP) | - | - | leaks (reading) |
//! | pointer authentication keys, memory tags, guarded control stacks, ALLINT | the host has them off | - | probe.rs | unit tests in probe.rs |
//! | exclusive monitor | cleared by `eret` | - | - | review: Arm ARM, "Load-Exclusive and Store-Exclusive" |
//! | TLB | flush policy: everything of EL1 and EL0 is dropped between the roots and after them. ASID policy: what is cached belongs to an ASID that only this view has, on this CPU, until all is dropped | the same | roots.s, asids.rs | translations; unit tests in gate.rs, asids.rs and of the core's tags |
//!
//! Shown by cases of the conformance suite, where a name is given: the *auditor* compares all registers that can be read around
//! every case, *poison* sets what EL0 can set and leaves in each way, *leaks* fills the host's registers with patterns and looks for
//! them, *translations* is the file of that name. The suite runs under both policies.
//!
//! An SError that is pending during a run stays so, since PSTATE.A is set for EL0 and the CPU sets it for the gate, and
//! nothing of the gate's consumes it before the caller's DAIF is put back. But ESB, which no control register keeps from EL0, can:
//! it turns a masked SError into a record in DISR_EL1 (Arm ARM, section C6.2, "ESB"). So that register is compared after each
//! run, and an error that the sandbox hid is reported to the host ([`hidden_error`]), which cannot be given its SError any more.
//! Otherwise the host's vectors take it, at the `isb` of `forward` or the first instruction that finds it unmasked. QEMU's virt can make one
//! pending only from EL2 (HCR_EL2.VSE), where its host doesn't run, so this is held by unit tests: that A is set in every
//! `pstate`, that the gate has no instruction that writes DAIF, and that its SError vectors report.
//!
//! EL0 has no instruction that reads an identification register: those are undefined, or trap.
//!
//! All control registers are read at every entry and written only where they differ: a host that leaves EL0 nothing by
//! accident pays for the reading alone.

/// Bits of PSTATE, at the same places in SPSR_EL1, in DAIF and in the registers that stand for one of them (Arm ARM,
/// section C5.2).
pub(crate) mod pstate {
    /// Condition flags.
    pub(crate) const NZCV: u64 = 0b1111 << 28;
    /// Loads and stores ignore tags.
    pub(crate) const TCO: u64 = 1 << TCO_BIT;
    pub(crate) const TCO_BIT: u32 = 25;
    /// The time that instructions take doesn't depend on data.
    pub(crate) const DIT: u64 = 1 << DIT_BIT;
    pub(crate) const DIT_BIT: u32 = 24;
    /// Unprivileged loads and stores of EL1 are like others.
    pub(crate) const UAO: u64 = 1 << UAO_BIT;
    pub(crate) const UAO_BIT: u32 = 23;
    /// EL1 can't access what EL0 can.
    pub(crate) const PAN: u64 = 1 << PAN_BIT;
    pub(crate) const PAN_BIT: u32 = 22;
    /// Loads may be speculated before older stores.
    pub(crate) const SSBS: u64 = 1 << SSBS_BIT;
    pub(crate) const SSBS_BIT: u32 = 12;
    /// Masks: debug exceptions, SError, IRQ, FIQ.
    pub(crate) const D: u64 = 1 << 9;
    pub(crate) const A: u64 = 1 << 8;
    pub(crate) const I: u64 = 1 << 7;
    pub(crate) const F: u64 = 1 << 6;
}

/// The processor state to run with: what the sandbox may choose of `own`, the caller's interrupt mask `daif`, and what of
/// `host` holds for unprivileged code too. `features` are the bits that the CPU has.
pub(crate) fn sandbox_pstate(own: u64, daif: u64, host: u64, features: u64) -> u64 {
    own & (pstate::NZCV | features & pstate::DIT)
        | daif & (pstate::D | pstate::I | pstate::F)
        | pstate::A
        | features & pstate::PAN
        | host & features & (pstate::SSBS | pstate::DIT)
}

/// The syndrome of the SError that the sandbox hid from the host, if DISR_EL1 was `before` and is `now`: there is one more, or
/// another, in the register than the host's own.
pub(crate) fn hidden_error(before: u64, now: u64) -> Option<u64> {
    /// An error was deferred.
    const DEFERRED: u64 = 1 << 31;
    /// What has the same place in ESR_EL1: IDS and the syndrome proper.
    const DETAIL: u64 = (1 << 25) - 1;
    /// The class of SErrors, for a 32-bit instruction.
    const CLASS: u64 = 0x2f << 26 | 1 << 25;
    (now != before && now & DEFERRED != 0).then_some(CLASS | now & DETAIL)
}

/// What must be clear and what set in a control register while a sandbox runs.
#[derive(Clone, Copy)]
struct Closure {
    clear: u64,
    set: u64,
}

impl Closure {
    const fn close(self, value: u64) -> u64 {
        value & !self.clear | self.set
    }

    /// Zero if `value` is closed already.
    const fn open_bits(self, value: u64) -> u64 {
        (value ^ self.set) & (self.clear | self.set)
    }
}

/// SCTLR_EL1. Clear: UMA, EnRCTX, DZE, UCT, nTWI, nTWE, E0E, UCI, EnFPM, TME0, EnASR, EnAS0, EnALS, EnTP2. Set: TSCXT, which
/// reads as one on CPUs without SCXTNUM_EL0.
const SCTLR: Closure = Closure {
    clear: 1 << 9
        | 1 << 10
        | 1 << 14
        | 1 << 15
        | 1 << 16
        | 1 << 18
        | 1 << 24
        | 1 << 26
        | 1 << 34
        | 1 << 53
        | 1 << 54
        | 1 << 55
        | 1 << 56
        | 1 << 60,
    set: 1 << 20,
};

/// CPACR_EL1. Clear: the upper bits of ZEN, FPEN and SMEN, without which EL0 traps and EL1 stays as it was; E0POE.
const CPACR: Closure = Closure { clear: 1 << 17 | 1 << 21 | 1 << 25 | 1 << 29, set: 0 };
/// CPACR_EL1 in a run with vectors: FPEN traps nothing.
const CPACR_WITH_VECTORS: Closure = Closure { clear: CPACR.clear & !CPACR_FPEN, set: CPACR_FPEN };
const CPACR_FPEN: u64 = 0b11 << 20;

/// MDSCR_EL1. Clear: SS, KDE, MDE, EnSPM. Set: TDCC.
const MDSCR: Closure = Closure { clear: 1 << 0 | 1 << 13 | 1 << 15 | 1 << 34, set: 1 << 12 };

/// CNTKCTL_EL1. Clear: EL0VTEN, EL0PTEN.
const CNTKCTL: Closure = Closure { clear: 1 << 8 | 1 << 9, set: 0 };

/// PMUSERENR_EL0 and AMUSERENR_EL0: nothing is enabled.
const MONITORS: Closure = Closure { clear: u64::MAX, set: 0 };

/// Units that not every CPU has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub(crate) struct Units {
    pub(crate) performance_monitors: bool,
    pub(crate) activity_monitors: bool,
    /// ESB and DISR_EL1.
    pub(crate) deferred_errors: bool,
}

/// The control registers that decide what EL0 may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Controls {
    sctlr: u64,
    cpacr: u64,
    mdscr: u64,
    cntkctl: u64,
    pmuserenr: u64,
    amuserenr: u64,
}

impl Controls {
    /// Whether a sandbox can run as they are.
    #[inline(always)]
    fn are_closed(&self) -> bool {
        SCTLR.open_bits(self.sctlr)
            | CPACR.open_bits(self.cpacr)
            | MDSCR.open_bits(self.mdscr)
            | CNTKCTL.open_bits(self.cntkctl)
            | MONITORS.open_bits(self.pmuserenr)
            | MONITORS.open_bits(self.amuserenr)
            == 0
    }

    /// The same, closed.
    fn closed(&self) -> Controls {
        Controls {
            sctlr: SCTLR.close(self.sctlr),
            cpacr: CPACR.close(self.cpacr),
            mdscr: MDSCR.close(self.mdscr),
            cntkctl: CNTKCTL.close(self.cntkctl),
            pmuserenr: MONITORS.close(self.pmuserenr),
            amuserenr: MONITORS.close(self.amuserenr),
        }
    }

    /// The same, closed but for vector registers, which EL1 can use too.
    fn closed_with_vectors(&self) -> Controls {
        Controls { cpacr: CPACR_WITH_VECTORS.close(self.cpacr), ..self.closed() }
    }
}

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
pub(crate) use cpu::{Closed, host_pstate};

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
mod cpu {
    use aarch64_cpu::asm::barrier;
    use aarch64_cpu::registers::{CNTKCTL_EL1, CPACR_EL1, MDSCR_EL1, Readable, SCTLR_EL1, Writeable};

    use sandbox_core::Unsupported;

    use super::{Controls, Units, pstate};
    use crate::{system, vectors};

    /// The host's bits of PSTATE that an exception or EL0 can change, of those in `features`.
    ///
    /// # Safety
    ///
    /// 1. The CPU has the bits in `features`, and registers that stand for them.
    #[inline(always)]
    pub(crate) unsafe fn host_pstate(features: u64) -> u64 {
        let mut state = 0;
        if features == 0 {
            return state;
        }
        // SAFETY: (1).
        unsafe {
            if features & pstate::PAN != 0 {
                state |= system::read_pan();
            }
            if features & pstate::UAO != 0 {
                state |= system::read_uao();
            }
            if features & pstate::DIT != 0 {
                state |= system::read_dit();
            }
            if features & pstate::SSBS != 0 {
                state |= system::read_ssbs();
            }
            if features & pstate::TCO != 0 {
                state |= system::read_tco();
            }
        }
        state
    }

    impl Controls {
        /// # Safety
        ///
        /// 1. The CPU has `units`.
        #[inline(always)]
        unsafe fn read(units: Units) -> Controls {
            // SAFETY: (1).
            let pmuserenr = if units.performance_monitors { unsafe { system::read_pmuserenr() } } else { 0 };
            // SAFETY: (1).
            let amuserenr = if units.activity_monitors { unsafe { system::read_amuserenr() } } else { 0 };
            Controls {
                sctlr: SCTLR_EL1.get(),
                cpacr: CPACR_EL1.get(),
                mdscr: MDSCR_EL1.get(),
                cntkctl: CNTKCTL_EL1.get(),
                pmuserenr,
                amuserenr,
            }
        }

        /// Writes what differs from `old`, the values in force.
        ///
        /// # Safety
        ///
        /// 1. `self` is what the host had, or that with less for EL0.
        /// 2. `old` was read on this CPU: units it lacks are zero in both.
        #[cold]
        unsafe fn write(&self, old: &Controls) {
            if self.sctlr != old.sctlr {
                SCTLR_EL1.set(self.sctlr);
            }
            if self.cpacr != old.cpacr {
                CPACR_EL1.set(self.cpacr);
            }
            if self.mdscr != old.mdscr {
                MDSCR_EL1.set(self.mdscr);
            }
            if self.cntkctl != old.cntkctl {
                CNTKCTL_EL1.set(self.cntkctl);
            }
            if self.pmuserenr != old.pmuserenr {
                // SAFETY: (1), (2).
                unsafe { system::write_pmuserenr(self.pmuserenr) };
            }
            if self.amuserenr != old.amuserenr {
                // SAFETY: (1), (2).
                unsafe { system::write_amuserenr(self.amuserenr) };
            }
            barrier::isb(barrier::SY);
        }
    }

    /// What was closed for a run and must be opened after it: the host's, and what is in force.
    pub(crate) struct Closed(Option<(Controls, Controls)>);

    impl Closed {
        /// Closes what the host has open.
        ///
        /// # Safety
        ///
        /// 1. All exceptions are masked, until [`open`](Closed::open).
        /// 2. The CPU has `units`.
        #[inline(always)]
        pub(crate) unsafe fn close(units: Units) -> Closed {
            // SAFETY: (2).
            let host = unsafe { Controls::read(units) };
            if host.are_closed() {
                return Closed(None);
            }
            let closed = host.closed();
            // SAFETY: (1) `closed` takes rights of EL0's away, and nothing runs that could miss what the bits of MDSCR_EL1
            // give EL1; (2) read above.
            unsafe { closed.write(&host) };
            Closed(Some((host, closed)))
        }

        /// Closes what the host has open but opens vector registers; not if the host has others that are not saved.
        ///
        /// # Safety
        ///
        /// 1. and 2. As [`close`](Closed::close).
        /// 3. EL0 is entered by `sandbox_vectors_enter` alone until [`open`](Closed::open).
        pub(crate) unsafe fn close_with_vectors(units: Units) -> Result<Closed, Unsupported> {
            // SAFETY: (2).
            let host = unsafe { Controls::read(units) };
            vectors::check_host(host.cpacr)?;
            let closed = host.closed_with_vectors();
            // SAFETY: (1) as in `close`, except for vector registers, which are the sandbox's own (3); (2) read above.
            unsafe { closed.write(&host) };
            Ok(Closed(Some((host, closed))))
        }

        /// Opens it again.
        ///
        /// # Safety
        ///
        /// 1. On the CPU of [`close`](Closed::close), with exceptions masked since.
        #[inline(always)]
        pub(crate) unsafe fn open(self) {
            if let Closed(Some((host, closed))) = self {
                // SAFETY: (1) read by `close` on this CPU, and the host has run nothing since; (2) the same.
                unsafe { host.write(&closed) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = pstate::PAN | pstate::UAO | pstate::DIT | pstate::SSBS | pstate::TCO;

    #[test]
    fn a_sandbox_chooses_only_its_flags() {
        assert_eq!(sandbox_pstate(0, 0, 0, 0), pstate::A);
        assert_eq!(sandbox_pstate(u64::MAX, 0, 0, 0), pstate::A | pstate::NZCV);
        assert_eq!(sandbox_pstate(u64::MAX, 0, 0, ALL), pstate::A | pstate::NZCV | pstate::DIT | pstate::PAN);
    }

    #[test]
    fn the_callers_mask_goes_with_it() {
        let mask = pstate::D | pstate::A | pstate::I | pstate::F;
        assert_eq!(sandbox_pstate(0, mask, 0, 0), mask);
        assert_eq!(sandbox_pstate(mask, pstate::I, 0, 0), pstate::A | pstate::I);
    }

    #[test]
    fn the_hosts_policy_holds() {
        assert_eq!(sandbox_pstate(0, 0, ALL, ALL), pstate::A | pstate::PAN | pstate::SSBS | pstate::DIT);
        assert_eq!(sandbox_pstate(0, 0, u64::MAX, 0), pstate::A);
    }

    #[test]
    fn errors_that_a_sandbox_hides_show() {
        const DEFERRED: u64 = 1 << 31;
        assert_eq!(hidden_error(0, 0), None);
        assert_eq!(hidden_error(DEFERRED | 5, DEFERRED | 5), None);
        assert_eq!(hidden_error(0, DEFERRED), Some(0xbe00_0000));
        assert_eq!(hidden_error(DEFERRED | 5, DEFERRED | 1 << 24 | 6), Some(0xbf00_0006));
    }

    #[test]
    fn what_is_open_is_closed() {
        let closed = Controls { sctlr: SCTLR.set, mdscr: MDSCR.set, ..Controls::default() };
        assert!(closed.are_closed());
        assert_eq!(closed.closed(), closed);
        for bit in 0..64 {
            let flip = |value| value ^ 1 << bit;
            for controls in [
                Controls { sctlr: flip(closed.sctlr), ..closed },
                Controls { cpacr: flip(closed.cpacr), ..closed },
                Controls { mdscr: flip(closed.mdscr), ..closed },
                Controls { cntkctl: flip(closed.cntkctl), ..closed },
                Controls { pmuserenr: flip(closed.pmuserenr), ..closed },
                Controls { amuserenr: flip(closed.amuserenr), ..closed },
            ] {
                assert!(controls.closed().are_closed());
                assert_eq!(controls.are_closed(), controls.closed() == controls);
                assert_eq!(controls.are_closed(), controls.closed() != closed);
            }
        }
    }

    #[test]
    fn trapped_vectors_stay_the_hosts() {
        // FPEN: 11 (nothing traps) becomes 01 (EL0 traps); 00 and 01 stay.
        for (host, run) in [(0b11, 0b01), (0b01, 0b01), (0b00, 0b00)] {
            assert_eq!(CPACR.close(host << 20), run << 20);
        }
    }

    #[test]
    fn granted_vectors_are_all_that_is_open() {
        for host in 0..=0b11 {
            let open = Controls { cpacr: host << 20 | 0b11 << 16 | 0b11 << 24 | 1 << 29, ..Controls::default() };
            let run = open.closed_with_vectors();
            assert_eq!(run, Controls { cpacr: 0b11 << 20 | 1 << 16 | 1 << 24, ..open.closed() });
        }
    }
}
