//! What unprivileged code can set on x86-64, all at once, and what it can read.

use alloc::vec::Vec;
use core::arch::naked_asm;

use sandbox_mode::{Access, ExitReason, FaultKind};
use x86_64::registers::rflags::RFlags;

use super::{End, PATTERN, Poisoner, Registers};
use crate::probe::fault;

/// Features that a poisoner may use.
const BASES: u64 = 1 << 0;
const KEYS: u64 = 1 << 1;

/// What goes into the bases of FS and GS: canonical, the pattern as far as may be.
const BASE: u64 = 0x0000_5ec2_e75e_c2e7;
/// PKRU: no key but the first.
const POISON_PKRU: u32 = 0x5555_5554;

/// Flags that a resumed run keeps.
const KEPT: u64 = RFlags::CARRY_FLAG.bits()
    | RFlags::PARITY_FLAG.bits()
    | RFlags::AUXILIARY_CARRY_FLAG.bits()
    | RFlags::ZERO_FLAG.bits()
    | RFlags::SIGN_FLAG.bits()
    | RFlags::OVERFLOW_FLAG.bits()
    | RFlags::DIRECTION_FLAG.bits()
    | RFlags::ALIGNMENT_CHECK.bits();
/// All that `popfq` takes from unprivileged code without effect on the next instruction.
const FLAGS: u64 = KEPT | RFlags::NESTED_TASK.bits() | RFlags::ID.bits();

/// Sets segments, bases, keys, flags and all registers but RSP, then does `$end`.
macro_rules! poison {
    ($($end:literal),+ $(; $name:ident = const $value:expr)?) => {
        naked_asm!(
            "mov eax, ss",
            "mov ds, eax",
            "mov fs, eax",
            "mov gs, eax",
            "mov eax, 3",
            "mov es, eax",
            "test dil, {bases}",
            "jz 2f",
            "mov rax, {base}",
            "wrfsbase rax",
            "wrgsbase rax",
            "2: test dil, {keys}",
            "jz 2f",
            "xor ecx, ecx",
            "xor edx, edx",
            "mov eax, {pkru}",
            "wrpkru",
            "2: push {flags}",
            "popfq",
            "mov rax, {pattern}",
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
            $($end,)+
            bases = const BASES,
            base = const BASE,
            keys = const KEYS,
            pkru = const POISON_PKRU,
            flags = const FLAGS,
            pattern = const PATTERN,
            $($name = const $value,)?
        )
    };
}

#[unsafe(naked)]
extern "C" fn poison_and_return() {
    poison!("mov rsp, rax", "mov eax, 0", "int 4")
}

const CALL: u64 = 77;

#[unsafe(naked)]
extern "C" fn poison_and_call() {
    poison!("mov rsp, rax", "mov eax, {call}", "int 4"; call = const CALL)
}

#[unsafe(naked)]
extern "C" fn poison_and_be_illegal() {
    poison!("mov rsp, rax", "ud2")
}

#[unsafe(naked)]
extern "C" fn poison_and_load() {
    poison!("mov rsp, rax", "mov ecx, 0", "mov rcx, [rcx]")
}

#[unsafe(naked)]
extern "C" fn poison_and_load_nowhere() {
    poison!("mov rsp, rax", "mov rcx, [rbx]")
}

#[unsafe(naked)]
extern "C" fn poison_and_step() {
    poison!("push {trapping}", "popfq", "nop", "2: jmp 2b"; trapping = const FLAGS | RFlags::TRAP_FLAG.bits())
}

#[unsafe(naked)]
extern "C" fn poison_and_spin() {
    poison!("mov rsp, rax", "2: jmp 2b")
}

/// One for each way out.
pub(crate) fn poisoners() -> Vec<Poisoner> {
    let poisoner = |what, code: extern "C" fn(), end| Poisoner { what, code, end };
    Vec::from([
        poisoner("a return", poison_and_return, End::Returns),
        poisoner("a host call", poison_and_call, End::Exits(ExitReason::HostCall(CALL))),
        poisoner("an illegal instruction", poison_and_be_illegal, End::Exits(ExitReason::IllegalInstruction)),
        poisoner("a page fault", poison_and_load, End::Exits(fault(0, Access::Read, FaultKind::Unmapped))),
        poisoner(
            "a general-protection fault",
            poison_and_load_nowhere,
            End::Exits(fault(PATTERN, Access::Read, FaultKind::NonCanonical)),
        ),
        poisoner("a single step", poison_and_step, End::Exits(ExitReason::SingleStep)),
        poisoner("an interrupt", poison_and_spin, End::Spins),
    ])
}

#[unsafe(naked)]
extern "C" fn try_bases() {
    naked_asm!("rdfsbase rax", "wrfsbase rax", "ret")
}

#[unsafe(naked)]
extern "C" fn try_keys() {
    naked_asm!("xor ecx, ecx", "rdpkru", "ret")
}

/// Functions that return where the feature of the number can be used.
pub(crate) fn poison_probes() -> Vec<(u64, extern "C" fn())> {
    Vec::from([(BASES, try_bases as extern "C" fn()), (KEYS, try_keys)])
}

/// What a poisoner that spins has set and an interrupted run must keep: what it is, what it must be.
pub(crate) fn poisoned(registers: &Registers, features: u64) -> Vec<(&'static str, u64, u64)> {
    let mut all: Vec<_> = general(registers).into_iter().map(|(name, value)| (name, value, PATTERN)).collect();
    all.push(("flags", registers.frame.rflags & KEPT, KEPT));
    if features & BASES != 0 {
        all.push(("FS base", registers.fs_base, BASE));
        all.push(("GS base", registers.gs_base, BASE));
    }
    if features & KEYS != 0 {
        all.push(("PKRU", registers.pkru.into(), POISON_PKRU.into()));
    }
    all
}

fn general(registers: &Registers) -> [(&'static str, u64); 16] {
    let f = &registers.frame;
    [
        ("rax", f.rax),
        ("rbx", f.rbx),
        ("rcx", f.rcx),
        ("rdx", f.rdx),
        ("rsi", f.rsi),
        ("rdi", f.rdi),
        ("rbp", f.rbp),
        ("rsp", f.rsp),
        ("r8", f.r8),
        ("r9", f.r9),
        ("r10", f.r10),
        ("r11", f.r11),
        ("r12", f.r12),
        ("r13", f.r13),
        ("r14", f.r14),
        ("r15", f.r15),
    ]
}

/// What was in the registers of an interrupted run, as far as it can be read there.
pub(crate) fn visible(registers: &Registers) -> Vec<(&'static str, u64)> {
    let mut all = Vec::from(general(registers));
    all.extend([
        ("flags", registers.frame.rflags),
        ("FS base", registers.fs_base),
        ("GS base", registers.gs_base),
        ("PKRU", registers.pkru.into()),
    ]);
    all
}

macro_rules! reads {
    ($($name:literal: $($instruction:literal),+;)+) => {
        Vec::from([$({
            #[unsafe(naked)]
            extern "C" fn code() -> u64 {
                naked_asm!("xor eax, eax", "xor ecx, ecx", "xor edx, edx", $($instruction,)+ "ret")
            }
            ($name, code as *const () as u64)
        }),+])
    };
}

/// Functions that return what they read of other registers, where they can. Not SGDT and SIDT: without UMIP they name the gate's
/// data, which is no secret.
pub(crate) fn reads() -> Vec<(&'static str, u64)> {
    reads! {
        "flags": "pushfq", "pop rax";
        "CS": "mov eax, cs";
        "SS": "mov eax, ss";
        "DS": "mov eax, ds";
        "ES": "mov eax, es";
        "FS": "mov eax, fs";
        "GS": "mov eax, gs";
        "FS base": "rdfsbase rax";
        "GS base": "rdgsbase rax";
        "PKRU": "rdpkru";
        "TSC_AUX": "rdtscp", "mov eax, ecx";
        "TSC_AUX by RDPID": ".byte 0xf3, 0x0f, 0xc7, 0xf8";
        "performance counter 0": "rdpmc", "shl rdx, 32", "or rax, rdx";
        "XCR0": "xgetbv", "shl rdx, 32", "or rax, rdx";
        "CR0 by SMSW": "smsw rax";
        "LDTR": "sldt rax";
        "TR": "str rax";
        "xmm0": "movq rax, xmm0";
    }
}
