//! Switching from one stack to another.

use core::arch::naked_asm;

/// Registers that a function must keep, beside the stack pointer.
const KEPT: u64 = 6;

/// Makes a fresh stack one that [`switch`] can switch to: there `function` begins, called from nowhere. Returns its stack
/// pointer.
///
/// # Safety
///
/// 1. `top` is the end of a stack that nobody uses, a multiple of 16.
/// 2. `function` never returns.
pub(crate) unsafe fn prepare(top: u64, function: extern "C" fn() -> !) -> u64 {
    // A function expects a return address on its stack, and 16-byte alignment above that.
    let address = top - 2 * size_of::<u64>() as u64;
    let pointer = address - KEPT * size_of::<u64>() as u64;
    // SAFETY: (1) of this function.
    unsafe {
        (pointer as *mut u64).write_bytes(0, (top - pointer) as usize / size_of::<u64>());
        (address as *mut u64).write(function as *const () as u64);
    }
    pointer
}

/// Leaves this stack, whose pointer it stores at `from`, for the one whose pointer is `to`. Returns when somebody switches
/// back.
///
/// The callee-saved registers are on the stack that is left, and the return address above them.
///
/// # Safety
///
/// 1. `to` came from [`prepare`] or was stored by an earlier switch, and is used once.
/// 2. Nobody uses either stack meanwhile.
/// 3. Interrupts are masked.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn switch(from: *mut u64, to: u64) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}
