// The way out.
//
//   the CPU has switched to the stack that the vector's gate names and pushed ss, rsp, rflags, cs, rip
//   | 1  the vector's stub pushes an error code if the CPU didn't, and the vector
//   | 2  all general registers are pushed: the Frame is complete, and [rsp + FRAME_SIZE] is the State. After a page
//   |    fault CR2 is kept.
//   |    From privileged code? NMI, machine check, debug: see below. Anything else is fatal
//   | 3  sandbox_gate_leave: the host's root, CR0, stack and flags (so DF, AC, NT and the like are the host's
//   |    again), its local descriptor table, selectors and bases
//   | 4  lidt: the host's exception table. From here on the host's own handlers take everything
//   v 5  the callee-saved registers; returns the frame
//
// The host's stack is used only after the host's root is loaded, and the flags of what was deferred are read by the caller, after
// 4: an NMI that comes before 4 sets its flag, one that comes later is the host's.
//
// NMI, machine check and debug exceptions set their flags wherever they come from, since the host's handlers run only after 4.
// One that arrives in the gate itself must not reach the host there, and must not execute iretq, which would unblock NMIs while
// this one's frame is still in use. In the entry window it leaves as if the entry had never begun. Elsewhere it goes back to
// what it interrupted with popfq and ret, whose operands it writes below that code's rsp: in the gate's stacks there is room, and
// on the host's stack nothing lies below the rsp that the entry saved.
//
// A debug exception clears DR7 before anything else, so that it is the only one until the host's table is back. That it comes from
// the gate is possible all the same: behind a load of SS in the sandbox, at the first instruction of another vector's stub; and
// where the host's stack is read, which a host may watch.

.macro sandbox_gate_push
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
.endm

sandbox_gate_page_fault:
    sandbox_gate_push
    mov rdi, [rsp + {FRAME_SIZE}]
    mov rax, cr2
    mov [rdi + {CR2}], rax
    jmp 1f

sandbox_gate_exit:
    sandbox_gate_push
    mov rdi, [rsp + {FRAME_SIZE}]
1:
    mov rsi, rsp
    test byte ptr [rsp + {FRAME_CS}], 3
    jz sandbox_gate_fatal

sandbox_gate_leave:                     // rdi = State, rsi = what to return
    mov rax, [rdi + {HOST_CR3}]
    mov cr3, rax
    mov rax, cr0
    cmp rax, [rdi + {HOST_CR0}]
    jne 22f
23: mov rsp, [rdi + {HOST_RSP}]
    popfq

    // First of all segments: the host's selectors may name entries of that table.
    cmp word ptr [rdi + {HOST_LDTR}], 0
    jne 21f
20: mov eax, ds
    cmp ax, word ptr [rdi + {HOST_DS}]
    jne 5f
1:  mov eax, es
    cmp ax, word ptr [rdi + {HOST_ES}]
    jne 6f
2:  cmp dword ptr [rdi + {HAS_FSGSBASE}], 0
    je 9f
    rdfsbase rax
    rdgsbase rdx
    mov [rdi + {FS_BASE}], rax
    mov [rdi + {GS_BASE}], rdx
    mov eax, fs
    cmp ax, word ptr [rdi + {HOST_FS}]
    jne 7f
3:  mov eax, gs
    cmp ax, word ptr [rdi + {HOST_GS}]
    jne 8f
4:  mov rax, [rdi + {HOST_FS_BASE}]
    mov rdx, [rdi + {HOST_GS_BASE}]
    wrfsbase rax
    wrgsbase rdx

sandbox_gate_host_table:
    lidt [rdi + {HOST_IDTR}]
    mov rax, rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

5:  mov ds, word ptr [rdi + {HOST_DS}]
    jmp 1b
6:  mov es, word ptr [rdi + {HOST_ES}]
    jmp 2b
7:  mov fs, word ptr [rdi + {HOST_FS}]
    jmp 3b
8:  mov gs, word ptr [rdi + {HOST_GS}]
    jmp 4b
21: lldt word ptr [rdi + {HOST_LDTR}]
    jmp 20b
22: mov rax, [rdi + {HOST_CR0}]
    mov cr0, rax
    jmp 23b

// Without FSGSBASE: selectors first, since loading one changes the base; then the bases where they are not what
// the selector left.
9:  mov fs, word ptr [rdi + {HOST_FS}]
    mov gs, word ptr [rdi + {HOST_GS}]
    mov ecx, {IA32_FS_BASE}
    rdmsr
    cmp eax, [rdi + {HOST_FS_BASE}]
    jne 1f
    cmp edx, [rdi + {HOST_FS_BASE} + 4]
    jne 1f
2:  mov ecx, {IA32_GS_BASE}
    rdmsr
    cmp eax, [rdi + {HOST_GS_BASE}]
    jne 3f
    cmp edx, [rdi + {HOST_GS_BASE} + 4]
    je sandbox_gate_host_table
3:  mov eax, [rdi + {HOST_GS_BASE}]
    mov edx, [rdi + {HOST_GS_BASE} + 4]
    wrmsr
    jmp sandbox_gate_host_table
1:  mov eax, [rdi + {HOST_FS_BASE}]
    mov edx, [rdi + {HOST_FS_BASE} + 4]
    wrmsr
    jmp 2b

// NMI, machine check, debug: what may come at any instruction.
sandbox_gate_unmaskable:
    sandbox_gate_push
    mov rdi, [rsp + {FRAME_SIZE}]
    mov rsi, rsp
    mov eax, {PENDING_NMI}
    cmp dword ptr [rsi + {FRAME_VECTOR}], {NMI}
    je 1f
    mov eax, {PENDING_MACHINE_CHECK}
    cmp dword ptr [rsi + {FRAME_VECTOR}], {MACHINE_CHECK}
    je 1f
    mov eax, {DR7_CLEAR}
    mov dr7, rax
    mov rax, dr6
    or [rdi + {DR6}], rax
    mov eax, {PENDING_DEBUG}
1:  or dword ptr [rdi + {PENDING}], eax
    test byte ptr [rsi + {FRAME_CS}], 3
    jnz sandbox_gate_leave
    cmp dword ptr [rsi + {FRAME_VECTOR}], {DEBUG}
    je 5f

    // From the gate itself. In the window: called off.
3:  mov rax, [rsi + {FRAME_RIP}]
    lea rcx, [rip + sandbox_gate_window]
    cmp rax, rcx
    jb 2f
    lea rcx, [rip + sandbox_gate_window_end]
    cmp rax, rcx
    jae 2f
    // The slow part of the entry lies between the two labels but begins with the host's table still loaded; an NMI that comes
    // there is the host's and never gets here.
    xor esi, esi
    jmp sandbox_gate_leave

    // Elsewhere: back, without iretq.
2:  mov rax, [rsi + {FRAME_RSP}]
    mov rcx, [rsi + {FRAME_RIP}]
    mov [rax - 8], rcx
    mov rcx, [rsi + {FRAME_RFLAGS}]
    mov [rax - 16], rcx
    mov rcx, [rsi + {FRAME_RAX}]
    mov [rax - 24], rcx
    sub rax, 24
    mov [rsi + {FRAME_RAX}], rax
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
    pop rsp
    pop rax
    popfq
    ret

sandbox_gate_debugged:
    // A debug exception on top of one whose frame it has overwritten: the first came from the sandbox. What is left leads out.
5:  mov rcx, [rsi + {FRAME_RSP}]
    sub rcx, rsi
    cmp rcx, {FRAME_SIZE}
    jb sandbox_gate_leave
    // A step of the host's: no more of them until the way back is done.
    btr dword ptr [rsi + {FRAME_RFLAGS}], {FLAGS_TRAP}
    jnc 3b
    or dword ptr [rdi + {PENDING}], {PENDING_STEP}
    jmp 3b

// An exception of the gate's own: as much of the host as can be is put back, and the host is told.
sandbox_gate_fatal:
    mov rax, cr2
    mov [rdi + {CR2}], rax
    mov rax, [rdi + {HOST_CR3}]
    mov cr3, rax
    mov rax, [rdi + {HOST_CR0}]
    mov cr0, rax
    mov rsp, [rdi + {HOST_RSP}]
    and rsp, -16
    mov ecx, {IA32_FS_BASE}
    mov eax, [rdi + {HOST_FS_BASE}]
    mov edx, [rdi + {HOST_FS_BASE} + 4]
    wrmsr
    mov ecx, {IA32_GS_BASE}
    mov eax, [rdi + {HOST_GS_BASE}]
    mov edx, [rdi + {HOST_GS_BASE} + 4]
    wrmsr
    cld
    lidt [rdi + {HOST_IDTR}]
    call {fatal}
    ud2

// One stub per vector. Vectors 8, 10 to 14, 17, 21, 29 and 30 come with an error code (SDM 3, table 7-1; AMD APM 2, table 8-1).
// `push imm32` is spelled out in bytes so that the operand is the number, whatever the assembler's syntax.
.balign {STUB_SIZE}
.global sandbox_gate_stubs
sandbox_gate_stubs:
.set sandbox_gate_vector, 0
.rept 256
    .balign {STUB_SIZE}
    .if (sandbox_gate_vector == 8) || ((sandbox_gate_vector >= 10) && (sandbox_gate_vector <= 14)) || (sandbox_gate_vector == 17) || (sandbox_gate_vector == 21) || (sandbox_gate_vector == 29) || (sandbox_gate_vector == 30)
    .else
    push 0
    .endif
    .byte 0x68
    .long sandbox_gate_vector
    .if (sandbox_gate_vector == {NMI}) || (sandbox_gate_vector == {MACHINE_CHECK}) || (sandbox_gate_vector == {DEBUG})
    jmp sandbox_gate_unmaskable
    .elseif sandbox_gate_vector == {PAGE_FAULT}
    jmp sandbox_gate_page_fault
    .else
    jmp sandbox_gate_exit
    .endif
    .set sandbox_gate_vector, sandbox_gate_vector + 1
.endr

.balign 4096
.global sandbox_gate_end
sandbox_gate_end:

// What follows is ordinary text: the first is executed by sandboxes, the second by the host.
.section .text.sandbox_mode, "ax", @progbits

// Where sandboxed code begins: rsi = the function, rdi = its argument, rsp aligned to 16. A return becomes a call of the host
// with number 0. Were control to come back from that, it would do it again.
.balign 16
.global sandbox_gate_launch
sandbox_gate_launch:
    call rsi
1:  xor eax, eax
    int {CALL_VECTOR}
    jmp 1b

// Lets the host's own handler run for vector n: the interrupt shadow of sti covers the int, so nothing comes between, and the
// handler finds interrupts on in the frame, as they were.
.balign 16
.global sandbox_gate_forward
sandbox_gate_forward:
.set sandbox_gate_vector, 0
.rept 256
    sti
    .byte 0xcd, sandbox_gate_vector
    ret
    .set sandbox_gate_vector, sandbox_gate_vector + 1
.endr
.text
