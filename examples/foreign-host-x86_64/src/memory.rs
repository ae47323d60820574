//! Frames, each with a state of its own, and a heap in a run of them.

use core::alloc::{GlobalAlloc, Layout};
use core::ops::Range;
use core::ptr::{self, NonNull};

use linked_list_allocator::Heap;

use crate::boot::Ram;
use crate::lock::Masked;
use crate::paging;

/// Bytes of a frame.
pub(crate) const FRAME: u64 = 4096;
/// RAM from here on is left alone: the boot tables do not reach it.
const END: u64 = 1 << 30;
const COUNT: usize = (END / FRAME) as usize;
/// The heap, behind the image.
const HEAP: Range<u64> = 64 << 20..128 << 20;

/// What is known of a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// No RAM, as far as this kernel knows.
    Unknown,
    /// The firmware's.
    Reserved,
    /// Nobody's.
    Free,
    /// The image's, the heap's, or handed out.
    Used,
    /// A page table of the kernel's.
    Table,
}

struct Frames {
    states: [State; COUNT],
    free: usize,
    next: usize,
}

static FRAMES: Masked<Frames> = Masked::new(Frames { states: [State::Unknown; COUNT], free: 0, next: 0 });

struct Allocator(Masked<Heap>);

#[global_allocator]
static ALLOCATOR: Allocator = Allocator(Masked::new(Heap::empty()));

/// Takes stock of the RAM and sets the heap up.
pub(crate) fn init(ram: &Ram) {
    FRAMES.with(|frames| {
        let used = paging::image().end;
        for part in ram.parts() {
            for number in part.start.div_ceil(FRAME)..part.end.min(END) / FRAME {
                frames.states[number as usize] = match number * FRAME {
                    ..0x10_0000 => State::Reserved,
                    address if address < used || HEAP.contains(&address) => State::Used,
                    _ => State::Free,
                };
            }
        }
        frames.free = frames.states.iter().filter(|&&state| state == State::Free).count();
        assert!(frames.states[(HEAP.end / FRAME) as usize] == State::Free, "this kernel needs more RAM");
    });
    // SAFETY: the frames were set aside just now, and the direct map has them for good.
    ALLOCATOR.0.with(|heap| unsafe { heap.init(paging::direct(HEAP.start), (HEAP.end - HEAP.start) as usize) });
}

/// Takes a free frame; its contents are anything.
pub(crate) fn allocate(state: State) -> Option<u64> {
    FRAMES.with(|frames| {
        let mut numbers = (frames.next..COUNT).chain(0..frames.next);
        let number = numbers.find(|&number| frames.states[number] == State::Free)?;
        frames.states[number] = state;
        frames.free -= 1;
        frames.next = number + 1;
        Some(number as u64 * FRAME)
    })
}

/// Gives one back.
pub(crate) fn free(frame: u64) {
    FRAMES.with(|frames| {
        let number = (frame / FRAME) as usize;
        assert!(frames.states[number] == State::Used, "a frame was freed that was not handed out");
        frames.states[number] = State::Free;
        frames.free += 1;
    });
}

/// The address of some frame that is free.
pub(crate) fn a_free_one() -> u64 {
    let position = FRAMES.with(|frames| frames.states.iter().rposition(|&state| state == State::Free));
    position.expect("RAM") as u64 * FRAME
}

/// How many frames are free.
pub(crate) fn free_count() -> usize {
    FRAMES.with(|frames| frames.free)
}

/// What is known of the frame at this address.
pub(crate) fn state(frame: u64) -> State {
    FRAMES.with(|frames| frames.states.get((frame / FRAME) as usize).copied().unwrap_or(State::Unknown))
}

// SAFETY: blocks of the heap's, which are what was asked for and nobody else's.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.with(|heap| heap.allocate_first_fit(layout).map_or(ptr::null_mut(), NonNull::as_ptr))
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(block) = NonNull::new(block) else { return };
        // SAFETY: the caller answers for the block.
        self.0.with(|heap| unsafe { heap.deallocate(block, layout) });
    }
}
