//! The tick: each local APIC's timer, measured against the old one; and with it the time-stamp counter.

use spin::Once;

use super::{apic, clock, instructions, pit};
use crate::{
    interrupts,
    time::{TICK_RATE, alarm, on_tick},
};

const VECTOR: u8 = 0x30;

static STEPS_A_TICK: Once<u32> = Once::new();

/// Starts this CPU's tick; the first time, finds out how fast the timer is, which is the same on all.
pub(crate) fn start() {
    let steps = *STEPS_A_TICK.call_once(|| {
        let mut before = 0;
        let begin = || {
            apic::start_timer(VECTOR, None);
            before = instructions();
        };
        let (hundredth, after) = pit::hundredth(begin, || (apic::timer_steps(), instructions()));
        clock::calibrate(after - before, hundredth);
        interrupts::register(usize::from(VECTOR), on_tick);
        interrupts::register(usize::from(clock::VECTOR), alarm);
        let steps = u64::from(hundredth) * 100 / TICK_RATE;
        u32::try_from(steps).unwrap_or(u32::MAX).max(1)
    });
    apic::start_timer(VECTOR, Some(steps));
}

/// Stops the tick.
pub(crate) fn stop() {
    apic::stop_timer();
}
