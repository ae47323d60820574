//! The conformance suite as a kernel for QEMU's q35 and virt machines.
//!
//! Before the HAL starts, this kernel switches on what many kernels have on and a sandbox must not be able to use: system-call
//! instructions, protection keys.

#![no_std]
#![no_main]

extern crate alloc;

mod interrupts;
mod kernel;

#[cfg(target_arch = "aarch64")]
#[path = "aarch64.rs"]
mod machine;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
mod machine;

platform_qemu::main!(main);

fn main() -> bool {
    machine::prepare();
    interrupts::register();
    conformance::run(kernel::make(), platform_qemu::files::arguments())
}
