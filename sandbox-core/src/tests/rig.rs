//! A machine with a HAL on it.

use std::sync::Arc;

use super::host::SimHost;
use super::layout::Layout;
use super::machine::{BLOCKS, Machine};
use super::processor::{Cpu, SimArch, cpu, interrupts_masked, unused_steps};
use crate::addr::{Frame, Page, PageRange};
use crate::error::Error;
use crate::hal::Hal;
use crate::permissions::Permissions;
use crate::sandbox::{Config, Sandbox};

pub(super) type SimHal = Hal<SimHost, SimArch>;
pub(super) type SimSandbox<'a> = Sandbox<'a, SimHost, SimArch>;

/// Pages of stack that sandboxes get here.
pub(super) const STACK: u64 = 2;

pub(super) struct Rig {
    /// From a box: start-up wants a HAL that stays, a test wants its memory back.
    hal: *mut SimHal,
    pub(super) machine: Arc<Machine>,
    pub(super) layout: Layout,
}

impl Rig {
    /// A machine with a HAL that was started on CPU 0.
    pub(super) fn new(layout: Layout) -> Rig {
        let rig = Rig::stopped(Machine::new(layout)).unwrap();
        rig.start_cpu(0).unwrap();
        rig
    }

    /// A HAL that was started nowhere.
    pub(super) fn stopped(machine: Machine) -> Result<Rig, Error> {
        let machine = Arc::new(machine);
        Cpu::reset(&machine);
        match Hal::new(SimHost(machine.clone())) {
            Ok(hal) => {
                let layout = machine.layout;
                Ok(Rig { hal: std::boxed::Box::into_raw(std::boxed::Box::new(hal)), machine, layout })
            }
            Err(error) => {
                assert_eq!(machine.outstanding(), 0, "a HAL that failed with {error:?} kept frames");
                cpu(|cpu| cpu.machine = None);
                Err(error)
            }
        }
    }

    fn forever(&self) -> &'static SimHal {
        // SAFETY: from a box, which only `drop` takes back, when all that borrowed the rig is gone; the hook that start-up
        // hands out is never called afterwards.
        unsafe { &*self.hal }
    }

    pub(super) fn hal(&self) -> &SimHal {
        self.forever()
    }

    /// Goes on as CPU `index`, which is started.
    pub(super) fn start_cpu(&self, index: usize) -> Result<(), Error> {
        self.start_cpu_with(index, None)
    }

    /// The same with tags.
    pub(super) fn start_cpu_with(&self, index: usize, tags: Option<(u16, u16)>) -> Result<(), Error> {
        cpu(|cpu| cpu.index = index);
        // SAFETY: the simulated CPU has no state that start-up could spoil.
        let result = unsafe { self.forever().start_cpu(tags) };
        assert!(!interrupts_masked());
        result
    }

    pub(super) fn config(&self) -> Config {
        Config::default().stack_size(STACK as usize * 4096)
    }

    /// A sandbox with a small stack.
    pub(super) fn sandbox(&self) -> SimSandbox<'_> {
        self.hal().sandbox_with(self.config()).unwrap()
    }

    /// Maps frames of the host's at pages of its data, and returns the first frame.
    pub(super) fn map_data(&self, first: u64, count: u64, permissions: Permissions) -> Frame {
        let frame = self.machine.take_many(count.next_power_of_two());
        self.machine.map_range(self.layout.data(first, count), frame, 0, permissions);
        frame
    }

    /// Page `first` of the host's data.
    pub(super) fn data(&self, first: u64) -> PageRange {
        self.layout.data(first, 1)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        assert!(!interrupts_masked());
        assert_eq!(unused_steps(), 0);
        let hal = self.hal();
        for frame in self.machine.gates() {
            // SAFETY: no CPU of this machine will ever run again, so its gates are not in use any more.
            unsafe {
                if self.machine.is_taken(frame) {
                    hal.frames.free(frame);
                } else {
                    hal.frames.release_gate(frame);
                }
            }
        }
        // SAFETY: from a box; nothing borrows the rig.
        drop(unsafe { std::boxed::Box::from_raw(self.hal) });
        cpu(|cpu| cpu.machine = None);
    }
}

/// Grants a range that the test's machine keeps for ever.
pub(super) fn grant(sandbox: &mut SimSandbox<'_>, range: PageRange, permissions: Permissions) -> Result<(), Error> {
    // SAFETY: the simulated host neither frees nor remaps anything during a test, and has no use for the contents.
    unsafe { sandbox.grant_range(range, permissions) }
}

/// The first of 512 frames of the host's that have no memory behind them.
pub(super) fn block_of_frames() -> Frame {
    Frame::from_start(BLOCKS << 12).unwrap()
}

/// The frame that a sandbox's page lies in.
pub(super) fn frame_of(sandbox: &SimSandbox<'_>, page: Page) -> Frame {
    sandbox.view.lookup(sandbox.hal, page).unwrap().frame
}
