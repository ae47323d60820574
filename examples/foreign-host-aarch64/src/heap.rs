//! The heap: frames from anywhere, mapped page by page, handed out by `linked_list_allocator`.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use linked_list_allocator::Heap;

use crate::layout::PAGE;
use crate::registers::Lock;
use crate::tables;

struct KernelHeap(Lock<Heap>);

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(Lock::new(Heap::empty()));

const PAGES: u64 = 4096;

/// Gives the heap its memory.
pub(crate) fn start() {
    let start = tables::map_scattered(PAGES).expect("the machine has memory for a heap");
    let start = core::ptr::with_exposed_provenance_mut(start as usize);
    // SAFETY: mapped for the heap alone, for good.
    HEAP.0.with(|heap| unsafe { heap.init(start, (PAGES * PAGE) as usize) });
}

// SAFETY: the allocator keeps the contract; the lock makes each call exclusive.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.with(|heap| heap.allocate_first_fit(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr))
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(block) = NonNull::new(block) else { return };
        // SAFETY: the caller's promise is the same.
        self.0.with(|heap| unsafe { heap.deallocate(block, layout) });
    }
}
