//! An interrupt while a sandbox runs, with nothing else that could interrupt it.
//!
//! The CPU's tick is off meanwhile. An alarm is repeated until the sandbox has said that it is inside, which it stays until it is
//! told to stop: what the alarm finds then is the sandbox.

use core::sync::atomic::{AtomicPtr, Ordering};

use platform_qemu::interrupts::without;
use platform_qemu::lock::MaskedLock;
use platform_qemu::time;

use crate::words::{INSIDE, Words};

/// Nanoseconds until the alarm.
const DELAY: u64 = 100_000;

static WORDS: AtomicPtr<Words> = AtomicPtr::new(core::ptr::null_mut());
static ACTION: MaskedLock<Option<fn(&'static Words)>> = MaskedLock::new(None);

/// The tick of this CPU is off as long as this lives. The thread stays on its CPU.
pub(crate) struct Quiet;

impl Quiet {
    pub(crate) fn new() -> Self {
        time::stop_tick();
        Quiet
    }

    /// Has `action` run, once, in an interrupt handler on this CPU, when the sandbox that has `words` is inside.
    pub(crate) fn when_inside(&self, words: &'static Words, action: fn(&'static Words)) {
        without(|| {
            WORDS.store((&raw const *words).cast_mut(), Ordering::SeqCst);
            ACTION.with(|slot| *slot = Some(action));
            time::on_alarm(on_alarm);
            time::arm(time::now() + DELAY);
        });
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        ACTION.with(Option::take);
        time::start_tick();
    }
}

fn on_alarm() {
    // SAFETY: only pages that live for ever are stored; null before.
    let Some(words) = (unsafe { WORDS.load(Ordering::SeqCst).as_ref() }) else {
        return;
    };
    if words.get(INSIDE) == 0 {
        time::arm(time::now() + DELAY);
        return;
    }
    if let Some(action) = ACTION.with(Option::take) {
        action(words);
    }
}
