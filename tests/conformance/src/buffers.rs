//! A call's buffers: what they hold, how they change size, and what is around them.

use alloc::vec;
use alloc::vec::Vec;

use sandbox_mode::{Access, Config, ExitReason, FaultKind, In, InOut, Out, PAGE_SIZE, Placement, Val};

use crate::machine::RETURN;
use crate::probe::{BYTE, address_of, denied, ends, exit_of, fault, jump, load, store, unreachable, works};
use crate::suite::{Sandbox, Suite, cases};
use crate::verdict::Outcome;

cases! {
    grow_and_shrink_between_calls,
    replaced_ones_are_unreachable,
    are_the_same_size_on_both_sides,
    an_overrun_in_the_page_stays_inside,
    a_guard_page_is_before_one_placed_at_the_start,
    a_guard_page_is_before_one_placed_at_the_end,
    a_guard_page_is_behind_one_placed_at_the_start,
    a_guard_page_is_behind_one_placed_at_the_end,
    an_input_can_change_without_the_host_noticing,
    outputs_are_zero_at_each_call,
    outputs_are_untouched_by_a_call_that_faults,
    the_rest_of_a_page_is_zero_at_first,
    the_rest_of_a_page_is_zero_after_growing,
    are_aligned_as_their_types_need,
    are_not_executable,
}

const PAGE: u64 = PAGE_SIZE as u64;

fn fill(buffer: &mut [u8], seed: u8) -> u64 {
    for (index, byte) in buffer.iter_mut().enumerate() {
        *byte = byte.wrapping_add(seed).wrapping_add(index as u8);
    }
    buffer.len() as u64
}

fn grow_and_shrink_between_calls(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    for (round, len) in [16, 1 << 20, PAGE_SIZE + 1, 1, PAGE_SIZE, 0, (1 << 20) + 5, 100].into_iter().enumerate() {
        let seed = round as u8 * 17 + 1;
        let mut buffer: Vec<u8> = (0..len).map(|index| (index >> 8) as u8).collect();
        let mut wanted = buffer.clone();
        fill(&mut wanted, seed);
        let found = sandbox.call(fill, (InOut(&mut buffer[..]), Val(seed)))?;
        expect_eq!(found, len as u64);
        expect!(buffer == wanted, "the content of {len} bytes");
    }
    Ok(())
}

fn address(buffer: &mut [u8]) -> u64 {
    address_of(buffer)
}

fn replaced_ones_are_unreachable(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let old = sandbox.call(address, (Out(&mut [0; 10][..]),))?;
    let new = sandbox.call(address, (Out(&mut [0; PAGE_SIZE + 10][..]),))?;
    expect!(old != new);
    for exit in [exit_of(&mut sandbox, load, (Val(old),))?, exit_of(&mut sandbox, store, (Val(old),))?] {
        expect!(matches!(exit.reason, ExitReason::MemoryFault(fault) if fault.address.0 == old), "{exit}");
    }
    Ok(())
}

fn are_the_same_size_on_both_sides(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    for len in [1, 7, 63, 64, 4095, 4096, 4097, 8192] {
        let bytes = vec![0x11; len];
        expect_eq!(sandbox.call(|bytes: &[u8]| bytes.len() as u64, (In(&bytes[..]),))?, len as u64);
    }
    Ok(())
}

fn an_overrun_in_the_page_stays_inside(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox_with(Config::default().placement(Placement::Start))?;
    let mut memory = [0u8; 200];
    let overrun = |buffer: &mut [u8]| {
        for index in 0..200 {
            store(address_of(buffer) + index);
        }
    };
    sandbox.call(overrun, (Out(&mut memory[..100]),))?;
    expect!(memory[..100].iter().all(|&byte| byte == BYTE), "the buffer's own content");
    expect!(memory[100..].iter().all(|&byte| byte == 0), "what lies behind it in the host");
    Ok(())
}

/// A buffer of `len` bytes: its address in the sandbox.
fn placed(suite: &Suite, placement: Placement, len: usize) -> Outcome<(Sandbox<'static>, u64)> {
    let mut sandbox = suite.sandbox_with(Config::default().placement(placement))?;
    // The buffers of `works`, so that using the sandbox after a fault does not move these.
    works(&mut sandbox)?;
    let mut bytes = vec![0; len];
    let at = sandbox
        .call(|_: u8, _: u8, buffer: &mut [u8]| address_of(buffer), (Val(0u8), Val(0u8), Out(&mut bytes[..])))?;
    match placement {
        Placement::Start => expect_eq!(at % PAGE, 0, "the start of a buffer placed there"),
        Placement::End => expect_eq!((at + len as u64) % PAGE, 0, "the end of a buffer placed there"),
    }
    Ok((sandbox, at))
}

fn guarded(sandbox: &mut Sandbox<'_>, address: u64) -> Outcome {
    unreachable(sandbox, address, FaultKind::GuardPage)
}

const LEN: usize = PAGE_SIZE + 100;

fn a_guard_page_is_before_one_placed_at_the_start(suite: &Suite) -> Outcome {
    let (mut sandbox, at) = placed(suite, Placement::Start, LEN)?;
    guarded(&mut sandbox, at - 1)?;
    guarded(&mut sandbox, at - PAGE)
}

fn a_guard_page_is_before_one_placed_at_the_end(suite: &Suite) -> Outcome {
    let (mut sandbox, at) = placed(suite, Placement::End, LEN)?;
    let page = at - at % PAGE;
    guarded(&mut sandbox, page - 1)?;
    guarded(&mut sandbox, page - PAGE)
}

fn a_guard_page_is_behind_one_placed_at_the_start(suite: &Suite) -> Outcome {
    let (mut sandbox, at) = placed(suite, Placement::Start, LEN)?;
    guarded(&mut sandbox, at + 2 * PAGE)?;
    guarded(&mut sandbox, at + 3 * PAGE - 1)
}

fn a_guard_page_is_behind_one_placed_at_the_end(suite: &Suite) -> Outcome {
    let (mut sandbox, at) = placed(suite, Placement::End, LEN)?;
    guarded(&mut sandbox, at + LEN as u64)?;
    guarded(&mut sandbox, at + LEN as u64 + PAGE - 1)
}

fn an_input_can_change_without_the_host_noticing(suite: &Suite) -> Outcome {
    let bytes = [1u8, 2, 3];
    let change = |bytes: &[u8]| {
        store(address_of(bytes));
        load(address_of(bytes))
    };
    expect_eq!(suite.sandbox()?.call(change, (In(&bytes[..]),))?, u64::from(BYTE), "the sandbox's own copy");
    expect_eq!(core::hint::black_box(bytes), [1, 2, 3]);
    Ok(())
}

fn outputs_are_zero_at_each_call(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let sum_and_spoil = |buffer: &mut [u8]| {
        let sum = buffer.iter().map(|&byte| u64::from(byte)).sum::<u64>();
        buffer.fill(0xff);
        sum
    };
    for len in [10_000, 10_000, 100, 9_999] {
        let mut buffer = vec![0x77; len];
        expect_eq!(sandbox.call(sum_and_spoil, (Out(&mut buffer[..]),))?, 0, "{len} bytes");
        expect!(buffer.iter().all(|&byte| byte == 0xff));
    }
    Ok(())
}

fn outputs_are_untouched_by_a_call_that_faults(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let (mut output, mut changed) = ([0x33u8; 100], 0x4444u32);
    let spoil_and_fault = |output: &mut [u8], changed: &mut u32| {
        output.fill(0xff);
        *changed = 0;
        store(0);
    };
    let reason = fault(0, Access::Write, FaultKind::Unmapped);
    ends(&mut sandbox, spoil_and_fault, (Out(&mut output[..]), InOut(&mut changed)), reason)?;
    expect_eq!((output, changed), ([0x33; 100], 0x4444));
    Ok(())
}

/// The sum of the bytes that share the buffer's pages but aren't in it.
fn sum_of_rest(buffer: &mut [u8]) -> u64 {
    let (start, end) = (address_of(buffer), address_of(buffer) + buffer.len() as u64);
    let sum = |from: u64, to: u64| (from..to).map(load).sum::<u64>();
    sum(start - start % PAGE, start) + sum(end, end.next_multiple_of(PAGE))
}

fn the_rest_of_a_page_is_zero_at_first(suite: &Suite) -> Outcome {
    for placement in [Placement::Start, Placement::End] {
        let mut sandbox = suite.sandbox_with(Config::default().placement(placement))?;
        expect_eq!(sandbox.call(sum_of_rest, (Out(&mut [1; 10][..]),))?, 0, "{placement:?}");
    }
    Ok(())
}

fn the_rest_of_a_page_is_zero_after_growing(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let mut buffer = vec![0xff; PAGE_SIZE];
    sandbox.call(|bytes: &[u8]| bytes.len() as u64, (In(&buffer[..]),))?;
    buffer.extend([1]);
    expect_eq!(sandbox.call(sum_of_rest, (InOut(&mut buffer[..]),))?, 0);
    Ok(())
}

#[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C, align(2048))]
struct Aligned([u8; 2048]);

fn are_aligned_as_their_types_need(suite: &Suite) -> Outcome {
    for placement in [Placement::Start, Placement::End] {
        let mut sandbox = suite.sandbox_with(Config::default().placement(placement))?;
        let values = [Aligned([1; 2048]); 3];
        let remainder = |values: &[Aligned]| address_of(values) % align_of::<Aligned>() as u64;
        expect_eq!(sandbox.call(remainder, (In(&values[..]),))?, 0, "{placement:?}");
        let wide = [1u128; 3];
        expect_eq!(sandbox.call(|wide: &[u128]| address_of(wide) % 16, (In(&wide[..]),))?, 0, "{placement:?}");
    }
    Ok(())
}

fn are_not_executable(suite: &Suite) -> Outcome {
    let (mut sandbox, at) = placed(suite, Placement::Start, PAGE_SIZE)?;
    let code = |_: u8, _: u8, buffer: &mut [u8]| {
        buffer[..4].copy_from_slice(&RETURN);
        jump(address_of(buffer));
    };
    let mut buffer = [0; PAGE_SIZE];
    let reason = fault(at, Access::Execute, FaultKind::Permission);
    ends(&mut sandbox, code, (Val(0u8), Val(0u8), Out(&mut buffer[..])), reason)?;
    denied(&mut sandbox, Access::Execute, at + 8, FaultKind::Permission)
}
