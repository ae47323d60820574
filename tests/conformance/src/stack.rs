//! A sandbox's own stack.

use sandbox_mode::{Access, Config, Error, ExitReason, FaultKind, MemoryFault, PAGE_SIZE, Val, VirtAddr};

use crate::machine::RETURN;
use crate::probe::{address_of, denied, exit_of, jump, load, load_word, unreachable, works};
use crate::suite::{Sandbox, Suite, cases};
use crate::verdict::Outcome;

cases! {
    overflow_hits_the_guard_page,
    overflow_of_a_large_frame_is_an_overflow,
    the_page_above_is_a_guard_page,
    is_as_large_as_asked_for,
    is_zero_at_first,
    is_not_executable,
    can_be_one_page,
    can_be_large,
    of_no_pages_is_refused,
    larger_than_the_window_is_refused,
}

const PAGE: u64 = PAGE_SIZE as u64;

#[inline(never)]
fn descend(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 16]);
    if core::hint::black_box(depth) == u64::MAX {
        return 0;
    }
    // Used after the call, so that the call can't become a jump.
    descend(depth + 1) ^ core::hint::black_box(&frame)[0]
}

fn overflow_hits_the_guard_page(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let exit = exit_of(&mut sandbox, descend, (Val(0u64),))?;
    let ExitReason::MemoryFault(MemoryFault { address, access, kind }) = exit.reason else { fail!("{exit}") };
    expect_eq!((access, kind), (Access::Write, FaultKind::StackOverflow));
    expect_eq!(address.page(), suite.window().start());
    Ok(())
}

fn overflow_of_a_large_frame_is_an_overflow(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox_with(Config::default().stack_size(2 * PAGE_SIZE))?;
    let guard = suite.window().start().start().0;
    denied(&mut sandbox, Access::Write, guard, FaultKind::StackOverflow)?;
    denied(&mut sandbox, Access::Read, guard + PAGE - 8, FaultKind::StackOverflow)?;
    denied(&mut sandbox, Access::Execute, guard + 16, FaultKind::StackOverflow)
}

/// The lowest and the first address behind the stack of a sandbox with the default configuration.
fn bounds(suite: &Suite) -> (u64, u64) {
    let bottom = suite.window().start().start().0 + PAGE;
    (bottom, bottom + Config::default().stack_size as u64)
}

fn the_page_above_is_a_guard_page(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let (_, top) = bounds(suite);
    unreachable(&mut sandbox, top, FaultKind::GuardPage)?;
    unreachable(&mut sandbox, top + PAGE - 4, FaultKind::GuardPage)
}

fn is_as_large_as_asked_for(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let (bottom, top) = bounds(suite);
    sandbox.call(load, (Val(bottom),))?;
    sandbox.call(load, (Val(top - 1),))?;
    let local = sandbox.call(|mut number: u64| address_of(core::hint::black_box(&raw mut number)), (Val(5u64),))?;
    expect!((top - PAGE..top).contains(&local), "a local variable at {local:#x}");
    Ok(())
}

/// Bytes just below the caller's stack pointer that may have been used already.
const USED: u64 = 512;

fn sum_below(bottom: u64) -> u64 {
    let mut local = bottom;
    let here = address_of(core::hint::black_box(&raw mut local));
    (bottom..here - USED).step_by(8).map(|address| load_word(address).count_ones() as u64).sum()
}

fn is_zero_at_first(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    expect_eq!(sandbox.call(sum_below, (Val(bounds(suite).0),))?, 0, "set bits in the unused part of the stack");
    Ok(())
}

fn is_not_executable(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    denied(&mut sandbox, Access::Execute, bounds(suite).0, FaultKind::Permission)?;
    let run = |code: [u8; 4]| {
        let mut code = u32::from_ne_bytes(code);
        jump(address_of(core::hint::black_box(&raw mut code)));
    };
    let exit = exit_of(&mut sandbox, run, (Val(RETURN),))?;
    let ExitReason::MemoryFault(MemoryFault { address, access, kind }) = exit.reason else { fail!("{exit}") };
    expect_eq!((access, kind, exit.at), (Access::Execute, FaultKind::Permission, address));
    expect!(address < VirtAddr(bounds(suite).1) && address >= VirtAddr(bounds(suite).1 - PAGE), "{address}");
    Ok(())
}

fn use_stack(sandbox: &mut Sandbox<'_>, depth: u64) -> Outcome {
    let climb = |depth: u64| {
        #[inline(never)]
        fn climb(depth: u64) -> u64 {
            let frame = core::hint::black_box([depth; 16]);
            if depth == 0 { 0 } else { climb(depth - 1) + core::hint::black_box(&frame)[3] }
        }
        climb(depth)
    };
    expect_eq!(sandbox.call(climb, (Val(depth),))?, depth * (depth + 1) / 2);
    works(sandbox)
}

fn can_be_one_page(suite: &Suite) -> Outcome {
    use_stack(&mut suite.sandbox_with(Config::default().stack_size(1))?, 1)
}

fn can_be_large(suite: &Suite) -> Outcome {
    use_stack(&mut suite.sandbox_with(Config::default().stack_size(8 << 20))?, 30_000)
}

fn of_no_pages_is_refused(suite: &Suite) -> Outcome {
    expect_eq!(suite.sandbox_with(Config::default().stack_size(0)).err(), Some(Error::NoStack));
    Ok(())
}

fn larger_than_the_window_is_refused(suite: &Suite) -> Outcome {
    let available = suite.window().count();
    for (size, pages) in [(suite.window().bytes() as usize, available), (usize::MAX, 1 << 52)] {
        let error = suite.sandbox_with(Config::default().stack_size(size)).err();
        expect_eq!(error, Some(Error::WindowFull { needed: pages + 2, available }));
    }
    Ok(())
}
