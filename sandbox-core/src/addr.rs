//! Addresses, pages and frames.
//!
//! A *page* is 4 KiB of virtual addresses, a *frame* 4 KiB of physical memory. The types keep the two apart and keep
//! arithmetic from wrapping: a [`PageRange`] never reaches past the last page of the address space.

use core::fmt;

/// Size of a page and of a frame, in bytes.
pub const PAGE_SIZE: usize = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Pages that the 64-bit address space has; the exclusive bound of every page number.
const PAGES: u64 = 1 << (64 - PAGE_SHIFT);

/// A virtual address, any 64-bit value: what a sandbox tried to use need not be canonical.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VirtAddr(pub u64);

impl VirtAddr {
    /// The page that contains this address.
    pub const fn page(self) -> Page {
        Page(self.0 >> PAGE_SHIFT)
    }

    /// Distance from the start of the page, in bytes.
    pub const fn page_offset(self) -> usize {
        self.0 as usize & (PAGE_SIZE - 1)
    }

    /// The address of a reference or pointer.
    pub fn of<T: ?Sized>(pointer: *const T) -> VirtAddr {
        VirtAddr(pointer.cast::<u8>().addr() as u64)
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A 4 KiB page of virtual addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Page(u64);

impl Page {
    /// The page that starts at `address`, or `None` when no page does.
    pub const fn from_start(address: VirtAddr) -> Option<Page> {
        if address.page_offset() == 0 { Some(address.page()) } else { None }
    }

    /// The page's first address.
    pub const fn start(self) -> VirtAddr {
        VirtAddr(self.0 << PAGE_SHIFT)
    }

    /// The page's number: its start divided by [`PAGE_SIZE`].
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The page `count` pages on, or `None` past the end of the address space.
    pub const fn checked_add(self, count: u64) -> Option<Page> {
        match self.0.checked_add(count) {
            Some(number) if number < PAGES => Some(Page(number)),
            _ => None,
        }
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}", self.start())
    }
}

/// A 4 KiB frame of physical memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(u64);

impl Frame {
    /// The frame that starts at physical address `address`, or `None` when no frame does.
    pub const fn from_start(address: u64) -> Option<Frame> {
        if address.is_multiple_of(PAGE_SIZE as u64) { Some(Frame(address >> PAGE_SHIFT)) } else { None }
    }

    /// The frame that contains physical address `address`.
    pub const fn containing(address: u64) -> Frame {
        Frame(address >> PAGE_SHIFT)
    }

    /// The frame's first physical address.
    pub const fn start(self) -> u64 {
        self.0 << PAGE_SHIFT
    }

    /// The frame's number: its start divided by [`PAGE_SIZE`].
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The frame `count` frames on. Wraps at the end of physical memory, which no mapping reaches.
    pub const fn add(self, count: u64) -> Frame {
        Frame(self.0.wrapping_add(count) & (PAGES - 1))
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {:#x}", self.start())
    }
}

/// A run of pages that does not wrap.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange {
    start: Page,
    count: u64,
}

impl PageRange {
    /// `count` pages from `start` on, or `None` when that passes the end of the address space.
    pub const fn new(start: Page, count: u64) -> Option<PageRange> {
        match start.0.checked_add(count) {
            Some(end) if end <= PAGES => Some(PageRange { start, count }),
            _ => None,
        }
    }

    /// The single page `page`.
    pub const fn single(page: Page) -> PageRange {
        PageRange { start: page, count: 1 }
    }

    /// The pages from `start` up to, not including, `end`, both page-aligned; `None` when they are not or when `end` lies
    /// before `start`. An `end` of zero stands for the end of the address space.
    pub const fn from_addresses(start: VirtAddr, end: VirtAddr) -> Option<PageRange> {
        if start.page_offset() != 0 || end.page_offset() != 0 {
            return None;
        }
        let end = if end.0 == 0 && start.0 != 0 { PAGES } else { end.0 >> PAGE_SHIFT };
        match end.checked_sub(start.0 >> PAGE_SHIFT) {
            Some(count) => Some(PageRange { start: start.page(), count }),
            None => None,
        }
    }

    /// All pages that the `len` bytes from `address` on touch, or `None` when they wrap. No bytes touch no page.
    pub const fn covering(address: VirtAddr, len: u64) -> Option<PageRange> {
        if len == 0 {
            return Some(PageRange { start: address.page(), count: 0 });
        }
        match address.0.checked_add(len - 1) {
            Some(last) => Some(PageRange { start: address.page(), count: (last >> PAGE_SHIFT) - address.page().0 + 1 }),
            None => None,
        }
    }

    /// The first page (of an empty range, the page it would begin with).
    pub const fn start(self) -> Page {
        self.start
    }

    /// How many pages.
    pub const fn count(self) -> u64 {
        self.count
    }

    /// How many bytes.
    pub const fn bytes(self) -> u64 {
        self.count << PAGE_SHIFT
    }

    /// Whether there is no page in it.
    pub const fn is_empty(self) -> bool {
        self.count == 0
    }

    /// Number of the first page behind the range; may be one past the last page there is.
    pub(crate) const fn end_number(self) -> u64 {
        self.start.0 + self.count
    }

    /// Whether `page` is in it.
    pub const fn contains(self, page: Page) -> bool {
        page.0 >= self.start.0 && page.0 < self.end_number()
    }

    /// Whether any page is in both.
    pub const fn overlaps(self, other: PageRange) -> bool {
        self.start.0 < other.end_number() && other.start.0 < self.end_number() && self.count != 0 && other.count != 0
    }

    /// The pages, in order.
    pub fn pages(self) -> impl Iterator<Item = Page> {
        (self.start.0..self.end_number()).map(Page)
    }

    /// The part of the range that begins `skip` pages in.
    pub(crate) fn skip(self, skip: u64) -> PageRange {
        let skip = skip.min(self.count);
        PageRange { start: Page(self.start.0 + skip), count: self.count - skip }
    }

    /// At most the first `count` pages of the range.
    pub(crate) fn take(self, count: u64) -> PageRange {
        PageRange { start: self.start, count: self.count.min(count) }
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages from {}", self.count, self.start.start())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_wrap() {
        let last = Page(PAGES - 1);
        assert!(PageRange::new(last, 1).is_some());
        assert!(PageRange::new(last, 2).is_none());
        assert!(PageRange::new(last, u64::MAX).is_none());
        assert_eq!(PageRange::covering(VirtAddr(u64::MAX), 1), PageRange::new(last, 1));
        assert_eq!(PageRange::covering(VirtAddr(u64::MAX), 2), None);
        assert_eq!(PageRange::from_addresses(last.start(), VirtAddr(0)), PageRange::new(last, 1));
    }

    #[test]
    fn covering_counts_touched_pages() {
        assert_eq!(PageRange::covering(VirtAddr(0xfff), 2).unwrap().count(), 2);
        assert_eq!(PageRange::covering(VirtAddr(0x1000), 0x1000).unwrap().count(), 1);
        assert_eq!(PageRange::covering(VirtAddr(0x1234), 0).unwrap().count(), 0);
    }

    #[test]
    fn empty_ranges_overlap_nothing() {
        let empty = PageRange::new(Page(5), 0).unwrap();
        let full = PageRange::new(Page(0), 10).unwrap();
        assert!(!empty.overlaps(full) && !full.overlaps(empty));
        assert!(full.overlaps(PageRange::single(Page(9))));
        assert!(!full.overlaps(PageRange::single(Page(10))));
    }
}
