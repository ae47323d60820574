//! The kernel as the conformance suite wants one.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use conformance::{Kernel, Line};
use sandbox_mode::{CpuConfig, Host, VirtAddr};

use crate::gic::{self, Kind};
use crate::host::{Foreign, cpu_config};
use crate::{console, frames, process, registers, time, vectors};

/// Software-generated interrupts of the suite's.
const ORDINARY: u32 = 9;
const FAST: u32 = 10;

static ORDINARY_COUNT: AtomicU64 = AtomicU64::new(0);
static FAST_COUNT: AtomicU64 = AtomicU64::new(0);

/// Lets the suite's interrupts through.
pub(crate) fn start() {
    gic::enable(ORDINARY, Kind::Irq);
    gic::enable(FAST, Kind::Fiq);
}

/// An interrupt that the kernel itself doesn't use.
pub(crate) fn handle(line: u32) {
    let counter = match line {
        ORDINARY => &ORDINARY_COUNT,
        FAST => &FAST_COUNT,
        other => panic!("interrupt {other} is nobody's"),
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The kernel that runs the suite.
#[derive(Debug)]
pub(crate) struct SuiteKernel {
    pub(crate) host: &'static Foreign,
}

impl Kernel for SuiteKernel {
    fn host(&self) -> &'static dyn Host {
        self.host
    }

    fn cpu_config(&self) -> CpuConfig {
        cpu_config()
    }

    fn print(&self, text: fmt::Arguments<'_>) {
        console::print(text);
    }

    fn free_frames(&self) -> usize {
        frames::count_free()
    }

    fn ticks(&self) -> &'static AtomicU64 {
        &time::TICKS.count
    }

    fn interrupts_enabled(&self) -> bool {
        registers::interrupts_enabled()
    }

    fn device(&self) -> VirtAddr {
        VirtAddr(time::device_registers())
    }

    fn raise(&self, line: Line) -> Result<(), &'static str> {
        match line {
            Line::Ordinary => gic::raise(ORDINARY, Kind::Irq),
            Line::Fast => gic::raise(FAST, Kind::Fiq),
            Line::NonMaskable => return Err("this machine has no non-maskable interrupts"),
        }
        Ok(())
    }

    fn handled(&self, line: Line) -> u64 {
        match line {
            Line::Ordinary => ORDINARY_COUNT.load(Ordering::Relaxed),
            Line::Fast => FAST_COUNT.load(Ordering::Relaxed),
            Line::NonMaskable => 0,
        }
    }

    fn raise_nmi_after(&self, _steps: u16) -> Result<(), &'static str> {
        Err("this machine has no non-maskable interrupts")
    }

    fn set_fixup(&self, fixup: fn(u64) -> Option<u64>) -> Result<(), &'static str> {
        vectors::set_fixup(fixup);
        Ok(())
    }

    /// Those of the timer that comes as FIQ; without a tick those of the one that the HAL asks for.
    fn busy(&self) -> &'static [&'static str] {
        if time::is_ticking() { &["CNTP_CTL_EL0", "CNTP_CVAL_EL0"] } else { &["CNTV_CTL_EL0"] }
    }

    /// The memory of processes is writable and executable for them.
    fn leaves_off(&self) -> &'static [&'static str] {
        &["SCTLR_EL1.WXN"]
    }

    /// The suite runs in a system call of a process, whose page is there all the time.
    fn with_process_page(&self, work: &mut dyn FnMut(VirtAddr)) -> Result<(), &'static str> {
        match process::is_in_force(0) {
            true => work(VirtAddr(process::PROGRAM)),
            false => return Err("no process is running"),
        }
        Ok(())
    }
}
