//! A kernel for QEMU's virt machine that uses Sandbox Mode and nothing of `platform-qemu`: a stranger's.
//!
//! It is compiled for vector registers, lives in the upper 39 bits with its text in blocks, keeps its current thread in SP_EL0
//! and its CPU's data in TPIDR_EL1, handles FIQs, and has processes that make system calls all the while: the conformance suite
//! runs within one of them, in the lower half of that process, and others run in between. Then come checks of its own.
//!
//! Its arguments are words, and those of [`conformance::run`]:
//!
//! * `local`: kernel mappings are not global, but belong to the ASID in force;
//! * `tickless`: nothing interrupts by itself, the HAL asks for the timer when it needs one. Only those cases of the suite run
//!   that need no tick;
//! * `own`: only the kernel's own checks.
//!
//! `host.rs` is all that Sandbox Mode itself asks for.

#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(target_os = "none", no_main)]
#![cfg(target_os = "none")]

extern crate alloc;

mod boot;
mod checks;
mod console;
mod exit;
mod frames;
mod gic;
mod heap;
mod host;
mod layout;
mod machine;
mod process;
mod registers;
mod suite;
mod tables;
mod threads;
mod time;
mod vectors;

use core::panic::PanicInfo;

/// Everything after the first instructions, on the first stack and the first tables, interrupts masked.
extern "C" fn main() -> ! {
    vectors::install();
    console::start();
    if registers::cpu::exception_level() == 2 {
        exit::exit(checks::of_a_kernel_at_el2());
    }
    let machine = machine::find();
    let arguments = machine.arguments();
    let has = |wanted| arguments.split_whitespace().any(|word| word == wanted);
    // SAFETY: (1) by the device tree; all that is in use yet is in the image.
    unsafe { frames::start(machine.ram, machine.tree) };
    let upper = tables::make(machine.ram, !has("local")).expect("memory for tables");
    tables::map_device(console::UART, layout::PAGE).expect("memory for tables");
    let nobody = tables::Tables::of_process().expect("memory for tables");
    // SAFETY: (1) interrupts are masked since the start; (2) just made so.
    unsafe { boot::replace_tables(upper.root(), nobody.root()) };
    heap::start();
    threads::start(nobody.root());
    gic::start(&machine);
    time::start(&machine);
    suite::start();
    process::start();
    if registers::cpu::has_pan() {
        // SAFETY: the kernel accesses the memory of processes through its own mapping of all RAM.
        unsafe { core::arch::asm!("msr s3_0_c4_c2_3, {}", in(reg) 1u64 << 22, options(nostack, preserves_flags)) };
    }
    if !has("tickless") {
        time::start_ticking();
    }
    // SAFETY: all that can interrupt has a handler by now.
    unsafe { core::arch::asm!("msr daifclr, #0b1111", options(nostack, preserves_flags)) };
    exit::exit(checks::run(arguments));
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    // The first thing is privileged: in a sandbox, this ends it.
    // SAFETY: nothing of the kernel's goes on.
    unsafe { core::arch::asm!("msr daifset, #0b1111", options(nostack, preserves_flags)) };
    console::print_last(format_args!("{info}\n"));
    exit::exit(false)
}
