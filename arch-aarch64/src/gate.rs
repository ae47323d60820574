//! The gate: the code and the per-CPU data through which control passes between host and sandbox.
//!
//! The code is one page, which the host maps once more for it to run at: the exception vectors (`vectors.s`), then `enter.s` and `exit.s`, each of which draws its protocol, on
//! top of `roots.s`. The data is one frame for each CPU, which holds the [`State`]:
//!
//! ```text
//! Registers   the sandbox's, when control leaves; enter.s uses the first two slots
//!             <- SP_EL1, as long as the gate's vectors are loaded
//! the rest    what the way back restores, and the roots to run on
//! ```
//!
//! Whatever vector control arrives through, SP_EL1 leads to the gate's data, and nothing that the sandbox can change is
//! asked.

use core::mem::offset_of;

use sandbox_core::PAGE_SIZE;
use sandbox_core::arch::FatalHook;
use sandbox_core::format::MAX_ROOTS;

use crate::asids::Asids;
use crate::registers::Registers;
use crate::state::Units;

/// How a run ended, as the gate says it.
pub(crate) const RETURNED: u64 = 0;
pub(crate) const SYNCHRONOUS: u64 = 1;
pub(crate) const IRQ: u64 = 2;
pub(crate) const FIQ: u64 = 3;

/// What a run needs to find its way back, and what it runs on. All that is the host's is written before the gate's vectors are
/// loaded, on every entry.
#[repr(C, align(16))]
pub(crate) struct State {
    pub(crate) frame: Registers,
    pub(crate) host_sp: u64,
    pub(crate) host_vbar: u64,
    /// TTBR0_EL1 and TTBR1_EL1, bit for bit.
    pub(crate) host_roots: [u64; MAX_ROOTS],
    pub(crate) host_sp_el0: u64,
    pub(crate) host_tpidr: u64,
    pub(crate) host_elr: u64,
    pub(crate) host_spsr: u64,
    pub(crate) host_tpidrro: u64,
    pub(crate) reserved: u64,
    /// The bits of PSTATE that this CPU has and an exception or EL0 can change.
    pub(crate) features: u64,
    /// The host's values of them.
    pub(crate) host_pstate: u64,
    /// How to change the roots: the bits of `asids::way`.
    pub(crate) way: u64,
    pub(crate) view_roots: [u64; MAX_ROOTS],
    /// By the flush policy: the gate-only tables.
    pub(crate) gate_roots: [u64; MAX_ROOTS],
    /// By the ASID policy, as in `asids::Switch`.
    pub(crate) pass_roots: [u64; MAX_ROOTS],
    pub(crate) host_tcr: u64,
    pub(crate) run_tcr: u64,
    /// What an exception of the gate's own calls.
    pub(crate) fatal: Fatal,
    /// `sandbox_gate_enter`, where the gate runs.
    pub(crate) enter: Enter,
    pub(crate) asids: Option<Asids>,
    pub(crate) units: Units,
    pub(crate) hook: FatalHook,
}

/// Runs the sandbox whose registers are in `registers` until control comes back; says how it ended. Unless that is
/// `RETURNED`, the frame then holds its registers. The protocol is in `enter.s`.
///
/// # Safety
///
/// 1. All exceptions are masked; `sp` is the end of the frame in this CPU's state.
/// 2. `registers` are a sandbox's, with a `pstate` made by `sandbox_pstate`.
/// 3. The state's `view_roots` are those of a view that maps the gate, its `gate_roots` map the gate alone; `features`
///    and `host_pstate` are this CPU's; `way` and what it needs were made for this entry.
pub(crate) type Enter = unsafe extern "C" fn(sp: *mut u8, registers: *const Registers) -> u64;

/// Reports an exception of privileged code during a run, or one that cannot happen. On the host's stack, in its address space.
///
/// # Safety
///
/// 1. `sp` is the end of the frame in this CPU's state.
pub(crate) type Fatal = unsafe extern "C" fn(sp: *const u8, esr: u64, elr: u64, far: u64) -> !;

/// Where SP_EL1 points during a run, from the start of the state.
pub(crate) const FRAME_END: usize = offset_of!(State, frame) + size_of::<Registers>();

const _: () = assert!(FRAME_END.is_multiple_of(16) && offset_of!(State, host_sp) == FRAME_END);
// Pairs that are loaded and stored together.
const _: () = assert!(offset_of!(State, host_vbar) == offset_of!(State, host_sp) + size_of::<u64>());
const _: () = assert!(offset_of!(State, host_tpidr) == offset_of!(State, host_sp_el0) + size_of::<u64>());
const _: () = assert!(offset_of!(State, host_spsr) == offset_of!(State, host_elr) + size_of::<u64>());
const _: () = assert!(offset_of!(State, host_pstate) == offset_of!(State, features) + size_of::<u64>());
const _: () = assert!(size_of::<State>() <= PAGE_SIZE);

/// The gate's data on one CPU.
#[repr(C, align(4096))]
pub struct Gate {
    pub(crate) state: State,
}

impl Gate {
    /// Frames that the gate's data takes on a CPU.
    pub(crate) const FRAMES: usize = size_of::<Gate>() / PAGE_SIZE;
}

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
pub(crate) use code::{enter_at, fatal, launch, text};

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
mod code {
    use core::mem::offset_of;

    use sandbox_core::{FatalReport, Page, PageRange, Syndrome, VirtAddr};

    use super::{Enter, FIQ, FRAME_END, IRQ, RETURNED, SYNCHRONOUS, State};
    use crate::asids::way;
    use crate::diagnose::{RETURN_SYNDROME, class};
    use crate::registers::Registers;
    use crate::state::pstate;

    /// A field of the state, from where SP_EL1 points.
    macro_rules! from_sp {
        ($field:ident $(. $inner:ident)?) => {
            offset_of!(State, $field $(. $inner)?) as isize - FRAME_END as isize
        };
    }

    /// Bytes that an entry pushes on the host's stack: x18 to x30, in pairs.
    const SAVED_SIZE: usize = 7 * PAIR;
    const PAIR: usize = 2 * size_of::<u64>();

    core::arch::global_asm!(
        include_str!("roots.s"),
        include_str!("vectors.s"),
        include_str!("enter.s"),
        include_str!("exit.s"),
        FRAME_X = const from_sp!(frame.x),
        FRAME_PC = const from_sp!(frame.pc),
        FRAME_TPIDR = const from_sp!(frame.tpidr),
        FRAME_ESR = const from_sp!(frame.esr),
        HOST_SP = const from_sp!(host_sp),
        HOST_ROOTS = const from_sp!(host_roots),
        HOST_SP_EL0 = const from_sp!(host_sp_el0),
        HOST_ELR = const from_sp!(host_elr),
        HOST_TPIDRRO = const from_sp!(host_tpidrro),
        FEATURES = const from_sp!(features),
        VIEW_ROOTS = const from_sp!(view_roots),
        GATE_ROOTS = const from_sp!(gate_roots),
        PASS_ROOTS = const from_sp!(pass_roots),
        HOST_TCR = const from_sp!(host_tcr),
        RUN_TCR = const from_sp!(run_tcr),
        WAY = const from_sp!(way),
        HIGH_BIT = const way::HIGH_BIT,
        BORROW_BIT = const way::BORROW_BIT,
        FATAL = const from_sp!(fatal),
        X = const offset_of!(Registers, x),
        SP = const offset_of!(Registers, sp),
        PC = const offset_of!(Registers, pc),
        TPIDR = const offset_of!(Registers, tpidr),
        PAIR = const PAIR,
        SAVED_SIZE = const SAVED_SIZE,
        RETURN_SYNDROME = const RETURN_SYNDROME,
        RETURNED = const RETURNED,
        SYNCHRONOUS = const SYNCHRONOUS,
        IRQ = const IRQ,
        FIQ = const FIQ,
        PAN = const pstate::PAN,
        PAN_BIT = const pstate::PAN_BIT,
        UAO = const pstate::UAO,
        UAO_BIT = const pstate::UAO_BIT,
        DIT = const pstate::DIT,
        DIT_BIT = const pstate::DIT_BIT,
        SSBS = const pstate::SSBS,
        SSBS_BIT = const pstate::SSBS_BIT,
        TCO = const pstate::TCO,
        TCO_BIT = const pstate::TCO_BIT,
    );

    unsafe extern "C" {
        static sandbox_gate_start: u8;
        static sandbox_gate_end: u8;
        static sandbox_gate_launch: u8;
        static sandbox_gate_enter: u8;
    }

    /// The way in, when the gate's code runs at `code`.
    ///
    /// # Safety
    ///
    /// 1. The gate's code is mapped there, from its first page on.
    pub(crate) unsafe fn enter_at(code: Page) -> Enter {
        let offset = (&raw const sandbox_gate_enter).addr() - (&raw const sandbox_gate_start).addr();
        let entry = core::ptr::with_exposed_provenance::<()>(code.start().0 as usize + offset);
        // SAFETY: (1), so this is where the routine begins, which is as its type says and finds its parts by their distance.
        unsafe { core::mem::transmute::<*const (), Enter>(entry) }
    }

    /// The gate's code, as the image has it.
    pub(crate) fn text() -> PageRange {
        let (start, end) = (VirtAddr::of(&raw const sandbox_gate_start), VirtAddr::of(&raw const sandbox_gate_end));
        // Both are aligned to pages in `vectors.s` and `exit.s`.
        PageRange::from_addresses(start, end).unwrap_or(PageRange::single(start.page()))
    }

    /// Where sandboxed code begins.
    pub(crate) fn launch() -> u64 {
        VirtAddr::of(&raw const sandbox_gate_launch).0
    }

    /// The [`Fatal`](super::Fatal) of all gates.
    ///
    /// # Safety
    ///
    /// 1. As there.
    pub(crate) unsafe extern "C" fn fatal(sp: *const u8, esr: u64, elr: u64, far: u64) -> ! {
        let report = FatalReport {
            syndrome: Syndrome { class: class(esr), detail: esr },
            at: VirtAddr(elr),
            address: VirtAddr(far),
        };
        // SAFETY: (1): the state lies in gate data, which is mapped in every address space.
        unsafe {
            let hook = (*sp.sub(FRAME_END).cast::<State>()).hook;
            (hook.call)(hook.hal, &report)
        }
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
