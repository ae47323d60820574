//! fw_cfg's DMA register: two 32-bit ports, big-endian, upper half first.

use core::arch::asm;

const DMA_HIGH: u16 = 0x514;
const DMA_LOW: u16 = 0x518;

/// Has the device carry out the control block at this physical address.
pub(crate) fn dma(control: u64) {
    // SAFETY: the ports are the device's or nobody's. The assembly is not `nomem`: the device reads
    // and writes the block and its buffer while the second instruction runs.
    unsafe {
        asm!("out dx, eax", in("dx") DMA_HIGH, in("eax") ((control >> 32) as u32).to_be(),
            options(nostack, preserves_flags));
        asm!("out dx, eax", in("dx") DMA_LOW, in("eax") (control as u32).to_be(),
            options(nostack, preserves_flags));
    }
}
