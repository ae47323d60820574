//! The conformance suite's view of this kernel.

use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use conformance::{Kernel, Line};
use sandbox_mode::{CpuConfig, Host, VirtAddr};
use spin::Once;
use x86_64::instructions::interrupts;

use crate::cpu::COUNTERS;
use crate::descriptors::FREE_STACKS;
use crate::host::Foreign;
use crate::lock::Masked;
use crate::tally::Counts;
use crate::{console, devices, memory, paging, processes, traps};

/// This kernel.
pub(crate) struct Suite;

static HOST: Once<Foreign> = Once::new();
static SUM: Masked<Option<Counts>> = Masked::new(None);

/// What the suite counted.
pub(crate) fn sum() -> Option<Counts> {
    SUM.with(Option::take)
}

/// The root that the suite's thread uses: 0 is the kernel's, others are processes'.
static ROOT: AtomicUsize = AtomicUsize::new(0);

impl Kernel for Suite {
    fn host(&self) -> &'static dyn Host {
        HOST.call_once(Foreign::new)
    }

    fn cpu_config(&self) -> CpuConfig {
        CpuConfig::default().free_stacks(FREE_STACKS)
    }

    /// The suite's sum is kept for this kernel's own.
    fn print(&self, text: fmt::Arguments<'_>) {
        match Counts::read(&alloc::format!("{text}")) {
            Some(counts) => SUM.with(|sum| *sum = Some(counts)),
            None => console::print(text),
        }
    }

    fn free_frames(&self) -> usize {
        memory::free_count()
    }

    fn ticks(&self) -> &'static AtomicU64 {
        devices::TICKS.counter()
    }

    fn interrupts_enabled(&self) -> bool {
        interrupts::are_enabled()
    }

    fn device(&self) -> VirtAddr {
        VirtAddr(paging::device(devices::IO_APIC))
    }

    fn raise(&self, line: Line) -> Result<(), &'static str> {
        match line {
            Line::Ordinary => devices::send_own(),
            Line::NonMaskable => devices::send_nmi(),
            Line::Fast => return Err("x86-64 has no FIQ"),
        }
        Ok(())
    }

    fn handled(&self, line: Line) -> u64 {
        match line {
            Line::Ordinary => COUNTERS.own.load(Ordering::Relaxed),
            Line::NonMaskable => COUNTERS.nmi.load(Ordering::Relaxed),
            Line::Fast => 0,
        }
    }

    fn raise_nmi_after(&self, steps: u16) -> Result<(), &'static str> {
        devices::nmi_after(steps);
        Ok(())
    }

    fn with_process_page(&self, work: &mut dyn FnMut(VirtAddr)) -> Result<(), &'static str> {
        processes::use_root(1);
        work(VirtAddr(processes::SCRATCH));
        processes::use_root(ROOT.load(Ordering::Relaxed));
        Ok(())
    }

    fn set_fixup(&self, fixup: fn(u64) -> Option<u64>) -> Result<(), &'static str> {
        traps::set_fixup(fixup);
        Ok(())
    }

    fn inspect(&self, look: &mut dyn FnMut(&'static str, u64)) {
        devices::settings().for_each(|(name, value)| look(name, value));
    }

    /// It is older than these.
    fn leaves_off(&self) -> &'static [&'static str] {
        &["SMEP", "SMAP", "UMIP"]
    }

    /// The processes do something, and the suite goes on on another root.
    fn between_cases(&self) {
        processes::run_each();
        let root = (ROOT.load(Ordering::Relaxed) + 1) % (processes::COUNT + 1);
        ROOT.store(root, Ordering::Relaxed);
        processes::use_root(root);
    }

    fn uses_thread_base(&self) -> bool {
        true
    }
}
