//! The tick: the local APIC's timer, measured against the old one.

use spin::Once;

use super::{apic, pit};
use crate::{
    interrupts,
    time::{TICK_RATE, on_tick},
};

const VECTOR: u8 = 0x30;

static STEPS_A_TICK: Once<u32> = Once::new();

/// Starts the tick; the first time, finds out how fast the timer is.
pub(crate) fn start() {
    let steps = *STEPS_A_TICK.call_once(|| {
        let hundredth = pit::hundredth(|| apic::start_timer(VECTOR, None), apic::timer_steps);
        interrupts::register(usize::from(VECTOR), on_tick);
        let steps = u64::from(hundredth) * 100 / TICK_RATE;
        u32::try_from(steps).unwrap_or(u32::MAX).max(1)
    });
    apic::start_timer(VECTOR, Some(steps));
}

/// Stops the tick.
pub(crate) fn stop() {
    apic::stop_timer();
}
