//! Unusual state of the host's on x86-64, and what a sandbox can do to it.

use alloc::vec::Vec;
use core::arch::{asm, naked_asm};
use core::sync::atomic::Ordering;

use x86_64::VirtAddr;
use x86_64::instructions::interrupts::without_interrupts;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::model_specific::{FsBase, GsBase, KernelGsBase};
use x86_64::registers::rflags::RFlags;
use x86_64::registers::segmentation::{DS, ES, FS, GS, Segment, SegmentSelector};

use super::x86_64_exceptions::with_debugger;
use super::{Spoiler, THREAD_BASE_IN_USE};

fn has_pkru() -> bool {
    Cr4::read().contains(Cr4Flags::PROTECTION_KEY_USER)
}

fn has_fsgsbase() -> bool {
    Cr4::read().contains(Cr4Flags::FSGSBASE)
}

fn set_pkru(value: u64) {
    // SAFETY: called with CR4.PKE on; the kernel has no pages for user code.
    unsafe { asm!("wrpkru", in("ecx") 0, in("eax") value as u32, in("edx") 0, options(nostack)) };
}

/// The kernel's data segment, as far as `x86_64`'s own tables and most kernels have it.
const DATA: SegmentSelector = SegmentSelector(0x10);
const SECRET_BASE: u64 = 0xffff_8765_4321_0000;
/// PKRU: every key but the first is closed.
const PKRU: u64 = 0xffff_fffc;
/// DR7: breakpoint 0 is armed, for execution.
const EXECUTION_BREAKPOINT: u64 = 1 | 1 << 10;

/// Runs `work` with registers at values that a host might have there: a sandbox must neither see them nor leave others.
///
/// Floating point works for the host then, and a breakpoint is armed on a function that sandboxes call.
pub(crate) fn with_unusual_state(work: &mut dyn FnMut()) {
    let before = (Cr0::read(), FsBase::read(), GsBase::read(), KernelGsBase::read());
    let segments = (DS::get_reg(), ES::get_reg(), FS::get_reg(), GS::get_reg());
    let keeps_gs = THREAD_BASE_IN_USE.load(Ordering::Relaxed);
    // A kernel that finds its own data through GS has an unusual base already.
    let gs_base = if before.2.is_null() { VirtAddr::new(SECRET_BASE + 0x1000) } else { before.2 };
    // Loading GS loses its base, which interrupt handlers may need.
    let set_gs = |selector, base| {
        if keeps_gs {
            return;
        }
        without_interrupts(|| {
            // SAFETY: a flat segment, and the base that the kernel has or doesn't use.
            unsafe { GS::set_reg(selector) };
            GsBase::write(base);
        });
    };
    // SAFETY: nothing in the kernel uses these: no thread locals, no floating point, flat segments, no debug registers; it says so
    // of GS. All are put back below.
    unsafe {
        DS::set_reg(DATA);
        ES::set_reg(DATA);
        FS::set_reg(DATA);
        set_gs(DATA, gs_base);
        FsBase::write(VirtAddr::new(SECRET_BASE));
        KernelGsBase::write(VirtAddr::new(SECRET_BASE + 0x2000));
        Cr0::write(before.0 - Cr0Flags::TASK_SWITCHED - Cr0Flags::EMULATE_COPROCESSOR);
        asm!("mov dr0, {}", in(reg) spoil_and_return as *const () as u64, options(nomem, nostack));
        asm!("mov dr7, {}", in(reg) EXECUTION_BREAKPOINT, options(nomem, nostack));
        if has_pkru() {
            set_pkru(PKRU);
        }
        // The breakpoint is the host's, and hits in sandboxes.
        with_debugger(|_| work());
        if has_pkru() {
            set_pkru(0);
        }
        asm!("mov dr7, {}", in(reg) 1u64 << 10, options(nomem, nostack));
        asm!("mov dr0, {}", in(reg) 0u64, options(nomem, nostack));
        Cr0::write(before.0);
        DS::set_reg(segments.0);
        ES::set_reg(segments.1);
        FS::set_reg(segments.2);
        set_gs(segments.3, before.2);
        FsBase::write(before.1);
        KernelGsBase::write(before.3);
    }
}

/// Puts `value` into xmm0 to xmm15.
pub(crate) fn fill_vectors(value: u64) {
    if !Cr4::read().contains(Cr4Flags::OSFXSR) {
        return;
    }
    let cr0 = Cr0::read();
    // SAFETY: the kernel itself uses none of them, and these instructions alone run with CR0 changed.
    unsafe {
        Cr0::write(cr0 - Cr0Flags::TASK_SWITCHED - Cr0Flags::EMULATE_COPROCESSOR);
        asm!(
            ".irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
            "movq xmm\\number, {value}",
            "pshufd xmm\\number, xmm\\number, 0x44",
            ".endr",
            value = in(reg) value,
            options(nomem, nostack, preserves_flags),
        );
        Cr0::write(cr0);
    }
}

/// Sets every flag and segment register that unprivileged code can set, then returns to the host on the spot.
#[unsafe(naked)]
extern "C" fn spoil_and_return() {
    naked_asm!(
        "mov eax, ss",
        "mov ds, eax",
        "mov es, eax",
        "mov fs, eax",
        "mov gs, eax",
        "xor eax, eax",
        "push {flags}",
        "popfq",
        "int 4",
        flags = const SPOILED_FLAGS,
    )
}

/// The same, then ends by a fault.
#[unsafe(naked)]
extern "C" fn spoil_and_fault() {
    naked_asm!(
        "mov eax, ss",
        "mov ds, eax",
        "mov es, eax",
        "mov fs, eax",
        "mov gs, eax",
        "push {flags}",
        "popfq",
        "ud2",
        flags = const SPOILED_FLAGS,
    )
}

/// Sets the flags, the trap flag among them, with the return as the next instruction.
#[unsafe(naked)]
extern "C" fn trap_and_return() {
    naked_asm!("xor eax, eax", "push {flags}", "popfq", "int 4", flags = const SPOILED_FLAGS | RFlags::TRAP_FLAG.bits() as i32)
}

/// Writes the bases of FS and GS, where the host has that on.
#[unsafe(naked)]
extern "C" fn spoil_bases() {
    naked_asm!("mov rax, 0x123456789000", "wrfsbase rax", "wrgsbase rax", "ud2")
}

/// Closes every protection key but the first, where the host has that on.
#[unsafe(naked)]
extern "C" fn spoil_pkru() {
    naked_asm!("xor ecx, ecx", "xor edx, edx", "mov eax, 0x55555554", "wrpkru", "xor eax, eax", "int 4")
}

const SPOILED_FLAGS: i32 = (RFlags::DIRECTION_FLAG.bits()
    | RFlags::ALIGNMENT_CHECK.bits()
    | RFlags::NESTED_TASK.bits()
    | RFlags::ID.bits()
    | RFlags::OVERFLOW_FLAG.bits()
    | RFlags::CARRY_FLAG.bits()) as i32;

/// Everything that unprivileged code can change.
pub(crate) fn spoilers() -> Vec<Spoiler> {
    let mut all = Vec::from([
        Spoiler::new("flags and selectors", true, spoil_and_return),
        Spoiler::new("flags and selectors", false, spoil_and_fault),
        Spoiler::new("the trap flag", true, trap_and_return),
        Spoiler::new("general registers", false, super::spoil_registers),
        Spoiler::new("general registers", true, super::spoil_registers_and_return),
    ]);
    if has_fsgsbase() {
        all.push(Spoiler::new("FS and GS base", false, spoil_bases));
    }
    if has_pkru() {
        all.push(Spoiler::new("PKRU", true, spoil_pkru));
    }
    all
}

#[unsafe(naked)]
extern "C" fn read_fs_base() -> u64 {
    naked_asm!("rdfsbase rax", "ret")
}

#[unsafe(naked)]
extern "C" fn read_gs_base() -> u64 {
    naked_asm!("rdgsbase rax", "ret")
}

#[unsafe(naked)]
extern "C" fn read_pkru() -> u64 {
    naked_asm!("xor ecx, ecx", "rdpkru", "ret")
}

/// All flags but the arithmetic ones, and those that are no secret: the interrupt flag, and bit 1, which is always set.
#[unsafe(naked)]
extern "C" fn read_flags() -> u64 {
    naked_asm!("pushfq", "pop rax", "and eax, {mask}", "ret", mask = const !0x2_02d7_i32)
}

/// The linear address of offset 0 in the segment of GS, from the fault that using it makes.
#[unsafe(naked)]
pub(crate) extern "C" fn use_thread_base() {
    naked_asm!("mov rax, gs:[0]", "ret")
}

/// What a sandbox can read of registers that are neither general nor its own: each must read as zero.
pub(crate) fn readable_state() -> Vec<(&'static str, extern "C" fn() -> u64)> {
    let mut all: Vec<(_, extern "C" fn() -> u64)> = Vec::from([("flags", read_flags as extern "C" fn() -> u64)]);
    if has_fsgsbase() {
        all.push(("FS base", read_fs_base));
        all.push(("GS base", read_gs_base));
    }
    if has_pkru() {
        all.push(("PKRU", read_pkru));
    }
    all
}
