//! From a vector and an error code to a cause.
//!
//! A general-protection fault says almost nothing; the instruction that raised it says the rest. It is read through the
//! sandbox's own view, decoded, and its memory operands are looked at: if one is not canonical, that was it;
//! otherwise the instruction was one that the sandbox may not execute.

use sandbox_core::arch::{Cause, Memory, Refusal};
use sandbox_core::{Access, Syndrome, VirtAddr};
use x86_64::structures::idt::PageFaultErrorCode;
use yaxpeax_x86::amd64::{InstDecoder, Instruction, Opcode, Operand, RegSpec};

use crate::format::LongMode;
use crate::registers::{Frame, Registers};

/// Error code of a fault that names an entry of the exception table: bit 1 is set (SDM 3, section 7.13).
const ERROR_IDT: u64 = 1 << 1;
/// INT3, and INT 3 in two bytes (SDM 2, "INT n").
const BREAKPOINTS: [&[u8]; 2] = [&[0xcc], &[0xcd, 3]];
/// The longest instruction, in bytes (SDM 2, section 2.3.11).
const LONGEST: usize = 15;

/// What the exception in `registers` was.
pub(crate) fn diagnose(format: LongMode, registers: &Registers, memory: &dyn Memory) -> Cause {
    let frame = &registers.frame;
    let unknown = Cause::Unknown(Syndrome { class: frame.vector, detail: frame.error });
    match frame.vector {
        0 => Cause::Arithmetic,
        1 => Cause::SingleStep,
        6 => Cause::Illegal,
        7 | 16 | 19 => Cause::FloatingPoint,
        12 | 13 if !format.is_canonical(frame.rip) => non_canonical(frame.rip, Access::Execute),
        // A software interrupt. The instruction tells which; the error code, whose index should, is wrong on some emulators.
        12 | 13 if frame.error & ERROR_IDT != 0 => match is_breakpoint(frame, memory) {
            true => Cause::Breakpoint,
            false => Cause::Privileged,
        },
        // A selector that the sandbox may not load.
        10..=13 if frame.error != 0 => Cause::Privileged,
        12 | 13 => protection(format, registers, memory),
        14 => page_fault(registers),
        17 => match fetch(frame, memory).and_then(|instruction| operand(&instruction, registers, |_| true)) {
            Some((address, access)) => {
                Cause::Memory { address: VirtAddr(address), access, refusal: Refusal::Alignment }
            }
            None => unknown,
        },
        _ => unknown,
    }
}

fn page_fault(registers: &Registers) -> Cause {
    let error = PageFaultErrorCode::from_bits_truncate(registers.frame.error);
    let access = if error.contains(PageFaultErrorCode::INSTRUCTION_FETCH) {
        Access::Execute
    } else if error.contains(PageFaultErrorCode::CAUSED_BY_WRITE) {
        Access::Write
    } else {
        Access::Read
    };
    let refusal = if error.contains(PageFaultErrorCode::PROTECTION_KEY) {
        Refusal::Restriction
    } else if error.contains(PageFaultErrorCode::MALFORMED_TABLE) {
        Refusal::External
    } else {
        Refusal::Translation
    };
    Cause::Memory { address: VirtAddr(registers.cr2), access, refusal }
}

fn non_canonical(address: u64, access: Access) -> Cause {
    Cause::Memory { address: VirtAddr(address), access, refusal: Refusal::NonCanonical }
}

/// A general-protection or stack fault without an error code.
fn protection(format: LongMode, registers: &Registers, memory: &dyn Memory) -> Cause {
    let Some(instruction) = fetch(&registers.frame, memory) else { return Cause::Privileged };
    // It may begin in the last bytes before the gap.
    let last =
        instruction.mem_size().and_then(|size| size.bytes_size()).map_or(0, |size| u64::from(size).saturating_sub(1));
    let reaches = |address: u64| format.is_canonical(address) && format.is_canonical(address.wrapping_add(last));
    if let Some((address, access)) = operand(&instruction, registers, |address| !reaches(address)) {
        return non_canonical(address, access);
    }
    if let Some(target) = target(&instruction, registers, memory)
        && !format.is_canonical(target)
    {
        return non_canonical(target, Access::Execute);
    }
    Cause::Privileged
}

/// Whether `frame` stopped at a breakpoint instruction.
fn is_breakpoint(frame: &Frame, memory: &dyn Memory) -> bool {
    let mut bytes = [0; 2];
    let count = memory.fetch(VirtAddr(frame.rip), &mut bytes);
    BREAKPOINTS.iter().any(|code| bytes[..count].starts_with(code))
}

/// The instruction that `frame` stopped at.
fn fetch(frame: &Frame, memory: &dyn Memory) -> Option<Instruction> {
    let mut bytes = [0; LONGEST];
    let count = memory.fetch(VirtAddr(frame.rip), &mut bytes);
    InstDecoder::default().decode_slice(&bytes[..count]).ok()
}

/// The first memory operand whose address is as `wanted`, and what the instruction does there.
fn operand(instruction: &Instruction, registers: &Registers, wanted: impl Fn(u64) -> bool) -> Option<(u64, Access)> {
    use yaxpeax_x86::Access as OperandAccess;
    let behavior = instruction.behavior();
    let explicit = (0..instruction.operand_count()).find_map(|index| {
        let address = effective_address(instruction, index, registers)?;
        let access = match behavior.operand_access(index)? {
            // The decoder takes what these compare for written.
            _ if matches!(instruction.opcode(), Opcode::CMPS | Opcode::SCAS) => Access::Read,
            OperandAccess::Read => Access::Read,
            OperandAccess::Write | OperandAccess::ReadWrite => Access::Write,
            _ => return None,
        };
        wanted(address).then_some((address, access))
    });
    explicit.or_else(|| {
        let rsp = registers.frame.rsp;
        let (address, access) = match instruction.opcode() {
            Opcode::PUSH | Opcode::CALL | Opcode::PUSHF | Opcode::ENTER => (rsp.wrapping_sub(8), Access::Write),
            Opcode::POP | Opcode::RETURN | Opcode::POPF => (rsp, Access::Read),
            Opcode::LEAVE => (registers.frame.rbp, Access::Read),
            Opcode::XLAT => (registers.frame.rbx.wrapping_add(registers.frame.rax & 0xff), Access::Read),
            _ => return None,
        };
        wanted(address).then_some((address, access))
    })
}

/// Where a jump, call or return leads that does not name its target in its own bytes.
fn target(instruction: &Instruction, registers: &Registers, memory: &dyn Memory) -> Option<u64> {
    match instruction.opcode() {
        Opcode::JMP | Opcode::CALL => match instruction.operand(0) {
            Operand::Register { reg } => register(registers, reg, instruction),
            _ => memory.load(VirtAddr(effective_address(instruction, 0, registers)?)),
        },
        Opcode::RETURN => memory.load(VirtAddr(registers.frame.rsp)),
        _ => None,
    }
}

/// The address of operand `index`, if that is in memory.
fn effective_address(instruction: &Instruction, index: u8, registers: &Registers) -> Option<u64> {
    let value = |reg| register(registers, reg, instruction);
    let displaced = |base: u64, disp: i32| base.wrapping_add_signed(disp.into());
    let scaled = |index, scale: u8| Some(value(index)?.wrapping_mul(scale.into()));
    let offset = match instruction.operand(index) {
        Operand::AbsoluteU32 { addr } => addr.into(),
        Operand::AbsoluteU64 { addr } => addr,
        Operand::MemDeref { base } => value(base)?,
        Operand::Disp { base, disp } => displaced(value(base)?, disp),
        Operand::MemIndexScale { index, scale } => scaled(index, scale)?,
        Operand::MemIndexScaleDisp { index, scale, disp } => displaced(scaled(index, scale)?, disp),
        Operand::MemBaseIndexScale { base, index, scale } => value(base)?.wrapping_add(scaled(index, scale)?),
        Operand::MemBaseIndexScaleDisp { base, index, scale, disp } => {
            displaced(value(base)?.wrapping_add(scaled(index, scale)?), disp)
        }
        _ => return None,
    };
    let base = match instruction.segment_override_for_op(index) {
        // Their operand is always in the extra segment.
        _ if matches!(instruction.opcode(), Opcode::STOS | Opcode::SCAS | Opcode::INS) => 0,
        Some(yaxpeax_x86::amd64::Segment::FS) => registers.fs_base,
        Some(yaxpeax_x86::amd64::Segment::GS) => registers.gs_base,
        _ => 0,
    };
    Some(base.wrapping_add(offset))
}

/// The value of a general register, whole or its low half, or of the instruction pointer behind the instruction.
fn register(registers: &Registers, reg: RegSpec, instruction: &Instruction) -> Option<u64> {
    use yaxpeax_arch::{AddressBase, LengthedInstruction};
    let frame = &registers.frame;
    let whole = |number| {
        Some(match number {
            0 => frame.rax,
            1 => frame.rcx,
            2 => frame.rdx,
            3 => frame.rbx,
            4 => frame.rsp,
            5 => frame.rbp,
            6 => frame.rsi,
            7 => frame.rdi,
            8 => frame.r8,
            9 => frame.r9,
            10 => frame.r10,
            11 => frame.r11,
            12 => frame.r12,
            13 => frame.r13,
            14 => frame.r14,
            15 => frame.r15,
            _ => return None,
        })
    };
    if reg == RegSpec::rip() {
        return Some(frame.rip.wrapping_offset(instruction.len()));
    }
    match reg.class() {
        class if class == RegSpec::rax().class() => whole(reg.num()),
        class if class == RegSpec::eax().class() => whole(reg.num()).map(|value| value & 0xffff_ffff),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: u64 = 0x0000_8000_0000_0000;
    const STACK: u64 = 0x7fff_0000_0000;

    /// Code at any address, and the same word at every other.
    struct Code(&'static [u8], u64);

    impl Memory for Code {
        fn fetch(&self, _: VirtAddr, into: &mut [u8]) -> usize {
            let count = into.len().min(self.0.len());
            into[..count].copy_from_slice(&self.0[..count]);
            count
        }

        fn load(&self, _: VirtAddr) -> Option<u64> {
            Some(self.1)
        }
    }

    /// What a general-protection fault at `code` was, with `value` in rax, rbx and both bases, and `word` in memory.
    fn protection(code: &'static [u8], value: u64, word: u64) -> Cause {
        let frame = Frame { vector: 13, rip: 0x1000, rax: value, rbx: value, rsp: STACK, ..Frame::default() };
        let registers = Registers { frame, fs_base: value, gs_base: value, ..Registers::default() };
        diagnose(LongMode::new(false), &registers, &Code(code, word))
    }

    #[test]
    fn operands_that_no_table_translates() {
        let read = |address| non_canonical(address, Access::Read);
        let write = |address| non_canonical(address, Access::Write);
        for (code, value, cause) in [
            (&[0x8b, 0x08][..], GAP, read(GAP)),                       // mov ecx, [rax]
            (&[0x89, 0x08], GAP, write(GAP)),                          // mov [rax], ecx
            (&[0x8b, 0x0c, 0xd8], GAP / 8, read(GAP + GAP / 8)),       // mov ecx, [rax + rbx * 8]
            (&[0x48, 0x8b, 0x48, 0x10], GAP - 0x10, read(GAP)),        // mov rcx, [rax + 0x10]
            (&[0x48, 0x8b, 0x08], GAP - 4, read(GAP - 4)),             // the same, across the edge
            (&[0x64, 0x48, 0x8b, 0x08], GAP / 2, read(GAP)),           // mov rcx, fs:[rax]
            (&[0x65, 0x48, 0x89, 0x08], GAP / 2, write(GAP)),          // mov gs:[rax], rcx
            (&[0x65, 0x48, 0xab], GAP, Cause::Privileged),             // stosq: no override there
            (&[0x67, 0x8b, 0x08], GAP, Cause::Privileged),             // mov ecx, [eax]
            (&[0xff, 0xe0], GAP, non_canonical(GAP, Access::Execute)), // jmp rax
            (&[0xf4], GAP, Cause::Privileged),                         // hlt
            (&[0x0f], GAP, Cause::Privileged),                         // cut off
        ] {
            assert_eq!(protection(code, value, 0), cause, "{code:x?}");
        }
        let frame = Frame { vector: 13, rip: 0x1000, rsp: STACK, rdi: GAP, rsi: 0x2000, ..Frame::default() };
        let registers = Registers { frame, ..Registers::default() };
        for (code, cause) in [
            (&[0x48, 0xaf][..], read(GAP)),    // scasq
            (&[0x48, 0xa7], read(GAP)),        // cmpsq
            (&[0x48, 0xa5], write(GAP)),       // movsq
            (&[0xf3, 0x48, 0xab], write(GAP)), // rep stosq
        ] {
            assert_eq!(diagnose(LongMode::new(false), &registers, &Code(code, 0)), cause, "{code:x?}");
        }
        assert_eq!(protection(&[0xc3], 0, GAP), non_canonical(GAP, Access::Execute)); // ret
        assert_eq!(protection(&[0xff, 0x20], 0, GAP), non_canonical(GAP, Access::Execute)); // jmp [rax]
    }
}
