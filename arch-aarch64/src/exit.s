// The way out.
//
//   from the vectors, with x0 to x3 in the frame and x2 = how the run ended
//   | 1  sandbox_gate_save: the other registers
//   | 2  sandbox_gate_leave: the host's roots; its SP_EL0, thread pointers, ELR, SPSR and bits of PSTATE
//   | 3  the host's vectors. From here on its own handlers take everything
//   v 4  the host's sp, x18 to x30; returns x2
//
// A return (svc #0) skips 1: what the sandbox left in its registers is of no use to anyone. The host's stack is used only
// after its roots, its vectors and its PAN are back.

// Steps 2 and 3; uses x0, x1, x3 to x5 and x30.
.macro sandbox_gate_restore_host
    ldr x0, [sp, #{WAY}]
    cbz x0, 1f
    bl sandbox_gate_leave_tagged
    b 2f
1:  sandbox_gate_switch_flushed {HOST_ROOTS}
2:  ldp x0, x1, [sp, #{HOST_SP_EL0}]    // and the thread pointer
    msr sp_el0, x0
    msr tpidr_el0, x1
    ldp x0, x1, [sp, #{HOST_ELR}]       // and SPSR
    msr elr_el1, x0
    msr spsr_el1, x1
    ldr x0, [sp, #{HOST_TPIDRRO}]
    msr tpidrro_el0, x0
    ldp x3, x4, [sp, #{FEATURES}]       // and the host's values of them
    cbz x3, 9f
    tbz x3, #{PAN_BIT}, 1f
    and x5, x4, #{PAN}
    msr s3_0_c4_c2_3, x5
1:  tbz x3, #{UAO_BIT}, 1f
    and x5, x4, #{UAO}
    msr s3_0_c4_c2_4, x5
1:  tbz x3, #{DIT_BIT}, 1f
    and x5, x4, #{DIT}
    msr s3_3_c4_c2_5, x5
1:  tbz x3, #{SSBS_BIT}, 1f
    and x5, x4, #{SSBS}
    msr s3_3_c4_c2_6, x5
1:  tbz x3, #{TCO_BIT}, 9f
    and x5, x4, #{TCO}
    msr s3_3_c4_c2_7, x5
9:  ldp x0, x1, [sp, #{HOST_SP}]        // and VBAR
    msr vbar_el1, x1
    isb
.endm

.balign 16
sandbox_gate_save:
    stp x4, x5, [sp, #{FRAME_X} + {PAIR} * 2]
    stp x6, x7, [sp, #{FRAME_X} + {PAIR} * 3]
    stp x8, x9, [sp, #{FRAME_X} + {PAIR} * 4]
    stp x10, x11, [sp, #{FRAME_X} + {PAIR} * 5]
    stp x12, x13, [sp, #{FRAME_X} + {PAIR} * 6]
    stp x14, x15, [sp, #{FRAME_X} + {PAIR} * 7]
    stp x16, x17, [sp, #{FRAME_X} + {PAIR} * 8]
    stp x18, x19, [sp, #{FRAME_X} + {PAIR} * 9]
    stp x20, x21, [sp, #{FRAME_X} + {PAIR} * 10]
    stp x22, x23, [sp, #{FRAME_X} + {PAIR} * 11]
    stp x24, x25, [sp, #{FRAME_X} + {PAIR} * 12]
    stp x26, x27, [sp, #{FRAME_X} + {PAIR} * 13]
    stp x28, x29, [sp, #{FRAME_X} + {PAIR} * 14]
    mrs x0, sp_el0
    stp x30, x0, [sp, #{FRAME_X} + {PAIR} * 15]
    mrs x0, elr_el1
    mrs x1, spsr_el1
    stp x0, x1, [sp, #{FRAME_PC}]
    mrs x0, tpidr_el0
    str x0, [sp, #{FRAME_TPIDR}]
    b sandbox_gate_leave

sandbox_gate_returned:
    mov x2, #{RETURNED}

sandbox_gate_leave:
    sandbox_gate_restore_host
    mov sp, x0
    mov x0, x2
    ldp x20, x21, [sp, #{PAIR}]
    ldp x22, x23, [sp, #{PAIR} * 2]
    ldp x24, x25, [sp, #{PAIR} * 3]
    ldp x26, x27, [sp, #{PAIR} * 4]
    ldp x28, x29, [sp, #{PAIR} * 5]
    ldr x30, [sp, #{PAIR} * 6]
    ldp x18, x19, [sp], #{SAVED_SIZE}
    ret

// The host's roots by the ASID policy; x0 has the bits of the way.
sandbox_gate_leave_tagged:
    tbnz x0, #{HIGH_BIT}, 2f
    tbnz x0, #{BORROW_BIT}, 1f
    sandbox_gate_switch_tagged 0, 1, {HOST_ROOTS}
    ret
1:  sandbox_gate_leave_borrowed 0, 1
    ret
2:  tbnz x0, #{BORROW_BIT}, 3f
    sandbox_gate_switch_tagged 1, 0, {HOST_ROOTS}
    ret
3:  sandbox_gate_leave_borrowed 1, 0
    ret

// An exception of the gate's own, or one that cannot happen: as much of the host as can be is put back, and the host is told.
sandbox_gate_fatal:
    mrs x19, esr_el1
    mrs x20, elr_el1
    mrs x21, far_el1
    sandbox_gate_restore_host
    mov x4, sp
    and x0, x0, #-16
    mov sp, x0
    mov x0, x4
    mov x1, x19
    mov x2, x20
    mov x3, x21
    mov x29, xzr
    ldr x4, [x4, #{FATAL}]              // not in the gate, which may run anywhere
    blr x4
1:  b 1b

.balign 4096
.global sandbox_gate_end
sandbox_gate_end:

// What follows is ordinary text, which sandboxes execute.
.section .text.sandbox_mode, "ax", @progbits

// Where sandboxed code begins: x1 = the function, x0 = its argument. A return becomes a call of the host with number 0. Were
// control to come back from that, it would do it again.
.balign 16
.global sandbox_gate_launch
sandbox_gate_launch:
    blr x1
1:  svc #0
    b 1b
.text
