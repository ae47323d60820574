//! The architecture-neutral part of Sandbox Mode: it decides what a sandbox may reach, and why it ended.
//!
//! Nothing here names an architecture or contains assembly; a backend supplies both through [`Arch`] and [`Format`], a
//! kernel supplies memory and a description of itself through [`Host`]. Everything runs, and is tested, on an ordinary
//! machine. From the outside in:
//!
//! * [`Hal`]: one per kernel. [`Sandbox`]: an address space with a stack and buffers. [`Run`]: a call in progress, which
//!   `limits` and a [`Cancel`] can stop.
//! * `vectors`: registers that only some sandboxes have.
//! * `view`: the tables a sandbox runs on, begun from the `image` template; `tables`, `grant` and `changes` write them,
//!   `walk` reads them.
//! * `tags`: what tells cached translations of one view from those of another.
//! * `frames` and `record`: where memory comes from, and what each frame is used for.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod arch;
mod argument;
mod cancel;
mod changes;
mod cpus;
mod error;
mod exit;
pub mod format;
mod frames;
mod grant;
mod hal;
mod host;
mod image;
mod limits;
mod lock;
mod permissions;
mod record;
mod run;
mod sandbox;
mod spurious;
mod tables;
mod tags;
#[cfg(test)]
mod tests;
mod vectors;
mod view;
pub mod walk;
mod window;

pub use addr::{Frame, PAGE_SIZE, Page, PageRange, VirtAddr};
pub use arch::Arch;
pub use argument::{
    Argument, Arguments, Function, In, InOut, Input, MAX_ARGUMENTS, MAX_RESULT, MAX_VALUE, Out, Output, Val,
};
pub use cancel::Cancel;
pub use error::{Error, Unsupported};
pub use exit::{Exit, ExitReason, FatalReport, FaultKind, MemoryFault, Preemption, Syndrome};
pub use format::{Format, Roots};
pub use hal::Hal;
pub use host::{FrameKind, Host, Image};
pub use permissions::{Access, Permissions};
pub use run::{Progress, Run};
pub use sandbox::{CallError, Config, Sandbox};
pub use tables::Change;
pub use window::Placement;
