//! The platform as host, with one addition: an interrupt can be raised at the last moment before a sandbox is entered,
//! when interrupts are masked already, so that it arrives in the sandbox.

use core::sync::atomic::{AtomicUsize, Ordering};

use platform_qemu::host::Qemu;
use sandbox_mode::{FatalReport, Frame, FrameKind, Host, Image, Page, PageRange, Permissions, Roots};

use crate::machine;

/// The host of this kernel's sandboxes.
pub(crate) struct Watched(Qemu);

/// The line to raise at the next entry, or `NONE`.
static RAISE: AtomicUsize = AtomicUsize::new(NONE);
const NONE: usize = usize::MAX;

impl Watched {
    pub(crate) fn new() -> Self {
        Watched(Qemu::new())
    }
}

/// Has an interrupt raised on `line` at the next entry.
pub(crate) fn raise_at_entry(line: usize) {
    RAISE.store(line, Ordering::Relaxed);
}

// SAFETY: the answers are the platform's, which keeps the contract.
unsafe impl Host for Watched {
    fn allocate_frame(&self) -> Option<Frame> {
        self.0.allocate_frame()
    }

    unsafe fn free_frame(&self, frame: Frame) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.0.free_frame(frame) }
    }

    fn frame_pointer(&self, frame: Frame) -> *mut u8 {
        self.0.frame_pointer(frame)
    }

    fn frame_kind(&self, frame: Frame) -> FrameKind {
        self.0.frame_kind(frame)
    }

    fn with_tables(&self, walk: &mut dyn FnMut(&Roots)) {
        self.0.with_tables(walk);
    }

    unsafe fn map_gate(&self, frames: &[Frame], permissions: Permissions) -> Option<Page> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.0.map_gate(frames, permissions) }
    }

    fn window(&self) -> PageRange {
        self.0.window()
    }

    fn image(&self) -> Image<'_> {
        self.0.image()
    }

    /// Asked for at each entry, with interrupts masked. There is one CPU; the platform could not tell in all states of the host.
    fn cpu_index(&self) -> usize {
        let line = RAISE.swap(NONE, Ordering::Relaxed);
        if line != NONE {
            machine::raise(line);
        }
        0
    }

    fn cpu_count(&self) -> usize {
        self.0.cpu_count()
    }

    fn fatal(&self, report: &FatalReport) -> ! {
        self.0.fatal(report)
    }
}
