//! Words that threads, handlers and sandboxes share: a page of their own, which sandboxes may write.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

use sandbox_mode::{Page, PageRange, Permissions, VirtAddr};

use crate::suite::{Patience, Sandbox};
use crate::verdict::Outcome;

const COUNT: usize = 512;

/// Set by a sandbox that has begun.
pub(crate) const INSIDE: usize = 0;
/// Set to make it return.
pub(crate) const STOP: usize = 1;
/// Counted up by whoever takes part in something.
pub(crate) const MEETING: usize = 2;
/// Free for each case.
pub(crate) const FREE: usize = 8;

/// The page.
#[repr(C, align(4096))]
pub(crate) struct Words([AtomicU64; COUNT]);

impl Words {
    /// A new page of zeroes, kept for good: a sandbox or a thread of a case that fails may outlive the case.
    pub(crate) fn new() -> &'static Words {
        Box::leak(Box::new(Words([const { AtomicU64::new(0) }; COUNT])))
    }

    pub(crate) fn address(&self) -> u64 {
        (&raw const *self).expose_provenance() as u64
    }

    pub(crate) fn page(&self) -> Page {
        VirtAddr(self.address()).page()
    }

    pub(crate) fn get(&self, index: usize) -> u64 {
        self.0[index].load(Ordering::SeqCst)
    }

    pub(crate) fn set(&self, index: usize, value: u64) {
        self.0[index].store(value, Ordering::SeqCst);
    }

    pub(crate) fn count(&self, index: usize) -> u64 {
        self.0[index].fetch_add(1, Ordering::SeqCst)
    }

    /// Waits until the word is at least `value`.
    pub(crate) fn wait_for(&self, index: usize, value: u64) -> Outcome {
        let patience = Patience::new();
        while self.get(index) < value {
            patience.check()?;
            core::hint::spin_loop();
        }
        Ok(())
    }

    /// Lets a sandbox read the page, and write it if `permissions` say so.
    pub(crate) fn grant(&'static self, sandbox: &mut Sandbox<'_>, permissions: Permissions) -> Outcome {
        // SAFETY: (1) the page is kept for good and holds nothing else; (2) its words are atomic, and any value is fine.
        unsafe { sandbox.grant_range(PageRange::single(self.page()), permissions)? };
        Ok(())
    }
}
