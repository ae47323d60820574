//! A GICv3 driver: the distributor, one redistributor, the CPU interface by system registers (Arm IHI 0069, chapter 12).
//!
//! Group 1 arrives as IRQ, group 0 as FIQ: this machine has one security state.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::layout::{PAGE, RUN, device};
use crate::machine::Machine;
use crate::registers::{read, write};
use crate::tables;

/// Registers that distributor and redistributor have at the same offsets, with a bit or a byte for each interrupt.
const GROUP: usize = 0x080;
const ENABLE: usize = 0x100;
const PRIORITY: usize = 0x400;
/// Of the distributor.
const CONTROL: usize = 0x000;
const ROUTE: usize = 0x6000;
/// Both groups, affinity routing (GICD_CTLR with DS = 1).
const CONTROL_ON: u32 = 1 << 0 | 1 << 1 | 1 << 4;
const CONTROL_PENDING: u32 = 1 << 31;
/// Of the redistributor: waking it, and its second half, which has the interrupts' registers.
const WAKER: usize = 0x014;
const ASLEEP: u32 = 1 << 1;
const CHILDREN_ASLEEP: u32 = 1 << 2;
const INTERRUPTS: usize = 0x1_0000;

/// The first interrupt that all CPUs share.
const FIRST_SHARED: u32 = 32;
/// What an acknowledgement says when there is nothing.
const NOTHING: u32 = 1020;
const URGENCY: u8 = 0x80;

/// How an interrupt arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Irq,
    Fiq,
}

/// Where the two are mapped.
static DISTRIBUTOR: AtomicU64 = AtomicU64::new(0);
static REDISTRIBUTOR: AtomicU64 = AtomicU64::new(0);

/// Maps the controller and switches it on for this CPU, with no interrupt enabled.
pub(crate) fn start(machine: &Machine) {
    tables::map_device(machine.distributor, RUN).expect("memory for tables");
    tables::map_device(machine.redistributor, 2 * RUN).expect("memory for tables");
    DISTRIBUTOR.store(machine.distributor, Ordering::Relaxed);
    REDISTRIBUTOR.store(machine.redistributor, Ordering::Relaxed);
    update(distributor(CONTROL), |_| CONTROL_ON);
    wait(distributor(CONTROL), CONTROL_PENDING);
    update(redistributor(WAKER), |value| value & !ASLEEP);
    wait(redistributor(WAKER), CHILDREN_ASLEEP);
    // SAFETY: this kernel's own interrupt controller: system registers on, no priority held back, both groups.
    unsafe {
        write!("s3_0_c12_c12_5", read!("s3_0_c12_c12_5") | 1); // ICC_SRE_EL1
        write!("s3_0_c4_c6_0", 0xff); // ICC_PMR_EL1
        write!("s3_0_c12_c12_6", 1); // ICC_IGRPEN0_EL1
        write!("s3_0_c12_c12_7", 1); // ICC_IGRPEN1_EL1
    }
}

fn distributor(offset: usize) -> *mut u32 {
    device(DISTRIBUTOR.load(Ordering::Relaxed)).wrapping_add(offset).cast()
}

fn redistributor(offset: usize) -> *mut u32 {
    device(REDISTRIBUTOR.load(Ordering::Relaxed)).wrapping_add(offset).cast()
}

fn update(register: *mut u32, change: impl FnOnce(u32) -> u32) {
    // SAFETY: a register of the controller, mapped by `start`, which this module alone drives, before interrupts need it.
    unsafe { register.write_volatile(change(register.read_volatile())) };
}

fn wait(register: *mut u32, bit: u32) {
    // SAFETY: as in `update`.
    while unsafe { register.read_volatile() } & bit != 0 {}
}

/// Lets an interrupt through, as IRQ or FIQ.
pub(crate) fn enable(line: u32, kind: Kind) {
    let shared = line >= FIRST_SHARED;
    let base = |offset| if shared { distributor(offset) } else { redistributor(INTERRUPTS + offset) };
    let (word, bit) = ((line / 32) as usize, 1u32 << (line % 32));
    update(base(GROUP).wrapping_add(word), |value| if kind == Kind::Irq { value | bit } else { value & !bit });
    // SAFETY: as in `update`; the byte of this interrupt.
    unsafe { base(PRIORITY).cast::<u8>().wrapping_add(line as usize).write_volatile(URGENCY) };
    if shared {
        // SAFETY: as in `update`; to this CPU, whose affinity is all zero.
        unsafe { distributor(ROUTE).cast::<u64>().wrapping_add(line as usize).write_volatile(0) };
    }
    // Writing a one enables, a zero changes nothing.
    update(base(ENABLE).wrapping_add(word), |_| bit);
    wait(distributor(CONTROL), CONTROL_PENDING);
}

/// Makes software-generated interrupt `line` (0 to 15) pending on this CPU.
pub(crate) fn raise(line: u32, kind: Kind) {
    let value = u64::from(line) << 24 | 1;
    // SAFETY: interrupts this CPU, which handles all that is enabled.
    unsafe {
        match kind {
            Kind::Irq => write!("s3_0_c12_c11_5", value), // ICC_SGI1R_EL1
            Kind::Fiq => write!("s3_0_c12_c11_7", value), // ICC_SGI0R_EL1
        }
    }
}

/// Acknowledges what is pending; `None`: nothing any more.
pub(crate) fn acknowledge(kind: Kind) -> Option<u32> {
    let line = match kind {
        Kind::Irq => read!("s3_0_c12_c12_0"), // ICC_IAR1_EL1
        Kind::Fiq => read!("s3_0_c12_c8_0"),  // ICC_IAR0_EL1
    } as u32;
    (line < NOTHING).then_some(line)
}

/// Ends the handling of an acknowledged interrupt.
pub(crate) fn end(line: u32, kind: Kind) {
    // SAFETY: it was acknowledged, by the caller.
    unsafe {
        match kind {
            Kind::Irq => write!("s3_0_c12_c12_1", line.into()), // ICC_EOIR1_EL1
            Kind::Fiq => write!("s3_0_c12_c8_1", line.into()),  // ICC_EOIR0_EL1
        }
    }
}

const _: () = assert!(RUN > PAGE && INTERRUPTS as u64 == RUN);
