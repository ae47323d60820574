//! Sandboxes under a preemptive scheduler and on several CPUs, as a kernel for QEMU's q35 and virt machines.
//!
//! What must hold: a run may be interrupted, switched away from, moved to another CPU and go on under another page-table root of the
//! host's, and neither it nor the host can tell. Every case works with as many CPUs as there are; those that need more than
//! one say so. Each wait has an end, in sandboxes too. Nothing depends on how many interrupts arrive, or when.
//!
//! Arguments are words: `verbose` prints a line for each case, `only=TEXT` runs the cases whose name (`file::case`) contains
//! the text. The last line is `N passed, N failed, N skipped`.

#![no_std]
#![no_main]

extern crate alloc;

#[macro_use]
mod verdict;

mod alarm;
mod machine;
mod probe;
mod suite;
mod words;

mod interrupts;
mod moves;
mod one_cpu;
mod roots;
mod several;
mod stops;
mod views;

use platform_qemu::files;

platform_qemu::main!(main);

fn main() -> bool {
    suite::run(files::arguments())
}
