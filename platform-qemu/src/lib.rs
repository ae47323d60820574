//! A small kernel platform for QEMU's q35 (x86-64) and virt (AArch64) machines.
//!
//! It boots to 64-bit high-half code with write-xor-execute page tables, a frame allocator, a heap,
//! a console, device interrupts and a periodic tick, then calls the kernel's `main`:
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! use platform_qemu::println;
//!
//! platform_qemu::main!(main);
//!
//! fn main() -> bool {
//!     println!("hello");
//!     true // QEMU exits with status 33; `false` gives 35
//! }
//! ```
//!
//! Privileged code only, no floating point in the kernel. `main` runs on the first CPU; the others are up
//! (see [`cpu`]) and wait for work, which [`threads`] can give them. Everything above the `machine` module is
//! the same on both machines; [`machine`] has what each of them adds.
//!
//! The crate is empty when built for a hosted target, so that a workspace build passes there.

// The crate supplies a panic handler and an allocator, which would clash with `std`.
#![cfg(target_os = "none")]
#![no_std]

extern crate alloc;

pub mod console;
pub mod cpu;
pub mod exit;
pub mod files;
pub mod fixup;
pub mod fw_cfg;
pub mod gate;
pub mod heap;
pub mod host;
pub mod interrupts;
pub mod layout;
pub mod lock;
pub mod memory;
pub mod paging;
pub mod stack;
pub mod threads;
pub mod time;

mod panic;
mod start;

cfg_if::cfg_if! {
    if #[cfg(target_arch = "x86_64")] {
        #[path = "x86_64/mod.rs"]
        pub mod machine;
    } else if #[cfg(target_arch = "aarch64")] {
        #[path = "aarch64/mod.rs"]
        pub mod machine;
    } else {
        compile_error!("platform-qemu knows x86-64 and AArch64");
    }
}

/// Names the kernel's main function: a `fn() -> bool` called once, on the boot stack, with
/// interrupts enabled and the tick running. `true` exits with status 33 (pass), `false` with 35.
#[macro_export]
macro_rules! main {
    ($main:path) => {
        // SAFETY: the platform declares this very symbol with this very type, and nothing else
        // defines it.
        #[unsafe(no_mangle)]
        extern "Rust" fn platform_qemu_main() -> bool {
            let main: fn() -> bool = $main;
            main()
        }
    };
}

// What `machine` supplies to the rest of the crate:
//
//   IMAGE_OFFSET: u64                         virtual minus physical address of the image
//   instructions() -> u64                     the counter behind `time::instructions`
//   Frame                                     what an interrupt handler has of the interrupted code;
//                                             `interrupted()` says it in `interrupts::Interrupted`
//   local::{Extra, install(&'static Local), current() -> &'static Local, index() -> usize,
//           kernel_stack() -> u64, kernel_stack_of(cpu) -> u64, set_kernel_stack(u64)}
//   secondary::{present() -> usize, start(count, &stacks)}   each CPU ends in `cpu::run_secondary`
//   context::{unsafe prepare(stack, function) -> u64, unsafe switch(*mut u64, u64)}
//   console::write_bytes(&[u8])               usable as soon as any Rust code runs
//   exit::exit(bool) -> !
//   fw_cfg::dma(u64)                          starts the control block at this physical address, and
//                                             returns when it is done (or there is no device)
//   tick::{start(), stop()}                   calls `time::on_tick` at TICK_RATE, on this CPU
//   clock::{now() -> u64, arm(u64)}           behind `time::now` and `time::arm`
//   interrupts::{LINES, State, enabled() -> bool, enable(), disable() -> State, restore(State),
//                open(line), send(cpu, line), wait(), KICK, CALL}   calls `interrupts::handle`
//   paging::{unsafe map_page(virt, phys, Access) -> Option<()>, unsafe unmap_page(virt) -> Option<u64>,
//            root() -> u64, translate(virt) -> Option<Translation>,
//            OwnRoot::new() -> Option<OwnRoot>, use_root(Option<&OwnRoot>)}
//
// Its boot code calls `memory::init`, activates the final page tables, sets up the interrupt
// controller and ends in `start::run`.
