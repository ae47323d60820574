//! The kernel's heap: one run of frames in the direct map, handed out by `talc`.

use core::{
    alloc::{GlobalAlloc, Layout},
    ops::Range,
    ptr,
};

use talc::{DefaultBinning, base::Talc, source::Manual};

use crate::{lock::MaskedLock, memory};

/// The allocator behind `alloc`. Usable in interrupt handlers.
pub struct Heap {
    talc: MaskedLock<Talc<Manual, DefaultBinning>>,
}

#[global_allocator]
static HEAP: Heap = Heap { talc: MaskedLock::new(Talc::new(Manual)) };

/// Gives the heap its memory: a physical range.
pub(crate) fn init(range: Range<u64>) {
    let base = memory::direct(range.start);
    let size = (range.end - range.start) as usize;
    // SAFETY: `memory::init` set these frames aside for the heap, so nothing else uses them, and
    // the direct map covers them for good.
    let claimed = HEAP.talc.with(|talc| unsafe { talc.claim(base, size) });
    claimed.expect("the heap holds talc's own data");
}

// SAFETY: talc returns memory of the layout asked for that overlaps no live allocation; the lock
// makes each call exclusive.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller answers for a size that isn't zero.
        let block = self.talc.with(|talc| unsafe { talc.allocate(layout) });
        block.map_or(ptr::null_mut(), |block| block.as_ptr())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller answers for a block of ours with this layout.
        self.talc.with(|talc| unsafe { talc.deallocate(block, layout) });
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller answers for a block of ours with this layout and a new size that
        // isn't zero.
        let in_place = self.talc.with(|talc| unsafe { talc.try_realloc_in_place(block, layout, size) });
        if in_place {
            return block;
        }
        // SAFETY: the caller answers for a new size that, rounded up to the alignment, fits.
        let layout_new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the new size isn't zero.
        let new = unsafe { self.alloc(layout_new) };
        if !new.is_null() {
            // SAFETY: both blocks are live, distinct and at least this long; the old one is the
            // caller's with `layout`.
            unsafe {
                ptr::copy_nonoverlapping(block, new, layout.size().min(size));
                self.dealloc(block, layout);
            }
        }
        new
    }
}
