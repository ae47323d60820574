//! Frames: a byte for each says what it is used for.
//!
//! What must hold: the bytes lie in RAM right behind the image; frames are looked for from where the last one was found.

use crate::layout::{self, PAGE, RAM, direct};
use crate::registers::Lock;

/// What a frame is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Use {
    /// Nothing.
    Free,
    /// Memory of the kernel's, its image included.
    Memory,
    /// A page table.
    Table,
    /// The device tree and this list.
    Reserved,
}

struct Frames {
    uses: &'static mut [Use],
    next: usize,
    free: usize,
}

static FRAMES: Lock<Frames> = Lock::new(Frames { uses: &mut [], next: 0, free: 0 });

/// Takes over `size` bytes of RAM; the first `reserved` of them stay untouched.
///
/// # Safety
///
/// 1. That much is RAM, mapped at [`layout::direct`] at least as far as the list goes; nothing beside the image and the reserved
///    part is in use.
pub(crate) unsafe fn start(size: u64, reserved: u64) {
    let count = (size / PAGE) as usize;
    let image = layout::image_frames();
    // SAFETY: (1): nothing else is behind the image.
    let uses = unsafe {
        direct(image.end).write_bytes(Use::Free as u8, count);
        core::slice::from_raw_parts_mut(direct(image.end).cast::<Use>(), count)
    };
    let range = |start: u64, end: u64| ((start - RAM) / PAGE) as usize..(end - RAM).div_ceil(PAGE) as usize;
    uses[range(RAM, RAM + reserved)].fill(Use::Reserved);
    uses[range(image.start, image.end)].fill(Use::Memory);
    uses[range(image.end, image.end + count as u64)].fill(Use::Reserved);
    let free = uses.iter().filter(|&&found| found == Use::Free).count();
    FRAMES.with(|frames| *frames = Frames { uses, next: 0, free });
}

/// Takes a free frame. Its contents are whatever they were.
pub(crate) fn allocate(purpose: Use) -> Option<u64> {
    FRAMES.with(|frames| {
        let (before, after) = frames.uses.split_at(frames.next);
        let free = |part: &[Use]| part.iter().position(|&found| found == Use::Free);
        let index = free(after).map(|index| index + before.len()).or_else(|| free(before))?;
        frames.uses[index] = purpose;
        frames.next = index + 1;
        frames.free -= 1;
        Some(RAM + index as u64 * PAGE)
    })
}

/// Gives a frame back.
///
/// # Panics
///
/// If it is not in use.
pub(crate) fn free(frame: u64) {
    FRAMES.with(|frames| {
        let index = ((frame - RAM) / PAGE) as usize;
        assert!(frames.uses[index] == Use::Memory, "frame {frame:#x} was {:?} and is freed", frames.uses[index]);
        frames.uses[index] = Use::Free;
        frames.free += 1;
    });
}

/// What a frame is used for; `None` for what is no RAM.
pub(crate) fn use_of(frame: u64) -> Option<Use> {
    FRAMES.with(|frames| frames.uses.get((frame.checked_sub(RAM)? / PAGE) as usize).copied())
}

/// How many are free.
pub(crate) fn count_free() -> usize {
    FRAMES.with(|frames| frames.free)
}
