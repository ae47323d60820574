//! What runs when the kernel stands: the conformance suite, and checks of this kernel's own.

mod mappings;
mod preemption;
mod processes;
mod refusals;
mod registers;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicBool, Ordering};

use conformance::Tally;
use sandbox_mode::{Error, Hal, Unsupported};

use crate::console::say;
use crate::host::{Foreign, cpu_config};
use crate::registers::Lock;
use crate::suite::SuiteKernel;
use crate::{process, threads, time};

/// Why a check did not pass.
#[derive(Debug)]
enum End {
    Failed(String),
    Skipped(&'static str),
}

type Outcome<T = ()> = Result<T, End>;

impl<E: core::error::Error> From<E> for End {
    fn from(error: E) -> End {
        End::Failed(format!("{error}"))
    }
}

/// Ends a check as failed.
macro_rules! fail {
    ($($message:tt)+) => {
        return Err($crate::checks::End::Failed(alloc::format!("line {}: {}", line!(), format_args!($($message)+))))
    };
}

/// Ends a check as failed unless both are equal; the second is what must be.
macro_rules! must_be {
    ($found:expr, $wanted:expr) => {{
        let (found, wanted) = (&$found, &$wanted);
        if found != wanted {
            fail!("{} is {found:x?} and not {wanted:x?}", stringify!($found))
        }
    }};
}
use {fail, must_be};

/// What checks work with.
struct Bench {
    hal: &'static Hal<Foreign>,
    /// Whether the kernel's mappings are kept for all ASIDs.
    global: bool,
}

type Check = (&'static str, fn(&'static Bench) -> Outcome);

/// Lists functions under their names.
macro_rules! checks {
    ($($name:ident)*) => {
        pub(super) const CHECKS: &[$crate::checks::Check] = &[$((stringify!($name), $name)),*];
    };
}
use checks;

/// What of the suite a kernel without a tick can run: the rest waits for ticks.
const WITHOUT_TICKS: &str = "only=limits::a_call_out_of_time";

/// Ends a check that waits for ticks, in a kernel without.
fn needs_ticks() -> Outcome {
    match time::is_ticking() {
        true => Ok(()),
        false => Err(End::Skipped("this kernel runs without a tick")),
    }
}

/// A kernel at EL2 is refused; whether it was.
pub(crate) fn of_a_kernel_at_el2() -> bool {
    let error = Hal::new(Foreign::new()).err();
    let refused = error == Some(Error::Unsupported(Unsupported::Mode(2)));
    say!("a kernel at EL2: {error:?}");
    say!("{} passed, {} failed, 0 skipped", u8::from(refused), u8::from(!refused));
    refused
}

/// Runs everything, or what is this kernel's own; whether nothing failed.
pub(crate) fn run(arguments: &'static str) -> bool {
    let has = |wanted| arguments.split_whitespace().any(|word| word == wanted);
    threads::preempt(true);
    let mut tally = Tally::default();
    if !has("own") {
        tally = run_suite(if has("tickless") { WITHOUT_TICKS } else { arguments });
    }
    match start(!has("local")) {
        Ok(bench) => run_own(bench, arguments, &mut tally),
        Err(error) => {
            say!("FAILED  the HAL does not start: {error}");
            tally.failed += 1;
        }
    }
    say!("{tally}");
    tally.failed == 0
}

/// The suite, in a system call of the first process.
fn run_suite(arguments: &'static str) -> Tally {
    static TALLY: Lock<Option<Tally>> = Lock::new(None);
    let host = Box::leak(Box::new(Foreign::new()));
    let kernel: &'static SuiteKernel = Box::leak(Box::new(SuiteKernel { host }));
    let suite = move || {
        let tally = conformance::run_cases(kernel, arguments);
        TALLY.with(|slot| *slot = Some(tally));
    };
    process::do_in(0, Box::new(suite));
    TALLY.with(|slot| slot.take()).expect("the suite has run")
}

fn start(global: bool) -> Result<&'static Bench, Error> {
    let hal: &'static Hal<Foreign> = Box::leak(Box::new(Hal::new(Foreign::new())?));
    // SAFETY: (1) the only CPU, on its own tables; (2), (3) `cpu_config` says what this kernel is like.
    unsafe { hal.start_cpu(cpu_config()) }?;
    Ok(Box::leak(Box::new(Bench { hal, global })))
}

fn run_own(bench: &'static Bench, arguments: &str, tally: &mut Tally) {
    let verbose = arguments.split_whitespace().any(|word| word == "verbose");
    let only = arguments.split_whitespace().find_map(|word| word.strip_prefix("only="));
    let files = [
        ("mappings", mappings::CHECKS),
        ("refusals", refusals::CHECKS),
        ("registers", registers::CHECKS),
        ("processes", processes::CHECKS),
        ("preemption", preemption::CHECKS),
    ];
    for (file, checks) in files {
        for &(name, check) in checks {
            let name = format!("foreign::{file}::{name}");
            if only.is_some_and(|text| !name.contains(text)) {
                continue;
            }
            match check(bench).and_then(|()| sound()) {
                Ok(()) => {
                    tally.passed += 1;
                    if verbose {
                        say!("passed  {name}");
                    }
                }
                Err(End::Failed(message)) => {
                    tally.failed += 1;
                    say!("FAILED  {name}: {message}");
                }
                Err(End::Skipped(why)) => {
                    tally.skipped += 1;
                    say!("skipped {name}: {why}");
                }
            }
        }
    }
}

/// What must hold after every check.
fn sound() -> Outcome {
    if !crate::registers::interrupts_enabled() {
        fail!("interrupts are off");
    }
    if threads::current().is_none() {
        fail!("SP_EL0 is not the current thread");
    }
    for number in 0..process::COUNT {
        if process::complaint(number) != 0 {
            fail!("process {number} found a register changed: check {} in its code", process::complaint(number));
        }
    }
    Ok(())
}

/// Does `work` in a system call of process `number`.
fn in_process(number: usize, work: impl FnOnce() -> Outcome + Send + 'static) -> Outcome {
    let place = later(number, work);
    place.wait(number)
}

/// What becomes of work that a process does.
struct Later {
    outcome: Lock<Option<Outcome>>,
    done: AtomicBool,
}

impl Later {
    fn wait(&self, number: usize) -> Outcome {
        while !self.done.load(Ordering::Acquire) || process::is_busy(number) {
            // One that complains does nothing else any more.
            sound()?;
            threads::yield_now();
        }
        self.outcome.with(Option::take).unwrap_or(Ok(()))
    }
}

/// Begins `work` in the next system call of process `number`.
fn later(number: usize, work: impl FnOnce() -> Outcome + Send + 'static) -> &'static Later {
    let place: &'static Later = Box::leak(Box::new(Later { outcome: Lock::new(None), done: AtomicBool::new(false) }));
    process::ask(
        number,
        Box::new(move || {
            let outcome = work();
            place.outcome.with(|slot| *slot = Some(outcome));
            place.done.store(true, Ordering::Release);
        }),
    );
    place
}
