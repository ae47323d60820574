//! What an attacker makes of a parser: the functions that the demo calls in a sandbox to show
//! that each is contained.
//!
//! To their caller they look like any parser, safe and ordinary; a parser with a bug looks like
//! that too. Outside a sandbox they would take the kernel down, so call them in one only. A
//! function that returns [`Problem::GotAway`] wasn't contained.
//!
//! Memory is touched through assembly: to the compiler these accesses would be undefined
//! behaviour that it may leave out, and they are to happen exactly as written.

#![allow(unsafe_code)]

use core::arch::asm;
use core::hint::black_box;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::picture::{self, PictureHeader};
use crate::status::{Problem, Status};

/// An address in the kernel that a hostile function goes for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Target {
    /// Where the attack goes.
    pub address: u64,
}

impl Target {
    /// The memory of a value.
    pub fn at<T: ?Sized>(value: *const T) -> Self {
        Self { address: value.cast::<u8>().expose_provenance() as u64 }
    }
}

/// Decodes the picture and goes on writing behind its pixels.
pub fn write_past_output(png: &[u8], header: &mut PictureHeader, pixels: &mut [u8]) -> Status {
    /// More than a page, since the rest of the last page of an output belongs to the sandbox.
    const OVERRUN_BYTES: u64 = 128 * 1024;

    let status = picture::decode(png, header, pixels);
    if status != Status::OK {
        return status;
    }
    let end = Target::at(pixels.as_ptr_range().end).address;
    for address in end..end.saturating_add(OVERRUN_BYTES) {
        poke(address, 0x41);
    }
    Status::of(Problem::GotAway)
}

/// Overwrites the kernel's data at an address.
pub fn write_kernel_data(target: &Target) -> Status {
    poke(target.address, 0x41);
    Status::of(Problem::GotAway)
}

/// Reads the kernel's memory at an address and gives out the byte.
pub fn read_kernel_secret(target: &Target, secret: &mut u8) -> Status {
    *secret = peek(target.address);
    Status::of(Problem::GotAway)
}

/// Overwrites the code of a function in the kernel, this one.
pub fn write_own_code() -> Status {
    let code: fn() -> Status = write_own_code;
    poke(code as usize as u64, 0);
    Status::of(Problem::GotAway)
}

/// Puts code on its stack and calls it.
pub fn run_own_stack() -> Status {
    #[cfg(target_arch = "x86_64")]
    const RETURN: [u8; 4] = [0xc3; 4];
    #[cfg(target_arch = "aarch64")]
    const RETURN: [u8; 4] = 0xd65f_03c0_u32.to_le_bytes();

    #[repr(align(4))]
    struct Code([u8; 4]);

    let code = black_box(Code(RETURN));
    let address: *const u8 = black_box(code.0.as_ptr());
    // SAFETY: The bytes are a function that only returns. That they aren't executable is what
    // the demo shows; the sandbox ends here.
    let function: extern "C" fn() = unsafe { core::mem::transmute(address) };
    function();
    black_box(&code);
    Status::of(Problem::GotAway)
}

/// Calls itself until the stack is used up.
pub fn overflow_stack() -> Status {
    descend(0);
    Status::of(Problem::GotAway)
}

#[inline(never)]
fn descend(depth: u64) -> u64 {
    let frame = black_box([depth; 32]);
    if black_box(depth) == u64::MAX {
        return 0;
    }
    // The frame is used after the call, so the call can't become a jump.
    descend(depth + 1) ^ black_box(&frame)[0]
}

/// Switches interrupts off.
pub fn privileged_instruction() -> Status {
    // SAFETY: Touches no memory. That the instruction can't have its effect on the CPU is what
    // the demo shows; the sandbox ends here.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("cli", options(nomem, nostack));
        #[cfg(target_arch = "aarch64")]
        asm!("msr daifset, #2", options(nomem, nostack));
    }
    Status::of(Problem::GotAway)
}

/// Reads through a null pointer.
pub fn dereference_null() -> Status {
    black_box(peek(0));
    Status::of(Problem::GotAway)
}

/// Never comes back.
pub fn run_forever() -> Status {
    while black_box(true) {}
    Status::of(Problem::GotAway)
}

/// Reads the byte at an address.
fn peek(address: u64) -> u8 {
    let byte: u64;
    // SAFETY: Reading changes nothing. That an address which wasn't granted isn't readable is
    // what the demo shows; the sandbox ends here.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("movzx {byte:e}, byte ptr [{address}]", address = in(reg) address, byte = out(reg) byte, options(nostack, readonly, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        asm!("ldrb {byte:w}, [{address}]", address = in(reg) address, byte = out(reg) byte, options(nostack, readonly, preserves_flags));
    }
    byte as u8
}

/// Writes a byte to an address.
fn poke(address: u64, byte: u8) {
    // SAFETY: Sound nowhere but in a sandbox, whose address space contains nothing writable of
    // anyone else's. That this holds is what the demo shows; the sandbox ends here.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("mov byte ptr [{address}], {byte}", address = in(reg) address, byte = in(reg_byte) byte, options(nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        asm!("strb {byte:w}, [{address}]", address = in(reg) address, byte = in(reg) byte, options(nostack, preserves_flags));
    }
}
