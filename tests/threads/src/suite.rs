//! Running the cases and telling what became of them.

use core::fmt;

use platform_qemu::host::{Qemu, start_hal};
use platform_qemu::threads::{self, JoinHandle, Options};
use platform_qemu::{cpu, interrupts as host_interrupts, memory, print, println, time};
use sandbox_mode::Hal;

use crate::verdict::{Outcome, Verdict};
use crate::{interrupts, moves, one_cpu, roots, several, stops, views};

/// A sandbox of the suite's.
pub(crate) type Sandbox<'a> = sandbox_mode::Sandbox<'a, Qemu>;

/// One thing that must hold.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// How many CPUs it takes.
    pub(crate) cpus: usize,
    pub(crate) run: fn(&Suite) -> Outcome,
}

/// Lists a file's cases under their functions' names, with the number of CPUs that each takes.
macro_rules! cases {
    ($($name:ident: $cpus:expr,)*) => {
        pub(crate) const CASES: &[$crate::suite::Case] =
            &[$($crate::suite::Case { name: stringify!($name), cpus: $cpus, run: $name }),*];
    };
}
pub(crate) use cases;

const FILES: [(&str, &[Case]); 7] = [
    ("one_cpu", one_cpu::CASES),
    ("several", several::CASES),
    ("moves", moves::CASES),
    ("views", views::CASES),
    ("roots", roots::CASES),
    ("interrupts", interrupts::CASES),
    ("stops", stops::CASES),
];

/// What a case works with.
pub(crate) struct Suite {
    pub(crate) hal: &'static Hal<Qemu>,
    verbose: bool,
}

impl Suite {
    /// Says something about the case that is running, if anybody wants to know.
    pub(crate) fn note(&self, text: fmt::Arguments<'_>) {
        if self.verbose {
            println!("    {text}");
        }
    }

    /// Runs a case and checks what must hold after each.
    fn run(&self, case: &Case) -> Outcome {
        if cpu::count() < case.cpus {
            return Err(Verdict::Skipped("it takes more CPUs"));
        }
        // What is kept from the first time on: stacks of threads, tables of the HAL's record.
        (case.run)(self)?;
        let frames = memory::free_frames();
        (case.run)(self)?;
        expect!(host_interrupts::enabled(), "interrupts are off afterwards");
        expect_eq!(host_interrupts::unclaimed(), 0, "interrupts without a handler");
        expect_eq!(memory::free_frames(), frames, "free frames afterwards");
        Ok(())
    }
}

/// Starts a thread that stays on a CPU.
pub(crate) fn on<T: Send + 'static>(
    cpu: usize,
    work: impl FnOnce() -> Outcome<T> + Send + 'static,
) -> Outcome<JoinHandle<Outcome<T>>> {
    Ok(threads::spawn_with(Options { cpu: Some(cpu), ..Options::default() }, work)?)
}

/// The end of a wait: far longer than anything takes, on a machine that does other things too.
pub(crate) struct Patience(u64);

impl Patience {
    const NANOSECONDS: u64 = 60_000_000_000;

    pub(crate) fn new() -> Self {
        Patience(time::now() + Self::NANOSECONDS)
    }

    pub(crate) fn check(&self) -> Outcome {
        expect!(time::now() < self.0, "waited for too long");
        Ok(())
    }
}

/// Runs the suite and prints its result; whether nothing failed.
pub(crate) fn run(arguments: &str) -> bool {
    let verbose = arguments.split_whitespace().any(|word| word == "verbose");
    let only = arguments.split_whitespace().find_map(|word| word.strip_prefix("only="));
    let hal = match start_hal() {
        Ok(hal) => hal,
        Err(error) => {
            print!("the HAL does not start: {error}\n0 passed, 1 failed, 0 skipped\n");
            return false;
        }
    };
    threads::start();
    let suite = Suite { hal, verbose };
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (file, cases) in FILES {
        for case in cases {
            let name = Name { file, case: case.name };
            if only.is_some_and(|text| !alloc::format!("{name}").contains(text)) {
                continue;
            }
            match suite.run(case) {
                Ok(()) => {
                    passed += 1;
                    if verbose {
                        println!("passed  {name}");
                    }
                }
                Err(Verdict::Failed(message)) => {
                    failed += 1;
                    println!("FAILED  {name}: {message}");
                }
                Err(Verdict::Skipped(why)) => {
                    skipped += 1;
                    println!("skipped {name}: {why}");
                }
            }
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    failed == 0
}

struct Name {
    file: &'static str,
    case: &'static str,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.file, self.case)
    }
}
