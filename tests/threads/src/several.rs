//! Several CPUs at once.

use alloc::vec::Vec;

use platform_qemu::{cpu, threads, time};
use sandbox_mode::{In, InOut, Out, PAGE_SIZE, Permissions, Val};

use crate::probe::{GAVE_UP, chain, compute, meet};
use crate::suite::{Patience, Suite, cases, on};
use crate::verdict::Outcome;
use crate::words::{FREE, INSIDE, STOP, Words};

cases! {
    all_cpus_are_inside_at_once: 2,
    sandboxes_come_and_go_on_all_cpus: 1,
    all_cpus_share_one_writable_page: 2,
    many_threads_on_all_cpus_compute_right: 1,
    the_clock_is_the_same_everywhere: 2,
}

/// A thread stays on each CPU, and no sandbox returns before all are inside.
fn all_cpus_are_inside_at_once(suite: &Suite) -> Outcome {
    const ROUNDS: usize = 10;
    let hal = suite.hal;
    let count = cpu::count();
    for _ in 0..ROUNDS {
        let words = Words::new();
        let mut running = Vec::new();
        for index in 0..count {
            running.push(on(index, move || {
                let mut sandbox = hal.sandbox()?;
                words.grant(&mut sandbox, Permissions::READ_WRITE)?;
                let place = sandbox.call(meet, (Val(words.address()), Val(count as u64)))?;
                expect!(place != GAVE_UP, "the others didn't come");
                Ok(place)
            })?);
        }
        let mut places = Vec::new();
        for thread in running {
            places.push(thread.join()?);
        }
        places.sort_unstable();
        expect_eq!(places, (0..count as u64).collect::<Vec<_>>());
    }
    Ok(())
}

fn copy(from: &[u8], to: &mut [u8]) -> u64 {
    to.copy_from_slice(from);
    from.iter().map(|&byte| u64::from(byte)).sum()
}

/// Creation, calls with buffers, grants and destruction at the same time; the suite counts the frames.
fn sandboxes_come_and_go_on_all_cpus(suite: &Suite) -> Outcome {
    const ROUNDS: u64 = 25;
    let hal = suite.hal;
    let words = Words::new();
    let mut running = Vec::new();
    for index in 0..cpu::count() {
        running.push(on(index, move || {
            for round in 0..ROUNDS {
                let mut sandbox = hal.sandbox()?;
                let mut other = hal.sandbox()?;
                words.grant(&mut sandbox, Permissions::READ_WRITE)?;
                words.grant(&mut other, Permissions::READ)?;
                let len = 1 + (round as usize * 977 + index * 313) % (3 * PAGE_SIZE);
                let from: Vec<u8> = (0..len).map(|i| (i * 7 + index) as u8).collect();
                let mut to = alloc::vec![0; len];
                let sum = sandbox.call(copy, (In(&*from), Out(&mut *to)))?;
                expect_eq!(sum, from.iter().map(|&byte| u64::from(byte)).sum::<u64>());
                expect!(from == to, "{len} bytes");
                expect_eq!(other.call(chain, (Val(round), Val(100)))?, chain(round, 100));
                drop(sandbox);
                expect_eq!(other.call(crate::probe::load, (Val(words.address()), Val(INSIDE as u64)))?, 0);
            }
            Ok(())
        })?);
    }
    running.into_iter().try_for_each(threads::JoinHandle::join)
}

fn add(page: u64, index: u64, times: u64) {
    for _ in 0..times {
        let pointer: *mut u64 = core::ptr::with_exposed_provenance_mut(page as usize + index as usize * 8);
        // SAFETY: the page was granted; if not, the access ends the run.
        let word = unsafe { core::sync::atomic::AtomicU64::from_ptr(pointer) };
        word.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
    }
}

fn all_cpus_share_one_writable_page(suite: &Suite) -> Outcome {
    const TIMES: u64 = 20_000;
    let hal = suite.hal;
    let words = Words::new();
    let mut running = Vec::new();
    for index in 0..cpu::count() {
        running.push(on(index, move || {
            let mut sandbox = hal.sandbox()?;
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            sandbox.call(add, (Val(words.address()), Val(FREE as u64), Val(TIMES)))?;
            Ok(())
        })?);
    }
    running.into_iter().try_for_each(threads::JoinHandle::join)?;
    expect_eq!(words.get(FREE), TIMES * cpu::count() as u64);
    Ok(())
}

/// More threads than CPUs, none of which stays anywhere.
fn many_threads_on_all_cpus_compute_right(suite: &Suite) -> Outcome {
    const TIME: u64 = 100_000_000;
    let hal = suite.hal;
    let words = Words::new();
    let count = 3 * cpu::count() as u64;
    let mut running = Vec::new();
    for me in 0..count {
        running.push(threads::spawn(move || -> Outcome<u64> {
            let mut sandbox = hal.sandbox()?;
            words.grant(&mut sandbox, Permissions::READ_WRITE)?;
            let (seed, mut steps) = (3000 + me, 0);
            let found = sandbox.call(compute, (Val(words.address()), Val(seed), InOut(&mut steps)))?;
            expect_eq!(found, chain(seed, steps), "{steps} steps");
            Ok(steps)
        })?);
    }
    let patience = Patience::new();
    let end = time::now() + TIME;
    while words.get(INSIDE) < count || time::now() < end {
        if let Err(verdict) = patience.check() {
            words.set(STOP, 1);
            return Err(verdict);
        }
        threads::yield_now();
    }
    words.set(STOP, 1);
    let mut steps = 0;
    for thread in running {
        steps += thread.join()?;
    }
    suite.note(format_args!("{count} threads, {steps} steps"));
    Ok(())
}

/// What time limits rest on: a thread that moves doesn't see the clock go back.
fn the_clock_is_the_same_everywhere(_: &Suite) -> Outcome {
    let mut last = time::now();
    for round in 0..20 {
        threads::pin(Some(round % cpu::count()));
        let now = time::now();
        expect!(now >= last, "{now} after {last} on CPU {}", cpu::index());
        last = now;
    }
    threads::pin(Some(0));
    Ok(())
}
