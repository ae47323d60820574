//! What a kernel supplies.

use crate::addr::{Frame, Page, PageRange};
use crate::exit::FatalReport;
use crate::format::Roots;
use crate::permissions::Permissions;

/// What a frame is, as the host knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FrameKind {
    /// Ordinary memory, the host's image included.
    Ram,
    /// One of the host's page tables. Never granted.
    PageTable,
    /// Device registers. Never granted as memory.
    Device,
    /// Anything else that no sandbox may see: firmware, the host's own secrets.
    Reserved,
}

/// The parts of the host's image that sandboxes may use.
///
/// Ranges are whole pages of the host's address space, mapped as long as the HAL exists.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// Code, granted for reading and execution. The HAL leaves its own gate out by itself.
    pub text: &'a [PageRange],
    /// Constants, relocated read-only data included (vtables live there); granted for reading.
    pub read_only: &'a [PageRange],
    /// Pages in those ranges to leave out: keys, secrets. (Of the code among them nothing can be granted for writing either.)
    pub excluded: &'a [PageRange],
}

/// A host kernel.
///
/// All methods may be called with interrupts masked, from any thread of the host, on any CPU, and must not call back into
/// the HAL, nor wait for another CPU to take an interrupt: that CPU may be waiting, masked, for a lock of the HAL's.
///
/// # Safety
///
/// The HAL builds address spaces from what these methods say, so they must be true:
///
/// 1. [`allocate_frame`](Host::allocate_frame) returns a frame of ordinary memory that nothing else uses until it is
///    given back through [`free_frame`](Host::free_frame).
/// 2. [`frame_pointer`](Host::frame_pointer) returns a pointer to the frame's 4096 bytes, readable and writable by
///    privileged code in every address space a HAL function is called in, for as long as the frame is in use.
/// 3. [`frame_kind`](Host::frame_kind) is right for every frame that the host's tables map.
/// 4. The tables that [`with_tables`](Host::with_tables) passes are those in force for kernel addresses, are readable through
///    `frame_pointer`, and don't change until it returns.
/// 5. [`map_gate`](Host::map_gate) does what it says, and its mapping is never changed afterwards.
/// 6. Nobody but the HAL maps anything in [`window`](Host::window).
/// 7. What [`image`](Host::image) names holds no secret and stays mapped and unchanged.
/// 8. [`cpu_index`](Host::cpu_index) is the same at each call on one CPU, different on each, and below
///    [`cpu_count`](Host::cpu_count).
pub unsafe trait Host: Send + Sync + 'static {
    /// Takes a frame out of the host's free memory; its contents don't matter. `None`: out of memory.
    fn allocate_frame(&self) -> Option<Frame>;

    /// Gives a frame back; it has been zeroed.
    ///
    /// # Safety
    ///
    /// 1. `frame` came from [`allocate_frame`](Host::allocate_frame) of this host and was not given back since.
    /// 2. No table or pointer that will be used again refers to it.
    unsafe fn free_frame(&self, frame: Frame);

    /// Privileged access to the bytes of a frame, of the host's page tables too.
    fn frame_pointer(&self, frame: Frame) -> *mut u8;

    /// What `frame` is.
    fn frame_kind(&self, frame: Frame) -> FrameKind;

    /// Calls `walk` with the roots of the tables that translate kernel addresses, which don't change meanwhile. `walk` may
    /// call the other methods of this trait, except this one and [`map_gate`](Host::map_gate).
    fn with_tables(&self, walk: &mut dyn FnMut(&Roots));

    /// Maps `frames` at consecutive pages in every address space that a sandbox may be called in: privileged only, with
    /// `permissions`, 4 KiB pages (not marked contiguous), ordinary write-back memory, and not in the window. Returns the first
    /// page; `None` if there is no room. There are no more than [`MAX_GATE_FRAMES`](crate::arch::MAX_GATE_FRAMES) frames in a
    /// call. All calls should map in one half of the address space, where there are two.
    ///
    /// Permissions are `rw-` for the gate's data, on each CPU once, and `r-x` where a backend needs the gate's code a second time
    /// (AArch64; once). Frames can be the host's own: such code, or the page of a CPU's task state (x86-64).
    ///
    /// # Safety
    ///
    /// 1. The frames stay in use for as long as the host runs.
    /// 2. Nobody writes the frames of an executable mapping while it exists.
    unsafe fn map_gate(&self, frames: &[Frame], permissions: Permissions) -> Option<Page>;

    /// Addresses that sandboxes use for their stacks and buffers, the same in all of them. A gigabyte is plenty; no less than
    /// two megabytes, in one half of the address space, not from address 0 on, and nothing of the host's mapped there.
    fn window(&self) -> PageRange;

    /// The parts of the image that sandboxes may use.
    fn image(&self) -> Image<'_>;

    /// Which CPU this is. Called with interrupts masked.
    fn cpu_index(&self) -> usize;

    /// How many CPUs there can be, at most.
    fn cpu_count(&self) -> usize;

    /// Nanoseconds since some moment, never going back, the same on all CPUs. Without a clock (`None`, always) sandboxes have no
    /// time limits. Called with interrupts masked or not.
    fn now(&self) -> Option<u64> {
        None
    }

    /// Makes some interrupt arrive on this CPU when the clock shows `at`, or soon after; at once if that is past. A host
    /// whose tick never stops while a thread runs leaves this out: limits are looked at after each interrupt. Called with
    /// interrupts masked, before each entry of a run with a time limit, which may be on another CPU than the last.
    fn arm_timer(&self, at: u64) {
        let _ = at;
    }

    /// Whether the thread that runs a sandbox should let go of the CPU: asked after each interrupt that its run was left for.
    /// Hosts whose interrupt handlers switch threads by themselves leave this out.
    fn should_yield(&self) -> bool {
        false
    }

    /// Interrupts CPU `cpu`, so that a cancelled run ends at once and not at the next interrupt. `cpu` may be the current one,
    /// and may have left the sandbox by then. Any interrupt will do.
    fn kick(&self, cpu: usize) {
        let _ = cpu;
    }

    /// The HAL's own code was interrupted by an exception that cannot happen: a bug of the HAL or a broken promise of the
    /// host's. Or a sandbox has turned an error interrupt (AArch64's SError), which was the host's to take, into a mere record; it
    /// can't be raised again. Called with interrupts masked on the host's stack; does not return.
    fn fatal(&self, report: &FatalReport) -> !;
}
