//! What may stop a call from outside.
//!
//! Limits are looked at before each entry, and an entry with limits is left at the next interrupt; so they need interrupts to
//! arrive, and a caller that masks them cannot have any.

use core::time::Duration;

use crate::arch::Arch;
use crate::cancel::Cancel;
use crate::error::Error;
use crate::hal::Hal;
use crate::host::Host;

/// The limits of a sandbox's calls.
#[derive(Clone, Copy, Default)]
pub(crate) struct Limits<'a> {
    /// How long each may take.
    pub(crate) time: Option<Duration>,
    /// Who may cancel it.
    pub(crate) cancel: Option<&'a Cancel>,
}

impl Limits<'_> {
    pub(crate) fn any(&self) -> bool {
        self.time.is_some() || self.cancel.is_some()
    }

    /// What a call that begins now is to be watched for.
    pub(crate) fn begin<H: Host, A: Arch>(&self, hal: &Hal<H, A>) -> Result<Option<Watch>, Error> {
        match (self.time, self.cancel) {
            (None, None) => Ok(None),
            (time, cancel) => Watch::begin(hal, time, cancel.is_some()),
        }
    }
}

/// What may stop a call that has begun.
#[derive(Clone, Copy)]
pub(crate) struct Watch {
    /// When the host's clock shows this, time is up.
    pub(crate) deadline: Option<u64>,
}

impl Watch {
    #[cold]
    fn begin<H: Host, A: Arch>(
        hal: &Hal<H, A>,
        time: Option<Duration>,
        cancellable: bool,
    ) -> Result<Option<Watch>, Error> {
        let state = A::mask_interrupts();
        // SAFETY: (1) from `mask_interrupts` just above.
        unsafe { A::restore_interrupts(state) };
        match A::accepts_interrupts(state) {
            true => Watch::new(hal, time, cancellable),
            false => Err(Error::InterruptsMasked),
        }
    }

    /// A call that has so much time from now on.
    pub(crate) fn new<H: Host, A: Arch>(
        hal: &Hal<H, A>,
        time: Option<Duration>,
        cancellable: bool,
    ) -> Result<Option<Watch>, Error> {
        let Some(time) = time else {
            return Ok(Watch::unlimited(cancellable));
        };
        let now = hal.host().now().ok_or(Error::NoClock)?;
        let deadline = now.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        Ok(Some(Watch { deadline: Some(deadline) }))
    }

    /// A call with as much time as it wants.
    pub(crate) fn unlimited(cancellable: bool) -> Option<Watch> {
        cancellable.then_some(Watch { deadline: None })
    }
}
