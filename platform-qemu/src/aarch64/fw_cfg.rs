//! The registers of fw_cfg.

use aarch64_cpu::asm::barrier;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

/// Size of the registers, and the offset of the DMA address among them: 64 bits, big-endian.
const SIZE: u64 = 0x18;
const DMA_ADDRESS: u64 = 0x10;

/// The DMA address register; null before [`map`].
static DMA: AtomicPtr<u64> = AtomicPtr::new(ptr::null_mut());

/// Maps the registers, which start at this physical address.
pub(super) fn map(registers: u64) {
    let mapped = crate::paging::map_device(registers, SIZE);
    DMA.store(mapped.wrapping_add(DMA_ADDRESS as usize).cast(), Ordering::Relaxed);
}

/// Does the transfer that the control block at physical address `block` describes. QEMU has done it
/// when the register's write is complete.
pub(crate) fn dma(block: u64) {
    let register = DMA.load(Ordering::Relaxed);
    // The device has to see the control block and the buffer before it hears of them.
    barrier::dsb(barrier::SY);
    // SAFETY: `map` mapped the register, as device memory. What the transfer reads and writes is
    // the business of the crate's `fw_cfg`, the only caller.
    unsafe { register.write_volatile(block.to_be()) };
    // And the caller must not read them before the device is done.
    barrier::dsb(barrier::SY);
}
