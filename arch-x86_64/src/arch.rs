//! The backend: [`X86_64`] implements the core's `Arch`.

use core::ptr::NonNull;

use sandbox_core::arch::{Cause, FatalHook, Memory, Start, Trap, VectorArea, ViewRoots};
use sandbox_core::{Arch, Error, Frame, Page, PageRange, VirtAddr};
use x86_64::instructions::interrupts;
use x86_64::instructions::tables::sgdt;

use crate::format::LongMode;
use crate::gate::{self, FIRST_INTERRUPT, Gate, MACHINE_CHECK, NMI, PENDING_MACHINE_CHECK, PENDING_NMI, State};
use crate::registers::Registers;
use crate::start::{self, CpuConfig};
use crate::state::{Closed, sandbox_flags};
use crate::vectors::{self, sandbox_vectors_enter};

/// The x86-64 backend.
#[derive(Clone, Copy, Debug)]
pub struct X86_64 {
    format: LongMode,
}

/// Vectors whose decoding needs more than the frame.
const DEBUG: u64 = gate::DEBUG as u64;
const GENERAL_PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = 14;
/// DR6.BS: a single step (SDM 3, section 19.2.3).
const DR6_SINGLE_STEP: u64 = 1 << 14;

// SAFETY:
// 1. and 2. The protocol of enter.s and exit.s, under the table that only the gate's stubs are in.
// 3. and 4. The register table of `state`, and the frames being on stacks that the sandbox cannot reach.
// 5. enter.s and exit.s align the gate's code to pages on both sides.
unsafe impl Arch for X86_64 {
    type Format = LongMode;
    type CpuConfig = CpuConfig;
    type Gate = Gate;
    type Registers = Registers;
    /// Whether interrupts were on.
    type InterruptState = bool;
    /// The vector, 32 or above.
    type Interrupt = u8;

    const GATE_FRAMES: usize = Gate::FRAMES;
    const VECTORS_IN_CODE: bool = cfg!(target_feature = "sse");

    fn probe() -> Result<Self, Error> {
        crate::probe::probe().map(|format| X86_64 { format })
    }

    fn format(&self) -> LongMode {
        self.format
    }

    fn gate_text() -> PageRange {
        gate::text()
    }

    fn host_frames(&self, translate: &dyn Fn(Page) -> Option<Frame>, frames: &mut [Frame]) -> Result<usize, Error> {
        start::host_frames(translate, frames)
    }

    unsafe fn start_cpu(
        &self,
        gate: Page,
        _code: Page,
        config: CpuConfig,
        hook: FatalHook,
    ) -> Result<NonNull<Gate>, Error> {
        crate::probe::probe()?;
        // SAFETY: (1) the caller's promise is the same.
        unsafe { start::start(gate, config, hook) }
    }

    fn mask_interrupts() -> bool {
        let enabled = interrupts::are_enabled();
        interrupts::disable();
        enabled
    }

    unsafe fn restore_interrupts(enabled: bool) {
        if enabled {
            interrupts::enable();
        }
    }

    fn accepts_interrupts(enabled: bool) -> bool {
        enabled
    }

    fn publish_tables() {
        // Stores are seen in order by the table walkers of all CPUs, and a walk begins after the root is written
        // (SDM 3, section 5.10.4.3 and volume 3, chapter 10).
    }

    fn flush_page(page: Page) {
        // Not `tlb::flush`, whose addresses have 48 bits.
        // SAFETY: forgets a translation, which the next access finds again.
        unsafe { core::arch::asm!("invlpg [{}]", in(reg) page.start().0, options(nostack, preserves_flags)) };
    }

    fn prepare(&self, registers: &mut Registers, start: Start) {
        *registers = Registers::default();
        registers.frame.rip = gate::launch();
        registers.frame.rsp = start.stack.0;
        registers.frame.rdi = start.argument.0;
        registers.frame.rsi = start.function.0;
    }

    unsafe fn enter(
        &self,
        gate: NonNull<Gate>,
        registers: &mut Registers,
        roots: &ViewRoots,
        interrupts: bool,
    ) -> Result<Trap<u8>, Error> {
        // SAFETY: (1) to (3) of this method.
        unsafe { self.run(gate, registers, roots, interrupts, None) }
    }

    fn check_vectors(&self) -> Result<(), Error> {
        vectors::check()
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
        interrupts: bool,
        area: &VectorArea,
    ) -> Result<Trap<u8>, Error> {
        let components = vectors::components()?;
        // SAFETY: (1), (2) of this method; found on this CPU.
        unsafe {
            vectors::prepare(area, components);
            self.run(gate, registers, roots, interrupts, Some((area, components)))
        }
    }

    fn diagnose(&self, registers: &Registers, memory: &dyn Memory) -> Cause {
        crate::diagnose::diagnose(self.format, registers, memory)
    }

    unsafe fn forward(vector: u8, interrupts: bool) {
        if interrupts {
            // SAFETY: (1) the interrupt was accepted by the CPU and no handler has run for it: this is its delivery. The code
            // there is a function of the C convention; handlers keep all registers.
            unsafe { core::arch::asm!("call {}", in(reg) gate::forward(vector), clobber_abi("C")) };
        }
    }

    fn program_counter(registers: &Registers) -> VirtAddr {
        VirtAddr(registers.frame.rip)
    }
}

impl X86_64 {
    /// Runs a sandbox, with vector registers if there is a place for them.
    ///
    /// # Safety
    ///
    /// 1. As [`Arch::enter`], or [`Arch::enter_with_vectors`], with what this CPU's [`components`](vectors::components) are.
    #[inline(always)]
    unsafe fn run(
        &self,
        gate: NonNull<Gate>,
        registers: &mut Registers,
        roots: &ViewRoots,
        interrupts: bool,
        vectors: Option<(&VectorArea, u32)>,
    ) -> Result<Trap<u8>, Error> {
        let state = start::state(gate);
        if !self.format.is_canonical(registers.frame.rip) {
            // `iretq` would fault in ring 0. The sandbox would have faced the same fault one instruction later.
            registers.frame.vector = GENERAL_PROTECTION;
            registers.frame.error = 0;
            return Ok(Trap::Fault);
        }
        // SAFETY: (1): `state` is this CPU's and nobody else's until interrupts are on again; `load` puts a frame
        // with a canonical `rip` and the host's selectors and flags into it; the root is a view's.
        let frame = unsafe {
            if sgdt().base.as_u64() != (*state).gdt_base {
                return Err(Error::TablesReplaced);
            }
            if registers.frame.vector == PAGE_FAULT {
                // The run goes on after a page fault that its tables don't explain.
                (*state).closures.forget_global_pages();
            }
            load(state, registers, interrupts);
            let closed = Closed::close((*state).closures, registers, vectors.is_some());
            let frame = match vectors {
                None => gate::sandbox_gate_enter(state, roots.view[0]),
                Some((area, components)) => {
                    sandbox_vectors_enter(state, roots.view[0], area.sandbox, area.host, components)
                }
            };
            if !frame.is_null() && (*frame).vector == DEBUG {
                // While nothing is armed: the host may guard the debug registers.
                registers.dr6 = take_dr6();
            }
            closed.open(registers);
            frame
        };
        // SAFETY: as above.
        let trap = unsafe { store(state, frame, registers) };
        // SAFETY: interrupts are masked and the host's own table is loaded.
        unsafe { deliver_pending(state) };
        Ok(trap)
    }
}

/// Puts the sandbox's registers where the gate takes them from.
///
/// # Safety
///
/// 1. `state` is this CPU's, interrupts are masked.
unsafe fn load(state: *mut State, registers: &Registers, interrupts: bool) {
    // SAFETY: (1).
    unsafe {
        let frame = &raw mut (*state).exit.frame;
        *frame = registers.frame;
        (*frame).cs = (*state).user_code.into();
        (*frame).ss = (*state).user_data.into();
        (*frame).rflags = sandbox_flags(registers.frame.rflags, interrupts);
        (*state).fs_base = registers.fs_base;
        (*state).gs_base = registers.gs_base;
    }
}

/// Finds out why the gate let go, and takes the sandbox's registers over unless it returned.
///
/// # Safety
///
/// 1. `state` is this CPU's; `frame` is what the gate returned, and interrupts have been masked since.
unsafe fn store(state: *mut State, frame: *const crate::Frame, registers: &mut Registers) -> Trap<u8> {
    // SAFETY: (1): the frame is null or on one of the gate's stacks.
    unsafe {
        if frame.is_null() {
            return Trap::Again;
        }
        let vector = (*frame).vector as u8;
        if vector == gate::CALL_VECTOR && (*frame).rax == 0 {
            return Trap::Returned;
        }
        registers.frame = *frame;
        registers.fs_base = (*state).fs_base;
        registers.gs_base = (*state).gs_base;
        registers.cr2 = (*state).cr2;
        match vector {
            gate::CALL_VECTOR => Trap::HostCall((*frame).rax),
            NMI => {
                (*state).pending |= PENDING_NMI;
                Trap::Again
            }
            MACHINE_CHECK => {
                (*state).pending |= PENDING_MACHINE_CHECK;
                Trap::Again
            }
            FIRST_INTERRUPT.. => Trap::Interrupt(vector),
            _ => Trap::Fault,
        }
    }
}

/// Lets the host handle an NMI or machine check that the gate received: in kernel mode with interrupts masked, as it would have
/// been without the HAL. A hardware NMI stays blocked until the host's own handler returns.
///
/// # Safety
///
/// 1. `state` is this CPU's, interrupts are masked, the host's exception table is loaded.
unsafe fn deliver_pending(state: *mut State) {
    // SAFETY: (1): after the host's table is loaded nobody else writes the word. The host's handlers may run at any time.
    unsafe {
        let pending = core::mem::take(&mut (*state).pending);
        // In this order: the other handler's `iretq` would unblock NMIs, and the next could hit the handler of this one.
        if pending & PENDING_NMI != 0 {
            core::arch::asm!("int {}", const NMI);
        }
        if pending & PENDING_MACHINE_CHECK != 0 {
            core::arch::asm!("int {}", const MACHINE_CHECK);
        }
    }
}

/// Reads the debug status and removes what the sandbox's single step left in it.
fn take_dr6() -> u64 {
    let value: u64;
    // SAFETY: clears a status bit that a sandbox set.
    unsafe {
        core::arch::asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags));
        core::arch::asm!("mov dr6, {}", in(reg) value & !DR6_SINGLE_STEP, options(nomem, nostack, preserves_flags));
    }
    value
}
