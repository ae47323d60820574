//! The processor's modes: what protects the kernel is switched on wherever the CPU has it, the same on each CPU.

use core::arch::x86_64::__cpuid_count;

use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};

/// CPUID leaves and the bits looked at.
const FEATURES: u32 = 7;
const FEATURES_EBX: [(u32, Cr4Flags); 3] = [
    (0, Cr4Flags::FSGSBASE),
    (7, Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION),
    (20, Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION),
];
const FEATURES_ECX: [(u32, Cr4Flags); 1] = [(2, Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION)];
const EXTENDED_MAX: u32 = 0x8000_0000;
const EXTENDED_FEATURES: u32 = 0x8000_0001;
const EXTENDED_EDX_NX: u32 = 20;

/// Sets this CPU's control registers for good.
///
/// # Panics
///
/// If the CPU can't forbid execution page by page.
pub(super) fn init() {
    let extended = __cpuid_count(EXTENDED_MAX, 0).eax >= EXTENDED_FEATURES;
    let no_execute = extended && __cpuid_count(EXTENDED_FEATURES, 0).edx >> EXTENDED_EDX_NX & 1 != 0;
    assert!(no_execute, "the CPU has no no-execute pages");
    // SAFETY: the CPU has the feature, and no page uses the bit yet.
    unsafe { Efer::update(|efer| efer.insert(EferFlags::NO_EXECUTE_ENABLE)) };

    let has_features = __cpuid_count(0, 0).eax >= FEATURES;
    // SSE is for sandboxes that ask for it; every CPU with long mode has it.
    let mut wanted = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION | Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE;
    if has_features {
        let features = __cpuid_count(FEATURES, 0);
        let in_ebx = FEATURES_EBX.iter().map(|&(bit, flag)| (features.ebx >> bit, flag));
        let in_ecx = FEATURES_ECX.iter().map(|&(bit, flag)| (features.ecx >> bit, flag));
        wanted.extend(in_ebx.chain(in_ecx).filter(|(word, _)| word & 1 != 0).map(|(_, flag)| flag));
    }
    // SAFETY: each flag is one that the CPU has. No global pages are used, no page is open to
    // unprivileged code, and CR0.TS keeps FP from the kernel, which is built without it.
    unsafe { Cr4::write(wanted) };

    // Task-switched and monitor: any FP instruction traps, in ring 3 too.
    let flags = Cr0Flags::PROTECTED_MODE_ENABLE
        | Cr0Flags::MONITOR_COPROCESSOR
        | Cr0Flags::TASK_SWITCHED
        | Cr0Flags::NUMERIC_ERROR
        | Cr0Flags::WRITE_PROTECT
        | Cr0Flags::ALIGNMENT_MASK
        | Cr0Flags::PAGING;
    // SAFETY: long mode stays on; nothing that the kernel does depends on the flags cleared.
    unsafe { Cr0::write(flags) };
}
