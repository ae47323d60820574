//! Taking frames from the host and giving them back: every frame the HAL uses passes through here, zeroed both ways and
//! entered in the record.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{Frame, PAGE_SIZE, Page};
use crate::arch::Arch;
use crate::error::Error;
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
        let recorded = self.record.with(|record| {
            if record.get(&self.host, frame) != FrameUse::None || record.is_node(&self.host, frame) {
                return Err(Error::FrameInUse(frame));
            }
            record.set(&self.host, frame, purpose)
        });
        match recorded {
            Ok(()) => {
                // SAFETY: the host gave us the frame (Host, condition 1), and its pointer covers it (condition 2).
                unsafe { self.host.frame_pointer(frame).write_bytes(0, PAGE_SIZE) };
                Ok(frame)
            }
            Err(Error::OutOfFrames) => {
                // SAFETY: (1) allocated above, (2) nothing refers to it yet.
                unsafe {
                    self.host.frame_pointer(frame).write_bytes(0, PAGE_SIZE);
                    self.host.free_frame(frame);
                }
                Err(Error::OutOfFrames)
            }
            // The frame is somebody's: it is not ours to give back.
            Err(error) => Err(error),
        }
    }

    /// Zeroes a frame and gives it back.
    ///
    /// # Safety
    ///
    /// 1. `frame` came from [`allocate`](Frames::allocate), and no table or pointer that will be used again refers to it.
    pub(crate) unsafe fn free(&self, frame: Frame) {
        self.record.with(|record| {
            // Never fails: an existing entry is cleared.
            let _ = record.set(&self.host, frame, FrameUse::None);
        });
        // SAFETY: the caller's promise covers both conditions of `free_frame`, and the frame is still ours to write.
        unsafe {
            self.host.frame_pointer(frame).write_bytes(0, PAGE_SIZE);
            self.host.free_frame(frame);
        }
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

    /// Entry `index` of the table in `frame`.
    pub(crate) fn entry(&self, frame: Frame, index: usize) -> &AtomicU64 {
        debug_assert!(index < crate::format::ENTRIES);
        // SAFETY: the frame's pointer covers 512 entries and stays valid while the frame is in use (Host, condition 2), which for
        // tables is as long as something points to them; the CPU's walker and other threads only ever access entries
        // as whole words.
        unsafe { AtomicU64::from_ptr(self.host.frame_pointer(frame).cast::<u64>().add(index)) }
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
