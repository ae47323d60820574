//! The panic handler: report and exit with failure.

use core::{
    panic::PanicInfo,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{console::print_unlocked, exit, interrupts};

static PANICKING: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    interrupts::disable();
    // A panic while reporting one (in a `Display` of the message) must not recurse.
    if !PANICKING.swap(true, Ordering::Relaxed) {
        print_unlocked(format_args!("\n{info}\n"));
    }
    exit::exit(false)
}
