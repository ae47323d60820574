//! The gates of the CPUs that were started, found by CPU index without a lock.
//!
//! What must hold: an entry is written once, after the gate is ready, and never changes again; directory frames stay for as
//! long as the HAL does.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::addr::{Frame, PAGE_SIZE, PageRange, VirtAddr};
use crate::arch::{Arch, MAX_GATE_FRAMES};
use crate::error::Error;
use crate::format::ENTRIES;
use crate::frames::Frames;
use crate::host::Host;
use crate::record::FrameUse;

const DIRECTORIES: usize = 8;
/// The most CPUs there may be.
pub(crate) const MOST: usize = DIRECTORIES * ENTRIES;

/// Gates begin with a page, so the low bits of the address say how many pages there are: not the same on all CPUs, since the
/// host's task state may lie on one page or on two.
const PAGES: u64 = PAGE_SIZE as u64 - 1;
const _: () = assert!((MAX_GATE_FRAMES as u64) < PAGES);

/// One word per CPU: the gate's address plus its number of pages, or zero.
pub(crate) struct Cpus {
    /// Physical addresses of frames of such words; zero where there is none yet.
    directories: [AtomicU64; DIRECTORIES],
    /// How many CPUs have been started: tells a view that its gate mappings are out of date.
    started: AtomicUsize,
}

impl Cpus {
    pub(crate) const fn new() -> Cpus {
        Cpus { directories: [const { AtomicU64::new(0) }; DIRECTORIES], started: AtomicUsize::new(0) }
    }

    fn slot<'a, H: Host, A: Arch>(&self, frames: &'a Frames<H, A>, cpu: usize) -> Option<&'a AtomicU64> {
        let directory = self.directories.get(cpu / ENTRIES)?.load(Ordering::Acquire);
        (directory != 0).then(|| frames.entry(Frame::containing(directory), cpu % ENTRIES))
    }

    /// The gate of `cpu`, if it was started.
    pub(crate) fn gate<H: Host, A: Arch>(&self, frames: &Frames<H, A>, cpu: usize) -> Option<NonNull<A::Gate>> {
        let word = self.slot(frames, cpu)?.load(Ordering::Acquire);
        NonNull::new(core::ptr::with_exposed_provenance_mut((word & !PAGES) as usize))
    }

    /// Makes room for `cpu`. Called under the HAL's lock.
    pub(crate) fn reserve<H: Host, A: Arch>(&self, frames: &Frames<H, A>, cpu: usize) -> Result<(), Error> {
        let directory = self.directories.get(cpu / ENTRIES).ok_or(Error::TooManyCpus { cpus: cpu, most: MOST })?;
        if directory.load(Ordering::Acquire) == 0 {
            directory.store(frames.allocate(FrameUse::Gate)?.start(), Ordering::Release);
        }
        match self.gate(frames, cpu) {
            Some(_) => Err(Error::CpuStartedTwice(cpu)),
            None => Ok(()),
        }
    }

    /// Records a gate of `pages` pages, which begins with the first, as ready. Room was reserved.
    pub(crate) fn publish<H: Host, A: Arch>(
        &self,
        frames: &Frames<H, A>,
        cpu: usize,
        gate: NonNull<A::Gate>,
        pages: usize,
    ) {
        if let Some(slot) = self.slot(frames, cpu) {
            slot.store(gate.as_ptr().expose_provenance() as u64 | pages as u64, Ordering::Release);
        }
        self.started.fetch_add(1, Ordering::Release);
    }

    /// How many CPUs have been started.
    #[inline]
    pub(crate) fn started(&self) -> usize {
        self.started.load(Ordering::Acquire)
    }

    /// The pages of all gates, as far as they are ready.
    pub(crate) fn ranges<H: Host, A: Arch>(&self, frames: &Frames<H, A>) -> impl Iterator<Item = PageRange> {
        (0..frames.host().cpu_count().min(MOST)).filter_map(move |cpu| {
            let word = self.slot(frames, cpu)?.load(Ordering::Acquire);
            PageRange::new(VirtAddr(word).page(), word & PAGES).filter(|range| !range.is_empty())
        })
    }

    /// Gives the directories back. The gates stay: CPUs refer to them.
    pub(crate) fn destroy<H: Host, A: Arch>(&mut self, frames: &Frames<H, A>) {
        for directory in &mut self.directories {
            let address = core::mem::take(directory.get_mut());
            if address != 0 {
                // SAFETY: (1) from `allocate`; `self` is borrowed mutably, so nobody reads the directory.
                unsafe { frames.free(Frame::containing(address)) };
            }
        }
    }
}
