//! From a syndrome to a cause.
//!
//! An instruction that is not allowed at EL0 mostly ends in class 0, which says nothing; the instruction itself says the
//! rest. It is read through the sandbox's own view.

use sandbox_core::arch::{Cause, Memory, Refusal};
use sandbox_core::{Access, Syndrome, VirtAddr};

use crate::format::Vmsa;
use crate::registers::Registers;

/// ESR_EL1: the exception class and the syndrome proper (Arm ARM, section D23.2.38).
const CLASS_SHIFT: u32 = 26;
const CLASS_MASK: u64 = 0b11_1111;
const STATUS_MASK: u64 = 0b11_1111;
const WRITE: u64 = 1 << 6;
const NO_ADDRESS: u64 = 1 << 10;
const SVC_NUMBER_MASK: u64 = 0xffff;

/// The class of `esr`.
pub(crate) fn class(esr: u64) -> u64 {
    esr >> CLASS_SHIFT & CLASS_MASK
}

const CLASS_SVC: u64 = 0x15;

/// The number of the host call, if `esr` is one's.
pub(crate) fn host_call(esr: u64) -> Option<u64> {
    (class(esr) == CLASS_SVC).then_some(esr & SVC_NUMBER_MASK)
}

/// The syndrome of `svc #0`, the sandboxed function's return: the class, a 32-bit instruction, the number 0.
pub(crate) const RETURN_SYNDROME: u64 = CLASS_SVC << CLASS_SHIFT | 1 << 25;

/// What the exception in `registers` was.
pub(crate) fn diagnose(format: Vmsa, registers: &Registers, memory: &dyn Memory) -> Cause {
    let esr = registers.esr;
    let unknown = Cause::Unknown(Syndrome { class: class(esr), detail: esr });
    let misaligned = |address, access| Cause::Memory { address, access, refusal: Refusal::Alignment };
    match class(esr) {
        0x00 => unnamed(registers, memory),
        // WFI and WFE; LD64B and the like; 128-bit system registers; system registers and instructions.
        0x01 | 0x0a | 0x14 | 0x18 => Cause::Privileged,
        // Vectors and floating point, SVE, SME; floating-point exceptions.
        0x07 | 0x19 | 0x1d | 0x2c => Cause::FloatingPoint,
        // Pointer authentication, branch target, illegal state, TSTART, authentication failure, guarded control stack.
        0x09 | 0x0d | 0x0e | 0x1b | 0x1c | 0x2d => Cause::Illegal,
        // Calls of levels above the host's, where EL0 could ever make them.
        0x16 | 0x17 => Cause::Privileged,
        0x20 => abort(format, registers, Access::Execute).unwrap_or(unknown),
        0x22 => misaligned(VirtAddr(registers.far), Access::Execute),
        0x24 => {
            let access = if esr & WRITE != 0 { Access::Write } else { Access::Read };
            abort(format, registers, access).unwrap_or(unknown)
        }
        // Stack pointer. The syndrome doesn't say what the access was.
        0x26 => misaligned(VirtAddr(registers.sp), Access::Read),
        0x30 | 0x3c => Cause::Breakpoint,
        0x32 | 0x34 => Cause::SingleStep,
        _ => unknown,
    }
}

/// An instruction or data abort; `None` if the status says nothing that has a name.
fn abort(format: Vmsa, registers: &Registers, access: Access) -> Option<Cause> {
    // Status codes: Arm ARM, section D23.2.38, "ISS encoding for an exception from a Data Abort".
    let refusal = match registers.esr & STATUS_MASK {
        // The size of an address in a table entry or a root.
        0x00..=0x03 | 0x29 => Refusal::NonCanonical,
        // Translation, access flag, permission.
        0x04..=0x0f | 0x2a | 0x2b => Refusal::Translation,
        // External, on a walk or not; ECC; granule protection; more than one translation cached.
        0x10 | 0x12..=0x18 | 0x1b..=0x1f | 0x23..=0x28 | 0x30 => Refusal::External,
        0x11 => Refusal::Restriction,
        0x21 => Refusal::Alignment,
        _ => return None,
    };
    if refusal == Refusal::External && registers.esr & NO_ADDRESS != 0 {
        return None;
    }
    Some(Cause::Memory { address: format.untagged(registers.far), access, refusal })
}

/// Instructions by their fixed bits: a mask and a value (Arm ARM, section C4.1).
struct Encoding(u32, u32);

/// What exists but not for EL0: system registers and instructions; HVC; SMC; ERET, ERETAA and ERETAB; DRPS.
const PRIVILEGED: [Encoding; 6] = [
    Encoding(0xff80_0000, 0xd500_0000),
    Encoding(0xffe0_001f, 0xd400_0002),
    Encoding(0xffe0_001f, 0xd400_0003),
    Encoding(0xffff_ffff, 0xd69f_03e0),
    Encoding(0xffff_fbff, 0xd69f_0bff),
    Encoding(0xffff_ffff, 0xd6bf_03e0),
];

/// An exception of class 0: looks at the instruction.
fn unnamed(registers: &Registers, memory: &dyn Memory) -> Cause {
    let mut bytes = [0; 4];
    if memory.fetch(VirtAddr(registers.pc), &mut bytes) < bytes.len() {
        return Cause::Illegal;
    }
    // Instructions are little-endian, whatever data is.
    let instruction = u32::from_le_bytes(bytes);
    match PRIVILEGED.iter().any(|&Encoding(mask, value)| instruction & mask == value) {
        true => Cause::Privileged,
        false => Cause::Illegal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Instruction(Option<u32>);

    impl Memory for Instruction {
        fn fetch(&self, _: VirtAddr, into: &mut [u8]) -> usize {
            let Some(instruction) = self.0 else { return 0 };
            into.copy_from_slice(&instruction.to_le_bytes());
            into.len()
        }

        fn load(&self, _: VirtAddr) -> Option<u64> {
            None
        }
    }

    /// 48 bits in both halves, 4 KiB granule, tags in the low half.
    fn format() -> Vmsa {
        Vmsa::from_registers(16 | 16 << 16 | 0b10 << 30 | 1 << 37, 0xff, 0).unwrap()
    }

    fn cause(class: u64, iss: u64, instruction: Option<u32>) -> Cause {
        let esr = class << CLASS_SHIFT | 1 << 25 | iss;
        let registers = Registers { esr, far: 0xab00_0000_0000_1234, sp: 0x5008, pc: 0x4000, ..Default::default() };
        diagnose(format(), &registers, &Instruction(instruction))
    }

    #[test]
    fn aborts() {
        let address = VirtAddr(0x1234);
        for (class, iss, access, refusal) in [
            (0x20, 0x05, Access::Execute, Refusal::Translation),
            (0x20, 0x0f, Access::Execute, Refusal::Translation),
            (0x24, 0x07, Access::Read, Refusal::Translation),
            (0x24, 0x47, Access::Write, Refusal::Translation),
            (0x24, 0x0b, Access::Read, Refusal::Translation),
            (0x24, 0x4f, Access::Write, Refusal::Translation),
            (0x24, 0x21, Access::Read, Refusal::Alignment),
            (0x24, 0x50, Access::Write, Refusal::External),
            (0x24, 0x18, Access::Read, Refusal::External),
            (0x24, 0x30, Access::Read, Refusal::External),
            (0x24, 0x02, Access::Read, Refusal::NonCanonical),
            (0x24, 0x11, Access::Read, Refusal::Restriction),
        ] {
            assert_eq!(cause(class, iss, None), Cause::Memory { address, access, refusal }, "{class:#x} {iss:#x}");
        }
        assert!(matches!(cause(0x24, 0x410, None), Cause::Unknown(Syndrome { class: 0x24, .. })));
        assert!(matches!(cause(0x24, 0x35, None), Cause::Unknown(_)));
    }

    #[test]
    fn alignment() {
        let misaligned = |address, access| Cause::Memory { address, access, refusal: Refusal::Alignment };
        assert_eq!(cause(0x22, 0, None), misaligned(VirtAddr(0xab00_0000_0000_1234), Access::Execute));
        assert_eq!(cause(0x26, 0, None), misaligned(VirtAddr(0x5008), Access::Read));
    }

    #[test]
    fn classes() {
        for (class, expected) in [
            (0x01, Cause::Privileged),
            (0x07, Cause::FloatingPoint),
            (0x0d, Cause::Illegal),
            (0x0e, Cause::Illegal),
            (0x18, Cause::Privileged),
            (0x19, Cause::FloatingPoint),
            (0x1c, Cause::Illegal),
            (0x1d, Cause::FloatingPoint),
            (0x2c, Cause::FloatingPoint),
            (0x30, Cause::Breakpoint),
            (0x32, Cause::SingleStep),
            (0x34, Cause::SingleStep),
            (0x3c, Cause::Breakpoint),
        ] {
            assert_eq!(cause(class, 0, None), expected, "{class:#x}");
        }
        assert!(matches!(cause(0x2f, 0, None), Cause::Unknown(Syndrome { class: 0x2f, .. })));
    }

    #[test]
    fn unnamed_instructions() {
        for (instruction, expected) in [
            (0x0000_0000, Cause::Illegal),    // udf #0
            (0xd51b_4220, Cause::Privileged), // msr daif, x0
            (0xd538_1000, Cause::Privileged), // mrs x0, sctlr_el1
            (0xd508_871f, Cause::Privileged), // tlbi vmalle1
            (0xd400_0002, Cause::Privileged), // hvc #0
            (0xd400_0023, Cause::Privileged), // smc #1
            (0xd69f_03e0, Cause::Privileged), // eret
            (0xd69f_0bff, Cause::Privileged), // eretaa
            (0xd69f_0fff, Cause::Privileged), // eretab
            (0xd6bf_03e0, Cause::Privileged), // drps
            (0xd45e_0000, Cause::Illegal),    // hlt #0xf000
            (0xd4a0_0001, Cause::Illegal),    // dcps1
        ] {
            assert_eq!(cause(0, 0, Some(instruction)), expected, "{instruction:#x}");
        }
        assert_eq!(cause(0, 0, None), Cause::Illegal);
    }

    #[test]
    fn calls() {
        assert_eq!(host_call(RETURN_SYNDROME), Some(0));
        assert_eq!(host_call(RETURN_SYNDROME | 0xfffe), Some(0xfffe));
        assert_eq!(host_call(0x24 << CLASS_SHIFT), None);
    }
}
