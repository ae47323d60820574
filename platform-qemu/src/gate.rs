//! Pages that a sandboxing layer needs at one address in every address space.

use crate::{
    layout::{GATE, PAGE_SIZE},
    lock::MaskedLock,
    paging::{self, Access},
};

static NEXT: MaskedLock<u64> = MaskedLock::new(GATE.start);

/// Maps frames one after the other at fresh addresses in [`GATE`], for the kernel alone, and returns
/// the first address. They stay mapped for good.
///
/// `None`, with nothing mapped, if memory for tables or the range is used up.
pub fn map_gate_pages(frames: &[u64], access: Access) -> Option<u64> {
    NEXT.with(|next| {
        let base = *next;
        let end = base.checked_add(PAGE_SIZE.checked_mul(frames.len() as u64)?)?;
        if end > GATE.end {
            return None;
        }
        let mut virt = base;
        for &frame in frames {
            // SAFETY: the page is fresh; its users answer for the frame, by address alone.
            let mapped = unsafe { paging::map(virt, frame, access) };
            if mapped.is_none() {
                for undo in (base..virt).step_by(PAGE_SIZE as usize) {
                    // SAFETY: mapped above, and nobody has heard of it yet.
                    unsafe { paging::unmap(undo) };
                }
                return None;
            }
            virt += PAGE_SIZE;
        }
        *next = end;
        Some(base)
    })
}
