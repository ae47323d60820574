//! What happens on each vector.

use core::{
    mem, ptr,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering},
};

use x86_64::registers::control::{Cr2, Cr3};

use super::{apic, entry::Frame};
use crate::{console::print_unlocked, cpu, exit, fixup, interrupts, panic::Reporter};

/// Vectors below this one are the processor's exceptions.
pub(super) const EXCEPTIONS: u64 = 32;
pub(super) const NMI: u64 = 2;
pub(super) const DOUBLE_FAULT: u64 = 8;
const INVALID_OPCODE: u64 = 6;
const GENERAL_PROTECTION: u64 = 13;
const MACHINE_CHECK: u64 = 18;

static REPORTER: Reporter = Reporter::new();
static NMIS: AtomicU64 = AtomicU64::new(0);
static SPURIOUS: AtomicU64 = AtomicU64::new(0);
static ASYNCHRONOUS: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// How many non-maskable interrupts have arrived.
pub fn nmi_count() -> u64 {
    NMIS.load(Ordering::Relaxed)
}

/// How many spurious interrupts have arrived.
pub fn spurious_count() -> u64 {
    SPURIOUS.load(Ordering::Relaxed)
}

/// Calls `handler` for each non-maskable interrupt and for each machine check, which is fatal otherwise, with the vector and
/// the address it interrupted. It may have interrupted anything, a lock's holder too.
pub fn handle_asynchronous(handler: fn(vector: u8, address: u64)) {
    ASYNCHRONOUS.store(handler as *mut (), Ordering::Release);
}

/// Whether somebody handled it.
fn asynchronous(frame: &Frame) -> bool {
    let handler = ASYNCHRONOUS.load(Ordering::Acquire);
    if handler.is_null() {
        return false;
    }
    // SAFETY: only `handle_asynchronous` stores a non-null value, and that is such a function.
    let handler = unsafe { mem::transmute::<*mut (), fn(u8, u64)>(handler) };
    handler(frame.vector as u8, frame.rip);
    true
}

/// Called by the entry code for each interrupt and exception, with interrupts masked.
pub(super) extern "C" fn on_interrupt(frame: &mut Frame) {
    match frame.vector {
        // May have interrupted anything, a lock's holder too.
        NMI => {
            NMIS.fetch_add(1, Ordering::Relaxed);
            asynchronous(frame);
        }
        INVALID_OPCODE | GENERAL_PROTECTION if let Some(next) = fixup::find(frame.rip) => frame.rip = next,
        MACHINE_CHECK if asynchronous(frame) => {}
        ..EXCEPTIONS => report(frame),
        apic::SPURIOUS => {
            SPURIOUS.fetch_add(1, Ordering::Relaxed);
            // It is in service only if some CPU sent it on purpose.
            apic::acknowledge(apic::SPURIOUS);
        }
        vector => interrupts::handle(vector as usize, frame, || apic::acknowledge(vector)),
    }
}

fn report(frame: &Frame) -> ! {
    let fault_address = Cr2::read_raw();
    // An exception while reporting one must not recurse.
    if !REPORTER.begin() {
        exit::exit(false);
    }
    let (root, _) = Cr3::read();
    let name = name(frame.vector);
    let vector = frame.vector;
    print_unlocked(format_args!(
        "\nexception {vector} ({name}) on CPU {}  cr2 {fault_address:016x}  cr3 {:016x}\n{frame}\n",
        cpu::index(),
        root.start_address()
    ));
    exit::exit(false)
}

fn name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD error",
        20 => "virtualization",
        21 => "control protection",
        28 => "hypervisor injection",
        29 => "VMM communication",
        30 => "security",
        _ => "reserved",
    }
}
