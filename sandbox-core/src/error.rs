//! What can go wrong before code runs in a sandbox.

use core::fmt;

use crate::addr::{Frame, Page, PageRange, VirtAddr};
use crate::permissions::Permissions;

/// Why a sandbox could not be made, changed or entered. Nothing has changed when one is returned, except where the method
/// says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The host had no frame left.
    OutOfFrames,
    /// A frame that the HAL needs is in use: the host's allocator returned one that the HAL has, or that a sandbox may write;
    /// or part of the gate is a frame that a sandbox may write. The frame was left alone.
    FrameInUse(Frame),
    /// The host maps nothing at this page.
    NotMapped(Page),
    /// More was asked for than the host itself has.
    Escalation {
        /// Where.
        page: Page,
        /// What the host's mapping allows.
        host: Permissions,
        /// What the grant asked for.
        wanted: Permissions,
    },
    /// The page is one of the host's page tables.
    PageTable(Page),
    /// The page is device registers.
    Device(Page),
    /// The host says that the page's frame is not to be granted.
    Reserved(Page),
    /// The page belongs to the HAL: its gate, or memory of a sandbox.
    SandboxMemory(Page),
    /// The grant would make memory writable in one place and executable in another, or in the same.
    WritableAndExecutable(Page),
    /// Only `r--`, `rw-` and `r-x` can be granted.
    BadPermissions(Permissions),
    /// The view already has something there: overlapping grants, or the same one twice.
    Overlap(Page),
    /// No table can translate this address.
    NonCanonical(VirtAddr),
    /// A grant of memory must cover whole pages, or what else lies on them would be granted too. Align the data to 4096 bytes
    /// and pad it to a multiple.
    NotWholePages {
        /// Where the memory begins.
        address: VirtAddr,
        /// Its length in bytes.
        len: usize,
    },
    /// A grant of no bytes.
    Empty(VirtAddr),
    /// The range passes the end of the address space.
    WrapAround {
        /// Where the memory begins.
        address: VirtAddr,
        /// Its length in bytes.
        len: usize,
    },
    /// Nothing was granted at this page, so there is nothing to take back or restrict.
    NotGranted(Page),
    /// The stack or the buffers don't fit into the window.
    WindowFull {
        /// Pages needed, guards included.
        needed: u64,
        /// Pages the window has.
        available: u64,
    },
    /// A sandbox needs at least one page of stack.
    NoStack,
    /// The current CPU was not started with `Hal::start_cpu`.
    CpuNotStarted(usize),
    /// The host has replaced the descriptor table that `Hal::start_cpu` installed on this CPU.
    TablesReplaced,
    /// The host has loaded another task state (x86-64's TR) on this CPU than the one that `Hal::start_cpu` found.
    TaskStateReplaced,
    /// This many CPUs are more than the HAL can serve.
    TooManyCpus {
        /// The index or count given.
        cpus: usize,
        /// The most there may be.
        most: usize,
    },
    /// `Hal::start_cpu` was called twice on this CPU.
    CpuStartedTwice(usize),
    /// A time limit needs a clock, and the host has none.
    NoClock,
    /// A sandbox with a time limit, or one that can be cancelled, was called with interrupts masked: nothing could stop it.
    InterruptsMasked,
    /// The translation tags (ASIDs, PCIDs) that the host gave are none, more than the CPU has, or in use.
    BadTags {
        /// The first.
        first: u16,
        /// The last.
        last: u16,
        /// The highest that the CPU has, as the host set it up.
        most: u16,
    },
    /// The host's `map_gate` found no room, or an address that is no good.
    GateNotMapped,
    /// The window is too small, not canonical, or the host maps something in it.
    BadWindow(PageRange),
    /// A range of the host's image is not mapped as the image's permissions need, or the gate lies outside the text.
    BadImage(PageRange),
    /// The machine or the host has something that the HAL cannot run with.
    Unsupported(Unsupported),
}

/// A feature without which, or with which, the HAL's rules can't hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Unsupported {
    /// Code runs in a mode or at an exception level that the backend wasn't written for; its number.
    Mode(u64),
    /// A feature is switched on that the backend does not handle.
    Enabled(&'static str),
    /// A feature is missing or switched off that the backend needs.
    Missing(&'static str),
}

impl From<Unsupported> for Error {
    fn from(feature: Unsupported) -> Error {
        Error::Unsupported(feature)
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsupported::Mode(mode) => {
                write!(f, "the CPU is in a mode that this backend was not written for ({mode:#x})")
            }
            Unsupported::Enabled(what) => write!(f, "{what} is on, and this version cannot keep its promises with it"),
            Unsupported::Missing(what) => write!(f, "{what} is needed; enable or supply it before starting the HAL"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::OutOfFrames => write!(f, "the host has no frame left: free some memory or make smaller sandboxes"),
            Error::FrameInUse(frame) => {
                write!(f, "{frame:?} is in use: it was granted to a sandbox, or Host::allocate_frame returned it twice")
            }
            Error::NotMapped(page) => {
                write!(f, "{page:?} is not mapped in the host: only mapped memory can be granted")
            }
            Error::Escalation { page, host, wanted } => {
                write!(f, "{page:?} is {host} in the host: {wanted} would be more than it has itself")
            }
            Error::PageTable(page) => write!(f, "{page:?} is a page table of the host's: it cannot be granted"),
            Error::Device(page) => write!(f, "{page:?} is device memory: it cannot be granted"),
            Error::Reserved(page) => {
                write!(f, "{page:?} is reserved by the host: it cannot be granted")
            }
            Error::SandboxMemory(page) => {
                write!(f, "{page:?} belongs to the HAL or to a sandbox: it cannot be granted")
            }
            Error::WritableAndExecutable(page) => {
                write!(f, "{page:?} would be both writable and executable: grant one of the two")
            }
            Error::BadPermissions(wanted) => {
                write!(f, "{wanted} cannot be granted: ask for r--, rw- or r-x")
            }
            Error::Overlap(page) => write!(f, "{page:?} is in the sandbox already: revoke the earlier grant first"),
            Error::NonCanonical(address) => {
                write!(f, "no table translates {address}: use an address the CPU can reach")
            }
            Error::NotWholePages { address, len } => {
                write!(
                    f,
                    "{len} bytes at {address} are not whole pages: align the data to 4096 bytes and pad it to a multiple"
                )
            }
            Error::Empty(address) => write!(f, "nothing to grant at {address}: the range is empty"),
            Error::WrapAround { address, len } => {
                write!(f, "{len} bytes at {address} pass the end of the address space")
            }
            Error::NotGranted(page) => write!(f, "{page:?} was not granted: name pages that were"),
            Error::WindowFull { needed, available } => {
                write!(
                    f,
                    "stack and buffers need {needed} pages of the window, which has {available}: enlarge Host::window"
                )
            }
            Error::NoStack => write!(f, "a sandbox needs at least one page of stack"),
            Error::CpuNotStarted(cpu) => write!(f, "CPU {cpu} was not started: call Hal::start_cpu on it first"),
            Error::TaskStateReplaced => {
                write!(
                    f,
                    "this CPU's task state (TR) was replaced after Hal::start_cpu: keep the one that was loaded then"
                )
            }
            Error::TablesReplaced => {
                write!(
                    f,
                    "this CPU's descriptor table was replaced after Hal::start_cpu: keep the one that was installed"
                )
            }
            Error::TooManyCpus { cpus, most } => {
                write!(f, "{cpus} CPUs, but the HAL serves {most} at most")
            }
            Error::CpuStartedTwice(cpu) => {
                write!(f, "CPU {cpu} is started already: call Hal::start_cpu once on each CPU")
            }
            Error::NoClock => write!(f, "the host has no clock: time limits need Host::now"),
            Error::InterruptsMasked => {
                write!(f, "interrupts are masked, so nothing could stop the call: unmask them, or call without limits")
            }
            Error::BadTags { first, last, most } => {
                write!(
                    f,
                    "tags {first} to {last}: give a range that the host does not use, and that ends at {most} or before"
                )
            }
            Error::GateNotMapped => write!(f, "Host::map_gate returned no usable address: give the gate more room"),
            Error::BadWindow(range) => {
                write!(f, "the window ({range:?}) must be canonical, unmapped in the host, and at least 512 pages long")
            }
            Error::BadImage(range) => {
                write!(f, "the image range {range:?} is not mapped as needed, or the HAL's gate lies outside the text")
            }
            Error::Unsupported(feature) => feature.fmt(f),
        }
    }
}

impl core::error::Error for Error {}
