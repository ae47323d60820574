//! Sandboxes on all CPUs under every disturbance at once: a soak.
//!
//! Workers call, fault, time out, are cancelled, make and drop sandboxes, and check every result, while disturbers send
//! interrupts and NMIs to all CPUs. What a worker does next is random; `seed=N` in the arguments picks the sequence, `work=N`
//! says how much each does. How the threads meet is up to the machine, so a seed does not repeat a round exactly.
//!
//! It passes if every result was right, every end was one of those possible, and no frame is missing afterwards. That nothing
//! hangs is for whoever boots it to see to, with a timeout.

#![no_std]
#![no_main]

extern crate alloc;

mod disturber;
mod work;
mod worker;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use platform_qemu::host::{self, Qemu};
use platform_qemu::{cpu, files, memory, println, threads, time};
use sandbox_mode::Hal;
use worker::Tally;

platform_qemu::main!(main);

/// Workers for each CPU: more than one, so that they are preempted by each other.
const WORKERS_PER_CPU: usize = 2;
/// Ticks a second on each CPU: under emulation, about the most that leaves time for anything else.
const TICK_RATE: u64 = 4000;
/// What a worker does if nobody says otherwise.
const WORK: u64 = 3000;
/// What is done once before frames are counted, so that what is made only once has been made.
const WARM_UP: u64 = 10;

fn argument(name: &str, default: u64) -> u64 {
    let words = files::arguments().split_whitespace();
    let value = words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).next_back();
    value.and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn main() -> bool {
    let (seed, work) = (argument("seed", 1), argument("work", WORK));
    match host::start_hal().map_err(|error| error.to_string()).and_then(|hal| soak(hal, seed, work)) {
        Ok(tally) => {
            println!("seed {seed}, {} CPUs: {tally}", cpu::count());
            println!("1 passed, 0 failed");
            true
        }
        Err(what) => {
            println!("FAILED seed {seed}: {what}");
            println!("0 passed, 1 failed");
            false
        }
    }
}

fn soak(hal: &'static Hal<Qemu>, seed: u64, work: u64) -> Result<Tally, String> {
    threads::start();
    disturber::prepare();
    time::set_tick_rate(TICK_RATE);
    cpu::on_each(&time::start_tick);
    round(hal, seed, WARM_UP)?;
    println!("seed {seed}, {} CPUs: begins", cpu::count());
    let before = memory::free_frames();
    let tally = round(hal, seed, work)?;
    let after = memory::free_frames();
    if before != after {
        return Err(format!("{before} frames were free before, {after} are afterwards"));
    }
    Ok(tally)
}

/// Everybody at once.
fn round(hal: &'static Hal<Qemu>, seed: u64, work: u64) -> Result<Tally, String> {
    static STOP: AtomicBool = AtomicBool::new(false);
    /// All begin together: then there are as many stacks in each round.
    static BEGIN: AtomicBool = AtomicBool::new(false);
    STOP.store(false, Ordering::Relaxed);
    BEGIN.store(false, Ordering::Relaxed);
    let wait = || {
        while !BEGIN.load(Ordering::Relaxed) {
            threads::yield_now();
        }
    };
    let no_memory = |threads::OutOfMemory| "no memory for a thread".to_string();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut disturbers = Vec::new();
    for _ in 0..cpu::count() {
        let random = random.fork();
        disturbers.push(
            threads::spawn(move || {
                wait();
                disturber::run(random, &STOP)
            })
            .map_err(no_memory)?,
        );
    }
    let mut workers = Vec::new();
    for _ in 0..WORKERS_PER_CPU * cpu::count() {
        let random = random.fork();
        workers.push(
            threads::spawn(move || {
                wait();
                worker::run(hal, random, work)
            })
            .map_err(no_memory)?,
        );
    }
    BEGIN.store(true, Ordering::Relaxed);
    let mut tally = Tally::default();
    let mut failure = None;
    for worker in workers {
        match worker.join() {
            Ok(found) => tally.add(&found),
            Err(what) => failure = Some(what),
        }
    }
    STOP.store(true, Ordering::Relaxed);
    tally.disturbances = disturbers.into_iter().map(threads::JoinHandle::join).sum();
    failure.map_or(Ok(tally), Err)
}
