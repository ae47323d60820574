//! What the machine must have, and must not have, for the rules to hold.

use core::arch::x86_64::{__cpuid, __cpuid_count};

use sandbox_core::{Error, Unsupported};
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;
use x86_64::registers::segmentation::{CS, Segment};
use x86_64::registers::xcontrol::XCr0;

use crate::format::LongMode;
use crate::vectors::KNOWN_STATE;

/// CR4 bits that this version cannot run with (SDM 3, section 2.5; AMD APM 2, section 3.1.3).
const FORBIDDEN_CR4: [(u32, &str); 5] = [
    (23, "control-flow enforcement (CR4.CET)"),
    (24, "protection keys for supervisor pages (CR4.PKS)"),
    (25, "user interrupts (CR4.UINTR)"),
    (27, "linear-address space separation (CR4.LASS)"),
    (32, "FRED (CR4.FRED)"),
];

/// Makers of CPUs whose debug control is known.
const DEBUGCTL_VENDORS: [&[u8; 12]; 3] = [b"GenuineIntel", b"AuthenticAMD", b"HygonGenuine"];

/// CPUID 1 ECX: a hypervisor is there.
const HYPERVISOR: u32 = 1 << 31;
/// AMD's memory encryption: CPUID 8000_001F EAX says whether there is any (APM 3, appendix E.4.17); SYSCFG says whether it is on,
/// SEV_STATUS in a virtual machine.
const ENCRYPTION_LEAF: u32 = 0x8000_001f;
const ENCRYPTED_MACHINES: u32 = 1 << 1;
const SEV_STATUS: u32 = 0xc001_0131;
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
    if cr4 & Cr4Flags::OSXSAVE.bits() != 0 && XCr0::read_raw() & !KNOWN_STATE != 0 {
        return Err(Unsupported::Enabled("state that CR0.TS does not guard (XCR0: MPX, AMX, APX)").into());
    }
    if is_encrypted() {
        return Err(Unsupported::Enabled("memory encryption (SME or SEV)").into());
    }
    if __cpuid(0).eax >= TDX_LEAF {
        let name = __cpuid_count(TDX_LEAF, 0);
        if [name.ebx, name.edx, name.ecx].map(u32::to_le_bytes) == [*b"Inte", *b"lTDX", *b"    "] {
            return Err(Unsupported::Enabled("a trust domain (TDX)").into());
        }
    }
    Ok(LongMode::new(cr4 & Cr4Flags::L5_PAGING.bits() != 0))
}

/// Whether the CPU has IA32_DEBUGCTL. No bit of CPUID says so; Intel's and AMD's have it wherever they have long mode (SDM 4,
/// tables 2-2 and 2-54; APM 2, section 13.1.1.6).
pub(crate) fn has_debugctl() -> bool {
    let vendor = __cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    DEBUGCTL_VENDORS.iter().any(|known| known.as_chunks().0 == name)
}

/// Whether a bit of each page-table entry says that the memory is encrypted.
fn is_encrypted() -> bool {
    if __cpuid(0x8000_0000).eax < ENCRYPTION_LEAF {
        return false;
    }
    let features = __cpuid(ENCRYPTION_LEAF).eax;
    // SAFETY: SEV_STATUS exists in every virtual machine whose leaf 8000_001F shows SEV, SYSCFG on every AMD CPU that has the
    // leaf; a hypervisor need not have the latter, and encrypts no memory through it. Reading has no effect.
    unsafe {
        match __cpuid(1).ecx & HYPERVISOR != 0 {
            true => features & ENCRYPTED_MACHINES != 0 && Msr::new(SEV_STATUS).read() & 1 != 0,
            false => features & 0b11 != 0 && Msr::new(SYSCFG).read() & SYSCFG_MEMORY_ENCRYPTION != 0,
        }
    }
}
