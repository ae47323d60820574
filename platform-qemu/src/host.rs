//! This kernel as a host of sandboxes.

use core::sync::atomic::{AtomicBool, Ordering};

use sandbox_mode::{
    CpuConfig, Error, FatalReport, Frame, FrameKind, Hal, Host, Image, Page, PageRange, Permissions, Roots, VirtAddr,
};

use crate::lock::MaskedLock;
use crate::paging::Access;
use crate::{cpu, exit, gate, interrupts, layout, machine, memory, paging, println, time};

/// The platform's side of the HAL.
#[derive(Debug)]
pub struct Qemu {
    text: [PageRange; 1],
    read_only: [PageRange; 1],
    window: PageRange,
}

/// Which root translates kernel addresses: AArch64 has one for each half of the address space.
const KERNEL_ROOT: usize = if cfg!(target_arch = "aarch64") { 1 } else { 0 };

fn pages(range: core::ops::Range<u64>) -> PageRange {
    PageRange::from_addresses(VirtAddr(range.start), VirtAddr(range.end)).expect("the linker script aligns to pages")
}

impl Qemu {
    /// The platform as it was booted.
    pub fn new() -> Qemu {
        let image = layout::image();
        Qemu { text: [pages(image.text)], read_only: [pages(image.rodata)], window: pages(layout::WINDOW) }
    }
}

impl Default for Qemu {
    fn default() -> Self {
        Qemu::new()
    }
}

/// What the HAL is told when it asks whether to yield.
static SHOULD_YIELD: AtomicBool = AtomicBool::new(false);

/// Makes sandboxes yield after the next interrupt, on any CPU, until it is called with `false`.
pub fn set_should_yield(yes: bool) {
    SHOULD_YIELD.store(yes, Ordering::Relaxed);
}

/// What [`sandbox_mode::Hal::start_cpu`] is to be told of any of this machine's CPUs.
pub fn cpu_config() -> CpuConfig {
    machine::cpu_config()
}

/// Makes the HAL for this kernel and starts it on all CPUs. It lives for ever, so call this once.
///
/// # Errors
///
/// What [`Hal::new`] and `Hal::start_cpu` return.
pub fn start_hal() -> Result<&'static Hal<Qemu>, Error> {
    let hal = alloc::boxed::Box::leak(alloc::boxed::Box::new(Hal::new(Qemu::new())?));
    let result = MaskedLock::new(Ok(()));
    cpu::on_each(&|| {
        // SAFETY: (1) `on_each` does this once on each CPU, and no thread moves meanwhile; (2) nothing in this crate changes the
        // descriptor tables after boot; (3) this is what the machine is.
        let started = unsafe { hal.start_cpu(cpu_config()) };
        result.with(|result| *result = result.and(started));
    });
    result.with(|result| *result)?;
    Ok(hal)
}

// SAFETY:
// 1. `memory` hands a frame out once, and takes it back only from `free_frame`.
// 2. All RAM is in the direct map, at one address, for good.
// 3. `memory` has a state for each frame of RAM; all else is devices.
// 4. The tables are in RAM, the same below each root, and `unchanged` holds them still.
// 5. `map_gate_pages` maps in those tables, and nobody unmaps.
// 6. Nothing in this crate maps anything in the window.
// 7. The image is never unmapped or changed, and holds no secret.
// 8. `cpu` numbers the CPUs from 0, and `count` doesn't change any more.
unsafe impl Host for Qemu {
    fn allocate_frame(&self) -> Option<Frame> {
        memory::allocate_frame().map(Frame::containing)
    }

    unsafe fn free_frame(&self, frame: Frame) {
        memory::free_frame(frame.start());
    }

    fn frame_pointer(&self, frame: Frame) -> *mut u8 {
        memory::direct(frame.start())
    }

    fn frame_kind(&self, frame: Frame) -> FrameKind {
        match memory::frame_kind(frame.start()) {
            memory::FrameKind::Used | memory::FrameKind::Image => FrameKind::Ram,
            memory::FrameKind::PageTable => FrameKind::PageTable,
            memory::FrameKind::Device => FrameKind::Device,
            memory::FrameKind::Free | memory::FrameKind::Reserved => FrameKind::Reserved,
        }
    }

    fn with_tables(&self, walk: &mut dyn FnMut(&Roots)) {
        let mut roots = Roots::default();
        roots[KERNEL_ROOT] = Some(Frame::containing(paging::root()));
        paging::unchanged(|| walk(&roots));
    }

    unsafe fn map_gate(&self, frames: &[Frame], permissions: Permissions) -> Option<Page> {
        let mut addresses = [0; sandbox_mode::arch::MAX_GATE_FRAMES];
        let addresses = addresses.get_mut(..frames.len())?;
        for (address, frame) in addresses.iter_mut().zip(frames) {
            *address = frame.start();
        }
        let access = match permissions {
            Permissions::READ_WRITE => Access::ReadWrite,
            Permissions::READ_EXECUTE => Access::Code,
            _ => return None,
        };
        gate::map_gate_pages(addresses, access).and_then(|address| Page::from_start(VirtAddr(address)))
    }

    fn window(&self) -> PageRange {
        self.window
    }

    fn image(&self) -> Image<'_> {
        Image { text: &self.text, read_only: &self.read_only, excluded: &[] }
    }

    fn cpu_index(&self) -> usize {
        cpu::index()
    }

    fn cpu_count(&self) -> usize {
        cpu::count()
    }

    fn now(&self) -> Option<u64> {
        Some(time::now())
    }

    fn arm_timer(&self, at: u64) {
        time::arm(at);
    }

    fn should_yield(&self) -> bool {
        SHOULD_YIELD.load(Ordering::Relaxed)
    }

    fn kick(&self, cpu: usize) {
        interrupts::send(cpu, machine::interrupts::KICK);
    }

    fn fatal(&self, report: &FatalReport) -> ! {
        println!(
            "fatal: exception {:#x} (details {:#x}) in the sandbox gate at {}, address {}",
            report.syndrome.class, report.syndrome.detail, report.at, report.address
        );
        exit::exit(false)
    }
}
