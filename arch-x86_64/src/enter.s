// The way in. Everything from here to sandbox_gate_end is the gate: pages of its own, mapped privileged-only
// in host and view alike.
//
//   sandbox_gate_enter(rdi = State, rsi = root of the view) -> rax = Frame, or 0
//
//   interrupts are masked, the host's tables are loaded
//   | 1  the host's callee-saved registers and flags go onto its stack. The trap flag is among them? Then back
//   |    at once: the host does not step through here
//   | 2  rsp, CR0, CR3, IDTR, LDTR, the data selectors and the FS and GS bases go into State: all that the way
//   |    back restores
//   | 3  lidt: the gate's exception table
//   v--- sandbox_gate_window: an NMI, machine check or debug exception from here on finds the gate's table. It calls
//   |    the entry off: the way back is complete, and the frame and the host's copy of the sandbox's registers are
//   |    untouched by what follows
//   | 4  the sandbox's FS and GS bases; floating point traps; no local descriptor table
//   | 5  rsp = the frame; the view's root; the general registers
//   | 6  iretq: unprivileged
//   ^--- sandbox_gate_window_end
//
// The stack is never used between 3 and 6 except to pop the frame, so rsp may be anything: NMI, machine check and debug
// exceptions have stacks of their own, and nothing else can arrive. Breakpoints on the gate are not armed (debug.rs), and what
// the host watches elsewhere is not touched between the two labels, so a debug exception there is one that nobody foresaw, or
// the first step of a trap flag that an NMI handler of the host's has set after 1.
//
// docs/windows-x86_64.md goes through it instruction by instruction.

.section .text.sandbox_gate, "ax", @progbits
.balign 4096
.global sandbox_gate_start
sandbox_gate_start:

.global sandbox_gate_enter
sandbox_gate_enter:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    pushfq
    test byte ptr [rsp + {FLAGS_TRAP_BYTE}], {FLAGS_TRAP_BIT}
    jnz 6f
    mov [rdi + {HOST_RSP}], rsp
    mov r8, cr0
    mov [rdi + {HOST_CR0}], r8
    mov rax, cr3
    mov [rdi + {HOST_CR3}], rax
    and eax, {PAGE_MASK}            // the host's PCID, or its cache bits: the view runs with the same
    or rsi, rax
    sidt [rdi + {HOST_IDTR}]
    sldt word ptr [rdi + {HOST_LDTR}]
    mov word ptr [rdi + {HOST_DS}], ds
    mov word ptr [rdi + {HOST_ES}], es
    mov word ptr [rdi + {HOST_FS}], fs
    mov word ptr [rdi + {HOST_GS}], gs
    mov rax, cr4
    shr rax, {CR4_FSGSBASE}
    and eax, 1
    mov [rdi + {HAS_FSGSBASE}], eax
    jz 2f
    rdfsbase rax
    rdgsbase rdx
    mov [rdi + {HOST_FS_BASE}], rax
    mov [rdi + {HOST_GS_BASE}], rdx
    lidt [rdi + {IDTR}]
sandbox_gate_window:
    mov rax, [rdi + {FS_BASE}]
    mov rdx, [rdi + {GS_BASE}]
    wrfsbase rax
    wrgsbase rdx
1:
    not r8d
    test r8b, byte ptr [rdi + {CR0_TRAP}]
    jnz 5f
7:
    cmp word ptr [rdi + {HOST_LDTR}], 0
    jne 4f
3:
    lea rsp, [rdi + {EXIT_FRAME}]
    mov cr3, rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, {SKIP_VECTOR_AND_ERROR}
    iretq

// Without FSGSBASE unprivileged code cannot set the bases except to 0, by loading a flat selector; doing the same
// clears them on every CPU (a null selector does not on AMD's).
2:
    mov ecx, {IA32_FS_BASE}
    rdmsr
    mov [rdi + {HOST_FS_BASE}], eax
    mov [rdi + {HOST_FS_BASE} + 4], edx
    mov ecx, {IA32_GS_BASE}
    rdmsr
    mov [rdi + {HOST_GS_BASE}], eax
    mov [rdi + {HOST_GS_BASE} + 4], edx
    lidt [rdi + {IDTR}]
    movzx eax, word ptr [rdi + {USER_DATA}]
    mov fs, eax
    mov gs, eax
    jmp 1b

4:
    xor eax, eax
    lldt ax
    jmp 3b

// Floating point traps from here on; after step 2, so that no code of the host's runs with it.
5:
    mov rax, [rdi + {HOST_CR0}]
    or rax, [rdi + {CR0_TRAP}]
    mov cr0, rax
    jmp 7b
sandbox_gate_window_end:

// The host is single-stepping: not in here. Nothing has changed yet.
6:
    or dword ptr [rdi + {PENDING}], {PENDING_STEP}
    add rsp, {ENTRY_PUSHES}
    xor eax, eax
    ret
