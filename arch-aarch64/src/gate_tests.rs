//! QEMU doesn't show what a wrong order does, so the sequences are compared with what was reviewed.

use std::string::String;
use std::vec::Vec;

const ROOTS: &str = include_str!("roots.s");
const VECTORS: &str = include_str!("vectors.s");
const ENTER: &str = include_str!("enter.s");
const EXIT: &str = include_str!("exit.s");

/// The lines of `source` that are not empty or comments, without comments at their ends.
fn lines(source: &str) -> Vec<&str> {
    let lines = source.lines().map(|line| line.split("//").next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).collect()
}

/// The lines of the macro `name`.
fn body<'s>(source: &'s str, name: &str) -> Vec<&'s str> {
    let start = |line: &&str| line.strip_prefix(".macro ").is_some_and(|rest| rest.split(' ').next() == Some(name));
    lines(source).into_iter().skip_while(|line| !start(line)).skip(1).take_while(|&line| line != ".endm").collect()
}

/// The lines from the label `name` on.
fn after<'s>(source: &'s str, name: &str) -> Vec<&'s str> {
    let label = std::format!("{name}:");
    lines(source).into_iter().skip_while(|line| *line != label).skip(1).collect()
}

#[test]
fn the_flush_policy() {
    assert_eq!(body(ROOTS, "sandbox_gate_flush"), ["tlbi vmalle1", "dsb nsh", "isb"]);
    assert_eq!(
        body(ROOTS, "sandbox_gate_switch_flushed"),
        [
            "ldp x0, x1, [sp, #{GATE_ROOTS}]",
            "msr ttbr0_el1, x0",
            "msr ttbr1_el1, x1",
            "isb",
            "sandbox_gate_flush",
            "ldp x0, x1, [sp, #\\roots]",
            "msr ttbr0_el1, x0",
            "msr ttbr1_el1, x1",
            "isb",
            "sandbox_gate_flush",
        ]
    );
}

#[test]
fn the_asid_policy() {
    assert_eq!(
        body(ROOTS, "sandbox_gate_switch_tagged"),
        [
            "ldp x0, x1, [sp, #{PASS_ROOTS}]",
            "msr ttbr\\other\\()_el1, x\\other",
            "isb",
            "ldp x0, x1, [sp, #\\roots]",
            "msr ttbr\\gate\\()_el1, x\\gate",
            "isb",
            "msr ttbr\\other\\()_el1, x\\other",
            "isb",
        ]
    );
    assert_eq!(
        body(ROOTS, "sandbox_gate_enter_borrowed"),
        [
            "ldp x0, x1, [sp, #{PASS_ROOTS}]",
            "msr ttbr0_el1, x0",
            "msr ttbr1_el1, x1",
            "isb",
            "ldr x0, [sp, #{RUN_TCR}]",
            "msr tcr_el1, x0",
            "isb",
            "ldp x0, x1, [sp, #{VIEW_ROOTS}]",
            "msr ttbr\\gate\\()_el1, x\\gate",
            "isb",
            "msr ttbr\\other\\()_el1, x\\other",
            "isb",
        ]
    );
    assert_eq!(
        body(ROOTS, "sandbox_gate_leave_borrowed"),
        [
            "ldp x0, x1, [sp, #{PASS_ROOTS}]",
            "msr ttbr\\other\\()_el1, x\\other",
            "isb",
            "msr ttbr\\gate\\()_el1, x\\gate",
            "isb",
            "ldr x0, [sp, #{HOST_TCR}]",
            "msr tcr_el1, x0",
            "isb",
            "ldp x0, x1, [sp, #{HOST_ROOTS}]",
            "msr ttbr0_el1, x0",
            "msr ttbr1_el1, x1",
            "isb",
        ]
    );
}

/// What follows `x0 = way`: one switch for each half that the gate can be in and each that the ASID can be in, then `end`.
fn ways(borrowed: &str, roots: &str, end: &str) -> Vec<String> {
    let line = |text: &str| String::from(text);
    let switch = |halves: &str| std::format!("sandbox_gate_switch_tagged {halves}, {{{roots}}}");
    let borrow = |label: &str, halves: &str| std::format!("{label}:  {borrowed} {halves}");
    [
        line("tbnz x0, #{HIGH_BIT}, 2f"),
        line("tbnz x0, #{BORROW_BIT}, 1f"),
        switch("0, 1"),
        line(end),
        borrow("1", "0, 1"),
        line(end),
        line("2:  tbnz x0, #{BORROW_BIT}, 3f"),
        switch("1, 0"),
        line(end),
        borrow("3", "1, 0"),
        line(end),
    ]
    .into()
}

#[test]
fn each_way_in_has_its_way_out() {
    let enter = after(ENTER, "sandbox_gate_enter_tagged");
    let expected = ways("sandbox_gate_enter_borrowed", "VIEW_ROOTS", "b sandbox_gate_go");
    assert_eq!(enter, expected);
    let leave = after(EXIT, "sandbox_gate_leave_tagged");
    let expected = ways("sandbox_gate_leave_borrowed", "HOST_ROOTS", "ret");
    assert_eq!(leave[..expected.len()], expected);
}

#[test]
fn roots_change_nowhere_else() {
    for source in [VECTORS, ENTER, EXIT] {
        for line in lines(source) {
            assert!(!line.contains("tlbi") && !line.contains("msr ttbr") && !line.contains("msr tcr"), "{line}");
            assert!(!line.contains("sandbox_gate_flush"), "{line}");
        }
    }
    let switches = |source| {
        let names = ["sandbox_gate_switch_flushed {", "sandbox_gate_switch_tagged ", "_borrowed "];
        names.map(|name| lines(source).into_iter().filter(|line| line.contains(name)).count())
    };
    assert_eq!([switches(VECTORS), switches(ENTER), switches(EXIT)], [[0, 0, 0], [1, 2, 2], [1, 2, 2]]);
}

#[test]
fn the_code_can_run_anywhere() {
    for source in [ROOTS, VECTORS, ENTER, EXIT] {
        for line in lines(source) {
            // By distance: adr, b, bl, cbz and the like inside the gate. What is called by address is in the data.
            assert!(!["adrp", "ldr x0, =", "=sandbox", ":lo12:"].iter().any(|text| line.contains(text)), "{line}");
            if let Some(target) = line.strip_prefix("bl ") {
                assert_eq!(target, "sandbox_gate_leave_tagged");
            }
        }
    }
    let fatal = after(EXIT, "sandbox_gate_fatal");
    assert!(fatal.windows(2).any(|pair| pair == ["ldr x4, [x4, #{FATAL}]", "blr x4"]));
}

#[test]
fn the_way_in_ends_with_the_view() {
    let enter = lines(ENTER);
    let go = enter.iter().position(|&line| line == "sandbox_gate_go:").unwrap();
    assert_eq!(
        enter[go - 3..go + 5],
        [
            "ldr x0, [sp, #{WAY}]",
            "cbnz x0, sandbox_gate_enter_tagged",
            "sandbox_gate_switch_flushed {VIEW_ROOTS}",
            "sandbox_gate_go:",
            "ldp x0, x1, [sp, #{FRAME_X}]",
            "eret",
            "dsb nsh",
            "isb"
        ]
    );
    let at = |wanted: &str| enter.iter().position(|line| line.starts_with(wanted)).unwrap();
    // All is saved before the vectors, and they are in force before anything of the sandbox's is.
    let vectors = at("msr vbar_el1");
    assert!(enter[..vectors].iter().all(|line| !line.starts_with("msr")));
    assert!(enter[vectors..].iter().all(|line| !line.starts_with("mrs")));
    assert!(enter[vectors..].iter().all(|line| !line.contains("HOST_")));
    assert_eq!(enter[vectors + 1], "isb");
    assert_eq!(enter[vectors - 2], "mov sp, x0");
}

#[test]
fn the_way_out_begins_with_the_host() {
    let restore = body(EXIT, "sandbox_gate_restore_host");
    assert_eq!(
        restore[..5],
        [
            "ldr x0, [sp, #{WAY}]",
            "cbz x0, 1f",
            "bl sandbox_gate_leave_tagged",
            "b 2f",
            "1:  sandbox_gate_switch_flushed {HOST_ROOTS}"
        ]
    );
    assert!(restore[5].starts_with("2:  ldp"));
    assert_eq!(restore[restore.len() - 2..], ["msr vbar_el1, x1", "isb"]);
    let leave = after(EXIT, "sandbox_gate_leave");
    assert_eq!(leave[..2], ["sandbox_gate_restore_host", "mov sp, x0"]);
}

#[test]
fn an_error_exception_waits_for_the_hosts_mask() {
    // Nothing in the gate unmasks anything, and its vectors for SError lead to the report.
    for source in [ROOTS, VECTORS, ENTER, EXIT] {
        assert!(lines(source).iter().all(|line| !line.contains("daif")));
    }
    let vectors = after(VECTORS, "sandbox_gate_vectors");
    let entries = vectors.iter().filter(|line| line.starts_with("sandbox_gate_") || **line == ".balign 0x80");
    // A group has synchronous, IRQ, FIQ, SError; that from EL0 in AArch64 is the third.
    let entries: Vec<_> = entries.collect();
    assert_eq!(entries[8], &".balign 0x80");
    assert_eq!(entries[9], &"sandbox_gate_interrupt {IRQ}");
    assert_eq!(entries[10], &"sandbox_gate_interrupt {FIQ}");
    assert_eq!(entries[11], &"sandbox_gate_impossible");
}
