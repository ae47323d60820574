//! The HAL's windows: every instruction through which control passes between host and sandbox.
//!
//! They are found by the symbols of the gate, and taken apart to the last instruction between those: what is not executed by
//! the workload has to be named here, with the reason.

mod aarch64;
mod x86_64;

use std::collections::BTreeSet;

use crate::error::Error;
use crate::kernel::Kernel;
use crate::machine::Machine;

/// An instruction of the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) address: u64,
    /// Why it is never executed in a guest that goes on afterwards.
    pub(crate) never: Option<&'static str>,
    /// Whether it stands in a table of pieces of code that are alike but for a number: one CPU model is enough for it.
    pub(crate) in_table: bool,
}

/// All of them, in the order of their addresses.
pub(crate) fn find(kernel: &Kernel) -> Result<Vec<Instruction>, Error> {
    match kernel.machine {
        Machine::Q35 => x86_64::find(kernel),
        Machine::Virt => aarch64::find(kernel),
    }
}

/// The first instruction of each path on which an interrupt (on x86-64, an NMI or machine check too) comes out of a sandbox.
pub(crate) fn arrivals(kernel: &Kernel) -> Result<BTreeSet<u64>, Error> {
    match kernel.machine {
        Machine::Q35 => x86_64::arrivals(kernel),
        Machine::Virt => aarch64::arrivals(kernel),
    }
}
