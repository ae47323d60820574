//! A lock whose holder cannot be interrupted.
//!
//! The HAL's structures are used by threads and, with interrupts masked, by anybody else on the same CPU: a holder that is
//! preempted would be waited for by the code that preempted it. So interrupts are masked while a lock is held, and what is
//! done under one is short.

use core::marker::PhantomData;

use crate::arch::Arch;

/// Data behind a spin lock that is held with interrupts masked.
pub(crate) struct IrqLock<A: Arch, T> {
    inner: spin::Mutex<T>,
    arch: PhantomData<A>,
}

impl<A: Arch, T> IrqLock<A, T> {
    pub(crate) const fn new(value: T) -> Self {
        IrqLock { inner: spin::Mutex::new(value), arch: PhantomData }
    }

    /// Runs `f` on the data, alone and undisturbed.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let state = A::mask_interrupts();
        let result = f(&mut self.inner.lock());
        // SAFETY: (1) `state` is what `mask_interrupts` returned just above, on this CPU: no thread switch can happen with
        // interrupts masked.
        unsafe { A::restore_interrupts(state) };
        result
    }

    /// The data, of a lock that nobody else can reach.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}
