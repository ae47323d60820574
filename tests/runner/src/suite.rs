//! Several boots in a row and the sum of their results.

use crate::boot::{self, Outcome};
use crate::error::Error;
use crate::image;
use crate::options::Boot;
use crate::summary::Summary;

/// Boots everything, whatever fails, then prints the sum as the last line.
pub(crate) fn run(boots: &[Boot]) -> Result<bool, Error> {
    let mut sum = Summary::default();
    for boot in boots {
        if !boot.dry_run {
            println!("== {}", boot::label(boot, image::machine_of(&boot.image)?));
        }
        sum += cases(&boot::observe(boot)?, boot.suite.is_some());
    }
    if boots.iter().any(|boot| boot.dry_run) {
        return Ok(true);
    }
    println!("{sum}");
    Ok(sum.is_pass())
}

/// The cases that a boot stands for: those of its suite, or the boot itself.
fn cases(outcome: &Outcome, is_suite: bool) -> Summary {
    let boot = Summary { passed: outcome.passed.into(), failed: (!outcome.passed).into(), skipped: 0 };
    match outcome.summary.filter(|_| is_suite) {
        // A suite that failed for another reason must not look like a pass in the sum.
        Some(mut cases) => {
            if !outcome.passed && cases.failed == 0 {
                cases.failed = 1;
            }
            cases
        }
        None => boot,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(passed: bool, line: &str) -> Outcome {
        Outcome { passed, summary: Summary::of_guest_line(line) }
    }

    #[test]
    fn a_boot_is_one_case() {
        assert_eq!(cases(&outcome(true, ""), false).to_string(), "1 passed, 0 failed");
        assert_eq!(cases(&outcome(false, ""), false).to_string(), "0 passed, 1 failed");
        assert_eq!(cases(&outcome(true, "9 passed, 0 failed"), false).to_string(), "1 passed, 0 failed");
    }

    #[test]
    fn a_suite_is_its_cases_and_never_hides_a_failure() {
        assert_eq!(cases(&outcome(true, "9 passed, 0 failed"), true).to_string(), "9 passed, 0 failed");
        assert_eq!(cases(&outcome(false, "8 passed, 2 failed"), true).to_string(), "8 passed, 2 failed");
        assert_eq!(cases(&outcome(false, "9 passed, 0 failed"), true).to_string(), "9 passed, 1 failed");
        assert_eq!(cases(&outcome(false, "hang"), true).to_string(), "0 passed, 1 failed");
    }
}
