//! A kernel that has nothing in common with this repository's own platform but the HAL: proof that the HAL fits kernels that others wrote.
//!
//! It was made the way tutorials make kernels, for QEMU's q35, and then followed `docs/add-to-your-kernel.md`:
//!
//! * linked in the low half at 16 MiB, where it is loaded, with a linker script of its own;
//! * large global pages, a direct map elsewhere; with the setting `open` the image is readable, writable and executable throughout;
//! * descriptor table, task state and exception table in one private static; no selectors of ring 3 in that table; interrupt stacks of
//!   its own in the middle of the list (`descriptors`);
//! * SYSCALL and SYSENTER lead to handlers of its own; two processes with roots of their own use the former (`processes`);
//! * per-CPU data through GS, in the kernel and in the processes' time (`cpu`);
//! * two busy devices through the old interrupt controllers, one on an interrupt stack, and interrupts that the CPU sends itself
//!   (`devices`, `traps`).
//!
//! Processes need ring-3 selectors, which the kernel's table has not: it loads another table for the time a process runs (see
//! `descriptors`). With the setting `shared` one table has everything.
//!
//! What the command line may ask for, besides what the conformance suite understands:
//!
//! * nothing: the suite runs, its thread on another root for each case, with the processes doing something in between; then it is
//!   checked that handlers and processes always found what they should. With `preempt` each tick lets the processes run first;
//! * `own`: this kernel's own checks of calls from its threads and from system calls (`checks`);
//! * `refusals`: starting the HAL fails with the right error as long as something is missing (`refusals`).
//!
//! `host` is what had to be written for the HAL.

#![no_std]
#![no_main]

extern crate alloc;

mod boot;
mod checks;
mod console;
mod cpu;
mod descriptors;
mod devices;
mod host;
mod lock;
mod memory;
mod paging;
mod processes;
mod refusals;
mod settings;
mod suite;
mod tally;
mod traps;

use x86_64::instructions::interrupts;

/// Called on the boot stack and the boot tables, with interrupts masked.
fn main(ram: &boot::Ram) -> ! {
    memory::init(ram);
    let words = settings::read_words();
    let is_set = |word| words.split_whitespace().any(|other| other == word);
    paging::init(is_set("open"));
    descriptors::init(is_set("shared"));
    cpu::init();
    devices::init();
    if is_set("refusals") {
        console::exit(refusals::run());
    }
    descriptors::load_task_state();
    processes::init();
    interrupts::enable();
    console::exit(if is_set("own") { checks::run_own() } else { checks::run_suite(&words) })
}
