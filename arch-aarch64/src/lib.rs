//! Sandbox Mode on AArch64: EL0, entered with `eret` and left through exception vectors of the gate's own.
//!
//! * `gate`, with `vectors.s`, `roots.s`, `enter.s` and `exit.s`: how control passes, and the per-CPU data it passes through.
//! * `start`: what changes on each CPU, once. `probe`: what must be on or off before.
//! * `state`: the register table, and what a run closes and opens. `system`: registers that need a name.
//! * `vectors`, with `vectors_swap.s`: vector registers, for sandboxes that have them.
//! * `asids`: runs that flush nothing. `format`: page tables. `registers`: a sandbox's registers. `diagnose`: from syndrome to cause.
//!
//! The host runs at EL1 on SP_EL1, with a 4 KiB granule. On anything but bare metal only the parts without privileged
//! instructions are built, for their tests.

#![no_std]

#[cfg(test)]
extern crate std;

#[cfg_attr(not(all(target_arch = "aarch64", target_os = "none")), allow(dead_code))]
mod asids;
#[cfg_attr(not(all(target_arch = "aarch64", target_os = "none")), allow(dead_code))]
mod diagnose;
mod format;
#[cfg_attr(not(all(target_arch = "aarch64", target_os = "none")), allow(dead_code))]
mod gate;
#[cfg_attr(not(all(target_arch = "aarch64", target_os = "none")), allow(dead_code))]
mod probe;
mod registers;
#[cfg_attr(not(all(target_arch = "aarch64", target_os = "none")), allow(dead_code))]
mod state;
#[cfg_attr(not(all(target_arch = "aarch64", target_os = "none")), allow(dead_code))]
mod vectors;

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
mod arch;
#[cfg(all(target_arch = "aarch64", target_os = "none"))]
mod start;
#[cfg(all(target_arch = "aarch64", target_os = "none"))]
mod system;

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
pub use arch::{Aarch64, Interrupt, Masks};
pub use format::Vmsa;
pub use gate::Gate;
pub use registers::Registers;
#[cfg(all(target_arch = "aarch64", target_os = "none"))]
pub use start::CpuConfig;
