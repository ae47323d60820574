//! What the runner knows of this kernel, by the names of symbols.
//!
//! | symbol | what |
//! | --- | --- |
//! | `windows_reached(phase)` | a function that the runner stops at; its argument is a [`Phase`] |
//! | `windows_over` | set by the runner: end after this round |
//! | `windows_quiet` | set by the runner: don't raise `windows_lines` yourself |
//! | `windows_lines` | the interrupts that the runner may make pending: an ordinary one and, where there are such, a fast one |
//! | `windows_code` | where the gate's code runs, from its first page on: the HAL may have it mapped once more; 0 before the HAL is there |
//! | `windows_counts` | how often each [`Source`] was recorded |
//! | `windows_log` | what was recorded: pairs of source and interrupted address, [`LOG_SIZE`] of them |
//!
//! The runner reads and writes the variables by their physical addresses, whatever tables are loaded: all are words of
//! 64 bits. It has the numbers of phases and sources in its own `protocol.rs`.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine;

/// Where the kernel is.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(crate) enum Phase {
    /// At the start of a round; interrupts are on and nothing is pending.
    Round = 0,
    /// Ticks follow, and no HAL was started.
    TicksWithout = 1,
    /// Ticks follow; the HAL was started and used, and no sandbox runs.
    TicksWith = 2,
    /// Calls follow during which interrupts arrive in sandboxes.
    Arrivals = 3,
    /// The end of the part before.
    End = 4,
}

/// Where something recorded came from.
#[derive(Clone, Copy)]
#[repr(usize)]
#[cfg_attr(target_arch = "aarch64", expect(dead_code, reason = "this machine has neither"))]
pub(crate) enum Source {
    /// A non-maskable interrupt.
    Nmi = 0,
    /// A machine check.
    MachineCheck = 1,
    /// The ordinary interrupt of `windows_lines`.
    Ordinary = 2,
    /// The fast one.
    Fast = 3,
}

const SOURCES: usize = 4;
/// How many events are recorded.
const LOG_SIZE: usize = 1 << 14;

#[unsafe(export_name = "windows_over")]
static OVER: AtomicU64 = AtomicU64::new(0);
#[unsafe(export_name = "windows_quiet")]
static QUIET: AtomicU64 = AtomicU64::new(0);
#[used]
#[unsafe(export_name = "windows_lines")]
static LINES: [AtomicU64; 2] =
    [AtomicU64::new(machine::ORDINARY_LINE as u64), AtomicU64::new(machine::FAST_LINE as u64)];
#[unsafe(export_name = "windows_code")]
static CODE: AtomicU64 = AtomicU64::new(0);
#[unsafe(export_name = "windows_counts")]
static COUNTS: [AtomicU64; SOURCES] = [const { AtomicU64::new(0) }; SOURCES];
#[unsafe(export_name = "windows_log")]
static LOG: [[AtomicU64; 2]; LOG_SIZE] = [const { [const { AtomicU64::new(0) }; 2] }; LOG_SIZE];

/// Tells the runner.
pub(crate) fn reached(phase: Phase) {
    windows_reached(phase as u64);
}

/// # Safety of the name
///
/// Nothing else has it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn windows_reached(phase: u64) {
    core::hint::black_box(phase);
}

/// Whether the runner has had enough.
pub(crate) fn is_over() -> bool {
    OVER.load(Ordering::Relaxed) != 0
}

/// Whether the lines that the runner may use are this kernel's meanwhile.
pub(crate) fn raise_all() -> bool {
    QUIET.load(Ordering::Relaxed) == 0
}

/// Says where the gate's code runs.
pub(crate) fn publish_code(address: u64) {
    CODE.store(address, Ordering::Relaxed);
}

/// How many events were recorded.
pub(crate) fn recorded() -> u64 {
    COUNTS.iter().map(|count| count.load(Ordering::Relaxed)).sum()
}

/// Records that `source` interrupted what was at `address`. Called in any context, an NMI's included.
pub(crate) fn record(source: Source, address: u64) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let index = NEXT.fetch_add(1, Ordering::Relaxed) as usize;
    if let Some([of, at]) = LOG.get(index) {
        of.store(source as u64, Ordering::Relaxed);
        at.store(address, Ordering::Relaxed);
    }
    COUNTS[source as usize].fetch_add(1, Ordering::Relaxed);
}

/// Handles the runner's interrupts, when they are the runner's.
pub(crate) fn register() {
    platform_qemu::interrupts::register(machine::ORDINARY_LINE, || arrived(Source::Ordinary));
    if machine::FAST_LINE != 0 {
        platform_qemu::interrupts::register(machine::FAST_LINE, || arrived(Source::Fast));
    }
}

fn arrived(source: Source) {
    if raise_all() {
        crate::calls::count_forwarded();
    } else {
        record(source, 0);
    }
}
