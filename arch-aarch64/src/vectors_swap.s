// Exchanging the vector registers around an entry.
//
//   sandbox_vectors_enter(x0, x1 = as sandbox_gate_enter, x2 = the sandbox's set, x3 = the host's,
//                         x4 = sandbox_gate_enter, where it runs) -> x0 = as there
//
//   all exceptions are masked; CPACR_EL1.FPEN lets everything through
//   | 1  the host's registers into its set, the sandbox's from its own
//   | 2  sandbox_gate_enter
//   | 3  the sandbox's into its set, the host's from its own
//   v    returns
//
// From the end of 1 to the beginning of 3 nothing is executed but this, the gate, and the sandbox: no compiled code, which
// could use the registers in a kernel that is built so. Both sets lie in memory that the sandbox does not have, so what
// is loaded in 3 is what was saved in 1.

.macro sandbox_vectors_each instruction, set
    \instruction q0, q1, [\set, #{V}]
    \instruction q2, q3, [\set, #{V} + {PAIR}]
    \instruction q4, q5, [\set, #{V} + {PAIR} * 2]
    \instruction q6, q7, [\set, #{V} + {PAIR} * 3]
    \instruction q8, q9, [\set, #{V} + {PAIR} * 4]
    \instruction q10, q11, [\set, #{V} + {PAIR} * 5]
    \instruction q12, q13, [\set, #{V} + {PAIR} * 6]
    \instruction q14, q15, [\set, #{V} + {PAIR} * 7]
    \instruction q16, q17, [\set, #{V} + {PAIR} * 8]
    \instruction q18, q19, [\set, #{V} + {PAIR} * 9]
    \instruction q20, q21, [\set, #{V} + {PAIR} * 10]
    \instruction q22, q23, [\set, #{V} + {PAIR} * 11]
    \instruction q24, q25, [\set, #{V} + {PAIR} * 12]
    \instruction q26, q27, [\set, #{V} + {PAIR} * 13]
    \instruction q28, q29, [\set, #{V} + {PAIR} * 14]
    \instruction q30, q31, [\set, #{V} + {PAIR} * 15]
.endm

// Both use x9 and x10.
.macro sandbox_vectors_save set
    sandbox_vectors_each stp, \set
    mrs x9, fpcr
    mrs x10, fpsr
    stp x9, x10, [\set, #{FPCR}]
.endm

.macro sandbox_vectors_load set
    sandbox_vectors_each ldp, \set
    ldp x9, x10, [\set, #{FPCR}]
    msr fpcr, x9
    msr fpsr, x10
.endm

.section .text.sandbox_mode, "ax", @progbits
.balign 16
.global sandbox_vectors_enter
sandbox_vectors_enter:
    hint #34                            // bti c
    stp x29, x30, [sp, #-{FRAME}]!
    mov x29, sp
    stp x2, x3, [sp, #{AREA}]
    sandbox_vectors_save x3
    sandbox_vectors_load x2
    blr x4
    ldp x2, x3, [sp, #{AREA}]
    sandbox_vectors_save x2
    sandbox_vectors_load x3
    ldp x29, x30, [sp], #{FRAME}
    ret
.text
