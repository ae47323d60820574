//! Physical memory: what each frame is, and who may have it.
//!
//! One byte for each frame says what it is, and a stack of frame numbers makes allocation O(1). Both
//! lie in RAM of their own, found at boot. Nothing is ever stored in a free frame.

use core::{ops::Range, slice};

use crate::{
    layout::{DIRECT_MAP, DIRECT_MAP_END, PAGE_SIZE, image_frames},
    lock::MaskedLock,
};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// RAM that nobody has.
    Free,
    /// RAM that somebody allocated.
    Used,
    /// A page table of the kernel's.
    PageTable,
    /// The kernel's image.
    Image,
    /// RAM set aside at boot: firmware's, the device tree's, the allocator's own.
    Reserved,
    /// Not RAM.
    Device,
}

struct Frames {
    /// Number of the frame that `kinds[0]` is about.
    first: u64,
    kinds: &'static mut [FrameKind],
    /// Free frames, as indices into `kinds`; the first `free` are valid.
    stack: &'static mut [u32],
    free: usize,
}

static FRAMES: MaskedLock<Option<Frames>> = MaskedLock::new(None);

/// The heap gets one part in this many of the RAM.
const HEAP_SHARE: u64 = 4;

/// Sorts out the RAM and sets the heap's part aside, which it returns.
///
/// `ram` is the machine's RAM, `reserved` what lies in it and must be left alone; the image is
/// left alone anyway. Ranges needn't be aligned or sorted.
///
/// # Safety
///
/// 1. `ram` is RAM and nothing uses it except in `reserved` and the image.
/// 2. RAM below `mapped` is reachable through the direct map, now and later.
/// 3. Called once, before anything else in this module.
pub(crate) unsafe fn init(ram: &[Range<u64>], reserved: &[Range<u64>], mapped: u64) -> Range<u64> {
    let limit = DIRECT_MAP_END - DIRECT_MAP;
    let image = image_frames();
    // Whole frames only: RAM shrinks to them, what is taken grows to them.
    let ram = || {
        let whole = |r: &Range<u64>| r.start.div_ceil(PAGE_SIZE)..r.end.min(limit) / PAGE_SIZE;
        ram.iter().map(whole).filter(|r| !r.is_empty())
    };
    let taken = || {
        let touched = |r: &Range<u64>| r.start / PAGE_SIZE..r.end.div_ceil(PAGE_SIZE);
        reserved.iter().chain([&image]).map(touched)
    };

    let first = ram().map(|r| r.start).min().expect("the machine has RAM");
    let end = ram().map(|r| r.end).max().expect("the machine has RAM");
    let count = (end - first) as usize;
    let bytes = count * (size_of::<u32>() + size_of::<FrameKind>());
    let table_frames = (bytes as u64).div_ceil(PAGE_SIZE);

    // The lowest place that fits begins where some RAM begins or where something taken ends.
    let table = ram()
        .map(|r| r.start)
        .chain(taken().map(|r| r.end))
        .map(|start| start..start + table_frames)
        .filter(|t| t.end * PAGE_SIZE <= mapped)
        .filter(|t| ram().any(|r| r.start <= t.start && t.end <= r.end))
        .filter(|t| taken().all(|r| t.end <= r.start || r.end <= t.start))
        .min_by_key(|t| t.start)
        .expect("RAM for the frame table");

    let stack_at = direct(table.start * PAGE_SIZE).cast::<u32>();
    // SAFETY: the table has room for `count` numbers and, behind them, `count` kinds; it is RAM
    // that nothing uses, in the direct map (conditions 1 and 2); every element is written before a
    // reference to it is made.
    let (stack, kinds) = unsafe {
        let kinds_at = stack_at.add(count).cast::<FrameKind>();
        for i in 0..count {
            stack_at.add(i).write(0);
            kinds_at.add(i).write(FrameKind::Device);
        }
        (slice::from_raw_parts_mut(stack_at, count), slice::from_raw_parts_mut(kinds_at, count))
    };

    let mut frames = Frames { first, kinds, stack, free: 0 };
    ram().for_each(|r| frames.mark(r, FrameKind::Free));
    taken().for_each(|r| frames.mark_ram(r, FrameKind::Reserved));
    frames.mark(image.start / PAGE_SIZE..image.end.div_ceil(PAGE_SIZE), FrameKind::Image);
    frames.mark(table, FrameKind::Reserved);

    let heap = frames.carve_heap();
    // The lowest frame ends on top of the stack: early page tables must be in the mapped part.
    for i in (0..count).rev() {
        if frames.kinds[i] == FrameKind::Free {
            frames.push(i);
        }
    }
    FRAMES.with(|slot| *slot = Some(frames));
    heap.start * PAGE_SIZE..heap.end * PAGE_SIZE
}

impl Frames {
    /// Index of a frame number, if the table knows it.
    fn index(&self, frame: u64) -> Option<usize> {
        let index = usize::try_from(frame.checked_sub(self.first)?).ok()?;
        (index < self.kinds.len()).then_some(index)
    }

    fn mark(&mut self, range: Range<u64>, kind: FrameKind) {
        for frame in range {
            if let Some(index) = self.index(frame) {
                self.kinds[index] = kind;
            }
        }
    }

    fn mark_ram(&mut self, range: Range<u64>, kind: FrameKind) {
        for frame in range {
            match self.index(frame) {
                Some(index) if self.kinds[index] != FrameKind::Device => self.kinds[index] = kind,
                _ => {}
            }
        }
    }

    /// Takes the heap's share from the end of the longest free run.
    fn carve_heap(&mut self) -> Range<u64> {
        let mut longest = 0..0;
        let mut start = 0;
        let mut total = 0;
        for i in 0..self.kinds.len() {
            if self.kinds[i] != FrameKind::Free {
                start = i + 1;
                continue;
            }
            total += 1;
            if i + 1 - start > longest.len() {
                longest = start..i + 1;
            }
        }
        // Half of the run at most: the low frames must remain for page tables.
        let share = (total / HEAP_SHARE).min(longest.len() as u64 / 2);
        let end = self.first + longest.end as u64;
        self.mark(end - share..end, FrameKind::Used);
        end - share..end
    }

    fn push(&mut self, index: usize) {
        self.kinds[index] = FrameKind::Free;
        self.stack[self.free] = index as u32;
        self.free += 1;
    }

    fn pop(&mut self, kind: FrameKind) -> Option<u64> {
        self.free = self.free.checked_sub(1)?;
        let index = self.stack[self.free] as usize;
        self.kinds[index] = kind;
        Some((self.first + index as u64) * PAGE_SIZE)
    }
}

fn with<R>(work: impl FnOnce(&mut Frames) -> R) -> R {
    FRAMES.with(|slot| work(slot.as_mut().expect("memory is set up early in the boot")))
}

/// Takes a free frame and returns its physical address. Its contents are whatever was there.
pub fn allocate_frame() -> Option<u64> {
    with(|frames| frames.pop(FrameKind::Used))
}

/// Takes a free frame for a page table of the kernel's, zeroed.
pub(crate) fn allocate_table() -> Option<u64> {
    let table = with(|frames| frames.pop(FrameKind::PageTable))?;
    // SAFETY: the frame is ours alone, and the direct map covers it: all of it once the final
    // tables are active, and the low part, where the first frames come from, before.
    unsafe { direct(table).write_bytes(0, PAGE_SIZE as usize) };
    Some(table)
}

/// Gives a frame back.
///
/// # Panics
///
/// If the frame isn't allocated: freed already, never allocated, or not at a page boundary.
pub fn free_frame(phys: u64) {
    with(|frames| {
        let index = frames.index(phys / PAGE_SIZE);
        let index = index.filter(|_| phys.is_multiple_of(PAGE_SIZE));
        let kind = index.map_or(FrameKind::Device, |i| frames.kinds[i]);
        match index {
            Some(index) if matches!(kind, FrameKind::Used | FrameKind::PageTable) => frames.push(index),
            _ => panic!("frame {phys:#x} freed, but it is {kind:?}"),
        }
    });
}

/// How many frames are free.
pub fn free_frames() -> usize {
    with(|frames| frames.free)
}

/// What the frame at a physical address is.
pub fn frame_kind(phys: u64) -> FrameKind {
    with(|frames| {
        let index = frames.index(phys / PAGE_SIZE);
        index.map_or(FrameKind::Device, |index| frames.kinds[index])
    })
}

/// How many frames of each kind there are from the lowest RAM to the highest, in the order of
/// [`FrameKind`]. Slow: it counts.
pub fn summary() -> [(FrameKind, usize); 6] {
    use FrameKind::*;
    with(|frames| {
        [Free, Used, PageTable, Image, Reserved, Device]
            .map(|kind| (kind, frames.kinds.iter().filter(|&&k| k == kind).count()))
    })
}

/// Where the direct map has a physical address. Only RAM is mapped there.
pub fn direct(phys: u64) -> *mut u8 {
    (DIRECT_MAP + phys) as *mut u8
}

/// The physical address behind a pointer into the direct map, such as one into the heap.
///
/// # Panics
///
/// If the pointer isn't one into the direct map.
pub fn physical(pointer: *const u8) -> u64 {
    let address = pointer as u64;
    assert!((DIRECT_MAP..DIRECT_MAP_END).contains(&address), "{pointer:?} is not in the direct map");
    address - DIRECT_MAP
}
