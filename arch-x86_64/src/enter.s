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
    test r8b, {CR0_TRAP}
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
    or rax, {CR0_TRAP}
    mov cr0, rax
    jmp 7b
sandbox_gate_window_end:

// The host is single-stepping: not in here. Nothing has changed yet.
6:
    or dword ptr [rdi + {PENDING}], {PENDING_STEP}
    add rsp, {ENTRY_PUSHES}
    xor eax, eax
    ret
