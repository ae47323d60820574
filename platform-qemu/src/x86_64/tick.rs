//! The tick: each local APIC's timer, measured against the old one; and with it the time-stamp counter.

use spin::Once;

use super::{apic, clock, instructions, pit};
use crate::{
    interrupts,
    time::{alarm, on_tick, tick_rate},
};

const VECTOR: u8 = 0x30;

/// Steps of the timer in a hundredth of a second.
static STEPS: Once<u32> = Once::new();

/// Starts this CPU's tick; the first time, finds out how fast the timer is, which is the same on all.
pub(crate) fn start() {
    let hundredth = *STEPS.call_once(|| {
        let mut before = 0;
        let begin = || {
            apic::start_timer(VECTOR, None);
            before = instructions();
        };
        let (hundredth, after) = pit::hundredth(begin, || (apic::timer_steps(), instructions()));
        clock::calibrate(after - before, hundredth);
        interrupts::register(usize::from(VECTOR), on_tick);
        interrupts::register(usize::from(clock::VECTOR), alarm);
        hundredth
    });
    let steps = u64::from(hundredth) * 100 / tick_rate();
    apic::start_timer(VECTOR, Some(u32::try_from(steps).unwrap_or(u32::MAX).max(1)));
}

/// Stops the tick.
pub(crate) fn stop() {
    apic::stop_timer();
}
