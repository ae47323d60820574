// The exception vectors of the runs. Everything from here to sandbox_gate_end is the gate: pages of its own,
// mapped privileged-only in host and view alike.
//
//   the CPU has masked everything and gone to EL1; sp is SP_EL1, the end of the frame
//   | a synchronous exception of EL0 is a return, the one thing that needs no registers, or else
//   |    what it says of itself, and sandbox_gate_save
//   | IRQ and FIQ: sandbox_gate_save. They stay pending, since nobody acknowledges them here
//   v everything else cannot happen (SError is masked, AArch32 unreachable, the gate's own code doesn't
//     fault): sandbox_gate_fatal
//
// Each leaves in x2 how the run ended, after x0 to x3 are in the frame.

.macro sandbox_gate_interrupt kind
    .balign 0x80
    stp x0, x1, [sp, #{FRAME_X}]
    stp x2, x3, [sp, #{FRAME_X} + {PAIR}]
    mov x2, #\kind
    b sandbox_gate_save
.endm

.macro sandbox_gate_impossible
    .balign 0x80
    b sandbox_gate_fatal
.endm

.section .text.sandbox_gate, "ax", @progbits
.balign 4096
.global sandbox_gate_start
sandbox_gate_start:

.global sandbox_gate_vectors
sandbox_gate_vectors:
    // From EL1 on SP_EL0.
    sandbox_gate_impossible
    sandbox_gate_impossible
    sandbox_gate_impossible
    sandbox_gate_impossible
    // From EL1 on SP_EL1.
    sandbox_gate_impossible
    sandbox_gate_impossible
    sandbox_gate_impossible
    sandbox_gate_impossible
    // From EL0 in AArch64.
    .balign 0x80
    stp x0, x1, [sp, #{FRAME_X}]
    mrs x0, esr_el1
    mov x1, #{RETURN_SYNDROME}
    cmp x0, x1
    b.eq sandbox_gate_returned
    mrs x1, far_el1
    stp x0, x1, [sp, #{FRAME_ESR}]
    stp x2, x3, [sp, #{FRAME_X} + {PAIR}]
    mov x2, #{SYNCHRONOUS}
    b sandbox_gate_save
    sandbox_gate_interrupt {IRQ}
    sandbox_gate_interrupt {FIQ}
    sandbox_gate_impossible
    // From EL0 in AArch32.
    sandbox_gate_impossible
    sandbox_gate_impossible
    sandbox_gate_impossible
    sandbox_gate_impossible
    .balign 0x80
