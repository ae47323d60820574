//! Calls whose end is known beforehand, and the functions for them.
//!
//! After each fault the same sandbox is used once more, so every case also shows that it still works.

use alloc::boxed::Box;
use core::fmt::Debug;

use sandbox_mode::{
    Access, Arguments, CallError, Error, Exit, ExitReason, FaultKind, Function, In, MemoryFault, Out, PAGE_SIZE,
    PageRange, Permissions, Val, VirtAddr,
};
use zerocopy::FromBytes;

use crate::machine::{self, Dump, Instruction};
use crate::suite::Sandbox;
use crate::verdict::{Outcome, Verdict};

/// What [`store`] writes and what pages of the suite's are filled with.
pub(crate) const BYTE: u8 = 0x5a;

/// A page of memory.
#[repr(C, align(4096))]
pub(crate) struct PageOf(pub(crate) [u8; PAGE_SIZE]);

impl PageOf {
    /// A page on the heap, full of `byte`.
    pub(crate) fn boxed(byte: u8) -> Box<PageOf> {
        Box::new(PageOf([byte; PAGE_SIZE]))
    }

    pub(crate) fn is_full_of(&self, byte: u8) -> bool {
        self.0.iter().all(|&found| found == byte)
    }
}

/// The address of a value.
pub(crate) fn address_of<T: ?Sized>(value: *const T) -> u64 {
    value.cast::<u8>().expose_provenance() as u64
}

/// The address of a function.
pub(crate) fn code_of(function: extern "C" fn()) -> u64 {
    function as *const () as u64
}

/// Reads the byte at `address`.
pub(crate) fn load(address: u64) -> u64 {
    machine::load(address)
}

/// Reads the eight bytes at `address`.
pub(crate) fn load_word(address: u64) -> u64 {
    machine::load_word(address)
}

/// Writes [`BYTE`] to `address`.
pub(crate) fn store(address: u64) {
    machine::store(address, BYTE);
}

/// Executes what is at `address`.
pub(crate) fn jump(address: u64) {
    machine::jump(address);
}

/// All registers as a sandboxed function finds them.
pub(crate) fn dump() -> Dump {
    machine::dump()
}

fn sum(numbers: &[u64], doubled: &mut [u64]) -> u64 {
    for (number, doubled) in numbers.iter().zip(doubled) {
        *doubled = number.wrapping_mul(2);
    }
    numbers.iter().fold(0, |sum, number| sum.wrapping_add(*number))
}

/// The sandbox works: inputs arrive, outputs and the result come back.
pub(crate) fn works(sandbox: &mut Sandbox<'_>) -> Outcome {
    let numbers = [3, 5, 7, u64::MAX];
    let mut doubled = [1; 4];
    let result = sandbox.call(sum, (In(&numbers[..]), Out(&mut doubled[..])))?;
    expect_eq!(result, 14);
    expect_eq!(doubled, [6, 10, 14, u64::MAX - 1]);
    Ok(())
}

/// Calls something that must not return; how it ended.
pub(crate) fn exit_of<F, T, R>(sandbox: &mut Sandbox<'_>, function: F, arguments: T) -> Outcome<Exit>
where
    F: Function<T, R>,
    T: Arguments,
    R: FromBytes + Debug + 'static,
{
    match sandbox.call(function, arguments) {
        Err(CallError::Exit(exit)) => {
            works(sandbox)?;
            Ok(exit)
        }
        Err(CallError::Setup(error)) => fail!("the call could not begin: {error}"),
        Ok(value) => fail!("returned {value:x?}"),
    }
}

/// Calls something that must end with `reason`.
pub(crate) fn ends<F, T, R>(sandbox: &mut Sandbox<'_>, function: F, arguments: T, reason: ExitReason) -> Outcome
where
    F: Function<T, R>,
    T: Arguments,
    R: FromBytes + Debug + 'static,
{
    let exit = exit_of(sandbox, function, arguments)?;
    expect_eq!(exit.reason, reason);
    Ok(())
}

/// The reason for a refused access.
pub(crate) fn fault(address: u64, access: Access, kind: FaultKind) -> ExitReason {
    ExitReason::MemoryFault(MemoryFault { address: VirtAddr(address), access, kind })
}

/// One byte at `address` must not be accessible in this way, for this reason.
pub(crate) fn denied(sandbox: &mut Sandbox<'_>, access: Access, address: u64, kind: FaultKind) -> Outcome {
    let argument = (Val(address),);
    let (exit, at) = match access {
        Access::Read => (exit_of(sandbox, load, argument)?, machine::load as *const () as u64),
        Access::Write => (exit_of(sandbox, store, argument)?, machine::store as *const () as u64),
        Access::Execute => (exit_of(sandbox, jump, argument)?, address),
    };
    expect_eq!(exit.reason, fault(address, access, kind), "{access} at {address:#x}");
    // Where a jump to an address that does not exist fails is the CPU's choice.
    let may_stop_at_jump = access == Access::Execute && kind == FaultKind::NonCanonical;
    if !(may_stop_at_jump && exit.at.0 == machine::jump as *const () as u64) {
        expect_eq!(exit.at, VirtAddr(at), "the instruction of the {access} at {address:#x}");
    }
    Ok(())
}

/// Nothing at `address` is accessible in any way, for this reason.
pub(crate) fn unreachable(sandbox: &mut Sandbox<'_>, address: u64, kind: FaultKind) -> Outcome {
    for access in [Access::Read, Access::Write, Access::Execute] {
        denied(sandbox, access, address, kind)?;
    }
    Ok(())
}

/// The byte at `address` is readable and has this value.
pub(crate) fn readable(sandbox: &mut Sandbox<'_>, address: u64, value: u8) -> Outcome {
    expect_eq!(sandbox.call(load, (Val(address),))?, u64::from(value), "the byte at {address:#x}");
    Ok(())
}

/// Calls code that takes a word.
pub(crate) fn run_with(code: u64, argument: u64) -> u64 {
    let code = core::ptr::with_exposed_provenance::<()>(code as usize);
    // SAFETY: `code` is one of the suite's functions, or whatever a case wants executed; this runs in a sandbox.
    let function = unsafe { core::mem::transmute::<*const (), extern "C" fn(u64) -> u64>(code) };
    function(argument)
}

/// Calls `code` with `argument` as its first argument; how it ended.
pub(crate) fn exit_with(sandbox: &mut Sandbox<'_>, code: extern "C" fn(), argument: u64) -> Outcome<Exit> {
    exit_of(sandbox, run_with, (Val(code_of(code)), Val(argument)))
}

/// Calls `code`, which is at an address; how it ended.
pub(crate) fn exit_at(sandbox: &mut Sandbox<'_>, code: u64) -> Outcome<Exit> {
    exit_of(sandbox, run_with, (Val(code), Val(0u64)))
}

/// Calls `code` and returns what it returned.
pub(crate) fn result_of(sandbox: &mut Sandbox<'_>, code: extern "C" fn() -> u64) -> Outcome<u64> {
    Ok(sandbox.call(run_with, (Val(code as *const () as u64), Val(0u64)))?)
}

/// An instruction ends the sandbox where it stands, for its reason.
pub(crate) fn stops(sandbox: &mut Sandbox<'_>, instruction: &Instruction) -> Outcome {
    let exit = match exit_with(sandbox, instruction.code, 0) {
        Err(Verdict::Failed(message)) => fail!("{}: {message}", instruction.name),
        other => other?,
    };
    expect_eq!(exit.reason, instruction.reason, "{}", instruction.name);
    let (start, at) = (code_of(instruction.code), exit.at.0);
    expect!(
        (start..start + instruction.bytes()).contains(&at),
        "{}: stopped at {at:#x}, not at {start:#x}",
        instruction.name
    );
    Ok(())
}

/// The pages from the one at `address` on.
pub(crate) fn pages_at(address: u64, count: u64) -> PageRange {
    PageRange::new(VirtAddr(address).page(), count).expect("inside the address space")
}

/// Grants pages of a test's own.
pub(crate) fn grant(sandbox: &mut Sandbox<'_>, range: PageRange, permissions: Permissions) -> Result<(), Error> {
    // SAFETY: (1) cases grant memory that outlives their sandboxes, or what must be refused; (2) nobody minds changes.
    unsafe { sandbox.grant_range(range, permissions) }
}
