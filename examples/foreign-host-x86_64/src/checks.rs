//! This kernel's own checks: around the conformance suite, and of calls from its threads and its system calls.

use crate::console::println;
use crate::{processes, suite};

/// Runs the suite.
pub(crate) fn run_suite(words: &str) -> bool {
    processes::run_each();
    let passed = conformance::run(&suite::Suite, words);
    println!("rounds {:?} wrong {}", processes::rounds(), processes::wrong());
    passed
}

/// Runs the others.
pub(crate) fn run_own() -> bool {
    false
}
