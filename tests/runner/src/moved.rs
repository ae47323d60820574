//! Code that runs at other addresses than those that its symbols have: the gate's, where the HAL has it mapped once more.

use std::ops::Range;

/// Where such code is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    /// By its symbols.
    linked: Range<u64>,
    /// Where its beginning runs.
    start: u64,
}

impl Moved {
    /// What the symbols have in `linked` runs from `start` on.
    pub(crate) fn new(linked: Range<u64>, start: u64) -> Self {
        Self { linked, start }
    }

    /// Where the instruction runs that the symbols have at `linked`.
    pub(crate) fn to(&self, linked: u64) -> u64 {
        if self.linked.contains(&linked) { linked - self.linked.start + self.start } else { linked }
    }

    /// Where the symbols have the instruction that runs at `address`.
    pub(crate) fn from(&self, address: u64) -> u64 {
        let linked = address.wrapping_sub(self.start).wrapping_add(self.linked.start);
        if self.linked.contains(&linked) { linked } else { address }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_moved_has_two_addresses() {
        let moved = Moved::new(0x2000..0x3000, 0x9000);
        for (linked, runs) in [(0x1fff, 0x1fff), (0x2000, 0x9000), (0x2fff, 0x9fff), (0x3000, 0x3000)] {
            assert_eq!((moved.to(linked), moved.from(runs)), (runs, linked));
        }
        assert_eq!((moved.from(0x8fff), moved.from(0xa000)), (0x8fff, 0xa000));
    }

    #[test]
    fn nothing_is_moved_by_default() {
        let moved = Moved::default();
        for address in [0, 1, 0x2000, u64::MAX] {
            assert_eq!((moved.to(address), moved.from(address)), (address, address));
        }
    }
}
