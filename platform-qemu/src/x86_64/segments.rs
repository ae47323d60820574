//! Each CPU's descriptor table and task state segment.

use core::{cell::UnsafeCell, mem::MaybeUninit};

use x86_64::{
    VirtAddr,
    instructions::{
        segmentation::{CS, DS, ES, FS, GS, SS, Segment},
        tables::load_tss,
    },
    registers::segmentation::SegmentSelector,
    structures::{
        gdt::{Descriptor, GlobalDescriptorTable},
        tss::TaskStateSegment,
    },
};

use crate::cpu::{self, MAX_CPUS};

/// IST slots of the kernel's, counted from 1 as the processor does. 3 to 7 are free.
pub const IST_DOUBLE_FAULT: u8 = 1;
/// See [`IST_DOUBLE_FAULT`].
pub const IST_NMI: u8 = 2;

const STACK_SIZE: usize = 16 << 10;

type Stack = [u8; STACK_SIZE];

/// What the processor uses of a CPU's. On pages of its own: others may be allowed to see the segment's.
#[repr(C, align(4096))]
struct Tables {
    task: TaskStateSegment,
    descriptors: GlobalDescriptorTable,
    double_fault: Stack,
    nmi: Stack,
}

struct Shared(UnsafeCell<[MaybeUninit<Tables>; MAX_CPUS]>);

// SAFETY: each element is written by `init` on its CPU, before anything else runs there; afterwards it is the processor's,
// except for the stack pointers in the segment, which the CPU itself sets.
unsafe impl Sync for Shared {}

static TABLES: Shared = Shared(UnsafeCell::new([const { MaybeUninit::uninit() }; MAX_CPUS]));

fn tables(cpu: usize) -> *mut Tables {
    assert!(cpu < MAX_CPUS);
    // SAFETY: the index is in the array; no reference is made.
    unsafe { TABLES.0.get().cast::<Tables>().add(cpu) }
}

/// The address of this CPU's task state segment.
pub fn tss_address() -> u64 {
    // SAFETY: only computes an address.
    unsafe { &raw const (*tables(cpu::index())).task as u64 }
}

/// The stack for privilege level 0 in the task state segment of a CPU.
fn kernel_stack_slot(cpu: usize) -> *mut VirtAddr {
    // SAFETY: only computes an address.
    unsafe { (&raw mut (*tables(cpu)).task.privilege_stack_table).cast() }
}

/// Where an interrupt of unprivileged code pushes on this CPU.
pub fn kernel_stack() -> u64 {
    kernel_stack_of(cpu::index())
}

/// Where an interrupt of unprivileged code pushes on a CPU that has been up since the boot.
pub(crate) fn kernel_stack_of(cpu: usize) -> u64 {
    // SAFETY: the CPU's `init` has filled the segment in, whose fields aren't aligned.
    unsafe { kernel_stack_slot(cpu).read_unaligned() }.as_u64()
}

/// Changes where an interrupt of unprivileged code pushes on this CPU. This kernel has no such code: it does as others do.
pub fn set_kernel_stack(top: u64) {
    // SAFETY: the CPU's own segment, whose fields aren't aligned. The processor reads it only in unprivileged mode.
    unsafe { kernel_stack_slot(cpu::index()).write_unaligned(VirtAddr::new(top)) };
}

/// Fills in and loads the tables of this CPU, which is number `cpu`.
pub(super) fn init(cpu: usize) {
    let tables = tables(cpu);
    // SAFETY: called once on each CPU, by the boot, before anything else looks at its tables, which live as long as the static.
    // The selectors name what each register needs.
    unsafe {
        let mut task = TaskStateSegment::new();
        let top = |stack: *mut Stack| VirtAddr::from_ptr(stack) + STACK_SIZE as u64;
        task.interrupt_stack_table[usize::from(IST_DOUBLE_FAULT - 1)] = top(&raw mut (*tables).double_fault);
        task.interrupt_stack_table[usize::from(IST_NMI - 1)] = top(&raw mut (*tables).nmi);
        (&raw mut (*tables).task).write(task);

        let descriptors = &raw mut (*tables).descriptors;
        descriptors.write(GlobalDescriptorTable::new());
        let descriptors = &mut *descriptors;
        let code = descriptors.append(Descriptor::kernel_code_segment());
        let data = descriptors.append(Descriptor::kernel_data_segment());
        let task = descriptors.append(Descriptor::tss_segment_unchecked(&raw const (*tables).task));
        descriptors.load_unsafe();
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(SegmentSelector::NULL);
        ES::set_reg(SegmentSelector::NULL);
        FS::set_reg(SegmentSelector::NULL);
        GS::set_reg(SegmentSelector::NULL);
        load_tss(task);
    }
}
