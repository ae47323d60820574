//! The memory types: what MAIR_EL1 holds, and at which index.

use aarch64_paging::descriptor::El1Attributes;

/// Index of device memory (nGnRE).
pub(super) const DEVICE: u64 = 0;
/// Index of normal memory, write-back, read and write allocate.
pub(super) const NORMAL: u64 = 1;

/// The value of MAIR_EL1.
pub(super) const VALUE: u64 = 0x04 << (8 * DEVICE) | 0xff << (8 * NORMAL);

/// [`DEVICE`] in a descriptor. Shareability has no effect on device memory.
pub(super) const DEVICE_ATTRIBUTES: El1Attributes = El1Attributes::ATTRIBUTE_INDEX_0;
/// [`NORMAL`] in a descriptor, inner shareable.
pub(super) const NORMAL_ATTRIBUTES: El1Attributes =
    El1Attributes::ATTRIBUTE_INDEX_1.union(El1Attributes::INNER_SHAREABLE);
