//! Exceptions and interrupts.
//!
//! Each vector has a few instructions of its own. They swap the GS bases if a process was interrupted; the NMI's look what is there,
//! since one may come before another entry has swapped them.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicPtr, Ordering};

use x86_64::registers::control::Cr2;
use x86_64::registers::rflags::RFlags;

use crate::console::{exit, println};
use crate::cpu::{self, COUNTERS, count};
use crate::descriptors::{self, CLOCK_STACK, EMERGENCY_STACK};
use crate::{devices, paging, processes};

const NMI: u8 = 2;
const INVALID_OPCODE: u8 = 6;
const DOUBLE_FAULT: u8 = 8;
const GENERAL_PROTECTION: u8 = 13;
/// The legacy interrupt controller's vectors: eight, and eight.
pub(crate) const LEGACY: u8 = 0x28;
/// The tick.
pub(crate) const TICK: u8 = LEGACY;
/// The busy clock.
pub(crate) const CLOCK: u8 = LEGACY + 8;
const SPURIOUS: [u8; 2] = [LEGACY + 7, LEGACY + 15];
/// What the CPU sends itself.
pub(crate) const OWN: u8 = 0x61;
/// The local controller's spurious ones.
pub(crate) const LOCAL_SPURIOUS: u8 = 0xff;

/// What an entry leaves on the stack.
#[repr(C)]
struct Frame {
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

const _: () = assert!(size_of::<Frame>().is_multiple_of(16));

macro_rules! save {
    () => {
        "push rax
        push rcx
        push rdx
        push rbx
        push rbp
        push rsi
        push rdi
        push r8
        push r9
        push r10
        push r11
        push r12
        push r13
        push r14
        push r15
        cld"
    };
}

macro_rules! restore {
    () => {
        "pop r15
        pop r14
        pop r13
        pop r12
        pop r11
        pop r10
        pop r9
        pop r8
        pop rdi
        pop rsi
        pop rbp
        pop rbx
        pop rdx
        pop rcx
        pop rax
        add rsp, 16"
    };
}

/// In: the vector and an error code on top of the CPU's frame. Out: back to what was interrupted.
#[unsafe(naked)]
extern "C" fn ordinary() {
    naked_asm!(
        "test byte ptr [rsp + 24], 3",
        "jz 2f",
        "swapgs",
        "2:",
        save!(),
        "mov rdi, rsp",
        "call {handle}",
        restore!(),
        "test byte ptr [rsp + 8], 3",
        "jz 2f",
        "swapgs",
        "2: iretq",
        handle = sym handle,
    )
}

/// The same for the NMI, which can come anywhere: GS is swapped if it isn't the kernel's.
#[unsafe(naked)]
extern "C" fn anywhere() {
    naked_asm!(
        save!(),
        "call {address}",
        "mov rsi, rax",
        "mov ecx, {base}",
        "rdmsr",
        "shl rdx, 32",
        "or rax, rdx",
        "xor ebx, ebx",
        "cmp rax, rsi",
        "je 2f",
        "inc ebx",
        "swapgs",
        "2: mov rdi, rsp",
        "call {handle}",
        "test ebx, ebx",
        "jz 2f",
        "swapgs",
        "2:",
        restore!(),
        "iretq",
        address = sym cpu::address,
        base = const 0xc000_0101_u32,
        handle = sym handle,
    )
}

#[unsafe(naked)]
extern "C" fn entry<const VECTOR: u8>() {
    naked_asm!("push 0", "push {vector}", "jmp {common}", vector = const VECTOR, common = sym ordinary)
}

/// For exceptions that bring an error code.
#[unsafe(naked)]
extern "C" fn entry_with_error<const VECTOR: u8>() {
    naked_asm!("push {vector}", "jmp {common}", vector = const VECTOR, common = sym ordinary)
}

#[unsafe(naked)]
extern "C" fn nmi_entry() {
    naked_asm!("push 0", "push {vector}", "jmp {common}", vector = const NMI, common = sym anywhere)
}

/// The vectors in use, with the addresses of their entries and their interrupt stacks.
pub(crate) fn handlers() -> impl Iterator<Item = (u8, u64, u8)> {
    macro_rules! entries {
        ($entry:ident: $($vector:expr),*) => { [$(($vector, $entry::<{ $vector }> as extern "C" fn())),*] };
    }
    let exceptions = entries!(entry: 0, 1, 3, 4, 5, 6, 7, 9, 16, 18, 19, 20);
    let with_error = entries!(entry_with_error: 8, 10, 11, 12, 13, 14, 17, 21);
    let interrupts = entries!(entry: TICK, CLOCK, SPURIOUS[0], SPURIOUS[1], OWN, LOCAL_SPURIOUS);
    let all = exceptions.into_iter().chain(with_error).chain(interrupts).chain([(NMI, nmi_entry as extern "C" fn())]);
    all.map(|(vector, entry)| {
        let stack = match vector {
            NMI | DOUBLE_FAULT => EMERGENCY_STACK,
            CLOCK => CLOCK_STACK,
            _ => 0,
        };
        (vector, entry as *const () as u64, stack)
    })
}

static FIXUP: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Asks `fixup` from now on where the kernel's own code goes on after an instruction that the CPU refused.
pub(crate) fn set_fixup(fixup: fn(u64) -> Option<u64>) {
    FIXUP.store(fixup as *mut (), Ordering::Relaxed);
}

fn fixup(at: u64) -> Option<u64> {
    let fixup = FIXUP.load(Ordering::Relaxed);
    if fixup.is_null() {
        return None;
    }
    // SAFETY: only `set_fixup` stores one that isn't null.
    let fixup = unsafe { core::mem::transmute::<*mut (), fn(u64) -> Option<u64>>(fixup) };
    fixup(at)
}

/// Called with interrupts masked.
extern "C" fn handle(frame: &mut Frame) {
    let of_process = frame.cs & 3 != 0;
    let vector = frame.vector as u8;
    check(frame, vector, of_process);
    match vector {
        NMI => count(&COUNTERS.nmi),
        INVALID_OPCODE | GENERAL_PROTECTION if let Some(next) = fixup(frame.rip).filter(|_| !of_process) => {
            frame.rip = next
        }
        ..32 => report(frame),
        _ => {
            if of_process {
                count(&COUNTERS.of_processes);
                descriptors::leave_process();
            }
            interrupt(vector);
            if of_process {
                descriptors::enter_process();
            }
        }
    }
}

/// What must be so in every handler.
fn check(frame: &Frame, vector: u8, of_process: bool) {
    if !cpu::base_is_right() {
        count(&COUNTERS.wrong_base);
    }
    let here = (&raw const *frame).addr() as u64;
    if vector == CLOCK && !descriptors::is_on_clock_stack(here)
        || of_process && vector >= 32 && vector != CLOCK && !processes::is_on_stack(here)
    {
        count(&COUNTERS.wrong_stack);
    }
    let kernel = paging::code().contains(&frame.rip);
    let masked = frame.rflags & RFlags::INTERRUPT_FLAG.bits() == 0;
    if of_process != processes::is_code(frame.rip) || kernel == of_process || vector >= 32 && masked {
        count(&COUNTERS.wrong_frame);
    }
}

fn interrupt(vector: u8) {
    match vector {
        TICK => {
            devices::TICKS.count();
            devices::finish(vector);
            processes::tick();
        }
        CLOCK => {
            count(&COUNTERS.clock);
            devices::rearm_clock();
            devices::finish(vector);
        }
        OWN => {
            count(&COUNTERS.own);
            devices::finish_local();
        }
        // Nothing is in service; the second controller's passes through the first one.
        _ => devices::finish_spurious(vector),
    }
}

fn report(frame: &Frame) -> ! {
    println!(
        "exception {} (error {:#x}) at {:#x}:{:#x}, stack {:#x}, flags {:#x}, address {:#x}",
        frame.vector,
        frame.error,
        frame.cs,
        frame.rip,
        frame.rsp,
        frame.rflags,
        Cr2::read_raw()
    );
    exit(false)
}
