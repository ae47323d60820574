//! What a call of a function that does nothing takes.

use core::arch::asm;
use core::fmt;

use platform_qemu::host::Qemu;
use platform_qemu::time::{instructions, start_tick, stop_tick};
use sandbox_mode::{CallError, Hal};

use super::parsing::sandbox;

/// A number from the CPU's counter.
pub(crate) struct CallCost {
    count: u64,
    /// Whether the counter was seen to count instructions one by one.
    exact: bool,
}

impl fmt::Display for CallCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CallCost { count, exact } = self;
        match exact {
            true => write!(f, "{count} instructions, there and back"),
            false => write!(f, "{count} by the CPU's counter, which QEMU keeps by instructions only with -icount"),
        }
    }
}

/// Measures a call in a sandbox that has been called before.
pub(crate) fn measure(hal: &Hal<Qemu>) -> Result<CallCost, CallError> {
    let mut sandbox = sandbox(hal)?;
    let mut call = || sandbox.call(|| (), ());
    call()?;
    stop_tick();
    let nothing = count(|| ());
    let mut result = Ok(());
    let called = count(|| result = result.and_then(|()| call()));
    let exact = count(nops::<2>).wrapping_sub(count(nops::<1>)) == THOUSAND;
    start_tick();
    result?;
    Ok(CallCost { count: called.saturating_sub(nothing), exact })
}

/// The counter's difference over `work`, the smallest of a few.
fn count(mut work: impl FnMut()) -> u64 {
    let once = |_| {
        let start = instructions();
        work();
        instructions() - start
    };
    (0..8).map(once).min().unwrap_or_default()
}

const THOUSAND: u64 = 1000;

/// As many instructions as are known beforehand, `N` thousand.
#[inline(always)]
fn nops<const N: u64>() {
    // SAFETY: `nop` does nothing.
    unsafe {
        asm!(".rept {count}", "nop", ".endr", count = const N * THOUSAND, options(nomem, nostack, preserves_flags))
    };
}
