//! A call in progress.
//!
//! A run is a value: stepping it enters the sandbox, and it comes back when an interrupt was handled, a value returned, or
//! the code ended otherwise. Limits are looked at before each entry, so an interrupt is handled before it stops a call. A
//! suspended run owns its borrows, so what its outputs refer to stays untouched until it has completed, and dropping it
//! abandons the call.

use core::marker::PhantomData;
use core::time::Duration;

use zerocopy::FromBytes;

use crate::addr::VirtAddr;
use crate::arch::{Arch, Cause, Refusal, Trap};
use crate::argument::Arguments;
use crate::error::Error;
use crate::exit::{Exit, ExitReason, FaultKind, MemoryFault, Preemption};
use crate::format::Format;
use crate::host::Host;
use crate::limits::Watch;
use crate::permissions::Access;
use crate::sandbox::Sandbox;
use crate::view::ViewMemory;

/// A call that has begun and not ended.
#[must_use = "a run does nothing until it is resumed or stepped"]
pub struct Run<'r, 'a, H: Host, A: Arch, T: Arguments, R> {
    sandbox: &'r mut Sandbox<'a, H, A>,
    arguments: T,
    /// What may stop the call; `None`: nothing but a host that wants its CPU.
    watch: Option<Watch>,
    /// Whether entering takes more than that: it is watched, or has vector registers.
    special: bool,
    /// An interrupt was handled since the last entry, and the host was not asked yet whether it wants the CPU.
    interrupted: bool,
    result: PhantomData<fn() -> R>,
}

/// Why a run let go, while it is still at hand.
pub(crate) enum Stop<R> {
    Returned(R),
    Preempted(Preemption),
    Exited(Exit),
}

/// What became of a run.
#[must_use = "a run that stopped has to be resumed or stepped, or is given up"]
pub enum Progress<'r, 'a, H: Host, A: Arch, T: Arguments, R> {
    /// The function returned this, and the outputs are written.
    Returned(R),
    /// An interrupt was handled, or the CPU's caches were put right: step again to go on.
    Suspended(Run<'r, 'a, H, A, T, R>),
    /// It was stopped from outside, before its next instruction. Resume or step it to go on from there, or drop it.
    Preempted(Preemption, Run<'r, 'a, H, A, T, R>),
    /// The code ended without returning. The outputs are as they were.
    Exited(Exit),
}

impl<'r, 'a, H: Host, A: Arch, T: Arguments, R: FromBytes + 'static> Run<'r, 'a, H, A, T, R> {
    pub(crate) fn new(sandbox: &'r mut Sandbox<'a, H, A>, arguments: T, watch: Option<Watch>) -> Self {
        let special = sandbox.special;
        Run { sandbox, arguments, watch, special, interrupted: false, result: PhantomData }
    }

    /// Runs until the function has returned, the code has ended, or it is stopped from outside: never
    /// [`Progress::Suspended`].
    ///
    /// # Errors
    ///
    /// As [`step`](Run::step).
    pub fn resume(mut self) -> Result<Progress<'r, 'a, H, A, T, R>, Error> {
        self.finish().map(|stop| self.progress(stop))
    }

    /// Gives the call so much time from now on, in place of what it had left, or takes the limit away. A call that was stopped as
    /// [`Preemption::Deadline`] has no limit any more.
    ///
    /// # Errors
    ///
    /// [`Error::NoClock`] if the host has none.
    pub fn limit_time(&mut self, limit: Option<Duration>) -> Result<(), Error> {
        self.watch = Watch::new(self.sandbox.hal, limit, self.sandbox.limits.cancel.is_some())?;
        self.special |= self.watch.is_some();
        Ok(())
    }

    /// Runs until something happens.
    ///
    /// # Errors
    ///
    /// When the sandbox could not be entered, or was not to be: [`Error::InterruptsMasked`] for a call with limits. The call is
    /// lost, the sandbox is not.
    pub fn step(mut self) -> Result<Progress<'r, 'a, H, A, T, R>, Error> {
        match self.advance()? {
            Some(stop) => Ok(self.progress(stop)),
            None => Ok(Progress::Suspended(self)),
        }
    }

    fn progress(self, stop: Stop<R>) -> Progress<'r, 'a, H, A, T, R> {
        match stop {
            Stop::Returned(value) => Progress::Returned(value),
            Stop::Preempted(reason) => Progress::Preempted(reason, self),
            Stop::Exited(exit) => Progress::Exited(exit),
        }
    }

    /// Runs until there is more to say than that an interrupt was handled.
    #[inline(always)]
    pub(crate) fn finish(&mut self) -> Result<Stop<R>, Error> {
        loop {
            if let Some(stop) = self.advance()? {
                return Ok(stop);
            }
        }
    }

    /// Runs until something happens; `None`: an interrupt was handled, or the CPU's caches were put right.
    #[inline(always)]
    fn advance(&mut self) -> Result<Option<Stop<R>>, Error> {
        if (self.interrupted || self.watch.is_some())
            && let Some(reason) = self.asked_to_stop()
        {
            return Ok(Some(Stop::Preempted(reason)));
        }
        let state = A::mask_interrupts();
        if self.special
            && let Some(result) = self.stay_out(state)
        {
            // SAFETY: (1) from `mask_interrupts` above, in the same thread.
            unsafe { A::restore_interrupts(state) };
            return result.map(|reason| Some(Stop::Preempted(reason)));
        }
        let trap = self.sandbox.enter(state, self.special);
        let reason = match trap? {
            Trap::Returned => {
                return self.sandbox.collect(&mut self.arguments).map(|value| Some(Stop::Returned(value)));
            }
            Trap::Interrupt(()) => {
                self.interrupted = true;
                return Ok(None);
            }
            Trap::Again => return Ok(None),
            Trap::HostCall(number) => ExitReason::HostCall(number),
            Trap::Fault => match self.explain() {
                Some(reason) => reason,
                None => return Ok(None),
            },
        };
        Ok(Some(Stop::Exited(Exit { reason, at: A::program_counter(&self.sandbox.registers) })))
    }

    /// Why the call should not go on, if anybody wants it stopped. Every interrupt that was accepted has been handled.
    #[cold]
    fn asked_to_stop(&mut self) -> Option<Preemption> {
        let host = self.sandbox.hal.host();
        if let Some(Watch { deadline: Some(deadline) }) = self.watch
            && host.now().is_none_or(|now| now >= deadline)
        {
            self.watch = Watch::unlimited(self.sandbox.limits.cancel.is_some());
            return Some(Preemption::Deadline);
        }
        if core::mem::take(&mut self.interrupted) && host.should_yield() {
            return Some(Preemption::Yield);
        }
        None
    }

    /// The last look before an entry, with interrupts masked: whether there must be none. Sets the timer for its deadline.
    #[cold]
    fn stay_out(&mut self, state: A::InterruptState) -> Option<Result<Preemption, Error>> {
        let watch = self.watch?;
        if !A::accepts_interrupts(state) {
            return Some(Err(Error::InterruptsMasked));
        }
        let host = self.sandbox.hal.host();
        if let Some(deadline) = watch.deadline {
            host.arm_timer(deadline);
        }
        match self.sandbox.limits.cancel {
            Some(cancel) if !cancel.enter(host.cpu_index()) => {
                cancel.leave();
                Some(Ok(Preemption::Cancelled))
            }
            _ => None,
        }
    }

    /// How the call ends if it doesn't go on.
    pub(crate) fn give_up(&self, reason: Preemption) -> Exit {
        Exit { reason: ExitReason::Preempted(reason), at: A::program_counter(&self.sandbox.registers) }
    }

    /// Why the run ended with an exception; `None` if it was no fault of the sandbox's, and it should go on.
    #[cold]
    fn explain(&mut self) -> Option<ExitReason> {
        let sandbox = &mut *self.sandbox;
        let memory = ViewMemory { hal: sandbox.hal, view: &sandbox.view };
        Some(match sandbox.hal.arch.diagnose(&sandbox.registers, &memory) {
            Cause::Memory { address, access, refusal } => {
                let kind = self.explain_refusal(address, access, refusal)?;
                ExitReason::MemoryFault(MemoryFault { address, access, kind })
            }
            Cause::Illegal => ExitReason::IllegalInstruction,
            Cause::Privileged => ExitReason::PrivilegedInstruction,
            Cause::Arithmetic => ExitReason::Arithmetic,
            Cause::FloatingPoint => ExitReason::FloatingPoint,
            Cause::Breakpoint => ExitReason::Breakpoint,
            Cause::SingleStep => ExitReason::SingleStep,
            Cause::Unknown(syndrome) => ExitReason::Unknown(syndrome),
        })
    }

    fn explain_refusal(&mut self, address: VirtAddr, access: Access, refusal: Refusal) -> Option<FaultKind> {
        let sandbox = &mut *self.sandbox;
        match refusal {
            Refusal::Alignment => return Some(FaultKind::Misaligned),
            Refusal::NonCanonical => return Some(FaultKind::NonCanonical),
            Refusal::External => return Some(FaultKind::External),
            Refusal::Restriction => return Some(FaultKind::Permission),
            Refusal::Translation => {}
        }
        if sandbox.hal.arch.format().root_of(address).is_none() {
            return Some(FaultKind::NonCanonical);
        }
        if sandbox.view.allows(sandbox.hal, address, access) {
            let page = address.page();
            if !sandbox.spurious.tolerate(A::program_counter(&sandbox.registers), page) {
                return Some(FaultKind::Unexplained);
            }
            sandbox.stale = Some(page);
            return None;
        }
        Some(match sandbox.view.lookup(sandbox.hal, address.page()) {
            Some(_) => FaultKind::Permission,
            None => sandbox.window.classify(address),
        })
    }
}

impl<H: Host, A: Arch> Sandbox<'_, H, A> {
    /// Enters once, after [`mask_interrupts`](Arch::mask_interrupts) returned `state`, and lets the host handle the interrupt that
    /// ended it, if one did. Afterwards interrupts are as the caller had them. `special` calls have limits, or vector registers.
    ///
    /// The same code for calls of all types: the host's handler is not to wait for what tells them apart.
    #[inline(never)]
    fn enter(&mut self, state: A::InterruptState, special: bool) -> Result<Trap<()>, Error> {
        let trap = if special { self.enter_specially(state) } else { self.enter_masked::<false>(state) };
        let trap = match trap {
            Ok(Trap::Interrupt(interrupt)) => {
                // SAFETY: (1) from the `enter` just above, interrupts masked since; (2) `state` is how the caller's were.
                unsafe { A::forward(interrupt, state) };
                // The host's handler may have brought stale translations back.
                self.spurious.reset();
                return Ok(Trap::Interrupt(()));
            }
            Ok(Trap::Returned) => Ok(Trap::Returned),
            Ok(Trap::HostCall(number)) => Ok(Trap::HostCall(number)),
            Ok(Trap::Again) => Ok(Trap::Again),
            Ok(Trap::Fault) => Ok(Trap::Fault),
            Err(error) => Err(error),
        };
        // SAFETY: (1) from `mask_interrupts` in the same thread.
        unsafe { A::restore_interrupts(state) };
        trap
    }

    #[cold]
    fn enter_specially(&mut self, state: A::InterruptState) -> Result<Trap<A::Interrupt>, Error> {
        let trap = self.enter_masked::<true>(state);
        if let Some(cancel) = self.limits.cancel {
            cancel.leave();
        }
        trap
    }

    #[inline(always)]
    fn enter_masked<const VECTORS: bool>(&mut self, state: A::InterruptState) -> Result<Trap<A::Interrupt>, Error> {
        let Sandbox { hal, view, registers, stale, vectors, .. } = self;
        let gate = hal.current_gate()?;
        if let Some(page) = stale.take() {
            A::flush_page(page);
            view.forget_tag();
        }
        let roots = view.roots(hal, gate)?;
        // SAFETY: (1) interrupts are masked, and this CPU's gate was looked up since; (2) the view is whole, its gates are up to
        // date, and it is borrowed for the run; (3) `registers` were prepared by `start`, for this view. With vectors: (2) `start`
        // reset theirs.
        unsafe {
            match vectors {
                Some(vectors) if VECTORS => hal.arch.enter_with_vectors(gate, registers, roots, state, vectors.area()),
                _ => hal.arch.enter(gate, registers, roots, state),
            }
        }
    }
}
