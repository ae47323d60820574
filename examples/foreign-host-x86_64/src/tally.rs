//! Counting checks.

use core::fmt::Debug;

use crate::console::println;

/// How many of each kind.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Counts {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
}

impl Counts {
    /// What a line like that of [`Tally::finish`] says.
    pub(crate) fn read(line: &str) -> Option<Counts> {
        let mut words = line.split_whitespace();
        let mut count = |what| {
            let number = words.next()?.parse().ok()?;
            (words.next()? == what).then_some(number)
        };
        Some(Counts { passed: count("passed,")?, failed: count("failed,")?, skipped: count("skipped")? })
    }
}

/// What became of the checks so far.
#[derive(Default)]
pub(crate) struct Tally(Counts);

impl Tally {
    /// Goes on from what others counted.
    pub(crate) fn from(counts: Counts) -> Self {
        Tally(counts)
    }

    /// Counts a check; says so if it failed.
    pub(crate) fn check(&mut self, what: &str, result: Result<(), impl Debug>) {
        match result {
            Ok(()) => self.0.passed += 1,
            Err(why) => {
                println!("FAILED  {what}: {why:?}");
                self.0.failed += 1;
            }
        }
    }

    /// Counts one that compares two values.
    pub(crate) fn equal<T: PartialEq + Debug>(&mut self, what: &str, found: T, expected: T) {
        let result = if found == expected { Ok(()) } else { Err((found, "instead of", expected)) };
        self.check(what, result);
    }

    /// Counts one that this machine can't do.
    pub(crate) fn skip(&mut self, what: &str, why: &str) {
        println!("skipped {what}: {why}");
        self.0.skipped += 1;
    }

    /// Prints the sum; whether nothing failed.
    pub(crate) fn finish(self) -> bool {
        let Counts { passed, failed, skipped } = self.0;
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        failed == 0
    }
}
