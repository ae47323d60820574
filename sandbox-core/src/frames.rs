//! Taking frames from the host and giving them back: every frame the HAL uses passes through here, zeroed both ways and
//! entered in the record.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{Frame, PAGE_SIZE, Page};
use crate::arch::Arch;
use crate::error::Error;
use crate::format::ENTRIES;
use crate::host::{FrameKind, Host};
use crate::lock::IrqLock;
use crate::permissions::{Access, Permissions};
use crate::record::{FrameUse, Record};

/// The host's memory together with the HAL's record of it.
pub(crate) struct Frames<H: Host, A: Arch> {
    host: H,
    record: IrqLock<A, Record>,
}

impl<H: Host, A: Arch> Frames<H, A> {
    pub(crate) fn new(host: H) -> Self {
        Frames { host, record: IrqLock::new(Record::new()) }
    }

    pub(crate) fn host(&self) -> &H {
        &self.host
    }

    /// A zeroed frame, recorded as `purpose` (not a counted use).
    pub(crate) fn allocate(&self, purpose: FrameUse) -> Result<Frame, Error> {
        let frame = self.host.allocate_frame().ok_or(Error::OutOfFrames)?;
        let recorded = self.record.with(|record| match record.is_free(&self.host, frame) {
            true => record.set(&self.host, frame, purpose).map(|()| true),
            false => Ok(false),
        });
        match recorded {
            Ok(true) => {
                self.clear(frame);
                Ok(frame)
            }
            // The frame is somebody's: it is not ours to give back.
            Ok(false) => Err(Error::FrameInUse(frame)),
            Err(error) => {
                self.clear(frame);
                // SAFETY: (1) allocated above, (2) nothing refers to it yet.
                unsafe { self.host.free_frame(frame) };
                Err(error)
            }
        }
    }

    /// Zeroes a frame that the host has just given us, or that nobody uses any more.
    fn clear(&self, frame: Frame) {
        // SAFETY: the frame is ours (Host, condition 1), and its pointer covers it (condition 2); no reference into it exists.
        unsafe { self.host.frame_pointer(frame).write_bytes(0, PAGE_SIZE) };
    }

    /// Zeroes a frame and gives it back.
    ///
    /// # Safety
    ///
    /// 1. `frame` came from [`allocate`](Frames::allocate), and no table or pointer that will be used again refers to it.
    pub(crate) unsafe fn free(&self, frame: Frame) {
        // First: once the record knows nothing of the frame, it could be granted.
        self.clear(frame);
        self.record.with(|record| {
            // Never fails: an existing entry is cleared.
            let _ = record.set(&self.host, frame, FrameUse::None);
        });
        // SAFETY: the caller's promise covers both conditions of `free_frame`.
        unsafe { self.host.free_frame(frame) };
    }

    /// Enters a frame of the host's that the gate lies in, so that it can't be granted. `false` if that was done before.
    pub(crate) fn reserve_gate(&self, frame: Frame) -> Result<bool, Error> {
        self.record.with(|record| match record.get(&self.host, frame) {
            FrameUse::Gate => Ok(false),
            _ if record.is_free(&self.host, frame) => record.set(&self.host, frame, FrameUse::Gate).map(|()| true),
            _ => Err(Error::FrameInUse(frame)),
        })
    }

    /// Takes back [`reserve_gate`](Frames::reserve_gate).
    pub(crate) fn release_gate(&self, frame: Frame) {
        self.record.with(|record| {
            if record.get(&self.host, frame) == FrameUse::Gate {
                // Never fails: an existing entry is cleared.
                let _ = record.set(&self.host, frame, FrameUse::None);
            }
        });
    }

    /// Checks that a frame of the host's may be granted with `permissions` at `page`, and counts the grant if it writes or
    /// executes. What is counted must be taken back with [`unclaim`](Frames::unclaim).
    pub(crate) fn claim(&self, page: Page, frame: Frame, permissions: Permissions) -> Result<(), Error> {
        match self.host.frame_kind(frame) {
            FrameKind::Ram => {}
            FrameKind::PageTable => return Err(Error::PageTable(page)),
            FrameKind::Device => return Err(Error::Device(page)),
            FrameKind::Reserved => return Err(Error::Reserved(page)),
        }
        self.record.with(|record| {
            match record.get(&self.host, frame) {
                FrameUse::Table | FrameUse::Private | FrameUse::Gate => {
                    return Err(Error::SandboxMemory(page));
                }
                _ if record.is_node(&self.host, frame) => return Err(Error::SandboxMemory(page)),
                _ => {}
            }
            if !counted(permissions) {
                return Ok(());
            }
            match record.claim(&self.host, frame, permissions.allows(Access::Execute))? {
                true => Ok(()),
                false => Err(Error::WritableAndExecutable(page)),
            }
        })
    }

    /// Takes back a claim with the same permissions.
    pub(crate) fn unclaim(&self, frame: Frame, permissions: Permissions) {
        if counted(permissions) {
            self.record.with(|record| record.unclaim(&self.host, frame));
        }
    }

    /// What the record says of `frame`.
    #[cfg(test)]
    pub(crate) fn purpose(&self, frame: Frame) -> FrameUse {
        self.record.with(|record| record.get(&self.host, frame))
    }

    /// Whether the record lies in `frame`.
    #[cfg(test)]
    pub(crate) fn is_node(&self, frame: Frame) -> bool {
        self.record.with(|record| record.is_node(&self.host, frame))
    }

    /// The table in `frame`.
    pub(crate) fn table(&self, frame: Frame) -> &[AtomicU64; ENTRIES] {
        // SAFETY: the frame's pointer covers the entries and stays valid while the frame is in use (Host, condition 2), which for
        // tables is as long as something points to them; the CPU's walker and other threads only ever access entries
        // as whole words.
        unsafe { &*self.host.frame_pointer(frame).cast() }
    }

    /// Entry `index` of the table in `frame`.
    pub(crate) fn entry(&self, frame: Frame, index: usize) -> &AtomicU64 {
        &self.table(frame)[index]
    }

    /// The raw entry `index` of the table in `frame`.
    pub(crate) fn read(&self, frame: Frame, index: usize) -> u64 {
        self.entry(frame, index).load(Ordering::Relaxed)
    }

    /// Sets entry `index` of the table in `frame`.
    pub(crate) fn write(&self, frame: Frame, index: usize, raw: u64) {
        self.entry(frame, index).store(raw, Ordering::Release);
    }
}

/// Reading alone can never break a rule, so it is not counted.
fn counted(permissions: Permissions) -> bool {
    permissions.allows(Access::Write) || permissions.allows(Access::Execute)
}
