//! What sandboxes execute on AArch64: single accesses, and dumps of registers.

use core::arch::naked_asm;

use sandbox_mode::Backend;
use zerocopy::FromBytes;

/// Whether a CPU with this configuration has tags for translations.
pub(crate) fn gives_tags(config: &sandbox_mode::CpuConfig) -> bool {
    config.asids.is_some()
}

/// The registers of a sandbox that isn't running.
pub(crate) type Registers = <Backend as sandbox_mode::Arch>::Registers;

/// Reads the byte at `address`.
#[unsafe(naked)]
pub(crate) extern "C" fn load(address: u64) -> u64 {
    naked_asm!("ldrb w0, [x0]", "ret")
}

/// Reads the eight bytes at `address`.
#[unsafe(naked)]
pub(crate) extern "C" fn load_word(address: u64) -> u64 {
    naked_asm!("ldr x0, [x0]", "ret")
}

/// Writes `byte` to `address`.
#[unsafe(naked)]
pub(crate) extern "C" fn store(address: u64, byte: u8) {
    naked_asm!("strb w1, [x0]", "ret")
}

/// Executes what is at `address`; what is there returns to the caller.
#[unsafe(naked)]
pub(crate) extern "C" fn jump(address: u64) {
    naked_asm!("br x0")
}

/// Instructions begin at multiples of this.
pub(crate) const CODE_ALIGNMENT: u64 = 4;

/// The code of a function that only returns.
pub(crate) const RETURN: [u8; 4] = 0xd65f_03c0_u32.to_le_bytes();

/// Addresses that no table translates: bits 48 to 55 are neither all clear nor all set.
pub(crate) const NO_ADDRESSES: [u64; 4] =
    [0x0001_2345_0000_0000, 0x007f_ffff_ffff_ff00, 0x00ab_cdef_0123_4560, 0xff80_0000_0000_0010];

/// Addresses of the process's half, besides what a kernel maps there.
pub(crate) const PROCESS_ADDRESSES: [u64; 4] = [0x1000, 0x40_0000, 0x10_0000_0000, 0xffff_ffff_f000];

/// Why a division by zero would not end a sandbox.
pub(crate) const DIVIDE_TRAPS: Result<(), &str> = Err("the divide instructions of AArch64 do not trap: they return 0");

/// Divides by zero.
#[unsafe(naked)]
pub(crate) extern "C" fn divide_by_zero() {
    naked_asm!("udiv x0, x0, xzr", "ret")
}

/// General registers as code found them, in the order of their numbers, and the stack pointer.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub(crate) struct Dump {
    pub(crate) general: [u64; 32],
}

/// All registers as they are when a sandboxed function begins.
#[unsafe(naked)]
pub(crate) extern "C" fn dump() -> Dump {
    // The result's place is in x8.
    naked_asm!(
        "stp x0, x1, [x8]",
        "stp x2, x3, [x8, #16]",
        "stp x4, x5, [x8, #32]",
        "stp x6, x7, [x8, #48]",
        "stp x8, x9, [x8, #64]",
        "stp x10, x11, [x8, #80]",
        "stp x12, x13, [x8, #96]",
        "stp x14, x15, [x8, #112]",
        "stp x16, x17, [x8, #128]",
        "stp x18, x19, [x8, #144]",
        "stp x20, x21, [x8, #160]",
        "stp x22, x23, [x8, #176]",
        "stp x24, x25, [x8, #192]",
        "stp x26, x27, [x8, #208]",
        "stp x28, x29, [x8, #224]",
        "mov x9, sp",
        "stp x30, x9, [x8, #240]",
        "ret",
    )
}

/// The registers that must be zero where a call begins.
pub(crate) fn cleared_at_entry(registers: &Registers) -> impl Iterator<Item = (&'static str, u64)> {
    let general = registers.x[2..].iter().map(|&value| ("one of x2 to x30", value));
    general.chain([("TPIDR_EL0", registers.tpidr)])
}

/// What [`with_patterns`] puts into the first register; the others have the following numbers.
pub(crate) const PATTERN: u64 = 0x5ec2_e75e_c2e7_0000;

/// Fills every register that a function may keep values in with patterns, calls `work(context)`, and returns how many of them
/// changed.
///
/// # Safety
///
/// 1. `context` is what `work` takes.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn with_patterns(work: unsafe extern "C" fn(*mut ()), context: *mut ()) -> u64 {
    naked_asm!(
        "stp x18, x19, [sp, #-112]!",
        "stp x20, x21, [sp, #16]",
        "stp x22, x23, [sp, #32]",
        "stp x24, x25, [sp, #48]",
        "stp x26, x27, [sp, #64]",
        "stp x28, x29, [sp, #80]",
        "str x30, [sp, #96]",
        "mov x9, x0",
        "mov x0, x1",
        "ldr x19, ={pattern}",
        "add x20, x19, #1",
        "add x21, x19, #2",
        "add x22, x19, #3",
        "add x23, x19, #4",
        "add x24, x19, #5",
        "add x25, x19, #6",
        "add x26, x19, #7",
        "add x27, x19, #8",
        "add x28, x19, #9",
        "mov x2, x19",
        "mov x3, x19",
        "mov x4, x19",
        "mov x5, x19",
        "mov x6, x19",
        "mov x7, x19",
        "mov x10, x19",
        "mov x11, x19",
        "mov x12, x19",
        "mov x13, x19",
        "mov x14, x19",
        "mov x15, x19",
        "mov x16, x19",
        "mov x17, x19",
        "mov x18, x19",
        "blr x9",
        "mov x0, #0",
        "ldr x9, ={pattern}",
        "cmp x19, x9",
        "cinc x0, x0, ne",
        "add x9, x9, #1",
        "cmp x20, x9",
        "cinc x0, x0, ne",
        "add x9, x9, #1",
        "cmp x21, x9",
        "cinc x0, x0, ne",
        "add x9, x9, #1",
        "cmp x22, x9",
        "cinc x0, x0, ne",
        "add x9, x9, #1",
        "cmp x23, x9",
        "cinc x0, x0, ne",
        "add x9, x9, #1",
        "cmp x24, x9",
        "cinc x0, x0, ne",
        "add x9, x9, #1",
        "cmp x25, x9",
        "cinc x0, x0, ne",
        "add x9, x9, #1",
        "cmp x26, x9",
        "cinc x0, x0, ne",
        "add x9, x9, #1",
        "cmp x27, x9",
        "cinc x0, x0, ne",
        "add x9, x9, #1",
        "cmp x28, x9",
        "cinc x0, x0, ne",
        "ldp x20, x21, [sp, #16]",
        "ldp x22, x23, [sp, #32]",
        "ldp x24, x25, [sp, #48]",
        "ldp x26, x27, [sp, #64]",
        "ldp x28, x29, [sp, #80]",
        "ldr x30, [sp, #96]",
        "ldp x18, x19, [sp], #112",
        "ret",
        ".ltorg",
        pattern = const PATTERN,
    )
}

/// Fills every register with rubbish and ends the sandbox: by the instruction `$end`.
macro_rules! spoil {
    ($end:literal) => {
        naked_asm!(
            "mov x0, #-0x5e",
            "mov sp, x0",
            "msr nzcv, x0",
            ".irp number, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30",
            "mov x\\number, x0",
            ".endr",
            $end,
        )
    };
}

/// Fills every register with rubbish and ends the sandbox.
#[unsafe(naked)]
pub(crate) extern "C" fn spoil_registers() {
    spoil!("udf #0")
}

/// As [`spoil_registers`], and then returns to the host past all callers.
#[unsafe(naked)]
pub(crate) extern "C" fn spoil_registers_and_return() {
    spoil!("svc #0")
}
