// The way in.
//
//   sandbox_gate_enter(x0 = the end of this CPU's frame, x1 = the sandbox's Registers) -> x0 = how it ended
//
//   all exceptions are masked, the host's roots and vectors are in force
//   | 1  x18 to x30 go onto the host's stack; its sp, VBAR, roots, SP_EL0, thread pointers, ELR and SPSR
//   |    into State: with the bits of PSTATE that the caller put there, all that the way back restores
//   | 2  sp = the end of the frame, and then the gate's vectors: from here on an exception finds the gate's
//   |    data, wherever it comes
//   | 3  the sandbox's registers, those that EL0 alone uses first; x0 and x1 wait in the frame
//   | 4  the view's roots: by the flush policy, or one of the others
//   v 5  x0 and x1; eret: EL0
//
// Between 2 and 5 nothing is pushed, and after 3 only the gate's data is read.

.balign 16
.global sandbox_gate_enter
sandbox_gate_enter:
    hint #34                            // bti c
    stp x18, x19, [sp, #-{SAVED_SIZE}]!
    stp x20, x21, [sp, #{PAIR}]
    stp x22, x23, [sp, #{PAIR} * 2]
    stp x24, x25, [sp, #{PAIR} * 3]
    stp x26, x27, [sp, #{PAIR} * 4]
    stp x28, x29, [sp, #{PAIR} * 5]
    str x30, [sp, #{PAIR} * 6]
    mov x2, sp
    mrs x3, vbar_el1
    stp x2, x3, [x0, #{HOST_SP}]
    mrs x2, ttbr0_el1
    mrs x3, ttbr1_el1
    stp x2, x3, [x0, #{HOST_ROOTS}]
    mrs x2, sp_el0
    mrs x3, tpidr_el0
    stp x2, x3, [x0, #{HOST_SP_EL0}]
    mrs x2, elr_el1
    mrs x3, spsr_el1
    stp x2, x3, [x0, #{HOST_ELR}]
    mrs x2, tpidrro_el0
    str x2, [x0, #{HOST_TPIDRRO}]

    mov sp, x0
    adr x2, sandbox_gate_vectors
    msr vbar_el1, x2
    isb

    ldp x2, x3, [x1, #{PC}]             // and pstate
    msr elr_el1, x2
    msr spsr_el1, x3
    ldr x2, [x1, #{SP}]
    ldr x3, [x1, #{TPIDR}]
    msr sp_el0, x2
    msr tpidr_el0, x3
    msr tpidrro_el0, xzr
    ldp x2, x3, [x1, #{X}]
    stp x2, x3, [sp, #{FRAME_X}]
    ldp x2, x3, [x1, #{X} + {PAIR}]
    ldp x4, x5, [x1, #{X} + {PAIR} * 2]
    ldp x6, x7, [x1, #{X} + {PAIR} * 3]
    ldp x8, x9, [x1, #{X} + {PAIR} * 4]
    ldp x10, x11, [x1, #{X} + {PAIR} * 5]
    ldp x12, x13, [x1, #{X} + {PAIR} * 6]
    ldp x14, x15, [x1, #{X} + {PAIR} * 7]
    ldp x16, x17, [x1, #{X} + {PAIR} * 8]
    ldp x18, x19, [x1, #{X} + {PAIR} * 9]
    ldp x20, x21, [x1, #{X} + {PAIR} * 10]
    ldp x22, x23, [x1, #{X} + {PAIR} * 11]
    ldp x24, x25, [x1, #{X} + {PAIR} * 12]
    ldp x26, x27, [x1, #{X} + {PAIR} * 13]
    ldp x28, x29, [x1, #{X} + {PAIR} * 14]
    ldr x30, [x1, #{X} + {PAIR} * 15]

    ldr x0, [sp, #{WAY}]
    cbnz x0, sandbox_gate_enter_tagged
    sandbox_gate_switch_flushed {VIEW_ROOTS}
sandbox_gate_go:
    ldp x0, x1, [sp, #{FRAME_X}]
    eret
    // No speculation beyond.
    dsb nsh
    isb

sandbox_gate_enter_tagged:
    tbnz x0, #{HIGH_BIT}, 2f
    tbnz x0, #{BORROW_BIT}, 1f
    sandbox_gate_switch_tagged 0, 1, {VIEW_ROOTS}
    b sandbox_gate_go
1:  sandbox_gate_enter_borrowed 0, 1
    b sandbox_gate_go
2:  tbnz x0, #{BORROW_BIT}, 3f
    sandbox_gate_switch_tagged 1, 0, {VIEW_ROOTS}
    b sandbox_gate_go
3:  sandbox_gate_enter_borrowed 1, 0
    b sandbox_gate_go
