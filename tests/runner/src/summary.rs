//! The line that closes a test run: `N passed, N failed[, N skipped]`.

use std::fmt;
use std::ops::AddAssign;

/// Counts of test cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Summary {
    /// A run in which something passed and nothing failed.
    pub(crate) fn is_pass(self) -> bool {
        self.passed > 0 && self.failed == 0
    }

    /// Reads the closing line of a guest's suite. Anything else on the line makes it another line.
    pub(crate) fn of_guest_line(line: &str) -> Option<Self> {
        let mut parts = line.split(", ");
        let summary = Self {
            passed: count(parts.next()?, "passed")?,
            failed: count(parts.next()?, "failed")?,
            skipped: match parts.next() {
                Some(part) => count(part, "skipped")?,
                None => 0,
            },
        };
        parts.next().is_none().then_some(summary)
    }

    /// Reads the closing line of a test binary or of the documentation tests as Cargo prints it.
    pub(crate) fn of_cargo_line(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut parts = counts.split("; ");
        Some(Self {
            passed: count(parts.next()?, "passed")?,
            failed: count(parts.next()?, "failed")?,
            skipped: count(parts.next()?, "ignored")?,
        })
    }
}

fn count(part: &str, word: &str) -> Option<u64> {
    let (number, found) = part.split_once(' ')?;
    if found != word || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse().ok()
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        // The numbers are a guest's, so they may be anything.
        self.passed = self.passed.saturating_add(other.passed);
        self.failed = self.failed.saturating_add(other.failed);
        self.skipped = self.skipped.saturating_add(other.skipped);
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(passed: u64, failed: u64, skipped: u64) -> Summary {
        Summary { passed, failed, skipped }
    }

    #[test]
    fn a_guests_line_is_read_back() {
        for one in [summary(3, 0, 0), summary(3, 2, 1), summary(0, 0, 0)] {
            assert_eq!(Summary::of_guest_line(&one.to_string()), Some(one));
        }
    }

    #[test]
    fn other_lines_are_not_summaries() {
        for line in [
            "",
            "3 passed",
            "3 passed, 0 failed, ",
            "3 passed, 0 failed, 1 skipped, 2 more",
            "x: 3 passed, 0 failed",
            "-3 passed, 0 failed",
            "+3 passed, 0 failed",
            " passed, 0 failed",
            "99999999999999999999 passed, 0 failed",
            "3 passed,0 failed",
        ] {
            assert_eq!(Summary::of_guest_line(line), None, "{line}");
        }
    }

    #[test]
    fn cargos_line_is_read() {
        let line = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out";
        assert_eq!(Summary::of_cargo_line(line), Some(summary(5, 0, 1)));
        let line = "test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(Summary::of_cargo_line(line), Some(summary(4, 1, 0)));
        assert_eq!(Summary::of_cargo_line("test a ... ok"), None);
    }

    #[test]
    fn nothing_run_is_no_pass() {
        assert!(summary(1, 0, 9).is_pass());
        assert!(!summary(0, 0, 9).is_pass());
        assert!(!summary(9, 1, 0).is_pass());
    }
}
