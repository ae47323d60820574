//! Starting the HAL while something is missing or in the way: each time the error must name it, and in the end all is well.
//!
//! The first half are hosts that describe themselves wrongly, the second CPUs that are not ready. Interrupts stay masked.

use alloc::boxed::Box;

use sandbox_mode::{
    Arch, Backend, CpuConfig, Error, FatalReport, Frame, FrameKind, Hal, Host, Image, Page, PageRange, Permissions,
    Roots, Unsupported, Val, VirtAddr,
};
use x86_64::instructions::tables::{lgdt, sgdt};
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::xcontrol::XCr0;
use x86_64::structures::DescriptorTablePointer;

use crate::descriptors::{self, FREE_STACKS};
use crate::host::Foreign;
use crate::tally::Tally;
use crate::{boot, memory, paging};

/// This kernel, but for what a check makes of it.
#[derive(Clone, Copy)]
struct Other {
    inner: Foreign,
    text: Option<[PageRange; 2]>,
    read_only: Option<[PageRange; 1]>,
    window: Option<PageRange>,
    /// The frame it gives, again and again; or none at all.
    frame: Option<Option<Frame>>,
    gate: Option<Option<Page>>,
    cpu_index: usize,
    cpu_count: usize,
}

// SAFETY: as `Foreign`, as long as nothing is changed. What checks change is refused before it matters.
unsafe impl Host for Other {
    fn allocate_frame(&self) -> Option<Frame> {
        self.frame.unwrap_or_else(|| self.inner.allocate_frame())
    }

    unsafe fn free_frame(&self, frame: Frame) {
        if self.frame != Some(Some(frame)) {
            // SAFETY: the caller's promise is the same.
            unsafe { self.inner.free_frame(frame) };
        }
    }

    fn frame_pointer(&self, frame: Frame) -> *mut u8 {
        self.inner.frame_pointer(frame)
    }

    fn frame_kind(&self, frame: Frame) -> FrameKind {
        self.inner.frame_kind(frame)
    }

    fn with_tables(&self, walk: &mut dyn FnMut(&Roots)) {
        self.inner.with_tables(walk);
    }

    unsafe fn map_gate(&self, frames: &[Frame], permissions: Permissions) -> Option<Page> {
        // SAFETY: the caller's promise is the same.
        self.gate.unwrap_or_else(|| unsafe { self.inner.map_gate(frames, permissions) })
    }

    fn window(&self) -> PageRange {
        self.window.unwrap_or_else(|| self.inner.window())
    }

    fn image(&self) -> Image<'_> {
        let mut image = self.inner.image();
        image.text = self.text.as_ref().map_or(image.text, |text| text);
        image.read_only = self.read_only.as_ref().map_or(image.read_only, |ranges| ranges);
        image
    }

    fn cpu_index(&self) -> usize {
        self.cpu_index
    }

    fn cpu_count(&self) -> usize {
        self.cpu_count
    }

    fn fatal(&self, report: &FatalReport) -> ! {
        self.inner.fatal(report)
    }
}

fn other() -> Other {
    let inner = Foreign::new();
    Other { inner, text: None, read_only: None, window: None, frame: None, gate: None, cpu_index: 0, cpu_count: 1 }
}

fn pages(start: u64, end: u64) -> PageRange {
    PageRange::from_addresses(VirtAddr(start), VirtAddr(end)).expect("pages")
}

fn missing(what: &'static str) -> Error {
    Error::Unsupported(Unsupported::Missing(what))
}

fn enabled(what: &'static str) -> Error {
    Error::Unsupported(Unsupported::Enabled(what))
}

/// Runs them.
pub(crate) fn run() -> bool {
    let mut tally = Tally::default();
    descriptions(&mut tally);
    modes(&mut tally);
    cpus(&mut tally);
    tally.finish()
}

/// Hosts that are not what they say.
fn descriptions(tally: &mut Tally) {
    let image = Foreign::new();
    let (text, constants) = (image.image().text[0], image.image().read_only[0]);
    let gate = Backend::gate_text();
    let before_gate = pages(text.start().start().0, gate.start().start().0);
    let behind_gate = pages(gate.start().start().0 + gate.bytes(), text.start().start().0 + text.bytes());
    let in_window = PageRange::single(image.window().start());
    let unmapped = PageRange::single(VirtAddr(0x40_0000).page());
    let at = |frame: u64| VirtAddr::of(paging::direct(frame)).page();
    let device = VirtAddr(paging::device(crate::devices::IO_APIC)).page();
    let (root, unused) = (at(paging::root()), at(memory::a_free_one()));

    let window = |window| (Other { window: Some(window), ..other() }, Error::BadWindow(window));
    let of_text = |range, error| (Other { text: Some([text, range]), ..other() }, error);
    let of_constants = |range, error| (Other { read_only: Some([range]), ..other() }, error);
    let single = PageRange::single;
    let escalation = |page, host, wanted| Error::Escalation { page, host, wanted };
    let cases = [
        ("a window where something is mapped", window(pages(0x1000, 1 << 30))),
        ("a window in the direct map", window(pages(at(0).start().0, at(1 << 29).start().0))),
        ("a window that does not exist", window(pages(1 << 47, (1 << 47) + (1 << 30)))),
        ("a window across the end of what exists", window(pages((1 << 47) - (1 << 29), (1 << 47) + (1 << 29)))),
        ("a window that is too small", window(paging_window(511))),
        ("an empty window", window(paging_window(0))),
        ("a window at address zero", window(pages(0, 2 << 20))),
        (
            "a gate outside the text",
            (Other { text: Some([before_gate, behind_gate]), ..other() }, Error::BadImage(gate)),
        ),
        ("text in the window", of_text(in_window, Error::BadImage(in_window))),
        ("constants in the window", of_constants(in_window, Error::BadImage(in_window))),
        ("text that isn't mapped", of_text(unmapped, Error::NotMapped(unmapped.start()))),
        ("constants that aren't mapped", of_constants(unmapped, Error::NotMapped(unmapped.start()))),
        ("text twice", of_text(single(text.start()), Error::Overlap(text.start()))),
        ("text that is constant too", of_constants(single(text.start()), Error::Overlap(text.start()))),
        ("constants that are device registers", of_constants(single(device), Error::Device(device))),
        ("constants that are a page table", of_constants(single(root), Error::PageTable(root))),
        ("constants that are nobody's", of_constants(single(unused), Error::Reserved(unused))),
        (
            "text that can't be executed",
            of_text(
                single(at(constants.start().start().0)),
                escalation(at(constants.start().start().0), Permissions::READ_WRITE, Permissions::READ_EXECUTE),
            ),
        ),
        ("no frames", (Other { frame: Some(None), ..other() }, Error::OutOfFrames)),
    ];
    for (what, (host, error)) in cases {
        let free = memory::free_count();
        tally.equal(what, Hal::new(host).map(drop), Err(error));
        tally.equal("frames afterwards", memory::free_count(), free);
    }

    // An allocator that has one frame only.
    let frame = Frame::containing(memory::allocate(memory::State::Used).expect("RAM"));
    let result = Hal::new(Other { frame: Some(Some(frame)), ..other() }).map(drop);
    tally.equal("a frame that is given twice", result, Err(Error::FrameInUse(frame)));
    memory::free(frame.start());

    let result = Hal::new(Other { cpu_count: usize::MAX, ..other() }).map(drop);
    let named = matches!(result, Err(Error::TooManyCpus { cpus: usize::MAX, most }) if most > 1000);
    tally.check("too many CPUs", if named { Ok(()) } else { Err(result) });
}

/// So many pages of this kernel's window.
fn paging_window(pages: u64) -> PageRange {
    PageRange::new(VirtAddr(paging::WINDOW.start).page(), pages).expect("pages")
}

/// CPUs in modes that won't do.
fn modes(tally: &mut Tally) {
    let start = || Hal::new(other()).map(drop);
    // SAFETY: nothing here is protected from the kernel's own writes meanwhile.
    let result = unsafe {
        Cr0::update(|flags| flags.remove(Cr0Flags::WRITE_PROTECT));
        let result = start();
        Cr0::update(|flags| flags.insert(Cr0Flags::WRITE_PROTECT));
        result
    };
    tally.equal("no write protection", result, Err(missing("write protection for privileged code (CR0.WP)")));

    // SAFETY: the boot tables have the image and the direct map, and no page of theirs is kept from being executed. The bit is
    // back before the kernel's own tables are.
    let result = unsafe {
        let root = paging::current();
        paging::activate(boot::root());
        Efer::update(|flags| flags.remove(EferFlags::NO_EXECUTE_ENABLE));
        let result = start();
        Efer::update(|flags| flags.insert(EferFlags::NO_EXECUTE_ENABLE));
        paging::activate(root);
        result
    };
    tally.equal("everything can be executed", result, Err(missing("the no-execute bit (EFER.NXE)")));

    const XSAVE: u32 = 1 << 26;
    const BOUNDS: u64 = 0b11 << 3;
    let what = "state that CR0.TS doesn't guard";
    let available = core::arch::x86_64::__cpuid(1).ecx & XSAVE != 0
        && u64::from(core::arch::x86_64::__cpuid_count(0xd, 0).eax) & BOUNDS == BOUNDS;
    if available {
        // SAFETY: the CPU has it, and nobody uses it.
        let result = unsafe {
            let before = Cr4::read();
            Cr4::write(before | Cr4Flags::OSXSAVE);
            let state = XCr0::read_raw();
            XCr0::write_raw(state | BOUNDS);
            let result = start();
            XCr0::write_raw(state);
            Cr4::write(before);
            result
        };
        tally.equal(what, result, Err(enabled("state that CR0.TS does not guard (XCR0: MPX, AMX, APX)")));
    } else {
        tally.skip(what, "this CPU has no bounds registers");
    }
}

fn leak(host: Other) -> &'static Hal<Other> {
    Box::leak(Box::new(Hal::new(host).expect("nothing is wrong with this one")))
}

fn start(hal: &'static Hal<Other>, config: CpuConfig) -> Result<(), Error> {
    // SAFETY: (1) to (3): there is one CPU; what is wrong is refused.
    unsafe { hal.start_cpu(config) }
}

/// A descriptor table with these entries behind the kernel's own.
fn with_table<R>(more: usize, entry: u64, work: impl FnOnce() -> R) -> R {
    let before = sgdt();
    let own = (usize::from(before.limit) + 1) / 8;
    let mut table = alloc::vec![entry; own + more];
    let entries = before.base.as_ptr::<u64>();
    for (index, slot) in table.iter_mut().enumerate().take(own) {
        // SAFETY: GDTR says that they are there.
        *slot = unsafe { entries.add(index).read_volatile() };
    }
    let pointer = DescriptorTablePointer {
        limit: (table.len() * 8 - 1) as u16,
        base: x86_64::VirtAddr::from_ptr(table.as_ptr()),
    };
    // SAFETY: the same entries at the same places, and the one before is back afterwards.
    unsafe {
        lgdt(&pointer);
        let result = work();
        lgdt(&before);
        result
    }
}

/// CPUs that are not ready, or that the host says are others.
fn cpus(tally: &mut Tally) {
    const CALL_GATE: u64 = 0x8c00 << 32;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    let good = CpuConfig::default().free_stacks(FREE_STACKS);
    let hal = leak(other());
    let mut sandbox = hal.sandbox().expect("RAM");
    let before = sandbox.call(|number: u64| number + 1, (Val(1u64),));
    tally.equal("a call before the CPU is started", before, Err(Error::CpuNotStarted(0).into()));

    tally.equal("no task state", start(hal, good), Err(missing("a 64-bit task state (TR)")));
    descriptors::load_task_state();
    let own = (usize::from(sgdt().limit) + 1) / 8;
    let full = missing("room for two more entries in a descriptor table of one page");
    for more in [512 - own, 511 - own, 8192 - own] {
        tally.equal("a full descriptor table", with_table(more, DATA, || start(hal, good)), Err(full));
    }
    let gate = with_table(2, CALL_GATE, || start(hal, good));
    tally.equal("a call gate", gate, Err(enabled("a call gate in the descriptor table")));
    let in_use = missing("interrupt stack table entries that the host's exception table leaves free");
    for stacks in [CpuConfig::default().free_stacks, [1, 2, 4, 5, 6]] {
        let config = CpuConfig::default().free_stacks(stacks);
        tally.equal("an interrupt stack that is in use", start(hal, config), Err(in_use));
    }
    let different = missing("five different interrupt stack table entries from 1 to 7");
    for stacks in [[1, 2, 4, 5, 5], [0, 1, 2, 4, 5], [1, 2, 4, 5, 8]] {
        let config = CpuConfig::default().free_stacks(stacks);
        tally.equal("interrupt stacks that aren't five", start(hal, config), Err(different));
    }
    let stranger = leak(Other { cpu_index: 1, ..other() });
    let error = Error::TooManyCpus { cpus: 1, most: 1 };
    tally.equal("a CPU that the host doesn't have", start(stranger, good), Err(error));
    let narrow = leak(Other { gate: Some(None), ..other() });
    tally.equal("no room for the gate", start(narrow, good), Err(Error::GateNotMapped));
    let wrong = leak(Other { gate: Some(Some(VirtAddr(paging::WINDOW.start).page())), ..other() });
    tally.equal("a gate in the window", start(wrong, good), Err(Error::GateNotMapped));
    let elsewhere = leak(Other { gate: Some(Some(VirtAddr(paging::code().start).page())), ..other() });
    tally.equal("a gate that isn't mapped", start(elsewhere, good), Err(Error::GateNotMapped));

    tally.equal("a CPU that is ready", start(hal, good), Ok(()));
    tally.equal("a second time", start(hal, good), Err(Error::CpuStartedTwice(0)));
    let mut call = || sandbox.call(|number: u64| number + 1, (Val(1u64),));
    tally.equal("a call", call(), Ok(2));
    let replaced = with_table(0, 0, &mut call);
    tally.equal("a call on another descriptor table", replaced, Err(Error::TablesReplaced.into()));
    tally.equal("a call on the right one", call(), Ok(2));
    tally.equal(
        "a time limit without a clock",
        sandbox.limit_time(Some(core::time::Duration::ZERO)),
        Err(Error::NoClock),
    );
}
