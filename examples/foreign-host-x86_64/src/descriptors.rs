//! Descriptor table, task state and exception table, in one private static.
//!
//! The descriptor table has no selectors of ring 3: the kernel's own segments and the task state are all it needs to run. Processes
//! run on a second table, which has the same and two segments for ring 3 behind it. The kernel loads that just before it goes to
//! ring 3, and the one it found when it comes back ([`enter_process`], [`leave_process`]). So while kernel threads run, and may call
//! sandboxes, the table is the one that the HAL put there. With the setting `shared` both are one, as in most kernels.
//!
//! Interrupt stacks 3 and 6 are in use: for NMI and double fault, and for the busy clock.

use core::cell::UnsafeCell;

use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::{lgdt, lidt, load_tss, sgdt};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use crate::traps;

/// Selectors.
pub(crate) const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const TASK: u16 = 0x18;
/// What SYSRET counts from: data behind it, code behind that.
pub(crate) const USER_BASE: u16 = 0x20;
/// A process's stack segment.
pub(crate) const USER_DATA: u16 = 0x28 | 3;
/// A process's code segment.
pub(crate) const USER_CODE: u16 = 0x30 | 3;

/// The interrupt stacks that this kernel leaves to others.
pub(crate) const FREE_STACKS: [u8; 5] = [1, 2, 4, 5, 7];
/// And its own two.
pub(crate) const EMERGENCY_STACK: u8 = 3;
/// The busy clock's.
pub(crate) const CLOCK_STACK: u8 = 6;

const STACK: usize = 16 << 10;

#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; STACK]>);

// SAFETY: the CPU alone uses it, one handler at a time.
unsafe impl Sync for Stack {}

static STACKS: [Stack; 2] = [const { Stack(UnsafeCell::new([0; STACK])) }; 2];

impl Stack {
    fn top(&self) -> VirtAddr {
        VirtAddr::from_ptr(self.0.get()) + STACK as u64
    }
}

type Gdt = GlobalDescriptorTable<8>;

struct Tables {
    gdt: Gdt,
    process_gdt: Gdt,
    /// What GDTR held before the process's table; nothing while both are one.
    kernel_gdtr: Option<DescriptorTablePointer>,
    shared: bool,
    tss: TaskStateSegment,
    idt: [[u64; 2]; 256],
}

struct Private(UnsafeCell<Tables>);

// SAFETY: there is one CPU, and it changes the tables with interrupts masked.
unsafe impl Sync for Private {}

static TABLES: Private = Private(UnsafeCell::new(Tables {
    gdt: Gdt::new(),
    process_gdt: Gdt::new(),
    kernel_gdtr: None,
    shared: false,
    tss: TaskStateSegment::new(),
    idt: [[0; 2]; 256],
}));

/// Present, an interrupt gate.
const GATE: u64 = 0x8e << 40;

/// Loads segments and exception table, but not the task state.
pub(crate) fn init(shared: bool) {
    // SAFETY: nobody uses the tables yet, and the selectors are theirs.
    unsafe {
        let tables = &mut *TABLES.0.get();
        tables.shared = shared;
        for gdt in [&mut tables.gdt, &mut tables.process_gdt] {
            assert_eq!(gdt.append(Descriptor::kernel_code_segment()).0, KERNEL_CODE);
            assert_eq!(gdt.append(Descriptor::kernel_data_segment()).0, KERNEL_DATA);
            assert_eq!(gdt.append(Descriptor::tss_segment_unchecked(&raw const (*TABLES.0.get()).tss)).0, TASK);
        }
        let with_processes = if shared {
            &mut [&mut tables.gdt, &mut tables.process_gdt][..]
        } else {
            &mut [&mut tables.process_gdt][..]
        };
        for gdt in with_processes {
            assert_eq!(gdt.append(Descriptor::user_data_segment()).0, USER_DATA);
            assert_eq!(gdt.append(Descriptor::user_code_segment()).0, USER_CODE);
        }
        tables.tss.interrupt_stack_table[usize::from(EMERGENCY_STACK) - 1] = STACKS[0].top();
        tables.tss.interrupt_stack_table[usize::from(CLOCK_STACK) - 1] = STACKS[1].top();
        for (vector, handler, stack) in traps::handlers() {
            tables.idt[usize::from(vector)] = [
                handler & 0xffff
                    | u64::from(KERNEL_CODE) << 16
                    | u64::from(stack) << 32
                    | GATE
                    | (handler >> 16 & 0xffff) << 48,
                handler >> 32,
            ];
        }
        let tables = &*TABLES.0.get();
        tables.gdt.load_unsafe();
        CS::set_reg(SegmentSelector(KERNEL_CODE));
        for set in [SS::set_reg, DS::set_reg, ES::set_reg] {
            set(SegmentSelector(KERNEL_DATA));
        }
        lidt(&pointer(&raw const tables.idt));
    }
}

/// Loads the task state.
pub(crate) fn load_task_state() {
    // SAFETY: its descriptor is there, and available.
    unsafe { load_tss(SegmentSelector(TASK)) };
}

fn pointer<T>(table: *const T) -> DescriptorTablePointer {
    DescriptorTablePointer { base: VirtAddr::from_ptr(table), limit: size_of::<T>() as u16 - 1 }
}

/// Names the stack of the thread that runs, for interrupts of processes. Called with interrupts masked.
pub(crate) fn set_interrupt_stack(top: u64) {
    // SAFETY: the table is in use, but this word is written by nobody else; interrupts are masked.
    unsafe { (&raw mut (*TABLES.0.get()).tss.privilege_stack_table[0]).write_unaligned(VirtAddr::new(top)) };
}

/// Whether the address is on the busy clock's interrupt stack.
pub(crate) fn is_on_clock_stack(address: u64) -> bool {
    let top = STACKS[1].top().as_u64();
    (top - STACK as u64..top).contains(&address)
}

/// The last thing before ring 3, with interrupts masked: the table that has its segments.
pub(crate) extern "C" fn enter_process() {
    // SAFETY: both tables have the kernel's segments at the same places, so nothing changes for it.
    unsafe {
        let tables = TABLES.0.get();
        if !(*tables).shared {
            (*tables).kernel_gdtr = Some(sgdt());
            (*tables).process_gdt.load_unsafe();
        }
    }
}

/// The first thing after it, with interrupts masked: the table that was there before.
pub(crate) extern "C" fn leave_process() {
    // SAFETY: as above.
    unsafe {
        if let Some(gdtr) = (*TABLES.0.get()).kernel_gdtr {
            lgdt(&gdtr);
        }
    }
}
