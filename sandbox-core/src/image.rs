//! The image template: the tables that all views begin as.
//!
//! It holds the host's text and read-only data, as the host has them but for unprivileged code, and the gate, for
//! privileged code only. It is built once; a view shares its subtrees, so making one costs the same however large
//! the host is. Beside it stand the gate-only tables, which map the gate and nothing else.

use crate::addr::{Page, PageRange};
use crate::arch::Arch;
use crate::error::Error;
use crate::format::{Format, Privilege, Roots};
use crate::frames::Frames;
use crate::grant::HostGrant;
use crate::host::Host;
use crate::permissions::{Access, Permissions};
use crate::tables::Tables;
use crate::walk::walk;

/// Tables shared by all sandboxes of a HAL.
pub(crate) struct Template<F: Format> {
    /// What views begin as.
    pub(crate) tables: Tables<F>,
    /// The gate alone.
    pub(crate) gate: Tables<F>,
    /// Never run on: the host's code that views don't have. As long as it stands here nobody can be granted it for writing.
    pub(crate) kept: Tables<F>,
    /// Where the gate's code is, in views as in the host.
    code: PageRange,
}

impl<F: Format> Template<F> {
    /// Builds both from what the host says of its image, with the gate's code at `code`. Nothing stays behind on failure.
    pub(crate) fn build<H: Host, A: Arch<Format = F>>(
        frames: &Frames<H, A>,
        format: F,
        host_roots: &Roots,
        code: PageRange,
    ) -> Result<Self, Error> {
        let (tables, gate) = (Tables::lasting(format), Tables::lasting(format));
        let mut template = Template { tables, gate, kept: Tables::new(format), code };
        match template.fill(frames, host_roots) {
            Ok(()) => {
                A::publish_tables();
                Ok(template)
            }
            Err(error) => {
                template.destroy(frames);
                Err(error)
            }
        }
    }

    fn fill<H: Host, A: Arch<Format = F>>(&mut self, frames: &Frames<H, A>, host_roots: &Roots) -> Result<(), Error> {
        let gate = A::gate_text();
        let image = frames.host().image();
        let format = self.tables.format();
        let parts = [(image.text, Permissions::READ_EXECUTE), (image.read_only, Permissions::READ)];
        for (ranges, permissions) in parts {
            let grant = HostGrant { frames, format, host_roots, privilege: Privilege::Unprivileged, permissions };
            for &range in ranges {
                for part in without(range, image.excluded, gate) {
                    let _ = grant.grant(&mut self.tables, part)?;
                }
                if permissions.allows(Access::Execute) {
                    self.keep(&grant, range, image.excluded, gate)?;
                }
            }
        }
        let grant = HostGrant {
            frames,
            format,
            host_roots,
            privilege: Privilege::Privileged,
            permissions: Permissions::READ_EXECUTE,
        };
        // On pages: a block of the gate's in the view must not be larger than the gate.
        for page in self.code.pages() {
            let _ = grant.grant(&mut self.tables, PageRange::single(page))?;
            let _ = grant.grant(&mut self.gate, PageRange::single(page))?;
            if let Some(mapping) = self.gate.lookup(frames, page) {
                frames.reserve_gate(mapping.frame)?;
            }
        }
        match self.code == gate {
            true => Ok(()),
            false => self.check_gate(frames, host_roots, self.code),
        }
    }

    /// Checks that the CPU can bear the host's translations of the gate's pages and ours at the same time.
    fn check_gate<H: Host, A: Arch<Format = F>>(
        &self,
        frames: &Frames<H, A>,
        host_roots: &Roots,
        range: PageRange,
    ) -> Result<(), Error> {
        let format = self.gate.format();
        for page in range.pages() {
            let host = walk(format, host_roots, page, |table, index| frames.read(table, index));
            let own = self.gate.lookup(frames, page);
            match host.zip(own) {
                Some((host, own)) if host.level == own.level && format.is_compatible(host.raw, own.raw) => {}
                _ => return Err(Error::GateNotMapped),
            }
        }
        Ok(())
    }

    /// Counts the parts of the text that are left out of views as executable: they are, by the host.
    fn keep<H: Host, A: Arch<Format = F>>(
        &mut self,
        grant: &HostGrant<'_, F, H, A>,
        text: PageRange,
        excluded: &[PageRange],
        gate: PageRange,
    ) -> Result<(), Error> {
        for page in text.pages().filter(|&page| in_any(excluded, page) && !gate.contains(page)) {
            // What the host can't execute itself, or lets nobody have, needs no counting.
            if let Err(error @ Error::OutOfFrames) = grant.grant(&mut self.kept, PageRange::single(page)) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Adds a CPU's gate data, which the host maps at `range`.
    pub(crate) fn add_gate<H: Host, A: Arch<Format = F>>(
        &mut self,
        frames: &Frames<H, A>,
        host_roots: &Roots,
        range: PageRange,
    ) -> Result<(), Error> {
        let grant = gate_data(frames, self.tables.format(), host_roots);
        let _ = grant.grant(&mut self.tables, range)?;
        // Only what was just added goes away again, page by page in tables of our own: this cannot fail.
        if let Err(error) = grant.grant(&mut self.gate, range) {
            let _ = self.tables.unmap(frames, range);
            return Err(error);
        }
        if let Err(error) = self.check_gate(frames, host_roots, range) {
            let _ = self.tables.unmap(frames, range);
            let _ = self.gate.unmap(frames, range);
            return Err(error);
        }
        A::publish_tables();
        Ok(())
    }

    pub(crate) fn destroy<H: Host, A: Arch<Format = F>>(&mut self, frames: &Frames<H, A>) {
        for page in self.code.pages() {
            if let Some(mapping) = self.gate.lookup(frames, page) {
                frames.release_gate(mapping.frame);
            }
        }
        self.tables.destroy(frames);
        self.gate.destroy(frames);
        self.kept.destroy(frames);
    }
}

/// How a CPU's gate data is taken over from the host's tables.
pub(crate) fn gate_data<'a, F: Format, H: Host, A: Arch>(
    frames: &'a Frames<H, A>,
    format: F,
    host_roots: &'a Roots,
) -> HostGrant<'a, F, H, A> {
    HostGrant { frames, format, host_roots, privilege: Privilege::Privileged, permissions: Permissions::READ_WRITE }
}

/// The parts of `range` that lie in none of `holes` and not in `hole`.
fn without(range: PageRange, holes: &[PageRange], hole: PageRange) -> impl Iterator<Item = PageRange> {
    let mut rest = range;
    core::iter::from_fn(move || {
        while !rest.is_empty() {
            let all = holes.iter().chain(core::iter::once(&hole)).filter(|hole| !hole.is_empty());
            let next = all.clone().filter(|hole| hole.end_number() > rest.start().number());
            let Some(next) = next.min_by_key(|hole| hole.start().number().max(rest.start().number())) else {
                let last = rest;
                rest = rest.take(0);
                return Some(last);
            };
            let clear = next.start().number().saturating_sub(rest.start().number());
            if clear > 0 {
                let part = rest.take(clear);
                rest = rest.skip(part.count());
                return Some(part);
            }
            rest = rest.skip(next.end_number() - rest.start().number());
        }
        None
    })
}

/// Whether `page` is in one of the ranges.
pub(crate) fn in_any(ranges: &[PageRange], page: Page) -> bool {
    ranges.iter().any(|range| range.contains(page))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::VirtAddr;
    use std::vec::Vec;

    fn range(start: u64, count: u64) -> PageRange {
        PageRange::new(VirtAddr(start << 12).page(), count).unwrap()
    }

    #[test]
    fn holes_are_left_out() {
        let parts = |holes: &[PageRange], hole| without(range(10, 10), holes, hole).collect::<Vec<_>>();
        assert_eq!(parts(&[], range(0, 0)), [range(10, 10)]);
        assert_eq!(parts(&[], range(0, 5)), [range(10, 10)]);
        assert_eq!(parts(&[], range(12, 2)), [range(10, 2), range(14, 6)]);
        assert_eq!(parts(&[range(10, 1), range(19, 5)], range(12, 2)), [range(11, 1), range(14, 5)]);
        assert_eq!(parts(&[range(11, 3), range(12, 1)], range(5, 6)), [range(14, 6)]);
        assert_eq!(parts(&[range(0, 40)], range(0, 0)), []);
    }
}
