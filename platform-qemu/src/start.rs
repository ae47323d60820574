//! The last, machine-neutral stretch of the boot.

use core::ops::Range;

use crate::{cpu, exit, files, heap, interrupts, machine, time};

unsafe extern "Rust" {
    // Defined by `main!` in the kernel.
    safe fn platform_qemu_main() -> bool;
}

/// Brings up what builds on the machine's part, then runs the kernel's `main` and exits with its
/// verdict.
///
/// The machine calls this once, on the boot stack, with interrupts masked, after
/// [`crate::memory::init`] (which returned `heap`), with the final page tables active and the
/// interrupt controller set up.
pub(crate) fn run(heap: Range<u64>) -> ! {
    heap::init(heap);
    files::init();
    machine::use_arguments(files::arguments());
    time::start_tick();
    cpu::start_others();
    interrupts::enable();
    exit::exit(platform_qemu_main())
}
