//! Counting instructions.

use core::fmt;
use core::ops::Sub;

use platform_qemu::time;

/// Rounds of a short and a long loop: what they differ by is free of what comes before and after.
const SHORT: u64 = 20;
const LONG: u64 = 120;

/// Instructions that differ between the loops of [`calibrate`].
pub(crate) const LOOP: u64 = 2 * (LONG - SHORT);

/// How many instructions [`LONG`] - [`SHORT`] rounds took.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count(i64);

impl Sub for Count {
    type Output = Count;

    fn sub(self, other: Count) -> Count {
        Count(self.0 - other.0)
    }
}

impl fmt::Display for Count {
    /// A round's number, with hundredths if rounds differed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = (LONG - SHORT) as i64;
        let (whole, rest) = (self.0 / rounds, self.0.abs() % rounds);
        match rest {
            0 => f.pad(&alloc::format!("{whole}")),
            rest => f.pad(&alloc::format!("{whole}.{:02}", rest * 100 / rounds)),
        }
    }
}

/// The counter counts each instruction of a loop as one; else what it counted.
pub(crate) fn calibrate() -> Result<(), u64> {
    // Once before: the emulator counts the same each time, but the code may be new to it.
    spin(SHORT);
    let found = spin(LONG) - spin(SHORT);
    if found == LOOP { Ok(()) } else { Err(found) }
}

/// A loop of two instructions a round.
#[inline(never)]
fn spin(rounds: u64) -> u64 {
    let start = time::instructions();
    // SAFETY: counts a register down.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        core::arch::asm!("2: dec {0}", "jnz 2b", inout(reg) rounds => _, options(nomem, nostack));
        #[cfg(target_arch = "aarch64")]
        core::arch::asm!("2: subs {0}, {0}, #1", "b.ne 2b", inout(reg) rounds => _, options(nomem, nostack));
    }
    time::instructions() - start
}

#[inline(never)]
fn count(rounds: u64, work: &mut dyn FnMut()) -> u64 {
    let start = time::instructions();
    for _ in 0..rounds {
        work();
    }
    time::instructions() - start
}

fn per_rounds(mut work: impl FnMut()) -> Count {
    // What is made once, such as a sandbox's buffers, is made now.
    work();
    let short = count(SHORT, &mut work);
    let long = count(LONG, &mut work);
    Count(long as i64 - short as i64)
}

/// What `work` costs beyond `direct`, which does the same without a sandbox.
pub(crate) fn cost(work: impl FnMut(), direct: impl FnMut()) -> Count {
    per_rounds(work) - per_rounds(direct)
}
