//! The GICv3 and the CPU's interrupt masks.
//!
//! Every interrupt is in group 1 of the only security state, so it arrives as IRQ, level-sensitive
//! unless its source says otherwise. An interrupt stays pending until it is acknowledged here: code
//! that unmasks later, on another path, still gets it.

use super::Frame;
use super::device_tree::Devices;
use super::{local, secondary};
use crate::cpu;
use crate::lock::MaskedLock;
use crate::paging::map_device;
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{DAIF, Readable};
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicV3, Group, SecureIntGroup, SgiTarget, SgiTargetGroup};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};
use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Interrupt numbers: SGIs, PPIs and SPIs without the extended ranges.
pub const LINES: usize = 1020;

/// Sizes of the register blocks: the distributor's, one redistributor's.
const GICD_SIZE: u64 = 0x1_0000;
const GICR_SIZE: u64 = 0x2_0000;

/// Where a redistributor has the bits that take pending interrupts back: in its second frame (Arm IHI 0069, section 12.11).
const GICR_ICPENDR0: usize = 0x1_0280;

/// The first redistributor's registers.
static REDISTRIBUTORS: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

/// The CPU that sets the distributor up.
const BOOT_CPU: usize = 0;

/// Lines between CPUs, software-generated interrupts both: one whose handler does nothing, and the one behind
/// [`crate::cpu::on_each`].
pub(crate) const KICK: usize = 15;
pub(crate) const CALL: usize = 14;

/// Interrupts that were gone before they could be acknowledged.
static SPURIOUS: AtomicU64 = AtomicU64::new(0);

/// How many spurious interrupts have arrived.
pub fn spurious_count() -> u64 {
    SPURIOUS.load(Ordering::Relaxed)
}

/// Lets every priority through.
const LOWEST_PRIORITY: u8 = 0xff;

static GIC: MaskedLock<Option<GicV3<'static>>> = MaskedLock::new(None);

/// Maps the registers of the GIC.
pub(super) fn map(devices: &Devices) -> Registers {
    let map = |address, size| NonNull::new(map_device(address, size)).expect("never at zero");
    let redistributors = map(devices.gicr, GICR_SIZE * secondary::present() as u64);
    REDISTRIBUTORS.store(redistributors.as_ptr(), Ordering::Relaxed);
    Registers { distributor: map(devices.gicd, GICD_SIZE).cast(), redistributor: redistributors.cast() }
}

/// Where the registers of the GIC are mapped, as device memory.
pub(super) struct Registers {
    distributor: NonNull<Gicd>,
    /// The first, which is the boot CPU's; those of the others follow.
    redistributor: NonNull<GicrSgi>,
}

/// Sets the GIC up for the boot CPU; every interrupt is still disabled.
pub(super) fn init(registers: Registers) {
    // SAFETY: `map` has mapped the distributor, and this is its only driver.
    let distributor = unsafe { UniqueMmioPointer::new(registers.distributor) };
    // SAFETY: the same for the redistributors, one for each CPU.
    let gic = unsafe { GicV3::new(distributor, registers.redistributor, secondary::present()) };
    let mut gic = gic.expect("the GIC has a redistributor layout that GICv3 doesn't define");
    for cpu in 0..secondary::present() {
        let affinity = gic.gicr_typer(cpu).expect("there is one for each CPU").core_mpidr();
        assert!(affinity == local::affinity_of(cpu), "the redistributors are in another order than the CPUs");
    }
    gic.setup(BOOT_CPU);
    GicCpuInterface::set_priority_mask(LOWEST_PRIORITY);
    GIC.with(|slot| *slot = Some(gic));
}

/// Sets up the part of another CPU, this one.
pub(super) fn init_cpu(cpu: usize) {
    with(|gic| gic.init_cpu(cpu));
    GicCpuInterface::set_priority_mask(LOWEST_PRIORITY);
    // Nothing is in group 0 until `deliver_as_fiq` puts it there.
    GicCpuInterface::enable_group0(true);
    GicCpuInterface::enable_group1(true);
}

fn with<R>(work: impl FnOnce(&mut GicV3<'static>) -> R) -> R {
    GIC.with(|gic| work(gic.as_mut().expect("the GIC is set up at boot")))
}

/// Does something to an interrupt: once, or, to a CPU's own, on each CPU.
fn on_each(id: IntId, mut work: impl FnMut(&mut GicV3<'static>, Option<usize>)) {
    with(|gic| match id.is_private() {
        true => (0..secondary::present()).for_each(|cpu| work(gic, Some(cpu))),
        false => work(gic, None),
    });
}

/// Lets an interrupt through, on all CPUs if each has its own.
pub(crate) fn open(line: usize) {
    let id = interrupt(line);
    on_each(id, |gic, cpu| gic.enable_interrupt(id, cpu, true).expect("the GIC doesn't have this interrupt"));
}

/// Gives a line the highest priority there is, so that it interrupts the handlers of others, if they let it.
///
/// # Panics
///
/// If the GIC has no such line.
pub fn make_urgent(line: usize) {
    let id = interrupt(line);
    on_each(id, |gic, cpu| gic.set_interrupt_priority(id, cpu, 0).expect("the GIC has this interrupt"));
}

/// Takes a software-generated interrupt back that was sent to a CPU and that it has not acknowledged yet.
///
/// # Panics
///
/// If the line isn't 0 to 15.
pub fn withdraw(cpu: usize, line: usize) {
    assert!(interrupt(line).is_sgi() && cpu < secondary::present(), "only lines 0 to 15 of a CPU can be withdrawn");
    // The driver has no such function. It keeps nothing of the register, which takes single bits.
    let register = REDISTRIBUTORS.load(Ordering::Relaxed).wrapping_add(cpu * GICR_SIZE as usize + GICR_ICPENDR0);
    // SAFETY: `map` has mapped the redistributors of all CPUs, and keeps them mapped.
    unsafe { register.cast::<u32>().write_volatile(1 << line) };
}

/// Makes an interrupt arrive as FIQ: moves it to group 0. Its handler stays the same. With
/// `false` it arrives as IRQ again, which is how every interrupt starts.
///
/// # Panics
///
/// If the GIC has no such line.
pub fn deliver_as_fiq(line: usize, fiq: bool) {
    let id = interrupt(line);
    let group = || if fiq { Group::Secure(SecureIntGroup::Group0) } else { Group::Group1NS };
    on_each(id, |gic, cpu| gic.set_group(id, cpu, group()).expect("the GIC has this interrupt"));
    with(|gic| gic.distributor().enable_group0(true));
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
    crate::interrupts::without(|| send_sgi(cpu::index(), line, group));
}

/// Sends a software-generated interrupt (lines 0 to 15) to a CPU, which may be this one.
///
/// # Panics
///
/// If the line isn't one of these.
pub fn send(cpu: usize, line: usize) {
    send_sgi(cpu, line, SgiTargetGroup::CurrentGroup1);
}

fn send_sgi(cpu: usize, line: usize, group: SgiTargetGroup) {
    // MPIDR_EL1: the fields from low to high, with a byte of other things below the highest.
    let [affinity0, affinity1, affinity2, _, affinity3, ..] = local::affinity_of(cpu).to_le_bytes();
    let target = SgiTarget::List { affinity3, affinity2, affinity1, target_list: 1 << affinity0 };
    // What was written before has to be there when the other CPU looks.
    barrier::dsb(barrier::ISHST);
    GicCpuInterface::send_sgi(interrupt(line), target, group).expect("only lines 0 to 15 can be sent");
    barrier::isb(barrier::SY);
}

/// The GIC's name for a line.
fn interrupt(line: usize) -> IntId {
    let id = u32::try_from(line).ok().and_then(|line| IntId::try_from(line).ok());
    id.expect("no such interrupt number")
}

/// An IRQ in the kernel. The vectors call this, interrupts masked.
pub(super) extern "C" fn irq(frame: &Frame) {
    handle(InterruptGroup::Group1, frame);
}

/// An FIQ in the kernel: only group 0 makes one, where [`deliver_as_fiq`] puts an interrupt.
pub(super) extern "C" fn fiq(frame: &Frame) {
    handle(InterruptGroup::Group0, frame);
}

fn handle(group: InterruptGroup, frame: &Frame) {
    let Some(id) = GicCpuInterface::get_and_acknowledge_interrupt(group) else {
        // What was pending is gone by now; there is nothing to end.
        SPURIOUS.fetch_add(1, Ordering::Relaxed);
        return;
    };
    crate::interrupts::handle(u32::from(id) as usize, frame, || GicCpuInterface::end_interrupt(id, group));
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
