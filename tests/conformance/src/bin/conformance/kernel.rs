//! The platform as the suite wants a kernel.

use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::AtomicU64;

use conformance::{Kernel, Line};
use platform_qemu::host::Qemu;
use platform_qemu::{console, memory, time};
use sandbox_mode::{CpuConfig, Host, VirtAddr};

use crate::{interrupts, machine};

struct QemuKernel {
    host: &'static Qemu,
    device: VirtAddr,
}

/// The kernel, for good.
pub(crate) fn make() -> &'static dyn Kernel {
    let host = Box::leak(Box::new(Qemu::new()));
    let device = VirtAddr::of(platform_qemu::paging::map_device(machine::DEVICE, platform_qemu::layout::PAGE_SIZE));
    Box::leak(Box::new(QemuKernel { host, device }))
}

impl Kernel for QemuKernel {
    fn host(&self) -> &'static dyn Host {
        self.host
    }

    fn cpu_config(&self) -> CpuConfig {
        platform_qemu::host::cpu_config()
    }

    fn print(&self, text: fmt::Arguments<'_>) {
        console::print(text);
    }

    fn free_frames(&self) -> usize {
        memory::free_frames()
    }

    fn ticks(&self) -> &'static AtomicU64 {
        let page: &'static time::TickPage = &time::TICKS;
        // SAFETY: the page begins with its counter, which is all that is ever accessed.
        unsafe { &*core::ptr::from_ref(page).cast::<AtomicU64>() }
    }

    fn interrupts_enabled(&self) -> bool {
        platform_qemu::interrupts::enabled()
    }

    fn device(&self) -> VirtAddr {
        self.device
    }

    fn raise(&self, line: Line) -> Result<(), &'static str> {
        machine::raise(line)
    }

    fn handled(&self, line: Line) -> u64 {
        match line {
            Line::Ordinary => interrupts::ordinary(),
            Line::Fast => interrupts::fast(),
            Line::NonMaskable => machine::nmi_count(),
        }
    }

    fn raise_nmi_after(&self, steps: u16) -> Result<(), &'static str> {
        machine::raise_nmi_after(self.device, steps)
    }

    #[cfg(target_arch = "x86_64")]
    fn raise_vector(&self, vector: u8) -> Result<(), &'static str> {
        machine::raise_vector(vector)
    }

    #[cfg(target_arch = "x86_64")]
    fn end_vector(&self, vector: u8) {
        machine::end_vector(vector);
    }

    fn with_process_page(&self, work: &mut dyn FnMut(VirtAddr)) -> Result<(), &'static str> {
        machine::with_process_page(work)
    }

    fn set_fixup(&self, fixup: fn(u64) -> Option<u64>) -> Result<(), &'static str> {
        platform_qemu::fixup::set(fixup);
        Ok(())
    }

    fn inspect(&self, look: &mut dyn FnMut(&'static str, u64)) {
        machine::inspect(look);
    }
}
