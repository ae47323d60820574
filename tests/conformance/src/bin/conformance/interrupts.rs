//! The suite's own interrupts.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine;

static ORDINARY: AtomicU64 = AtomicU64::new(0);
static FAST: AtomicU64 = AtomicU64::new(0);

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Handles them.
pub(crate) fn register() {
    platform_qemu::interrupts::register(machine::ORDINARY_LINE, || count(&ORDINARY));
    if let Some(line) = machine::FAST_LINE {
        platform_qemu::interrupts::register(line, || count(&FAST));
    }
}

/// How many ordinary ones were handled.
pub(crate) fn ordinary() -> u64 {
    ORDINARY.load(Ordering::Relaxed)
}

/// How many fast ones were handled.
pub(crate) fn fast() -> u64 {
    FAST.load(Ordering::Relaxed)
}
