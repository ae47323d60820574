//! The clock: the generic timer's virtual count, the same on all CPUs; and alarms from its virtual timer.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, Readable, Writeable};

const SECOND: u64 = 1_000_000_000;

/// Nanoseconds in a step of the count, with so many bits behind the point. 0 until it is known.
const FRACTION: u32 = 32;
static STEP: AtomicU64 = AtomicU64::new(0);

fn step() -> u64 {
    match STEP.load(Ordering::Relaxed) {
        0 => {
            let step = ((u128::from(SECOND) << FRACTION) / u128::from(CNTFRQ_EL0.get().max(1))) as u64;
            STEP.store(step, Ordering::Relaxed);
            step
        }
        step => step,
    }
}

/// The count, not read ahead of time.
pub(super) fn count() -> u64 {
    let count: u64;
    // SAFETY: reads a counter. Not `pure`: two reads differ.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) count, options(nomem, nostack, preserves_flags)) };
    count
}

pub(crate) fn now() -> u64 {
    ((u128::from(count()) * u128::from(step())) >> FRACTION) as u64
}

/// Sets the timer for `at`.
pub(crate) fn arm(at: u64) {
    // Rounded up: an alarm that is early would have to be set again.
    let due = ((u128::from(at) << FRACTION) / u128::from(step())) as u64;
    CNTV_CVAL_EL0.set(due.saturating_add(1));
    CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::SET + CNTV_CTL_EL0::IMASK::CLEAR);
    barrier::isb(barrier::SY);
}

/// Stops the timer.
pub(super) fn disarm() {
    CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::CLEAR);
    barrier::isb(barrier::SY);
}
