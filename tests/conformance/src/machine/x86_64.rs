//! What sandboxes execute on x86-64: single accesses, and dumps of registers.

use core::arch::naked_asm;

use sandbox_mode::Backend;
use zerocopy::FromBytes;

/// Whether a CPU with this configuration has tags for translations.
pub(crate) fn gives_tags(config: &sandbox_mode::CpuConfig) -> bool {
    let _ = config;
    false
}

/// The registers of a sandbox that isn't running.
pub(crate) type Registers = <Backend as sandbox_mode::Arch>::Registers;

/// Reads the byte at `address`.
#[unsafe(naked)]
pub(crate) extern "C" fn load(address: u64) -> u64 {
    naked_asm!("movzx eax, byte ptr [rdi]", "ret")
}

/// Reads the eight bytes at `address`.
#[unsafe(naked)]
pub(crate) extern "C" fn load_word(address: u64) -> u64 {
    naked_asm!("mov rax, [rdi]", "ret")
}

/// Writes `byte` to `address`.
#[unsafe(naked)]
pub(crate) extern "C" fn store(address: u64, byte: u8) {
    naked_asm!("mov byte ptr [rdi], sil", "ret")
}

/// Executes what is at `address`; what is there returns to the caller.
#[unsafe(naked)]
pub(crate) extern "C" fn jump(address: u64) {
    naked_asm!("jmp rdi")
}

/// Instructions begin at multiples of this.
pub(crate) const CODE_ALIGNMENT: u64 = 1;

/// The code of a function that only returns.
pub(crate) const RETURN: [u8; 4] = [0xc3; 4];

/// Addresses that no table of four or five levels translates.
pub(crate) const NO_ADDRESSES: [u64; 4] =
    [0x0100_0000_0000_0000, 0x8000_0000_0000_0000, 0xdead_beef_dead_beef, 0xfeff_ffff_ffff_fff8];

/// Addresses of the process's half, besides what a kernel maps there.
pub(crate) const PROCESS_ADDRESSES: [u64; 4] = [0x1000, 0x40_0000, 0x10_0000_0000, 0x7fff_ffff_f000];

/// Why the last divide instruction would not end a sandbox.
pub(crate) const DIVIDE_TRAPS: Result<(), &str> = Ok(());

/// Divides by zero.
#[unsafe(naked)]
pub(crate) extern "C" fn divide_by_zero() {
    naked_asm!("div dil", "xor ecx, ecx", "div ecx", "ret")
}

/// General registers as code found them, in the order of their numbers.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub(crate) struct Dump {
    pub(crate) general: [u64; 16],
}

/// All registers as they are when a sandboxed function begins.
#[unsafe(naked)]
pub(crate) extern "C" fn dump() -> Dump {
    naked_asm!(
        "mov [rdi], rax",
        "mov [rdi + 1 * 8], rcx",
        "mov [rdi + 2 * 8], rdx",
        "mov [rdi + 3 * 8], rbx",
        "mov [rdi + 4 * 8], rsp",
        "mov [rdi + 5 * 8], rbp",
        "mov [rdi + 6 * 8], rsi",
        "mov [rdi + 7 * 8], rdi",
        "mov [rdi + 8 * 8], r8",
        "mov [rdi + 9 * 8], r9",
        "mov [rdi + 10 * 8], r10",
        "mov [rdi + 11 * 8], r11",
        "mov [rdi + 12 * 8], r12",
        "mov [rdi + 13 * 8], r13",
        "mov [rdi + 14 * 8], r14",
        "mov [rdi + 15 * 8], r15",
        "mov rax, rdi",
        "ret",
    )
}

/// The registers that must be zero where a call begins.
pub(crate) fn cleared_at_entry(registers: &Registers) -> impl Iterator<Item = (&'static str, u64)> {
    let f = &registers.frame;
    [
        ("rax", f.rax),
        ("rbx", f.rbx),
        ("rcx", f.rcx),
        ("rdx", f.rdx),
        ("rbp", f.rbp),
        ("r8", f.r8),
        ("r9", f.r9),
        ("r10", f.r10),
        ("r11", f.r11),
        ("r12", f.r12),
        ("r13", f.r13),
        ("r14", f.r14),
        ("r15", f.r15),
        ("fs base", registers.fs_base),
        ("gs base", registers.gs_base),
    ]
    .into_iter()
}

/// What a call with callee-saved registers full of `PATTERN` left in them.
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
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rbx, {pattern}",
        "lea rbp, [rbx + 1]",
        "lea r12, [rbx + 2]",
        "lea r13, [rbx + 3]",
        "lea r14, [rbx + 4]",
        "lea r15, [rbx + 5]",
        "lea rcx, [rbx + 6]",
        "lea rdx, [rbx + 7]",
        "lea rsi, [rbx + 8]",
        "lea r8, [rbx + 9]",
        "lea r9, [rbx + 10]",
        "lea r10, [rbx + 11]",
        "lea r11, [rbx + 12]",
        "call rax",
        "xor eax, eax",
        "mov rcx, {pattern}",
        "cmp rbx, rcx",
        "je 2f",
        "inc eax",
        "2: inc rcx",
        "cmp rbp, rcx",
        "je 2f",
        "inc eax",
        "2: inc rcx",
        "cmp r12, rcx",
        "je 2f",
        "inc eax",
        "2: inc rcx",
        "cmp r13, rcx",
        "je 2f",
        "inc eax",
        "2: inc rcx",
        "cmp r14, rcx",
        "je 2f",
        "inc eax",
        "2: inc rcx",
        "cmp r15, rcx",
        "je 2f",
        "inc eax",
        "2: add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        pattern = const PATTERN,
    )
}

/// Fills every register but the stack pointer with rubbish and ends the sandbox.
#[unsafe(naked)]
pub(crate) extern "C" fn spoil_registers() {
    naked_asm!(
        "mov rax, -0x5e",
        "mov rbx, rax",
        "mov rcx, rax",
        "mov rdx, rax",
        "mov rsi, rax",
        "mov rdi, rax",
        "mov rbp, rax",
        "mov r8, rax",
        "mov r9, rax",
        "mov r10, rax",
        "mov r11, rax",
        "mov r12, rax",
        "mov r13, rax",
        "mov r14, rax",
        "mov r15, rax",
        "ud2",
    )
}

/// As [`spoil_registers`], and then returns to the host past all callers.
#[unsafe(naked)]
pub(crate) extern "C" fn spoil_registers_and_return() {
    naked_asm!(
        "mov rbx, -0x5e",
        "mov rcx, rbx",
        "mov rdx, rbx",
        "mov rsi, rbx",
        "mov rdi, rbx",
        "mov rbp, rbx",
        "mov rsp, rbx",
        "mov r8, rbx",
        "mov r9, rbx",
        "mov r10, rbx",
        "mov r11, rbx",
        "mov r12, rbx",
        "mov r13, rbx",
        "mov r14, rbx",
        "mov r15, rbx",
        "xor eax, eax",
        "int 4",
    )
}
