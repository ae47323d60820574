//! Code that resists being stopped, on x86-64. Each gets the address of a page that it may write.

use core::arch::naked_asm;

/// Loops that a deadline has to end, by name.
pub(crate) const RESISTANCE: [(&str, extern "C" fn(u64)); 6] = [
    ("an empty loop", empty),
    ("block stores", block_stores),
    ("block copies backwards", block_copies),
    ("locked exchanges", locked_exchanges),
    ("pauses", pauses),
    ("segment loads", segment_loads),
];

/// Loops that end by themselves with a privileged instruction.
pub(crate) const WAITS: [(&str, extern "C" fn(u64)); 2] = [("hlt", halts), ("cli", masks)];

#[unsafe(naked)]
extern "C" fn empty(_page: u64) {
    naked_asm!("2: jmp 2b")
}

/// The longest that one instruction can take.
#[unsafe(naked)]
extern "C" fn block_stores(_page: u64) {
    naked_asm!("mov r8, rdi", "2: mov rdi, r8", "mov ecx, 4096", "rep stosb", "jmp 2b")
}

/// With the direction flag set.
#[unsafe(naked)]
extern "C" fn block_copies(_page: u64) {
    naked_asm!(
        "lea r8, [rdi + 2047]",
        "std",
        "2: mov rsi, r8",
        "lea rdi, [r8 + 2048]",
        "mov ecx, 2048",
        "rep movsb",
        "jmp 2b"
    )
}

#[unsafe(naked)]
extern "C" fn locked_exchanges(_page: u64) {
    naked_asm!("2: lock cmpxchg [rdi], rax", "xchg [rdi], rax", "jmp 2b")
}

#[unsafe(naked)]
extern "C" fn pauses(_page: u64) {
    naked_asm!("2: pause", "jmp 2b")
}

/// A load of a stack segment holds interrupts back for an instruction.
#[unsafe(naked)]
extern "C" fn segment_loads(_page: u64) {
    naked_asm!("mov eax, ss", "2: mov ss, eax", "mov ss, eax", "jmp 2b")
}

#[unsafe(naked)]
extern "C" fn halts(_page: u64) {
    naked_asm!("2: hlt", "jmp 2b")
}

#[unsafe(naked)]
extern "C" fn masks(_page: u64) {
    naked_asm!("2: cli", "jmp 2b")
}
