//! The virt machine: AArch64, EL1, GICv3, PL011, generic timer, device tree.
//!
//! The kernel's half of the address space is TTBR1's, 48 bits with 4 KiB pages; TTBR0 leads to an
//! empty table. All mappings are global, unless asked otherwise. Vector and floating-point instructions trap. The kernel
//! runs on SP_EL1.

pub(crate) mod clock;
pub mod console;
pub(crate) mod context;
pub mod exit;
pub mod fw_cfg;
pub mod interrupts;
pub(crate) mod local;
pub mod paging;
pub(crate) mod secondary;
pub mod tick;

mod boot;
mod cpu;
mod device_tree;
mod machine_map;
mod mair;
mod report;
mod vectors;

pub use boot::IMAGE_OFFSET;
pub use cpu::instructions;
pub(crate) use vectors::InterruptFrame as Frame;

use crate::{memory, start};
use core::ops::Range;
use device_tree::DeviceTree;
use sandbox_mode::CpuConfig;

/// Ranges of RAM that the platform can take from the device tree.
const MAX_RAM_RANGES: usize = 16;

const BOOT_CPU: usize = 0;

/// The machine's part of the start, on the boot stack and the boot tables, interrupts masked.
extern "C" fn start() -> ! {
    vectors::install();
    crate::cpu::install(BOOT_CPU);
    console::init();
    cpu::init();
    let tree = DeviceTree::find();
    secondary::find(&tree);
    let devices = tree.devices();
    let heap = init_memory(&tree);
    paging::build(&tree);
    let uart = console::map();
    let gic = interrupts::map(&devices);
    fw_cfg::map(devices.fw_cfg);
    paging::activate();
    console::move_to(uart);
    interrupts::init(gic);
    start::run(heap)
}

/// Does what the command line asks of the machine, before interrupts are on and other CPUs run: with the argument `asids=low` or
/// `asids=high` nothing is mapped globally, and the kernel has an ASID of its own in that half's root.
///
/// # Panics
///
/// If the argument is anything else.
pub(crate) fn use_arguments(arguments: &str) {
    let half = match arguments.split_whitespace().find_map(|word| word.strip_prefix("asids=")) {
        None => return,
        Some("low") => paging::AsidHalf::Low,
        Some("high") => paging::AsidHalf::High,
        Some(other) => panic!("asids={other}: low or high"),
    };
    paging::use_asid(half);
}

/// What a CPU is started with for sandboxes.
pub(crate) fn cpu_config() -> CpuConfig {
    match paging::has_asid() {
        true => CpuConfig::default().asids(paging::FREE_ASIDS),
        false => CpuConfig::default(),
    }
}

/// Hands RAM to the frame allocator; returns the heap's part.
fn init_memory(tree: &DeviceTree) -> Range<u64> {
    let mut ranges = [const { 0..0 }; MAX_RAM_RANGES];
    let mut count = 0;
    // RAM beyond the last slot stays unused.
    for (slot, range) in ranges.iter_mut().zip(tree.memory()) {
        *slot = range;
        count += 1;
    }
    // SAFETY: the device tree lists the RAM; the tree itself and the image are all that is in use;
    // the boot tables' direct map reaches to `DIRECT_MAPPED`, the final one to the end of RAM; this
    // is the only call.
    unsafe { memory::init(&ranges[..count], &[tree.range()], boot::DIRECT_MAPPED) }
}
