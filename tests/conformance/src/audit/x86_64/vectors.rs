//! x87, SSE, AVX and whatever else XCR0 enables, as XSAVE writes it; FXSAVE's part where there is no XSAVE.

use alloc::vec;
use core::arch::asm;
use core::arch::x86_64::__cpuid_count;

use x86_64::registers::control::{Cr0, Cr0Flags, Cr4Flags};

use super::super::Snapshot;

/// What the instructions want their operand aligned to.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u64; 8]);

const FXSAVE_SIZE: usize = 512;
/// CPUID D, subleaf 0, EBX: how much XSAVE writes with XCR0 as it is (SDM 1, section 13.2).
const XSAVE_LEAF: u32 = 0xd;

/// Reads it, whether the kernel itself could use it now or not. Interrupts are masked.
pub(super) fn look(snapshot: &mut Snapshot, cr4: Cr4Flags) {
    let xsave = cr4.contains(Cr4Flags::OSXSAVE);
    let size = if xsave { __cpuid_count(XSAVE_LEAF, 0).ebx as usize } else { FXSAVE_SIZE };
    let mut area = vec![Line([0; 8]); size.div_ceil(size_of::<Line>())];
    let cr0 = Cr0::read();
    // SAFETY: the area is as large as the CPU says, aligned, and ours; saving changes nothing. CR0 is put back, and nothing
    // but these instructions runs with it changed.
    unsafe {
        Cr0::write(cr0 - Cr0Flags::TASK_SWITCHED - Cr0Flags::EMULATE_COPROCESSOR);
        if xsave {
            asm!("xsave64 [{}]", in(reg) area.as_mut_ptr(), in("eax") u32::MAX, in("edx") u32::MAX, options(nostack, preserves_flags));
        } else {
            asm!("fxsave64 [{}]", in(reg) area.as_mut_ptr(), options(nostack, preserves_flags));
        }
        Cr0::write(cr0);
    }
    snapshot.all("XSAVE area", area.into_iter().flat_map(|line| line.0));
}
