//! What ring 0 can read on x86-64.
//!
//! Not readable, and so not here: the hidden parts of segment registers but for the bases in MSRs (LDTR's and TR's come from the
//! descriptor table, which is read).

mod msrs;
mod names;
mod tables;
mod vectors;

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::fmt;

use x86_64::instructions::tables::{sgdt, sidt};
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::rflags::{self, RFlags};

pub(super) use msrs::fixup;

use super::{Ignored, Register, Snapshot};

const RFLAGS: &str = "RFLAGS";
const MSR: &str = "MSR";

/// What may differ.
pub(super) const IGNORED: &[Ignored] = &[
    Ignored {
        register: Register::only(RFLAGS),
        name: "CF, PF, AF, ZF, SF, OF",
        bits: 1 << 0 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 11,
        reason: "results of the last instruction, undefined after any call",
    },
    Ignored {
        register: Register::only("CR2"),
        name: "",
        bits: u64::MAX,
        reason: "the address of the last page fault; nobody reads it but handlers, after one of their own",
    },
    Ignored {
        register: Register::only("SS"),
        name: "",
        bits: u64::MAX,
        reason: "null after any exception of ring 3, as the CPU leaves it in every kernel (SDM 3, section 7.14.4); unused in ring 0",
    },
    Ignored { register: Register::of(MSR, 0x10), name: "IA32_TIME_STAMP_COUNTER", bits: u64::MAX, reason: "counts" },
];

/// What is not read.
pub(super) const NOT_READ: &[Ignored] = &[Ignored {
    register: Register::of(MSR, msrs::LOCAL_APIC.start),
    name: "to 0x8ff: the local APIC, if it is in x2APIC mode",
    bits: u64::MAX,
    reason: "counts and what is pending are among it; the kernel shows what else there is",
}];

/// How a register is called that is one of many.
pub(super) fn name(group: &str, number: u32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match group {
        MSR => {
            write!(f, "MSR {number:#x}")?;
            names::of(number).map_or(Ok(()), |name| write!(f, " ({name})"))
        }
        group => write!(f, "{group}, word {number}"),
    }
}

macro_rules! read {
    ($instruction:literal) => {{
        let value: u64;
        // SAFETY: reads a register, which has no effect.
        unsafe { asm!($instruction, out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}
use read;

/// XCR0 (SDM 1, section 13.3).
fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: called with CR4.OSXSAVE on; reading has no effect.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

fn pkru() -> u64 {
    let value: u32;
    // SAFETY: called with CR4.PKE on; reading has no effect.
    unsafe { asm!("rdpkru", in("ecx") 0, out("eax") value, out("edx") _, options(nomem, nostack, preserves_flags)) };
    value.into()
}

/// The flags, which masking interrupts changes.
pub(super) fn look_before_masking(snapshot: &mut Snapshot) {
    snapshot.only(RFLAGS, rflags::read_raw());
}

/// What this CPU lets be read.
pub(super) struct Readable {
    msrs: alloc::vec::Vec<u32>,
}

/// Words of the rest: tables of a page and a bit, the vector state.
const OTHER_WORDS: usize = 4096;

impl Readable {
    pub(super) fn find() -> Readable {
        Readable { msrs: msrs::readable() }
    }

    /// How many words a snapshot has at most.
    pub(super) fn words(&self) -> usize {
        self.msrs.len() + OTHER_WORDS
    }

    /// Reads everything. Interrupts are masked.
    pub(super) fn look(&self, snapshot: &mut Snapshot) {
        let cr4 = Cr4::read();
        snapshot.only("CR0", read!("mov {}, cr0"));
        snapshot.only("CR2", read!("mov {}, cr2"));
        snapshot.only("CR3", read!("mov {}, cr3"));
        snapshot.only("CR4", read!("mov {}, cr4"));
        snapshot.only("CR8", read!("mov {}, cr8"));
        if cr4.contains(Cr4Flags::OSXSAVE) {
            snapshot.only("XCR0", xcr0());
        }
        if cr4.contains(Cr4Flags::PROTECTION_KEY_USER) {
            snapshot.only("PKRU", pkru());
        }
        snapshot.only("CS", read!("mov {}, cs"));
        snapshot.only("SS", read!("mov {}, ss"));
        snapshot.only("DS", read!("mov {}, ds"));
        snapshot.only("ES", read!("mov {}, es"));
        snapshot.only("FS", read!("mov {}, fs"));
        snapshot.only("GS", read!("mov {}, gs"));
        snapshot.only("LDTR", read!("sldt {}"));
        snapshot.only("TR", read!("str {}"));
        snapshot.only("DR0", read!("mov {}, dr0"));
        snapshot.only("DR1", read!("mov {}, dr1"));
        snapshot.only("DR2", read!("mov {}, dr2"));
        snapshot.only("DR3", read!("mov {}, dr3"));
        snapshot.only("DR6", read!("mov {}, dr6"));
        snapshot.only("DR7", read!("mov {}, dr7"));
        for (name, limit, table) in [("GDTR", "GDTR limit", sgdt()), ("IDTR", "IDTR limit", sidt())] {
            snapshot.only(name, table.base.as_u64());
            snapshot.only(limit, table.limit.into());
        }
        tables::look(snapshot);
        for &number in &self.msrs {
            // One that is refused now is missing, and that is a difference.
            if let Some(value) = msrs::read(number) {
                snapshot.number(MSR, number, value);
            }
        }
        vectors::look(snapshot, cr4);
    }
}

/// Protections of the kernel's: whether the CPU has each, and whether it is on.
pub(crate) fn protections() -> impl Iterator<Item = (&'static str, bool, bool)> {
    const FEATURES: u32 = 7;
    let known = __cpuid(0).eax >= FEATURES;
    let features = __cpuid_count(FEATURES, 0);
    // A CPU without the leaf answers with another one's.
    let has = |word: u32, bit: u32| known && word >> bit & 1 != 0;
    let cr4 = |flag| Cr4::read().contains(flag);
    [
        ("CR0.WP", true, Cr0::read().contains(Cr0Flags::WRITE_PROTECT)),
        ("EFER.NXE", true, Efer::read().contains(EferFlags::NO_EXECUTE_ENABLE)),
        ("SMEP", has(features.ebx, 7), cr4(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION)),
        (
            "SMAP",
            has(features.ebx, 20),
            cr4(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION) && !rflags::read().contains(RFlags::ALIGNMENT_CHECK),
        ),
        ("UMIP", has(features.ecx, 2), cr4(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION)),
    ]
    .into_iter()
}
