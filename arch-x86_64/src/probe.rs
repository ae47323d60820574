//! What the machine must have, and must not have, for the rules to hold.

use core::arch::x86_64::{__cpuid, __cpuid_count};

use sandbox_core::{Error, Unsupported};
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;
use x86_64::registers::segmentation::{CS, Segment};

use crate::format::LongMode;

/// CR4 bits that this version cannot run with (SDM 3, section 2.5; AMD APM 2, section 3.1.3).
const FORBIDDEN_CR4: [(u32, &str); 5] = [
    (23, "control-flow enforcement (CR4.CET)"),
    (24, "protection keys for supervisor pages (CR4.PKS)"),
    (25, "user interrupts (CR4.UINTR)"),
    (27, "linear-address space separation (CR4.LASS)"),
    (32, "FRED (CR4.FRED)"),
];

/// AMD's memory encryption: CPUID 8000_001F EAX says whether there is any (APM 3, appendix E.4.17), SYSCFG whether it is on.
const ENCRYPTION_LEAF: u32 = 0x8000_001f;
const SYSCFG: u32 = 0xc001_0010;
const SYSCFG_MEMORY_ENCRYPTION: u64 = 1 << 23;
/// Intel's trust domains name themselves here (TDX module specification, section "CPUID virtualization").
const TDX_LEAF: u32 = 0x21;

/// Checks the CPU; returns the format of its tables.
pub(crate) fn probe() -> Result<LongMode, Error> {
    let ring = CS::get_reg().rpl() as u64;
    if ring != 0 {
        return Err(Unsupported::Mode(ring).into());
    }
    if !Cr0::read().contains(Cr0Flags::WRITE_PROTECT) {
        return Err(Unsupported::Missing("write protection for privileged code (CR0.WP)").into());
    }
    if !Efer::read().contains(EferFlags::NO_EXECUTE_ENABLE) {
        return Err(Unsupported::Missing("the no-execute bit (EFER.NXE)").into());
    }
    let cr4 = Cr4::read_raw();
    for (bit, name) in FORBIDDEN_CR4 {
        if cr4 & 1 << bit != 0 {
            return Err(Unsupported::Enabled(name).into());
        }
    }
    if __cpuid(0x8000_0000).eax >= ENCRYPTION_LEAF && __cpuid(ENCRYPTION_LEAF).eax & 0b11 != 0 {
        // SAFETY: SYSCFG exists on every AMD CPU that has leaf 8000_001F; reading has no effect.
        let syscfg = unsafe { Msr::new(SYSCFG).read() };
        if syscfg & SYSCFG_MEMORY_ENCRYPTION != 0 {
            return Err(Unsupported::Enabled("memory encryption (SME or SEV)").into());
        }
    }
    if __cpuid(0).eax >= TDX_LEAF {
        let name = __cpuid_count(TDX_LEAF, 0);
        if [name.ebx, name.edx, name.ecx].map(u32::to_le_bytes) == [*b"Inte", *b"lTDX", *b"    "] {
            return Err(Unsupported::Enabled("a trust domain (TDX)").into());
        }
    }
    Ok(LongMode::new(cr4 & x86_64::registers::control::Cr4Flags::L5_PAGING.bits() != 0))
}
