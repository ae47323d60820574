//! The clock and what interrupts this kernel all the time: a tick, a second timer as FIQ, and a device.
//!
//! The tick (the virtual timer) moves a counter that sandboxes may read and lets threads switch; each one also makes a
//! software-generated interrupt. Without the tick, the same timer fires once when the HAL asks for it.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sandbox_mode::{Error, PageRange, Permissions, Sandbox, VirtAddr};

use crate::gic::{self, Kind};
use crate::host::Foreign;
use crate::layout::{PAGE, device};
use crate::machine::Machine;
use crate::registers::{read, write};
use crate::tables;

/// Interrupt numbers: the timers', the PL031's, and software-generated ones.
pub(crate) const TICK: u32 = 27;
pub(crate) const SECOND_TIMER: u32 = 30;
pub(crate) const CLOCK: u32 = 32 + 2;
pub(crate) const AFTER_TICK: u32 = 5;

/// How often the timers fire in a second.
const TICK_RATE: u64 = 1000;
const SECOND_RATE: u64 = 700;

/// CNTV_CTL_EL0 and CNTP_CTL_EL0: enabled and not masked.
const ON: u64 = 1;
const OFF: u64 = 0;

/// Registers of the PL031 (its TRM, section 3.1): seconds, when to interrupt, whether, acknowledgement.
const SECONDS: usize = 0x00;
const MATCH: usize = 0x04;
const ENABLE: usize = 0x10;
const CLEAR: usize = 0x1c;

/// A counter alone on its page, so that a sandbox can be granted it and nothing else.
#[repr(C, align(4096))]
pub(crate) struct Counter {
    pub(crate) count: AtomicU64,
    rest: [u8; PAGE as usize - size_of::<AtomicU64>()],
}

impl Counter {
    pub(crate) const fn new() -> Counter {
        Counter { count: AtomicU64::new(0), rest: [0; _] }
    }

    /// What it says.
    pub(crate) fn get(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// One more.
    pub(crate) fn count(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often each fired.
pub(crate) static TICKS: Counter = Counter::new();
pub(crate) static FAST_TICKS: Counter = Counter::new();
pub(crate) static AFTER_TICKS: Counter = Counter::new();
pub(crate) static ALARMS: Counter = Counter::new();
/// How often the timer fired because the HAL asked.
pub(crate) static ONE_SHOTS: Counter = Counter::new();

static TICKING: AtomicBool = AtomicBool::new(false);
static CLOCK_REGISTERS: AtomicU64 = AtomicU64::new(0);

/// Prepares all of it; nothing fires before [`start_ticking`].
pub(crate) fn start(machine: &Machine) {
    tables::map_device(machine.clock, PAGE).expect("memory for tables");
    CLOCK_REGISTERS.store(machine.clock, Ordering::Relaxed);
    gic::enable(TICK, Kind::Irq);
    gic::enable(SECOND_TIMER, Kind::Fiq);
    gic::enable(CLOCK, Kind::Irq);
    gic::enable(AFTER_TICK, Kind::Irq);
}

/// The address at which the clock's registers are mapped.
pub(crate) fn device_registers() -> u64 {
    clock(0).expose_provenance() as u64
}

fn clock(register: usize) -> *mut u32 {
    device(CLOCK_REGISTERS.load(Ordering::Relaxed)).wrapping_add(register).cast()
}

fn alarm_in_a_second() {
    // SAFETY: the PL031's registers, which this module alone drives.
    unsafe { clock(MATCH).write_volatile(clock(SECONDS).read_volatile().wrapping_add(1)) };
}

/// Starts everything that interrupts by itself.
pub(crate) fn start_ticking() {
    TICKING.store(true, Ordering::Relaxed);
    alarm_in_a_second();
    // SAFETY: this module's own devices, whose interrupts the kernel handles.
    unsafe {
        clock(ENABLE).write_volatile(1);
        write!("cntv_cval_el0", counter() + frequency() / TICK_RATE);
        write!("cntv_ctl_el0", ON);
        write!("cntp_cval_el0", read!("cntpct_el0") + frequency() / SECOND_RATE);
        write!("cntp_ctl_el0", ON);
    }
}

/// Whether anything interrupts by itself.
pub(crate) fn is_ticking() -> bool {
    TICKING.load(Ordering::Relaxed)
}

/// Stops everything that interrupts by itself.
pub(crate) fn stop_ticking() {
    TICKING.store(false, Ordering::Relaxed);
    // SAFETY: as in `start_ticking`.
    unsafe {
        clock(ENABLE).write_volatile(0);
        clock(CLEAR).write_volatile(1);
        write!("cntv_ctl_el0", OFF);
        write!("cntp_ctl_el0", OFF);
    }
}

fn frequency() -> u64 {
    read!("cntfrq_el0")
}

fn counter() -> u64 {
    // SAFETY: the barrier keeps the reading from coming too early.
    unsafe { core::arch::asm!("isb", options(nostack, preserves_flags)) };
    read!("cntvct_el0")
}

const NANOSECONDS: u128 = 1_000_000_000;

/// Nanoseconds since the machine started.
pub(crate) fn now() -> u64 {
    (u128::from(counter()) * NANOSECONDS / u128::from(frequency())) as u64
}

/// Makes the timer fire at `at`, if no tick will do.
pub(crate) fn arm(at: u64) {
    if is_ticking() {
        return;
    }
    let due = (u128::from(at) * u128::from(frequency())).div_ceil(NANOSECONDS);
    // SAFETY: as in `start_ticking`.
    unsafe {
        write!("cntv_cval_el0", due.try_into().unwrap_or(u64::MAX));
        write!("cntv_ctl_el0", ON);
    }
}

/// When a timer with this period is due next, if it was due at `due`; what was missed is left out.
fn next(due: u64, now: u64, rate: u64) -> u64 {
    let period = frequency() / rate;
    if due + period > now { due + period } else { now + period }
}

/// The virtual timer fired.
pub(crate) fn tick() {
    if !is_ticking() {
        ONE_SHOTS.count();
        // SAFETY: as in `start_ticking`.
        unsafe { write!("cntv_ctl_el0", OFF) };
        return;
    }
    TICKS.count();
    // SAFETY: as in `start_ticking`.
    unsafe { write!("cntv_cval_el0", next(read!("cntv_cval_el0"), counter(), TICK_RATE)) };
    gic::raise(AFTER_TICK, Kind::Irq);
}

/// The second timer fired.
pub(crate) fn second_tick() {
    FAST_TICKS.count();
    // SAFETY: as in `start_ticking`.
    unsafe { write!("cntp_cval_el0", next(read!("cntp_cval_el0"), read!("cntpct_el0"), SECOND_RATE)) };
}

/// The software-generated interrupt of a tick arrived.
pub(crate) fn after_tick() {
    AFTER_TICKS.count();
}

/// The PL031 interrupted.
pub(crate) fn alarm() {
    ALARMS.count();
    alarm_in_a_second();
    // SAFETY: as in `alarm_in_a_second`.
    unsafe { clock(CLEAR).write_volatile(1) };
}

/// Lets a sandbox read a counter; returns its address there.
pub(crate) fn grant(sandbox: &mut Sandbox<'_, Foreign>, counter: &'static Counter) -> Result<u64, Error> {
    let page = VirtAddr::of(counter).page();
    // SAFETY: (1) alone on its page, which stays; (2) reading changes nothing.
    unsafe { sandbox.grant_range(PageRange::single(page), Permissions::READ) }?;
    Ok(page.start().0)
}
