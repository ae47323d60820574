//! Where things are: in the upper half of 39-bit addresses, and physically before there is a device tree to ask.
//!
//! ```text
//! ffff_ff80_0000_0000   all RAM, from its first byte on, in blocks as large as fit
//! ffff_ffd0_0000_0000   the window of sandboxes
//! ffff_ffe0_0400_0000   the image: text in 2 MiB blocks, constants in runs of 16 pages, variables in pages
//! ffff_fff0_0000_0000   device registers, at their physical address from here
//! ffff_fff4_0000_0000   heap and stacks: frames from anywhere, in pages
//! ffff_fff8_0000_0000   the gate's data
//! ```

use core::ops::Range;

/// Sizes that tables map.
pub(crate) const PAGE: u64 = 4 << 10;
pub(crate) const RUN: u64 = 16 * PAGE;
pub(crate) const BLOCK: u64 = 2 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// Address bits of the upper half, of which 39 are three levels of tables, and of the lower half, which processes have.
pub(crate) const UPPER_BITS: u64 = 39;
pub(crate) const LOWER_BITS: u64 = 48;

/// Where RAM begins on this machine, and where its first bytes are mapped.
pub(crate) const RAM: u64 = 0x4000_0000;
pub(crate) const DIRECT: u64 = 0xffff_ff80_0000_0000;
/// Virtual minus physical address of the image, as in `kernel.ld`.
pub(crate) const IMAGE_OFFSET: u64 = 0xffff_ffe0_0400_0000 - 0x4400_0000;
/// Device registers: what lies below RAM.
pub(crate) const DEVICES: u64 = 0xffff_fff0_0000_0000;

pub(crate) const WINDOW: Range<u64> = 0xffff_ffd0_0000_0000..0xffff_ffd0_4000_0000;
pub(crate) const SCATTERED: Range<u64> = 0xffff_fff4_0000_0000..0xffff_fff5_0000_0000;
pub(crate) const GATE: Range<u64> = 0xffff_fff8_0000_0000..0xffff_fff8_0020_0000;

/// The pointer to physical memory.
pub(crate) fn direct(physical: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut((physical - RAM + DIRECT) as usize)
}

/// The pointer to a device's registers.
pub(crate) fn device(physical: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut((physical + DEVICES) as usize)
}

macro_rules! symbols {
    ($($name:ident)*) => {
        mod linker {
            unsafe extern "C" {
                $(pub(super) static $name: u8;)*
            }
        }
        $(
            fn $name() -> u64 {
                (&raw const linker::$name).expose_provenance() as u64
            }
        )*
    };
}

symbols! { text_start text_end constants_start constants_end variables_start variables_end stack_bottom stack_top image_end }

/// The image's parts, by virtual address.
pub(crate) fn text() -> Range<u64> {
    text_start()..text_end()
}

/// Constants, vtables among them.
pub(crate) fn constants() -> Range<u64> {
    constants_start()..constants_end()
}

/// Variables.
pub(crate) fn variables() -> Range<u64> {
    variables_start()..variables_end()
}

/// The stack that the kernel starts on.
pub(crate) fn first_stack() -> Range<u64> {
    stack_bottom()..stack_top()
}

/// The physical range of all of it.
pub(crate) fn image_frames() -> Range<u64> {
    text_start() - IMAGE_OFFSET..image_end() - IMAGE_OFFSET
}
