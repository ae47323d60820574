//! QEMU's q35: an x86-64 PC, booted through PVH.

pub mod apic;
pub mod exceptions;
pub mod segments;

pub(crate) mod clock;
pub(crate) mod console;
pub(crate) mod context;
pub(crate) mod exit;
pub(crate) mod fw_cfg;
pub(crate) mod interrupts;
pub(crate) mod local;
pub(crate) mod paging;
pub(crate) mod secondary;
pub(crate) mod tick;

mod boot;
mod cpu;
mod entry;
mod pic;
mod pit;

pub(crate) use entry::Frame;
use sandbox_mode::CpuConfig;

/// Virtual minus physical address of the image.
pub(crate) const IMAGE_OFFSET: u64 = 0xffff_ffff_8000_0000;

/// Does what the command line asks of the machine, before interrupts are on: nothing here.
pub(crate) fn use_arguments(_arguments: &str) {}

/// What a CPU is started with for sandboxes: interrupt stacks 3 to 7 are free, as the defaults have it.
pub(crate) fn cpu_config() -> CpuConfig {
    CpuConfig::default()
}

/// The time-stamp counter. Under QEMU's `-icount shift=0` it counts executed instructions.
pub fn instructions() -> u64 {
    // SAFETY: the counter is readable in privileged mode.
    unsafe { core::arch::x86_64::_rdtsc() }
}
