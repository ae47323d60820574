//! The GICv3 and the CPU's interrupt masks.
//!
//! Every interrupt is in group 1 of the only security state, so it arrives as IRQ, level-sensitive
//! unless its source says otherwise. An interrupt stays pending until it is acknowledged here: code
//! that unmasks later, on another path, still gets it.

use super::device_tree::Devices;
use crate::lock::MaskedLock;
use crate::paging::map_device;
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{DAIF, Readable};
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicV3, Group, SecureIntGroup, SgiTarget, SgiTargetGroup};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};
use core::arch::asm;
use core::ptr::NonNull;

/// Interrupt numbers: SGIs, PPIs and SPIs without the extended ranges.
pub const LINES: usize = 1020;

/// Sizes of the register blocks: the distributor's, one redistributor's.
const GICD_SIZE: u64 = 0x1_0000;
const GICR_SIZE: u64 = 0x2_0000;

/// The only CPU that runs.
const BOOT_CPU: usize = 0;

/// Lets every priority through.
const LOWEST_PRIORITY: u8 = 0xff;

static GIC: MaskedLock<Option<GicV3<'static>>> = MaskedLock::new(None);

/// Maps the registers of the GIC.
pub(super) fn map(devices: &Devices) -> Registers {
    let map = |address, size| NonNull::new(map_device(address, size)).expect("never at zero");
    Registers { distributor: map(devices.gicd, GICD_SIZE).cast(), redistributor: map(devices.gicr, GICR_SIZE).cast() }
}

/// Where the registers of the GIC are mapped, as device memory.
pub(super) struct Registers {
    distributor: NonNull<Gicd>,
    /// The boot CPU's, which is the first.
    redistributor: NonNull<GicrSgi>,
}

/// Sets the GIC up for the boot CPU; every interrupt is still disabled.
pub(super) fn init(registers: Registers) {
    // SAFETY: `map` has mapped the distributor, and this is its only driver.
    let distributor = unsafe { UniqueMmioPointer::new(registers.distributor) };
    // SAFETY: the same for the redistributor; there is one because there is one CPU.
    let gic = unsafe { GicV3::new(distributor, registers.redistributor, 1) };
    let mut gic = gic.expect("the GIC has a redistributor layout that GICv3 doesn't define");
    gic.setup(BOOT_CPU);
    GicCpuInterface::set_priority_mask(LOWEST_PRIORITY);
    GIC.with(|slot| *slot = Some(gic));
}

/// Lets an interrupt through.
pub(crate) fn open(line: usize) {
    let id = interrupt(line);
    GIC.with(|gic| {
        gic.as_mut()
            .expect("the GIC is set up at boot")
            .enable_interrupt(id, Some(BOOT_CPU), true)
            .expect("the GIC doesn't have this interrupt");
    });
}

/// Makes an interrupt arrive as FIQ: moves it to group 0. Its handler stays the same. With
/// `false` it arrives as IRQ again, which is how every interrupt starts.
///
/// # Panics
///
/// If the GIC has no such line.
pub fn deliver_as_fiq(line: usize, fiq: bool) {
    let id = interrupt(line);
    let group = if fiq { Group::Secure(SecureIntGroup::Group0) } else { Group::Group1NS };
    GIC.with(|gic| {
        let gic = gic.as_mut().expect("the GIC is set up at boot");
        gic.set_group(id, Some(BOOT_CPU), group).expect("the GIC has this interrupt");
        gic.distributor().enable_group0(true);
    });
    GicCpuInterface::enable_group0(true);
}

/// Raises a software-generated interrupt (lines 0 to 15) on this CPU. It is pending when this
/// returns, or was taken.
///
/// # Panics
///
/// If the line isn't one of these.
pub fn raise(line: usize, fiq: bool) {
    let group = if fiq { SgiTargetGroup::Group0 } else { SgiTargetGroup::CurrentGroup1 };
    // The boot CPU is the one with all affinity fields zero.
    let target = SgiTarget::List { affinity3: 0, affinity2: 0, affinity1: 0, target_list: 1 << BOOT_CPU };
    GicCpuInterface::send_sgi(interrupt(line), target, group).expect("only lines 0 to 15 can be raised");
    barrier::isb(barrier::SY);
}

/// The GIC's name for a line.
fn interrupt(line: usize) -> IntId {
    let id = u32::try_from(line).ok().and_then(|line| IntId::try_from(line).ok());
    id.expect("no such interrupt number")
}

/// An IRQ in the kernel. The vectors call this, interrupts masked.
pub(super) extern "C" fn irq() {
    handle(InterruptGroup::Group1);
}

/// An FIQ in the kernel: only group 0 makes one, where [`deliver_as_fiq`] puts an interrupt.
pub(super) extern "C" fn fiq() {
    handle(InterruptGroup::Group0);
}

fn handle(group: InterruptGroup) {
    // What was pending may be gone by now; there is then nothing to end.
    GicCpuInterface::handle_interrupt(group, |id| {
        crate::interrupts::dispatch(u32::from(id) as usize);
    });
}

/// The CPU's interrupt masks, as [`disable`] found them.
#[derive(Clone, Copy, Debug)]
pub struct State(u64);

/// Whether IRQs are taken.
pub fn enabled() -> bool {
    !DAIF.is_set(DAIF::I)
}

/// Unmasks IRQ, FIQ, SError and debug exceptions.
pub fn enable() {
    // SAFETY: the vectors are in place before anything calls this, and take whatever comes.
    unsafe { asm!("msr daifclr, #0b1111", options(nostack, preserves_flags)) };
}

/// Masks IRQ and FIQ, and returns the masks as they were.
pub fn disable() -> State {
    let state = State(DAIF.get());
    // SAFETY: masking has no effect on memory safety. Not `nomem`: what follows must stay inside.
    unsafe { asm!("msr daifset, #0b0011", options(nostack, preserves_flags)) };
    state
}

/// Puts the masks back as [`disable`] found them.
pub fn restore(state: State) {
    // SAFETY: brings back masks that were in force before.
    unsafe { asm!("msr daif, {}", in(reg) state.0, options(nostack, preserves_flags)) };
}

/// Waits until an interrupt is pending, masked or not.
pub fn wait() {
    // SAFETY: WFI changes nothing.
    unsafe { asm!("wfi", options(nostack, preserves_flags)) };
}
