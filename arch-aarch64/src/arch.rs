//! The backend: [`Aarch64`] implements the core's `Arch`.

use core::arch::asm;
use core::ptr::NonNull;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CPACR_EL1, DAIF, ID_AA64PFR0_EL1, Readable};
use sandbox_core::arch::{Cause, FatalHook, Memory, Start, Tags, Trap, VectorArea, ViewRoots};
use sandbox_core::{Arch, Error, Frame, Page, PageRange, VirtAddr};

use crate::asids::Setting;
use crate::diagnose;
use crate::format::Vmsa;
use crate::gate::{self, FRAME_END, Gate, RETURNED, SYNCHRONOUS, State};
use crate::probe::Cpu;
use crate::registers::Registers;
use crate::start::{self, CpuConfig};
use crate::state::{Closed, hidden_error, host_pstate, pstate, sandbox_pstate};
use crate::system;
use crate::vectors::{self, sandbox_vectors_enter};

/// The AArch64 backend.
#[derive(Clone, Copy, Debug)]
pub struct Aarch64 {
    format: Vmsa,
}

/// The caller's interrupt mask: what DAIF was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Masks(u64);

/// An interrupt that arrived in a sandbox, IRQ or FIQ. It is still pending: which one, the CPU will say again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupt;

// SAFETY:
// 1. and 2. The protocol of vectors.s, enter.s and exit.s.
// 3. and 4. The register table of `state`, and SP_EL1, which the sandbox cannot reach, leading to what the gate reads.
// 5. vectors.s and exit.s align the gate's code to pages on both sides.
unsafe impl Arch for Aarch64 {
    type Format = Vmsa;
    type CpuConfig = CpuConfig;
    type Gate = Gate;
    type Registers = Registers;
    type InterruptState = Masks;
    type Interrupt = Interrupt;

    const GATE_FRAMES: usize = Gate::FRAMES;
    const VECTORS_IN_CODE: bool = cfg!(target_feature = "neon");

    fn probe() -> Result<Self, Error> {
        Ok(Aarch64 { format: Cpu::read().check()? })
    }

    fn format(&self) -> Vmsa {
        self.format
    }

    fn gate_text() -> PageRange {
        gate::text()
    }

    fn remaps_gate_code(&self) -> bool {
        true
    }

    fn host_frames(&self, _translate: &dyn Fn(Page) -> Option<Frame>, _frames: &mut [Frame]) -> Result<usize, Error> {
        Ok(0)
    }

    unsafe fn start_cpu(
        &self,
        gate: Page,
        code: Page,
        config: CpuConfig,
        hook: FatalHook,
    ) -> Result<NonNull<Gate>, Error> {
        // SAFETY: (1) the caller's promise is the same.
        unsafe { start::start(self.format, gate, code, config, hook) }
    }

    #[inline(always)]
    fn mask_interrupts() -> Masks {
        let masks = Masks(DAIF.get());
        // SAFETY: masking changes nothing else. Not `nomem`: what follows must stay behind it.
        unsafe { asm!("msr daifset, #0b1111", options(nostack, preserves_flags)) };
        masks
    }

    #[inline(always)]
    unsafe fn restore_interrupts(Masks(daif): Masks) {
        // SAFETY: brings back masks that were in force in this thread.
        unsafe { asm!("msr daif, {}", in(reg) daif, options(nostack, preserves_flags)) };
    }

    fn accepts_interrupts(Masks(daif): Masks) -> bool {
        daif & pstate::I == 0
    }

    fn publish_tables() {
        // The stores are done before any walk, here or on a CPU that learns of them afterwards.
        barrier::dsb(barrier::ISHST);
        barrier::isb(barrier::SY);
    }

    fn flush_page(page: Page) {
        /// The operand's field for the page number.
        const PAGE_MASK: u64 = (1 << 44) - 1;
        // SAFETY: dropping translations changes no access that the tables allow.
        unsafe {
            asm!(
                "dsb nshst",
                "tlbi vaae1, {}",
                "dsb nsh",
                "isb",
                in(reg) page.number() & PAGE_MASK,
                options(nostack, preserves_flags)
            );
        }
    }

    unsafe fn tags<'g>(gate: NonNull<Gate>) -> Option<&'g mut Tags> {
        // SAFETY: (1), (2).
        let asids = unsafe { &mut (*gate.as_ptr()).state.asids };
        asids.as_mut().map(|asids| &mut asids.tags)
    }

    #[cold]
    fn flush_tags() {
        // SAFETY: dropping translations changes no access that the tables allow.
        unsafe { asm!("dsb nshst", "tlbi vmalle1", "dsb nsh", "isb", options(nostack, preserves_flags)) };
    }

    fn prepare(&self, registers: &mut Registers, start: Start) {
        registers.clear();
        registers.pc = gate::launch();
        registers.sp = start.stack.0;
        registers.x[0] = start.argument.0;
        registers.x[1] = start.function.0;
    }

    unsafe fn enter(
        &self,
        gate: NonNull<Gate>,
        registers: &mut Registers,
        roots: &ViewRoots,
        Masks(daif): Masks,
    ) -> Result<Trap<Interrupt>, Error> {
        // SAFETY: (1) to (3) of this method.
        unsafe { run(gate, registers, roots, daif, None) }
    }

    fn check_vectors(&self) -> Result<(), Error> {
        Ok(vectors::check(ID_AA64PFR0_EL1.get(), CPACR_EL1.get())?)
    }

    unsafe fn reset_vectors(&self, area: &VectorArea) {
        // SAFETY: (1).
        unsafe { vectors::reset(area.sandbox) };
    }

    unsafe fn enter_with_vectors(
        &self,
        gate: NonNull<Gate>,
        registers: &mut Registers,
        roots: &ViewRoots,
        Masks(daif): Masks,
        area: &VectorArea,
    ) -> Result<Trap<Interrupt>, Error> {
        // SAFETY: (1), (2) of this method.
        unsafe { run(gate, registers, roots, daif, Some(area)) }
    }

    fn diagnose(&self, registers: &Registers, memory: &dyn Memory) -> Cause {
        diagnose::diagnose(self.format, registers, memory)
    }

    unsafe fn forward(Interrupt: Interrupt, masks: Masks) {
        // SAFETY: (2) in the caller's thread, and as it had them.
        unsafe { Self::restore_interrupts(masks) };
        // What is pending and no longer masked is taken before this ends (Arm ARM, section D1.3.6).
        barrier::isb(barrier::SY);
    }

    fn program_counter(registers: &Registers) -> VirtAddr {
        VirtAddr(registers.pc)
    }
}

/// Fills in what the gate needs for a run under `asid`.
///
/// # Safety
///
/// 1. `state` is this CPU's, and nobody else's until interrupts are on again.
#[inline(never)]
unsafe fn prepare_switch(state: *mut State, roots: &ViewRoots, asid: u16) {
    // SAFETY: (1).
    let Some(asids) = (unsafe { &(*state).asids }) else { return };
    let host = if asids.borrows() { Setting::read() } else { Setting::NONE };
    let switch = asids.switch(roots.view, asid, roots.empty, host);
    // SAFETY: (1).
    unsafe {
        (*state).way = switch.way;
        (*state).view_roots = switch.view;
        (*state).pass_roots = switch.pass;
        (*state).host_tcr = switch.host_tcr;
        (*state).run_tcr = switch.run_tcr;
    }
}

/// DISR_EL1, on CPUs that have it.
///
/// # Safety
///
/// 1. `state` is this CPU's, and nobody else's until interrupts are on again.
#[inline(always)]
unsafe fn deferred_error(state: *const State) -> u64 {
    // SAFETY: (1): what the CPU has was found on it.
    unsafe { if (*state).units.deferred_errors { system::read_disr() } else { 0 } }
}

/// Tells the host of an SError that the sandbox kept from it; it was entered at `pc`.
///
/// # Safety
///
/// 1. `state` is this CPU's, the run has ended, and all exceptions are masked.
#[cold]
unsafe fn report_hidden_error(state: *const State, syndrome: u64, pc: u64) -> ! {
    // SAFETY: (1): the hook is called as by an exception of the gate's own.
    unsafe { gate::fatal(state.cast::<u8>().add(FRAME_END), syndrome, pc, 0) }
}

/// Runs a sandbox, with vector registers if there is a place for them.
///
/// # Safety
///
/// 1. As [`Arch::enter`], or [`Arch::enter_with_vectors`].
#[inline(always)]
unsafe fn run(
    gate: NonNull<Gate>,
    registers: &mut Registers,
    roots: &ViewRoots,
    daif: u64,
    vectors: Option<&VectorArea>,
) -> Result<Trap<Interrupt>, Error> {
    // SAFETY: (1): the state is this CPU's, and nobody else's until interrupts are on again; `features` and
    // `units` were found on it; `sandbox_pstate` makes the `pstate`; the roots are a view's and the gate's.
    let (state, ending) = unsafe {
        let state: *mut State = &raw mut (*gate.as_ptr()).state;
        let features = (*state).features;
        let host = host_pstate(features);
        (*state).host_pstate = host;
        match roots.tag {
            None => {
                (*state).way = 0;
                (*state).view_roots = roots.view;
                (*state).gate_roots = roots.gate;
            }
            Some(asid) => prepare_switch(state, roots, asid),
        }
        registers.pstate = sandbox_pstate(registers.pstate, daif, host, features);
        let closed = match vectors {
            None => Closed::close((*state).units),
            Some(_) => Closed::close_with_vectors((*state).units)?,
        };
        let errors = deferred_error(state);
        let sp = state.cast::<u8>().add(FRAME_END);
        let ending = match vectors {
            None => ((*state).enter)(sp, registers),
            Some(area) => sandbox_vectors_enter(sp, registers, area.sandbox, area.host, (*state).enter),
        };
        closed.open();
        let now = deferred_error(state);
        if let Some(syndrome) = hidden_error(errors, now) {
            report_hidden_error(state, syndrome, registers.pc);
        }
        (state, ending)
    };
    if ending == RETURNED {
        return Ok(Trap::Returned);
    }
    if ending != SYNCHRONOUS {
        // SAFETY: as above.
        unsafe { registers.copy_interrupted(&raw const (*state).frame) };
        return Ok(Trap::Interrupt(Interrupt));
    }
    // SAFETY: as above.
    unsafe { registers.copy_from(&raw const (*state).frame) };
    Ok(match diagnose::host_call(registers.esr) {
        // The gate compares the whole syndrome, where future CPUs may say more.
        Some(0) => Trap::Returned,
        Some(number) => Trap::HostCall(number),
        None => Trap::Fault,
    })
}
