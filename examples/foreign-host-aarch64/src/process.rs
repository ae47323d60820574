//! Processes: programs at EL0, each in a lower half of its own under its own ASID, at the same addresses.
//!
//! A process checks in by a system call over and over, and looks each time whether the kernel left it everything it had. The
//! kernel does on its behalf what it was asked to: in the system call, with the process's tables in force.

use alloc::boxed::Box;
use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::frames::{self, Use};
use crate::layout::{PAGE, direct};
use crate::registers::{Lock, read};
use crate::tables::{PROCESS, Tables};
use crate::threads;
use crate::time::Counter;
use crate::vectors::{Frame, go_to_program};

/// How many there are, and their first ASID.
pub(crate) const COUNT: usize = 2;
const FIRST_ASID: u64 = 0x21;
const ASID_SHIFT: u32 = 48;

/// Where a program's only page is: its code, and from the end its stack.
pub(crate) const PROGRAM: u64 = 0x40_0000;

/// Numbers of system calls, in x8.
const CHECK_IN: u64 = 0x71;
const COMPLAIN: u64 = 0x72;

type Job = Box<dyn FnOnce() + Send>;

struct Process {
    visits: AtomicU64,
    complaint: AtomicU64,
    lower: AtomicU64,
    /// What to do at its next system call.
    job: Lock<Option<Job>>,
    busy: AtomicBool,
}

/// How many system calls the last process has made, for sandboxes to see.
pub(crate) static VISITS: Counter = Counter::new();

static PROCESSES: [Process; COUNT] = [const {
    Process {
        visits: AtomicU64::new(0),
        complaint: AtomicU64::new(0),
        lower: AtomicU64::new(0),
        job: Lock::new(None),
        busy: AtomicBool::new(false),
    }
}; COUNT];

// The program: x0 is a number of its own, which TPIDRRO_EL0 holds too. x19 keeps it, x20 counts calls, x22 is what registers
// are filled with before a call and must hold after it. A call is answered by its argument plus one.
global_asm!(
    ".macro must_be register, value, number",
    "mov x1, #\\number",
    "cmp \\register, \\value",
    "b.ne 9f",
    ".endm",
    ".pushsection .text.program, \"ax\"",
    ".balign 8",
    ".global program_start",
    "program_start:",
    "mov x19, x0",
    "mov x20, #0",
    "mov x21, sp",
    "1:",
    "add x22, x19, x20",
    "msr tpidr_el0, x22",
    "dup v3.2d, x22",
    "dup v10.2d, x22",
    "dup v31.2d, x22",
    "add x28, x22, #28",
    "add x18, x22, #18",
    "add x9, x22, #9",
    "str x22, [sp, #-16]!",
    "mov x0, x20",
    "mov x8, #{check_in}",
    "svc #0x80",
    "add x20, x20, #1",
    "must_be x0, x20, 1",
    "ldr x2, [sp], #16",
    "must_be x2, x22, 2",
    "mrs x2, tpidr_el0",
    "must_be x2, x22, 3",
    "mrs x2, tpidrro_el0",
    "must_be x2, x19, 4",
    "umov x2, v3.d[1]",
    "must_be x2, x22, 5",
    "umov x2, v10.d[1]",
    "must_be x2, x22, 6",
    "umov x2, v31.d[0]",
    "must_be x2, x22, 7",
    "sub x2, x28, #28",
    "must_be x2, x22, 8",
    "sub x2, x18, #18",
    "must_be x2, x22, 9",
    "sub x2, x9, #9",
    "must_be x2, x22, 10",
    "mov x2, sp",
    "must_be x2, x21, 11",
    // Long enough to be interrupted now and then.
    "mov x2, #300",
    "2: subs x2, x2, #1",
    "b.ne 2b",
    "b 1b",
    "9: mov x0, x1",
    "mov x8, #{complain}",
    "svc #0x80",
    "b 9b",
    ".global program_end",
    "program_end:",
    ".popsection",
    ".purgem must_be",
    check_in = const CHECK_IN,
    complain = const COMPLAIN,
);

unsafe extern "C" {
    static program_start: u8;
    static program_end: u8;
}

/// Makes the processes, each a thread of the kernel's.
pub(crate) fn start() {
    for (number, process) in PROCESSES.iter().enumerate() {
        let tables = Tables::of_process().expect("memory for tables");
        let page = frames::allocate(Use::Memory).expect("memory for a program");
        let (code, end) = (&raw const program_start, &raw const program_end);
        // SAFETY: the program's code, copied to a frame of the process's own.
        unsafe {
            direct(page).write_bytes(0, PAGE as usize);
            direct(page).copy_from_nonoverlapping(code, end.offset_from_unsigned(code));
            // Instructions are fetched past the data cache.
            core::arch::asm!("dsb ish", "ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags));
        }
        tables.map(PROGRAM, page, PAGE, PROCESS, PAGE).expect("memory for tables");
        let asid = FIRST_ASID + number as u64;
        process.lower.store(tables.root() | asid << ASID_SHIFT, Ordering::Relaxed);
        threads::spawn(run, number, process.lower.load(Ordering::Relaxed), seed(number));
    }
}

/// A number of a process's own.
fn seed(number: usize) -> u64 {
    0x5eed_0000_0000 + ((number as u64) << 32)
}

/// The body of a process's thread.
extern "C" fn run(number: usize) -> ! {
    let frame = threads::stack_end() - size_of::<Frame>() as u64;
    let frame = core::ptr::with_exposed_provenance_mut::<Frame>(frame as usize);
    // SAFETY: the end of this thread's own stack, which `threads::spawn` left free for it.
    unsafe {
        core::arch::asm!("msr daifset, #0b1111", options(nostack, preserves_flags));
        frame.write(Frame::of_program(PROGRAM, PROGRAM + PAGE, seed(number)));
        go_to_program(frame)
    }
}

/// A process called the kernel: interrupts are masked, its tables are in force.
pub(crate) fn called(frame: &mut Frame) {
    let number = threads::current().and_then(|thread| thread.process).expect("only threads of processes get to EL0");
    let process = &PROCESSES[number];
    assert!(is_in_force(number), "process {number} calls with the tables of another");
    match frame.x[8] {
        CHECK_IN => {
            process.visits.fetch_add(1, Ordering::Relaxed);
            if number + 1 == COUNT {
                VISITS.count();
            }
            // SAFETY: the frame is complete; from here on this is kernel code like any other.
            unsafe { core::arch::asm!("msr daifclr, #0b1111", options(nostack, preserves_flags)) };
            if let Some(job) = process.job.with(Option::take) {
                job();
                process.busy.store(false, Ordering::Release);
            }
            frame.x[0] += 1;
            threads::yield_now();
        }
        COMPLAIN => {
            process.complaint.store(frame.x[0], Ordering::Relaxed);
            threads::yield_now();
        }
        other => panic!("process {number} makes system call {other:#x}"),
    }
}

/// Whether the tables and the ASID of a process are in force.
pub(crate) fn is_in_force(number: usize) -> bool {
    read!("ttbr0_el1") == PROCESSES[number].lower.load(Ordering::Relaxed)
}

/// How many system calls a process has made.
pub(crate) fn visits(number: usize) -> u64 {
    PROCESSES[number].visits.load(Ordering::Relaxed)
}

/// What a process found changed, by the number in its code; 0: nothing.
pub(crate) fn complaint(number: usize) -> u64 {
    PROCESSES[number].complaint.load(Ordering::Relaxed)
}

/// Does `job` in the next system call of a process.
pub(crate) fn ask(number: usize, job: Job) {
    let process = &PROCESSES[number];
    assert!(!process.busy.swap(true, Ordering::Acquire), "process {number} is busy");
    process.job.with(|slot| *slot = Some(job));
}

/// Whether what a process was asked for is still to be done.
pub(crate) fn is_busy(number: usize) -> bool {
    PROCESSES[number].busy.load(Ordering::Acquire)
}

/// Does `job` in the next system call of a process, and returns when it is done.
pub(crate) fn do_in(number: usize, job: Job) {
    ask(number, job);
    while is_busy(number) {
        threads::yield_now();
    }
}
