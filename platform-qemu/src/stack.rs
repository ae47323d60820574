//! Stacks for threads and CPUs, with an unmapped page below each.
//!
//! Stacks that are given back are kept for the next taker and never unmapped, so no CPU has to forget a
//! translation.

use core::mem;

use alloc::vec::Vec;

use crate::{
    layout::{PAGE_SIZE, STACKS},
    lock::MaskedLock,
    memory,
    paging::{self, Access},
};

/// Size of a stack.
pub const STACK_SIZE: u64 = 128 << 10;

struct Pool {
    /// The tops of stacks that nobody uses.
    free: Vec<u64>,
    /// Where the next new stack starts, its guard page first.
    next: u64,
    /// Pages of it are mapped up to here, by an attempt that ran out of memory.
    mapped: u64,
}

static POOL: MaskedLock<Pool> =
    MaskedLock::new(Pool { free: Vec::new(), next: STACKS.start, mapped: STACKS.start + PAGE_SIZE });

impl Pool {
    fn grow(&mut self) -> Option<u64> {
        let top = self.next + PAGE_SIZE + STACK_SIZE;
        if top > STACKS.end {
            return None;
        }
        while self.mapped < top {
            let frame = memory::allocate_frame()?;
            // SAFETY: the page is this pool's and fresh; the frame goes with it.
            let mapped = unsafe { paging::map(self.mapped, frame, Access::ReadWrite) };
            if mapped.is_none() {
                memory::free_frame(frame);
                return None;
            }
            self.mapped += PAGE_SIZE;
        }
        self.next = top;
        self.mapped = top + PAGE_SIZE;
        // Room for it to come back, so that giving back never allocates.
        self.free.reserve(((top - STACKS.start) / (PAGE_SIZE + STACK_SIZE)) as usize);
        Some(top)
    }
}

/// A stack.
#[derive(Debug)]
pub(crate) struct Stack {
    top: u64,
}

impl Stack {
    /// Takes one. `None` if there is no memory, or no room for more.
    pub(crate) fn new() -> Option<Self> {
        POOL.with(|pool| pool.free.pop().or_else(|| pool.grow())).map(|top| Self { top })
    }

    /// Where it ends: the first push goes below.
    pub(crate) fn top(&self) -> u64 {
        self.top
    }

    /// Keeps it for good; returns its top.
    pub(crate) fn leak(self) -> u64 {
        let top = self.top;
        mem::forget(self);
        top
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        POOL.with(|pool| pool.free.push(self.top));
    }
}
