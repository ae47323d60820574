//! Instructions that must end a sandbox on x86-64.

use core::arch::{global_asm, naked_asm};

use sandbox_mode::{Access, ExitReason, FaultKind};
use x86_64::registers::control::{Cr4, Cr4Flags};

use super::{Instruction, instruction};
use crate::probe::fault;

const ILLEGAL: ExitReason = ExitReason::IllegalInstruction;
const PRIVILEGED: ExitReason = ExitReason::PrivilegedInstruction;

/// Instructions that do not exist.
pub(crate) fn illegal() -> [Instruction; 2] {
    [instruction!(ILLEGAL, "ud2"), instruction!(ILLEGAL, ".byte 0x0f, 0xb9, 0xc0")]
}

/// Instructions that only the kernel may execute, or only with other operands.
pub(crate) fn privileged() -> impl Iterator<Item = Instruction> {
    [
        instruction!(PRIVILEGED, "cli"),
        instruction!(PRIVILEGED, "sti"),
        instruction!(PRIVILEGED, "hlt"),
        instruction!(PRIVILEGED, "in al, 0x60"),
        instruction!(PRIVILEGED, "out 0x60, al"),
        instruction!(PRIVILEGED, "in eax, dx"),
        instruction!(PRIVILEGED, "out dx, eax"),
        instruction!(PRIVILEGED, "insb"),
        instruction!(PRIVILEGED, "outsb"),
        instruction!(PRIVILEGED, "mov rax, cr0"),
        instruction!(PRIVILEGED, "mov rax, cr2"),
        instruction!(PRIVILEGED, "mov rax, cr3"),
        instruction!(PRIVILEGED, "mov cr3, rax"),
        instruction!(PRIVILEGED, "mov cr0, rax"),
        instruction!(PRIVILEGED, "mov cr4, rax"),
        instruction!(PRIVILEGED, "mov cr8, rax"),
        instruction!(PRIVILEGED, "mov rax, dr7"),
        instruction!(PRIVILEGED, "mov dr7, rax"),
        instruction!(PRIVILEGED, "clts"),
        instruction!(PRIVILEGED, "lmsw ax"),
        instruction!(PRIVILEGED, "rdmsr"),
        instruction!(PRIVILEGED, "wrmsr"),
        instruction!(PRIVILEGED, "rdpmc"),
        instruction!(PRIVILEGED, "lgdt [rsp]"),
        instruction!(PRIVILEGED, "lidt [rsp]"),
        instruction!(PRIVILEGED, "lldt ax"),
        instruction!(PRIVILEGED, "ltr ax"),
        instruction!(PRIVILEGED, "invlpg [rsp]"),
        instruction!(PRIVILEGED, "wbinvd"),
        instruction!(PRIVILEGED, "invd"),
        instruction!(PRIVILEGED, "swapgs"),
        // The kernel's segments.
        instruction!(PRIVILEGED, "mov eax, 0x10", "mov ds, eax"),
        instruction!(PRIVILEGED, "mov eax, 0x10", "mov ss, eax"),
        // A local table's. There is none: not even the one at address 0 that a CPU comes out of reset with.
        instruction!(PRIVILEGED, "mov eax, 0x4", "mov ds, eax"),
        instruction!(PRIVILEGED, "mov eax, 0xfff7", "mov es, eax"),
        instruction!(PRIVILEGED, "mov eax, 0xf", "mov gs, eax"),
    ]
    .into_iter()
    .chain(far_returns().into_iter().flatten())
}

/// Returns to the kernel's code segment. Not with SMAP: QEMU 7.2 reads the stack as privileged code would, and faults there.
fn far_returns() -> Option<[Instruction; 2]> {
    (!Cr4::read().contains(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION)).then(|| {
        [
            instruction!(PRIVILEGED, "push 0x08", "push rax", "retfq"),
            instruction!(PRIVILEGED, "push 0x10", "push rax", "push 2", "push 0x08", "push rax", "iretq"),
        ]
    })
}

/// Instructions that enter a kernel, on CPUs whose kernel is set up for them. SYSENTER is unknown in 64-bit mode except on Intel's.
pub(crate) fn system_calls() -> [Instruction; 2] {
    let vendor = core::arch::x86_64::__cpuid(0);
    let intel = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes) == [*b"Genu", *b"ineI", *b"ntel"];
    [instruction!(ILLEGAL, "syscall"), instruction!(if intel { PRIVILEGED } else { ILLEGAL }, "sysenter")]
}

unsafe extern "C" {
    static suite_software_interrupts: u8;
}

const BYTES_EACH: usize = 4;

global_asm!(
    ".pushsection .text.suite, \"ax\", @progbits",
    ".balign 16",
    ".global suite_software_interrupts",
    "suite_software_interrupts:",
    ".set suite_vector, 0",
    ".rept 256",
    ".byte 0xcd, suite_vector", // int n
    "ret",
    "nop",
    ".set suite_vector, suite_vector + 1",
    ".endr",
    ".popsection",
);

/// `int n` for every vector but the one by which sandboxes return: its code, how it must end, and how many bytes on.
pub(crate) fn software_interrupts() -> impl Iterator<Item = (usize, u64, ExitReason, u64)> {
    let code = |vector: usize| (&raw const suite_software_interrupts).addr() + vector * BYTES_EACH;
    let reason = |vector| if vector == 3 { ExitReason::Breakpoint } else { PRIVILEGED };
    (0..256).filter(|&vector| vector != 4).map(move |vector| (vector, code(vector) as u64, reason(vector), 0))
}

/// Requests to the host of every size of number.
pub(crate) fn host_calls() -> [Instruction; 4] {
    let call = ExitReason::HostCall;
    [
        instruction!(call(1), "mov eax, 1", "int 4"),
        instruction!(call(0xffff), "mov eax, 0xffff", "int 4"),
        instruction!(call(1 << 32), "mov rax, 0x100000000", "int 4"),
        instruction!(call(u64::MAX), "mov rax, -1", "int 4"),
    ]
}

/// A breakpoint.
pub(crate) fn breakpoint() -> Instruction {
    instruction!(ExitReason::Breakpoint, "int3")
}

/// Vector and floating-point instructions of every kind. Not EMMS: QEMU 7.2 lets it pass although CR0.TS is set.
pub(crate) fn floating_point() -> impl Iterator<Item = Instruction> {
    const FP: ExitReason = ExitReason::FloatingPoint;
    let avx = Cr4::read().contains(Cr4Flags::OSXSAVE);
    [
        instruction!(FP, "fld1"),
        instruction!(FP, "fninit"),
        instruction!(FP, "fwait"),
        instruction!(FP, "movd mm0, eax"),
        instruction!(FP, "xorps xmm0, xmm0"),
        instruction!(FP, "movq rax, xmm0"),
        instruction!(FP, "ldmxcsr [rsp]"),
        instruction!(FP, "fxsave [rsp - 512]"),
    ]
    .into_iter()
    .chain(avx.then(|| instruction!(FP, "vxorps ymm0, ymm0, ymm0")))
}

/// Sets the trap flag; the trap comes after the instruction behind it.
#[unsafe(naked)]
extern "C" fn trap_flag() {
    naked_asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "ret")
}

/// A single step, and in how many bytes from the function's start it must stop; or why there is none.
pub(crate) fn single_step() -> Result<(extern "C" fn(), u64), &'static str> {
    Ok((trap_flag, 16))
}

/// Accesses to addresses that don't exist, other than by a plain move: the code, which finds `address` in rdi, and how it ends.
pub(crate) fn odd_accesses(address: u64) -> impl Iterator<Item = Instruction> {
    let at = move |offset: i64, access| fault(address.wrapping_add_signed(offset), access, FaultKind::NonCanonical);
    [
        instruction!(at(0, Access::Write), "stosb"),
        instruction!(at(0, Access::Read), "xchg rsi, rdi", "lodsb"),
        instruction!(at(0, Access::Read), "mov rax, [rdi]"),
        instruction!(at(24, Access::Write), "mov ecx, 2", "mov [rdi + rcx * 8 + 8], rax"),
        instruction!(at(0, Access::Write), "lock add qword ptr [rdi], 1"),
        instruction!(at(0, Access::Read), "cmp byte ptr [rdi], 0"),
        instruction!(at(-8, Access::Write), "mov rsp, rdi", "push rax"),
        instruction!(at(-8, Access::Write), "mov rsp, rdi", "call rax"),
        instruction!(at(0, Access::Read), "mov rsp, rdi", "pop rax"),
        instruction!(at(0, Access::Read), "mov rsp, rdi", "ret"),
        instruction!(at(0, Access::Read), "mov rbp, rdi", "leave"),
        instruction!(at(0, Access::Read), "jmp [rdi]"),
        instruction!(at(0, Access::Execute), "call rdi"),
        instruction!(at(0, Access::Execute), "push rdi", "ret"),
        instruction!(at(0, Access::Execute), "push rdi", "jmp [rsp]"),
    ]
    .into_iter()
}

/// Accesses that `address`, an odd one, makes misaligned.
pub(crate) fn misaligned(address: u64) -> impl Iterator<Item = Instruction> {
    let reason = fault(address, Access::Read, FaultKind::Misaligned);
    [instruction!(reason, "pushfq", "or qword ptr [rsp], 0x40000", "popfq", "mov rax, [rdi]", "ret")].into_iter()
}
