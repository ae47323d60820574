//! Stopping a sandbox from another CPU, or from an interrupt handler.
//!
//! What must hold: a run that is entered after `cancel` has returned sees the request, and one that is inside is interrupted.
//! So each side writes its own word before it reads the other's, in one order for all: either the run sees the request before
//! it enters, or `cancel` sees which CPU the run is on.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::host::Host;

/// A request to stop, shared between whoever runs a sandbox and whoever may want it stopped.
///
/// It is tied to a sandbox with [`Sandbox::cancel_by`](crate::Sandbox::cancel_by). The request stays until it is
/// [`reset`](Cancel::reset): every call in between ends at once. Several sandboxes may share one; those that run at the same
/// time are all stopped, but at most one of them is interrupted for it (none, if another was left since it was entered), the
/// others at the next interrupt of their CPUs.
#[derive(Debug, Default)]
pub struct Cancel {
    requested: AtomicBool,
    /// The CPU that is about to enter, or is inside, plus one; 0 if none.
    running_on: AtomicUsize,
}

impl Cancel {
    /// Nothing is requested.
    pub const fn new() -> Cancel {
        Cancel { requested: AtomicBool::new(false), running_on: AtomicUsize::new(0) }
    }

    /// Asks for the sandbox to be stopped, and has `host` interrupt the CPU that it runs on ([`Host::kick`]). Does not wait for
    /// it. May be called by an interrupt handler, and by the host's own methods.
    pub fn cancel<H: Host + ?Sized>(&self, host: &H) {
        self.requested.store(true, Ordering::SeqCst);
        if let Some(cpu) = self.running_on.load(Ordering::SeqCst).checked_sub(1) {
            host.kick(cpu);
        }
    }

    /// Takes the request back; a run that was stopped by it can go on.
    pub fn reset(&self) {
        self.requested.store(false, Ordering::SeqCst);
    }

    /// Whether the request stands.
    pub fn is_cancelled(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// Notes that a run is about to be entered on `cpu`; `false` if it must not be. Interrupts are masked, and stay so until the
    /// sandbox runs.
    pub(crate) fn enter(&self, cpu: usize) -> bool {
        self.running_on.store(cpu + 1, Ordering::SeqCst);
        !self.is_cancelled()
    }

    /// Notes that the run was left.
    pub(crate) fn leave(&self) {
        self.running_on.store(0, Ordering::Relaxed);
    }
}
