//! Refusals that the tables don't explain: the CPU still holds a translation of the host's own for the page.
//!
//! Such an access is tried again after the page has been flushed. That must come to an end when it doesn't help, but not hit
//! code that gets on: an instruction may meet one stale page after the other, a loop the same one again and again, since
//! the host uses it in between.

use crate::addr::{Page, VirtAddr};

/// How many different pages an instruction may need to be remembered before it gets on. It needs its own two, and two for
/// each operand; a block copy goes on to new ones.
const PAGES: usize = 8;
/// How often in a row an instruction may be refused a page that it was refused just before.
const LIMIT: u32 = 8;

/// The refusals since the sandboxed code last got on.
#[derive(Default)]
pub(crate) struct Spurious {
    /// The instruction.
    at: VirtAddr,
    /// Numbers of the last pages that it was refused, `seen` of them, each at its turn.
    pages: [u64; PAGES],
    seen: usize,
    /// How often it was refused one of them again.
    again: u32,
}

impl Spurious {
    /// Forgets all refusals: stale translations may have come back for good reasons.
    pub(crate) fn reset(&mut self) {
        self.seen = 0;
        self.again = 0;
    }

    /// Notes that the instruction at `at` was refused `page`. `false`: there is no point in trying again.
    pub(crate) fn tolerate(&mut self, at: VirtAddr, page: Page) -> bool {
        if at != self.at {
            self.reset();
            self.at = at;
        }
        if self.pages[..self.seen.min(PAGES)].contains(&page.number()) {
            self.again += 1;
            return self.again < LIMIT;
        }
        self.pages[self.seen % PAGES] = page.number();
        self.seen = self.seen.wrapping_add(1);
        true
    }
}
