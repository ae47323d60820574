//! What this kernel tells the HAL. All of it: nothing else was written for the HAL's sake.

use sandbox_mode::arch::MAX_GATE_FRAMES;
use sandbox_mode::{FatalReport, Frame, FrameKind, Host, Image, Page, PageRange, Permissions, Roots, VirtAddr};

use crate::console::{exit, println};
use crate::memory::{self, State};
use crate::{devices, paging};

/// This kernel.
#[derive(Clone, Copy)]
pub(crate) struct Foreign {
    code: [PageRange; 1],
    constants: [PageRange; 1],
    window: PageRange,
}

fn pages(range: core::ops::Range<u64>) -> PageRange {
    PageRange::from_addresses(VirtAddr(range.start), VirtAddr(range.end)).expect("they begin and end with pages")
}

impl Foreign {
    /// As it was linked.
    pub(crate) fn new() -> Foreign {
        Foreign {
            code: [pages(paging::code())],
            constants: [pages(paging::constants())],
            window: pages(paging::WINDOW),
        }
    }
}

// SAFETY:
// 1. `memory` hands a frame out once, until it is given back.
// 2. The direct map is in every root, and has all frames that `memory` hands out.
// 3. `memory` knows all of the first gigabyte; beyond it are devices.
// 4. The root in force has all of the kernel's; `unchanged` holds the lock of whoever changes tables.
// 5. `map_shared` maps in a table that all roots share, and nothing is unmapped there.
// 6. Nothing maps anything there.
// 7. The image is never unmapped, and has no secrets.
// 8. There is one CPU.
unsafe impl Host for Foreign {
    fn allocate_frame(&self) -> Option<Frame> {
        memory::allocate(State::Used).map(Frame::containing)
    }

    unsafe fn free_frame(&self, frame: Frame) {
        memory::free(frame.start());
    }

    fn frame_pointer(&self, frame: Frame) -> *mut u8 {
        paging::direct(frame.start())
    }

    fn frame_kind(&self, frame: Frame) -> FrameKind {
        match memory::state(frame.start()) {
            State::Used => FrameKind::Ram,
            State::Table => FrameKind::PageTable,
            State::Free | State::Reserved => FrameKind::Reserved,
            State::Unknown => FrameKind::Device,
        }
    }

    fn with_tables(&self, walk: &mut dyn FnMut(&Roots)) {
        paging::unchanged(|| walk(&[Some(Frame::containing(paging::current())), None]));
    }

    unsafe fn map_gate(&self, frames: &[Frame], permissions: Permissions) -> Option<Page> {
        assert!(frames.len() <= MAX_GATE_FRAMES && permissions == Permissions::READ_WRITE);
        paging::map_shared(frames.iter().map(|frame| frame.start())).map(|address| VirtAddr(address).page())
    }

    fn window(&self) -> PageRange {
        self.window
    }

    fn image(&self) -> Image<'_> {
        Image { text: &self.code, read_only: &self.constants, excluded: &[] }
    }

    fn cpu_index(&self) -> usize {
        0
    }

    fn cpu_count(&self) -> usize {
        1
    }

    fn now(&self) -> Option<u64> {
        Some(devices::now())
    }

    fn fatal(&self, report: &FatalReport) -> ! {
        println!("the gate of the sandboxes: {report:x?}");
        exit(false)
    }
}
