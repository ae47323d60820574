//! What protects the kernel is on. That it stays on is what the auditor sees to in every case.

use super::protections;
use crate::suite::{Suite, cases};
use crate::verdict::Outcome;

cases! {
    what_the_cpu_has_is_on,
}

fn what_the_cpu_has_is_on(suite: &Suite) -> Outcome {
    let left_off = suite.kernel.leaves_off();
    for (name, available, on) in protections() {
        suite.note(format_args!("{name}: {}", if on { "on" } else { "off" }));
        expect!(on || !available || left_off.contains(&name), "the CPU has {name}, and it is off");
    }
    Ok(())
}
