//! Who disturbs: interrupts and NMIs for CPUs at random, and requests to cancel.

use core::hint::black_box;
use core::sync::atomic::{AtomicBool, Ordering};

use fastrand::Rng;
use platform_qemu::host::Qemu;
use platform_qemu::{cpu, interrupts, machine, threads};

use crate::worker::CANCELS;

/// The longest pause between two disturbances, in turns of a loop.
const PAUSE: u32 = 2_000;

cfg_if::cfg_if! {
    if #[cfg(target_arch = "x86_64")] {
        /// A vector that nothing else uses.
        const LINE: usize = 0x81;

        /// The rudest way to interrupt a CPU.
        fn strike(cpu: usize) {
            machine::apic::send_nmi_to(cpu);
        }
    } else {
        /// Software-generated interrupts that nothing else uses: an ordinary one, and one that comes as an FIQ.
        const LINE: usize = 5;
        const FAST_LINE: usize = 6;

        /// The rudest way to interrupt a CPU.
        fn strike(cpu: usize) {
            interrupts::send(cpu, FAST_LINE);
        }
    }
}

/// Lets the disturbers' interrupts through. Called once.
pub(crate) fn prepare() {
    interrupts::register(LINE, || {});
    #[cfg(target_arch = "aarch64")]
    {
        interrupts::register(FAST_LINE, || {});
        machine::interrupts::deliver_as_fiq(FAST_LINE, true);
    }
}

/// Disturbs until `stop` is set; how often it did.
pub(crate) fn run(mut random: Rng, stop: &AtomicBool) -> u64 {
    let mut disturbances = 0;
    let host = Qemu::new();
    while !stop.load(Ordering::Relaxed) {
        let target = random.usize(0..cpu::count());
        match random.u32(0..8) {
            0..=3 => interrupts::send(target, LINE),
            4 | 5 => strike(target),
            6 => random.choice(&CANCELS).into_iter().for_each(|cancel| cancel.cancel(&host)),
            _ => {
                threads::yield_now();
            }
        }
        disturbances += 1;
        for _ in 0..random.u32(0..PAUSE) {
            // Not a spin hint, at which an emulated CPU rests for long.
            black_box(());
        }
    }
    disturbances
}
