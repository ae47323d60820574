//! Where a sandbox's own memory lies: its stack at the beginning of the window, its buffers behind it.
//!
//! ```text
//! window  guard | stack ... block | guard | buffer | guard | buffer | guard | ...
//! ```
//!
//! What must hold: the page before and the page after each region are never mapped. Buffers stay mapped from
//! call to call and are replaced when a call needs a larger one; when the window is used up that way, all are laid out
//! anew.

use crate::addr::{PAGE_SIZE, Page, PageRange, VirtAddr};
use crate::arch::Arch;
use crate::argument::MAX_ARGUMENTS;
use crate::error::Error;
use crate::exit::FaultKind;
use crate::hal::Hal;
use crate::host::Host;
use crate::view::View;

/// Where in its pages a buffer lies whose length is not a multiple of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Placement {
    /// At the end, so that the first byte past it is in the guard page.
    #[default]
    End,
    /// At the start, so that the last byte before it is in the guard page.
    Start,
}

/// The regions of one sandbox's window.
pub(crate) struct Window {
    range: PageRange,
    placement: Placement,
    stack: PageRange,
    buffers: [PageRange; MAX_ARGUMENTS],
    /// First page number that no region has used yet; the page before it is a guard.
    next: u64,
}

/// Guards before, between and behind.
const GUARD: u64 = 1;

impl Window {
    /// Lays the stack out. Nothing is mapped yet.
    pub(crate) fn new(range: PageRange, stack_pages: u64, placement: Placement) -> Result<Window, Error> {
        if stack_pages == 0 {
            return Err(Error::NoStack);
        }
        let needed = stack_pages.saturating_add(2 * GUARD);
        if needed > range.count() {
            return Err(Error::WindowFull { needed, available: range.count() });
        }
        let stack = range.skip(GUARD).take(stack_pages);
        let none = range.take(0);
        Ok(Window { range, placement, stack, buffers: [none; MAX_ARGUMENTS], next: stack.end_number() + GUARD })
    }

    pub(crate) fn stack(&self) -> PageRange {
        self.stack
    }

    /// Makes sure that buffer `index` has at least `len` bytes. Its contents are zero or what an earlier call left.
    /// [`Error::WindowFull`] can be cured by [`clear`](Window::clear).
    pub(crate) fn reserve<H: Host, A: Arch>(
        &mut self,
        hal: &Hal<H, A>,
        view: &mut View<A::Format>,
        index: usize,
        len: usize,
    ) -> Result<(), Error> {
        let pages = len.div_ceil(PAGE_SIZE) as u64;
        if self.buffers[index].count() >= pages {
            return Ok(());
        }
        let behind = self.range.end_number() - self.next;
        if pages + GUARD > behind {
            return Err(Error::WindowFull { needed: pages + GUARD, available: behind });
        }
        let old = core::mem::replace(&mut self.buffers[index], self.range.take(0));
        view.unmap_private(hal, old);
        let new = self.range.skip(self.next - self.range.start().number()).take(pages);
        view.map_private(hal, new)?;
        self.next = new.end_number() + GUARD;
        self.buffers[index] = new;
        Ok(())
    }

    /// Unmaps all buffers, so that the window behind the stack is free again.
    pub(crate) fn clear<H: Host, A: Arch>(&mut self, hal: &Hal<H, A>, view: &mut View<A::Format>) {
        for buffer in &mut self.buffers {
            let old = core::mem::replace(buffer, self.range.take(0));
            view.unmap_private(hal, old);
        }
        self.next = self.stack.end_number() + GUARD;
    }

    /// Where `len` bytes lie in buffer `index`, which is large enough. Aligned to a page at one end; a value's length is a
    /// multiple of its alignment, so it is aligned either way.
    pub(crate) fn place(&self, index: usize, len: usize) -> VirtAddr {
        let buffer = self.buffers[index];
        let start = buffer.start().start().0;
        match self.placement {
            // Nothing is accessed through the address of no bytes, but it must be aligned and not null; this is a guard page or
            // the window's start.
            _ if len == 0 => VirtAddr(start),
            Placement::Start => VirtAddr(start),
            Placement::End => VirtAddr(start + buffer.bytes() - len as u64),
        }
    }

    /// Why an access at `address`, where nothing is mapped, failed.
    pub(crate) fn classify(&self, address: VirtAddr) -> FaultKind {
        let page = address.page();
        if !self.range.contains(page) {
            return FaultKind::Unmapped;
        }
        if page == self.range.start() {
            return FaultKind::StackOverflow;
        }
        let next_to = |region: PageRange| {
            !region.is_empty()
                && (page.number() + GUARD == region.start().number() || page.number() == region.end_number())
        };
        if next_to(self.stack) || self.buffers.iter().any(|&buffer| next_to(buffer)) {
            return FaultKind::GuardPage;
        }
        FaultKind::Unmapped
    }

    /// The first page of `range` that is in the window.
    pub(crate) fn overlap(&self, range: PageRange) -> Option<Page> {
        self.range.overlaps(range).then(|| self.range.start().max(range.start()))
    }

    /// The page that holds the top of the stack.
    pub(crate) fn top_page(&self) -> Page {
        self.stack.skip(self.stack.count() - 1).start()
    }
}
