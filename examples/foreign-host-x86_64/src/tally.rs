//! Counting checks.

use core::fmt::Debug;

use crate::console::println;

/// What became of the checks so far.
#[derive(Default)]
pub(crate) struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Tally {
    /// Counts a check; says so if it failed.
    pub(crate) fn check(&mut self, what: &str, result: Result<(), impl Debug>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(why) => {
                println!("FAILED  {what}: {why:?}");
                self.failed += 1;
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
        self.skipped += 1;
    }

    /// Prints the sum; whether nothing failed.
    pub(crate) fn finish(self) -> bool {
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        self.failed == 0
    }
}
