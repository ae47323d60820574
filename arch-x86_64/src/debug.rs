//! The debug registers and the trap flag around a run.
//!
//! A host's breakpoints stay armed while a sandbox runs: one that hits there is the host's. What keeps the gate itself out of
//! that:
//!
//! * A breakpoint on the gate's code or data is left off for the run. Nothing that a sandbox can do hits it (the gate is
//!   privileged), and the gate would hit it at each entry.
//! * A debug exception clears DR7 in the gate, before anything else could raise the next one. It is put back after the run.
//! * One that nevertheless hits in the entry window calls the entry off and is left off at the next one: no livelock.
//! * DR6 is cleared before a run with breakpoints armed, so that what is in it afterwards happened in the run.
//!
//! A host that single-steps does not step through the gate: its trap flag, and DEBUGCTL.BTF, are off there. DEBUGCTL is not
//! looked at unless the trap flag is set, for BTF has no meaning without it.

use sandbox_core::{Error, PageRange, Unsupported, VirtAddr};
use x86_64::registers::model_specific::Msr;

/// Bits of DR7 that enable a breakpoint, two for each (SDM 3, section 19.2.4).
const DR7_ENABLED: u64 = 0xff;
/// DR7.GD: an access to a debug register raises #DB.
const DR7_GUARD: u64 = 1 << 13;
/// Where the kinds of the breakpoints begin in DR7, and how far apart they are.
const DR7_KIND: u32 = 16;
const DR7_KIND_STEP: u32 = 4;
/// DR7 with nothing armed; bit 10 is fixed.
pub(crate) const DR7_CLEAR: u64 = 1 << 10;

/// DR6 after a reset: nothing happened. Bits 11 and 16 are clear when something did (SDM 3, section 19.2.3).
const DR6_CLEAR: u64 = 0xffff_0ff0;
/// A breakpoint each.
const DR6_HITS: u64 = 0xf;
const DR6_SINGLE_STEP: u64 = 1 << 14;
/// The bits that are set when something happened: also BD (13) and BT (15).
const DR6_STICKY: u64 = DR6_HITS | 0b111 << 13;

/// IA32_DEBUGCTL, and its bit that makes the trap flag stop at branches only (SDM 4, table 2-2; AMD APM 2, section 13.1.1.6).
const DEBUGCTL: u32 = 0x1d9;
const BRANCH_STEP: u64 = 1 << 1;

macro_rules! read {
    ($instruction:literal) => {{
        let value: u64;
        // SAFETY: reading a debug register is possible in ring 0 unless DR7.GD is set, and then raises #DB in the host as any
        // other access would.
        unsafe { core::arch::asm!($instruction, out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

pub(crate) fn read_dr7() -> u64 {
    read!("mov {}, dr7")
}

fn write_dr7(value: u64) {
    // SAFETY: the value was read from DR7, and may have lost some of what is armed.
    unsafe { core::arch::asm!("mov dr7, {}", in(reg) value, options(nostack, preserves_flags)) };
}

fn read_dr6() -> u64 {
    read!("mov {}, dr6")
}

fn write_dr6(value: u64) {
    // SAFETY: DR6 says what happened and controls nothing.
    unsafe { core::arch::asm!("mov dr6, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

fn address(breakpoint: u32) -> VirtAddr {
    VirtAddr(match breakpoint {
        0 => read!("mov {}, dr0"),
        1 => read!("mov {}, dr1"),
        2 => read!("mov {}, dr2"),
        _ => read!("mov {}, dr3"),
    })
}

/// The bits of DR7 that enable `breakpoint`.
const fn enable_bits(breakpoint: u32) -> u64 {
    0b11 << (2 * breakpoint)
}

/// Whether a value of DR7 calls for [`Breakpoints::prepare`].
pub(crate) fn is_armed(dr7: u64) -> bool {
    dr7 & (DR7_ENABLED | DR7_GUARD) != 0
}

/// The host's breakpoints during a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(crate) struct Breakpoints {
    /// The host's.
    dr7: u64,
    dr6: u64,
    /// What of it is armed in the run.
    armed: u64,
}

impl Breakpoints {
    /// Takes what `gate` would hit, and what `quiet` enables, off `dr7`, which [is armed](is_armed).
    ///
    /// # Errors
    ///
    /// When the host guards the debug registers and nevertheless lets them be read.
    #[cold]
    pub(crate) fn prepare(dr7: u64, quiet: u64, gate: [PageRange; 2]) -> Result<Breakpoints, Error> {
        if dr7 & DR7_GUARD != 0 {
            return Err(Unsupported::Enabled("guarded debug registers (DR7.GD)").into());
        }
        let in_gate = |breakpoint: &u32| {
            let page = address(*breakpoint).page();
            gate.iter().any(|range| range.contains(page))
        };
        let off = (0..4).filter(in_gate).fold(quiet, |off, breakpoint| off | enable_bits(breakpoint));
        let breakpoints = Breakpoints { dr7, dr6: read_dr6(), armed: dr7 & !off };
        if breakpoints.dr6 & DR6_STICKY != 0 {
            write_dr6(DR6_CLEAR);
        }
        if breakpoints.armed != dr7 {
            write_dr7(breakpoints.armed);
        }
        Ok(breakpoints)
    }

    /// Arms them for the run once more.
    #[cold]
    pub(crate) fn rearm(&self) {
        write_dr7(self.armed);
    }

    /// Puts the registers back after a run; `cleared` says that the gate cleared DR7.
    #[cold]
    pub(crate) fn restore(&self, cleared: bool) {
        if cleared || self.dr6 & DR6_STICKY != 0 {
            write_dr6(self.dr6);
        }
        if cleared || self.armed != self.dr7 {
            write_dr7(self.dr7);
        }
    }

    /// The host's breakpoints that a run which left `dr6` has hit.
    fn hits(&self, dr6: u64) -> u64 {
        (0..4).filter(|&n| self.armed & enable_bits(n) != 0).fold(0, |hits, n| hits | 1 << n) & dr6
    }

    /// Whether one of `hits` stands before an instruction and not behind an access.
    fn any_execution(&self, hits: u64) -> bool {
        (0..4).any(|n| hits >> n & 1 != 0 && self.armed >> (DR7_KIND + DR7_KIND_STEP * n) & 0b11 == 0)
    }
}

/// What the debug exceptions of a run were.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Events {
    /// DR6 as the host's handler must find it, if one was the host's.
    pub(crate) host: Option<u64>,
    /// An instruction of the sandbox's waits behind a breakpoint before it.
    pub(crate) execution: bool,
    /// The enable bits of what hit.
    pub(crate) enabled: u64,
    /// One was the sandbox's: a single step, or the instruction for it.
    pub(crate) own: bool,
}

impl Events {
    /// Tells them apart by what the run left in DR6.
    pub(crate) fn of(breakpoints: Option<&Breakpoints>, dr6: u64) -> Events {
        let Some(breakpoints) = breakpoints else {
            return Events { host: None, execution: false, enabled: 0, own: true };
        };
        let hits = breakpoints.hits(dr6);
        // As if the CPU had added to what the host had there.
        let host = dr6 & !DR6_STICKY | hits | breakpoints.dr6 & DR6_STICKY;
        Events {
            host: (hits != 0).then_some(host),
            execution: breakpoints.any_execution(hits),
            enabled: (0..4).filter(|n| hits >> n & 1 != 0).fold(0, |bits, n| bits | enable_bits(n)),
            own: hits == 0 || dr6 & DR6_SINGLE_STEP != 0,
        }
    }
}

/// Removes what a single step of the sandbox's has left in DR6, where no breakpoint is armed and DR6 was not cleared before.
pub(crate) fn forget_step() {
    write_dr6(read_dr6() & !DR6_SINGLE_STEP);
}

/// Makes DR6 what the host's handler is to find.
pub(crate) fn report(dr6: u64) {
    write_dr6(dr6);
}

/// Sets the trap flag: the CPU steps from the second next instruction on.
pub(crate) fn set_trap_flag() {
    // SAFETY: it was set when the call began, and the host expects to go on stepping.
    unsafe { core::arch::asm!("pushfq", "or qword ptr [rsp], {}", "popfq", const 1 << 8) };
}

/// Does `work`, the way through the gate, without the host's single-stepping. The trap flag stays off afterwards.
///
/// # Safety
///
/// 1. `has_debugctl`: the CPU has IA32_DEBUGCTL.
/// 2. Interrupts are masked.
pub(crate) unsafe fn step_over<R>(has_debugctl: bool, work: impl FnOnce() -> R) -> R {
    // SAFETY: only clears the trap flag.
    unsafe { core::arch::asm!("pushfq", "and qword ptr [rsp], {}", "popfq", const !(1_i32 << 8)) };
    // The steps up to here.
    write_dr6(DR6_CLEAR);
    let mut control = Msr::new(DEBUGCTL);
    // SAFETY: (1), and reading has no effect.
    let before = if has_debugctl { unsafe { control.read() } } else { 0 };
    let branches = before & BRANCH_STEP != 0;
    if branches {
        // SAFETY: (1); without the trap flag the bit does nothing, but a step of the sandbox's would use it up.
        unsafe { control.write(before & !BRANCH_STEP) };
    }
    let result = work();
    if branches {
        // SAFETY: what was there.
        unsafe { control.write(before) };
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breakpoint 0 is before an instruction, 1 behind a write, 2 behind any access; 3 is off.
    const SOME: Breakpoints = Breakpoints { dr7: 0x0fd1_042a, dr6: DR6_CLEAR, armed: 0x0fd0_042a };
    const STALE: Breakpoints = Breakpoints { dr6: DR6_CLEAR | 0b100 | 1 << 15, ..SOME };

    fn events(breakpoints: Breakpoints, dr6: u64) -> Events {
        Events::of(Some(&breakpoints), DR6_CLEAR | dr6)
    }

    #[test]
    fn without_breakpoints_all_is_the_sandboxs() {
        for dr6 in [DR6_CLEAR, DR6_CLEAR | DR6_SINGLE_STEP, DR6_CLEAR | 0b1111] {
            assert_eq!(Events::of(None, dr6), Events { host: None, execution: false, enabled: 0, own: true });
        }
    }

    #[test]
    fn hits_are_the_hosts_and_steps_the_sandboxs() {
        assert_eq!(
            events(SOME, 0b10),
            Events { host: Some(DR6_CLEAR | 0b10), execution: false, enabled: 0b1100, own: false }
        );
        assert_eq!(events(SOME, 1), Events { host: Some(DR6_CLEAR | 1), execution: true, enabled: 0b11, own: false });
        let both = events(SOME, 1 | DR6_SINGLE_STEP);
        assert_eq!(both, Events { host: Some(DR6_CLEAR | 1), execution: true, enabled: 0b11, own: true });
        assert_eq!(events(SOME, DR6_SINGLE_STEP), Events { host: None, execution: false, enabled: 0, own: true });
        // An instruction of the sandbox's that only raises the exception.
        assert_eq!(events(SOME, 0), Events { host: None, execution: false, enabled: 0, own: true });
    }

    #[test]
    fn what_is_not_armed_does_not_count() {
        assert_eq!(events(SOME, 0b1000), Events { host: None, execution: false, enabled: 0, own: true });
        assert_eq!(events(SOME, 0b1010).host, Some(DR6_CLEAR | 0b10));
    }

    #[test]
    fn the_host_finds_what_it_had_left_in_the_status() {
        assert_eq!(events(STALE, 0b10).host, Some(DR6_CLEAR | 0b110 | 1 << 15));
        assert_eq!(events(STALE, 0).host, None);
    }
}
