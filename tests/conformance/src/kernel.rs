//! What the suite needs of the kernel it runs in.

use core::fmt;
use core::sync::atomic::AtomicU64;

use sandbox_mode::{Config, CpuConfig, Host, VirtAddr};

/// A way for an interrupt to arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    /// As most devices interrupt: vectors above 31 on x86-64, IRQ on AArch64.
    Ordinary,
    /// AArch64's FIQ.
    Fast,
    /// x86-64's NMI.
    NonMaskable,
}

/// A kernel that runs the suite. It has one CPU running, `alloc`, a periodic tick, and interrupts on.
pub trait Kernel: Sync {
    /// The kernel as the HAL's host.
    fn host(&self) -> &'static dyn Host;

    /// What this CPU is started with.
    fn cpu_config(&self) -> CpuConfig;

    /// What the suite makes its sandboxes with, unless a case is about that.
    fn config(&self) -> Config {
        Config::default()
    }

    /// Prints to the console.
    fn print(&self, text: fmt::Arguments<'_>);

    /// How many frames `Host::allocate_frame` has left.
    fn free_frames(&self) -> usize;

    /// The count of ticks: at the start of a page with nothing else on it. The kernel's handler counts them.
    fn ticks(&self) -> &'static AtomicU64;

    /// Whether interrupts are on.
    fn interrupts_enabled(&self) -> bool;

    /// The address at which the kernel maps some device's registers.
    fn device(&self) -> VirtAddr;

    /// Makes an interrupt of the suite's own pending on this CPU, as a device would. The error says why the machine can't.
    fn raise(&self, line: Line) -> Result<(), &'static str>;

    /// How many interrupts of the suite's own the kernel has handled.
    fn handled(&self, line: Line) -> u64;

    /// Makes one non-maskable interrupt arrive on its own, at whatever instruction is executed then: after `steps` steps of a
    /// clock that has thousands in a tick.
    fn raise_nmi_after(&self, steps: u16) -> Result<(), &'static str>;

    /// x86-64: makes interrupt `vector`, any from 32 on, pending on this CPU, as a device would. The error says why the kernel
    /// can't.
    fn raise_vector(&self, vector: u8) -> Result<(), &'static str> {
        let _ = vector;
        Err("this kernel does not raise vectors that are not its own")
    }

    /// x86-64: ends the service of `vector` at the interrupt controller, if the kernel's handler has not: a spurious interrupt has
    /// none, but one raised on purpose does.
    fn end_vector(&self, vector: u8) {
        let _ = vector;
    }

    /// Runs `work` while a page of a process is mapped in the lower half of the address space, readable and writable for
    /// unprivileged code, and executable too if the machine lets it. `work` gets its address.
    fn with_process_page(&self, work: &mut dyn FnMut(VirtAddr)) -> Result<(), &'static str>;

    /// Lets instructions be refused: the kernel's handler of undefined-instruction and general-protection exceptions (on AArch64
    /// those of trapped instructions too) of its own privileged code asks `fixup(pc)` where to go on, with all registers as they
    /// were; `None` means what it did before. On AArch64 it may lose the value of TPIDR_EL1 or
    /// TPIDRRO_EL0 over such an exception. The error says why the
    /// kernel can't.
    fn set_fixup(&self, fixup: fn(u64) -> Option<u64>) -> Result<(), &'static str>;

    /// Shows what else of this CPU's state must be the same before and after each case, by name: what the interrupt controller
    /// has in service, and how it is set up. Always the same names in the same order. Called with interrupts masked.
    fn inspect(&self, look: &mut dyn FnMut(&'static str, u64)) {
        let _ = look;
    }

    /// Registers, as the auditor names them, that this kernel's own interrupt handlers change all the time.
    fn busy(&self) -> &'static [&'static str] {
        &[]
    }

    /// Protections (as `audit-list` names them) that this kernel leaves off although the CPU has them.
    fn leaves_off(&self) -> &'static [&'static str] {
        &[]
    }

    /// Called before each case, with interrupts on. A kernel that has processes lets them run, goes on on another root, and the like:
    /// what the cases need of it stays as it is.
    fn between_cases(&self) {}

    /// Whether the kernel's interrupt handlers rely on the GS base of x86-64. The cases then leave it as it is.
    fn uses_thread_base(&self) -> bool {
        false
    }
}
