//! The two addresses of the virt machine that are needed before its device tree can be read. QEMU
//! has kept them in every version.

/// Physical address of the PL011.
pub(super) const UART: u64 = 0x0900_0000;

/// Physical address at which RAM starts, and with it the device tree of a kernel that isn't a
/// Linux image.
pub(super) const RAM_START: u64 = 0x4000_0000;
