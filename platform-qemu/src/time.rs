//! The tick, and the counter of executed instructions.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine;
pub use crate::machine::instructions;

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

/// Starts the periodic tick, at [`TICK_RATE`]. It runs when `main` is called.
pub fn start_tick() {
    machine::tick::start();
}

/// Stops the tick, for exact measurements.
pub fn stop_tick() {
    machine::tick::stop();
}

/// Counts one tick. The machine's timer interrupt calls this.
pub(crate) fn on_tick() {
    TICKS.count.fetch_add(1, Ordering::Relaxed);
}
