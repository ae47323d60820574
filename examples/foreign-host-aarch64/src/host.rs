//! This kernel as a host of sandboxes: what it had to write for Sandbox Mode.

use core::ops::Range;
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use sandbox_mode::{
    CpuConfig, FatalReport, Frame, FrameKind, Host, Image, Page, PageRange, Permissions, Roots, VirtAddr,
};

use crate::console::print_last;
use crate::frames::{self, Use};
use crate::layout::{self, PAGE};
use crate::tables::{CONSTANT, EXECUTABLE, PRIVATE, Tables, WRITABLE};
use crate::{exit, tables, threads, time};

/// The kernel's side of the HAL.
#[derive(Clone, Debug)]
pub(crate) struct Foreign {
    pub(crate) text: [PageRange; 1],
    pub(crate) constants: [PageRange; 1],
    pub(crate) window: PageRange,
}

/// Where the upper half's root stands among the roots: there is one for each half.
const UPPER: usize = 1;

fn pages(range: Range<u64>) -> PageRange {
    PageRange::from_addresses(VirtAddr(range.start), VirtAddr(range.end)).expect("the linker script aligns to pages")
}

impl Foreign {
    pub(crate) fn new() -> Foreign {
        Foreign {
            text: [pages(layout::text())],
            constants: [pages(layout::constants())],
            window: pages(layout::WINDOW),
        }
    }
}

/// How many ASIDs each HAL gets, and the first that no process has.
const ASIDS: u16 = 32;
static NEXT_ASID: AtomicU16 = AtomicU16::new(0x100);

/// What a CPU of this kernel's is started with: it has E0PD on where there is such a thing, and can do without. Where no mapping
/// is global, sandboxes have ASIDs.
pub(crate) fn cpu_config() -> CpuConfig {
    let config = CpuConfig::default().clear_e0pd(true);
    if tables::with(Tables::is_global) { config } else { with_asids(config) }
}

/// The same with ASIDs that nobody has.
pub(crate) fn with_asids(config: CpuConfig) -> CpuConfig {
    let first = NEXT_ASID.fetch_add(ASIDS, Ordering::Relaxed);
    config.asids(first..=first + (ASIDS - 1))
}

/// Where the next page of the gate's goes.
static NEXT_GATE: AtomicU64 = AtomicU64::new(layout::GATE.start);

// SAFETY:
// 1. `frames` hands a frame out once, and takes it back only from `free_frame`.
// 2. All RAM is mapped at its place in the upper half, which all processes share, for good.
// 3. `frames` has a use for each frame of RAM; all else is devices.
// 4. The upper half has one set of tables, in RAM, which change only under the lock that `tables::with` holds.
// 5. `map_gate` maps in those tables, at addresses never given out before, and nobody unmaps.
// 6. Nothing in this kernel maps anything in the window.
// 7. The image is never unmapped or changed, and holds no secret.
// 8. There is one CPU.
unsafe impl Host for Foreign {
    fn allocate_frame(&self) -> Option<Frame> {
        frames::allocate(Use::Memory).map(Frame::containing)
    }

    unsafe fn free_frame(&self, frame: Frame) {
        frames::free(frame.start());
    }

    fn frame_pointer(&self, frame: Frame) -> *mut u8 {
        layout::direct(frame.start())
    }

    fn frame_kind(&self, frame: Frame) -> FrameKind {
        match frames::use_of(frame.start()) {
            Some(Use::Memory) => FrameKind::Ram,
            Some(Use::Table) => FrameKind::PageTable,
            Some(Use::Free | Use::Reserved) => FrameKind::Reserved,
            None => FrameKind::Device,
        }
    }

    fn with_tables(&self, walk: &mut dyn FnMut(&Roots)) {
        tables::with(|tables| {
            let mut roots = Roots::default();
            roots[UPPER] = Some(Frame::containing(tables.root()));
            walk(&roots);
        });
    }

    unsafe fn map_gate(&self, frames: &[Frame], permissions: Permissions) -> Option<Page> {
        let attributes = match permissions {
            Permissions::READ_WRITE => WRITABLE | PRIVATE,
            Permissions::READ_EXECUTE => CONSTANT | EXECUTABLE,
            _ => return None,
        };
        let size = frames.len() as u64 * PAGE;
        let start = NEXT_GATE.fetch_add(size, Ordering::Relaxed);
        if start + size > layout::GATE.end {
            return None;
        }
        for (number, frame) in frames.iter().enumerate() {
            let address = start + number as u64 * PAGE;
            tables::with(|tables| tables.map(address, frame.start(), PAGE, attributes, PAGE))?;
        }
        Page::from_start(VirtAddr(start))
    }

    fn window(&self) -> PageRange {
        self.window
    }

    fn image(&self) -> Image<'_> {
        Image { text: &self.text, read_only: &self.constants, excluded: &[] }
    }

    fn cpu_index(&self) -> usize {
        threads::cpu_index()
    }

    fn cpu_count(&self) -> usize {
        1
    }

    fn now(&self) -> Option<u64> {
        Some(time::now())
    }

    fn arm_timer(&self, at: u64) {
        time::arm(at);
    }

    fn fatal(&self, report: &FatalReport) -> ! {
        let (syndrome, address) = (report.syndrome.detail, report.address);
        print_last(format_args!("the gate failed at {}: syndrome {syndrome:#x}, address {address}\n", report.at));
        exit::exit(false)
    }
}
