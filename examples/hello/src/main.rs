//! The smallest kernel that calls a function in a sandbox.
//!
//! It boots on QEMU's q35 and virt machines, lets a function count words in the CPU's unprivileged
//! mode, and shows that one which does not keep to its data is stopped while the kernel goes on.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use platform_qemu::host::start_hal;
use platform_qemu::println;
use sandbox_mode::{CallError, In, Out, Val};

platform_qemu::main!(main);

/// An ordinary function. It could be a parser from a crate.
fn count_words(text: &str, longest: &mut u32) -> u32 {
    let mut words = 0;
    for word in text.split_whitespace() {
        words += 1;
        *longest = (*longest).max(word.len() as u32);
    }
    words
}

/// A function that tries to change the kernel.
fn overwrite(address: u64) {
    // SAFETY: there is none. The sandbox is what keeps the kernel safe from this.
    unsafe { (address as *mut u32).write_volatile(0xdead) };
}

static KERNEL_DATA: AtomicU32 = AtomicU32::new(42);

fn main() -> bool {
    match run() {
        Ok(()) => true,
        Err(error) => {
            println!("failed: {error}");
            false
        }
    }
}

fn run() -> Result<(), CallError> {
    let hal = start_hal()?;
    let mut sandbox = hal.sandbox()?;

    let mut longest = 0;
    let words = sandbox.call(count_words, (In("the quick brown fox jumps"), Out(&mut longest)))?;
    println!("{words} words, the longest of {longest} letters");

    let address = (&raw const KERNEL_DATA) as u64;
    match sandbox.call(overwrite, (Val(address),)) {
        Err(CallError::Exit(exit)) => println!("contained: {exit}"),
        other => println!("not contained: {other:?}"),
    }
    println!("the kernel goes on, its data is {}", KERNEL_DATA.load(Ordering::Relaxed));
    Ok(())
}
