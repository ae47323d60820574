//! Sandbox Mode on x86-64: ring 3, entered with `iretq` and left through an exception table of the gate's own.
//!
//! * `gate`, with `enter.s` and `exit.s`: how control passes, and the per-CPU data it passes through.
//! * `start`: what is installed on each CPU, once. `probe`: what must be on or off before.
//! * `state`: the register table, and what a run closes and opens. `debug`: breakpoints and single steps.
//! * `vectors`, with `vectors.s`: vector registers, for sandboxes that have them.
//! * `format`: page tables. `registers`: a sandbox's registers. `diagnose`: from vector to cause.
//!
//! On anything but bare metal only the parts without privileged instructions are built, for their tests.

#![no_std]

#[cfg(test)]
extern crate std;

#[cfg_attr(not(target_os = "none"), allow(dead_code))]
mod debug;
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
mod diagnose;
mod format;
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
mod gate;
#[cfg(target_os = "none")]
mod probe;
mod registers;
#[cfg(target_os = "none")]
mod start;
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
mod state;
#[cfg_attr(not(target_os = "none"), allow(dead_code, unused_imports))]
mod vectors;

#[cfg(target_os = "none")]
mod arch;

#[cfg(target_os = "none")]
pub use arch::X86_64;
pub use format::LongMode;
pub use gate::Gate;
pub use registers::{Frame, Registers};
#[cfg(target_os = "none")]
pub use start::CpuConfig;
