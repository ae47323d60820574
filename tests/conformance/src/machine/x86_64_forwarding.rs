//! What the kernel's handlers see of an interrupt that arrived in a sandbox: privileged code of the kernel's, interrupted.

use sandbox_mode::{Arch, Backend, Error, Val};
use x86_64::instructions::interrupts;
use x86_64::instructions::tables::{lgdt, sgdt};
use x86_64::structures::DescriptorTablePointer;

use super::x86_64_exceptions::{NMI, Seen, interrupt_stacks, with_inner_observer, with_observer};
use crate::host::{raise_at_entry, raise_vector_at_entry};
use crate::kernel::Line;
use crate::probe::works;
use crate::suite::{Sandbox, Suite, cases};
use crate::verdict::{Outcome, skip};

cases! {
    every_vector_reaches_its_handler_once,
    a_spurious_vector_is_not_special,
    a_handler_may_have_a_stack_of_its_own,
    handlers_nest,
    a_non_maskable_one_sees_interrupts_masked,
    a_replaced_task_state_is_refused,
}

const FIRST_VECTOR: u8 = 32;
/// Two vectors that nothing else has, the second in a higher class of priority.
const LOW: u8 = 0x91;
const HIGH: u8 = 0xa3;
/// Where most kernels have it, and the local APIC after a reset.
const SPURIOUS: u8 = 0xff;

fn add(a: u64) -> u64 {
    a + 1
}

/// Lets `vector` arrive in a call whose result must be right.
fn call_with(sandbox: &mut Sandbox<'_>, vector: u8) -> Outcome {
    raise_vector_at_entry(vector);
    expect_eq!(sandbox.call(add, (Val(u64::from(vector)),))?, u64::from(vector) + 1, "with vector {vector}");
    Ok(())
}

/// The kernel raises what it is asked to, and its own handler leaves nothing in service.
fn can_raise(suite: &Suite) -> Outcome {
    suite.kernel.raise_vector(LOW).or_else(skip)?;
    for _ in 0..100 {
        core::hint::spin_loop();
    }
    Ok(())
}

/// Was called once, for kernel code with interrupts so.
fn check(seen: Seen, vector: u8, interrupts: bool) -> Outcome {
    expect_eq!(seen.count, 1, "calls of the handler of vector {vector}");
    expect!(seen.is_privileged(interrupts), "the frame of vector {vector}: {seen:x?}");
    Ok(())
}

fn every_vector_reaches_its_handler_once(suite: &Suite) -> Outcome {
    can_raise(suite)?;
    let mut sandbox = suite.sandbox()?;
    works(&mut sandbox)?;
    for vector in FIRST_VECTOR..SPURIOUS {
        let mut outcome = Ok(());
        with_observer(vector, None, |slot| {
            outcome = call_with(&mut sandbox, vector);
            if outcome.is_ok() {
                // A device of the kernel's own may have had the same vector meanwhile.
                let seen = Seen { count: slot.seen().count.min(1), ..slot.seen() };
                outcome = check(seen, vector, true);
            }
        });
        outcome?;
    }
    works(&mut sandbox)
}

fn a_spurious_vector_is_not_special(suite: &Suite) -> Outcome {
    can_raise(suite)?;
    let mut sandbox = suite.sandbox()?;
    let mut outcome = Ok(());
    with_observer(SPURIOUS, None, |slot| {
        outcome = call_with(&mut sandbox, SPURIOUS).and_then(|()| check(slot.seen(), SPURIOUS, true));
        suite.kernel.end_vector(SPURIOUS);
    });
    outcome?;
    // Of the lowest priority: arrives only if no other is in service any more.
    let mut outcome = Ok(());
    with_observer(FIRST_VECTOR, None, |slot| {
        outcome = call_with(&mut sandbox, FIRST_VECTOR).and_then(|()| check(slot.seen(), FIRST_VECTOR, true));
    });
    outcome
}

fn a_handler_may_have_a_stack_of_its_own(suite: &Suite) -> Outcome {
    can_raise(suite)?;
    let mut sandbox = suite.sandbox()?;
    let taken = suite.kernel.cpu_config().free_stacks;
    let own = (1..=7u8).filter(|entry| !taken.contains(entry));
    let Some((entry, top)) = own.map(|e| (e, interrupt_stacks()[usize::from(e) - 1])).find(|&(_, top)| top != 0) else {
        return skip("the kernel has no interrupt stack of its own");
    };
    let mut outcome = Ok(());
    with_observer(LOW, Some(entry), |slot| {
        outcome = call_with(&mut sandbox, LOW).and_then(|()| check(slot.seen(), LOW, true));
        let stack = slot.seen().stack;
        if outcome.is_ok() && !(top - 0x200..top).contains(&stack) {
            outcome = skip_or_fail(stack, top);
        }
    });
    outcome?;
    works(&mut sandbox)
}

fn skip_or_fail(stack: u64, top: u64) -> Outcome {
    fail!("the frame is at {stack:#x}, the stack ends at {top:#x}")
}

fn handlers_nest(suite: &Suite) -> Outcome {
    can_raise(suite)?;
    let mut sandbox = suite.sandbox()?;
    let mut outcome = Ok(());
    // Another one arrives in the middle of the first one's handler, which lets it in.
    let mut inner = || {
        let _ = suite.kernel.raise_vector(HIGH);
        interrupts::enable();
        for _ in 0..100 {
            core::hint::spin_loop();
        }
        interrupts::disable();
    };
    with_observer(LOW, None, |outer| {
        with_inner_observer(HIGH, outer, &mut inner, |slot| {
            outcome = call_with(&mut sandbox, LOW)
                .and_then(|()| check(outer.seen(), LOW, true))
                .and_then(|()| check(slot.seen(), HIGH, true));
            let (outer, inner) = (outer.seen().stack, slot.seen().stack);
            if outcome.is_ok() && !(outer - 0x4000..outer).contains(&inner) {
                outcome = skip_or_fail(inner, outer);
            }
        });
    });
    outcome?;
    works(&mut sandbox)
}

fn a_non_maskable_one_sees_interrupts_masked(suite: &Suite) -> Outcome {
    suite.kernel.raise(Line::NonMaskable).or_else(skip)?;
    let mut sandbox = suite.sandbox()?;
    let mut outcome = Ok(());
    with_observer(NMI, None, |slot| {
        raise_at_entry(Line::NonMaskable, 1);
        outcome = works(&mut sandbox).and_then(|()| check(slot.seen(), NMI, false));
    });
    outcome
}

/// Type 9: a task state that nobody has loaded.
const AVAILABLE: u64 = 0x9 << 40;
const TYPE: u64 = 0xf << 40;

/// Loads the same task state under another selector, at the end of the descriptor table, which the table then has room for.
fn a_replaced_task_state_is_refused(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    works(&mut sandbox)?;
    let state = Backend::mask_interrupts();
    let before = sgdt();
    let table: *mut u64 = core::ptr::with_exposed_provenance_mut(before.base.as_u64() as usize);
    let end = (usize::from(before.limit) + 1) / size_of::<u64>();
    let longer = DescriptorTablePointer { limit: before.limit + 16, base: before.base };
    let selector: u16;
    // SAFETY: the table is the HAL's and a page long; a longer one has the same entries. Each descriptor loaded is the one in use,
    // made available first.
    let outcome = unsafe {
        core::arch::asm!("str {:x}", out(reg) selector, options(nomem, nostack, preserves_flags));
        let own = table.add(usize::from(selector) / size_of::<u64>());
        table.add(end).write_volatile(own.read_volatile() & !TYPE | AVAILABLE);
        table.add(end + 1).write_volatile(own.add(1).read_volatile());
        lgdt(&longer);
        core::arch::asm!("ltr {:x}", in(reg) (end * size_of::<u64>()) as u16, options(nostack, preserves_flags));
        let outcome = sandbox.call(add, (Val(1u64),));
        own.write_volatile(own.read_volatile() & !TYPE | AVAILABLE);
        core::arch::asm!("ltr {:x}", in(reg) selector, options(nostack, preserves_flags));
        lgdt(&before);
        table.add(end).write_volatile(0);
        table.add(end + 1).write_volatile(0);
        outcome
    };
    // SAFETY: (1) from `mask_interrupts` above, in this thread.
    unsafe { Backend::restore_interrupts(state) };
    match outcome {
        Err(sandbox_mode::CallError::Setup(Error::TaskStateReplaced)) => {}
        other => fail!("with another task state: {other:x?}"),
    }
    works(&mut sandbox)
}
