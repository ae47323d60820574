//! Vector registers of a sandbox's own: x87, MMX, SSE, and what else XCR0 enables.
//!
//! `vectors.s` wraps the entry: it exchanges the registers right before and right after, so that no compiled code, which may use
//! them, ever finds the sandbox's. What is exchanged is what XCR0 says at this entry (protection keys aside, which every run
//! exchanges), or without XSAVE what FXSAVE knows. CR0.TS, which a host may have set since the registers are some process's,
//! is clear meanwhile and set again afterwards.

use sandbox_core::arch::VectorArea;
use sandbox_core::{Error, PAGE_SIZE, Unsupported};
use x86_64::registers::control::Cr0Flags;

/// What XCR0 may enable: x87, SSE, AVX, the three parts of AVX-512 (CR0.TS guards them), and PKRU (SDM 1, section 13.1).
pub(crate) const KNOWN_STATE: u64 = 0b111 | 0b111 << 5 | XCR0_PKRU;
const XCR0_PKRU: u64 = 1 << 9;

/// The part of a set that comes first and has been there longest, then the header (SDM 1, sections 13.4.1 and 13.4.2). Whether
/// other parts follow, and where, is between XSAVE and XRSTOR: a header of zeros says that they are as after a reset, and
/// whoever reads those finds no bits but of the set's own.
#[repr(C, align(64))]
struct Set {
    fcw: u16,
    fsw: u16,
    ftw: u16,
    fop: u16,
    fip: u64,
    fdp: u64,
    mxcsr: u32,
    mxcsr_mask: u32,
    registers: [u128; 30],
    header: [u64; 8],
}

const _: () = assert!(size_of::<Set>() == 576 && core::mem::offset_of!(Set, header) == 512);

impl Set {
    /// After a reset, as FNINIT and the C convention have it: all exceptions masked, rounding to nearest (SDM 1, sections 8.1.5
    /// and 10.2.3). XRSTOR takes MXCSR from here whatever the header says (SDM 1, section 13.8.1).
    const RESET: Set = Set {
        fcw: 0x037f,
        fsw: 0,
        ftw: 0,
        fop: 0,
        fip: 0,
        fdp: 0,
        mxcsr: 0x1f80,
        mxcsr_mask: 0,
        registers: [0; 30],
        header: [0; 8],
    };
}

/// CR0 for a run in which floating point works. NE: x87's exceptions are exceptions, and no interrupts (SDM 3, section 2.5).
fn with_vectors(cr0: Cr0Flags) -> Cr0Flags {
    let open = cr0 - Cr0Flags::TASK_SWITCHED - Cr0Flags::EMULATE_COPROCESSOR;
    open | Cr0Flags::MONITOR_COPROCESSOR | Cr0Flags::NUMERIC_ERROR
}

/// What decides whether and how registers can be exchanged.
#[derive(Clone, Copy, Debug)]
struct Control {
    cr4: u64,
    /// XCR0, with CR4.OSXSAVE.
    xcr0: u64,
    /// EFER, without.
    efer: u64,
}

const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_OSXSAVE: u64 = 1 << 18;
/// FXSAVE leaves the XMM registers out in ring 0 (APM 2, section 3.1.7).
const EFER_FFXSR: u64 = 1 << 14;

impl Control {
    /// The components for XSAVE, 0 for FXSAVE.
    fn components(self) -> Result<u32, Unsupported> {
        match self {
            _ if self.cr4 & CR4_OSFXSR == 0 => {
                Err(Unsupported::Missing("SSE (CR4.OSFXSR), for sandboxes with vectors"))
            }
            _ if self.cr4 & CR4_OSXMMEXCPT == 0 => {
                Err(Unsupported::Missing("exceptions of SSE (CR4.OSXMMEXCPT), for sandboxes with vectors"))
            }
            _ if self.cr4 & CR4_OSXSAVE != 0 => match self.xcr0 & !KNOWN_STATE {
                0 => Ok((self.xcr0 & !XCR0_PKRU) as u32),
                _ => Err(Unsupported::Enabled("state that CR0.TS does not guard (XCR0: MPX, AMX, APX)")),
            },
            _ if self.efer & EFER_FFXSR != 0 => Err(Unsupported::Enabled("FXSAVE without XMM registers (EFER.FFXSR)")),
            _ => Ok(0),
        }
    }
}

/// Whether a set fits, if XSAVE says so of its size.
fn check_size(bytes: u32) -> Result<(), Unsupported> {
    match bytes as usize <= PAGE_SIZE {
        true => Ok(()),
        false => Err(Unsupported::Enabled("more vector state (XCR0) than a page holds")),
    }
}

/// Writes a set that is as after a reset.
///
/// # Safety
///
/// 1. A frame of the caller's begins at `set`.
pub(crate) unsafe fn reset(set: *mut u8) {
    // SAFETY: (1).
    unsafe { set.cast::<Set>().write(Set::RESET) };
}

/// Makes a set one that a CPU with `components` can take: on another CPU, or before the host changed XCR0, it may have had more,
/// which XRSTOR refuses and XSAVE leaves as it is. What is left out is as after a reset when it comes again.
///
/// # Safety
///
/// 1. As [`reset`], which was called before, or the frame was zeroed; no run uses it.
unsafe fn fit(set: *mut u8, components: u32) {
    // SAFETY: (1).
    unsafe { (*set.cast::<Set>()).header[0] &= u64::from(components) };
}

/// Makes both sets of `area` ones for this CPU, whose `components` are these.
///
/// # Safety
///
/// 1. As [`Arch::enter_with_vectors`](sandbox_core::Arch::enter_with_vectors), condition 2.
pub(crate) unsafe fn prepare(area: &VectorArea, components: u32) {
    // SAFETY: (1).
    unsafe {
        fit(area.sandbox, components);
        fit(area.host, components);
    }
}

#[cfg(target_os = "none")]
pub(crate) use cpu::{check, components, enter};

#[cfg(target_os = "none")]
mod cpu {
    use core::arch::x86_64::__cpuid_count;

    use sandbox_core::arch::VectorArea;
    use x86_64::registers::control::{Cr0, Cr4, Efer};
    use x86_64::registers::xcontrol::XCr0;

    use super::{CR4_OSXSAVE, Control, Error, Unsupported, check_size, with_vectors};
    use crate::gate::State;
    use crate::registers::Frame;

    /// Leaf 0xd, EBX: bytes that XSAVE writes for what XCR0 enables (SDM 1, section 13.2).
    const XSAVE_LEAF: u32 = 0xd;

    /// What [`sandbox_vectors_enter`] exchanges on this CPU.
    pub(crate) fn components() -> Result<u32, Unsupported> {
        let cr4 = Cr4::read_raw();
        let control = match cr4 & CR4_OSXSAVE != 0 {
            true => Control { cr4, xcr0: XCr0::read_raw(), efer: 0 },
            false => Control { cr4, xcr0: 0, efer: Efer::read_raw() },
        };
        control.components()
    }

    /// Whether sandboxes can have vector registers on this CPU.
    pub(crate) fn check() -> Result<(), Error> {
        if components()? != 0 {
            check_size(__cpuid_count(XSAVE_LEAF, 0).ebx)?;
        }
        Ok(())
    }

    core::arch::global_asm!(include_str!("vectors.s"));

    unsafe extern "C" {
        /// As `sandbox_gate_enter`, with the registers of `sandbox` while it runs, which it may change; the host's wait in `host`.
        /// Changes no vector register, whatever the calling convention lets a function do. The protocol is in `vectors.s`.
        ///
        /// # Safety
        ///
        /// 1. As `sandbox_gate_enter`.
        /// 2. `sandbox` and `host` are a frame each, for this alone; the former was last written by `reset` or by this, the latter
        ///    by this since it was zeroed; `prepare` was called for them.
        /// 3. `components` is from [`components`] on this CPU, and CR0.TS and CR0.EM are clear.
        fn sandbox_vectors_enter(
            state: *mut State,
            root: u64,
            sandbox: *mut u8,
            host: *mut u8,
            components: u32,
        ) -> *const Frame;
    }

    /// As `sandbox_gate_enter`, with the sandbox's registers of `area` while it runs. CR0 is as it was afterwards.
    ///
    /// # Safety
    ///
    /// 1. As `sandbox_gate_enter`, with a `cr0_trap` of 0.
    /// 2. `area` was prepared for `components`, which this CPU's are.
    #[inline(always)]
    pub(crate) unsafe fn enter(state: *mut State, root: u64, area: &VectorArea, components: u32) -> *const Frame {
        let host = Cr0::read();
        let run = with_vectors(host);
        // SAFETY: lets floating point work, and changes nothing else; the host's registers are saved before the sandbox has any.
        // (1), (2).
        unsafe {
            if run != host {
                Cr0::write(run);
            }
            let frame = sandbox_vectors_enter(state, root, area.sandbox, area.host, components);
            if run != host {
                Cr0::write(host);
            }
            frame
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const GOOD: Control = Control { cr4: CR4_OSFXSR | CR4_OSXMMEXCPT, xcr0: 0, efer: 0 };

    #[test]
    fn floating_point_works() {
        let unrelated = Cr0Flags::PAGING | Cr0Flags::WRITE_PROTECT;
        let (ts, mp) = (Cr0Flags::TASK_SWITCHED, Cr0Flags::MONITOR_COPROCESSOR);
        for host in [Cr0Flags::empty(), ts, mp, ts | mp, Cr0Flags::EMULATE_COPROCESSOR | ts] {
            assert_eq!(with_vectors(unrelated | host), unrelated | mp | Cr0Flags::NUMERIC_ERROR);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(GOOD.components(), Ok(0));
        let xsave = Control { cr4: GOOD.cr4 | CR4_OSXSAVE, ..GOOD };
        for xcr0 in [0b11, 0b111, 0xe7] {
            assert_eq!(Control { xcr0, ..xsave }.components(), Ok(xcr0 as u32));
            assert_eq!(Control { xcr0: xcr0 | XCR0_PKRU, ..xsave }.components(), Ok(xcr0 as u32));
        }
        for bit in [3, 4, 8, 10, 17, 18, 19, 62] {
            assert!(matches!(Control { xcr0: 0b11 | 1 << bit, ..xsave }.components(), Err(Unsupported::Enabled(_))));
        }
        assert!(matches!(Control { efer: EFER_FFXSR, ..GOOD }.components(), Err(Unsupported::Enabled(_))));
        assert_eq!(Control { xcr0: 0b11, efer: EFER_FFXSR, ..xsave }.components(), Ok(0b11));
        for bit in [CR4_OSFXSR, CR4_OSXMMEXCPT] {
            assert!(matches!(Control { cr4: GOOD.cr4 & !bit, ..GOOD }.components(), Err(Unsupported::Missing(_))));
        }
        assert_eq!((check_size(2696), check_size(4096)), (Ok(()), Ok(())));
        assert!(matches!(check_size(4097), Err(Unsupported::Enabled(_))));
    }

    #[test]
    fn a_set_from_elsewhere_fits() {
        let (mut sandbox, mut host) = (Set::RESET, Set::RESET);
        sandbox.header[0] = 0xe7;
        host.header[0] = 0b110;
        let area = VectorArea { sandbox: (&raw mut sandbox).cast(), host: (&raw mut host).cast() };
        // SAFETY: (1) two sets.
        unsafe { prepare(&area, 0b11) };
        assert_eq!((sandbox.header[0], host.header[0]), (0b11, 0b10));
    }

    /// Between the exchanges there is the entry and nothing else.
    #[test]
    fn the_entry_is_all_that_runs_with_the_sandboxs() {
        let source = include_str!("vectors.s");
        let lines: Vec<_> = source
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default().trim())
            .filter(|line| !line.is_empty())
            .collect();
        let entry = lines.iter().position(|&line| line == "sandbox_vectors_load rbx").unwrap();
        assert_eq!(
            lines[entry - 1..entry + 5],
            [
                "sandbox_vectors_save rbp",
                "sandbox_vectors_load rbx",
                "call sandbox_gate_enter",
                "mov rdi, rax",
                "sandbox_vectors_save rbx",
                "sandbox_vectors_load rbp",
            ]
        );
    }
}
