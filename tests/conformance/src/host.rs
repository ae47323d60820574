//! The suite's host: the kernel's own, watched.
//!
//! Frames go to the HAL full of rubbish and must come back zeroed; the n-th allocation can be made to fail; an interrupt can be
//! raised at the last moment before a sandbox is entered. The switches are the machine's, as the HAL is.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use sandbox_mode::{
    Cancel, FatalReport, Frame, FrameKind, Host, Image, PAGE_SIZE, Page, PageRange, Permissions, Roots,
};

use crate::kernel::{Kernel, Line};

/// The host of every HAL and sandbox in the suite.
pub(crate) struct SuiteHost {
    kernel: &'static dyn Kernel,
    inner: &'static dyn Host,
}

/// What frames are filled with before the HAL gets them.
const RUBBISH: u8 = 0xa5;
const WORDS: usize = PAGE_SIZE / size_of::<u64>();
const REMEMBERED: usize = 64;

/// Allocations to go until one fails; `NEVER` does not fail.
static UNTIL_FAILURE: AtomicUsize = AtomicUsize::new(NEVER);
const NEVER: usize = usize::MAX;
/// Frames that came back with something in them.
static UNCLEAN: AtomicUsize = AtomicUsize::new(0);
/// The last frames handed out, as a ring of their numbers.
static FRAMES: [AtomicU64; REMEMBERED] = [const { AtomicU64::new(0) }; REMEMBERED];
static HANDED_OUT: AtomicUsize = AtomicUsize::new(0);
/// Entries to go at which an interrupt is raised, and on which line.
static RAISE_TIMES: AtomicUsize = AtomicUsize::new(0);
static RAISE_LINE: AtomicUsize = AtomicUsize::new(0);
/// The vector to raise at the next entry, or 0.
static RAISE_VECTOR: AtomicU8 = AtomicU8::new(0);
/// The gate's data, as `map_gate` placed it.
static GATE_START: AtomicU64 = AtomicU64::new(0);
static GATE_PAGES: AtomicU64 = AtomicU64::new(0);

/// Interrupts of runs to go until the host asks for the CPU, or cancels the run.
static UNTIL_ASKED: AtomicUsize = AtomicUsize::new(NEVER);
static CANCELS: AtomicBool = AtomicBool::new(false);
/// What it cancels by.
pub(crate) static CANCEL: Cancel = Cancel::new();

const LINES: [Line; 3] = [Line::Ordinary, Line::Fast, Line::NonMaskable];

impl SuiteHost {
    pub(crate) fn new(kernel: &'static dyn Kernel) -> Self {
        SuiteHost { kernel, inner: kernel.host() }
    }
}

/// Lets `count` allocations succeed and makes the next one fail.
pub(crate) fn fail_after(count: usize) {
    UNTIL_FAILURE.store(count, Ordering::Relaxed);
}

/// Lets all allocations succeed again; whether one failed since [`fail_after`].
pub(crate) fn stop_failing() -> bool {
    UNTIL_FAILURE.swap(NEVER, Ordering::Relaxed) == NEVER
}

/// How many frames came back with something in them since the last time.
pub(crate) fn take_unclean() -> usize {
    UNCLEAN.swap(0, Ordering::Relaxed)
}

/// The frames that were handed out last; some may have been given back.
pub(crate) fn recent_frames() -> impl Iterator<Item = Frame> {
    let count = HANDED_OUT.load(Ordering::Relaxed).min(REMEMBERED);
    FRAMES[..count].iter().map(|frame| Frame::containing(frame.load(Ordering::Relaxed)))
}

/// Raises an interrupt on `line` at each of the next `times` entries, when interrupts are masked already.
pub(crate) fn raise_at_entry(line: Line, times: usize) {
    let index = LINES.iter().position(|&other| other == line).unwrap_or(0);
    RAISE_LINE.store(index, Ordering::Relaxed);
    RAISE_TIMES.store(times, Ordering::Relaxed);
}

/// Asks for the CPU, once, after `interrupts` more interrupts of runs.
pub(crate) fn yield_after(interrupts: usize) {
    CANCELS.store(false, Ordering::Relaxed);
    UNTIL_ASKED.store(interrupts, Ordering::Relaxed);
}

/// Cancels by [`CANCEL`], once, after `interrupts` more interrupts of runs.
pub(crate) fn cancel_after(interrupts: usize) {
    CANCELS.store(true, Ordering::Relaxed);
    UNTIL_ASKED.store(interrupts, Ordering::Relaxed);
}

/// Raises an interrupt by its number, on machines where it has one, at the next entry.
#[cfg(target_arch = "x86_64")]
pub(crate) fn raise_vector_at_entry(vector: u8) {
    RAISE_VECTOR.store(vector, Ordering::Relaxed);
}

/// The pages of the gate's data.
pub(crate) fn gate_data() -> impl Iterator<Item = Page> {
    let start = Frame::containing(GATE_START.load(Ordering::Relaxed)).start();
    let pages =
        (start != 0).then(|| PageRange::new(sandbox_mode::VirtAddr(start).page(), GATE_PAGES.load(Ordering::Relaxed)));
    pages.flatten().into_iter().flat_map(PageRange::pages)
}

// SAFETY: the answers are the inner host's, which keeps the contract. The frames' bytes are written only while they belong to
// this host: before the HAL gets them and after it has given them back.
unsafe impl Host for SuiteHost {
    fn allocate_frame(&self) -> Option<Frame> {
        let counted = |left: usize| match left {
            NEVER => None,
            left => Some(left.wrapping_sub(1)),
        };
        if UNTIL_FAILURE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted) == Ok(0) {
            return None;
        }
        let frame = self.inner.allocate_frame()?;
        // SAFETY: the frame was just allocated, and its pointer covers it.
        unsafe { self.inner.frame_pointer(frame).write_bytes(RUBBISH, PAGE_SIZE) };
        let index = HANDED_OUT.fetch_add(1, Ordering::Relaxed) % REMEMBERED;
        FRAMES[index].store(frame.start(), Ordering::Relaxed);
        Some(frame)
    }

    unsafe fn free_frame(&self, frame: Frame) {
        let bytes = self.inner.frame_pointer(frame).cast::<u64>();
        // SAFETY: the frame is this host's again, and its pointer covers so many words.
        if (0..WORDS).any(|index| unsafe { bytes.add(index).read() } != 0) {
            UNCLEAN.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.inner.free_frame(frame) }
    }

    fn frame_pointer(&self, frame: Frame) -> *mut u8 {
        self.inner.frame_pointer(frame)
    }

    fn frame_kind(&self, frame: Frame) -> FrameKind {
        self.inner.frame_kind(frame)
    }

    fn with_tables(&self, walk: &mut dyn FnMut(&Roots)) {
        self.inner.with_tables(walk);
    }

    unsafe fn map_gate(&self, frames: &[Frame], permissions: Permissions) -> Option<Page> {
        // SAFETY: the caller's promise is the same.
        let page = unsafe { self.inner.map_gate(frames, permissions) }?;
        if permissions == Permissions::READ_WRITE {
            GATE_START.store(page.start().0, Ordering::Relaxed);
            GATE_PAGES.store(frames.len() as u64, Ordering::Relaxed);
        }
        Some(page)
    }

    fn window(&self) -> PageRange {
        self.inner.window()
    }

    fn image(&self) -> Image<'_> {
        self.inner.image()
    }

    fn cpu_index(&self) -> usize {
        let counted = RAISE_TIMES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |times| times.checked_sub(1));
        if counted.is_ok() {
            // A machine that can't was found out by the case before.
            let _ = self.kernel.raise(LINES[RAISE_LINE.load(Ordering::Relaxed)]);
        }
        let vector = RAISE_VECTOR.swap(0, Ordering::Relaxed);
        if vector != 0 {
            let _ = self.kernel.raise_vector(vector);
        }
        self.inner.cpu_index()
    }

    fn cpu_count(&self) -> usize {
        self.inner.cpu_count()
    }

    fn now(&self) -> Option<u64> {
        self.inner.now()
    }

    fn arm_timer(&self, at: u64) {
        self.inner.arm_timer(at);
    }

    fn should_yield(&self) -> bool {
        let asked = UNTIL_ASKED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| match left {
            NEVER => None,
            left => Some(left.saturating_sub(1)),
        });
        if asked == Ok(0) {
            UNTIL_ASKED.store(NEVER, Ordering::Relaxed);
            if !CANCELS.load(Ordering::Relaxed) {
                return true;
            }
            CANCEL.cancel(self);
        }
        self.inner.should_yield()
    }

    fn kick(&self, cpu: usize) {
        self.inner.kick(cpu);
    }

    fn fatal(&self, report: &FatalReport) -> ! {
        self.inner.fatal(report)
    }
}
