//! The kernel on a simulated machine.

use std::sync::Arc;

use super::layout::UNUSUAL;
use super::machine::Machine;
use crate::addr::{Frame, PAGE_SIZE, Page, PageRange};
use crate::exit::FatalReport;
use crate::format::Roots;
use crate::host::{FrameKind, Host, Image};
use crate::permissions::Permissions;

/// The machine as a host.
pub(super) struct SimHost(pub(super) Arc<Machine>);

impl SimHost {
    fn map_gate_page(&self, page: Page, frame: Frame, permissions: Permissions) {
        self.0.map(page, frame, 0, permissions);
        if self.0.state().unusual_gates {
            self.0.edit(page, 0, |raw| raw | UNUSUAL);
        }
    }
}

// SAFETY: what the methods return is true of the machine; frames are handed out once.
unsafe impl Host for SimHost {
    fn allocate_frame(&self) -> Option<Frame> {
        let mut state = self.0.state();
        match &mut state.budget {
            Some(0) => return None,
            Some(rest) => *rest -= 1,
            None => {}
        }
        state.from_end = !state.from_end;
        let number = if state.from_end { state.free.pop_front() } else { state.free.pop_back() }?;
        let frame = Frame::from_start(number << 12).unwrap();
        if state.taken.insert(number) {
            // SAFETY: the frame was free.
            unsafe { self.0.bytes(frame).write_bytes(0xa5, PAGE_SIZE) };
        }
        Some(frame)
    }

    unsafe fn free_frame(&self, frame: Frame) {
        let mut state = self.0.state();
        assert!(state.taken.remove(&frame.number()), "{frame:?} was freed twice, or is not the HAL's");
        // SAFETY: the frame is in memory, and whoever frees it uses it no more.
        let bytes = unsafe { core::slice::from_raw_parts(self.0.bytes(frame), PAGE_SIZE) };
        assert!(bytes == [0; PAGE_SIZE], "{frame:?} was freed with something in it");
        state.free.push_back(frame.number());
    }

    fn frame_pointer(&self, frame: Frame) -> *mut u8 {
        self.0.bytes(frame)
    }

    fn frame_kind(&self, frame: Frame) -> FrameKind {
        self.0.state().kinds.get(&frame.number()).copied().unwrap_or(FrameKind::Ram)
    }

    fn with_tables(&self, walk: &mut dyn FnMut(&Roots)) {
        let _guard = self.0.guard.try_lock().expect("the guard is taken twice");
        walk(&self.0.roots());
    }

    unsafe fn map_gate(&self, frames: &[Frame], permissions: Permissions) -> Option<Page> {
        let (first, place) = {
            let mut state = self.0.state();
            if state.no_room_for_gates {
                return None;
            }
            if permissions == Permissions::READ_EXECUTE {
                assert!(self.0.layout.remaps_gate_code);
                drop(state);
                let code = self.0.code_at();
                code.pages().zip(frames).for_each(|(page, &frame)| self.map_gate_page(page, frame, permissions));
                return Some(code.start());
            }
            // One page stays free between gates.
            let first = state.next_gate;
            state.next_gate += frames.len() as u64 + 1;
            state.gates.extend_from_slice(frames);
            (first, state.gates_at.unwrap_or(self.0.layout.gates(0, 4096)))
        };
        let range = place.skip(first).take(frames.len() as u64);
        for (page, &frame) in range.pages().zip(frames) {
            self.map_gate_page(page, frame, permissions);
        }
        Some(range.start())
    }

    fn window(&self) -> PageRange {
        self.0.window
    }

    fn image(&self) -> Image<'_> {
        Image { text: &self.0.text, read_only: &self.0.read_only, excluded: &self.0.excluded }
    }

    fn cpu_index(&self) -> usize {
        super::processor::cpu_index()
    }

    fn cpu_count(&self) -> usize {
        self.0.cpus
    }

    fn now(&self) -> Option<u64> {
        self.0.state().clock
    }

    fn arm_timer(&self, at: u64) {
        assert!(super::processor::interrupts_masked());
        super::processor::cpu(|cpu| cpu.armed.push(at));
    }

    fn should_yield(&self) -> bool {
        super::processor::cpu(|cpu| cpu.yields)
    }

    fn kick(&self, cpu: usize) {
        super::processor::cpu(|this| this.kicked.push(cpu));
    }

    fn fatal(&self, report: &FatalReport) -> ! {
        self.0.state().fatal = Some(*report);
        loop {
            std::thread::park();
        }
    }
}
