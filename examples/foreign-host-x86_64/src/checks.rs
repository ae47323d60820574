//! This kernel's own checks: around the conformance suite, and of calls from its threads and from system calls.

use alloc::boxed::Box;
use core::hint::black_box;
use core::sync::atomic::Ordering;
use core::time::Duration;

use sandbox_mode::{
    CallError, CpuConfig, Error, ExitReason, FaultKind, Hal, PageRange, Permissions, Preemption, Sandbox, Val, VirtAddr,
};
use spin::Once;
use x86_64::instructions::tables::sgdt;

use crate::console::println;
use crate::cpu::{self, COUNTERS};
use crate::descriptors::FREE_STACKS;
use crate::devices::{self, TICKS};
use crate::host::Foreign;
use crate::lock::Masked;
use crate::memory;
use crate::processes::{self, COUNT, DATA, SCRATCH};
use crate::suite::{self, Suite};
use crate::tally::Tally;

static HAL: Once<Hal<Foreign>> = Once::new();
/// Where each process's system calls sum.
static SANDBOXES: [Masked<Option<Sandbox<'static, Foreign>>>; COUNT] = [const { Masked::new(None) }; COUNT];

/// Runs the suite, and looks afterwards at what handlers and processes found meanwhile.
pub(crate) fn run_suite(words: &str) -> bool {
    let registers = cpu::system_call_registers();
    processes::run_each();
    processes::set_preemptive(words.split_whitespace().any(|word| word == "preempt"));
    let passed = conformance::run(&Suite, words);
    processes::set_preemptive(false);
    processes::use_root(0);
    let counts = suite::sum();
    let mut tally = Tally::from(counts.unwrap_or_default());
    tally.equal("the suite's own verdict", Some(passed), counts.map(|counts| counts.failed == 0 && counts.passed > 0));
    afterwards(&mut tally, registers, 2);
    tally.finish()
}

/// What must be so in the end, when each process has done so many rounds.
fn afterwards(tally: &mut Tally, registers: [u64; 6], rounds: u64) {
    processes::run_each();
    let done = processes::rounds();
    println!(
        "{} ticks, {} interrupts of the clock, {} of processes, {done:?} rounds of these",
        TICKS.now(),
        COUNTERS.clock.load(Ordering::Relaxed),
        COUNTERS.of_processes.load(Ordering::Relaxed)
    );
    tally.check("the processes have run", if done.iter().all(|&done| done >= rounds) { Ok(()) } else { Err(done) });
    tally.equal("rounds of processes that came out wrong", processes::wrong(), 0);
    for (what, counter) in [
        ("handlers with a wrong GS base", &COUNTERS.wrong_base),
        ("handlers on a wrong stack", &COUNTERS.wrong_stack),
        ("handlers that were shown something wrong", &COUNTERS.wrong_frame),
    ] {
        tally.equal(what, counter.load(Ordering::Relaxed), 0);
    }
    tally.equal("the registers of system calls", cpu::system_call_registers(), registers);
    // A hang is a failure.
    for counter in [TICKS.counter(), &COUNTERS.clock] {
        let before = counter.load(Ordering::Relaxed);
        while counter.load(Ordering::Relaxed) == before {}
    }
    tally.check("the devices go on", Ok::<(), ()>(()));
}

/// Runs the others.
pub(crate) fn run_own() -> bool {
    let mut tally = Tally::default();
    let registers = cpu::system_call_registers();
    processes::run_each();
    tally.equal("rounds before the HAL", processes::rounds(), [1; COUNT]);
    let table = sgdt().base;
    match start() {
        Ok(hal) => {
            tally.check("the HAL has its own table", if { sgdt().base } != table { Ok(()) } else { Err(table) });
            let sandbox = Box::new(hal.sandbox().expect("RAM"));
            let free = memory::free_count();
            processes_between_calls(&mut tally, hal);
            on_each_root(&mut tally, hal);
            a_process_is_out_of_reach(&mut tally, hal);
            stopped_on_each_root(&mut tally, hal);
            tally.equal("free frames", memory::free_count(), free);
            system_calls_that_call(&mut tally);
            preempted(&mut tally, *sandbox);
            SANDBOXES.iter().for_each(|sandbox| drop(sandbox.with(Option::take)));
        }
        Err(error) => tally.check("the HAL", Err(error)),
    }
    afterwards(&mut tally, registers, 5);
    tally.finish()
}

fn start() -> Result<&'static Hal<Foreign>, Error> {
    let hal = HAL.try_call_once(|| Hal::new(Foreign::new()))?;
    // SAFETY: (1) and (2): once on the only CPU, and while sandboxes are called GDTR and TR stay as they are then; (3) these stacks are
    // free, no page of a process is global, and no device raises a vector below 32.
    unsafe { hal.start_cpu(CpuConfig::default().free_stacks(FREE_STACKS)) }?;
    Ok(hal)
}

/// What a call must not change and might.
fn mix(number: u64, steps: u64) -> u64 {
    (0..steps).fold(number, |state, step| black_box(state.rotate_left(7) ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

fn processes_between_calls(tally: &mut Tally, hal: &'static Hal<Foreign>) {
    let mut sandbox = hal.sandbox().expect("RAM");
    let before = processes::rounds();
    for number in 0..200 {
        processes::run_each();
        let result = sandbox.call(mix, (Val(number), Val(100u64)));
        if result != Ok(mix(number, 100)) {
            return tally.check("calls between system calls", Err(result));
        }
    }
    tally.equal("rounds between calls", processes::rounds(), before.map(|rounds| rounds + 200));
}

fn on_each_root(tally: &mut Tally, hal: &'static Hal<Foreign>) {
    let mut sandbox = hal.sandbox().expect("RAM");
    for round in 0..300_u64 {
        processes::use_root(round as usize % (COUNT + 1));
        let result = sandbox.call(mix, (Val(round), Val(50 * round)));
        if result != Ok(mix(round, 50 * round)) {
            tally.check("calls on each root", Err(result));
            break;
        }
    }
    processes::use_root(0);
    tally.check("calls on each root", Ok::<(), ()>(()));
}

fn load(address: u64) -> u64 {
    // SAFETY: none is needed in a sandbox.
    unsafe { core::ptr::with_exposed_provenance::<u64>(address as usize).read_volatile() }
}

fn a_process_is_out_of_reach(tally: &mut Tally, hal: &'static Hal<Foreign>) {
    for root in 1..=COUNT {
        processes::use_root(root);
        let mut sandbox = hal.sandbox().expect("RAM");
        for address in [DATA, SCRATCH] {
            let found = match sandbox.call(load, (Val(address),)) {
                Err(CallError::Exit(exit)) => match exit.reason {
                    ExitReason::MemoryFault(fault) if fault.kind == FaultKind::Unmapped => Ok(()),
                    reason => Err(Some(reason)),
                },
                _ => Err(None),
            };
            tally.check("a process's page", found);
        }
        processes::use_root(0);
    }
}

fn stopped_on_each_root(tally: &mut Tally, hal: &'static Hal<Foreign>) {
    let endless = || -> u64 {
        loop {
            core::hint::spin_loop();
        }
    };
    for root in 0..=COUNT {
        processes::use_root(root);
        let mut sandbox = hal.sandbox().expect("RAM");
        tally.equal("a limit", sandbox.limit_time(Some(Duration::from_millis(5))), Ok(()));
        let reason = match sandbox.call(endless, ()) {
            Err(CallError::Exit(exit)) => Some(exit.reason),
            _ => None,
        };
        tally.equal("how an endless call ends", reason, Some(ExitReason::Preempted(Preemption::Deadline)));
        processes::use_root(0);
    }
}

/// Sums a process's data in its own sandbox, which has been granted that page. Runs on the process's thread and root.
fn sum_in_sandbox(address: u64, bytes: u64) -> u64 {
    let place = &SANDBOXES[processes::running().expect("system calls are made by processes")];
    let mut sandbox = place.with(Option::take).unwrap_or_else(|| {
        let mut sandbox = HAL.get().expect("it was started").sandbox().expect("RAM");
        let page = PageRange::single(VirtAddr(address).page());
        // SAFETY: (1) processes are never ended; (2) the process waits for the system call.
        unsafe { sandbox.grant_range(page, Permissions::READ) }.expect("the page is the process's");
        sandbox
    });
    // More steps than a tick has.
    let sum = sandbox.call(
        |address: u64, bytes: u64, steps: u64| {
            let difference = mix(address, steps) ^ mix(address, steps);
            (0..bytes / 8).fold(difference, |sum, index| sum.wrapping_add(load(address + 8 * index)))
        },
        (Val(address), Val(bytes), Val(2000u64)),
    );
    place.with(|place| *place = Some(sandbox));
    sum.unwrap_or(0)
}

fn system_calls_that_call(tally: &mut Tally) {
    processes::set_sum(sum_in_sandbox);
    let before = processes::rounds();
    (0..100).for_each(|_| processes::run_each());
    tally.equal("rounds with sandboxes", processes::rounds(), before.map(|rounds| rounds + 100));
    tally.equal("sums of sandboxes that came out wrong", processes::wrong(), 0);
}

/// All threads are in sandboxes, and the tick switches between them wherever they are.
fn preempted(tally: &mut Tally, mut sandbox: Sandbox<'static, Foreign>) {
    let goal = processes::rounds().map(|rounds| rounds + 300);
    processes::set_preemptive(true);
    let mut number = 0;
    let mut wrong = 0;
    while processes::rounds().iter().zip(goal).any(|(&rounds, goal)| rounds < goal) {
        number += 1;
        wrong += u64::from(sandbox.call(mix, (Val(number), Val(30_000u64))) != Ok(mix(number, 30_000)));
    }
    processes::set_preemptive(false);
    println!("{number} calls among preempted threads, at {} ns", devices::now());
    tally.equal("calls of a preempted thread that came out wrong", wrong, 0);
}
