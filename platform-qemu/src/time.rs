//! The tick, the clock, and the counter of executed instructions.

use core::{
    mem,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering},
};

pub use crate::machine::instructions;
use crate::{cpu, interrupts::without, machine, threads};

/// Ticks a second.
pub const TICK_RATE: u64 = 250;

/// A tick counter that is alone on its page, so that the page can be granted to a sandbox.
#[repr(C, align(4096))]
pub struct TickPage {
    count: AtomicU64,
    _rest: [u8; 4088],
}

impl TickPage {
    /// Ticks since the boot.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// The tick counter's page.
pub static TICKS: TickPage = TickPage { count: AtomicU64::new(0), _rest: [0; 4088] };

/// Ticks since the boot.
pub fn ticks() -> u64 {
    TICKS.count()
}

/// Ticks a second, of CPUs whose tick is started from now on.
static RATE: AtomicU64 = AtomicU64::new(TICK_RATE);

/// Sets the rate at which [`start_tick`] starts ticks: [`TICK_RATE`] until then.
///
/// # Panics
///
/// If it is zero.
pub fn set_tick_rate(ticks_a_second: u64) {
    assert!(ticks_a_second > 0, "a tick that never comes");
    RATE.store(ticks_a_second, Ordering::Relaxed);
}

/// The rate that was set.
pub(crate) fn tick_rate() -> u64 {
    RATE.load(Ordering::Relaxed)
}

/// Starts the periodic tick of this CPU, at [`TICK_RATE`] if nobody has set another. It runs on all CPUs when `main` is called.
pub fn start_tick() {
    without(|| {
        cpu::local().ticking.store(true, Ordering::Relaxed);
        machine::tick::start();
    });
}

/// Stops the tick of this CPU, for exact measurements. It counts the ticks if it is the boot CPU, and with
/// [`threads`] no thread has to give way to another here any more.
pub fn stop_tick() {
    without(|| {
        cpu::local().ticking.store(false, Ordering::Relaxed);
        machine::tick::stop();
    });
}

/// Whether this CPU ticks.
pub(crate) fn is_ticking() -> bool {
    without(|| cpu::local().ticking.load(Ordering::Relaxed))
}

/// Nanoseconds since some moment before the boot, never going back, the same on all CPUs.
pub fn now() -> u64 {
    machine::clock::now()
}

/// Makes an interrupt arrive on this CPU when the clock shows `at`, or soon after, in place of one that was asked for
/// before. With the tick on, the tick has to do. To be called with interrupts masked.
pub fn arm(at: u64) {
    if !cpu::local().ticking.load(Ordering::Relaxed) {
        machine::clock::arm(at);
    }
}

static ALARM: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Has `handler` called at each alarm that [`arm`] asked for, on the CPU that did.
pub fn on_alarm(handler: fn()) {
    ALARM.store(handler as *mut (), Ordering::Release);
}

/// Handles an alarm. The machine's timer interrupt calls this.
pub(crate) fn alarm() {
    let handler = ALARM.load(Ordering::Acquire);
    if !handler.is_null() {
        // SAFETY: only `on_alarm` stores a non-null value, and that is a `fn()`.
        let handler = unsafe { mem::transmute::<*mut (), fn()>(handler) };
        handler();
    }
}

/// Counts one tick. The machine's timer interrupt calls this.
pub(crate) fn on_tick() {
    if cpu::index() == 0 {
        TICKS.count.fetch_add(1, Ordering::Relaxed);
    }
    threads::on_tick();
}
