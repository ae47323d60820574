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
    fn any(&self) -> bool {
        self.time.is_some() || self.cancel.is_some()
    }

    /// The deadline of a call that begins now.
    pub(crate) fn begin<H: Host, A: Arch>(&self, hal: &Hal<H, A>) -> Result<Option<u64>, Error> {
        if !self.any() {
            return Ok(None);
        }
        let state = A::mask_interrupts();
        // SAFETY: (1) from `mask_interrupts` just above.
        unsafe { A::restore_interrupts(state) };
        if !A::accepts_interrupts(state) {
            return Err(Error::InterruptsMasked);
        }
        self.time.map(|limit| deadline(hal, limit)).transpose()
    }
}

/// What the clock will show in `limit`.
pub(crate) fn deadline<H: Host, A: Arch>(hal: &Hal<H, A>, limit: Duration) -> Result<u64, Error> {
    let now = hal.host().now().ok_or(Error::NoClock)?;
    Ok(now.saturating_add(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX)))
}
