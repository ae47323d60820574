//! The kernel's descriptor table and its task state segment.

use core::{cell::UnsafeCell, ptr};

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

/// IST slots of the kernel's, counted from 1 as the processor does. 3 to 7 are free.
pub const IST_DOUBLE_FAULT: u8 = 1;
/// See [`IST_DOUBLE_FAULT`].
pub const IST_NMI: u8 = 2;

const STACK_SIZE: usize = 16 << 10;

#[repr(C, align(4096))]
struct Stack(UnsafeCell<[u8; STACK_SIZE]>);

// SAFETY: only the processor uses it, one exception at a time.
unsafe impl Sync for Stack {}

impl Stack {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; STACK_SIZE]))
    }

    fn top(&self) -> VirtAddr {
        VirtAddr::from_ptr(self.0.get()) + STACK_SIZE as u64
    }
}

static DOUBLE_FAULT_STACK: Stack = Stack::new();
static NMI_STACK: Stack = Stack::new();

/// The processor's tables. The segment's alignment keeps it within a page, as processors want it.
#[repr(C, align(128))]
struct Tables {
    task: TaskStateSegment,
    descriptors: GlobalDescriptorTable,
}

struct Shared(UnsafeCell<Tables>);

// SAFETY: written once by `init`, before anything else runs; afterwards the processor's.
unsafe impl Sync for Shared {}

static TABLES: Shared =
    Shared(UnsafeCell::new(Tables { task: TaskStateSegment::new(), descriptors: GlobalDescriptorTable::new() }));

/// The address of the task state segment.
pub fn tss_address() -> u64 {
    // SAFETY: no reference is made.
    unsafe { &raw const (*TABLES.0.get()).task as u64 }
}

/// Fills in and loads the tables.
pub(super) fn init() {
    // SAFETY: called once, by the boot, before anything else looks at the tables; the references
    // live as long as the static.
    let Tables { task, descriptors } = unsafe { &mut *TABLES.0.get() };
    task.interrupt_stack_table[usize::from(IST_DOUBLE_FAULT - 1)] = DOUBLE_FAULT_STACK.top();
    task.interrupt_stack_table[usize::from(IST_NMI - 1)] = NMI_STACK.top();
    let code = descriptors.append(Descriptor::kernel_code_segment());
    let data = descriptors.append(Descriptor::kernel_data_segment());
    // SAFETY: the static lives for ever.
    let task = descriptors.append(unsafe { Descriptor::tss_segment_unchecked(ptr::from_ref(task)) });
    // SAFETY: the table lives for ever, and the selectors name what each register needs.
    unsafe {
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
