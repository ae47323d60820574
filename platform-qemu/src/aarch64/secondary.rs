//! Bringing up the other CPUs, by PSCI.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::device_tree::DeviceTree;
use super::{IMAGE_OFFSET, boot, cpu as modes, interrupts, local, paging, vectors};
use crate::cpu::{self, MAX_CPUS, local_of};

/// CPU_ON for 64-bit callers, and its success (Arm DEN 0022, section 5.4).
const CPU_ON: u64 = 0xc400_0003;
const SUCCESS: i64 = 0;

/// What another CPU needs before it can run Rust code.
#[repr(C)]
pub(super) struct Handover {
    /// The root of the final tables, and a table without entries.
    pub(super) root: AtomicU64,
    pub(super) empty: AtomicU64,
    /// The tops of the stacks.
    pub(super) stacks: [AtomicU64; MAX_CPUS],
}

/// Read by [`boot::secondary`].
pub(super) static HANDOVER: Handover =
    Handover { root: AtomicU64::new(0), empty: AtomicU64::new(0), stacks: [const { AtomicU64::new(0) }; MAX_CPUS] };

/// How many CPUs the machine has, this one included.
static PRESENT: AtomicUsize = AtomicUsize::new(1);

/// Takes the CPUs' affinities from the device tree, in its order, which is that of the redistributors.
pub(super) fn find(tree: &DeviceTree) {
    let mut count = 0;
    tree.each_cpu(|affinity| {
        if count < MAX_CPUS {
            local_of(count).machine.affinity.store(affinity, Ordering::Relaxed);
            count += 1;
        }
    });
    PRESENT.store(count.max(1), Ordering::Relaxed);
}

/// How many CPUs the machine has, this one included; those that nobody will bring up don't count.
pub(crate) fn present() -> usize {
    PRESENT.load(Ordering::Relaxed)
}

/// Starts all but this one, as far as there are stacks.
///
/// # Panics
///
/// If the firmware refuses.
pub(crate) fn start(count: usize, stacks: &[u64; MAX_CPUS]) {
    for (slot, stack) in HANDOVER.stacks.iter().zip(stacks) {
        slot.store(*stack, Ordering::Relaxed);
    }
    HANDOVER.root.store(paging::kernel_root(), Ordering::Relaxed);
    HANDOVER.empty.store(paging::empty_root(), Ordering::Release);
    let entry = boot::secondary as *const () as u64 - IMAGE_OFFSET;
    for cpu in 1..count {
        // The other CPU reads what was written here with its MMU and caches on already.
        let result = cpu_on(local::affinity_of(cpu), entry, cpu as u64);
        assert!(result == SUCCESS, "PSCI does not start CPU {cpu}: {result}");
    }
}

/// Has the firmware start a CPU at a physical address, with `context` in x0.
fn cpu_on(affinity: u64, entry: u64, context: u64) -> i64 {
    let result: u64;
    // SAFETY: the machine's firmware takes PSCI calls by HVC. The CPU starts at code made for it; here nothing changes but the
    // registers that a call may change (SMC Calling Convention, section 2.5).
    unsafe {
        asm!(
            "dsb ish",
            "hvc #0",
            inout("x0") CPU_ON => result,
            inout("x1") affinity => _,
            inout("x2") entry => _,
            inout("x3") context => _,
            clobber_abi("C"),
            options(nostack),
        );
    }
    result as i64
}

/// The first Rust code of another CPU: on its own stack and the final tables, interrupts masked.
pub(super) extern "C" fn start_secondary(index: usize) -> ! {
    vectors::install();
    cpu::install(index);
    modes::init();
    paging::finish();
    interrupts::init_cpu(index);
    cpu::run_secondary()
}
