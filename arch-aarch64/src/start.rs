//! Making a CPU ready.
//!
//! What changes on the CPU, once, and only if the host agrees: TCR_EL1.E0PD0 and E0PD1 are cleared. Everything else that a run
//! needs it sets on its way in and puts back on its way out.

use core::arch::asm;
use core::ops::RangeInclusive;
use core::ptr::NonNull;

use aarch64_cpu::registers::{ID_AA64MMFR0_EL1, Readable, TCR_EL1, TTBR0_EL1, TTBR1_EL1};
use sandbox_core::arch::FatalHook;
use sandbox_core::{Error, Page, Unsupported};

use crate::asids::{Asids, Setting};
use crate::format::Vmsa;
use crate::gate::{self, Gate, State};
use crate::probe::{self, Cpu};

/// What the HAL needs to know of a CPU when it starts there.
///
/// Starting a CPU with it also says that the host keeps this CPU's MAIR_EL1, TCR_EL1 and those bits of SCTLR_EL1 as they are
/// that concern translation, endianness, pointer authentication, memory tagging and non-maskable interrupts. Start-up changes
/// nothing but TCR_EL1.E0PD, and that only with [`clear_e0pd`](CpuConfig::clear_e0pd).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct CpuConfig {
    /// Whether TCR_EL1.E0PD0 and E0PD1 may be cleared. While they are set, EL0 can't use a half of the address space at all,
    /// which is a defence against timing attacks from user programs (and a cheap one; unmapping the kernel is the other).
    pub clear_e0pd: bool,
    /// The first and the last of the ASIDs that sandboxes may use on this CPU, if there are any: see
    /// [`asids`](CpuConfig::asids).
    pub asids: Option<(u16, u16)>,
}

impl CpuConfig {
    /// The same with or without leave to clear TCR_EL1.E0PD0 and E0PD1.
    #[must_use]
    pub fn clear_e0pd(mut self, clear: bool) -> Self {
        self.clear_e0pd = clear;
        self
    }

    /// The same with ASIDs for sandboxes: calls then flush no translations, as long as enough of them are given (a few dozen
    /// are; each new sandbox, and each changed one, takes the next, and when all are used up everything is flushed once).
    ///
    /// Giving them says of this CPU, for as long as it runs:
    ///
    /// 1. The host never uses these ASIDs itself, nor gives them to another HAL. Other CPUs may be given the same.
    /// 2. Whatever EL0 may access is mapped not-global (nG), in both halves of the address space.
    /// 3. The host's mappings of what sandboxes share with it don't become global. What is global when a sandbox takes it over
    ///    is noticed: its calls flush, as if it had no ASID. So map text, constants, the pages of
    ///    [`Host::map_gate`](sandbox_core::Host::map_gate) and what is granted not-global to gain something.
    ///
    /// # Errors
    ///
    /// `start_cpu` refuses a range that is empty, that TCR_EL1.AS or ID_AA64MMFR0_EL1.ASIDBits leaves no room for, or that the
    /// ASID in force is in: [`Error::BadTags`].
    #[must_use]
    pub fn asids(mut self, asids: RangeInclusive<u16>) -> Self {
        self.asids = Some((*asids.start(), *asids.end()));
        self
    }
}

/// Checks this CPU, makes the changes and fills its gate data. `format` is that of the CPU that the HAL was made on.
///
/// # Safety
///
/// 1. As [`Arch::start_cpu`](sandbox_core::Arch::start_cpu).
pub(crate) unsafe fn start(
    format: Vmsa,
    gate: Page,
    code: Page,
    config: CpuConfig,
    hook: FatalHook,
) -> Result<NonNull<Gate>, Error> {
    let cpu = Cpu::read();
    if cpu.check()? != format {
        return Err(Unsupported::Missing("the same TCR_EL1, MAIR_EL1 and SCTLR_EL1.WXN on all CPUs").into());
    }
    let pointer = core::ptr::with_exposed_provenance_mut::<Gate>(gate.start().0 as usize);
    let pointer = NonNull::new(pointer).ok_or(Error::GateNotMapped)?;
    let asids = match config.asids {
        None => None,
        Some((first, last)) => {
            let features = ID_AA64MMFR0_EL1.get();
            Some(Asids::new(first, last, &Setting::read(), features, gate.start(), code.start())?)
        }
    };
    // SAFETY: (1) condition 4 of the trait's method.
    let enter = unsafe { gate::enter_at(code) };
    drop_stale_code();
    if cpu.keeps_el0_out() {
        if !config.clear_e0pd {
            let what = "EL0 kept out of kernel addresses (TCR_EL1.E0PD; CpuConfig::clear_e0pd allows to clear it)";
            return Err(Unsupported::Enabled(what).into());
        }
        // SAFETY: (1) `config` says so.
        unsafe { probe::let_el0_in() };
    }
    let state = State {
        frame: Default::default(),
        host_sp: 0,
        host_vbar: 0,
        host_roots: [0; 2],
        host_sp_el0: 0,
        host_tpidr: 0,
        host_elr: 0,
        host_spsr: 0,
        host_tpidrro: 0,
        reserved: 0,
        features: probe::pstate_features(),
        host_pstate: 0,
        way: 0,
        view_roots: [0; 2],
        gate_roots: [0; 2],
        pass_roots: [0; 2],
        host_tcr: 0,
        run_tcr: 0,
        fatal: gate::fatal,
        enter,
        asids,
        units: probe::units(),
        hook,
    };
    // SAFETY: (1): the page is mapped for the HAL alone, and a `Gate` fits.
    unsafe { (&raw mut (*pointer.as_ptr()).state).write(state) };
    Ok(pointer)
}

impl Setting {
    /// This CPU's.
    #[inline]
    pub(crate) fn read() -> Setting {
        Setting { tcr: TCR_EL1.get(), roots: [TTBR0_EL1.get(), TTBR1_EL1.get()] }
    }
}

/// Drops cached instructions. Instruction caches may be indexed by virtual address, so one may still hold for the gate's second
/// address what was in its memory before the kernel was loaded.
fn drop_stale_code() {
    // SAFETY: instructions are fetched again, as they are in memory.
    unsafe { asm!("dsb nsh", "ic iallu", "dsb nsh", "isb", options(nostack, preserves_flags)) };
}
