//! The clock: the time-stamp counter, which QEMU keeps the same on all CPUs; and alarms from the local APIC's timer.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{apic, instructions};

/// The vector of alarms.
pub(super) const VECTOR: u8 = 0x31;

const SECOND: u64 = 1_000_000_000;

/// Nanoseconds in a cycle, and timer steps in a nanosecond, with so many bits behind the point.
const FRACTION: u32 = 32;
static CYCLE: AtomicU64 = AtomicU64::new(0);
static STEPS: AtomicU64 = AtomicU64::new(0);

/// Tells the clock how many cycles and timer steps there are in a hundredth of a second.
pub(super) fn calibrate(cycles: u64, steps: u32) {
    let ratio = |part: u64, whole: u64| ((u128::from(part) << FRACTION) / u128::from(whole)) as u64;
    CYCLE.store(ratio(SECOND / 100, cycles.max(1)), Ordering::Relaxed);
    STEPS.store(ratio(u64::from(steps), SECOND / 100), Ordering::Relaxed);
}

fn scale(value: u64, factor: u64) -> u64 {
    ((u128::from(value) * u128::from(factor)) >> FRACTION) as u64
}

pub(crate) fn now() -> u64 {
    scale(instructions(), CYCLE.load(Ordering::Relaxed))
}

/// Sets the timer for `at`, or for a moment before that if it is far away.
pub(crate) fn arm(at: u64) {
    let left = at.saturating_sub(now());
    let steps = scale(left, STEPS.load(Ordering::Relaxed)).saturating_add(1);
    apic::start_alarm(VECTOR, u32::try_from(steps).unwrap_or(u32::MAX));
}
