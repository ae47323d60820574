//! The parts that the runner traces: ticks in the kernel without and with the HAL, and interrupts that arrive in
//! sandboxes. The phases tell it where each begins and ends.

use platform_qemu::{interrupts, time};

use crate::calls::{Calls, Wrong};
use crate::protocol::{self, Phase};
use crate::{machine, start};

/// Ticks in each part.
const TICKS: u64 = 4;

/// One part after the other.
pub(crate) fn run() -> Result<(), Wrong> {
    machine::prepare();
    protocol::register();
    ticks(Phase::TicksWithout);
    let mut calls = Calls::new(start()?, true)?;
    time::stop_tick();
    calls.round(true)?;
    time::start_tick();
    ticks(Phase::TicksWith);
    time::stop_tick();
    protocol::reached(Phase::Arrivals);
    calls.forwarding(true)?;
    protocol::reached(Phase::End);
    Ok(())
}

/// Waits for some ticks, asleep in between.
fn ticks(phase: Phase) {
    // The first ones may find the clock in any state.
    wait(2);
    protocol::reached(phase);
    wait(TICKS);
    protocol::reached(Phase::End);
}

fn wait(ticks: u64) {
    let end = time::ticks() + ticks;
    while time::ticks() < end {
        debug_assert!(interrupts::enabled());
        machine::sleep();
    }
}
