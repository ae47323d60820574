//! Running the cases and telling what became of them.

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering;

use sandbox_mode::walk::{Mapping, walk};
use sandbox_mode::{Arch, Config, Error, Frame, Hal, Host, Page, PageRange, Permissions, VirtAddr};

use crate::audit::{self, Auditor, Snapshot};
use crate::host::{self, SuiteHost};
use crate::kernel::Kernel;
use crate::machine;
use crate::verdict::{Outcome, Verdict};
use crate::{
    buffers, exhaustion, frames, grants, instructions, interrupts, limits, memory, refusals, stack, state,
    translations, values, vectors,
};

/// A sandbox of the suite's.
pub(crate) type Sandbox<'a> = sandbox_mode::Sandbox<'a, SuiteHost>;

/// One thing that must hold.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Suite) -> Outcome,
}

/// Lists a file's cases under their functions' names.
macro_rules! cases {
    ($($name:ident,)*) => {
        pub(crate) const CASES: &[$crate::suite::Case] =
            &[$($crate::suite::Case { name: stringify!($name), run: $name }),*];
    };
}
pub(crate) use cases;

const FILES: &[(&str, &[Case])] = &[
    ("values", values::CASES),
    ("buffers", buffers::CASES),
    ("memory", memory::CASES),
    ("stack", stack::CASES),
    ("instructions", instructions::CASES),
    ("interrupts", interrupts::CASES),
    ("limits", limits::CASES),
    ("grants", grants::CASES),
    ("refusals", refusals::CASES),
    ("frames", frames::CASES),
    ("exhaustion", exhaustion::CASES),
    ("translations", translations::CASES),
    ("state", state::CASES),
    ("hardening", audit::hardening::CASES),
    ("poison", audit::poison::CASES),
    ("leaks", audit::leaks::CASES),
    ("vectors", vectors::CASES),
];

/// What a case works with.
pub(crate) struct Suite {
    pub(crate) kernel: &'static dyn Kernel,
    pub(crate) hal: &'static Hal<SuiteHost>,
    pub(crate) auditor: Auditor,
    verbose: bool,
}

impl Suite {
    fn start(kernel: &'static dyn Kernel, auditor: Auditor, verbose: bool) -> Result<Self, Error> {
        let hal: &'static Hal<SuiteHost> = Box::leak(Box::new(Hal::new(SuiteHost::new(kernel))?));
        // SAFETY: (1) to (3): `run` is called once, and the kernel promises that its only CPU is started with what it says.
        unsafe { hal.start_cpu(kernel.cpu_config()) }?;
        machine::THREAD_BASE_IN_USE.store(kernel.uses_thread_base(), Ordering::Relaxed);
        Ok(Suite { kernel, hal, auditor, verbose })
    }

    /// A fresh sandbox, as the kernel wants them.
    pub(crate) fn sandbox<'a>(&self) -> Result<Sandbox<'a>, Error> {
        self.sandbox_with(self.kernel.config())
    }

    /// A fresh sandbox with a configuration.
    pub(crate) fn sandbox_with<'a>(&self, config: Config) -> Result<Sandbox<'a>, Error> {
        self.hal.sandbox_with(config)
    }

    /// The window of all sandboxes.
    pub(crate) fn window(&self) -> PageRange {
        self.hal.host().window()
    }

    /// The frame that the host maps at `page`.
    pub(crate) fn frame_of(&self, page: Page) -> Option<Frame> {
        self.mapping_of(page).map(|mapping| mapping.frame)
    }

    /// What the host itself may do at `page`.
    pub(crate) fn permissions_of(&self, page: Page) -> Option<Permissions> {
        self.mapping_of(page).map(|mapping| mapping.permissions)
    }

    fn mapping_of(&self, page: Page) -> Option<Mapping> {
        let mut mapping = None;
        self.hal.host().with_tables(&mut |roots| {
            mapping = walk(self.hal.arch().format(), roots, page, |table, index| {
                // SAFETY: a table of the host's, which is in use and does not change meanwhile, and one of its entries.
                unsafe { self.hal.host().frame_pointer(table).cast::<u64>().add(index).read_volatile() }
            });
        });
        mapping
    }

    /// The page at which the host's own view of its frames has `frame`.
    pub(crate) fn page_of(&self, frame: Frame) -> Page {
        VirtAddr::of(self.hal.host().frame_pointer(frame)).page()
    }

    /// Says something about the case that is running, if anybody wants to know.
    pub(crate) fn note(&self, text: fmt::Arguments<'_>) {
        if self.verbose {
            self.kernel.print(format_args!("    {text}\n"));
        }
    }

    /// Nothing of the CPU's state differs from what it was.
    pub(crate) fn unchanged_since(&self, before: &Snapshot, what: fmt::Arguments<'_>) -> Outcome {
        let mut text = String::new();
        for difference in before.differences(&self.auditor.look()) {
            // A string takes everything.
            let _ = write!(text, "; {difference}");
        }
        expect!(text.is_empty(), "after {what}{text}");
        Ok(())
    }

    /// Does `work` with registers at values that a host might have there; it leaves them so.
    pub(crate) fn with_unusual_state(&self, work: &mut dyn FnMut() -> Outcome) -> Outcome {
        let mut outcome = Ok(());
        machine::with_unusual_state(&mut || {
            machine::fill_vectors(machine::PATTERN);
            outcome = self.audited("the work in an unusual state", work);
            machine::fill_vectors(0);
        });
        outcome
    }

    /// Does `work` and looks for differences, unless it failed anyway.
    fn audited(&self, what: &str, work: &mut dyn FnMut() -> Outcome) -> Outcome {
        let before = self.auditor.look();
        let outcome = work();
        if !matches!(outcome, Err(Verdict::Failed(_))) {
            self.unchanged_since(&before, format_args!("{what}"))?;
        }
        outcome
    }

    /// Runs a case and checks what must hold after each.
    fn run(&self, case: &Case) -> Outcome {
        self.kernel.between_cases();
        let frames = self.kernel.free_frames();
        host::take_unclean();
        self.audited("the case", &mut || (case.run)(self))?;
        expect!(self.kernel.interrupts_enabled(), "interrupts are off afterwards");
        expect_eq!(host::take_unclean(), 0, "frames that came back with something in them");
        expect_eq!(self.kernel.free_frames(), frames, "free frames afterwards");
        Ok(())
    }
}

/// What became of a number of cases.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// As they must be.
    pub passed: usize,
    /// Not so.
    pub failed: usize,
    /// The machine can't show it.
    pub skipped: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs the suite and prints its result; whether nothing failed. To be called once, since it makes the machine's HAL.
///
/// `arguments` are words: `verbose` prints a line for each case, `only=TEXT` runs the cases whose name (`file::case`)
/// contains the text, `audit-list` prints first what the auditor looks away from, and why. The last line is
/// `N passed, N failed, N skipped`.
pub fn run(kernel: &'static dyn Kernel, arguments: &str) -> bool {
    let tally = run_cases(kernel, arguments);
    kernel.print(format_args!("{tally}\n"));
    tally.failed == 0
}

/// Runs the suite as [`run`] does, for a kernel that has cases of its own to add: what became of its cases. Prints no last line.
pub fn run_cases(kernel: &'static dyn Kernel, arguments: &str) -> Tally {
    let verbose = arguments.split_whitespace().any(|word| word == "verbose");
    let only = arguments.split_whitespace().find_map(|word| word.strip_prefix("only="));
    let auditor = match Auditor::new(kernel) {
        Ok(auditor) => auditor,
        Err(why) => {
            kernel.print(format_args!("nothing can be audited: {why}\n"));
            return Tally { failed: 1, ..Tally::default() };
        }
    };
    if arguments.split_whitespace().any(|word| word == "audit-list") {
        list(kernel, &auditor);
    }
    let suite = match Suite::start(kernel, auditor, verbose) {
        Ok(suite) => suite,
        Err(error) => {
            kernel.print(format_args!("the HAL does not start: {error}\n"));
            return Tally { failed: 1, ..Tally::default() };
        }
    };
    let mut tally = Tally::default();
    for &(file, cases) in FILES.iter().chain(crate::machine::FILES) {
        for case in cases {
            let name = Name { file, case: case.name };
            if only.is_some_and(|text| !alloc::format!("{name}").contains(text)) {
                continue;
            }
            match suite.run(case) {
                Ok(()) => {
                    tally.passed += 1;
                    if verbose {
                        kernel.print(format_args!("passed  {name}\n"));
                    }
                }
                Err(Verdict::Failed(message)) => {
                    tally.failed += 1;
                    kernel.print(format_args!("FAILED  {name}: {message}\n"));
                }
                Err(Verdict::Skipped(why)) => {
                    tally.skipped += 1;
                    kernel.print(format_args!("skipped {name}: {why}\n"));
                }
            }
        }
    }
    tally
}

/// Prints what the auditor looks away from, which protections it knows, and how much it looks at.
fn list(kernel: &dyn Kernel, auditor: &Auditor) {
    for ignored in audit::ignored() {
        kernel.print(format_args!("ignored: {ignored}\n"));
    }
    for (name, available, on) in audit::protections() {
        let state = match (available, on) {
            (_, true) => "on",
            (true, false) => "off",
            (false, false) => "not there",
        };
        kernel.print(format_args!("protection: {name}, {state}\n"));
    }
    kernel.print(format_args!("{} words are looked at\n", auditor.look().len()));
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
