//! The backend: [`X86_64`] implements the core's `Arch`.

use core::ptr::NonNull;

use sandbox_core::arch::{Cause, FatalHook, Memory, Start, Trap, VectorArea, ViewRoots};
use sandbox_core::{Arch, Error, Frame, Page, PageRange, VirtAddr};
use x86_64::instructions::interrupts;
use x86_64::registers::rflags::RFlags;

use crate::debug::{self, Breakpoints, Events};
use crate::format::LongMode;
use crate::gate::{self, FIRST_INTERRUPT, Gate, MACHINE_CHECK, NMI, State, TableRegister};
use crate::gate::{PENDING_DEBUG, PENDING_MACHINE_CHECK, PENDING_NMI, PENDING_STEP};
use crate::registers::Registers;
use crate::start::{self, CpuConfig};
use crate::state::{Closed, Closures, sandbox_flags};
use crate::vectors;

/// The x86-64 backend.
#[derive(Clone, Copy, Debug)]
pub struct X86_64 {
    format: LongMode,
}

/// Vectors whose decoding needs more than the frame.
const DEBUG: u64 = gate::DEBUG as u64;
const GENERAL_PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = gate::PAGE_FAULT as u64;
/// The bits of a selector in which it says its ring.
const RING: u64 = 0b11;

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

    // Into the core's only caller: the host's handlers wait for the way back.
    #[inline(always)]
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

    #[inline]
    unsafe fn forward(vector: u8, interrupts: bool) {
        if interrupts {
            // SAFETY: (1) the interrupt was accepted by the CPU and no handler has run for it: this is its delivery.
            unsafe { deliver(vector, true) };
        }
    }

    fn program_counter(registers: &Registers) -> VirtAddr {
        VirtAddr(registers.frame.rip)
    }
}

/// The vector registers of a run that has any: where they wait, and what of them this CPU has.
type Vectors<'v> = Option<(&'v VectorArea, u32)>;

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
        vectors: Vectors<'_>,
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
        unsafe {
            if descriptor_table() != (*state).gdt_base {
                return Err(Error::TablesReplaced);
            }
            if task() != (*state).task {
                return Err(Error::TaskStateReplaced);
            }
            if registers.frame.vector == PAGE_FAULT {
                // The run goes on after a page fault that its tables don't explain.
                (*state).closures.forget_global_pages();
            }
            let closures = Closed::close(state, registers)?;
            load(state, registers, interrupts);
            let frame = pass(state, roots, vectors);
            let end = match (*state).pending {
                0 => {
                    (*state).closed.open(closures, registers, false);
                    store(state, frame, registers)
                }
                pending if pending & (PENDING_DEBUG | PENDING_STEP) == 0 => {
                    attend_unmasked(state, frame, closures, registers)
                }
                _ => attend(state, frame, roots, vectors, closures, registers, interrupts),
            };
            Ok(end.trap(registers))
        }
    }
}

/// Goes through the gate. Returns the frame that holds the sandbox's registers, or null if the entry was called off.
///
/// # Safety
///
/// 1. As [`X86_64::run`]; the state is loaded, and what must be closed is.
#[inline(always)]
unsafe fn pass(state: *mut State, roots: &ViewRoots, vectors: Vectors<'_>) -> *const crate::Frame {
    // SAFETY: (1).
    unsafe {
        match vectors {
            None => {
                (*state).cr0_trap = gate::CR0_TRAP;
                gate::sandbox_gate_enter(state, roots.view[0])
            }
            Some((area, components)) => {
                (*state).cr0_trap = 0;
                vectors::enter(state, roots.view[0], area, components)
            }
        }
    }
}

/// Puts the sandbox's registers where the gate takes them from.
///
/// # Safety
///
/// 1. `state` is this CPU's, interrupts are masked.
#[inline(always)]
unsafe fn load(state: *mut State, registers: &Registers, interrupts: bool) {
    // SAFETY: (1).
    unsafe {
        let frame = &raw mut (*state).exit.frame;
        (*frame).copy_from(&registers.frame);
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
#[inline(always)]
unsafe fn store(state: *mut State, frame: *const crate::Frame, registers: &mut Registers) -> End {
    // SAFETY: (1): the frame is on one of the gate's stacks.
    unsafe {
        let vector = (*frame).vector as u8;
        if vector == gate::CALL_VECTOR && (*frame).rax == 0 {
            return End::Returned;
        }
        keep(state, frame, registers);
        match vector {
            FIRST_INTERRUPT.. => End::Interrupt,
            gate::CALL_VECTOR => End::HostCall,
            _ => {
                registers.cr2 = (*state).cr2;
                End::Fault
            }
        }
    }
}

/// How a run ended. The registers say the rest: a [`Trap`], which is too large for a register, would have to go through memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Returned,
    HostCall,
    Interrupt,
    Again,
    Fault,
}

impl End {
    #[inline(always)]
    fn trap(self, registers: &Registers) -> Trap<u8> {
        match self {
            End::Returned => Trap::Returned,
            End::HostCall => Trap::HostCall(registers.frame.rax),
            End::Interrupt => Trap::Interrupt(registers.frame.vector as u8),
            End::Again => Trap::Again,
            End::Fault => Trap::Fault,
        }
    }
}

/// As [`store`], for a run that an NMI or a machine check may have called off (`frame` is null then) or ended.
///
/// # Safety
///
/// 1. As [`store`], unless `frame` is null.
#[inline(always)]
unsafe fn store_any(state: *mut State, frame: *const crate::Frame, registers: &mut Registers) -> End {
    if frame.is_null() {
        return End::Again;
    }
    // SAFETY: (1).
    unsafe {
        if matches!((*frame).vector as u8, NMI | MACHINE_CHECK) {
            keep(state, frame, registers);
            return End::Again;
        }
        store(state, frame, registers)
    }
}

/// Keeps the sandbox's registers for when it goes on.
///
/// # Safety
///
/// 1. As [`store`].
#[inline(always)]
unsafe fn keep(state: *const State, frame: *const crate::Frame, registers: &mut Registers) {
    // SAFETY: (1).
    unsafe {
        registers.frame.copy_from(frame);
        registers.fs_base = (*state).fs_base;
        registers.gs_base = (*state).gs_base;
    }
}

/// Lets the host handle the NMI and the machine check that are `pending`, if they are.
///
/// # Safety
///
/// 1. As [`deliver`].
#[inline(always)]
unsafe fn deliver_unmasked(pending: u32) {
    // In this order: the `iretq` of another handler would unblock NMIs, and the next could hit the handler of this one.
    // SAFETY: (1).
    unsafe {
        if pending & PENDING_NMI != 0 {
            deliver(NMI, false);
        }
        if pending & PENDING_MACHINE_CHECK != 0 {
            deliver(MACHINE_CHECK, false);
        }
    }
}

/// After a run in which an NMI or a machine check came and nothing else: their handlers are not to wait for what debug exceptions
/// would take.
///
/// # Safety
///
/// 1. As [`attend`].
#[cold]
#[inline(never)]
unsafe fn attend_unmasked(
    state: *mut State,
    frame: *const crate::Frame,
    closures: Closures,
    registers: &mut Registers,
) -> End {
    // SAFETY: (1): the host's table is loaded, so that nobody else writes the word from here on.
    unsafe {
        let pending = core::mem::take(&mut (*state).pending);
        (*state).closed.open(closures, registers, false);
        let end = store_any(state, frame, registers);
        deliver_unmasked(pending);
        end
    }
}

/// After a run in which something came that may come at any instruction, or that the host's single-stepping kept from beginning:
/// finds out what the sandbox did, and lets the host handle what is the host's.
///
/// # Safety
///
/// 1. As [`Arch::enter`], in which the gate returned `frame` and `closures` is what was closed for it.
#[cold]
#[inline(never)]
unsafe fn attend(
    state: *mut State,
    mut frame: *const crate::Frame,
    roots: &ViewRoots,
    vectors: Vectors<'_>,
    closures: Closures,
    registers: &mut Registers,
    interrupts: bool,
) -> End {
    // SAFETY: (1): the host's table is loaded, so that nobody else writes the word from here on. The frame of an entry that did
    // not begin is still loaded.
    unsafe {
        let mut pending = core::mem::take(&mut (*state).pending);
        let breakpoints = (*state).closed.breakpoints(closures).copied();
        if frame.is_null() && pending & PENDING_STEP != 0 && pending & (PENDING_NMI | PENDING_MACHINE_CHECK) == 0 {
            if pending & PENDING_DEBUG != 0 {
                // A step too late for the entry to see: only the step.
                pending &= !PENDING_DEBUG;
                (*state).dr6 = 0;
                breakpoints.inspect(|breakpoints| breakpoints.rearm());
            }
            let enter = || pass(state, roots, vectors);
            frame = debug::step_over((*state).has_debugctl, enter);
            pending |= core::mem::take(&mut (*state).pending);
        }
        let debugged = pending & PENDING_DEBUG != 0;
        (*state).closed.open(closures, registers, debugged);
        let mut end = store_any(state, frame, registers);
        let mut host = None;
        if debugged {
            (host, end) = debugged_by(state, frame, breakpoints, registers, end);
        }

        // Before anything else.
        deliver_unmasked(pending);
        if let Some(dr6) = host {
            debug::report(dr6);
            // An interrupt must be forwarded on this CPU, so nothing may come before it.
            deliver(gate::DEBUG, interrupts && end != End::Interrupt);
            interrupts::disable();
        }
        if pending & PENDING_STEP != 0 {
            debug::set_trap_flag();
        }
        end
    }
}

/// Tells the debug exceptions of a run apart: what DR6 has to be for the host's handler, if one was the host's, and how it ended.
///
/// # Safety
///
/// 1. As [`attend`].
unsafe fn debugged_by(
    state: *mut State,
    frame: *const crate::Frame,
    breakpoints: Option<Breakpoints>,
    registers: &mut Registers,
    end: End,
) -> (Option<u64>, End) {
    // SAFETY: (1).
    let dr6 = unsafe { core::mem::take(&mut (*state).dr6) };
    let events = Events::of(breakpoints.as_ref(), dr6);
    if breakpoints.is_none() {
        debug::forget_step();
    }
    if frame.is_null() {
        // SAFETY: (1).
        unsafe { (*state).quiet = events.enabled };
    }
    // SAFETY: (1).
    if frame.is_null() || unsafe { (*frame).vector } != DEBUG {
        return (events.host, end);
    }
    registers.dr6 = dr6;
    if registers.frame.cs & RING == 0 {
        // The frame is the second exception's, and the sandbox's is lost. Two in a row: an instruction for it behind a load of
        // SS that a breakpoint watched (SDM 3, section 7.8.3). The sandbox ends with the instruction.
        let lost = &mut registers.frame;
        (lost.rip, lost.cs, lost.rflags, lost.rsp, lost.ss) = (0, 0, 0, 0, 0);
        return (events.host, End::Fault);
    }
    if events.execution {
        // The host's handler does this to its own frame, or the instruction would never be executed.
        registers.frame.rflags |= RFlags::RESUME_FLAG.bits();
    }
    (events.host, if events.own { End::Fault } else { End::Again })
}

/// Lets the host's own handler run for `vector`, in kernel mode, with interrupts on or masked. They are so afterwards.
///
/// # Safety
///
/// 1. The host's exception table is loaded, and its handler is to run now. If `interrupts`, others may run too, and the thread may
///    be on another CPU afterwards.
#[inline(always)]
unsafe fn deliver(vector: u8, interrupts: bool) {
    // SAFETY: (1). The code there is a function of the C convention; handlers keep all registers.
    unsafe { core::arch::asm!("call {}", in(reg) gate::forward(vector, interrupts), clobber_abi("C")) };
}

/// Where GDTR points.
#[inline(always)]
fn descriptor_table() -> u64 {
    let mut register = core::mem::MaybeUninit::<TableRegister>::uninit();
    // SAFETY: writes ten bytes, of which the limit comes first.
    unsafe {
        core::arch::asm!("sgdt [{}]", in(reg) register.as_mut_ptr(), options(nostack, preserves_flags));
        (&raw const (*register.as_ptr()).base).cast::<u64>().read_unaligned()
    }
}

/// The selector in TR.
#[inline(always)]
fn task() -> u16 {
    let selector: u16;
    // SAFETY: reading TR has no effect.
    unsafe { core::arch::asm!("str {:x}", out(reg) selector, options(nomem, nostack, preserves_flags)) };
    selector
}
