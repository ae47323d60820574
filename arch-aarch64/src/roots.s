// Changing the roots.
//
// What must hold on any CPU: at no time are there two answers to one question. Answers are leaf entries, which conflict when they
// differ in size, address, attributes or being global, and the entries on the way to them, which CPUs cache by address and
// ASID too and may go on with whatever root is in force. The gate's own pages, which are needed meanwhile, are the same in
// host, view and gate-only tables, and mapped as single pages (`Format::is_compatible`).
//
// Each isb keeps what follows from running, or walking, ahead of what precedes.

.macro sandbox_gate_flush
    tlbi vmalle1
    dsb nsh
    isb
.endm

// The flush policy, which is right for any host.
//
//   sandbox_gate_switch_flushed ROOTS: from the roots in force to the pair at [sp + ROOTS]; uses x0 and x1
//
//   | 1  the gate-only roots: all that can be walked from here on is the gate
//   | 2  everything cached is dropped, global translations included: one for a page that the new roots map in
//   |    another size, or not globally, would be a second answer
//   | 3  the roots wanted
//   v 4  everything is dropped again: the way to the gate in the gate-only tables leads nowhere else, and where it
//        was cached, other pages near the gate would seem not to be mapped

.macro sandbox_gate_switch_flushed roots
    ldp x0, x1, [sp, #{GATE_ROOTS}]
    msr ttbr0_el1, x0
    msr ttbr1_el1, x1
    isb
    sandbox_gate_flush
    ldp x0, x1, [sp, #\roots]
    msr ttbr0_el1, x0
    msr ttbr1_el1, x1
    isb
    sandbox_gate_flush
.endm

// The ASID policy, for views that share nothing global with the host. GATE is the half that the gate is in, OTHER the other one.
// Which writes and why: `asids.rs`.
//
//   sandbox_gate_switch_tagged GATE, OTHER, ROOTS: where the ASID in force is that of GATE's root; uses x0 and x1
//
//   | 1  nothing in the other half, under the old ASID
//   | 2  the gate's half and the ASID at once
//   v 3  the other half, under the new ASID

.macro sandbox_gate_switch_tagged gate, other, roots
    ldp x0, x1, [sp, #{PASS_ROOTS}]
    msr ttbr\other\()_el1, x\other
    isb
    ldp x0, x1, [sp, #\roots]
    msr ttbr\gate\()_el1, x\gate
    isb
    msr ttbr\other\()_el1, x\other
    isb
.endm

//   sandbox_gate_enter_borrowed, sandbox_gate_leave_borrowed GATE, OTHER: where it is that of OTHER's root in the host
//
//   | 1  nothing in the other half, and the host's ASID in both
//   | 2  the ASID is that of the gate's half: the same
//   | 3  the view's gate half and its ASID at once
//   | 4  the view's other half
//   |    ... the run
//   | 5  nothing in the other half; its root has the host's ASID already
//   | 6  the host's gate half and its ASID at once
//   | 7  the ASID is that of the other half: the same
//   v 8  the host's roots, bit for bit

.macro sandbox_gate_enter_borrowed gate, other
    ldp x0, x1, [sp, #{PASS_ROOTS}]
    msr ttbr0_el1, x0
    msr ttbr1_el1, x1
    isb
    ldr x0, [sp, #{RUN_TCR}]
    msr tcr_el1, x0
    isb
    ldp x0, x1, [sp, #{VIEW_ROOTS}]
    msr ttbr\gate\()_el1, x\gate
    isb
    msr ttbr\other\()_el1, x\other
    isb
.endm

.macro sandbox_gate_leave_borrowed gate, other
    ldp x0, x1, [sp, #{PASS_ROOTS}]
    msr ttbr\other\()_el1, x\other
    isb
    msr ttbr\gate\()_el1, x\gate
    isb
    ldr x0, [sp, #{HOST_TCR}]
    msr tcr_el1, x0
    isb
    ldp x0, x1, [sp, #{HOST_ROOTS}]
    msr ttbr0_el1, x0
    msr ttbr1_el1, x1
    isb
.endm
