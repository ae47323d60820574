//! Switching from one stack to another.

use core::{arch::naked_asm, mem::offset_of};

/// What a function must keep, as [`switch`] leaves it on the stack.
#[repr(C, align(16))]
struct Kept {
    /// x19 to x28.
    general: [u64; 10],
    /// x29 and x30.
    frame_and_link: [u64; 2],
}

/// Makes a fresh stack one that [`switch`] can switch to: there `function` begins, called from nowhere. Returns its stack
/// pointer.
///
/// # Safety
///
/// 1. `top` is the end of a stack that nobody uses, a multiple of 16.
/// 2. `function` never returns.
pub(crate) unsafe fn prepare(top: u64, function: extern "C" fn() -> !) -> u64 {
    let pointer = top - size_of::<Kept>() as u64;
    let kept = Kept { general: [0; 10], frame_and_link: [0, function as *const () as u64] };
    // SAFETY: (1) of this function.
    unsafe { (pointer as *mut Kept).write(kept) };
    pointer
}

/// Leaves this stack, whose pointer it stores at `from`, for the one whose pointer is `to`. Returns when somebody switches
/// back.
///
/// The callee-saved registers and the return address are on the stack that is left. Uses x9.
///
/// # Safety
///
/// 1. `to` came from [`prepare`] or was stored by an earlier switch, and is used once.
/// 2. Nobody uses either stack meanwhile.
/// 3. Interrupts are masked.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn switch(from: *mut u64, to: u64) {
    naked_asm!(
        "sub sp, sp, #{size}",
        "stp x19, x20, [sp, #{general} + 0 * {pair}]",
        "stp x21, x22, [sp, #{general} + 1 * {pair}]",
        "stp x23, x24, [sp, #{general} + 2 * {pair}]",
        "stp x25, x26, [sp, #{general} + 3 * {pair}]",
        "stp x27, x28, [sp, #{general} + 4 * {pair}]",
        "stp x29, x30, [sp, #{frame_and_link}]",
        "mov x9, sp",
        "str x9, [x0]",
        "mov sp, x1",
        "ldp x19, x20, [sp, #{general} + 0 * {pair}]",
        "ldp x21, x22, [sp, #{general} + 1 * {pair}]",
        "ldp x23, x24, [sp, #{general} + 2 * {pair}]",
        "ldp x25, x26, [sp, #{general} + 3 * {pair}]",
        "ldp x27, x28, [sp, #{general} + 4 * {pair}]",
        "ldp x29, x30, [sp, #{frame_and_link}]",
        "add sp, sp, #{size}",
        "ret",
        size = const size_of::<Kept>(),
        general = const offset_of!(Kept, general),
        pair = const 2 * size_of::<u64>(),
        frame_and_link = const offset_of!(Kept, frame_and_link),
    )
}
