//! The interrupt flag and the interrupt descriptor table.

use core::cell::UnsafeCell;

use x86_64::{
    VirtAddr,
    instructions::{self, tables::lidt},
    structures::{DescriptorTablePointer, idt::Entry},
};

use super::{
    apic::{self, SPURIOUS},
    entry::{STUB_SIZE, interrupt_stubs},
    exceptions::{DOUBLE_FAULT, EXCEPTIONS, NMI},
    segments::{IST_DOUBLE_FAULT, IST_NMI},
};

/// Lines are vectors.
pub const LINES: usize = 256;

/// Lines between CPUs: one whose handler does nothing, and the one behind [`crate::cpu::on_each`].
pub(crate) const KICK: usize = 0xf0;
pub(crate) const CALL: usize = 0xf1;

/// Sends an interrupt to a CPU, which may be this one.
///
/// # Panics
///
/// If no device can have the vector.
pub fn send(cpu: usize, line: usize) {
    apic::send_to(cpu, line as u8);
}

/// Waits for an interrupt, which is handled.
pub fn wait() {
    instructions::interrupts::enable_and_hlt();
}

/// Whether interrupts were enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(bool);

/// Whether interrupts are enabled.
pub fn enabled() -> bool {
    instructions::interrupts::are_enabled()
}

/// Enables interrupts.
pub fn enable() {
    instructions::interrupts::enable();
}

/// Masks interrupts and returns how it was, for [`restore`].
pub fn disable() -> State {
    let state = State(enabled());
    instructions::interrupts::disable();
    state
}

/// Goes back to how it was before a [`disable`].
pub fn restore(state: State) {
    match state {
        State(true) => enable(),
        State(false) => instructions::interrupts::disable(),
    }
}

/// Nothing to do: devices are masked elsewhere, and so is every line of theirs.
///
/// # Panics
///
/// If no device can have the vector.
pub(crate) fn open(line: usize) {
    let vector = line as u64;
    assert!(vector >= EXCEPTIONS && vector != SPURIOUS, "vector {vector} is not a device's");
}

#[repr(C, align(4096))]
struct Table(UnsafeCell<[Entry<()>; LINES]>);

// SAFETY: written once by `init`, before interrupts are enabled; afterwards the processor's.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([Entry::missing(); LINES]));

/// Fills in and loads the table. The descriptor table must be loaded.
pub(super) fn init() {
    // SAFETY: called once, by the boot, before anything else looks at the table.
    let entries = unsafe { &mut *TABLE.0.get() };
    let stubs = &raw const interrupt_stubs as u64;
    for (vector, entry) in (0u64..).zip(entries.iter_mut()) {
        // SAFETY: the stub serves this very vector; the stacks are in the task state segment.
        unsafe {
            let options = entry.set_handler_addr(VirtAddr::new(stubs + STUB_SIZE * vector));
            match vector {
                DOUBLE_FAULT => options.set_stack_index(u16::from(IST_DOUBLE_FAULT - 1)),
                NMI => options.set_stack_index(u16::from(IST_NMI - 1)),
                _ => options,
            };
        }
    }
    load();
}

/// Loads the table on this CPU.
pub(super) fn load() {
    let pointer =
        DescriptorTablePointer { limit: (size_of::<Table>() - 1) as u16, base: VirtAddr::from_ptr(TABLE.0.get()) };
    // SAFETY: the table is complete and lives for ever.
    unsafe { lidt(&pointer) };
}
