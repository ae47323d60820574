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
    let nothing = count(&mut || ());
    let mut result = Ok(());
    let called = count(&mut || result = result.and_then(|()| call()));
    let exact = count(&mut nops::<2>).wrapping_sub(count(&mut nops::<1>)) == THOUSAND;
    start_tick();
    result?;
    Ok(CallCost { count: called.saturating_sub(nothing), exact })
}

/// The counter's difference over `work`, the smallest of a few. Not a generic function, so that what it adds is always the same.
#[inline(never)]
fn count(work: &mut dyn FnMut()) -> u64 {
    let once = |_| {
        let start = instructions();
        work();
        instructions().wrapping_sub(start)
    };
    (0..8).map(once).min().unwrap_or_default()
}

const THOUSAND: u64 = 1000;

/// `N` thousand instructions and a few more, which are the same few for each `N`.
// Not inlined: the compiler does not see how long it is, and would branch too far over it.
#[inline(never)]
fn nops<const N: u64>() {
    // SAFETY: `nop` does nothing.
    unsafe {
        asm!(".rept {count}", "nop", ".endr", count = const N * THOUSAND, options(nomem, nostack, preserves_flags))
    };
}
