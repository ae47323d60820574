//! What this kernel keeps in registers is there again after a call, whatever became of the call.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use sandbox_mode::{CallError, Config, ExitReason, In, Out, Preemption, Sandbox, Val};

use super::{Bench, Outcome, checks, fail, must_be};
use crate::host::Foreign;
use crate::registers::{read, write};
use crate::{threads, vectors};

checks! {
    pointers_of_threads_and_the_cpu_are_kept
    interrupts_find_the_current_thread
    the_kernels_own_exceptions_are_its_own
    floating_point_control_is_kept
    vector_registers_are_kept
    sandboxes_compute_by_rules_of_their_own
}

/// Registers that hold pointers, roots or controls of this kernel's.
fn registers() -> [(&'static str, u64); 12] {
    [
        ("SP_EL0", read!("sp_el0")),
        ("TPIDR_EL0", read!("tpidr_el0")),
        ("TPIDRRO_EL0", read!("tpidrro_el0")),
        ("TPIDR_EL1", read!("tpidr_el1")),
        ("TTBR0_EL1", read!("ttbr0_el1")),
        ("TTBR1_EL1", read!("ttbr1_el1")),
        ("VBAR_EL1", read!("vbar_el1")),
        ("SCTLR_EL1", read!("sctlr_el1")),
        ("TCR_EL1", read!("tcr_el1")),
        ("CPACR_EL1", read!("cpacr_el1")),
        ("CNTKCTL_EL1", read!("cntkctl_el1")),
        ("DAIF", read!("daif")),
    ]
}

/// Calls that return, fault, do what they may not, and never end; `after` is called after each.
fn calls(bench: &'static Bench, after: &mut dyn FnMut(&str) -> Outcome) -> Outcome {
    let mut sandbox: Sandbox<'_, Foreign> = bench.hal.sandbox()?;
    for round in 0..20u64 {
        must_be!(sandbox.call(|number: u64| number + 1, (Val(round),))?, round + 1);
        after("a return")?;
        let Err(CallError::Exit(exit)) = sandbox.call(jump, (Val(0u64),)) else { fail!("returned from nowhere") };
        let ExitReason::MemoryFault(_) = exit.reason else { fail!("{exit}") };
        after("a fault")?;
        let Err(CallError::Exit(exit)) = sandbox
            .call(|| change as extern "C" fn() -> u64 as usize as u64, ())
            .and_then(|at| sandbox.call(jump, (Val(at),)))
        else {
            fail!("system registers were written")
        };
        must_be!(exit.reason, ExitReason::PrivilegedInstruction);
        after("a privileged instruction")?;
    }
    sandbox.limit_time(Some(Duration::from_millis(5)))?;
    let Err(CallError::Exit(exit)) = sandbox.call(endless, ()) else { fail!("came to an end") };
    must_be!(exit.reason, ExitReason::Preempted(Preemption::Deadline));
    after("a deadline")
}

fn jump(address: u64) -> u64 {
    // SAFETY: none: the CPU decides.
    unsafe { core::mem::transmute::<usize, extern "C" fn() -> u64>(address as usize)() }
}

fn endless() -> u64 {
    loop {
        core::hint::spin_loop();
    }
}

/// Writes what EL0 may, and then what it may not.
#[unsafe(naked)]
extern "C" fn change() -> u64 {
    naked_asm!("mov x0, #-0x5e", "msr tpidr_el0, x0", "mov sp, x0", "msr tpidr_el1, x0", "ret")
}

fn pointers_of_threads_and_the_cpu_are_kept(bench: &'static Bench) -> Outcome {
    // SAFETY: no thread of the kernel's own uses it.
    unsafe { write!("tpidr_el0", 0x1234_5678_9abc) };
    let before = registers();
    calls(bench, &mut |what| {
        for (before, after) in before.iter().zip(registers()) {
            if *before != after {
                fail!("after {what}, {before:x?} is {:x}", after.1);
            }
        }
        match threads::current() {
            Some(_) => Ok(()),
            None => fail!("after {what}, the current thread is lost"),
        }
    })
}

fn interrupts_find_the_current_thread(bench: &'static Bench) -> Outcome {
    let strange = threads::strange_pointers();
    for _ in 0..20 {
        calls(bench, &mut |_| Ok(()))?;
    }
    must_be!(threads::strange_pointers(), strange);
    Ok(())
}

fn the_kernels_own_exceptions_are_its_own(bench: &'static Bench) -> Outcome {
    static FIXED: AtomicU64 = AtomicU64::new(0);
    const INSTRUCTION: u64 = 4;
    let undefined = || {
        let after: u64;
        // SAFETY: no instruction; the kernel's handler goes on behind it.
        unsafe { core::arch::asm!("adr {0}, 2f", "udf #7", "2:", out(reg) after, options(nostack)) };
        after
    };
    vectors::set_fixup(|pc| {
        FIXED.store(pc, Ordering::Relaxed);
        Some(pc + INSTRUCTION)
    });
    calls(bench, &mut |_| {
        FIXED.store(0, Ordering::Relaxed);
        let after = undefined();
        must_be!(FIXED.load(Ordering::Relaxed) + INSTRUCTION, after);
        Ok(())
    })
}

fn floating_point_control_is_kept(bench: &'static Bench) -> Outcome {
    /// FPCR: rounding towards zero, flushing to zero. FPSR: inexact, and saturation.
    const FPCR: u64 = 0b11 << 22 | 1 << 24;
    const FPSR: u64 = 1 << 4 | 1 << 27;
    let before = (read!("fpcr"), read!("fpsr"));
    // SAFETY: nothing is computed meanwhile.
    unsafe {
        write!("fpcr", FPCR);
        write!("fpsr", FPSR);
    }
    let outcome = calls(bench, &mut |what| {
        let found = (read!("fpcr"), read!("fpsr"));
        if found == (FPCR, FPSR) { Ok(()) } else { fail!("after {what}, FPCR and FPSR are {found:x?}") }
    });
    // SAFETY: as they were.
    unsafe {
        write!("fpcr", before.0);
        write!("fpsr", before.1);
    }
    outcome
}

/// Fills d8 to d15, which functions must keep, calls `work(context)`, and returns how many changed.
///
/// # Safety
///
/// 1. `context` is what `work` takes.
#[unsafe(naked)]
unsafe extern "C" fn with_vectors(work: unsafe extern "C" fn(*mut ()), context: *mut ()) -> u64 {
    naked_asm!(
        "stp x19, x30, [sp, #-80]!",
        "stp d8, d9, [sp, #16]",
        "stp d10, d11, [sp, #32]",
        "stp d12, d13, [sp, #48]",
        "stp d14, d15, [sp, #64]",
        "mov x9, x0",
        "mov x0, x1",
        "mov x19, #0x5ec2",
        ".irp n, 8, 9, 10, 11, 12, 13, 14, 15",
        "add x10, x19, #\\n",
        "fmov d\\n, x10",
        ".endr",
        "blr x9",
        "mov x0, #0",
        ".irp n, 8, 9, 10, 11, 12, 13, 14, 15",
        "add x10, x19, #\\n",
        "fmov x9, d\\n",
        "cmp x9, x10",
        "cinc x0, x0, ne",
        ".endr",
        "ldp d8, d9, [sp, #16]",
        "ldp d10, d11, [sp, #32]",
        "ldp d12, d13, [sp, #48]",
        "ldp d14, d15, [sp, #64]",
        "ldp x19, x30, [sp], #80",
        "ret",
    )
}

fn vector_registers_are_kept(bench: &'static Bench) -> Outcome {
    struct Work(&'static Bench, Outcome);
    unsafe extern "C" fn call(work: *mut ()) {
        // SAFETY: the pointer below.
        let work = unsafe { &mut *work.cast::<Work>() };
        work.1 = calls(work.0, &mut |_| Ok(()));
    }
    let mut work = Work(bench, Ok(()));
    // SAFETY: (1) such a pointer.
    let changed = unsafe { with_vectors(call, (&raw mut work).cast()) };
    must_be!(changed, 0);
    work.1
}

/// Divides, in vectors where the compiler likes to.
fn divide(numbers: &[f64; 8], by: f64, into: &mut [f64; 8]) -> f64 {
    for (number, result) in numbers.iter().zip(into.iter_mut()) {
        *result = number / by;
    }
    into.iter().sum()
}

/// The same as `divide` computes it here and now.
fn divided(numbers: &[f64; 8], by: f64) -> ([u64; 8], u64) {
    let mut into = [0.0; 8];
    let sum = divide(core::hint::black_box(numbers), core::hint::black_box(by), &mut into);
    (into.map(f64::to_bits), sum.to_bits())
}

fn sandboxes_compute_by_rules_of_their_own(bench: &'static Bench) -> Outcome {
    /// FPCR: rounding up.
    const UP: u64 = 0b01 << 22;
    let numbers = [1.0, 2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0];
    let by = 3.0f64;
    let (nearest, sum) = divided(&numbers, by);
    let mut sandbox = bench.hal.sandbox_with(Config::default().vectors(true))?;
    let before = read!("fpcr");
    // SAFETY: for the computations below.
    unsafe { write!("fpcr", UP) };
    let (up, _) = divided(&numbers, by);
    let mut into = [0.0; 8];
    let result = sandbox.call(divide, (In(&numbers), Val(by), Out(&mut into)));
    let (still_up, _) = divided(&numbers, by);
    // SAFETY: as it was.
    unsafe { write!("fpcr", before) };
    must_be!((into.map(f64::to_bits), result?.to_bits()), (nearest, sum));
    must_be!(still_up, up);
    if up == nearest {
        fail!("this kernel's own rules make no difference");
    }
    Ok(())
}
