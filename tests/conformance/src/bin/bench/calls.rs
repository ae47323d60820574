//! What is measured: each a function of its own, as a kernel would have it, and the same without a sandbox.
//!
//! Results are checked, so that a call that did not work is not mistaken for a cheap one.

use core::hint::black_box;

use platform_qemu::host::Qemu;
use sandbox_mode::{CallError, Hal, In, Out, Sandbox, Val};

#[inline(never)]
fn no_work() {
    black_box(());
}

#[inline(never)]
fn copy_first(input: &[u8; 64], output: &mut [u8; 64]) {
    output[0] = input[0];
}

#[inline(never)]
fn copy_first_of_many(input: &[u8], output: &mut [u8]) {
    if let (Some(output), Some(input)) = (output.first_mut(), input.first()) {
        *output = *input;
    }
}

#[inline(never)]
fn read(address: u64) -> u64 {
    // SAFETY: there is none: nothing is at the address. In the sandbox it ends there.
    unsafe { core::ptr::without_provenance::<u64>(address as usize).read_volatile() }
}

/// The loop alone.
#[inline(never)]
pub(crate) fn nothing() {
    black_box(());
}

#[inline(never)]
pub(crate) fn empty_directly() {
    no_work();
}

#[inline(never)]
pub(crate) fn small_directly(input: &[u8; 64], output: &mut [u8; 64]) {
    copy_first(input, output);
}

#[inline(never)]
pub(crate) fn large_directly(input: &[u8], output: &mut [u8]) {
    copy_first_of_many(input, output);
}

fn must(result: Result<(), CallError>) {
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[inline(never)]
pub(crate) fn empty(sandbox: &mut Sandbox<'_, Qemu>) {
    must(sandbox.call(no_work, ()));
}

#[inline(never)]
pub(crate) fn small(sandbox: &mut Sandbox<'_, Qemu>, input: &[u8; 64], output: &mut [u8; 64]) {
    must(sandbox.call(copy_first, (In(input), Out(output))));
}

#[inline(never)]
pub(crate) fn large(sandbox: &mut Sandbox<'_, Qemu>, input: &[u8], output: &mut [u8]) {
    must(sandbox.call(copy_first_of_many, (In(input), Out(output))));
}

#[inline(never)]
pub(crate) fn fault(sandbox: &mut Sandbox<'_, Qemu>) {
    if !matches!(sandbox.call(read, (Val(8u64),)), Err(CallError::Exit(_))) {
        panic!("the call did not fault");
    }
}

fn made(hal: &'static Hal<Qemu>) -> Sandbox<'static, Qemu> {
    match hal.sandbox() {
        Ok(sandbox) => sandbox,
        Err(error) => panic!("{error}"),
    }
}

#[inline(never)]
pub(crate) fn create(hal: &'static Hal<Qemu>) {
    drop(black_box(made(hal)));
}

#[inline(never)]
pub(crate) fn create_and_call(hal: &'static Hal<Qemu>) {
    let mut sandbox = made(hal);
    must(sandbox.call(no_work, ()));
}

#[inline(never)]
pub(crate) fn create_and_call_small(hal: &'static Hal<Qemu>, input: &[u8; 64], output: &mut [u8; 64]) {
    let mut sandbox = made(hal);
    must(sandbox.call(copy_first, (In(input), Out(output))));
}
