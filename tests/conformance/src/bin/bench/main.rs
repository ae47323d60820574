//! What calls cost, in instructions, on QEMU's q35 and virt machines.
//!
//! Under `-icount shift=0` the guest's counter counts executed instructions, so each number is exact and the same in every run
//! of the same image. It says nothing about caches, translation or pipelines. Everything goes through the public API, from
//! functions that are not inlined; what the loop around a call and a direct call of the same function cost is taken off.

#![no_std]
#![no_main]

extern crate alloc;

mod calls;
mod meter;

use platform_qemu::host::{Qemu, start_hal};
use platform_qemu::{memory, println, time};
use sandbox_mode::{CallError, Config, Hal, In, Out, PAGE_SIZE, Sandbox};

use meter::{Count, cost};

platform_qemu::main!(main);

fn main() -> bool {
    time::stop_tick();
    if let Err(found) = meter::calibrate() {
        println!("a loop of {} instructions counts as {found}: run with --icount", meter::LOOP);
        return false;
    }
    match run() {
        Ok(()) => true,
        Err(error) => {
            println!("failed: {error}");
            false
        }
    }
}

fn row(what: &str, count: Count) {
    println!("{what:<48}{count:>12}");
}

fn run() -> Result<(), CallError> {
    let hal = start_hal()?;
    println!("instructions, net of the harness");
    calls(hal)?;
    lives(hal)?;
    println!("frames");
    frames(hal)
}

/// Calls in a sandbox that was called before.
fn calls(hal: &'static Hal<Qemu>) -> Result<(), CallError> {
    let mut sandbox = hal.sandbox()?;
    row("call, no arguments", cost(|| calls::empty(&mut sandbox), calls::empty_directly));

    let (input, mut output) = ([7; 64], [0; 64]);
    let direct = [0; 64];
    let mut direct = core::hint::black_box(direct);
    row(
        "call, 64 B in and 64 B out",
        cost(|| calls::small(&mut sandbox, &input, &mut output), || calls::small_directly(&input, &mut direct)),
    );

    let (input, mut output) = (alloc::vec![7; 64 << 10], alloc::vec![0; 64 << 10]);
    let mut direct = output.clone();
    row(
        "call, 64 KiB in and 64 KiB out",
        cost(|| calls::large(&mut sandbox, &input, &mut output), || calls::large_directly(&input, &mut direct)),
    );
    row("call that ends by a memory fault", cost(|| calls::fault(&mut sandbox), calls::nothing));
    match hal.sandbox_with(Config::default().vectors(true)) {
        Ok(mut sandbox) => {
            row("call with vector registers, no arguments", cost(|| calls::empty(&mut sandbox), calls::empty_directly));
        }
        Err(error) => println!("no sandbox with vector registers: {error}"),
    }
    Ok(())
}

/// Sandboxes from beginning to end.
fn lives(hal: &'static Hal<Qemu>) -> Result<(), CallError> {
    let life = cost(|| calls::create(hal), calls::nothing);
    row("create and drop", life);
    let called = cost(|| calls::create_and_call(hal), calls::empty_directly);
    row("create, call without arguments, drop", called);
    let (input, mut output) = ([7; 64], [0; 64]);
    let mut direct = core::hint::black_box([0; 64]);
    let called_small =
        cost(|| calls::create_and_call_small(hal, &input, &mut output), || calls::small_directly(&input, &mut direct));
    row("create, call with 64 B in and out, drop", called_small);
    row("first call, no arguments", called - life);
    row("first call, 64 B in and 64 B out", called_small - life);
    Ok(())
}

/// What a sandbox takes.
fn frames(hal: &'static Hal<Qemu>) -> Result<(), CallError> {
    let free = memory::free_frames();
    let count = |what: &str| println!("{what:<48}{:>12}", free - memory::free_frames());
    let mut sandbox: Sandbox<'_, Qemu> = hal.sandbox()?;
    count("a sandbox, 64 KiB of stack");
    sandbox.call(|input: &[u8; 64], output: &mut [u8; 64]| *output = *input, (In(&[7; 64]), Out(&mut [0; 64])))?;
    count("the same after a call with 64 B in and out");
    drop(sandbox);
    let sandbox = hal.sandbox_with(Config::default().stack_size(PAGE_SIZE))?;
    count("a sandbox, 4 KiB of stack");
    drop(sandbox);
    count("after all were dropped");
    Ok(())
}
