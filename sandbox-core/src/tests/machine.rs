//! Physical memory and a host kernel's page tables in it.
//!
//! Frames are handed out full of rubbish, from both ends by turns, and must come back zeroed,
//! once, and all of them.

use std::alloc::{alloc_zeroed, dealloc};
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::vec::Vec;

use super::layout::{
    ADDRESS, CACHED, EXECUTE, GLOBAL, LEAF, Layout, PRESENT, READ, SimFormat, Translation, USER, USER_EXECUTE, WRITE,
    translate,
};
use crate::addr::{Frame, PAGE_SIZE, Page, PageRange};
use crate::exit::FatalReport;
use crate::format::{ENTRIES, Format, Leaf, Privilege, Roots};
use crate::host::FrameKind;
use crate::permissions::Permissions;

/// The first frame that there is memory for, and how many. A leaf of the HAL's record ends between them.
pub(super) const FIRST: u64 = 0x600;
pub(super) const FRAMES: u64 = 0x400;
/// Text and read-only data lie from here on, without memory: nobody looks into them.
const IMAGE_FRAMES: u64 = 0x1_0000;

/// The frame that page `page` of the image lies in.
pub(super) fn image_frame(page: u64) -> Frame {
    Frame::from_start((IMAGE_FRAMES + page) << 12).unwrap()
}

/// Blocks of frames without memory.
pub(super) const BLOCKS: u64 = 0x8_0000;
const SHAPE: std::alloc::Layout = match std::alloc::Layout::from_size_align(PAGE_SIZE, PAGE_SIZE) {
    Ok(shape) => shape,
    Err(_) => panic!(),
};

pub(super) struct State {
    pub(super) free: VecDeque<u64>,
    /// What the HAL has.
    pub(super) taken: BTreeSet<u64>,
    pub(super) kinds: BTreeMap<u64, FrameKind>,
    /// Allocations until there is no memory left.
    pub(super) budget: Option<usize>,
    /// The next page that a gate's data is mapped at, and what was mapped so far.
    pub(super) next_gate: u64,
    /// Where gates' data appears, if not at the layout's place.
    pub(super) gates_at: Option<PageRange>,
    pub(super) gates: Vec<Frame>,
    /// Whether gates are mapped in a way that the CPU can't bear beside the views'.
    pub(super) unusual_gates: bool,
    /// Where the gate's code appears, if not at the layout's place.
    pub(super) code_at: Option<PageRange>,
    pub(super) no_room_for_gates: bool,
    pub(super) from_end: bool,
    /// Whether the host maps its own pages globally.
    pub(super) global: bool,
    /// What the host's clock shows; `None`: it has none.
    pub(super) clock: Option<u64>,
    /// What the HAL reported last.
    pub(super) fatal: Option<FatalReport>,
    /// A test has failed on it: nothing more is expected.
    pub(super) abandoned: bool,
}

pub(super) struct Machine {
    /// An allocation for each frame, made when the frame is first used: what runs over a frame's end is caught by Miri.
    /// The array of their addresses is reached without references, each of which Miri would look at as a whole.
    memory: *mut *mut u8,
    pub(super) layout: Layout,
    roots: Mutex<Roots>,
    /// Held while the tables may not change.
    pub(super) guard: Mutex<()>,
    state: Mutex<State>,
    pub(super) text: Vec<PageRange>,
    pub(super) read_only: Vec<PageRange>,
    pub(super) excluded: Vec<PageRange>,
    pub(super) window: PageRange,
    pub(super) cpus: usize,
}

// SAFETY: `memory` is reached by one thread at a time in each test; all else is behind locks.
unsafe impl Send for Machine {}
// SAFETY: as above.
unsafe impl Sync for Machine {}

impl Machine {
    /// A machine with an image and nothing else mapped.
    pub(super) fn new(layout: Layout) -> Machine {
        Machine::mapped(layout, true)
    }

    /// The same, with everything mapped globally or not.
    pub(super) fn mapped(layout: Layout, global: bool) -> Machine {
        let state = State {
            free: (FIRST..FIRST + FRAMES).collect(),
            taken: BTreeSet::new(),
            kinds: BTreeMap::new(),
            budget: None,
            next_gate: 0,
            gates_at: None,
            clock: None,
            fatal: None,
            abandoned: false,
            gates: Vec::new(),
            unusual_gates: false,
            code_at: None,
            no_room_for_gates: false,
            from_end: false,
            global,
        };
        // Hundreds of pages take minutes under Miri.
        let (text, read_only) = match cfg!(miri) {
            true => (layout.image(512, 16), layout.image(1536, 8)),
            false => (layout.image(0, 528), layout.image(1024, 520)),
        };
        let machine = Machine {
            memory: Box::into_raw(Box::new([core::ptr::null_mut::<u8>(); FRAMES as usize])).cast(),
            layout,
            roots: Mutex::new([None; 2]),
            guard: Mutex::new(()),
            state: Mutex::new(state),
            text: [text].into(),
            read_only: [read_only].into(),
            excluded: [layout.image(522, 1), layout.image(1539, 2)].into(),
            window: layout.window(0, 512),
            cpus: 4,
        };
        // Each begins with a block that pages follow.
        for (range, permissions) in [(text, Permissions::READ_EXECUTE), (read_only, Permissions::READ)] {
            let first = range.start().number() - layout.image(0, 1).start().number();
            let blocks = range.count() / 512 * 512;
            machine.map_range(range.take(blocks), image_frame(first), 1, permissions);
            machine.map_range(range.skip(blocks), image_frame(first + blocks), 0, permissions);
        }
        machine
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The bytes of `frame`.
    pub(super) fn bytes(&self, frame: Frame) -> *mut u8 {
        let index = frame.number().wrapping_sub(FIRST);
        assert!(index < FRAMES, "there is no memory behind {frame:?}");
        // SAFETY: the index is below the array's length, and a machine is used by one thread at a time; the size is not zero.
        unsafe {
            let slot = self.memory.add(index as usize);
            if slot.read().is_null() {
                slot.write(alloc_zeroed(SHAPE));
                assert!(!slot.read().is_null());
            }
            slot.read()
        }
    }

    /// A frame of the host's own, zeroed.
    pub(super) fn take(&self) -> Frame {
        let frame = Frame::from_start(self.state().free.pop_front().unwrap() << 12).unwrap();
        // SAFETY: the frame is in memory and nobody else's.
        unsafe { self.bytes(frame).write_bytes(0, PAGE_SIZE) };
        frame
    }

    /// `count` frames of the host's own that follow each other, the first a multiple of `count`.
    pub(super) fn take_many(&self, count: u64) -> Frame {
        let mut state = self.state();
        let first = (FIRST..FIRST + FRAMES - count)
            .find(|&first| first.is_multiple_of(count) && (first..first + count).all(|f| state.free.contains(&f)))
            .unwrap();
        state.free.retain(|&frame| !(first..first + count).contains(&frame));
        Frame::from_start(first << 12).unwrap()
    }

    pub(super) fn set_kind(&self, frame: Frame, kind: FrameKind) {
        self.state().kinds.insert(frame.number(), kind);
    }

    /// Lets `count` more allocations succeed.
    pub(super) fn limit_allocations(&self, count: Option<usize>) {
        self.state().budget = count;
    }

    pub(super) fn refuse_gates(&self, refuse: bool) {
        self.state().no_room_for_gates = refuse;
    }

    /// Lets the next gates appear `count` pages later.
    pub(super) fn skip_gates(&self, count: u64) {
        self.state().next_gate += count;
    }

    /// Lets gates appear in `range`.
    pub(super) fn gates_at(&self, range: PageRange) {
        self.state().gates_at = Some(range);
    }

    /// Where the gate's code appears when it is mapped a second time.
    pub(super) fn code_at(&self) -> PageRange {
        self.state().code_at.unwrap_or(self.layout.gate_code())
    }

    /// Gives up the check at the end.
    pub(super) fn abandon(&self) {
        if let Ok(mut state) = self.state.lock() {
            state.abandoned = true;
        }
    }

    /// Waits for a report.
    pub(super) fn fatal_report(&self) -> FatalReport {
        loop {
            if let Some(report) = self.state().fatal {
                return report;
            }
            std::thread::yield_now();
        }
    }

    /// How many frames the HAL has.
    pub(super) fn outstanding(&self) -> usize {
        self.state().taken.len()
    }

    /// Whether the HAL has `frame`.
    pub(super) fn is_taken(&self, frame: Frame) -> bool {
        self.state().taken.contains(&frame.number())
    }

    /// All that the HAL has.
    pub(super) fn taken(&self) -> Vec<Frame> {
        self.state().taken.iter().map(|number| Frame::from_start(number << 12).unwrap()).collect()
    }

    /// Puts `frame` at the head of the free list, although it may be in use.
    pub(super) fn offer(&self, frame: Frame) {
        let mut state = self.state();
        state.free.push_front(frame.number());
        state.from_end = false;
    }

    /// Lets the HAL keep a frame that it refused.
    pub(super) fn forget(&self, frame: Frame) {
        self.state().taken.remove(&frame.number());
    }

    pub(super) fn gates(&self) -> Vec<Frame> {
        self.state().gates.clone()
    }

    /// Entry `index` of a table.
    pub(super) fn entry(&self, table: Frame, index: usize) -> u64 {
        assert!(index < ENTRIES);
        // SAFETY: a frame has `ENTRIES` entries.
        unsafe { self.bytes(table).cast::<u64>().add(index).read_volatile() }
    }

    /// All entries of a table.
    pub(super) fn entries(&self, table: Frame) -> [u64; ENTRIES] {
        // SAFETY: as in `entry`.
        unsafe { self.bytes(table).cast::<[u64; ENTRIES]>().read_volatile() }
    }

    fn set_entry(&self, table: Frame, index: usize, raw: u64) {
        assert!(index < ENTRIES);
        // SAFETY: as in `entry`.
        unsafe { self.bytes(table).cast::<u64>().add(index).write_volatile(raw) }
    }

    fn table(&self) -> Frame {
        let frame = self.take();
        self.set_kind(frame, FrameKind::PageTable);
        frame
    }

    /// Changes the host's entry for `page` at `level`, with tables made on the way.
    pub(super) fn edit(&self, page: Page, level: u8, change: impl FnOnce(u64) -> u64) {
        let _guard = self.guard.try_lock().expect("the tables change under a guard");
        let root = self.layout.root(page.start().0).expect("not canonical");
        let mut table = *self.roots.lock().unwrap()[root].get_or_insert_with(|| self.table());
        for upper in (level + 1..self.layout.levels[root]).rev() {
            let index = (page.number() >> (9 * upper)) as usize % ENTRIES;
            let mut raw = self.entry(table, index);
            if raw & PRESENT == 0 {
                raw = self.table().start() | PRESENT | READ | WRITE | EXECUTE | USER;
                self.set_entry(table, index, raw);
            }
            assert!(raw & LEAF == 0, "there is a block in the way");
            table = Frame::containing(raw & ADDRESS);
        }
        let index = (page.number() >> (9 * level)) as usize % ENTRIES;
        self.set_entry(table, index, change(self.entry(table, index)));
    }

    /// Maps what follows globally or not.
    pub(super) fn map_globally(&self, global: bool) {
        self.state().global = global;
    }

    /// Maps one page or block in the host's tables, as the host's own.
    pub(super) fn map(&self, page: Page, frame: Frame, level: u8, permissions: Permissions) {
        let leaf = Leaf { frame, permissions, privilege: Privilege::Privileged, memory: CACHED };
        let global = if self.state().global { GLOBAL } else { 0 };
        let raw = SimFormat(self.layout).encode_leaf(level, leaf) | global;
        self.edit(page, level, |_| raw);
    }

    /// Maps all of `range` in pages or blocks.
    pub(super) fn map_range(&self, range: PageRange, frame: Frame, level: u8, permissions: Permissions) {
        let step = 1 << (9 * level);
        for offset in (0..range.count()).step_by(step) {
            self.map(range.start().checked_add(offset).unwrap(), frame.add(offset), level, permissions);
        }
    }

    /// Maps a page for user code too, executable for it alone.
    pub(super) fn map_user(&self, page: Page, frame: Frame) {
        self.map(page, frame, 0, Permissions::READ);
        self.edit(page, 0, |raw| raw | USER | USER_EXECUTE);
    }

    /// Shows all memory at the direct map, in blocks.
    pub(super) fn map_directly(&self) {
        let first = FIRST & !0x1ff;
        let range = self.layout.direct(first, (FIRST + FRAMES).next_multiple_of(512) - first);
        self.map_range(range, Frame::from_start(first << 12).unwrap(), 1, Permissions::READ_WRITE);
    }

    /// The host's roots.
    pub(super) fn roots(&self) -> Roots {
        *self.roots.lock().unwrap()
    }

    /// What the hardware makes of an address in tables.
    pub(super) fn translate(&self, roots: Roots, address: u64) -> Option<Translation> {
        translate(self.layout, roots, address, |table, index| self.entry(table, index))
    }

    /// What the hardware makes of a page in the host's tables.
    pub(super) fn host_page(&self, page: Page) -> Option<Translation> {
        self.translate(self.roots(), page.start().0)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: from a box of this type; each frame was allocated with this shape.
        unsafe {
            let memory = Box::from_raw(self.memory.cast::<[*mut u8; FRAMES as usize]>());
            memory.into_iter().filter(|frame| !frame.is_null()).for_each(|frame| dealloc(frame, SHAPE));
        }
        // Without a state the test has failed in the middle of something.
        if let Ok(state) = self.state.get_mut()
            && !state.abandoned
            && !std::thread::panicking()
        {
            assert!(state.taken.is_empty(), "frames that did not come back: {:x?}", state.taken);
        }
    }
}
