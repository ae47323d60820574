//! The devices: two interval timers and a clock, two kinds of interrupt controllers.
//!
//! The PIT is the tick and the RTC a second, busier clock; both come through the old 8259 controllers, and those through the local APIC's
//! LINT0. The local APIC besides carries what the CPU sends itself. The HPET's counter is the kernel's clock, and one of its
//! comparators a source of NMIs, through the I/O APIC.

use core::sync::atomic::{AtomicU64, Ordering};

use pic8259::ChainedPics;
use x86_64::instructions::interrupts::without_interrupts;
use x86_64::instructions::port::Port;

use crate::lock::Masked;
use crate::paging;
use crate::traps::{LEGACY, LOCAL_SPURIOUS, OWN};

/// The counter of ticks, alone on its page.
#[repr(C, align(4096))]
pub(crate) struct Ticks {
    count: AtomicU64,
    _rest: [u8; 4088],
}

/// The counter of ticks.
pub(crate) static TICKS: Ticks = Ticks { count: AtomicU64::new(0), _rest: [0; 4088] };

impl Ticks {
    /// The page's first word.
    pub(crate) fn counter(&'static self) -> &'static AtomicU64 {
        // SAFETY: the page begins with it, and it is all that is ever accessed.
        unsafe { &*(&raw const *self).cast() }
    }

    /// Counts one.
    pub(crate) fn count(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// So many so far.
    pub(crate) fn now(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

// SAFETY: vectors that nothing else uses.
static LEGACY_CONTROLLERS: Masked<ChainedPics> = Masked::new(unsafe { ChainedPics::new(LEGACY, LEGACY + 8) });
/// All masked but the timer and the second controller; all but the RTC.
const LEGACY_MASKS: [u8; 2] = [!0b101, !1];

/// Where each is asked for what it has in service.
const LEGACY_COMMANDS: [u16; 2] = [0x20, 0xa0];
const READ_IN_SERVICE: u8 = 0x0b;

/// The 8254's channel 0 as a rate generator, and its count for a thousandth of a second.
const TIMER_COMMAND: u16 = 0x43;
const TIMER_CHANNEL: u16 = 0x40;
const RATE_GENERATOR: u8 = 0b0011_0100;
const TIMER_COUNT: u16 = 1193;

/// The MC146818's registers: rate, control, cause. 2048 interrupts a second.
const CLOCK_INDEX: u16 = 0x70;
const CLOCK_DATA: u16 = 0x71;
const CLOCK_RATE: u8 = 0x0a;
const CLOCK_CONTROL: u8 = 0x0b;
const CLOCK_CAUSE: u8 = 0x0c;
const RATE: u8 = 5;
const PERIODIC: u8 = 1 << 6;

/// The local APIC.
const LOCAL: u64 = 0xfee0_0000;
const LOCAL_ID: u64 = 0x20;
const LOCAL_EOI: u64 = 0xb0;
const LOCAL_SPURIOUS_VECTOR: u64 = 0xf0;
const LOCAL_IN_SERVICE: u64 = 0x100;
const LOCAL_COMMAND: u64 = 0x300;
const LOCAL_COMMAND_HIGH: u64 = 0x310;
const LINT0: u64 = 0x350;
const LINT1: u64 = 0x360;
const LOCAL_ENABLED: u32 = 1 << 8;
const EXTERNAL: u32 = 0b111 << 8;
const NMI: u32 = 0b100 << 8;
const ASSERT: u32 = 1 << 14;
const PENDING: u32 = 1 << 12;

/// The I/O APIC: index, data, and the entry of the input that the HPET is led to.
pub(crate) const IO_APIC: u64 = 0xfec0_0000;
const IO_DATA: u64 = 0x10;
const INPUT: u32 = 20;
const ENTRY: u32 = 0x10 + 2 * INPUT;

/// The HPET: its control and counter, and the first comparator's control and value.
const HPET: u64 = 0xfed0_0000;
const HPET_PERIOD: u64 = 0x04;
const HPET_CONTROL: u64 = 0x10;
const HPET_COUNTER: u64 = 0xf0;
const COMPARATOR_CONTROL: u64 = 0x100;
const COMPARATOR: u64 = 0x108;
const COMPARATOR_ON: u32 = 1 << 2;
const COMPARATOR_INPUT: u32 = INPUT << 9;
const FEMTOSECONDS: u128 = 1_000_000;
/// One step of `nmi_after`, as long as one of the 8254's.
const STEP: u64 = 838_000_000;

fn register(device: u64, offset: u64) -> *mut u32 {
    core::ptr::with_exposed_provenance_mut((paging::device(device) + offset) as usize)
}

fn read(device: u64, offset: u64) -> u32 {
    // SAFETY: a device's register, mapped for good.
    unsafe { register(device, offset).read_volatile() }
}

fn write(device: u64, offset: u64, value: u32) {
    // SAFETY: as above; none of those written here touches memory.
    unsafe { register(device, offset).write_volatile(value) }
}

fn out(port: u16, value: u8) {
    // SAFETY: a PC's timer and clock, which only this module uses.
    unsafe { Port::new(port).write(value) }
}

fn clock_register(index: u8) -> u8 {
    out(CLOCK_INDEX, index);
    // SAFETY: as above.
    unsafe { Port::new(CLOCK_DATA).read() }
}

/// Sets everything up, with interrupts masked.
pub(crate) fn init() {
    write(LOCAL, LOCAL_SPURIOUS_VECTOR, LOCAL_ENABLED | u32::from(LOCAL_SPURIOUS));
    write(LOCAL, LINT0, EXTERNAL);
    write(LOCAL, LINT1, NMI);
    write(HPET, HPET_CONTROL, 1);
    // SAFETY: vectors that have handlers.
    LEGACY_CONTROLLERS.with(|controllers| unsafe {
        controllers.initialize();
        controllers.write_masks(LEGACY_MASKS[0], LEGACY_MASKS[1]);
    });
    let [low, high] = TIMER_COUNT.to_le_bytes();
    out(TIMER_COMMAND, RATE_GENERATOR);
    out(TIMER_CHANNEL, low);
    out(TIMER_CHANNEL, high);
    let rate = clock_register(CLOCK_RATE) & 0xf0 | RATE;
    out(CLOCK_INDEX, CLOCK_RATE);
    out(CLOCK_DATA, rate);
    let control = clock_register(CLOCK_CONTROL) | PERIODIC;
    out(CLOCK_INDEX, CLOCK_CONTROL);
    out(CLOCK_DATA, control);
    rearm_clock();
}

/// Lets the busy clock interrupt again.
pub(crate) fn rearm_clock() {
    clock_register(CLOCK_CAUSE);
}

/// Tells the legacy controllers that an interrupt was handled.
pub(crate) fn finish(vector: u8) {
    // SAFETY: it is in service there.
    LEGACY_CONTROLLERS.with(|controllers| unsafe { controllers.notify_end_of_interrupt(vector) });
}

/// Tells the local one.
pub(crate) fn finish_local() {
    write(LOCAL, LOCAL_EOI, 0);
}

/// The second legacy controller's spurious interrupts are in service at the first one.
pub(crate) fn finish_spurious(vector: u8) {
    if vector == LEGACY + 15 {
        finish(LEGACY + 2);
    }
}

/// What of the interrupt controllers stays as it is while interrupts are masked: nothing is in service.
pub(crate) fn settings() -> impl Iterator<Item = (&'static str, u64)> {
    let legacy = LEGACY_COMMANDS.map(|port| {
        out(port, READ_IN_SERVICE);
        // SAFETY: reading has no effect.
        u64::from(unsafe { Port::<u8>::new(port).read() })
    });
    // SAFETY: as above.
    let masks = LEGACY_CONTROLLERS.with(|controllers| unsafe { controllers.read_masks() });
    let in_service = (0..8).map(|word| ("local APIC, in service", LOCAL_IN_SERVICE + 0x10 * word));
    let local = [
        ("local APIC, spurious vector", LOCAL_SPURIOUS_VECTOR),
        ("local APIC, LINT0", LINT0),
        ("local APIC, LINT1", LINT1),
    ];
    let local = local.into_iter().chain(in_service).map(|(name, offset)| (name, u64::from(read(LOCAL, offset))));
    legacy
        .map(|value| ("8259, in service", value))
        .into_iter()
        .chain(masks.map(|mask| ("8259, mask", mask.into())))
        .chain(local)
}

fn send(command: u32) {
    without_interrupts(|| {
        write(LOCAL, LOCAL_COMMAND_HIGH, read(LOCAL, LOCAL_ID));
        write(LOCAL, LOCAL_COMMAND, command | ASSERT);
        while read(LOCAL, LOCAL_COMMAND) & PENDING != 0 {}
    });
}

/// Sends this CPU an interrupt.
pub(crate) fn send_own() {
    send(OWN.into());
}

/// Sends this CPU an NMI.
pub(crate) fn send_nmi() {
    send(NMI);
}

fn counter() -> u64 {
    loop {
        let high = read(HPET, HPET_COUNTER + 4);
        let low = read(HPET, HPET_COUNTER);
        if read(HPET, HPET_COUNTER + 4) == high {
            return u64::from(high) << 32 | u64::from(low);
        }
    }
}

/// Nanoseconds since the start.
pub(crate) fn now() -> u64 {
    (u128::from(counter()) * u128::from(read(HPET, HPET_PERIOD)) / FEMTOSECONDS) as u64
}

/// Makes an NMI arrive after so many steps of 838 nanoseconds.
pub(crate) fn nmi_after(steps: u16) {
    without_interrupts(|| {
        for (index, value) in [(ENTRY + 1, 0), (ENTRY, NMI)] {
            write(IO_APIC, 0, index);
            write(IO_APIC, IO_DATA, value);
        }
        // The counter stands meanwhile, so that no half of a value can match.
        write(HPET, HPET_CONTROL, 0);
        let at = counter() + u64::from(steps.max(1)) * STEP / u64::from(read(HPET, HPET_PERIOD));
        write(HPET, COMPARATOR_CONTROL, COMPARATOR_ON | COMPARATOR_INPUT);
        write(HPET, COMPARATOR, at as u32);
        write(HPET, COMPARATOR + 4, (at >> 32) as u32);
        write(HPET, HPET_CONTROL, 1);
    });
}
