//! The register table: every piece of CPU state that unprivileged code can read, change or be affected by, and what a run does
//! with it.
//!
//! | state | on entry | on exit | where | shown by |
//! | --- | --- | --- | --- | --- |
//! | general registers, RIP, RSP | the sandbox's; zero at the start of a call except argument and function | callee-saved ones popped, the rest the compiler's | enter.s, exit.s | `state::general_registers_are_clear_at_entry`, `no_general_register_holds_a_value_of_the_hosts`, `callee_saved_registers_are_kept` |
//! | RFLAGS: arithmetic flags, DF, AC | the sandbox's own; clear at the start of a call | popfq of the host's | enter.s, exit.s | `state::what_a_sandbox_changes_stays_there` |
//! | RFLAGS: TF | the sandbox's own; the host's is off in the gate | set again after the host's table is back | enter.s, [`debug`] | `instructions::a_single_step_ends_the_sandbox`, `debug::a_host_can_step_over_calls` |
//! | RFLAGS: RF | the sandbox's, so that it gets past a breakpoint of the host's | popfq, which clears it | [`sandbox_flags`], arch.rs | `debug::a_breakpoint_on_an_instruction_is_the_hosts` |
//! | RFLAGS: IF | the caller's | as the caller had it | [`sandbox_flags`] | `interrupts::a_masked_caller_has_its_sandbox_masked` |
//! | RFLAGS: IOPL, NT, VM, VIF, VIP, ID | clear | popfq of the host's | [`sandbox_flags`] | `state::what_a_sandbox_changes_stays_there`, unit test here |
//! | CS, SS | the gate's own flat ring-3 segments, every time | loaded by the exception; SS is null, as the CPU leaves it | enter.s | `state::what_a_sandbox_changes_stays_there`, `instructions::privileged_ones_end_the_sandbox` |
//! | DS, ES, FS, GS selectors | what of the host's iretq lets through | compared with the host's, reloaded if changed | exit.s | `state::what_a_sandbox_changes_stays_there_where_the_host_uses_it` |
//! | FS and GS base | the sandbox's own, zero at first | the host's, before its exception table is back | enter.s, exit.s | `state::other_registers_are_clear_where_the_host_uses_them`, `the_thread_base_is_not_the_hosts` |
//! | KERNEL_GS_BASE | out of reach: swapgs is privileged, and the gate never executes it | - | - | `instructions::privileged_ones_end_the_sandbox` |
//! | CR3 | the view | the host's, read at this entry | enter.s, exit.s | audit of every case |
//! | IDTR | the gate's table | the host's, read at this entry | enter.s, exit.s | audit; docs/windows-x86_64.md |
//! | CR2 | a host address may be there; not readable | what the sandbox's last fault left; only a #PF handler reads it | exit.s | `instructions::privileged_ones_end_the_sandbox` |
//! | GDTR, TR | the host's, installed by `start_cpu`; both are checked at each entry | unchanged | arch.rs | `forwarding::a_replaced_task_state_is_refused` |
//! | LDTR | null | the host's, before its selectors, which may name entries of that table | enter.s, exit.s | `instructions::privileged_ones_end_the_sandbox` (selectors 4, 0xf, 0xfff7) |
//! | I/O permissions | none: IOPL 0, and the task state's limit ends before any bitmap, whose base `start_cpu` moves if it is lower | - | start.rs | `instructions::privileged_ones_end_the_sandbox` (in, out) |
//! | SYSCALL | undefined: EFER.SCE is cleared if the host had it at `start_cpu` | EFER back | [`Closed`] | `instructions::system_calls_end_the_sandbox` |
//! | SYSENTER | general protection: IA32_SYSENTER_CS is 0 during the run if it wasn't at `start_cpu` | back | [`Closed`] | `instructions::system_calls_end_the_sandbox` |
//! | x87, MMX, SSE, AVX, AVX-512, MXCSR | CR0.TS and MP are set in the entry window: the first use traps. No code of the host's runs with it, not even an NMI handler. In a sandbox with vectors its own, as after a reset at the start of a call | CR0 back in the gate; with vectors loaded, before any compiled code | enter.s, exit.s, vectors.s | `instructions::floating_point_ends_the_sandbox_where_the_host_uses_it`, vectors |
//! | MPX, AMX, APX, and whatever else XCR0 enables that CR0.TS does not guard | refused by `start_cpu` | - | probe.rs | review: probe.rs |
//! | PKRU | the sandbox's own (0 at first), if CR4.PKE | the host's | [`Closed`] | `state::other_registers_are_clear_where_the_host_uses_them`, `what_a_sandbox_changes_stays_there` |
//! | DR0 to DR3 | the host's: not readable; what hits in the run is the host's | unchanged | [`debug`] | `debug::a_breakpoint_on_data_is_the_hosts` and the others there |
//! | DR6 | cleared if breakpoints are armed and something was in it | as the host left it, with what hit in the run when its handler is called; BS of the sandbox's own step never | [`debug`] | `debug::the_debug_status_comes_back` |
//! | DR7 | the host's, without breakpoints on the gate; GD is refused | the host's | [`debug`] | `debug::a_breakpoint_in_the_gate_stops_nothing`, `guarded_debug_registers_are_respected` |
//! | DEBUGCTL.BTF | off, if the host's TF is on | back | [`debug`] | review: without TF it has no meaning to the host; a step of the sandbox's clears it, as any debug exception does |
//! | DEBUGCTL.LBR, LASTBRANCH | the host's: the records fill with the sandbox's branches, which tell the host nothing that it could be hurt by | - | - | review: unprivileged code can't read them (rdmsr) |
//! | DEBUGCTL.TR, BTS, BTINT, PEBS, DS area | the host's, if it samples at ring 3. The DS area is not in the view: a store there faults, and the fault ends the sandbox (SDM 3, section 18.4.9.4 wants it mapped in every address space) | - | - | review: a host that samples must exclude sandboxes (BTS_OFF_USR) |
//! | DEBUGCTL.BLD, RTM | a bus lock's or a transaction's debug exception ends the sandbox | DR6 back to its fixed ones | [`debug`] | review |
//! | performance counters | count on as the host configured them; their interrupt is forwarded | - | - | review: RDPMC is below |
//! | TSC, TSC_AUX, CPUID, XGETBV, RDPMC, RDRAND | as the host configured them (CR4.TSD, CR4.PCE) | read-only | - | `instructions::privileged_ones_end_the_sandbox` (rdpmc) |
//! | SGDT, SIDT, SLDT, STR, SMSW | as the host configured them (CR4.UMIP) | read-only; they name the gate's addresses | - | review |
//! | MONITOR/MWAIT, VMCALL, UMWAIT | undefined or bounded by the host's settings; an interrupt ends any wait | - | - | `instructions::illegal_ones_end_the_sandbox` |
//! | TLB | entries of the view are not global: the next root switch drops them. The host's global ones are dropped (CR4.PGE is off during runs) on a CPU where one has made a spurious fault | CR4 back | [`Closed`] | review: no emulator keeps stale entries on purpose |
//!
//! The names are cases of the conformance suite, by file; its audit compares all state that can be read before and after each.

#[cfg(target_os = "none")]
use sandbox_core::Error;
use x86_64::registers::control::{Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::rflags::RFlags;

use crate::debug::Breakpoints;
#[cfg(target_os = "none")]
use crate::debug::{self, read_dr7};
#[cfg(target_os = "none")]
use crate::gate::{self, State};
#[cfg(target_os = "none")]
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
const EFER: u32 = 0xc000_0080;
/// EFER.SCE, in the low half.
const EFER_SYSCALL: u32 = EferFlags::SYSTEM_CALL_EXTENSIONS.bits() as u32;

/// What runs on this CPU close: what the host had on when the CPU was started, in registers that it promised not to change or
/// that are too slow to ask, and what showed since.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub(crate) struct Closures(u32);

impl Closures {
    const SYSCALL: Closures = Closures(1 << 0);
    const SYSENTER: Closures = Closures(1 << 1);
    const GLOBAL_PAGES: Closures = Closures(1 << 2);
    const PROTECTION_KEYS: Closures = Closures(1 << 3);
    /// Not closed but watched; looked for at each entry.
    const BREAKPOINTS: Closures = Closures(1 << 4);

    /// Looks at this CPU.
    pub(crate) fn find() -> Closures {
        let mut found = Closures::default();
        found.set_if(Closures::SYSCALL, Efer::read().contains(EferFlags::SYSTEM_CALL_EXTENSIONS));
        // SAFETY: IA32_SYSENTER_CS exists wherever long mode does; reading has no effect.
        found.set_if(Closures::SYSENTER, unsafe { Value::read(SYSENTER_CS) }.low as u16 != 0);
        found.set_if(Closures::PROTECTION_KEYS, Cr4::read().contains(Cr4Flags::PROTECTION_KEY_USER));
        found
    }

    /// From now on this CPU forgets the host's global translations before each run. To forget one, or all of them before the
    /// switch to the view, is not enough: the host's own code, the gate's included, is executed through them up to there.
    #[cold]
    pub(crate) fn forget_global_pages(&mut self) {
        self.set_if(Closures::GLOBAL_PAGES, Cr4::read().contains(Cr4Flags::PAGE_GLOBAL));
    }

    fn set_if(&mut self, closure: Closures, wanted: bool) {
        self.0 |= if wanted { closure.0 } else { 0 };
    }

    /// Whether one of these is among them.
    fn has(self, closure: Closures) -> bool {
        self.0 & closure.0 != 0
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

/// A model-specific register's value, as `wrmsr` takes it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Value {
    low: u32,
    high: u32,
}

impl Value {
    /// # Safety
    ///
    /// 1. The register exists.
    #[inline(always)]
    unsafe fn read(number: u32) -> Value {
        let (low, high);
        // SAFETY: (1), and reading has no effect.
        unsafe {
            core::arch::asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
        }
        Value { low, high }
    }

    /// # Safety
    ///
    /// 1. The register may have this value.
    #[inline(always)]
    unsafe fn write(self, number: u32) {
        // SAFETY: (1).
        unsafe {
            core::arch::asm!("wrmsr", in("ecx") number, in("eax") self.low, in("edx") self.high, options(nostack, preserves_flags));
        }
    }
}

/// The host's values of what is closed for a run. Interrupts are masked from `close` to `open`, and an NMI handler of the host's
/// may run with any of this closed: none of it concerns privileged code. (CR0, which does, is the gate's.)
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Closed {
    pkru: u32,
    efer: Value,
    sysenter: Value,
    cr4: u64,
    breakpoints: Breakpoints,
}

#[cfg(target_os = "none")]
impl Closed {
    /// Closes what the host has open. Returns what that was. When it fails, nothing is closed.
    ///
    /// # Safety
    ///
    /// 1. Interrupts are masked, in ring 0, until [`open`](Closed::open).
    /// 2. `state` is this CPU's.
    #[inline(always)]
    pub(crate) unsafe fn close(state: *mut State, registers: &Registers) -> Result<Closures, Error> {
        // SAFETY: (2).
        let (mut closures, closed) = unsafe { ((*state).closures, &mut (*state).closed) };
        let dr7 = read_dr7();
        if debug::is_armed(dr7) {
            // SAFETY: (2).
            let (quiet, ranges) = unsafe { (core::mem::take(&mut (*state).quiet), gate::ranges(state)) };
            closed.breakpoints = Breakpoints::prepare(dr7, quiet, ranges)?;
            closures.set_if(Closures::BREAKPOINTS, true);
        }
        if closures.has(Closures::PROTECTION_KEYS) {
            closed.pkru = read_pkru();
            write_pkru(registers.pkru);
        }
        if closures.has(Closures::SYSCALL) {
            // SAFETY: EFER exists; clearing SCE makes SYSCALL undefined and changes nothing else.
            unsafe {
                let efer = Value::read(EFER);
                closed.efer = efer;
                Value { low: efer.low & !EFER_SYSCALL, ..efer }.write(EFER);
            }
        }
        if closures.has(Closures::SYSENTER) {
            // SAFETY: the register exists; a null selector makes SYSENTER fault (SDM 2, SYSENTER) and changes nothing else.
            unsafe {
                closed.sysenter = Value::read(SYSENTER_CS);
                Value { low: 0, high: 0 }.write(SYSENTER_CS);
            }
        }
        if closures.has(Closures::GLOBAL_PAGES) {
            closed.cr4 = Cr4::read_raw();
            // SAFETY: clearing PGE drops all translations (SDM 3, section 5.10.4.1); new ones are not global, so that the switch to
            // the view drops them, until it is set again. The host sees no difference.
            unsafe { Cr4::write_raw(closed.cr4 & !Cr4Flags::PAGE_GLOBAL.bits()) };
        }
        Ok(closures)
    }

    /// Opens `closures` again, keeping what of it is the sandbox's own. `debugged` says that a debug exception cleared DR7.
    ///
    /// # Safety
    ///
    /// 1. On the CPU of [`close`](Closed::close), which returned `closures`, with interrupts masked since.
    #[inline(always)]
    pub(crate) unsafe fn open(&self, closures: Closures, registers: &mut Registers, debugged: bool) {
        if closures == Closures::default() {
            return;
        }
        if closures.has(Closures::PROTECTION_KEYS) {
            registers.pkru = read_pkru();
            write_pkru(self.pkru);
        }
        // SAFETY: each value was read by `close` on this CPU, and interrupts were masked since: the host has not changed it.
        unsafe {
            if closures.has(Closures::SYSCALL) {
                self.efer.write(EFER);
            }
            if closures.has(Closures::SYSENTER) {
                self.sysenter.write(SYSENTER_CS);
            }
        }
        if closures.has(Closures(Closures::GLOBAL_PAGES.0 | Closures::BREAKPOINTS.0)) {
            // SAFETY: (1).
            unsafe { self.open_rare(closures, debugged) };
        }
    }

    /// # Safety
    ///
    /// 1. As [`open`](Closed::open).
    #[cold]
    unsafe fn open_rare(&self, closures: Closures, debugged: bool) {
        if closures.has(Closures::GLOBAL_PAGES) {
            // SAFETY: as in `open`.
            unsafe { Cr4::write_raw(self.cr4) };
        }
        if closures.has(Closures::BREAKPOINTS) {
            self.breakpoints.restore(debugged);
        }
    }

    /// The host's breakpoints, if any are armed.
    pub(crate) fn breakpoints(&self, closures: Closures) -> Option<&Breakpoints> {
        closures.has(Closures::BREAKPOINTS).then_some(&self.breakpoints)
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
