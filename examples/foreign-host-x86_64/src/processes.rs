//! Two processes, and threads of the kernel's to run them.
//!
//! Each process has a root, a kernel stack and a thread base (GS) of its own; both have their pages at the same addresses. The program
//! sums the words of its data page, asks the kernel to do the same, tells it whether that came out alike, changes a word, and begins
//! again. Thread 0 is the kernel's own; it may run on any of the roots ([`use_root`]). Threads take turns when they say so
//! ([`run_each`]), or by the tick ([`set_preemptive`]).

use alloc::boxed::Box;
use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use x86_64::VirtAddr;
use x86_64::instructions::interrupts;
use x86_64::registers::model_specific::{FsBase, KernelGsBase};
use x86_64::registers::segmentation::{DS, ES, FS, Segment, SegmentSelector};

use crate::cpu::{self, Cpu};
use crate::descriptors::{self, USER_CODE, USER_DATA};
use crate::memory::{self, FRAME, State};
use crate::paging::{self, PROCESS};

/// Where each process has its code, its data, and a page that it doesn't use.
const CODE: u64 = PROCESS;
/// As above.
pub(crate) const DATA: u64 = PROCESS + FRAME;
/// As above; it may be read, written and executed.
pub(crate) const SCRATCH: u64 = PROCESS + 2 * FRAME;

/// System calls: the sum of so many bytes, in words; what became of a round.
const SUM: u64 = 1;
const REPORT: u64 = 2;

/// How many there are.
pub(crate) const COUNT: usize = 2;
const THREADS: usize = COUNT + 1;
const STACK: usize = 128 << 10;

struct Thread {
    stack_pointer: u64,
    stack: u64,
    /// What the task state names while it runs: its stack, but see [`use_root`].
    interrupt_stack: u64,
    root: u64,
    bases: [VirtAddr; 2],
    selectors: [SegmentSelector; 3],
}

struct Threads(UnsafeCell<[Thread; THREADS]>);

// SAFETY: there is one CPU, and it uses them with interrupts masked.
unsafe impl Sync for Threads {}

static LIST: Threads = Threads(UnsafeCell::new(
    [const {
        Thread {
            stack_pointer: 0,
            stack: 0,
            interrupt_stack: 0,
            root: 0,
            bases: [VirtAddr::zero(); 2],
            selectors: [SegmentSelector(0); 3],
        }
    }; THREADS],
));
static CURRENT: AtomicUsize = AtomicUsize::new(0);
static PREEMPTIVE: AtomicBool = AtomicBool::new(false);

/// The rounds of each process, and what went wrong in any.
static ROUNDS: [AtomicU64; COUNT] = [const { AtomicU64::new(0) }; COUNT];
static WRONG: AtomicU64 = AtomicU64::new(0);

/// How the kernel sums: address and bytes.
pub(crate) type Sum = fn(u64, u64) -> u64;
static HOW_TO_SUM: AtomicPtr<()> = AtomicPtr::new(sum_directly as *mut ());

#[repr(C, align(4096))]
struct Page([u8; FRAME as usize]);

/// The program. It relies on rbx, rbp and r12 to r15 being kept by system calls.
#[unsafe(naked)]
extern "C" fn program() {
    naked_asm!(
        ".balign 16",
        "xor r14d, r14d",
        "2:",
        "movabs rbx, {data}",
        "mov ecx, {words}",
        "xor ebp, ebp",
        "3: add rbp, [rbx + 8 * rcx - 8]",
        "dec ecx",
        "jnz 3b",
        "mov eax, {sum}",
        "mov rdi, rbx",
        "mov esi, 8 * {words}",
        "syscall",
        "sub rbp, rax",
        "inc r14",
        "mov eax, {report}",
        "mov rdi, rbp",
        "mov rsi, gs:[0]",
        "mov rdx, r14",
        "syscall",
        "add [rbx + 8], r14",
        "jmp 2b",
        ".balign 16",
        data = const DATA,
        words = const FRAME / 8,
        sum = const SUM,
        report = const REPORT,
    )
}

const PROGRAM_SIZE: usize = 128;

/// The first instructions of a process's thread, with interrupts masked: to ring 3.
#[unsafe(naked)]
extern "C" fn begin() {
    naked_asm!(
        "call {enter}",
        "push {data}",
        "push 0",
        "push {flags}",
        "push {code}",
        "movabs rax, {start}",
        "push rax",
        "xor eax, eax",
        "xor ecx, ecx",
        "xor edx, edx",
        "xor esi, esi",
        "xor edi, edi",
        "xor r8d, r8d",
        "xor r9d, r9d",
        "xor r10d, r10d",
        "xor r11d, r11d",
        "swapgs",
        "iretq",
        enter = sym descriptors::enter_process,
        data = const USER_DATA,
        code = const USER_CODE,
        flags = const 0x202,
        start = const CODE,
    )
}

/// SYSCALL leads here, with interrupts masked, rip in rcx, flags in r11, the process's stack and GS base.
#[unsafe(naked)]
pub(crate) extern "C" fn system_call_entry() {
    naked_asm!(
        "swapgs",
        "mov gs:[{user_stack}], rsp",
        "mov rsp, gs:[{kernel_stack}]",
        "push qword ptr gs:[{user_stack}]",
        "push rcx",
        "push r11",
        "sub rsp, 8",
        "mov rcx, rax",
        "call {system_call}",
        "add rsp, 8",
        "pop r11",
        "pop rcx",
        "xor edx, edx",
        "xor esi, esi",
        "xor edi, edi",
        "xor r8d, r8d",
        "xor r9d, r9d",
        "xor r10d, r10d",
        "pop rsp",
        "swapgs",
        "sysretq",
        user_stack = const offset_of!(Cpu, user_stack),
        kernel_stack = const offset_of!(Cpu, kernel_stack),
        system_call = sym system_call,
    )
}

/// SYSENTER leads here. No process uses it.
#[unsafe(naked)]
pub(crate) extern "C" fn old_system_call_entry() {
    naked_asm!("ud2")
}

extern "C" fn system_call(first: u64, second: u64, third: u64, number: u64) -> u64 {
    descriptors::leave_process();
    interrupts::enable();
    let result = match number {
        SUM => {
            // SAFETY: only such functions are put there.
            let sum = unsafe { core::mem::transmute::<*mut (), Sum>(HOW_TO_SUM.load(Ordering::Relaxed)) };
            sum(first, second)
        }
        REPORT => {
            report(first, second, third);
            0
        }
        _ => u64::MAX,
    };
    interrupts::disable();
    descriptors::enter_process();
    result
}

fn report(difference: u64, itself: u64, round: u64) {
    let process = current() - 1;
    let previous = ROUNDS[process].fetch_add(1, Ordering::Relaxed);
    if difference != 0 || itself != process as u64 || round != previous + 1 {
        cpu::count(&WRONG);
    }
    switch_to(if PREEMPTIVE.load(Ordering::Relaxed) { (current() + 1) % THREADS } else { 0 });
}

/// Sums words of the process's whose root is in force.
pub(crate) fn sum_directly(address: u64, bytes: u64) -> u64 {
    assert!(address == DATA && bytes == FRAME, "the program asks for nothing else");
    let words = core::ptr::with_exposed_provenance::<[u64; (FRAME / 8) as usize]>(address as usize);
    // SAFETY: the process's data page is mapped, and the process isn't running.
    unsafe { (*words).iter().fold(0, |sum, word| sum.wrapping_add(*word)) }
}

/// Sums like this from now on.
pub(crate) fn set_sum(how: Sum) {
    HOW_TO_SUM.store(how as *mut (), Ordering::Relaxed);
}

/// A frame with these contents.
fn frame_of(fill: impl FnOnce(&mut Page)) -> u64 {
    let frame = memory::allocate(State::Used).expect("RAM for a process");
    // SAFETY: the frame is ours and the direct map has it; any contents are a page.
    let page = unsafe { &mut *paging::direct(frame).cast::<Page>() };
    page.0.fill(0);
    fill(page);
    frame
}

/// Makes the processes. They begin with [`run_each`].
pub(crate) fn init() {
    // SAFETY: nobody else uses the list yet.
    let threads = unsafe { &mut *LIST.0.get() };
    let stack = || Box::leak(Box::new([0u128; STACK / 16]));
    for (thread, number) in threads.iter_mut().zip(0u64..) {
        let stack = stack().as_mut_ptr_range().end;
        thread.stack = stack.addr() as u64;
        thread.interrupt_stack = thread.stack;
        thread.root = paging::root();
        thread.selectors = [DS::get_reg(), ES::get_reg(), FS::get_reg()];
        let Some(process) = number.checked_sub(1) else { continue };
        thread.root = paging::make_root();
        let program = frame_of(|page| {
            // SAFETY: the program's instructions, and a few of what is behind them.
            let code = unsafe { &*(program as *const ()).cast::<[u8; PROGRAM_SIZE]>() };
            page.0[..PROGRAM_SIZE].copy_from_slice(code);
        });
        let data = frame_of(|page| {
            for (index, byte) in page.0.iter_mut().enumerate().skip(8) {
                *byte = (index as u8).wrapping_mul(7 + 4 * process as u8);
            }
            page.0[..8].copy_from_slice(&process.to_le_bytes());
        });
        paging::map_process(thread.root, CODE, program, false, true);
        paging::map_process(thread.root, DATA, data, true, false);
        paging::map_process(thread.root, SCRATCH, frame_of(|_| {}), true, true);
        thread.bases = [VirtAddr::zero(), VirtAddr::new(DATA)];
        // Six registers of no value, and where to begin.
        // SAFETY: the stack's own words.
        unsafe { stack.cast::<u64>().sub(1).write(begin as *const () as u64) };
        thread.stack_pointer = thread.stack - 7 * 8;
    }
    descriptors::set_interrupt_stack(threads[0].stack);
    cpu::set_kernel_stack(threads[0].stack);
}

/// Keeps the callee-saved registers on the stack, stores its pointer at the first argument, and goes on on the second one.
///
/// # Safety
///
/// 1. The second is what such a call stored, or a new thread's.
#[unsafe(naked)]
unsafe extern "C" fn swap_stacks(from: *mut u64, to: u64) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

fn current() -> usize {
    CURRENT.load(Ordering::Relaxed)
}

/// Lets thread `next` run, until it or the tick lets this one run again.
fn switch_to(next: usize) {
    interrupts::without_interrupts(|| {
        let previous = CURRENT.swap(next, Ordering::Relaxed);
        if previous == next {
            return;
        }
        let list = LIST.0.get().cast::<Thread>();
        // SAFETY: interrupts are masked. The root has the kernel and the thread's own; the selectors are of the kernel's table or null,
        // the bases were read from these registers or are a process's; `swap_stacks` (1): every other thread left through here, or is
        // new.
        unsafe {
            let (from, to) = (list.add(previous), list.add(next));
            (*from).bases = [FsBase::read(), KernelGsBase::read()];
            (*from).selectors = [DS::get_reg(), ES::get_reg(), FS::get_reg()];
            paging::activate((*to).root);
            descriptors::set_interrupt_stack((*to).interrupt_stack);
            cpu::set_kernel_stack((*to).stack);
            DS::set_reg((*to).selectors[0]);
            ES::set_reg((*to).selectors[1]);
            FS::set_reg((*to).selectors[2]);
            FsBase::write((*to).bases[0]);
            KernelGsBase::write((*to).bases[1]);
            swap_stacks(&raw mut (*from).stack_pointer, (*to).stack_pointer);
        }
    });
}

/// The tick's handler calls this last.
pub(crate) fn tick() {
    if PREEMPTIVE.load(Ordering::Relaxed) {
        switch_to((current() + 1) % THREADS);
    }
}

/// Whether the tick switches threads.
pub(crate) fn set_preemptive(on: bool) {
    PREEMPTIVE.store(on, Ordering::Relaxed);
}

/// Lets each process do a round. Called by thread 0.
pub(crate) fn run_each() {
    (1..THREADS).for_each(switch_to);
}

/// Lets thread 0 go on on the kernel's root (0) or that of a process, with another stack for interrupts of ring 3.
pub(crate) fn use_root(number: usize) {
    interrupts::without_interrupts(|| {
        let list = LIST.0.get().cast::<Thread>();
        // SAFETY: interrupts are masked; the root has all of the kernel, and what it has of a process's nobody uses.
        unsafe {
            let root = if number == 0 { paging::root() } else { (*list.add(number)).root };
            (*list).root = root;
            paging::activate(root);
            (*list).interrupt_stack = (*list.add(number)).stack;
            descriptors::set_interrupt_stack((*list).interrupt_stack);
        }
    });
}

/// Whether `address` is on the kernel stack of the thread that runs.
pub(crate) fn is_on_stack(address: u64) -> bool {
    // SAFETY: this word doesn't change.
    let top = unsafe { (*LIST.0.get().cast::<Thread>().add(current())).stack };
    (top - STACK as u64..top).contains(&address)
}

/// Whether a process's code is at `address`.
pub(crate) fn is_code(address: u64) -> bool {
    (CODE..CODE + FRAME).contains(&address)
}

/// Which process's thread runs: 0 for the first.
pub(crate) fn running() -> Option<usize> {
    current().checked_sub(1)
}

/// The rounds that each has done.
pub(crate) fn rounds() -> [u64; COUNT] {
    ROUNDS.each_ref().map(|rounds| rounds.load(Ordering::Relaxed))
}

/// How many rounds came out wrong.
pub(crate) fn wrong() -> u64 {
    WRONG.load(Ordering::Relaxed)
}
