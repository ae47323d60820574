//! A view: the address space that one sandbox runs in.
//!
//! It begins as the image template, shared, and gains the sandbox's own pages and what is granted. Nothing in it is
//! writable and executable, and nothing unprivileged in it is the gate's. It changes only while the sandbox isn't
//! running, which `&mut` says.

use core::ptr::NonNull;

use crate::addr::{Frame, PAGE_SIZE, Page, PageRange, VirtAddr};
use crate::arch::{Arch, Memory, ViewRoots};
use crate::error::Error;
use crate::format::{Format, Leaf, MAX_ROOTS, Privilege};
use crate::grant::HostGrant;
use crate::hal::Hal;
use crate::host::Host;
use crate::image::gate_data;
use crate::permissions::{Access, Permissions};
use crate::record::FrameUse;
use crate::tables::{Ownership, Tables};
use crate::tags::{Choice, Tag, choose};
use crate::walk::Mapping;

pub(crate) struct View<F: Format> {
    tables: Tables<F>,
    /// How many CPUs had been started when the view last took their gates over.
    gates: usize,
    /// What the view last ran on: right unless something has changed, which each change says.
    roots: ViewRoots,
    changed: bool,
    /// The tag that it ran under; `None` since it has changed.
    tag: Option<Tag>,
}

#[inline]
fn addresses(roots: &[Option<Frame>; MAX_ROOTS], empty: Frame) -> [u64; MAX_ROOTS] {
    roots.map(|root| root.unwrap_or(empty).start())
}

impl<F: Format> View<F> {
    pub(crate) fn new<H: Host, A: Arch<Format = F>>(hal: &Hal<H, A>) -> Result<Self, Error> {
        // Asked first: a gate is in the template before it counts as started.
        let gates = hal.cpus.started();
        hal.template.with(|template| {
            let gate = addresses(template.gate.roots(), hal.empty);
            let roots = ViewRoots { view: [0; MAX_ROOTS], gate, empty: hal.empty.start(), tag: None };
            Ok(View { tables: template.tables.share(&hal.frames)?, gates, roots, changed: true, tag: None })
        })
    }

    /// The tables, for tests to look through.
    #[cfg(test)]
    pub(crate) fn tables(&self) -> &Tables<F> {
        &self.tables
    }

    /// What to run on with `gate`, which is this CPU's. Takes over the gates of CPUs that were started since the last time.
    /// Interrupts are masked, until the run has ended.
    #[inline(always)]
    pub(crate) fn roots<H: Host, A: Arch<Format = F>>(
        &mut self,
        hal: &Hal<H, A>,
        gate: NonNull<A::Gate>,
    ) -> Result<&ViewRoots, Error> {
        let started = hal.cpus.started();
        if self.changed || self.gates != started {
            self.bring_up_to_date(hal, started)?;
        }
        if !self.tables.has_global() {
            self.choose_tag::<A>(gate);
        }
        Ok(&self.roots)
    }

    #[cold]
    fn bring_up_to_date<H: Host, A: Arch<Format = F>>(&mut self, hal: &Hal<H, A>, started: usize) -> Result<(), Error> {
        if self.gates != started {
            self.forget_tag();
            self.adopt_gates(hal)?;
            self.gates = started;
        }
        self.roots.view = addresses(self.tables.roots(), hal.empty);
        self.roots.tag = None;
        self.changed = false;
        Ok(())
    }

    /// Finds the tag to run under on the CPU whose gate is `gate`, for a view that shares nothing global.
    #[inline]
    fn choose_tag<A: Arch<Format = F>>(&mut self, gate: NonNull<A::Gate>) {
        // SAFETY: (1) of `roots`; (2) used below alone.
        let tags = unsafe { A::tags(gate) };
        // No two CPUs have their gates at one address.
        self.tag = match choose(tags, self.tables.has_global(), self.tag, gate.addr().get()) {
            Choice::Reuse(_) => return,
            Choice::Flush => None,
            Choice::Fresh(tag) => Some(tag),
            Choice::RollOver(tag) => {
                A::flush_tags();
                Some(tag)
            }
        };
        self.roots.tag = self.tag();
    }

    /// The number of the tag that the view last ran under, if that is still good.
    pub(crate) fn tag(&self) -> Option<u16> {
        self.tag.map(|tag| tag.number)
    }

    /// To be called when anything has changed, or what is cached is no good: the next entry uses none of it.
    pub(crate) fn forget_tag(&mut self) {
        self.tag = None;
        self.changed = true;
    }

    #[cold]
    fn adopt_gates<H: Host, A: Arch<Format = F>>(&mut self, hal: &Hal<H, A>) -> Result<(), Error> {
        self.roots.gate = hal.template.with(|template| addresses(template.gate.roots(), hal.empty));
        let mut result = Ok(());
        hal.host().with_tables(&mut |roots| {
            let grant = gate_data(&hal.frames, self.tables.format(), roots);
            for page in hal.cpus.ranges(&hal.frames).flat_map(PageRange::pages) {
                if result.is_ok() && self.tables.lookup(&hal.frames, page).is_none() {
                    result = grant.grant(&mut self.tables, PageRange::single(page)).map(drop);
                }
            }
        });
        A::publish_tables();
        result
    }

    /// Maps fresh zeroed frames at `range`, for reading and writing; all or nothing.
    pub(crate) fn map_private<H: Host, A: Arch<Format = F>>(
        &mut self,
        hal: &Hal<H, A>,
        range: PageRange,
    ) -> Result<(), Error> {
        self.forget_tag();
        for (done, page) in range.pages().enumerate() {
            let result = hal.frames.allocate(FrameUse::Private).and_then(|frame| {
                let leaf = Leaf {
                    frame,
                    permissions: Permissions::READ_WRITE,
                    privilege: Privilege::Unprivileged,
                    memory: hal.arch.format().ordinary_memory(),
                };
                self.tables.map(&hal.frames, page, 0, leaf, Ownership::Owned).map(drop).inspect_err(|_| {
                    // SAFETY: (1) allocated just above and not mapped.
                    unsafe { hal.frames.free(frame) };
                })
            });
            if let Err(error) = result {
                self.unmap_private(hal, range.take(done as u64));
                return Err(error);
            }
        }
        A::publish_tables();
        Ok(())
    }

    /// Removes pages of the sandbox's own.
    pub(crate) fn unmap_private<H: Host, A: Arch<Format = F>>(&mut self, hal: &Hal<H, A>, range: PageRange) {
        // Cannot fail: the sandbox's own pages lie in private tables. They are not in use (module comment), and the next entry
        // uses nothing that is cached of them.
        self.forget_tag();
        let _ = self.tables.unmap(&hal.frames, range);
        A::publish_tables();
    }

    /// Grants pages of the host's at their own addresses.
    pub(crate) fn grant<H: Host, A: Arch<Format = F>>(
        &mut self,
        hal: &Hal<H, A>,
        range: PageRange,
        permissions: Permissions,
    ) -> Result<(), Error> {
        self.forget_tag();
        let mut result = Ok(());
        hal.host().with_tables(&mut |host_roots| {
            let format = self.tables.format();
            let privilege = Privilege::Unprivileged;
            let grant = HostGrant { frames: &hal.frames, format, host_roots, privilege, permissions };
            result = grant.grant(&mut self.tables, range).map(drop);
        });
        A::publish_tables();
        result
    }

    /// Takes pages of the host's back out of the view, or (with `permissions`) restricts them.
    pub(crate) fn restrict<H: Host, A: Arch<Format = F>>(
        &mut self,
        hal: &Hal<H, A>,
        range: PageRange,
        permissions: Option<Permissions>,
    ) -> Result<(), Error> {
        let mut rest = range;
        while !rest.is_empty() {
            let page = rest.start();
            match self.lookup(hal, page) {
                None => return Err(Error::NotGranted(page)),
                Some(mapping) if !mapping.unprivileged => return Err(Error::SandboxMemory(page)),
                Some(mapping) => rest = rest.skip(mapping.pages_from(page)),
            }
        }
        // Stale translations: nobody uses them, see the module comment, and the next entry won't either.
        self.forget_tag();
        let result = match permissions {
            Some(permissions) => self.tables.protect(&hal.frames, range, permissions),
            None => self.tables.unmap(&hal.frames, range),
        };
        A::publish_tables();
        result.map(drop)
    }

    pub(crate) fn lookup<H: Host, A: Arch<Format = F>>(&self, hal: &Hal<H, A>, page: Page) -> Option<Mapping> {
        self.tables.lookup(&hal.frames, page)
    }

    /// Whether the tables let the sandbox do this.
    pub(crate) fn allows<H: Host, A: Arch<Format = F>>(
        &self,
        hal: &Hal<H, A>,
        address: VirtAddr,
        access: Access,
    ) -> bool {
        self.lookup(hal, address.page())
            .is_some_and(|mapping| mapping.unprivileged && mapping.permissions.allows(access))
    }

    /// The host's pointer to the byte at `address` of a page of the sandbox's.
    pub(crate) fn pointer<H: Host, A: Arch<Format = F>>(&self, hal: &Hal<H, A>, address: VirtAddr) -> Option<*mut u8> {
        let mapping = self.lookup(hal, address.page())?;
        Some(hal.host().frame_pointer(mapping.frame).wrapping_add(address.page_offset()))
    }

    pub(crate) fn destroy<H: Host, A: Arch<Format = F>>(&mut self, hal: &Hal<H, A>) {
        self.tables.destroy(&hal.frames);
    }
}

/// A view's memory as the sandbox sees it.
pub(crate) struct ViewMemory<'a, H: Host, A: Arch> {
    pub(crate) hal: &'a Hal<H, A>,
    pub(crate) view: &'a View<A::Format>,
}

impl<H: Host, A: Arch> ViewMemory<'_, H, A> {
    fn copy(&self, address: VirtAddr, into: &mut [u8], access: Access) -> usize {
        let mut done = 0;
        while done < into.len() {
            let Some(here) = address.0.checked_add(done as u64).map(VirtAddr) else {
                break;
            };
            if !self.view.allows(self.hal, here, access) {
                break;
            }
            let Some(pointer) = self.view.pointer(self.hal, here) else {
                break;
            };
            let count = (PAGE_SIZE - here.page_offset()).min(into.len() - done);
            for (index, byte) in into[done..done + count].iter_mut().enumerate() {
                // SAFETY: the page is mapped in the view, so its frame is in use and its pointer covers the rest of the frame; `count`
                // ends with the page. Volatile, since the bytes may be the host's own, which other CPUs may change.
                *byte = unsafe { pointer.add(index).read_volatile() };
            }
            done += count;
        }
        done
    }
}

impl<H: Host, A: Arch> Memory for ViewMemory<'_, H, A> {
    fn fetch(&self, address: VirtAddr, into: &mut [u8]) -> usize {
        self.copy(address, into, Access::Execute)
    }

    fn load(&self, address: VirtAddr) -> Option<u64> {
        let mut bytes = [0; 8];
        (self.copy(address, &mut bytes, Access::Read) == 8).then(|| u64::from_le_bytes(bytes))
    }
}
