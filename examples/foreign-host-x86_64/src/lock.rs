//! A lock for what interrupt handlers and preempted threads share: masked while it is held.

use spin::Mutex;
use x86_64::instructions::interrupts::without_interrupts;

/// A value that is used with interrupts masked.
pub(crate) struct Masked<T>(Mutex<T>);

impl<T> Masked<T> {
    /// A lock around `value`.
    pub(crate) const fn new(value: T) -> Self {
        Masked(Mutex::new(value))
    }

    /// Uses the value.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        without_interrupts(|| work(&mut self.0.lock()))
    }
}
