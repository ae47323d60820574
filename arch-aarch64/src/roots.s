// Changing the roots: the flush policy, which is right for any host.
//
//   sandbox_gate_switch_roots ROOTS: from the roots in force to the pair at [sp + ROOTS]; uses x0 and x1
//
//   | 1  the gate-only roots: the one thing that can be walked from here on is the gate, which all roots map
//   | 2  everything cached is dropped, global translations included: one for a page that the new roots map in
//   |    another size, or not globally, would be a second answer to one question
//   | 3  the roots wanted
//
// After 2 translations of the gate by the gate-only roots may be cached again. The view's tables map the gate in the same
// way; the host's need not, so the way out drops them once more, under the host's roots, where they would otherwise stay
// for as long as the host runs.
//
// What remains is the gate's own page, which is executed meanwhile: while the roots change it can have two answers, which
// agree in address and in what EL1 may do.
//
// Each isb keeps what follows from running, or walking, ahead of what precedes. A policy with ASIDs would be a second
// macro.

.macro sandbox_gate_flush
    tlbi vmalle1
    dsb nsh
    isb
.endm

.macro sandbox_gate_switch_roots roots
    ldp x0, x1, [sp, #{GATE_ROOTS}]
    msr ttbr0_el1, x0
    msr ttbr1_el1, x1
    isb
    sandbox_gate_flush
    ldp x0, x1, [sp, #\roots]
    msr ttbr0_el1, x0
    msr ttbr1_el1, x1
    isb
.endm
