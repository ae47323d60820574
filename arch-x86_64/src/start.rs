//! Making a CPU ready: the exception table and descriptor table of the gate, and the stacks in the host's task state.
//!
//! What changes on the CPU, once, is listed at [`CpuConfig`]. The I/O bitmap base is moved since one that points into the task
//! state itself (zero, as many kernels leave it) would make permissions of the stack pointers there. The host goes on writing to
//! its task state where it always did; its old descriptor table is out of use, and GDTR says where the copy is.

use core::mem::offset_of;
use core::ptr::NonNull;

use sandbox_core::arch::FatalHook;
use sandbox_core::{Error, Frame, PAGE_SIZE, Page, Unsupported, VirtAddr};
use x86_64::instructions::tables::{load_tss, sgdt, sidt};
use x86_64::registers::segmentation::{CS, Segment};
use x86_64::structures::gdt::{Descriptor, DescriptorFlags, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use crate::gate::{CALL_VECTOR, DEBUG, DOUBLE_FAULT, Gate, MACHINE_CHECK, NMI, Stack, State, TableRegister, stub};
use crate::registers::Frame as RegisterFrame;
use crate::state::Closures;

/// What the HAL needs to know of a CPU when it starts there.
///
/// Starting a CPU with it also says:
///
/// 1. The host maps no page global that unprivileged code may use: such a translation would outlive the switch to a view.
///    (Global pages for privileged code are harmless: the first spurious fault that one makes has this CPU run sandboxes with
///    CR4.PGE off.)
/// 2. EFER.SCE, IA32_SYSENTER_CS, CR4 and XCR0 are as they will stay on this CPU.
/// 3. Devices raise only vectors from 32 on.
/// 4. The host agrees to what start-up changes, and leaves it so: GDTR names a copy of its table with two ring-3 segments behind
///    it (what changes in its own table afterwards has no effect); TR names its own task state through a second mapping, with a limit
///    that ends before any I/O bitmap, whose base is moved behind the task state's end if it was lower; the five `free_stacks`
///    entries are the gate's; a null LDTR loses the table that a reset leaves behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct CpuConfig {
    /// Five interrupt stack table entries (1 to 7) of this CPU's task state that the host does not use.
    pub free_stacks: [u8; 5],
}

impl Default for CpuConfig {
    /// Entries 3 to 7.
    fn default() -> Self {
        CpuConfig { free_stacks: [3, 4, 5, 6, 7] }
    }
}

impl CpuConfig {
    /// The same with these interrupt stack table entries.
    #[must_use]
    pub fn free_stacks(mut self, entries: [u8; 5]) -> Self {
        self.free_stacks = entries;
        self
    }
}

/// Entries of the gate's descriptor table.
const DESCRIPTORS: usize = (offset_of!(Gate, state) - offset_of!(Gate, gdt)) / size_of::<u64>();
/// Descriptor types of a 64-bit task state, and a call gate (SDM 3, table 3-2).
const TSS_AVAILABLE: u64 = 0x9;
const TSS_BUSY: u64 = 0xb;
const CALL_GATE: u64 = 0xc;
const TYPE_SHIFT: u32 = 40;
/// Type and the S bit, which is clear in system descriptors.
const TYPE_MASK: u64 = 0x1f;
/// An interrupt gate that is present (SDM 3, figure 7-8).
const INTERRUPT_GATE: u64 = 0x8e << 40;
const GATE_DPL3: u64 = 3 << 45;
const GATE_PRESENT: u64 = 1 << 47;
const GATE_IST_SHIFT: u32 = 32;

fn descriptor_type(descriptor: u64) -> u64 {
    descriptor >> TYPE_SHIFT & TYPE_MASK
}

/// The base address in a 16-byte task state descriptor.
fn task_state_base(low: u64, high: u64) -> u64 {
    low >> 16 & 0xff_ffff | (low >> 56 & 0xff) << 24 | high << 32
}

/// The host's descriptor table and where in it the task state's descriptor stands.
struct HostTables {
    gdt: *const u64,
    entries: usize,
    task: usize,
}

impl HostTables {
    /// Reads GDTR and TR and checks what they lead to.
    fn find() -> Result<HostTables, Error> {
        let gdtr = sgdt();
        let selector: u16;
        // SAFETY: reading TR has no effect.
        unsafe { core::arch::asm!("str {:x}", out(reg) selector, options(nomem, nostack, preserves_flags)) };
        let tables = HostTables {
            gdt: core::ptr::with_exposed_provenance(gdtr.base.as_u64() as usize),
            entries: (usize::from(gdtr.limit) + 1) / size_of::<u64>(),
            task: usize::from(selector) / size_of::<u64>(),
        };
        // Before the entries are read: a table with the largest limit need not be there to its end.
        if tables.entries.max(1) + 2 > DESCRIPTORS {
            return Err(Unsupported::Missing("room for two more entries in a descriptor table of one page").into());
        }
        let is_task = tables.task != 0
            && tables.task + 1 < tables.entries
            && matches!(descriptor_type(tables.entry(tables.task)), TSS_AVAILABLE | TSS_BUSY);
        if !is_task {
            return Err(Unsupported::Missing("a 64-bit task state (TR)").into());
        }
        if (0..tables.entries).any(|index| descriptor_type(tables.entry(index)) == CALL_GATE) {
            return Err(Unsupported::Enabled("a call gate in the descriptor table").into());
        }
        Ok(tables)
    }

    fn entry(&self, index: usize) -> u64 {
        assert!(index < self.entries);
        // SAFETY: GDTR says that so many entries are there, and the CPU itself reads them.
        unsafe { self.gdt.add(index).read_volatile() }
    }

    fn task_state(&self) -> u64 {
        task_state_base(self.entry(self.task), self.entry(self.task + 1))
    }
}

/// Frames of the page or two that the host's task state lies on.
pub(crate) fn host_frames(translate: &dyn Fn(Page) -> Option<Frame>, frames: &mut [Frame]) -> Result<usize, Error> {
    let base = VirtAddr(HostTables::find()?.task_state());
    let last = VirtAddr(base.0.wrapping_add(size_of::<TaskStateSegment>() as u64 - 1));
    let mut count = 0;
    for page in [base.page(), last.page()] {
        if count == 1 && page == base.page() {
            break;
        }
        frames[count] = translate(page).ok_or(Error::NotMapped(page))?;
        count += 1;
    }
    Ok(count)
}

/// Whether a gate of the exception table in force uses this entry of the interrupt stack table.
fn host_uses(entry: u8) -> bool {
    let idtr = sidt();
    let gates: *const [u64; 2] = core::ptr::with_exposed_provenance(idtr.base.as_u64() as usize);
    let count = (usize::from(idtr.limit) + 1) / size_of::<[u64; 2]>();
    (0..count.min(256)).any(|vector| {
        // SAFETY: IDTR says that so many gates are there, and the CPU itself reads them.
        let [low, _] = unsafe { gates.add(vector).read_volatile() };
        low & GATE_PRESENT != 0 && (low >> GATE_IST_SHIFT & 0b111) as u8 == entry
    })
}

/// Makes a null LDTR one without a table.
///
/// A CPU comes out of reset with a null selector in LDTR but a table behind it, at address 0 with the largest limit (SDM 3,
/// table 11-1): until somebody loads LDTR, unprivileged code can load selectors from whatever is mapped there.
///
/// # Safety
///
/// 1. The host has no use for a table behind a null selector.
unsafe fn unload_reset_table() {
    let selector: u16;
    // SAFETY: reading LDTR has no effect; loading null there is what it holds already, and (1) for the table.
    unsafe {
        core::arch::asm!("sldt {:x}", out(reg) selector, options(nomem, nostack, preserves_flags));
        if selector == 0 {
            core::arch::asm!("lldt {:x}", in(reg) 0_u16, options(nostack, preserves_flags));
        }
    }
}

/// Fills the gate's data and installs it.
///
/// # Safety
///
/// 1. As [`Arch::start_cpu`](sandbox_core::Arch::start_cpu).
pub(crate) unsafe fn start(page: Page, config: CpuConfig, hook: FatalHook) -> Result<NonNull<Gate>, Error> {
    let host = HostTables::find()?;
    let valid = |entry: &u8| (1..=7).contains(entry);
    let distinct = (0..5).all(|i| (0..i).all(|j| config.free_stacks[i] != config.free_stacks[j]));
    if !config.free_stacks.iter().all(valid) || !distinct {
        return Err(Unsupported::Missing("five different interrupt stack table entries from 1 to 7").into());
    }
    if config.free_stacks.iter().any(|&entry| host_uses(entry)) {
        return Err(
            Unsupported::Missing("interrupt stack table entries that the host's exception table leaves free").into()
        );
    }
    let user_code = host.entries.max(1);
    let closures = Closures::find();

    let start = page.start().0 as usize;
    let gate: *mut Gate = core::ptr::with_exposed_provenance_mut(start);
    // The task state's second mapping, behind the gate's own pages.
    let task_offset = host.task_state() as usize % PAGE_SIZE;
    let task: *mut TaskStateSegment = core::ptr::with_exposed_provenance_mut(start + size_of::<Gate>() + task_offset);
    let task_pages = (task_offset + size_of::<TaskStateSegment>()).div_ceil(PAGE_SIZE);

    // SAFETY: (1): the gate's pages are mapped, zeroed and nobody else's; the task state's pages follow, and nobody changes
    // the entries that `config` names. Everything but GDTR and TR is written before anything could use it, and
    // interrupts are masked.
    unsafe {
        let state = &raw mut (*gate).state;
        for index in 0..host.entries {
            (*gate).gdt[index] = host.entry(index);
        }
        let (low, high) = task_descriptor(task.expose_provenance() as u64);
        (*gate).gdt[host.task] = low;
        (*gate).gdt[host.task + 1] = high;
        (*gate).gdt[user_code] = user_descriptor(Descriptor::user_code_segment());
        (*gate).gdt[user_code + 1] = user_descriptor(Descriptor::user_data_segment());

        let stacks: [*mut Stack; 5] = [
            &raw mut (*state).exit,
            &raw mut (*state).nmi,
            &raw mut (*state).machine_check,
            &raw mut (*state).debug,
            &raw mut (*state).double_fault,
        ];
        for (stack, entry) in stacks.into_iter().zip(config.free_stacks) {
            (*stack).state = state;
            // As numbers: that crate's addresses have 48 bits.
            let top = (&raw const (*stack).state).addr() as u64;
            let entries = (&raw mut (*task).interrupt_stack_table).cast::<u64>();
            entries.add(usize::from(entry) - 1).write_unaligned(top);
        }
        let io_bitmap = &raw mut (*task).iomap_base;
        io_bitmap.write_unaligned(io_bitmap.read_unaligned().max(size_of::<TaskStateSegment>() as u16));
        let [exit, nmi, machine_check, debug, double_fault] = config.free_stacks;
        for vector in 0..=u8::MAX {
            let stack = match vector {
                NMI => nmi,
                MACHINE_CHECK => machine_check,
                DEBUG => debug,
                DOUBLE_FAULT => double_fault,
                _ => exit,
            };
            (*gate).idt[usize::from(vector)] = interrupt_gate(vector, stack);
        }

        let selector = |index: usize| (index * size_of::<u64>()) as u16 | 3;
        (*state).user_code = selector(user_code);
        (*state).user_data = selector(user_code + 1);
        (*state).exit.frame = RegisterFrame::default();
        (*state).closures = closures;
        (*state).has_debugctl = crate::probe::has_debugctl();
        (*state).task = (host.task * size_of::<u64>()) as u16;
        (*state).pages = (Gate::FRAMES + task_pages) as u64;
        (*state).hook = hook;
        (*state).idtr =
            TableRegister::new((&raw const (*gate).idt).addr() as u64, (size_of::<[[u64; 2]; 256]>() - 1) as u16);
        (*state).gdt_base = (&raw const (*gate).gdt).addr() as u64;

        let limit = ((user_code + 2) * size_of::<u64>() - 1) as u16;
        let gdtr = TableRegister::new((*state).gdt_base, limit);
        core::arch::asm!("lgdt [{}]", in(reg) &raw const gdtr, options(readonly, nostack, preserves_flags));
        load_tss(SegmentSelector((*state).task));
        unload_reset_table();
    }
    NonNull::new(gate).ok_or(Error::GateNotMapped)
}

/// A descriptor of a task state at `base`, available, whose limit leaves no room for an I/O bitmap.
fn task_descriptor(base: u64) -> (u64, u64) {
    let limit = size_of::<TaskStateSegment>() as u64 - 1;
    let low = limit
        | (base & 0xff_ffff) << 16
        | TSS_AVAILABLE << TYPE_SHIFT
        | DescriptorFlags::PRESENT.bits()
        | (base >> 24 & 0xff) << 56;
    (low, base >> 32)
}

/// A user segment, accessed beforehand: the CPU would write to the table otherwise.
fn user_descriptor(descriptor: Descriptor) -> u64 {
    match descriptor {
        Descriptor::UserSegment(bits) | Descriptor::SystemSegment(bits, _) => bits | DescriptorFlags::ACCESSED.bits(),
    }
}

/// The gate for `vector` on interrupt stack `stack`, in the host's code segment.
fn interrupt_gate(vector: u8, stack: u8) -> [u64; 2] {
    let stub = stub(vector);
    let privilege = if vector == CALL_VECTOR { GATE_DPL3 } else { 0 };
    let low = stub & 0xffff
        | u64::from(CS::get_reg().0) << 16
        | u64::from(stack) << GATE_IST_SHIFT
        | INTERRUPT_GATE
        | privilege
        | (stub >> 16 & 0xffff) << 48;
    [low, stub >> 32]
}

/// The state inside a gate.
pub(crate) fn state(gate: NonNull<Gate>) -> *mut State {
    // SAFETY: only computes an address inside the gate.
    unsafe { &raw mut (*gate.as_ptr()).state }
}
