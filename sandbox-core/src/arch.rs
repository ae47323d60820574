//! What an architecture supplies: a backend is one implementation of [`Arch`] and of [`Format`].
//!
//! The terms: the *gate* is the backend's own code (on pages of its own in the host's text) and its data (per CPU, at one
//! address in every address space), mapped privileged-only in host and view alike. A *run* is the time from
//! [`Arch::enter`] until it returns.

use core::ffi::c_void;
use core::fmt::Debug;
use core::ptr::NonNull;

use crate::addr::{Frame, Page, PageRange, VirtAddr};
use crate::error::Error;
use crate::exit::{FatalReport, Syndrome};
use crate::format::{Format, MAX_ROOTS};
use crate::permissions::Access;

pub use crate::tags::Tags;

/// The most frames of gate data a backend may use on a CPU, the host's own that it shows again included.
pub const MAX_GATE_FRAMES: usize = 8;

/// What one entry runs on: roots, as physical addresses. Both sets have an (empty) table where nothing is mapped.
#[derive(Clone, Copy, Debug)]
pub struct ViewRoots {
    /// The sandbox's tables.
    pub view: [u64; MAX_ROOTS],
    /// Tables that map the gate and nothing else, for switches that must pass through common ground.
    pub gate: [u64; MAX_ROOTS],
    /// A table where nothing is mapped.
    pub empty: u64,
    /// The tag to run under. Translations of the view that are cached under it may be used, and stay. `None`: none that was
    /// cached before may be used, and none of the view's may be left behind.
    pub tag: Option<u16>,
}

/// Where sandboxed code begins.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The function to call: `extern "C" fn(argument)`.
    pub function: VirtAddr,
    /// Its argument.
    pub argument: VirtAddr,
    /// The stack pointer, a multiple of 16; the stack grows down from it.
    pub stack: VirtAddr,
}

/// Where vector registers wait that are not in the CPU: memory of the HAL's that no view maps, a frame for each set.
#[derive(Clone, Copy, Debug)]
pub struct VectorArea {
    /// The sandbox's, while it isn't running.
    pub sandbox: *mut u8,
    /// The host's, while it is.
    pub host: *mut u8,
}

/// Why [`Arch::enter`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trap<I> {
    /// The sandboxed function returned.
    Returned,
    /// The sandboxed code asked for host call number so-and-so.
    HostCall(u64),
    /// An interrupt the host has to handle: to be passed to [`Arch::forward`].
    Interrupt(I),
    /// The entry was called off before an instruction ran, or what ended it has been handled: enter again.
    Again,
    /// An exception of the sandboxed code's own: [`Arch::diagnose`] tells which.
    Fault,
}

/// What an exception was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Cause {
    /// A memory access was refused.
    Memory {
        /// The address.
        address: VirtAddr,
        /// What was tried.
        access: Access,
        /// Who refused it.
        refusal: Refusal,
    },
    /// An unknown instruction.
    Illegal,
    /// A privileged one.
    Privileged,
    /// A division.
    Arithmetic,
    /// Floating point or vectors.
    FloatingPoint,
    /// A breakpoint instruction.
    Breakpoint,
    /// Single step or another debug event.
    SingleStep,
    /// Something else.
    Unknown(Syndrome),
}

/// Who refused a memory access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The page tables, or stale copies of host entries for the same page: the tables tell which.
    Translation,
    /// A restriction on top of the tables, such as a protection key.
    Restriction,
    /// The access's alignment.
    Alignment,
    /// No table can translate the address.
    NonCanonical,
    /// The memory system.
    External,
}

/// What the gate does on an exception of its own code. Made by the HAL, stored by the backend.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FatalHook {
    /// Passed to `call`.
    pub hal: *const c_void,
    /// Reports to the host and does not return. To be called on the host's stack, in its address space, with its exception
    /// table, interrupts masked.
    pub call: unsafe extern "C" fn(hal: *const c_void, report: &FatalReport) -> !,
}

/// Reads the sandbox's memory, as an instruction decoder needs it.
pub trait Memory {
    /// Copies bytes from `address` on into `into` as far as the sandbox could execute them; returns how many.
    fn fetch(&self, address: VirtAddr, into: &mut [u8]) -> usize;
    /// Reads the eight bytes at `address`, if the sandbox could.
    fn load(&self, address: VirtAddr) -> Option<u64>;
}

/// A backend.
///
/// # Safety
///
/// The HAL's promises rest on these:
///
/// 1. Between the last instruction of [`enter`](Arch::enter)'s way in and the first of its way out, the CPU executes only
///    unprivileged code, on `roots.view` and nothing else.
/// 2. Whatever that code does, control comes back through the gate, and `enter` returns to its caller with all privileged
///    state, and all unprivileged state the host could notice, as it was.
/// 3. No general register, flag or system register that unprivileged code can read holds a value of the host's.
/// 4. Nothing read from memory or registers that unprivileged code can change decides where the host continues or what it
///    restores.
/// 5. `gate_text` is whole pages that contain the gate's code and nothing else.
pub unsafe trait Arch: Send + Sync + Sized + 'static {
    /// The page-table format.
    type Format: Format;
    /// What the host says about a CPU when it starts the HAL there.
    type CpuConfig;
    /// The gate's data on one CPU.
    type Gate;
    /// The registers of a sandbox while it is not running.
    type Registers: Clone + Debug + Default + Send + Sync;
    /// The caller's interrupt mask.
    type InterruptState: Copy;
    /// An interrupt that arrived in a sandbox.
    type Interrupt: Copy + Debug;

    /// How many frames of its own the gate needs on each CPU.
    const GATE_FRAMES: usize;

    /// Whether the kernel is compiled so that any of its functions may use vector registers.
    const VECTORS_IN_CODE: bool;

    /// Examines the CPU. Returns the feature that forbids running, if there is one.
    fn probe() -> Result<Self, Error>;

    /// The format of the host's tables and of the views.
    fn format(&self) -> Self::Format;

    /// The pages of the gate's code.
    fn gate_text() -> PageRange;

    /// Whether the host is to map the gate's code a second time, on pages of its own, at the same address in every address space.
    /// Then the gate runs there, and what [`gate_text`](Arch::gate_text) names is in no view: for CPUs that can't bear
    /// translations of one page in different sizes, of which the host may have chosen one for its text.
    fn remaps_gate_code(&self) -> bool {
        false
    }

    /// Frames of the host's that the gate shows again on this CPU, behind its own: writes them to `frames` and returns how many.
    /// `translate` tells which frame the host maps at a page. Runs on the CPU that is being started, interrupts masked.
    fn host_frames(&self, translate: &dyn Fn(Page) -> Option<Frame>, frames: &mut [Frame]) -> Result<usize, Error>;

    /// Makes this CPU ready: fills its gate data, installs what must be installed, checks what can only be checked here.
    /// `code` is where the gate's code is mapped in every address space: `gate_text`, or the second mapping of it. Returns the
    /// gate's data, which begins at `gate`. When it fails, the CPU is as before.
    ///
    /// # Safety
    ///
    /// 1. Runs on the CPU in question with interrupts masked, once.
    /// 2. `gate` is the first of `GATE_FRAMES` zeroed pages, followed by those that `host_frames` named, mapped as
    ///    [`Host::map_gate`](crate::Host::map_gate) promises, for ever.
    /// 3. `hook` stays valid for ever.
    /// 4. `code` is the first page of such a mapping, which stays for ever.
    unsafe fn start_cpu(
        &self,
        gate: Page,
        code: Page,
        config: Self::CpuConfig,
        hook: FatalHook,
    ) -> Result<NonNull<Self::Gate>, Error>;

    /// Masks interrupts on this CPU and returns how they were.
    fn mask_interrupts() -> Self::InterruptState;

    /// Restores what [`mask_interrupts`](Arch::mask_interrupts) returned.
    ///
    /// # Safety
    ///
    /// 1. `state` came from `mask_interrupts` in the same thread, and nesting is respected.
    unsafe fn restore_interrupts(state: Self::InterruptState);

    /// Whether interrupts arrive in a thread whose mask is `state`.
    fn accepts_interrupts(state: Self::InterruptState) -> bool;

    /// Makes earlier writes to page tables visible to the table walkers of all CPUs.
    fn publish_tables();

    /// Forgets cached translations of `page` on this CPU, the host's global ones included. Called before a run goes on whose
    /// access the tables allow and the CPU refused. If the way into the sandbox could bring the translation back (since the
    /// host maps its text in large global pages), [`enter`](Arch::enter) must see to that.
    fn flush_page(page: Page);

    /// This CPU's numbers for translation tags, in its gate's data; `None` if it runs all views without.
    ///
    /// # Safety
    ///
    /// 1. `gate` is this CPU's, and interrupts stay masked for as long as the result is used.
    /// 2. No other reference to the numbers is in use.
    unsafe fn tags<'g>(gate: NonNull<Self::Gate>) -> Option<&'g mut Tags> {
        let _ = gate;
        None
    }

    /// Forgets everything that this CPU has cached of unprivileged and the host's translations, under whatever tag. Called with
    /// interrupts masked, before a number of [`tags`](Arch::tags) is used again.
    fn flush_tags() {}

    /// Sets `registers` for a call: everything the sandboxed code can read is zero except what `start` needs.
    fn prepare(&self, registers: &mut Self::Registers, start: Start);

    /// Runs the sandbox until control comes back. `interrupts` says how the caller's interrupts were: the sandbox runs with
    /// them in the same state.
    ///
    /// On [`Trap::Returned`] `registers` need not be up to date; otherwise they are what the sandbox was left with.
    ///
    /// # Safety
    ///
    /// 1. Interrupts are masked, and `gate` is this CPU's.
    /// 2. `roots.view` is a finished view: nothing in it can be changed by unprivileged code except the sandbox's own memory,
    ///    it maps the gate, and its tables don't change during the run.
    /// 3. `registers` came from `prepare` or from an earlier run on the same view.
    unsafe fn enter(
        &self,
        gate: NonNull<Self::Gate>,
        registers: &mut Self::Registers,
        roots: &ViewRoots,
        interrupts: Self::InterruptState,
    ) -> Result<Trap<Self::Interrupt>, Error>;

    /// Whether sandboxes can have vector registers of their own on this CPU, as it is set up. The error says what forbids it.
    fn check_vectors(&self) -> Result<(), Error>;

    /// Sets the sandbox's half of `area` for a call: registers that are zero, and control registers as after a reset.
    ///
    /// # Safety
    ///
    /// 1. `area` is two frames of the caller's, zeroed when they were taken and written by this trait alone, and no run uses
    ///    them.
    unsafe fn reset_vectors(&self, area: &VectorArea);

    /// As [`enter`](Arch::enter), with vector registers: the sandbox's are in the CPU while it runs, and the host's, whatever
    /// it uses them for, whenever code of the host's does. That is, this CPU's go to `area` with interrupts masked, after the last
    /// compiled instruction and are back, bit for bit, before the first.
    ///
    /// # Errors
    ///
    /// As [`enter`](Arch::enter), and what [`check_vectors`](Arch::check_vectors) says now.
    ///
    /// # Safety
    ///
    /// 1. As [`enter`](Arch::enter).
    /// 2. `area` is two frames as for [`reset_vectors`](Arch::reset_vectors), which was called at the start of the call.
    unsafe fn enter_with_vectors(
        &self,
        gate: NonNull<Self::Gate>,
        registers: &mut Self::Registers,
        roots: &ViewRoots,
        interrupts: Self::InterruptState,
        area: &VectorArea,
    ) -> Result<Trap<Self::Interrupt>, Error>;

    /// What the exception was that ended the last run, by what [`enter`](Arch::enter) left in `registers`. `memory` shows
    /// what the sandbox can read, for looking at the instruction.
    fn diagnose(&self, registers: &Self::Registers, memory: &dyn Memory) -> Cause;

    /// Lets the host's own handler run for an interrupt that arrived in the sandbox, as if it had hit kernel code of the
    /// caller's. Afterwards interrupts are as the caller had them; the thread may be on another CPU.
    ///
    /// # Safety
    ///
    /// 1. `interrupt` came from the last [`enter`](Arch::enter) on this CPU; interrupts have been masked since.
    /// 2. `interrupts` is how the caller's were.
    unsafe fn forward(interrupt: Self::Interrupt, interrupts: Self::InterruptState);

    /// The address of the instruction that the sandbox stopped at.
    fn program_counter(registers: &Self::Registers) -> VirtAddr;
}
