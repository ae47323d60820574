//! A CPU that runs what a test gives it instead of code: steps that reach memory through the view's tables alone.

use core::cell::RefCell;
use core::ptr::NonNull;
use std::alloc::{alloc_zeroed, dealloc};
use std::boxed::Box;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::vec::Vec;

use super::layout::{SimFormat, Translation};
use super::machine::Machine;
use crate::addr::{Frame, PAGE_SIZE, Page, PageRange, VirtAddr};
use crate::arch::{Arch, Cause, FatalHook, Memory, Refusal, Start, Tags, Trap, VectorArea, ViewRoots};
use crate::argument::{Block, Part};
use crate::error::{Error, Unsupported};
use crate::permissions::Access;

/// What the sandboxed code does from one entry to the next exit.
type Step = Box<dyn FnOnce(&mut Guest<'_>) -> Result<Trap<u32>, Cause>>;

/// Bytes of vector registers. The last is a control register, and what it is after a reset.
pub(super) const VECTORS: usize = 16;
pub(super) const CONTROL: u8 = 0x1f;

/// The CPU of the current thread.
#[derive(Default)]
pub(super) struct Cpu {
    pub(super) machine: Option<Arc<Machine>>,
    pub(super) index: usize,
    masked: bool,
    program: VecDeque<Step>,
    pub(super) flushed: Vec<Page>,
    pub(super) forwarded: Vec<u32>,
    pub(super) published: usize,
    pub(super) entered: usize,
    /// Pages of the host's that its task state lies on.
    pub(super) task_state: Vec<Page>,
    /// What the host was told about timers and other CPUs, and what it says of threads that wait.
    pub(super) armed: Vec<u64>,
    pub(super) kicked: Vec<usize>,
    pub(super) yields: bool,
    /// What `start_cpu` is to fail with.
    pub(super) unsupported: Option<Unsupported>,
    pub(super) hook: Option<FatalHook>,
    /// Its vector registers, and why sandboxes can have none.
    pub(super) vectors: [u8; VECTORS],
    pub(super) no_vectors: Option<Unsupported>,
    /// Where to look at the sandbox's memory in the next diagnosis, and what was there.
    pub(super) probe: Option<VirtAddr>,
    pub(super) probed: Option<(Vec<u8>, Option<u64>)>,
    /// Where the gate's code runs.
    code: Option<Page>,
    /// The numbers that CPUs were started with, by their indices.
    numbers: BTreeMap<usize, Numbers>,
    /// What is cached, by CPU, tag and page number. Nobody takes anything out but who flushes.
    cached: BTreeMap<(usize, u16, u64), Translation>,
    /// The tags of entries so far, and how often all was flushed.
    pub(super) tags: Vec<Option<u16>>,
    pub(super) tag_flushes: usize,
}

/// Numbers at a place of their own, as in a gate.
struct Numbers(NonNull<Tags>);

impl Drop for Numbers {
    fn drop(&mut self) {
        // SAFETY: from a box, and the CPU runs no more.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Cpu {
    /// A fresh CPU 0 on `machine`.
    pub(super) fn reset(machine: &Arc<Machine>) {
        let fresh = Cpu { machine: Some(machine.clone()), ..Cpu::default() };
        // What was there before goes when the CPU can be looked at again.
        drop(cpu(|cpu| core::mem::replace(cpu, fresh)));
    }
}

/// A thread's CPU. What is still on it when the thread ends belongs to a test that failed, and said so.
#[derive(Default)]
struct Slot(RefCell<Cpu>);

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(machine) = self.0.get_mut().machine.take() {
            machine.abandon();
        }
    }
}

std::thread_local! {
    static CPU: Slot = Slot::default();
}

/// Looks at or changes the current CPU.
pub(super) fn cpu<R>(f: impl FnOnce(&mut Cpu) -> R) -> R {
    CPU.with(|slot| f(&mut slot.0.borrow_mut()))
}

pub(super) fn cpu_index() -> usize {
    cpu(|cpu| cpu.index)
}

pub(super) fn interrupts_masked() -> bool {
    cpu(|cpu| cpu.masked)
}

/// What the sandboxed code does at the next entry that has nothing to do yet; without any, it runs the function.
pub(super) fn next(step: impl FnOnce(&mut Guest<'_>) -> Result<Trap<u32>, Cause> + 'static) {
    cpu(|cpu| cpu.program.push_back(Box::new(step)));
}

/// Steps that no entry has come for.
pub(super) fn unused_steps() -> usize {
    cpu(|cpu| cpu.program.len())
}

fn machine() -> Arc<Machine> {
    cpu(|cpu| cpu.machine.clone()).expect("no machine on this thread")
}

#[derive(Clone, Debug, Default)]
pub(super) struct Registers {
    pub(super) start: Option<Start>,
    pub(super) at: u64,
    cause: Option<Cause>,
}

/// Sandboxed code, for as long as it runs.
pub(super) struct Guest<'a> {
    machine: &'a Machine,
    roots: [Option<Frame>; 2],
    tag: Option<u16>,
    pub(super) registers: &'a mut Registers,
}

/// Memory refused by the tables.
pub(super) fn refused(address: u64, access: Access) -> Cause {
    Cause::Memory { address: VirtAddr(address), access, refusal: Refusal::Translation }
}

impl Guest<'_> {
    pub(super) fn start(&self) -> Start {
        self.registers.start.unwrap()
    }

    /// Where argument `index` is, and how many bytes.
    pub(super) fn part(&self, index: usize) -> Result<(u64, u64), Cause> {
        let part = self.start().argument.0 + (index * size_of::<Part>()) as u64;
        let mut words = [0; 16];
        self.load(part, &mut words)?;
        let (address, len) = words.split_at(8);
        Ok((u64::from_le_bytes(address.try_into().unwrap()), u64::from_le_bytes(len.try_into().unwrap())))
    }

    /// The translation, if unprivileged code has the access.
    pub(super) fn reach(&self, address: u64, access: Access) -> Result<Translation, Cause> {
        let found = self.machine.translate(self.roots, address);
        self.look_up(address, found);
        let found = found.filter(|found| {
            found.user
                && match access {
                    Access::Read => found.read,
                    Access::Write => found.read && found.write,
                    Access::Execute => found.user_execute,
                }
        });
        found.ok_or(refused(address, access))
    }

    /// What is cached for `address` must be what the tables say.
    fn look_up(&self, address: u64, found: Option<Translation>) {
        let Some(tag) = self.tag else { return };
        cpu(|cpu| {
            let key = (cpu.index, tag, address / PAGE_SIZE as u64);
            if let Some(cached) = cpu.cached.get(&key) {
                assert_eq!(Some(*cached), found, "a stale translation of {address:#x} under tag {tag}");
            } else if let Some(found) = found {
                cpu.cached.insert(key, found);
            }
        });
    }

    fn pieces(
        &self,
        address: u64,
        len: usize,
        access: Access,
        mut f: impl FnMut(usize, *mut u8, usize),
    ) -> Result<(), Cause> {
        let mut done = 0;
        while done < len {
            let here = address.wrapping_add(done as u64);
            let found = self.reach(here, access)?;
            let offset = here as usize % PAGE_SIZE;
            let count = (PAGE_SIZE - offset).min(len - done);
            f(done, self.machine.bytes(found.frame).wrapping_add(offset), count);
            done += count;
        }
        Ok(())
    }

    pub(super) fn load(&self, address: u64, into: &mut [u8]) -> Result<(), Cause> {
        self.pieces(address, into.len(), Access::Read, |done, from, count| {
            // SAFETY: the piece lies in one frame, and in `into`.
            unsafe { from.copy_to_nonoverlapping(into[done..].as_mut_ptr(), count) };
        })
    }

    pub(super) fn store(&self, address: u64, bytes: &[u8]) -> Result<(), Cause> {
        self.pieces(address, bytes.len(), Access::Write, |done, to, count| {
            // SAFETY: as in `load`.
            unsafe { to.copy_from_nonoverlapping(bytes[done..].as_ptr(), count) };
        })
    }

    /// Calls the function that the call is about, on copies of its block and buffers at other addresses, and copies everything
    /// back.
    pub(super) fn call(&mut self) -> Result<Trap<u32>, Cause> {
        let start = self.start();
        assert!(start.stack.0.is_multiple_of(16));
        let mut block = Copied::new(start.argument.0, size_of::<Block>());
        self.load(start.argument.0, block.bytes())?;
        let parts: [Part; 8] = core::array::from_fn(|index| {
            let (address, len) = self.part(index).unwrap();
            Part { address, len }
        });
        let mut copies = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let inside = part.address.wrapping_sub(start.argument.0);
            let address = if inside < size_of::<Block>() as u64 {
                block.address() + inside
            } else {
                let mut copy = Copied::new(part.address, part.len as usize);
                // Unused parts may be left from an earlier call, and lead nowhere.
                if self.load(part.address, copy.bytes()).is_err() {
                    continue;
                }
                copies.push((part.address, copy));
                copies.last().unwrap().1.address()
            };
            block.bytes()[index * 16..][..8].copy_from_slice(&address.to_le_bytes());
        }
        let function = core::ptr::with_exposed_provenance::<()>(start.function.0 as usize);
        // SAFETY: `start` took the address from a function of this type, and the block is a copy of one that was filled for it.
        unsafe {
            let function: unsafe extern "C" fn(*mut Block) = core::mem::transmute(function);
            function(core::ptr::with_exposed_provenance_mut(block.address() as usize));
        }
        for (address, mut copy) in copies {
            self.store(address, copy.bytes())?;
        }
        for (index, part) in parts.iter().enumerate() {
            block.bytes()[index * 16..][..8].copy_from_slice(&part.address.to_le_bytes());
        }
        self.store(start.argument.0, block.bytes())?;
        Ok(Trap::Returned)
    }
}

/// Memory at the same place in a page as in the sandbox.
struct Copied {
    base: *mut u8,
    offset: usize,
    len: usize,
}

impl Copied {
    fn new(address: u64, len: usize) -> Copied {
        let offset = address as usize % PAGE_SIZE;
        // SAFETY: not empty.
        let base = unsafe { alloc_zeroed(Copied::shape(offset, len)) };
        base.expose_provenance();
        Copied { base, offset, len }
    }

    fn shape(offset: usize, len: usize) -> std::alloc::Layout {
        std::alloc::Layout::from_size_align(offset + len + 1, PAGE_SIZE).unwrap()
    }

    fn address(&self) -> u64 {
        (self.base.addr() + self.offset) as u64
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated with this size, and borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.base.add(self.offset), self.len) }
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        // SAFETY: allocated with this shape.
        unsafe { dealloc(self.base, Copied::shape(self.offset, self.len)) };
    }
}

/// The CPU as a backend.
pub(super) struct SimArch;

// SAFETY: no code of a sandbox's runs for real; steps are the tests' own.
unsafe impl Arch for SimArch {
    type Format = SimFormat;
    type CpuConfig = Option<(u16, u16)>;
    type Gate = u64;
    type Registers = Registers;
    type InterruptState = bool;
    type Interrupt = u32;

    const GATE_FRAMES: usize = 2;
    const VECTORS_IN_CODE: bool = false;

    fn probe() -> Result<Self, Error> {
        Ok(SimArch)
    }

    fn format(&self) -> SimFormat {
        SimFormat(machine().layout)
    }

    fn gate_text() -> PageRange {
        machine().layout.gate_text()
    }

    fn remaps_gate_code(&self) -> bool {
        machine().layout.remaps_gate_code
    }

    fn host_frames(&self, translate: &dyn Fn(Page) -> Option<Frame>, frames: &mut [Frame]) -> Result<usize, Error> {
        let pages = cpu(|cpu| cpu.task_state.clone());
        for (index, &page) in pages.iter().enumerate() {
            frames[index] = translate(page).ok_or(Error::NotMapped(page))?;
        }
        Ok(pages.len())
    }

    unsafe fn start_cpu(
        &self,
        gate: Page,
        code: Page,
        tags: Option<(u16, u16)>,
        hook: FatalHook,
    ) -> Result<NonNull<u64>, Error> {
        assert!(interrupts_masked());
        if let Some(feature) = cpu(|cpu| cpu.unsupported) {
            return Err(feature.into());
        }
        cpu(|cpu| {
            cpu.hook = Some(hook);
            cpu.code = Some(code);
            if let Some((first, last)) = tags {
                let numbers = Box::into_raw(Box::new(Tags::new(first, last).unwrap()));
                cpu.numbers.insert(cpu.index, Numbers(NonNull::new(numbers).unwrap()));
            }
        });
        Ok(NonNull::new(core::ptr::with_exposed_provenance_mut(gate.start().0 as usize)).unwrap())
    }

    fn mask_interrupts() -> bool {
        cpu(|cpu| core::mem::replace(&mut cpu.masked, true))
    }

    unsafe fn restore_interrupts(state: bool) {
        cpu(|cpu| cpu.masked = state);
    }

    fn accepts_interrupts(state: bool) -> bool {
        !state
    }

    fn publish_tables() {
        cpu(|cpu| cpu.published += 1);
    }

    fn flush_page(page: Page) {
        cpu(|cpu| {
            cpu.flushed.push(page);
            let here = cpu.index;
            cpu.cached.retain(|&(index, _, number), _| index != here || number != page.number());
        });
    }

    unsafe fn tags<'g>(_gate: NonNull<u64>) -> Option<&'g mut Tags> {
        let numbers = cpu(|cpu| cpu.numbers.get(&cpu.index).map(|numbers| numbers.0))?;
        // SAFETY: (2) nobody else uses them, and they stay as long as the CPU does.
        Some(unsafe { &mut *numbers.as_ptr() })
    }

    fn flush_tags() {
        assert!(interrupts_masked());
        cpu(|cpu| {
            cpu.tag_flushes += 1;
            let here = cpu.index;
            cpu.cached.retain(|&(index, ..), _| index != here);
        });
    }

    fn prepare(&self, registers: &mut Registers, start: Start) {
        *registers = Registers { start: Some(start), at: start.function.0, cause: None };
    }

    unsafe fn enter(
        &self,
        gate: NonNull<u64>,
        registers: &mut Registers,
        roots: &ViewRoots,
        _interrupts: bool,
    ) -> Result<Trap<u32>, Error> {
        assert!(interrupts_masked());
        let machine = machine();
        let view = roots.view.map(Frame::from_start);
        // Without the gate in all three address spaces the machine would be lost here.
        let data = PageRange::new(VirtAddr(gate.addr().get() as u64).page(), 2).unwrap();
        let code = PageRange::new(cpu(|cpu| cpu.code).unwrap(), Self::gate_text().count()).unwrap();
        assert_eq!(code != Self::gate_text(), self.remaps_gate_code());
        for page in code.pages().chain(data.pages()) {
            let at = |roots| machine.translate(roots, page.start().0);
            let host = at(machine.roots()).expect("the gate is not in the host");
            for roots in [view, roots.gate.map(Frame::from_start)] {
                let here = at(roots).unwrap_or_else(|| panic!("{page:?} of the gate is missing"));
                assert!(!here.user && here.frame == host.frame && here.execute == host.execute);
            }
        }
        let step = cpu(|cpu| {
            cpu.entered += 1;
            cpu.tags.push(roots.tag);
            cpu.program.pop_front()
        });
        let mut guest = Guest { machine: &machine, roots: view, tag: roots.tag, registers };
        let result = match step {
            Some(step) => step(&mut guest),
            None => guest.call(),
        };
        Ok(result.unwrap_or_else(|cause| {
            registers.cause = Some(cause);
            Trap::Fault
        }))
    }

    fn check_vectors(&self) -> Result<(), Error> {
        cpu(|cpu| cpu.no_vectors).map_or(Ok(()), |feature| Err(feature.into()))
    }

    unsafe fn reset_vectors(&self, area: &VectorArea) {
        // SAFETY: (1).
        unsafe {
            area.sandbox.write_bytes(0, VECTORS);
            area.sandbox.add(VECTORS - 1).write(CONTROL);
        }
    }

    unsafe fn enter_with_vectors(
        &self,
        gate: NonNull<u64>,
        registers: &mut Registers,
        roots: &ViewRoots,
        interrupts: bool,
        area: &VectorArea,
    ) -> Result<Trap<u32>, Error> {
        self.check_vectors()?;
        let area = [area.sandbox, area.host].map(|set| set.cast::<[u8; VECTORS]>());
        // SAFETY: (1), (2).
        unsafe {
            area[1].write(cpu(|cpu| cpu.vectors));
            cpu(|cpu| cpu.vectors = area[0].read());
            let result = self.enter(gate, registers, roots, interrupts);
            area[0].write(cpu(|cpu| cpu.vectors));
            cpu(|cpu| cpu.vectors = area[1].read());
            result
        }
    }

    fn diagnose(&self, registers: &Registers, memory: &dyn Memory) -> Cause {
        if let Some(address) = cpu(|cpu| cpu.probe) {
            let mut bytes = [0; 16];
            let count = memory.fetch(address, &mut bytes);
            let word = memory.load(address);
            cpu(|cpu| cpu.probed = Some((bytes[..count].into(), word)));
        }
        registers.cause.expect("no fault")
    }

    unsafe fn forward(interrupt: u32, interrupts: bool) {
        assert!(interrupts_masked());
        cpu(|cpu| {
            cpu.forwarded.push(interrupt);
            cpu.masked = interrupts;
        });
    }

    fn program_counter(registers: &Registers) -> VirtAddr {
        VirtAddr(registers.at)
    }
}
