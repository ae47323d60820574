//! The gate: the code and the per-CPU data through which control passes between host and sandbox.
//!
//! The code is `enter.s` and `exit.s`, on pages of its own; each file draws its protocol. The data is three frames:
//!
//! ```text
//! page 0   the exception table of the runs: 256 interrupt gates into exit.s
//! page 1   the descriptor table: the host's entries, and the two that sandboxes run on
//! page 2   State: what the way back restores; then five stacks, one for each interrupt-stack slot
//! page 3.. the host's own task state, seen a second time: the CPU finds it in every address space
//! ```
//!
//! Each stack ends in a [`Frame`] and, above it, a pointer back to the [`State`]: whatever vector control arrives
//! through, `rsp` leads to the gate's data, and nothing that the sandbox can change is asked.

use core::mem::offset_of;

use sandbox_core::PAGE_SIZE;
use sandbox_core::arch::FatalHook;
#[cfg(target_os = "none")]
use sandbox_core::{FatalReport, Syndrome};
#[cfg(target_os = "none")]
use sandbox_core::{PageRange, VirtAddr};

use x86_64::registers::control::Cr0Flags;
#[cfg(target_os = "none")]
use x86_64::registers::control::Cr4Flags;

use crate::registers::Frame;
use crate::state::{Closed, Closures};

/// The vector of a sandbox's return and of its host calls: the one gate that unprivileged code may use. No device can raise a
/// vector below 16, and in 64-bit mode no instruction but `int 4` raises this one (SDM 3, section 7.15, "Interrupt 4").
pub(crate) const CALL_VECTOR: u8 = 4;
pub(crate) const DEBUG: u8 = 1;
pub(crate) const NMI: u8 = 2;
pub(crate) const DOUBLE_FAULT: u8 = 8;
pub(crate) const PAGE_FAULT: u8 = 14;
pub(crate) const MACHINE_CHECK: u8 = 18;
/// Vectors from here on are interrupts.
pub(crate) const FIRST_INTERRUPT: u8 = 32;

/// `State::pending`: an NMI arrived in the gate and is the host's to handle.
pub(crate) const PENDING_NMI: u32 = 1 << 0;
/// `State::pending`: a machine check did.
pub(crate) const PENDING_MACHINE_CHECK: u32 = 1 << 1;
/// `State::pending`: a debug exception did, and DR7 has been cleared.
pub(crate) const PENDING_DEBUG: u32 = 1 << 2;
/// `State::pending`: the host is single-stepping; the entry did not begin, or the trap flag was cleared on the way.
pub(crate) const PENDING_STEP: u32 = 1 << 3;

/// What makes floating point trap. Both, so that WAIT does too (SDM 3, table 2-2).
pub(crate) const CR0_TRAP: u64 = Cr0Flags::TASK_SWITCHED.union(Cr0Flags::MONITOR_COPROCESSOR).bits();
// The entry looks at the lowest byte.
const _: () = assert!(CR0_TRAP <= u8::MAX as u64);

/// Bytes from one vector's stub to the next.
pub(crate) const STUB_SIZE: usize = 16;

/// An operand of `lidt` and `sidt`, padded.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub(crate) struct TableRegister {
    pub(crate) limit: u16,
    pub(crate) base: [u16; 4],
    reserved: [u16; 3],
}

impl TableRegister {
    pub(crate) fn new(base: u64, limit: u16) -> Self {
        let words = [base as u16, (base >> 16) as u16, (base >> 32) as u16, (base >> 48) as u16];
        TableRegister { limit, base: words, reserved: [0; 3] }
    }
}

/// RFLAGS.TF, and where it is in a flags word on the stack.
const FLAGS_TRAP: u32 = 8;
/// What `sandbox_gate_enter` has pushed where it tests that: six registers and the flags.
const ENTRY_PUSHES: usize = 7 * size_of::<u64>();

/// One of the gate's stacks. The space is for what a deferred NMI, machine check or debug exception leaves below what it
/// interrupted: three words each.
#[repr(C, align(16))]
pub(crate) struct Stack {
    space: [u64; 16],
    pub(crate) frame: Frame,
    /// Back to the state.
    pub(crate) state: *mut State,
    reserved: u64,
}

const _: () = assert!(offset_of!(Stack, state).is_multiple_of(16));
const _: () = assert!(offset_of!(Stack, state) == offset_of!(Stack, frame) + size_of::<Frame>());

/// What a run needs to find its way back, and what it runs on. All of it is written before the gate's exception table is
/// loaded, on every entry.
#[repr(C, align(64))]
pub(crate) struct State {
    pub(crate) host_rsp: u64,
    pub(crate) host_cr3: u64,
    pub(crate) host_cr0: u64,
    /// Bits of CR0 that must be set in the run: [`CR0_TRAP`], or none if the sandbox has vector registers.
    pub(crate) cr0_trap: u64,
    pub(crate) host_fs_base: u64,
    pub(crate) host_gs_base: u64,
    pub(crate) host_idtr: TableRegister,
    pub(crate) host_ds: u16,
    pub(crate) host_es: u16,
    pub(crate) host_fs: u16,
    pub(crate) host_gs: u16,
    pub(crate) host_ldtr: u16,
    /// Whether CR4.FSGSBASE is on; read afresh at each entry.
    pub(crate) has_fsgsbase: u32,
    /// `PENDING_*`.
    pub(crate) pending: u32,
    /// The sandbox's.
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
    /// CR2 at the last page fault.
    pub(crate) cr2: u64,
    /// DR6 of the run's debug exceptions, all of them.
    pub(crate) dr6: u64,
    /// The gate's own exception table.
    pub(crate) idtr: TableRegister,
    pub(crate) user_code: u16,
    pub(crate) user_data: u16,
    /// Where the host's GDTR pointed after `start_cpu`.
    pub(crate) gdt_base: u64,
    /// What TR held then.
    pub(crate) task: u16,
    /// How many pages the gate's data has, the host's task state included.
    pub(crate) pages: u64,
    /// Enable bits of breakpoints that hit in the last entry and are left off in the next.
    pub(crate) quiet: u64,
    /// What runs on this CPU must close and the entry does not look for: found at `start_cpu`, or since.
    pub(crate) closures: Closures,
    /// The host's values of that, during a run.
    pub(crate) closed: Closed,
    /// Whether the CPU has IA32_DEBUGCTL.
    pub(crate) has_debugctl: bool,
    pub(crate) hook: FatalHook,
    pub(crate) exit: Stack,
    pub(crate) nmi: Stack,
    pub(crate) machine_check: Stack,
    pub(crate) debug: Stack,
    pub(crate) double_fault: Stack,
}

/// The gate's data on one CPU; the host's task state follows.
#[repr(C, align(4096))]
pub struct Gate {
    pub(crate) idt: [[u64; 2]; 256],
    pub(crate) gdt: [u64; 512],
    pub(crate) state: State,
}

const _: () = assert!(offset_of!(Gate, gdt) == PAGE_SIZE && offset_of!(Gate, state) == 2 * PAGE_SIZE);
const _: () = assert!(size_of::<State>() <= PAGE_SIZE);

impl Gate {
    /// Frames that the gate's data takes on a CPU.
    pub(crate) const FRAMES: usize = size_of::<Gate>() / PAGE_SIZE;
}

#[cfg(target_os = "none")]
core::arch::global_asm!(
    include_str!("enter.s"),
    include_str!("exit.s"),
    HOST_RSP = const offset_of!(State, host_rsp),
    HOST_CR3 = const offset_of!(State, host_cr3),
    HOST_CR0 = const offset_of!(State, host_cr0),
    CR0_TRAP = const offset_of!(State, cr0_trap),
    HOST_FS_BASE = const offset_of!(State, host_fs_base),
    HOST_GS_BASE = const offset_of!(State, host_gs_base),
    HOST_IDTR = const offset_of!(State, host_idtr),
    HOST_DS = const offset_of!(State, host_ds),
    HOST_ES = const offset_of!(State, host_es),
    HOST_FS = const offset_of!(State, host_fs),
    HOST_GS = const offset_of!(State, host_gs),
    HOST_LDTR = const offset_of!(State, host_ldtr),
    HAS_FSGSBASE = const offset_of!(State, has_fsgsbase),
    PENDING = const offset_of!(State, pending),
    FS_BASE = const offset_of!(State, fs_base),
    GS_BASE = const offset_of!(State, gs_base),
    CR2 = const offset_of!(State, cr2),
    DR6 = const offset_of!(State, dr6),
    IDTR = const offset_of!(State, idtr),
    USER_DATA = const offset_of!(State, user_data),
    EXIT_FRAME = const offset_of!(State, exit) + offset_of!(Stack, frame),
    FRAME_SIZE = const size_of::<Frame>(),
    FRAME_RAX = const offset_of!(Frame, rax),
    FRAME_VECTOR = const offset_of!(Frame, vector),
    FRAME_RIP = const offset_of!(Frame, rip),
    FRAME_CS = const offset_of!(Frame, cs),
    FRAME_RFLAGS = const offset_of!(Frame, rflags),
    FRAME_RSP = const offset_of!(Frame, rsp),
    SKIP_VECTOR_AND_ERROR = const offset_of!(Frame, rip) - offset_of!(Frame, vector),
    STUB_SIZE = const STUB_SIZE,
    NMI = const NMI,
    PAGE_FAULT = const PAGE_FAULT,
    MACHINE_CHECK = const MACHINE_CHECK,
    PENDING_NMI = const PENDING_NMI,
    DEBUG = const DEBUG,
    PENDING_MACHINE_CHECK = const PENDING_MACHINE_CHECK,
    PENDING_DEBUG = const PENDING_DEBUG,
    PENDING_STEP = const PENDING_STEP,
    ENTRY_PUSHES = const ENTRY_PUSHES,
    FLAGS_TRAP = const FLAGS_TRAP,
    FLAGS_TRAP_BYTE = const FLAGS_TRAP / u8::BITS,
    FLAGS_TRAP_BIT = const 1 << (FLAGS_TRAP % u8::BITS),
    DR7_CLEAR = const crate::debug::DR7_CLEAR,
    CR4_FSGSBASE = const Cr4Flags::FSGSBASE.bits().trailing_zeros(),
    PAGE_MASK = const PAGE_SIZE - 1,
    IA32_FS_BASE = const 0xc000_0100_u32,
    IA32_GS_BASE = const 0xc000_0101_u32,
    CALL_VECTOR = const CALL_VECTOR,
    fatal = sym fatal,
);

#[cfg(target_os = "none")]
unsafe extern "C" {
    static sandbox_gate_start: u8;
    static sandbox_gate_end: u8;
    static sandbox_gate_stubs: u8;
    static sandbox_gate_launch: u8;
    static sandbox_gate_forward: u8;

    /// Runs the sandbox whose registers are in the exit stack's frame until control comes back, and returns the frame that then
    /// holds its registers; null if the entry was called off. The protocol is in `enter.s`.
    ///
    /// # Safety
    ///
    /// 1. Interrupts are masked; `state` is this CPU's.
    /// 2. The frame at the exit stack is a sandbox's, with a canonical `rip` and flags and selectors set by the host.
    /// 3. `root` is the root of a view that maps the gate.
    pub(crate) fn sandbox_gate_enter(state: *mut State, root: u64) -> *const Frame;
}

/// The gate's code.
#[cfg(target_os = "none")]
pub(crate) fn text() -> PageRange {
    let (start, end) = (VirtAddr::of(&raw const sandbox_gate_start), VirtAddr::of(&raw const sandbox_gate_end));
    // Both are aligned to pages in `enter.s` and `exit.s`. An empty range would be refused by `Hal::new`.
    PageRange::from_addresses(start, end).unwrap_or(PageRange::single(start.page()))
}

/// The address of vector `vector`'s stub.
#[cfg(target_os = "none")]
pub(crate) fn stub(vector: u8) -> u64 {
    VirtAddr::of(&raw const sandbox_gate_stubs).0 + (usize::from(vector) * STUB_SIZE) as u64
}

/// Where sandboxed code begins.
#[cfg(target_os = "none")]
pub(crate) fn launch() -> u64 {
    VirtAddr::of(&raw const sandbox_gate_launch).0
}

/// The address of the code that lets the host handle interrupt `vector`: a function that returns with interrupts on, or as they
/// were (masked) if `interrupts` is false, which the handler sees in its frame.
#[cfg(target_os = "none")]
pub(crate) fn forward(vector: u8, interrupts: bool) -> u64 {
    // Without the first instruction, which sets the flag and is a byte long.
    VirtAddr::of(&raw const sandbox_gate_forward).0 + u64::from(vector) * 4 + u64::from(!interrupts)
}

/// The gate's code and its data on this CPU.
///
/// # Safety
///
/// 1. `state` is inside this CPU's gate.
#[cfg(target_os = "none")]
pub(crate) unsafe fn ranges(state: *const State) -> [PageRange; 2] {
    let start = VirtAddr((state.addr() - offset_of!(Gate, state)) as u64).page();
    // SAFETY: (1).
    let pages = unsafe { (*state).pages };
    [text(), PageRange::new(start, pages).unwrap_or(PageRange::single(start))]
}

/// Called by the gate on the host's stack, in its address space, after an exception of privileged code during a run.
///
/// # Safety
///
/// 1. `state` is this CPU's, `frame` the exception's.
#[cfg(target_os = "none")]
unsafe extern "C" fn fatal(state: *const State, frame: *const Frame) -> ! {
    // SAFETY: (1): both lie in gate data, which is mapped in every address space.
    unsafe {
        let report = FatalReport {
            syndrome: Syndrome { class: (*frame).vector, detail: (*frame).error },
            at: VirtAddr((*frame).rip),
            address: VirtAddr((*state).cr2),
        };
        let hook = (*state).hook;
        (hook.call)(hook.hal, &report)
    }
}
