//! The HAL of one host: what all its sandboxes share.

use core::ffi::c_void;
use core::ptr::NonNull;

use crate::addr::{Frame, Page, PageRange, VirtAddr};
use crate::arch::{Arch, FatalHook, MAX_GATE_FRAMES};
use crate::cpus::{Cpus, MOST};
use crate::error::Error;
use crate::exit::FatalReport;
use crate::format::{ENTRIES, Format};
use crate::frames::Frames;
use crate::host::Host;
use crate::image::{Template, in_any};
use crate::lock::IrqLock;
use crate::permissions::Permissions;
use crate::record::FrameUse;
use crate::sandbox::{Config, Sandbox};
use crate::tables::Tables;
use crate::walk::walk;

/// The sandbox layer of one kernel, made once and kept for as long as the kernel runs.
pub struct Hal<H: Host, A: Arch> {
    pub(crate) arch: A,
    pub(crate) frames: Frames<H, A>,
    pub(crate) template: IrqLock<A, Template<A::Format>>,
    pub(crate) cpus: Cpus,
    /// A table without entries: the root where a view has nothing.
    pub(crate) empty: Frame,
    pub(crate) window: PageRange,
    /// Where the gate's code runs.
    code: PageRange,
}

impl<H: Host, A: Arch> Hal<H, A> {
    /// Examines the machine and the host's image and builds what all sandboxes share. Takes frames from `host` and keeps them;
    /// where the backend needs it, has the gate's code mapped once more, for good. Changes no CPU state.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] names a feature that forbids running; [`Error::BadWindow`], [`Error::BadImage`] and the grant
    /// errors say what of the host's description is no good. Nothing is kept then.
    pub fn new(host: H) -> Result<Self, Error> {
        let arch = A::probe()?;
        let format = arch.format();
        let frames = Frames::new(host);
        let cpus = frames.host().cpu_count();
        if cpus > MOST {
            return Err(Error::TooManyCpus { cpus, most: MOST });
        }
        let window = frames.host().window();
        let mut checked = Err(Error::BadWindow(window));
        frames.host().with_tables(&mut |roots| {
            checked = check_window(format, window).and_then(|()| {
                match Tables::first_mapped(format, roots, &frames, window) {
                    Some(_) => Err(Error::BadWindow(window)),
                    None => check_image::<H, A>(&frames),
                }
            });
        });
        checked?;
        let code = match arch.remaps_gate_code() {
            true => remap_gate_code(&frames, format)?,
            false => A::gate_text(),
        };
        let mut template = Err(Error::BadImage(code));
        frames.host().with_tables(&mut |roots| template = Template::build(&frames, format, roots, code));
        let mut template = template?;
        let empty = match frames.allocate(FrameUse::Table) {
            Ok(frame) => frame,
            Err(error) => {
                template.destroy(&frames);
                return Err(error);
            }
        };
        Ok(Hal { arch, frames, template: IrqLock::new(template), cpus: Cpus::new(), empty, window, code })
    }

    /// The host.
    pub fn host(&self) -> &H {
        self.frames.host()
    }

    /// The pages that the gate's code runs at, in the host as in every view: [`Arch::gate_text`], or where the host has mapped it
    /// once more.
    pub fn gate_code(&self) -> PageRange {
        self.code
    }

    /// The backend.
    pub fn arch(&self) -> &A {
        &self.arch
    }

    /// Makes the current CPU ready to run sandboxes. `config` says what the backend needs to know of it.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] names a feature of this CPU that forbids running; the CPU is as before then.
    ///
    /// # Safety
    ///
    /// 1. Runs on each CPU once, in privileged mode, on the host's own tables and exception table, in a thread that stays on
    ///    this CPU meanwhile.
    /// 2. The host agrees to what the backend's documentation says start-up changes, and does not change it back.
    /// 3. `config` tells the truth.
    pub unsafe fn start_cpu(&'static self, config: A::CpuConfig) -> Result<(), Error> {
        let state = A::mask_interrupts();
        // SAFETY: interrupts are masked; the rest is the caller's promise.
        let result = unsafe { self.start_masked_cpu(config) };
        // SAFETY: (1) from `mask_interrupts` above, in the same thread.
        unsafe { A::restore_interrupts(state) };
        result
    }

    /// # Safety
    ///
    /// 1. As [`start_cpu`](Hal::start_cpu), with interrupts masked.
    unsafe fn start_masked_cpu(&'static self, config: A::CpuConfig) -> Result<(), Error> {
        let cpu = self.host().cpu_index();
        if cpu >= self.host().cpu_count() {
            return Err(Error::TooManyCpus { cpus: cpu, most: self.host().cpu_count() });
        }
        const { assert!(A::GATE_FRAMES > 0 && A::GATE_FRAMES <= MAX_GATE_FRAMES) };
        let mut list = [self.empty; MAX_GATE_FRAMES];
        let (own, shared) = list.split_at_mut(A::GATE_FRAMES);
        let count = self.arch.host_frames(&|page| self.host_frame(page), shared)?;
        let shared = shared.get(..count).ok_or(Error::GateNotMapped)?;
        self.template.with(|_| self.cpus.reserve(&self.frames, cpu))?;
        self.take_gate(own, shared)?;
        let all = A::GATE_FRAMES + count;
        // SAFETY: (1) the HAL is 'static and keeps the frames from here on; (2) not executable.
        let Some(gate) = (unsafe { self.host().map_gate(&list[..all], Permissions::READ_WRITE) }) else {
            self.give_back(&list[..A::GATE_FRAMES]);
            return Err(Error::GateNotMapped);
        };
        // The host has mapped the frames for good: from here on they stay taken, whatever happens.
        let range = PageRange::new(gate, all as u64).ok_or(Error::GateNotMapped)?;
        let mapped = range.pages().zip(&list).all(|(page, &frame)| self.host_frame(page) == Some(frame));
        if range.overlaps(self.window) || !mapped {
            return Err(Error::GateNotMapped);
        }
        let mut added = Err(Error::GateNotMapped);
        self.host().with_tables(&mut |roots| {
            added = self.template.with(|template| template.add_gate(&self.frames, roots, range));
        });
        added?;
        let hook = FatalHook { hal: (&raw const *self).cast(), call: fatal::<H, A> };
        // SAFETY: (1) the caller's promise; (2) the frames are zeroed and mapped, the host's behind them; (3) `self` is 'static;
        // (4) by `new`, in the host's text or where the host mapped it for good.
        let gate = unsafe { self.arch.start_cpu(gate, self.code.start(), config, hook) }?;
        // Views take over the pages that the gate's address begins.
        if VirtAddr::of(gate.as_ptr()) != range.start().start() {
            return Err(Error::GateNotMapped);
        }
        self.template.with(|_| self.cpus.publish(&self.frames, cpu, gate, all));
        Ok(())
    }

    /// Allocates a gate's own frames, and enters the host's that it shows again: a sandbox that could write one of those
    /// could take over the CPU. All or nothing of the former; the latter are the gate's for good.
    fn take_gate(&self, own: &mut [Frame], shared: &[Frame]) -> Result<(), Error> {
        for &frame in shared {
            self.frames.reserve_gate(frame)?;
        }
        for index in 0..own.len() {
            own[index] = match self.frames.allocate(FrameUse::Gate) {
                Ok(frame) => frame,
                Err(error) => {
                    self.give_back(&own[..index]);
                    return Err(error);
                }
            };
        }
        Ok(())
    }

    /// Which frame the host maps at `page`.
    fn host_frame(&self, page: Page) -> Option<Frame> {
        host_frame(&self.frames, self.arch.format(), page)
    }

    fn give_back(&self, frames: &[Frame]) {
        for &frame in frames {
            // SAFETY: (1) allocated by the caller just before, and mapped nowhere.
            unsafe { self.frames.free(frame) };
        }
    }

    /// A sandbox with the default configuration.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfFrames`]; everything taken so far has been given back.
    pub fn sandbox(&self) -> Result<Sandbox<'_, H, A>, Error> {
        Sandbox::new(self, Config::default())
    }

    /// A sandbox with the configuration `config`.
    ///
    /// # Errors
    ///
    /// As [`sandbox`](Hal::sandbox), and [`Error::NoStack`] or [`Error::WindowFull`] for a stack of a size that can't be;
    /// [`Error::Unsupported`] if it is to have vector registers, and this CPU or the host's use of it forbids that.
    pub fn sandbox_with(&self, config: Config) -> Result<Sandbox<'_, H, A>, Error> {
        Sandbox::new(self, config)
    }

    /// This CPU's gate. Called with interrupts masked.
    pub(crate) fn current_gate(&self) -> Result<NonNull<A::Gate>, Error> {
        let cpu = self.host().cpu_index();
        self.cpus.gate(&self.frames, cpu).ok_or(Error::CpuNotStarted(cpu))
    }
}

impl<H: Host, A: Arch> Drop for Hal<H, A> {
    fn drop(&mut self) {
        self.template.get_mut().destroy(&self.frames);
        self.cpus.destroy(&self.frames);
        // SAFETY: (1) from `allocate`; no sandbox is left that could use it as a root.
        unsafe { self.frames.free(self.empty) };
    }
}

/// Reports an exception in the gate to the host.
///
/// # Safety
///
/// 1. `hal` points to a `Hal<H, A>` that lives for ever.
unsafe extern "C" fn fatal<H: Host, A: Arch>(hal: *const c_void, report: &FatalReport) -> ! {
    // SAFETY: (1) of this function.
    let hal = unsafe { &*hal.cast::<Hal<H, A>>() };
    hal.host().fatal(report)
}

/// Which frame the host maps at `page`.
fn host_frame<H: Host, A: Arch>(frames: &Frames<H, A>, format: A::Format, page: Page) -> Option<Frame> {
    let mut frame = None;
    frames.host().with_tables(&mut |roots| {
        frame = walk(format, roots, page, |table, index| frames.read(table, index)).map(|mapping| mapping.frame);
    });
    frame
}

/// Has the host map the gate's code once more, on pages that nothing else shares a translation with.
fn remap_gate_code<H: Host, A: Arch>(frames: &Frames<H, A>, format: A::Format) -> Result<PageRange, Error> {
    let text = A::gate_text();
    let mut list = [None; MAX_GATE_FRAMES];
    let count = text.count() as usize;
    if count > MAX_GATE_FRAMES {
        return Err(Error::BadImage(text));
    }
    for (slot, page) in list.iter_mut().zip(text.pages()) {
        *slot = Some(host_frame(frames, format, page).ok_or(Error::NotMapped(page))?);
    }
    let list = list.map(|frame| frame.unwrap_or(Frame::containing(0)));
    // SAFETY: (1) text of the host's, which stays (Host, condition 7); (2) nobody writes it.
    let first = unsafe { frames.host().map_gate(&list[..count], Permissions::READ_EXECUTE) };
    let range = first.and_then(|first| PageRange::new(first, count as u64)).ok_or(Error::GateNotMapped)?;
    let mapped = range.pages().zip(&list).all(|(page, &frame)| host_frame(frames, format, page) == Some(frame));
    if range.overlaps(frames.host().window()) || range.overlaps(text) || !mapped {
        return Err(Error::GateNotMapped);
    }
    Ok(range)
}

/// The window must be translatable from end to end by one root, hold at least one table's worth of pages, and not begin at
/// address zero, which empty buffers would be at.
fn check_window<F: Format>(format: F, window: PageRange) -> Result<(), Error> {
    let first = format.root_of(window.start().start());
    let last = window.count().checked_sub(1).and_then(|last| window.start().checked_add(last));
    let (Some(first), Some(Some(last))) = (first, last.map(|last| format.root_of(last.start()))) else {
        return Err(Error::BadWindow(window));
    };
    // Both halves of an address space may have one root, with addresses in between that nothing translates: those are
    // more than a root has.
    let whole = first == last && window.count() <= format.pages(first);
    match whole && window.count() >= ENTRIES as u64 && window.start().number() != 0 {
        true => Ok(()),
        false => Err(Error::BadWindow(window)),
    }
}

/// The gate must lie in the text, or it is not the text the host believes it to be; and no part may be in the window.
fn check_image<H: Host, A: Arch>(frames: &Frames<H, A>) -> Result<(), Error> {
    let image = frames.host().image();
    let gate = A::gate_text();
    let window = frames.host().window();
    for &range in image.text.iter().chain(image.read_only) {
        if range.overlaps(window) {
            return Err(Error::BadImage(range));
        }
    }
    if gate.is_empty() || !gate.pages().all(|page| in_any(image.text, page)) {
        return Err(Error::BadImage(gate));
    }
    Ok(())
}
