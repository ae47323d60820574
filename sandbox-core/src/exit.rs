//! Why the CPU left a sandbox.

use core::fmt;

use crate::addr::VirtAddr;
use crate::permissions::Access;

/// Why a sandbox ended without a value, or stopped on its way to one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ExitReason {
    /// An access to memory that the sandbox does not have.
    MemoryFault(MemoryFault),
    /// An instruction that the CPU does not know.
    IllegalInstruction,
    /// An instruction, or a use of one, that only privileged code may execute.
    PrivilegedInstruction,
    /// A division by zero, or one whose result does not fit.
    Arithmetic,
    /// Floating-point or vector instructions, which the sandbox was not granted, or an exception raised by one.
    FloatingPoint,
    /// A breakpoint instruction.
    Breakpoint,
    /// A single step or another debug event.
    SingleStep,
    /// A request to the host that the sandbox may not make; its number.
    HostCall(u64),
    /// The run was stopped from outside.
    Preempted(Preemption),
    /// The code panicked. Nothing raises this: a panic ends as what the kernel's panic handler does first.
    Panicked,
    /// An exception without a name of its own; what the CPU said of it.
    Unknown(Syndrome),
}

/// Why a run was stopped from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Preemption {
    /// Its time was up ([`Sandbox::limit_time`](crate::Sandbox::limit_time)).
    Deadline,
    /// It was cancelled ([`Cancel`](crate::Cancel)).
    Cancelled,
    /// The host wants the CPU for something else ([`Host::should_yield`](crate::Host::should_yield)).
    Yield,
}

/// A memory access that was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryFault {
    /// The address that was accessed.
    pub address: VirtAddr,
    /// What was tried.
    pub access: Access,
    /// Why it was refused.
    pub kind: FaultKind,
}

/// Why a memory access was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FaultKind {
    /// Nothing is mapped there in the sandbox.
    Unmapped,
    /// Something is mapped there, but not for this access.
    Permission,
    /// The guard page before or behind a buffer, or above the stack.
    GuardPage,
    /// The guard page below the stack.
    StackOverflow,
    /// The address is not aligned as the access needs.
    Misaligned,
    /// No table can translate the address.
    NonCanonical,
    /// The memory system reported an error.
    External,
    /// The tables allow the access, yet the CPU goes on refusing it.
    Unexplained,
}

/// What the CPU said of an exception, in its own terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Syndrome {
    /// The kind of exception: the vector on x86-64, ESR_ELx.EC on AArch64.
    pub class: u64,
    /// Its details: the error code on x86-64, ESR_ELx on AArch64.
    pub detail: u64,
}

/// A run's end without a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exit {
    /// Why.
    pub reason: ExitReason,
    /// The instruction at which it ended.
    pub at: VirtAddr,
}

/// An exception in the gate itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FatalReport {
    /// What the CPU said of it.
    pub syndrome: Syndrome,
    /// The instruction that raised it.
    pub at: VirtAddr,
    /// The address it accessed, if the exception has one.
    pub address: VirtAddr,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FaultKind::Unmapped => "not mapped in the sandbox",
            FaultKind::Permission => "not permitted there",
            FaultKind::GuardPage => "guard page",
            FaultKind::StackOverflow => "stack overflow",
            FaultKind::Misaligned => "misaligned",
            FaultKind::NonCanonical => "no such address",
            FaultKind::External => "memory error",
            FaultKind::Unexplained => "permitted, but refused by the CPU",
        })
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitReason::MemoryFault(MemoryFault { address, access, kind }) => {
                write!(f, "memory fault: {access} at {address}: {kind}")
            }
            ExitReason::IllegalInstruction => f.write_str("illegal instruction"),
            ExitReason::PrivilegedInstruction => f.write_str("privileged instruction"),
            ExitReason::Arithmetic => f.write_str("division by zero or overflow"),
            ExitReason::FloatingPoint => f.write_str("floating point or vector instruction"),
            ExitReason::Breakpoint => f.write_str("breakpoint"),
            ExitReason::SingleStep => f.write_str("single step"),
            ExitReason::HostCall(number) => write!(f, "host call {number} is not allowed"),
            ExitReason::Preempted(Preemption::Deadline) => f.write_str("deadline passed"),
            ExitReason::Preempted(Preemption::Cancelled) => f.write_str("cancelled"),
            ExitReason::Preempted(Preemption::Yield) => f.write_str("yielded to the host"),
            ExitReason::Panicked => f.write_str("panic"),
            ExitReason::Unknown(syndrome) => {
                write!(f, "exception {:#x}, details {:#x}", syndrome.class, syndrome.detail)
            }
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (instruction at {})", self.reason, self.at)
    }
}

impl core::error::Error for Exit {}
