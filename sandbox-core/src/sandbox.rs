//! A sandbox: a view, its own memory, and its registers.

use core::fmt;
use core::time::Duration;

use zerocopy::FromBytes;

use crate::addr::{PAGE_SIZE, Page, PageRange, VirtAddr};
use crate::arch::{Arch, Start};
use crate::argument::{Arguments, Block, Function, Part, thunk};
use crate::cancel::Cancel;
use crate::error::Error;
use crate::exit::Exit;
use crate::hal::Hal;
use crate::host::Host;
use crate::limits::{Limits, Watch};
use crate::permissions::Permissions;
use crate::run::{Run, Stop};
use crate::spurious::Spurious;
use crate::vectors::Vectors;
use crate::view::View;
use crate::window::{Placement, Window};

/// How a sandbox is to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Size of the stack in bytes, rounded up to whole pages. The call's own bookkeeping takes some 2 KiB of it.
    pub stack_size: usize,
    /// Where buffers lie in their pages.
    pub placement: Placement,
    /// Whether it has floating point and vector registers, or using them ends a call as
    /// [`FloatingPoint`](crate::ExitReason::FloatingPoint). `None`: it has them if the kernel is compiled for them, since any
    /// function may use them then.
    pub vectors: Option<bool>,
}

impl Default for Config {
    fn default() -> Self {
        Config { stack_size: 64 * 1024, placement: Placement::End, vectors: None }
    }
}

impl Config {
    /// The same with a stack of `bytes` bytes.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = bytes;
        self
    }

    /// The same with buffers placed so.
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// The same with or without floating point and vector registers. They are the sandbox's own, zero at the start of each call;
    /// the host's stay as they are. The sandbox takes two frames more, and each entry saves and loads them.
    #[must_use]
    pub fn vectors(mut self, vectors: bool) -> Self {
        self.vectors = Some(vectors);
        self
    }
}

/// Why a call gave no value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallError {
    /// The call could not begin, or not go on.
    Setup(Error),
    /// The sandboxed code came to an end of its own making.
    Exit(Exit),
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        CallError::Setup(error)
    }
}

impl From<Exit> for CallError {
    fn from(exit: Exit) -> Self {
        CallError::Exit(exit)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Setup(error) => error.fmt(f),
            CallError::Exit(exit) => exit.fmt(f),
        }
    }
}

impl core::error::Error for CallError {}

/// An isolated address space in which functions of the host's can be called.
///
/// It is used by one thread at a time, on any CPU, and may be kept and called again: its stack, buffers and grants stay. `'a`
/// is how long the memory granted to it must live.
pub struct Sandbox<'a, H: Host, A: Arch> {
    pub(crate) hal: &'a Hal<H, A>,
    pub(crate) view: View<A::Format>,
    pub(crate) window: Window,
    pub(crate) registers: A::Registers,
    /// Translation of this page to be dropped before the next entry.
    pub(crate) stale: Option<Page>,
    /// Refusals that the tables don't explain.
    pub(crate) spurious: Spurious,
    /// What may stop a call.
    pub(crate) limits: Limits<'a>,
    /// Vector registers, if it has any.
    pub(crate) vectors: Option<Vectors>,
    /// Whether a call takes more than others: it has limits, or vector registers.
    pub(crate) special: bool,
    /// The host's pointer to the block at the top of the stack.
    block: *mut Block,
}

// SAFETY: `block` and `vectors` point into frames that only this sandbox uses, reachable from every CPU (Host, condition 2); all else is
// Send and Sync, and nothing of a sandbox depends on the CPU or thread between runs.
unsafe impl<H: Host, A: Arch> Send for Sandbox<'_, H, A> {}

const BLOCK_OFFSET: usize = PAGE_SIZE - size_of::<Block>();

impl<'a, H: Host, A: Arch> Sandbox<'a, H, A> {
    pub(crate) fn new(hal: &'a Hal<H, A>, config: Config) -> Result<Self, Error> {
        let vectors = config.vectors.unwrap_or(A::VECTORS_IN_CODE);
        if vectors {
            hal.arch.check_vectors()?;
        }
        let window = Window::new(hal.window, config.stack_size.div_ceil(PAGE_SIZE) as u64, config.placement)?;
        let mut view = View::new(hal)?;
        let block = VirtAddr(window.top_page().start().0 + BLOCK_OFFSET as u64);
        let block = view
            .map_private(hal, window.stack())
            .and_then(|()| view.pointer(hal, block).ok_or(Error::NotMapped(block.page())))
            .inspect_err(|_| view.destroy(hal))?
            .cast();
        let vectors = vectors.then(|| Vectors::new(hal)).transpose().inspect_err(|_| view.destroy(hal))?;
        let spurious = Spurious::default();
        Ok(Sandbox {
            hal,
            view,
            window,
            registers: A::Registers::default(),
            stale: None,
            spurious,
            limits: Limits::default(),
            special: vectors.is_some(),
            vectors,
            block,
        })
    }

    /// Grants reading of `data` at its own address. It must cover whole pages, since what else lies on them would be granted too;
    /// a `#[repr(align(4096))]` type whose fields fill a multiple of 4096 bytes does. Padding, and what the data points with,
    /// is readable too: use types that have none.
    ///
    /// # Errors
    ///
    /// [`Error::NotWholePages`], [`Error::Empty`], [`Error::Overlap`] and what else the page itself forbids; nothing is granted then.
    pub fn grant<T: ?Sized>(&mut self, data: &'a T) -> Result<(), Error> {
        let (address, len) = (VirtAddr::of(data), size_of_val(data));
        if address.page_offset() != 0 || !len.is_multiple_of(PAGE_SIZE) {
            return Err(Error::NotWholePages { address, len });
        }
        if len == 0 {
            return Err(Error::Empty(address));
        }
        let range = PageRange::covering(address, len as u64).ok_or(Error::WrapAround { address, len })?;
        // SAFETY: `data` is borrowed for as long as the sandbox lives and is granted for reading only.
        unsafe { self.grant_range(range, Permissions::READ) }
    }

    /// Grants `range` of the host's address space at its own addresses, with `permissions` (`r--`, `rw-` or `r-x`).
    ///
    /// # Errors
    ///
    /// [`Error::Escalation`] if the host itself has less; [`Error::WritableAndExecutable`] if a frame would be executable in one
    /// view and writable in another; what else a page forbids. Nothing is granted then.
    ///
    /// # Safety
    ///
    /// 1. The memory stays mapped to the same frames, and is not freed or used for anything the sandbox must not see, until the
    ///    grant is revoked or the sandbox is dropped.
    /// 2. If `permissions` include writing: the host tolerates any change to it at any time during a call.
    pub unsafe fn grant_range(&mut self, range: PageRange, permissions: Permissions) -> Result<(), Error> {
        if ![Permissions::READ, Permissions::READ_WRITE, Permissions::READ_EXECUTE].contains(&permissions) {
            return Err(Error::BadPermissions(permissions));
        }
        if range.is_empty() {
            return Err(Error::Empty(range.start().start()));
        }
        if let Some(page) = self.window.overlap(range) {
            return Err(Error::SandboxMemory(page));
        }
        self.view.grant(self.hal, range, permissions)
    }

    /// Takes `range` out of the sandbox again: granted memory, or parts of the host's image.
    ///
    /// # Errors
    ///
    /// [`Error::NotGranted`] if a page isn't in the sandbox, [`Error::SandboxMemory`] for its own stack and buffers,
    /// [`Error::OutOfFrames`] if a private copy of a shared table was needed. Nothing is revoked then.
    pub fn revoke(&mut self, range: PageRange) -> Result<(), Error> {
        self.check_grant(range)?;
        self.view.restrict(self.hal, range, None)
    }

    /// Restricts `range`, as [`revoke`](Sandbox::revoke) takes it out, to `permissions`, which must include reading.
    ///
    /// # Errors
    ///
    /// As [`revoke`](Sandbox::revoke), and [`Error::Escalation`] if a page has less than `permissions`. Nothing changes then.
    pub fn restrict(&mut self, range: PageRange, permissions: Permissions) -> Result<(), Error> {
        self.check_grant(range)?;
        self.view.restrict(self.hal, range, Some(permissions))
    }

    fn check_grant(&self, range: PageRange) -> Result<(), Error> {
        if range.is_empty() {
            return Err(Error::Empty(range.start().start()));
        }
        if let Some(page) = self.window.overlap(range) {
            return Err(Error::SandboxMemory(page));
        }
        Ok(())
    }

    /// Gives each call from now on so much time, counted from its [`start`](Sandbox::start), or takes the limit away. A call
    /// that takes longer is stopped as [`Preemption::Deadline`](crate::Preemption), at the first interrupt after its time. What
    /// runs on then, by [`Run::resume`], has no limit any more, unless [`Run::limit_time`] gives it another.
    ///
    /// # Errors
    ///
    /// [`Error::NoClock`] if the host has none.
    pub fn limit_time(&mut self, limit: Option<Duration>) -> Result<(), Error> {
        if limit.is_some() && self.hal.host().now().is_none() {
            return Err(Error::NoClock);
        }
        self.limits.time = limit;
        self.special = self.vectors.is_some() || self.limits.any();
        Ok(())
    }

    /// Lets `cancel` stop each call from now on, as [`Preemption::Cancelled`](crate::Preemption), or nothing. It must live as long as
    /// the sandbox: a `static` does.
    pub fn cancel_by(&mut self, cancel: Option<&'a Cancel>) {
        self.limits.cancel = cancel;
        self.special = self.vectors.is_some() || self.limits.any();
    }

    /// Calls `function` in the sandbox and returns what it returned. What may stop it from outside ends it;
    /// [`start`](Sandbox::start) gives a call that can go on afterwards.
    ///
    /// # Errors
    ///
    /// [`CallError::Exit`] says what the sandboxed code did; outputs are as they were before. [`CallError::Setup`] if the call
    /// could not begin.
    pub fn call<F, T, R>(&mut self, function: F, arguments: T) -> Result<R, CallError>
    where
        F: Function<T, R>,
        T: Arguments,
        R: FromBytes + 'static,
    {
        let mut run = self.start(function, arguments)?;
        match run.finish()? {
            Stop::Returned(value) => Ok(value),
            Stop::Exited(exit) => Err(exit.into()),
            Stop::Preempted(reason) => Err(run.give_up(reason).into()),
        }
    }

    /// Prepares a call without running it: [`Run::resume`] does that, and [`Run::step`] bit by bit.
    ///
    /// # Errors
    ///
    /// As [`call`](Sandbox::call), before anything runs; [`Error::InterruptsMasked`] if it has limits and they could not work.
    pub fn start<'r, F, T, R>(&'r mut self, function: F, mut arguments: T) -> Result<Run<'r, 'a, H, A, T, R>, Error>
    where
        F: Function<T, R>,
        T: Arguments,
        R: FromBytes + 'static,
    {
        let _ = function;
        let watch = if self.special { self.start_specially()? } else { None };
        match self.reserve(&mut arguments) {
            Err(Error::WindowFull { .. }) => {
                self.window.clear(self.hal, &mut self.view);
                self.reserve(&mut arguments)?;
            }
            result => result?,
        }
        self.fill(&mut arguments)?;
        let block = VirtAddr(self.window.top_page().start().0 + BLOCK_OFFSET as u64);
        let entry: unsafe extern "C" fn(*mut Block) = thunk::<F, T, R>;
        let start = Start { function: VirtAddr(entry as *const () as u64), argument: block, stack: block };
        self.hal.arch.prepare(&mut self.registers, start);
        self.spurious.reset();
        Ok(Run::new(self, arguments, watch))
    }

    /// What a call with limits or vector registers takes more; what it is to be watched for.
    #[cold]
    fn start_specially(&mut self) -> Result<Option<Watch>, Error> {
        if let Some(vectors) = &self.vectors {
            // SAFETY: (1) `Vectors` took the frames and lends them to the backend alone; no run, since `self` is borrowed.
            unsafe { self.hal.arch.reset_vectors(vectors.area()) };
        }
        self.limits.begin(self.hal)
    }

    fn reserve<T: Arguments>(&mut self, arguments: &mut T) -> Result<(), Error> {
        let Sandbox { hal, view, window, .. } = self;
        arguments.each(|index, argument| match argument.buffer() {
            Some(len) => window.reserve(hal, view, index, len),
            None => Ok(()),
        })
    }

    /// Copies the arguments in and tells the sandboxed side where they are.
    fn fill<T: Arguments>(&mut self, arguments: &mut T) -> Result<(), Error> {
        let block_address = self.window.top_page().start().0 + BLOCK_OFFSET as u64;
        arguments.each(|index, argument| {
            let input = argument.input();
            let (address, len) = match argument.buffer() {
                Some(len) => (self.window.place(index, len), len),
                None => {
                    let values = core::mem::offset_of!(Block, values) + index * crate::argument::MAX_VALUE;
                    (VirtAddr(block_address + values as u64), input.map_or(0, <[u8]>::len))
                }
            };
            // SAFETY: `block` is the host's pointer to the sandbox's block; the sandbox isn't running, since `self` is borrowed.
            unsafe { (&raw mut (*self.block).parts[index]).write(Part { address: address.0, len: len as u64 }) };
            self.each_piece(address, len, |done, pointer, count| {
                // SAFETY: `each_piece` gives memory of the sandbox's own, which isn't running; `done + count <= len`, and an input is
                // `len` bytes long.
                unsafe {
                    match input {
                        Some(bytes) => pointer.copy_from_nonoverlapping(bytes[done..].as_ptr(), count),
                        None => pointer.write_bytes(0, count),
                    }
                }
            })
        })
    }

    /// Copies the outputs out and returns the result.
    pub(crate) fn collect<T: Arguments, R: FromBytes>(&self, arguments: &mut T) -> Result<R, Error> {
        arguments.each(|index, argument| {
            let Some(output) = argument.output() else {
                return Ok(());
            };
            let len = output.len();
            self.each_piece(self.window.place(index, len), len, |done, pointer, count| {
                // SAFETY: as in `fill`; the output type is valid for every bit pattern.
                unsafe { pointer.copy_to_nonoverlapping(output[done..].as_mut_ptr(), count) };
            })
        })?;
        // SAFETY: the block is the sandbox's, which isn't running; `R` fits (checked when `thunk` was made) and is valid for
        // every bit pattern.
        Ok(unsafe { (&raw const (*self.block).result).cast::<R>().read() })
    }

    /// Calls `f` with each piece of the sandbox's memory from `address` on that lies in one frame: how many bytes came before,
    /// the host's pointer, and how many bytes.
    fn each_piece(&self, address: VirtAddr, len: usize, mut f: impl FnMut(usize, *mut u8, usize)) -> Result<(), Error> {
        let mut done = 0;
        while done < len {
            let here = VirtAddr(address.0 + done as u64);
            let count = (PAGE_SIZE - here.page_offset()).min(len - done);
            // Buffers and stack are mapped: an error here would be a bug, and must not become a wild pointer.
            let pointer = self.view.pointer(self.hal, here).ok_or(Error::NotMapped(here.page()))?;
            f(done, pointer, count);
            done += count;
        }
        Ok(())
    }

    /// The translation tag that the last run had; `None` if its CPU has no tags, or the sandbox shares a page with the host
    /// that the host maps globally (such calls drop cached translations), or was changed since.
    pub fn tag(&self) -> Option<u16> {
        self.view.tag()
    }

    /// The registers as the last run left them, if it did not return a value.
    pub fn registers(&self) -> &A::Registers {
        &self.registers
    }
}

impl<H: Host, A: Arch> Drop for Sandbox<'_, H, A> {
    fn drop(&mut self) {
        self.view.destroy(self.hal);
        if let Some(vectors) = self.vectors.take() {
            vectors.destroy(&self.hal.frames);
        }
    }
}
