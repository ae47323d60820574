//! A sandbox's registers, and the frame through which they pass the gate.

use core::mem::offset_of;

/// What an entry loads and an exit stores: the general registers in the order of the gate's pushes, then what the CPU itself
/// pushes (SDM 3, section 7.14.2). It is the top of each of the gate's stacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    /// The vector through which control left.
    pub vector: u64,
    /// The error code; 0 for vectors without one.
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

#[cfg(target_os = "none")]
impl Frame {
    /// Makes this frame a copy of `from`, but for SS, which is always the same: one short instruction, where an assignment would
    /// call a routine.
    ///
    /// # Safety
    ///
    /// 1. Both are frames, and not the same.
    #[inline(always)]
    pub(crate) unsafe fn copy_from(&mut self, from: *const Frame) {
        // SAFETY: (1); the direction flag is clear in compiled code.
        unsafe {
            core::arch::asm!(
                "rep movsq",
                inout("rcx") offset_of!(Frame, ss) / size_of::<u64>() => _,
                inout("rdi") &raw mut *self => _,
                inout("rsi") from => _,
                options(nostack, preserves_flags),
            );
        }
    }
}

// The CPU aligns the stack to 16 bytes before it pushes; the end of the frame must be such a place.
const _: () = assert!(size_of::<Frame>().is_multiple_of(16));
// The pushes of the gate's exit and the pops of its entry.
const _: () = assert!(offset_of!(Frame, rax) == 14 * 8 && offset_of!(Frame, rip) == 17 * 8);

/// The registers of a sandbox that isn't running.
#[derive(Clone, Debug, Default)]
pub struct Registers {
    /// General registers, and what the CPU said when control left.
    pub frame: Frame,
    /// The address of the last page fault.
    pub cr2: u64,
    /// The FS base.
    pub fs_base: u64,
    /// The GS base.
    pub gs_base: u64,
    /// The debug status of the last debug exception.
    pub dr6: u64,
    /// The protection-key rights, where the host has protection keys on.
    pub pkru: u32,
}
