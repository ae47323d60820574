//! The conformance suite: what every backend must do, shown case by case on a running machine.
//!
//! The cases are written against the public API of `sandbox-mode` and the little that [`Kernel`] asks of the kernel they
//! run in, so any kernel that has a `Host` can run them: call [`run`] once. The functions that a case calls in a sandbox are
//! in `probe` and, where it takes instructions, in `machine`; both are short enough to see what they do.
//!
//! What must hold: the suite makes the only HAL of its machine, and every frame that the HAL takes passes through `host`,
//! which fills it with rubbish first, refuses some on demand, and checks that it comes back zeroed.
//!
//! The crate is empty when built for a hosted target, so that a workspace build passes there.

#![cfg(target_os = "none")]
#![no_std]

extern crate alloc;

#[macro_use]
mod verdict;

pub mod audit;
mod host;
mod kernel;
mod limits;
mod machine;
mod probe;
mod suite;

mod buffers;
mod exhaustion;
mod frames;
mod grants;
mod instructions;
mod interrupts;
mod memory;
mod refusals;
mod stack;
mod state;
mod translations;
mod values;
mod vectors;

pub use kernel::{Kernel, Line};
pub use suite::{Tally, run, run_cases};
