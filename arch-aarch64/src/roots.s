// Changing the roots: the flush policy, which is right for any host.
//
//   sandbox_gate_switch_roots ROOTS: from the roots in force to the pair at [sp + ROOTS]; uses x0 and x1
//
//   | 1  the gate-only roots: the one thing that can be walked from here on is the gate, which all roots map
//   | 2  tlbi vmalle1: no translation of the old roots is left, global ones included. Before this, one for
//   |    a page that the new roots map in another size, or not globally, would be a second answer to one
//   |    question; after it, only the gate's can have come back
//   | 3  the roots wanted
//
// Each isb keeps what follows from running, or walking, ahead of what precedes. The two roots are never from different
// sides while anything but the gate's own code and data can be touched. A policy with ASIDs would be a second macro.

.macro sandbox_gate_switch_roots roots
    ldp x0, x1, [sp, #{GATE_ROOTS}]
    msr ttbr0_el1, x0
    msr ttbr1_el1, x1
    isb
    tlbi vmalle1
    dsb nsh
    isb
    ldp x0, x1, [sp, #\roots]
    msr ttbr0_el1, x0
    msr ttbr1_el1, x1
    isb
.endm
