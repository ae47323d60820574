//! The periodic tick, from each CPU's virtual timer.

use super::clock;
use crate::time::{alarm, on_tick, tick_rate};
use crate::{cpu, interrupts};
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, CNTVCT_EL0, Readable, Writeable};
use arm_gic::IntId;
use core::sync::atomic::Ordering;

/// The virtual timer's interrupt, the same in every system that follows Arm's base architecture.
const TIMER: IntId = IntId::ppi(11);

fn period() -> u64 {
    (CNTFRQ_EL0.get() / tick_rate()).max(1)
}

/// Starts the tick: [`on_tick`] runs at each one.
pub(crate) fn start() {
    CNTV_CVAL_EL0.set(CNTVCT_EL0.get() + period());
    CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::SET + CNTV_CTL_EL0::IMASK::CLEAR);
    interrupts::register(u32::from(TIMER) as usize, tick);
}

/// Stops the tick.
pub(crate) fn stop() {
    clock::disarm();
}

fn tick() {
    if !cpu::local().ticking.load(Ordering::Relaxed) {
        clock::disarm();
        return alarm();
    }
    // The next tick is due one period after this one was; ticks that were missed meanwhile are
    // left out rather than made up for.
    let now = CNTVCT_EL0.get();
    let due = CNTV_CVAL_EL0.get() + period();
    CNTV_CVAL_EL0.set(if due > now { due } else { now + period() });
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    on_tick();
}
