//! virt.

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{Readable, TTBR0_EL1, Writeable};
use conformance::Line;
use platform_qemu::machine::interrupts::{deliver_as_fiq, raise as raise_line};
use platform_qemu::memory;
use sandbox_mode::VirtAddr;

/// Software-generated interrupts that nothing else uses.
pub(crate) const ORDINARY_LINE: usize = 1;
const FIQ_LINE: usize = 2;
pub(crate) const FAST_LINE: Option<usize> = Some(FIQ_LINE);
/// The PL031, a clock.
pub(crate) const DEVICE: u64 = 0x0901_0000;

/// Cases open to unprivileged code what the machine has, one by one. The fast interrupt is set up here, where nobody audits.
pub(crate) fn prepare() {
    deliver_as_fiq(FIQ_LINE, true);
}

/// The interrupt controller's interface is in system registers, which the suite looks at itself.
pub(crate) fn inspect(_look: &mut dyn FnMut(&'static str, u64)) {}

pub(crate) fn raise(line: Line) -> Result<(), &'static str> {
    match line {
        Line::Ordinary => raise_line(ORDINARY_LINE, false),
        Line::Fast => raise_line(FIQ_LINE, true),
        Line::NonMaskable => return Err("this machine has no non-maskable interrupts"),
    }
    Ok(())
}

pub(crate) fn nmi_count() -> u64 {
    0
}

pub(crate) fn raise_nmi_after(_device: VirtAddr, _steps: u16) -> Result<(), &'static str> {
    Err("this machine has no non-maskable interrupts")
}

/// Where the process's page is, and what descriptors say of it: a table; a page of normal memory that EL0 reads and writes, not
/// global, accessed.
const PROCESS_PAGE: u64 = 0x40_0000;
const TABLE: u64 = 0b11;
const USER_PAGE: u64 = 0b11 | 1 << 2 | 1 << 6 | 0b11 << 8 | 1 << 10 | 1 << 11;
/// The root, two tables below it and the last one, and the page.
const FRAMES: usize = 5;

/// Makes tables of a process's and puts them into TTBR0.
pub(crate) fn with_process_page(work: &mut dyn FnMut(VirtAddr)) -> Result<(), &'static str> {
    let mut frames = [0; FRAMES];
    for frame in &mut frames {
        *frame = memory::allocate_frame().ok_or("no memory for a page of a process")?;
        // SAFETY: the frame is ours.
        unsafe { memory::direct(*frame).write_bytes(0, platform_qemu::layout::PAGE_SIZE as usize) };
    }
    for level in 0..FRAMES - 1 {
        let index = (PROCESS_PAGE >> (39 - 9 * level)) as usize % 512;
        let kind = if level + 2 == FRAMES { USER_PAGE } else { TABLE };
        // SAFETY: an entry of a table of ours.
        unsafe { memory::direct(frames[level]).cast::<u64>().add(index).write_volatile(frames[level + 1] | kind) };
    }
    let before = TTBR0_EL1.get();
    barrier::dsb(barrier::ISHST);
    set_low_root(frames[0]);
    work(VirtAddr(PROCESS_PAGE));
    set_low_root(before);
    // SAFETY: drops translations, those of the process among them.
    unsafe { core::arch::asm!("tlbi vmalle1", "dsb nsh", "isb", options(nostack, preserves_flags)) };
    frames.into_iter().for_each(memory::free_frame);
    Ok(())
}

fn set_low_root(root: u64) {
    TTBR0_EL1.set(root);
    barrier::isb(barrier::SY);
}
