//! Tests on a simulated machine: physical memory, a host's page tables in it, and a CPU that obeys the view's.
//!
//! [`machine`], [`layout`], [`host`] and [`processor`] simulate; a [`rig::Rig`] is a machine with a HAL on it. [`audit`] checks
//! what must hold of every view at any time. When a machine goes away, all that the HAL took must have come back.
//!
//! Miri takes seconds for each machine, so what is about rules rather than pointers is left out there, and machines
//! are small.

#![cfg_attr(miri, allow(dead_code))]

mod audit;
mod calls;
mod changes;
mod exhaustion;
mod faults;
#[cfg(not(miri))]
mod grants;
mod host;
#[cfg(not(miri))]
mod image;
mod layout;
mod limits;
mod machine;
mod model;
mod processor;
mod record;
mod rig;
#[cfg(not(miri))]
mod sharing;
mod start;
#[cfg(not(miri))]
mod tags;
mod vectors;
mod window;
