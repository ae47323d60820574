//! The local APIC, through its registers in memory.

use core::sync::atomic::{AtomicU64, Ordering};

use super::local;
use crate::{cpu, interrupts::without, layout::PAGE_SIZE, paging};

/// The vector of spurious interrupts. Its low bits must be set on old parts.
pub const SPURIOUS: u64 = 0xff;

const PHYSICAL: u64 = 0xfee0_0000;
const SIZE: u64 = PAGE_SIZE;

const ID: u64 = 0x20;
const TASK_PRIORITY: u64 = 0x80;
const PROCESSOR_PRIORITY: u64 = 0xa0;
const LOGICAL_DESTINATION: u64 = 0xd0;
const DESTINATION_FORMAT: u64 = 0xe0;
const END_OF_INTERRUPT: u64 = 0xb0;
const SPURIOUS_VECTOR: u64 = 0xf0;
const IN_SERVICE: u64 = 0x100;
const COMMAND: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const TIMER: u64 = 0x320;
const LINT0: u64 = 0x350;
const LINT1: u64 = 0x360;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

const ENABLED: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DELIVER_NMI: u32 = 0b100 << 8;
const DELIVER_INIT: u32 = 0b101 << 8;
const DELIVER_STARTUP: u32 = 0b110 << 8;
const TO_OTHERS: u32 = 0b11 << 18;
/// Where an APIC's number stands in ID and COMMAND_HIGH.
const NUMBER_SHIFT: u32 = 24;
const ASSERT: u32 = 1 << 14;
const PENDING: u32 = 1 << 12;
const DIVIDE_BY_16: u32 = 0b0011;

/// Address of the registers; 0 before `init`.
static BASE: AtomicU64 = AtomicU64::new(0);

fn register(offset: u64) -> *mut u32 {
    let base = BASE.load(Ordering::Relaxed);
    assert!(base != 0, "the local APIC is not set up yet");
    (base + offset) as *mut u32
}

fn read(offset: u64) -> u32 {
    // SAFETY: `init` mapped the registers, and `offset` is one of the constants above.
    unsafe { register(offset).read_volatile() }
}

fn write(offset: u64, value: u32) {
    // SAFETY: as in `read`; no register is able to touch memory.
    unsafe { register(offset).write_volatile(value) }
}

/// Maps the registers, which are at one address for all CPUs, and enables this CPU's APIC.
pub(super) fn init() {
    BASE.store(paging::map_device(PHYSICAL, SIZE) as u64, Ordering::Relaxed);
    init_cpu();
}

/// Enables this CPU's APIC: timer off, external interrupts off, NMI line open.
pub(super) fn init_cpu() {
    cpu::local().machine.apic.store(read(ID) >> NUMBER_SHIFT, Ordering::Relaxed);
    write(TIMER, MASKED);
    write(LINT0, MASKED);
    write(LINT1, DELIVER_NMI);
    write(TASK_PRIORITY, 0);
    write(SPURIOUS_VECTOR, ENABLED | SPURIOUS as u32);
}

/// Ends a vector's service. One that isn't in service (raised by `int`, or by the old interrupt
/// controller) is left alone: ending it would end another one's.
pub(super) fn acknowledge(vector: u64) {
    let word = read(IN_SERVICE + vector / 32 * 0x10);
    if word >> (vector % 32) & 1 != 0 {
        write(END_OF_INTERRUPT, 0);
    }
}

/// Starts the timer: an interrupt each `count` of its steps, or, with `None`, a silent countdown
/// from the highest count.
pub(super) fn start_timer(vector: u8, count: Option<u32>) {
    write(DIVIDE, DIVIDE_BY_16);
    write(TIMER, u32::from(vector) | if count.is_some() { PERIODIC } else { MASKED });
    write(INITIAL_COUNT, count.unwrap_or(u32::MAX));
}

/// Has the timer interrupt once, after `count` of its steps.
pub(super) fn start_alarm(vector: u8, count: u32) {
    write(DIVIDE, DIVIDE_BY_16);
    write(TIMER, u32::from(vector));
    write(INITIAL_COUNT, count);
}

/// Steps since the timer was last started for a silent countdown.
pub(super) fn timer_steps() -> u32 {
    u32::MAX - read(CURRENT_COUNT)
}

/// Stops the timer.
pub(super) fn stop_timer() {
    write(TIMER, MASKED);
    write(INITIAL_COUNT, 0);
}

/// What of this CPU's APIC stays the same while nobody sets it up differently: for a thread with interrupts masked, nothing is in
/// service.
pub fn settings() -> impl Iterator<Item = (&'static str, u64)> {
    let in_service = (0..8).map(|word| ("local APIC, in service", IN_SERVICE + word * 0x10));
    [
        ("local APIC, task priority", TASK_PRIORITY),
        ("local APIC, processor priority", PROCESSOR_PRIORITY),
        ("local APIC, logical destination", LOGICAL_DESTINATION),
        ("local APIC, destination format", DESTINATION_FORMAT),
        ("local APIC, spurious vector", SPURIOUS_VECTOR),
        ("local APIC, timer", TIMER),
        ("local APIC, LINT0", LINT0),
        ("local APIC, LINT1", LINT1),
        ("local APIC, initial count", INITIAL_COUNT),
        ("local APIC, divider", DIVIDE),
    ]
    .into_iter()
    .chain(in_service)
    .map(|(name, offset)| (name, read(offset).into()))
}

/// Sends this CPU an interrupt, as a device would.
///
/// # Panics
///
/// If the vector is one of the processor's exceptions.
pub fn raise(vector: u8) {
    without(|| send_to(cpu::index(), vector));
}

/// Sends this CPU a non-maskable interrupt.
pub fn raise_nmi() {
    without(|| send_nmi_to(cpu::index()));
}

/// Sends a CPU an interrupt, as a device would.
///
/// # Panics
///
/// If the vector is one of the processor's exceptions.
pub fn send_to(cpu: usize, vector: u8) {
    assert!(u64::from(vector) >= super::exceptions::EXCEPTIONS, "vector {vector} is an exception's");
    send(local::apic_of(cpu), u32::from(vector));
}

/// Sends a CPU a non-maskable interrupt.
pub fn send_nmi_to(cpu: usize) {
    send(local::apic_of(cpu), DELIVER_NMI);
}

/// Resets the other CPUs.
pub(super) fn send_init_to_others() {
    send(0, DELIVER_INIT | TO_OTHERS);
}

/// Starts the other CPUs, after [`send_init_to_others`], at the beginning of a page below 1 MiB.
pub(super) fn send_startup_to_others(page: u8) {
    send(0, DELIVER_STARTUP | TO_OTHERS | u32::from(page));
}

/// Sends by number: the shorthand for «self» does not carry NMIs.
fn send(number: u32, command: u32) {
    // A handler that sends in between would send this to its own target.
    without(|| {
        write(COMMAND_HIGH, number << NUMBER_SHIFT);
        write(COMMAND, command | ASSERT);
        while read(COMMAND) & PENDING != 0 {
            core::hint::spin_loop();
        }
    });
}
