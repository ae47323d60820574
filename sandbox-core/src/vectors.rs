//! Vector registers of a sandbox's own.
//!
//! They wait in a frame while the sandbox isn't running, and the host's in another while it is. No view maps either, and they
//! belong to the sandbox and not to a CPU, so a run can go on elsewhere.

use crate::addr::Frame;
use crate::arch::{Arch, VectorArea};
use crate::error::Error;
use crate::frames::Frames;
use crate::hal::Hal;
use crate::host::Host;
use crate::record::FrameUse;

/// The frames of one sandbox.
pub(crate) struct Vectors {
    frames: [Frame; 2],
    area: VectorArea,
}

impl Vectors {
    pub(crate) fn new<H: Host, A: Arch>(hal: &Hal<H, A>) -> Result<Self, Error> {
        let sandbox = hal.frames.allocate(FrameUse::Private)?;
        let host = hal.frames.allocate(FrameUse::Private).inspect_err(|_| {
            // SAFETY: (1) allocated just above, and used by nothing.
            unsafe { hal.frames.free(sandbox) };
        })?;
        let pointer = |frame| hal.host().frame_pointer(frame);
        Ok(Vectors { frames: [sandbox, host], area: VectorArea { sandbox: pointer(sandbox), host: pointer(host) } })
    }

    pub(crate) fn area(&self) -> &VectorArea {
        &self.area
    }

    #[cfg(test)]
    pub(crate) fn frames(&self) -> [Frame; 2] {
        self.frames
    }

    /// Gives the frames back.
    pub(crate) fn destroy<H: Host, A: Arch>(self, frames: &Frames<H, A>) {
        for frame in self.frames {
            // SAFETY: (1) allocated by `new`; whoever runs the sandbox borrows it, and its pointers go with `self`.
            unsafe { frames.free(frame) };
        }
    }
}
