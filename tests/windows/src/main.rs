//! A kernel that goes through the HAL's windows again and again, while the runner interrupts it there.
//!
//! `qemu-runner inject` boots it under its debugger stub, stops it at each instruction of the windows, makes something
//! pending and lets it go on. The kernel calls sandboxes in every way there is, checks each result, and records what its
//! handlers got; [`protocol`] is what both sides know. `qemu-runner trace` boots it with the argument `trace` and looks
//! at which instructions it executes.
//!
//! It ends by itself in two cases only: a result was wrong, or the runner has asked for the end.

#![no_std]
#![no_main]

extern crate alloc;

mod calls;
mod host;
#[cfg_attr(target_arch = "x86_64", path = "machine/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "machine/aarch64.rs")]
mod machine;
mod protocol;
mod tracing;

use platform_qemu::host::cpu_config;
use platform_qemu::{files, memory, println, time};
use sandbox_mode::Error;

use calls::{Calls, Wrong};
use protocol::Phase;

platform_qemu::main!(main);

fn main() -> bool {
    let traced = files::arguments().split_whitespace().any(|word| word == "trace");
    let done = if traced { tracing::run() } else { rounds() };
    match done {
        Ok(()) => true,
        Err(wrong) => {
            println!("wrong: {wrong}");
            false
        }
    }
}

/// Goes round until the runner has had enough.
fn rounds() -> Result<(), Wrong> {
    time::stop_tick();
    machine::prepare();
    protocol::register();
    let mut calls = Calls::new(start()?, false)?;
    // What the HAL allocates once is there after the first round.
    calls.round(protocol::raise_all())?;
    let free = memory::free_frames();
    let mut round = 1_u64;
    loop {
        protocol::reached(Phase::Round);
        if protocol::is_over() {
            break;
        }
        calls.round(protocol::raise_all())?;
        if memory::free_frames() != free {
            return Err(Wrong("frames were lost"));
        }
        round += 1;
    }
    println!("{round} rounds, {} interruptions", protocol::recorded());
    Ok(())
}

/// Starts the HAL on this CPU.
fn start() -> Result<&'static sandbox_mode::Hal<host::Watched>, Error> {
    let hal = sandbox_mode::Hal::new(host::Watched::new())?;
    let hal = alloc::boxed::Box::leak(alloc::boxed::Box::new(hal));
    // SAFETY: (1) there is one CPU, and this is it; (2) and (3) as for the platform's own `start_hal`.
    unsafe { hal.start_cpu(cpu_config()) }?;
    protocol::publish_code(hal.gate_code().start().start().0);
    Ok(hal)
}
