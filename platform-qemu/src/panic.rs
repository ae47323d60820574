//! Last words: the panic handler, and who may report.

use core::{
    hint::spin_loop,
    panic::PanicInfo,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::{console::print_unlocked, cpu, exit, interrupts};

/// One CPU at a time reports that the kernel is at its end, and the end of its report is that of the machine.
pub(crate) struct Reporter(AtomicUsize);

const NOBODY: usize = usize::MAX;

impl Reporter {
    pub(crate) const fn new() -> Self {
        Self(AtomicUsize::new(NOBODY))
    }

    /// Whether this CPU is to report: not if it does so already, since a report that fails must not begin again. Does not return
    /// if another one reports.
    pub(crate) fn begin(&self) -> bool {
        let cpu = cpu::index();
        match self.0.compare_exchange(NOBODY, cpu, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => true,
            Err(first) if first == cpu => false,
            Err(_) => loop {
                spin_loop();
            },
        }
    }
}

static REPORTER: Reporter = Reporter::new();

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    interrupts::disable();
    // A panic while reporting one (in a `Display` of the message) must not recurse.
    if REPORTER.begin() {
        print_unlocked(format_args!("\n{info}\n"));
    }
    exit::exit(false)
}
