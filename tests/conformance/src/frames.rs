//! Frames come back, and sandboxes do not share them.

use alloc::boxed::Box;
use alloc::vec::Vec;

use sandbox_mode::{In, InOut, Out, Val};

use crate::probe::{address_of, exit_of, works};
use crate::suite::{Sandbox, Suite, cases};
use crate::verdict::Outcome;

cases! {
    ten_thousand_calls_take_none,
    a_thousand_sandboxes_give_all_back,
    sandboxes_that_faulted_give_all_back,
    two_sandboxes_take_turns,
    two_hundred_do_not_see_each_others,
    a_sandbox_can_be_moved,
    a_sandbox_can_be_kept_in_a_collection,
}

fn ten_thousand_calls_take_none(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    works(&mut sandbox)?;
    let free = suite.kernel.free_frames();
    for call in 0..10_000u64 {
        expect_eq!(sandbox.call(|number: &u64| number + 1, (In(&call),))?, call + 1);
    }
    expect_eq!(suite.kernel.free_frames(), free);
    Ok(())
}

fn a_thousand_sandboxes_give_all_back(suite: &Suite) -> Outcome {
    let free = suite.kernel.free_frames();
    for _ in 0..1000 {
        drop(suite.sandbox()?);
    }
    expect_eq!(suite.kernel.free_frames(), free);
    Ok(())
}

fn sandboxes_that_faulted_give_all_back(suite: &Suite) -> Outcome {
    let free = suite.kernel.free_frames();
    for _ in 0..100 {
        let mut sandbox = suite.sandbox()?;
        exit_of(&mut sandbox, crate::probe::store, (Val(0u64),))?;
    }
    expect_eq!(suite.kernel.free_frames(), free);
    Ok(())
}

fn two_sandboxes_take_turns(suite: &Suite) -> Outcome {
    let (mut first, mut second) = (suite.sandbox()?, suite.sandbox()?);
    for round in 0..200u64 {
        let (mut a, mut b) = ([round; 100], [round + 1; 300]);
        let add = |numbers: &mut [u64], more: u64| {
            numbers.iter_mut().for_each(|number| *number += more);
            address_of(numbers)
        };
        let first_at = first.call(add, (InOut(&mut a[..]), Val(1000u64)))?;
        let second_at = second.call(add, (InOut(&mut b[..]), Val(2000u64)))?;
        expect_eq!(first_at >> 12, second_at >> 12, "both have their buffers at the same place");
        expect_eq!((a, b), ([round + 1000; 100], [round + 2001; 300]));
    }
    Ok(())
}

/// Keeps a number in the part of its buffer's page that calls don't touch: what was there before.
fn keep(buffer: &mut [u8], number: u64) -> u64 {
    let place = (address_of(buffer) & !0xfff) as usize + 64;
    let place = core::ptr::with_exposed_provenance_mut::<u64>(place);
    // SAFETY: in a sandbox, the page is the buffer's and holds nothing else; the buffer is at its end.
    unsafe { place.replace(number) }
}

fn two_hundred_do_not_see_each_others(suite: &Suite) -> Outcome {
    const COUNT: u64 = 200;
    let mut sandboxes: Vec<Sandbox<'static>> = Vec::new();
    for number in 1..=COUNT {
        let mut sandbox = suite.sandbox()?;
        expect_eq!(sandbox.call(keep, (Out(&mut [0; 16][..]), Val(number)))?, 0, "sandbox {number} begins empty");
        sandboxes.push(sandbox);
    }
    for (index, sandbox) in sandboxes.iter_mut().enumerate().rev() {
        let number = index as u64 + 1;
        let found = sandbox.call(keep, (Out(&mut [0; 16][..]), Val(number + COUNT)))?;
        expect_eq!(found, number, "what sandbox {number} kept");
    }
    for (sandbox, number) in sandboxes.iter_mut().zip(1..) {
        let found = sandbox.call(keep, (Out(&mut [0; 16][..]), Val(0u64)))?;
        expect_eq!(found, number + COUNT, "what sandbox {number} kept later");
    }
    Ok(())
}

#[inline(never)]
fn made_elsewhere(suite: &Suite) -> Outcome<Sandbox<'static>> {
    let mut sandbox = suite.sandbox()?;
    works(&mut sandbox)?;
    Ok(sandbox)
}

fn a_sandbox_can_be_moved(suite: &Suite) -> Outcome {
    let mut sandbox = made_elsewhere(suite)?;
    works(&mut sandbox)?;
    let mut boxed = Box::new(sandbox);
    works(&mut boxed)?;
    exit_of(&mut boxed, crate::probe::load, (Val(0u64),))?;
    let mut unboxed = *boxed;
    works(&mut unboxed)
}

fn a_sandbox_can_be_kept_in_a_collection(suite: &Suite) -> Outcome {
    let mut all = Vec::new();
    for _ in 0..20 {
        // The vector moves those it has when it grows.
        all.push(made_elsewhere(suite)?);
        works(&mut all[0])?;
    }
    all.swap(0, 13);
    all.remove(5);
    all.iter_mut().try_for_each(works)
}
