//! A spin lock that is held with interrupts masked.
//!
//! An interrupt handler may then take it too: the handler can't have interrupted the holder.

use crate::interrupts;

/// A value that is only reached with interrupts masked and the lock held.
pub struct MaskedLock<T> {
    value: spin::Mutex<T>,
}

impl<T> MaskedLock<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self { value: spin::Mutex::new(value) }
    }

    /// Runs `work` on the value. Taking the same lock again in `work` hangs.
    pub fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        interrupts::without(|| work(&mut self.value.lock()))
    }
}
