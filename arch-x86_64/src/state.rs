//! The register table: every piece of CPU state that unprivileged code can read, change or be affected by, and what a run does
//! with it.
//!
//! | state | on entry | on exit | where |
//! | --- | --- | --- | --- |
//! | general registers, RIP, RSP | the sandbox's; zero at the start of a call except argument and function | callee-saved ones popped, the rest the compiler's | enter.s, exit.s |
//! | RFLAGS: arithmetic flags, DF, AC, TF | the sandbox's own; clear at the start of a call | popfq of the host's | enter.s, exit.s |
//! | RFLAGS: IF | the caller's | as the caller had it | [`sandbox_flags`] |
//! | RFLAGS: IOPL, NT, RF, VM, VIF, VIP, ID | clear | popfq of the host's | [`sandbox_flags`] |
//! | CS, SS | the gate's own flat ring-3 segments, every time | loaded by the exception; SS is null, as the CPU leaves it | enter.s |
//! | DS, ES, FS, GS selectors | what of the host's iretq lets through | compared with the host's, reloaded if changed | exit.s |
//! | FS and GS base | the sandbox's own, zero at first | the host's, before its exception table is back | enter.s, exit.s |
//! | KERNEL_GS_BASE | out of reach: swapgs is privileged, and the gate never executes it | - | - |
//! | CR3 | the view | the host's, read at this entry | enter.s, exit.s |
//! | IDTR | the gate's table | the host's, read at this entry | enter.s, exit.s |
//! | CR2 | a host address may be there; not readable | what the sandbox's last fault left; only a #PF handler reads it | exit.s |
//! | GDTR, TR | the host's, installed by `start_cpu`; GDTR is checked at each entry | unchanged | arch.rs |
//! | LDTR | null | the host's, before its selectors, which may name entries of that table | enter.s, exit.s |
//! | I/O permissions | none: IOPL 0, and the task state's limit ends before any bitmap, whose base `start_cpu` moves if it is lower | - | start.rs |
//! | SYSCALL | undefined: EFER.SCE is cleared if the host had it at `start_cpu` | EFER back | [`Closed`] |
//! | SYSENTER | general protection: IA32_SYSENTER_CS is 0 during the run if it wasn't at `start_cpu` | back | [`Closed`] |
//! | x87, MMX, SSE, AVX, AVX-512, MXCSR | CR0.TS and MP are set: the first use traps | CR0 back | [`Closed`] |
//! | MPX, AMX, APX, and whatever else XCR0 enables that CR0.TS does not guard | refused by `start_cpu` | - | probe.rs |
//! | PKRU | the sandbox's own (0 at first), if CR4.PKE | the host's | [`Closed`] |
//! | DR0 to DR7 | DR7 cleared if anything was armed: the host's breakpoints don't fire in the run or the gate | DR7 back | [`Closed`] |
//! | DR6 | - | BS, set by the sandbox's own single step, is cleared | arch.rs |
//! | TSC, TSC_AUX, CPUID, XGETBV, RDPMC, RDRAND | as the host configured them (CR4.TSD, CR4.PCE) | read-only | - |
//! | SGDT, SIDT, SLDT, STR, SMSW | as the host configured them (CR4.UMIP) | read-only; they name the gate's addresses | - |
//! | MONITOR/MWAIT, VMCALL, UMWAIT | undefined or bounded by the host's settings; an interrupt ends any wait | - | - |
//! | TLB | entries of the view are not global: the next root switch drops them. The host's global ones are dropped (CR4.PGE is off during runs) on a CPU where one has made a spurious fault | CR4 back | [`Closed`] |

use sandbox_core::Error;
use x86_64::registers::control::{Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;
use x86_64::registers::rflags::RFlags;

use crate::debug::{self, Breakpoints, read_dr7};
use crate::gate::{self, State};
use crate::registers::Registers;

/// Flags of the sandbox's that a resumed run keeps.
const KEPT_FLAGS: RFlags = RFlags::CARRY_FLAG
    .union(RFlags::PARITY_FLAG)
    .union(RFlags::AUXILIARY_CARRY_FLAG)
    .union(RFlags::ZERO_FLAG)
    .union(RFlags::SIGN_FLAG)
    .union(RFlags::OVERFLOW_FLAG)
    .union(RFlags::DIRECTION_FLAG)
    .union(RFlags::ALIGNMENT_CHECK)
    .union(RFlags::TRAP_FLAG)
    .union(RFlags::RESUME_FLAG);
/// Bit 1 of RFLAGS reads as 1 (SDM 1, figure 3-8).
const FLAG_ONE: u64 = 1 << 1;

/// The flags to run with: what the sandbox may choose of `flags`, and the caller's interrupt flag.
pub(crate) fn sandbox_flags(flags: u64, interrupts: bool) -> u64 {
    let enabled = if interrupts { RFlags::INTERRUPT_FLAG.bits() } else { 0 };
    flags & KEPT_FLAGS.bits() | FLAG_ONE | enabled
}

const SYSENTER_CS: u32 = 0x174;

/// What runs on this CPU must close and `close` does not look for each time: what the host had on when the CPU was started, in
/// MSRs that are too slow to ask, and what showed since.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Closures {
    syscall: bool,
    sysenter: bool,
    global_pages: bool,
    /// Whether there is IA32_DEBUGCTL: not closed, but looked at for a host that single-steps.
    pub(crate) debugctl: bool,
}

impl Closures {
    /// Looks at this CPU.
    pub(crate) fn find() -> Result<Closures, Error> {
        // SAFETY: IA32_SYSENTER_CS exists wherever long mode does; reading has no effect.
        let sysenter = unsafe { Msr::new(SYSENTER_CS).read() } as u16 != 0;
        Ok(Closures {
            syscall: Efer::read().contains(EferFlags::SYSTEM_CALL_EXTENSIONS),
            sysenter,
            global_pages: false,
            debugctl: crate::probe::has_debugctl(),
        })
    }

    /// From now on this CPU forgets the host's global translations before each run. To forget one, or all of them before the
    /// switch to the view, is not enough: the host's own code, the gate's included, is executed through them up to there.
    #[cold]
    pub(crate) fn forget_global_pages(&mut self) {
        self.global_pages = true;
    }

    fn any(self) -> bool {
        self.syscall || self.sysenter || self.global_pages
    }
}

fn read_pkru() -> u32 {
    let value: u32;
    // SAFETY: called with CR4.PKE on.
    unsafe { core::arch::asm!("rdpkru", in("ecx") 0, out("eax") value, out("edx") _, options(nomem, nostack)) };
    value
}

fn write_pkru(value: u32) {
    // SAFETY: called with CR4.PKE on; protection keys concern user pages only, which privileged code of a HAL's host does not
    // rely on.
    unsafe { core::arch::asm!("wrpkru", in("ecx") 0, in("eax") value, in("edx") 0, options(nostack)) };
}

/// What was closed for a run and must be opened after it. Interrupts are masked from `close` to `open`, and an NMI handler of
/// the host's may run with any of this closed: none of it concerns privileged code. (CR0, which does, is the gate's.)
#[derive(Default)]
pub(crate) struct Closed {
    pkru: Option<u32>,
    breakpoints: Option<Breakpoints>,
    rare: Option<Rare>,
}

/// What few hosts have, or few runs.
#[derive(Clone, Copy, Default)]
struct Rare {
    efer: Option<EferFlags>,
    sysenter: Option<u64>,
    cr4: Option<Cr4Flags>,
}

impl Closed {
    /// Closes what the host has open. When it fails, nothing is closed.
    ///
    /// # Safety
    ///
    /// 1. Interrupts are masked, in ring 0, until [`open`](Closed::open).
    /// 2. `state` is this CPU's.
    #[inline(always)]
    pub(crate) unsafe fn close(state: *const State, registers: &Registers) -> Result<Closed, Error> {
        let mut closed = Closed::default();
        let dr7 = read_dr7();
        if debug::is_armed(dr7) {
            // SAFETY: (2).
            let (quiet, ranges) = unsafe { ((*state).quiet, gate::ranges(state)) };
            closed.breakpoints = Some(Breakpoints::prepare(dr7, quiet, ranges)?);
        }
        if Cr4::read().contains(Cr4Flags::PROTECTION_KEY_USER) {
            closed.pkru = Some(read_pkru());
            write_pkru(registers.pkru);
        }
        // SAFETY: (2).
        let closures = unsafe { (*state).closures };
        if closures.any() {
            // SAFETY: (1) of this function.
            closed.rare = Some(unsafe { Rare::close(closures) });
        }
        Ok(closed)
    }

    /// Opens it again, keeping what of it is the sandbox's own. `debugged` says that a debug exception cleared DR7.
    ///
    /// # Safety
    ///
    /// 1. On the CPU of [`close`](Closed::close), with interrupts masked since.
    #[inline(always)]
    pub(crate) unsafe fn open(&self, registers: &mut Registers, debugged: bool) {
        if let Some(pkru) = self.pkru {
            registers.pkru = read_pkru();
            write_pkru(pkru);
        }
        if let Some(rare) = &self.rare {
            // SAFETY: (1).
            unsafe { rare.open() };
        }
        if let Some(breakpoints) = &self.breakpoints {
            breakpoints.restore(debugged);
        }
    }

    /// The host's breakpoints, if any are armed.
    pub(crate) fn breakpoints(&self) -> Option<&Breakpoints> {
        self.breakpoints.as_ref()
    }
}

impl Rare {
    /// # Safety
    ///
    /// 1. As [`Closed::close`].
    #[cold]
    unsafe fn close(closures: Closures) -> Rare {
        let mut rare = Rare::default();
        if closures.syscall {
            let efer = Efer::read();
            rare.efer = Some(efer);
            // SAFETY: clearing SCE makes SYSCALL undefined and changes nothing else.
            unsafe { Efer::write(efer - EferFlags::SYSTEM_CALL_EXTENSIONS) };
        }
        if closures.sysenter {
            let mut msr = Msr::new(SYSENTER_CS);
            // SAFETY: a null selector makes SYSENTER fault (SDM 2, SYSENTER) and changes nothing else.
            unsafe {
                rare.sysenter = Some(msr.read());
                msr.write(0);
            }
        }
        let cr4 = Cr4::read();
        if closures.global_pages && cr4.contains(Cr4Flags::PAGE_GLOBAL) {
            rare.cr4 = Some(cr4);
            // SAFETY: clearing PGE drops all translations (SDM 3, section 5.10.4.1); new ones are not global, so that the switch to
            // the view drops them, until it is set again. The host sees no difference.
            unsafe { Cr4::write(cr4 - Cr4Flags::PAGE_GLOBAL) };
        }
        rare
    }

    /// # Safety
    ///
    /// 1. As [`Closed::open`].
    #[cold]
    unsafe fn open(&self) {
        // SAFETY: each value was read by `close` on this CPU, and interrupts were masked since: the host has not changed it.
        unsafe {
            if let Some(efer) = self.efer {
                Efer::write(efer);
            }
            if let Some(sysenter) = self.sysenter {
                Msr::new(SYSENTER_CS).write(sysenter);
            }
            if let Some(cr4) = self.cr4 {
                Cr4::write(cr4);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_chooses_only_harmless_flags() {
        assert_eq!(sandbox_flags(0, false), 2);
        assert_eq!(sandbox_flags(0, true), 0x202);
        assert_eq!(sandbox_flags(u64::MAX, false) & !0x5_0dd5, 2);
        assert_eq!(sandbox_flags(u64::MAX, true) & 0x3000, 0);
    }
}
