//! virt.

use core::arch::{asm, naked_asm};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{Readable, TPIDR_EL0, TPIDRRO_EL0, Writeable};
use platform_qemu::machine::interrupts;
use sandbox_mode::ExitReason;

use crate::calls::{Ending, Wrong, expect};

/// Software-generated interrupts that the runner may make pending.
pub(crate) const ORDINARY_LINE: usize = 3;
/// This one arrives as FIQ.
pub(crate) const FAST_LINE: usize = 4;
/// This kernel's own: an IRQ and an FIQ.
const OWN_LINES: [usize; 2] = [1, 2];
const OWN_FAST_LINE: usize = 2;

/// The lines that this kernel raises itself; the tick's is not among them.
pub(crate) fn own_lines(_tick: bool) -> impl Iterator<Item = usize> {
    OWN_LINES.into_iter()
}

pub(crate) fn raise(line: usize) {
    interrupts::raise(line, matches!(line, FAST_LINE | OWN_FAST_LINE));
}

/// What was let through has arrived after this.
pub(crate) fn settle() {
    barrier::isb(barrier::SY);
}

/// Sleeps until an interrupt was handled.
pub(crate) fn sleep() {
    aarch64_cpu::asm::wfi();
}

/// Two lines are fast.
pub(crate) fn prepare() {
    for line in [FAST_LINE, OWN_FAST_LINE] {
        platform_qemu::interrupts::register(line, || ());
        interrupts::deliver_as_fiq(line, true);
    }
}

/// Leaves other values in all that unprivileged code can change.
pub(crate) fn spoil() {
    // SAFETY: runs in a sandbox; nothing there uses the register.
    unsafe { asm!("msr tpidr_el0, {}", in(reg) 0x5a5a_5a5a_u64, options(nomem, nostack)) };
}

macro_rules! ending {
    ($what:literal, $right:pat, $($code:literal),+) => {{
        #[unsafe(naked)]
        extern "C" fn code() {
            naked_asm!($($code),+)
        }
        Ending { what: $what, function: code, is_right: |reason| matches!(reason, $right) }
    }};
}

/// Exceptions of each kind that unprivileged code can bring about.
pub(crate) fn endings() -> [Ending; 6] {
    [
        ending!("an undefined instruction", ExitReason::IllegalInstruction, "udf #0"),
        ending!("a breakpoint", ExitReason::Breakpoint, "brk #1"),
        // fmov d0, xzr
        ending!("floating point", ExitReason::FloatingPoint, ".inst 0x9e6703e0"),
        ending!("a privileged instruction", ExitReason::PrivilegedInstruction, "msr daifset, #0b1111"),
        ending!("an address that is not mapped", ExitReason::MemoryFault(_), "mov x0, #0", "ldr x0, [x0]"),
        ending!("a host call", ExitReason::HostCall(5), "svc #5"),
    ]
}

/// Settings of the host's that the gate must bring back.
#[derive(Clone, Copy)]
pub(crate) struct HostState {
    thread: u64,
    read_only_thread: u64,
}

impl HostState {
    pub(crate) fn all() -> [HostState; 1] {
        [HostState { thread: 0x1234_5678_9abc, read_only_thread: 0xcba9_8765_4321 }]
    }

    /// Does `work` in this state and sees that it stays.
    pub(crate) fn during(self, work: impl FnOnce() -> Result<(), Wrong>) -> Result<(), Wrong> {
        let before = (TPIDR_EL0.get(), TPIDRRO_EL0.get());
        TPIDR_EL0.set(self.thread);
        TPIDRRO_EL0.set(self.read_only_thread);
        let done = work();
        let found = (TPIDR_EL0.get(), TPIDRRO_EL0.get());
        TPIDR_EL0.set(before.0);
        TPIDRRO_EL0.set(before.1);
        done?;
        expect(found == (self.thread, self.read_only_thread), "a thread pointer of the host's has changed")
    }
}
