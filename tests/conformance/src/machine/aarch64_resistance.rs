//! Code that resists being stopped, on AArch64. Each gets the address of a page that it may write.

use core::arch::naked_asm;

/// Loops that a deadline has to end, by name.
pub(crate) const RESISTANCE: [(&str, extern "C" fn(u64)); 5] = [
    ("an empty loop", empty),
    ("exclusive accesses", exclusive),
    ("exclusive accesses that never succeed", exclusive_without_end),
    ("barriers", barriers),
    ("events and hints", hints),
];

/// Loops that end by themselves with a privileged instruction.
pub(crate) const WAITS: [(&str, extern "C" fn(u64)); 2] = [("wfi", waits), ("msr daifset", masks)];

#[unsafe(naked)]
extern "C" fn empty(_page: u64) {
    naked_asm!("2: b 2b")
}

#[unsafe(naked)]
extern "C" fn exclusive(_page: u64) {
    naked_asm!("2: ldaxr x1, [x0]", "add x1, x1, #1", "stlxr w2, x1, [x0]", "b 2b")
}

/// What other code of the same core would have to make an end of.
#[unsafe(naked)]
extern "C" fn exclusive_without_end(_page: u64) {
    naked_asm!("2: ldaxr x1, [x0]", "clrex", "stlxr w2, x1, [x0]", "cbnz w2, 2b", "b 2b")
}

#[unsafe(naked)]
extern "C" fn barriers(_page: u64) {
    naked_asm!("2: dsb sy", "isb", "str x1, [x0]", "dmb sy", "b 2b")
}

#[unsafe(naked)]
extern "C" fn hints(_page: u64) {
    naked_asm!("2: yield", "sev", "sevl", "b 2b")
}

#[unsafe(naked)]
extern "C" fn waits(_page: u64) {
    naked_asm!("2: wfi", "b 2b")
}

#[unsafe(naked)]
extern "C" fn masks(_page: u64) {
    naked_asm!("2: msr daifset, #2", "b 2b")
}
