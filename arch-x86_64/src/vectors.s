// Exchanging the vector registers around an entry.
//
//   sandbox_vectors_enter(rdi, rsi = as sandbox_gate_enter, rdx = the sandbox's set, rcx = the host's,
//                         r8d = what XSAVE is to exchange, 0: FXSAVE) -> rax = as there
//
//   interrupts are masked; CR0.TS and EM are clear
//   | 1  the host's registers into its set, the sandbox's from its own
//   | 2  sandbox_gate_enter
//   | 3  the sandbox's into its set, the host's from its own
//   v    returns
//
// From the end of 1 to the beginning of 3 nothing is executed but this, the gate, and the sandbox: no compiled code, which
// could use the registers in a kernel that is built so. Both sets lie in memory that the sandbox does not have, so what
// is loaded in 3 is what was saved in 1. An NMI may arrive anywhere here: a handler that uses the registers keeps them, as it
// must everywhere else.

// Uses rax and rdx.
.macro sandbox_vectors_save set
    test r12d, r12d
    jz 2f
    mov eax, r12d
    xor edx, edx
    xsave64 [\set]
    jmp 3f
2:  fxsave64 [\set]
3:
.endm

// Uses rax and rdx. Before AMD's Zen 2 the address and opcode of the last x87 instruction are loaded only if an exception
// is pending, and otherwise stay: so that nobody finds another's, an instruction of no interest is the last. There is
// none pending then that it could raise, and room on the stack that it needs.
.macro sandbox_vectors_load set
    fnclex
    emms
    fild dword ptr [rip + sandbox_vectors_enter]
    test r12d, r12d
    jz 2f
    mov eax, r12d
    xor edx, edx
    xrstor64 [\set]
    jmp 3f
2:  fxrstor64 [\set]
3:
.endm

.section .text.sandbox_mode, "ax", @progbits
.balign 16
.global sandbox_vectors_enter
sandbox_vectors_enter:
    push rbx
    push rbp
    push r12
    mov rbx, rdx
    mov rbp, rcx
    mov r12d, r8d
    sandbox_vectors_save rbp
    sandbox_vectors_load rbx
    call sandbox_gate_enter
    mov rdi, rax
    sandbox_vectors_save rbx
    sandbox_vectors_load rbp
    mov rax, rdi
    pop r12
    pop rbp
    pop rbx
    ret
.text
