//! Where things are in the address space. Both machines share it.
//!
//! | from | what |
//! | --- | --- |
//! | [`DIRECT_MAP`] | all RAM, readable and writable |
//! | [`DEVICES`] | device registers |
//! | [`GATE`] | frames mapped by [`crate::gate::map_gate_pages`] |
//! | [`STACKS`] | stacks of threads and of CPUs but the first, with unmapped pages between |
//! | [`WINDOW`] | nothing: reserved for sandboxes |
//! | [`IMAGE`] | the kernel's image |
//!
//! Each has top-level table entries of its own. The low half is empty.

use core::ops::Range;

/// Size of a page and of a frame.
pub const PAGE_SIZE: u64 = 4096;

/// Where the direct map starts: physical address `p` is at `DIRECT_MAP + p`.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;

/// End of the part that the direct map may use; RAM above its reach is left alone.
pub const DIRECT_MAP_END: u64 = 0xffff_c000_0000_0000;

/// Addresses for device registers.
pub const DEVICES: Range<u64> = 0xffff_c000_0000_0000..0xffff_c000_4000_0000;

/// Addresses for pages that must be at one address in every address space.
pub const GATE: Range<u64> = 0xffff_d000_0000_0000..0xffff_d000_4000_0000;

/// Addresses for stacks.
pub const STACKS: Range<u64> = 0xffff_d800_0000_0000..0xffff_d800_4000_0000;

/// Starts of the ranges that grow after the boot. Their top-level entries are made at boot, so that a copy of the root
/// shares whatever is mapped later.
pub(crate) const GROWING: [u64; 3] = [DEVICES.start, GATE.start, STACKS.start];

/// Addresses that the platform never maps.
pub const WINDOW: Range<u64> = 0xffff_e000_0000_0000..0xffff_e080_0000_0000;

/// What is at physical address `p` of the image is linked at `IMAGE + p`. The machine's linker
/// script agrees.
pub const IMAGE: u64 = crate::machine::IMAGE_OFFSET;

/// The parts of the kernel's image, as virtual addresses on page boundaries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Code: readable and executable.
    pub text: Range<u64>,
    /// Constants, those with relocations included: readable.
    pub rodata: Range<u64>,
    /// Variables and the boot stack: readable and writable.
    pub data: Range<u64>,
}

/// A page below the boot stack that is not mapped.
pub fn stack_guard() -> Range<u64> {
    let start = &raw const __stack_guard as u64;
    start..start + PAGE_SIZE
}

/// Where the kernel's image is.
pub fn image() -> Image {
    Image {
        text: &raw const __text_start as u64..&raw const __text_end as u64,
        rodata: &raw const __rodata_start as u64..&raw const __rodata_end as u64,
        data: &raw const __data_start as u64..&raw const __data_end as u64,
    }
}

/// Where the image lies in RAM.
pub fn image_frames() -> Range<u64> {
    let start = &raw const __image_start as u64;
    let end = &raw const __data_end as u64;
    start - IMAGE..end - IMAGE
}

unsafe extern "C" {
    // Symbols of the linker script: only their addresses mean anything.
    static __image_start: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __data_start: u8;
    static __stack_guard: u8;
    static __data_end: u8;
}
