//! The gates of the CPUs that were started, found by CPU index without a lock.
//!
//! What must hold: an entry is written once, after the gate is ready, and never changes again; directory frames stay for as
//! long as the HAL does.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::addr::{Frame, Page, PageRange};
use crate::arch::Arch;
use crate::error::Error;
use crate::format::ENTRIES;
use crate::frames::Frames;
use crate::host::Host;
use crate::record::FrameUse;

const DIRECTORIES: usize = 8;
/// The most CPUs there may be.
pub(crate) const MOST: usize = DIRECTORIES * ENTRIES;

/// Two words per CPU would need a second look-up; the gate's address is its first page, so one says both.
pub(crate) struct Cpus {
    /// Physical addresses of frames of addresses; zero where there is none yet.
    directories: [AtomicU64; DIRECTORIES],
    /// How many pages of gate data a CPU has, the host's frames included; the same on each.
    pages: AtomicUsize,
    /// How many CPUs have been started: tells a view that its gate mappings are out of date.
    started: AtomicUsize,
}

impl Cpus {
    pub(crate) const fn new() -> Cpus {
        Cpus {
            directories: [const { AtomicU64::new(0) }; DIRECTORIES],
            pages: AtomicUsize::new(0),
            started: AtomicUsize::new(0),
        }
    }

    fn slot<'a, H: Host, A: Arch>(&self, frames: &'a Frames<H, A>, cpu: usize) -> Option<&'a AtomicU64> {
        let directory = self.directories.get(cpu / ENTRIES)?.load(Ordering::Acquire);
        (directory != 0).then(|| frames.entry(Frame::containing(directory), cpu % ENTRIES))
    }

    /// The gate of `cpu`, if it was started.
    pub(crate) fn gate<H: Host, A: Arch>(&self, frames: &Frames<H, A>, cpu: usize) -> Option<NonNull<A::Gate>> {
        let address = self.slot(frames, cpu)?.load(Ordering::Acquire);
        NonNull::new(core::ptr::with_exposed_provenance_mut(address as usize))
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

    /// Records a gate of `pages` pages as ready. Room was reserved.
    pub(crate) fn publish<H: Host, A: Arch>(
        &self,
        frames: &Frames<H, A>,
        cpu: usize,
        gate: NonNull<A::Gate>,
        pages: usize,
    ) {
        self.pages.store(pages, Ordering::Relaxed);
        if let Some(slot) = self.slot(frames, cpu) {
            slot.store(gate.as_ptr().expose_provenance() as u64, Ordering::Release);
        }
        self.started.fetch_add(1, Ordering::Release);
    }

    /// How many CPUs have been started.
    pub(crate) fn started(&self) -> usize {
        self.started.load(Ordering::Acquire)
    }

    /// The pages of all gates, as far as they are ready.
    pub(crate) fn ranges<H: Host, A: Arch>(&self, frames: &Frames<H, A>) -> impl Iterator<Item = PageRange> {
        let pages = self.pages.load(Ordering::Relaxed) as u64;
        (0..frames.host().cpu_count().min(MOST)).filter_map(move |cpu| {
            let start = self.gate(frames, cpu)?.as_ptr().addr() as u64;
            PageRange::new(Page::from_start(crate::addr::VirtAddr(start))?, pages)
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
