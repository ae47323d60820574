//! The CPU's own data, reached through GS, and its control registers.
//!
//! In the kernel the GS base is the address of [`CPU`] and the other one is the process's; in a process it is the other way round.
//! Every handler of an interrupt looks whether it finds it so ([`Counters`]).

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::VirtAddr;
use x86_64::registers::control::{Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::{GsBase, LStar, Msr, SFMask};
use x86_64::registers::rflags::RFlags;

use crate::descriptors::{KERNEL_CODE, USER_BASE};
use crate::processes;

/// The number of the register that has long mode's switch.
pub(crate) const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;

/// What each CPU has; here there is one.
#[repr(C)]
pub(crate) struct Cpu {
    /// Its own address: what `gs:[0]` must be.
    pub(crate) itself: u64,
    /// Where system calls find a stack.
    pub(crate) kernel_stack: u64,
    /// Where they put the process's for a moment.
    pub(crate) user_stack: u64,
}

struct Place(UnsafeCell<Cpu>);

// SAFETY: used by its own CPU only, with interrupts masked.
unsafe impl Sync for Place {}

static CPU: Place = Place(UnsafeCell::new(Cpu { itself: 0, kernel_stack: 0, user_stack: 0 }));

/// What the handlers saw.
pub(crate) struct Counters {
    /// Interrupts by other devices than the tick's.
    pub(crate) clock: AtomicU64,
    /// Interrupts that the CPU sent itself.
    pub(crate) own: AtomicU64,
    /// Non-maskable ones.
    pub(crate) nmi: AtomicU64,
    /// Interrupts of processes.
    pub(crate) of_processes: AtomicU64,
    /// Handlers that found a wrong GS base.
    pub(crate) wrong_base: AtomicU64,
    /// Handlers that ran on a wrong stack.
    pub(crate) wrong_stack: AtomicU64,
    /// Handlers that were shown something as interrupted that is neither kernel code with interrupts on nor a process.
    pub(crate) wrong_frame: AtomicU64,
}

/// What the handlers saw.
pub(crate) static COUNTERS: Counters = Counters {
    clock: AtomicU64::new(0),
    own: AtomicU64::new(0),
    nmi: AtomicU64::new(0),
    of_processes: AtomicU64::new(0),
    wrong_base: AtomicU64::new(0),
    wrong_stack: AtomicU64::new(0),
    wrong_frame: AtomicU64::new(0),
};

/// Counts one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The address of the CPU's data.
pub(crate) extern "C" fn address() -> u64 {
    CPU.0.get().addr() as u64
}

/// Whether GS leads to the CPU's data.
pub(crate) fn base_is_right() -> bool {
    if GsBase::read().as_u64() != address() {
        return false;
    }
    let itself: u64;
    // SAFETY: the base is right, so this is the first word of the CPU's data.
    unsafe { asm!("mov {}, gs:[0]", out(reg) itself, options(nostack, preserves_flags, readonly)) };
    itself == address()
}

/// Names the stack of the thread that runs, for system calls.
pub(crate) fn set_kernel_stack(top: u64) {
    // SAFETY: the CPU's own data; called with interrupts masked.
    unsafe { (*CPU.0.get()).kernel_stack = top };
}

/// Sets the registers. System calls are on, floating point is open to everybody.
pub(crate) fn init() {
    // SAFETY: the CPU's own data, which nobody uses yet. The entries of system calls are such, and the selectors those of
    // `descriptors`; every long-mode CPU has these registers, and SSE.
    unsafe {
        (*CPU.0.get()).itself = address();
        GsBase::write(VirtAddr::new(address()));
        Efer::update(|flags| flags.insert(EferFlags::SYSTEM_CALL_EXTENSIONS));
        Msr::new(STAR).write(u64::from(USER_BASE | 3) << 48 | u64::from(KERNEL_CODE) << 32);
        LStar::write(VirtAddr::new(processes::system_call_entry as *const () as u64));
        SFMask::write(RFlags::INTERRUPT_FLAG | RFlags::DIRECTION_FLAG | RFlags::TRAP_FLAG | RFlags::ALIGNMENT_CHECK);
        Msr::new(SYSENTER_CS).write(KERNEL_CODE.into());
        Msr::new(SYSENTER_ESP).write(address());
        Msr::new(SYSENTER_EIP).write(processes::old_system_call_entry as *const () as u64);
        Cr4::update(|flags| flags.insert(Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE));
    }
}

/// The registers of system calls, which nobody else may change.
pub(crate) fn system_call_registers() -> [u64; 6] {
    // SAFETY: they exist, and reading has no effect.
    let read = |number| unsafe { Msr::new(number).read() };
    [Efer::read_raw(), read(STAR), LStar::read().as_u64(), SFMask::read().bits(), read(SYSENTER_CS), read(SYSENTER_EIP)]
}
