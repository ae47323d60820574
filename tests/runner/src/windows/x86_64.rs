//! The windows on x86-64: the gate, where sandboxed code begins, and the table that forwards interrupts.

use std::collections::BTreeSet;

use yaxpeax_arch::{AddressBase, LengthedInstruction};
use yaxpeax_x86::amd64::{InstDecoder, Instruction as Decoded, Opcode, Operand};

use super::Instruction;
use crate::error::Error;
use crate::kernel::Kernel;

const VECTORS: usize = 256;
/// Vectors from here on are interrupts.
const FIRST_INTERRUPT: i64 = 32;
/// The vector of the platform's local APIC for what turned out to be nothing. Nobody ends it, so nobody raises it.
const SPURIOUS: i64 = 0xff;

const FATAL: &str = "an exception of the gate's own: the end of the machine";
const STEPPED: &str = "the way back of a host that single-steps: cases of the conformance suite come here";
const DEBUGGED: &str = "a debug exception in the gate itself: cases of the conformance suite come here";
const BEHIND_RETURN: &str = "behind the sandbox's return, which does not come back";

/// Why the stub of `vector` is not used.
fn stub_never(vector: i64) -> Option<&'static str> {
    Some(match vector {
        3 => "the stub of a vector that unprivileged code may not call: a general-protection fault instead",
        8 => "the stub of the double fault, which only the gate's own faults make",
        10 => "the stub of a fault of task switches",
        16 | 19 => "the stub of a floating-point exception, where floating point is not available",
        5 | 9 | 15 | 22..=27 | 31 => "the stub of a vector that 64-bit mode has no use for",
        17 | 20 | 21 | 28..=30 => "the stub of an exception that QEMU's CPUs don't raise",
        SPURIOUS => "the stub of the platform's spurious vector",
        _ => return None,
    })
}

/// Why the entry of `vector` in the table of forwarded interrupts is not used.
fn forward_never(vector: i64) -> Option<&'static str> {
    match vector {
        ..FIRST_INTERRUPT => Some("a forwarding of an exception"),
        SPURIOUS => Some("the forwarding of the platform's spurious vector"),
        _ => None,
    }
}

pub(super) fn find(kernel: &Kernel) -> Result<Vec<Instruction>, Error> {
    let [start, fatal, stubs, end, launch, forward] = ["start", "fatal", "stubs", "end", "launch", "forward"]
        .map(|name| kernel.symbol(&format!("sandbox_gate_{name}")));
    let (start, fatal, stubs, end, launch, forward) = (start?, fatal?, stubs?, end?, launch?, forward?);
    let stepped = kernel.symbol("sandbox_gate_window_end")?..kernel.symbol("sandbox_gate_page_fault")?;
    let debugged = kernel.symbol("sandbox_gate_debugged")?..fatal;
    let exchange = kernel.symbol("sandbox_vectors_enter")?;
    let forward_end = kernel.end_of("sandbox_gate_forward")?;

    let mut all = Vec::new();
    for (address, _) in decode(kernel, start, stubs)? {
        let never = match address {
            _ if address >= fatal => Some(FATAL),
            _ if stepped.contains(&address) => Some(STEPPED),
            _ if debugged.contains(&address) => Some(DEBUGGED),
            _ => None,
        };
        all.push(Instruction { address, never, in_table: false });
    }
    list(stub_pieces(kernel, stubs, end)?, stub_never, &mut all);
    let mut returned = false;
    for (address, code) in decode(kernel, launch, forward)? {
        all.push(Instruction { address, never: returned.then_some(BEHIND_RETURN), in_table: false });
        returned |= code.opcode() == Opcode::INT;
    }
    let is_return = |code: &Decoded| code.opcode() == Opcode::RETURN;
    let is_int = |code: &Decoded| code.opcode() == Opcode::INT;
    list(pieces(decode(kernel, forward, forward_end)?, is_return, is_int)?, forward_never, &mut all);
    for (address, code) in decode(kernel, exchange, kernel.end_of("sandbox_vectors_enter")?)? {
        all.push(Instruction { address, never: None, in_table: false });
        if is_return(&code) {
            break;
        }
    }
    Ok(all)
}

/// NMI, machine check, and everything that devices raise.
pub(super) fn arrivals(kernel: &Kernel) -> Result<BTreeSet<u64>, Error> {
    let pieces = stub_pieces(kernel, kernel.symbol("sandbox_gate_stubs")?, kernel.symbol("sandbox_gate_end")?)?;
    let asynchronous = |vector: &i64| matches!(vector, 2 | 18 | FIRST_INTERRUPT..);
    let first =
        pieces.into_iter().filter(|(vector, _)| asynchronous(vector)).filter_map(|(_, piece)| piece.first().copied());
    Ok(first.collect())
}

fn stub_pieces(kernel: &Kernel, stubs: u64, end: u64) -> Result<Vec<(i64, Vec<u64>)>, Error> {
    let is_jump = |code: &Decoded| code.opcode() == Opcode::JMP;
    let is_push = |code: &Decoded| code.opcode() == Opcode::PUSH;
    pieces(decode(kernel, stubs, end)?, is_jump, is_push)
}

fn list(pieces: Vec<(i64, Vec<u64>)>, never: impl Fn(i64) -> Option<&'static str>, all: &mut Vec<Instruction>) {
    for (vector, piece) in pieces {
        let (never, in_table) = (never(vector), vector >= FIRST_INTERRUPT);
        all.extend(piece.into_iter().map(|address| Instruction { address, never, in_table }));
    }
}

/// What the code from `start` to `end` consists of, without what fills gaps.
fn decode(kernel: &Kernel, start: u64, end: u64) -> Result<Vec<(u64, Decoded)>, Error> {
    let mut rest = kernel.bytes(start, end)?;
    let mut all = Vec::new();
    let mut address = start;
    while !rest.is_empty() {
        let decoded = InstDecoder::default().decode_slice(rest);
        let code = decoded.map_err(|error| Error::new(format!("cannot decode {}: {error}", kernel.place(address))))?;
        let length = 0_u64.wrapping_offset(code.len()).to_linear();
        if code.opcode() != Opcode::NOP {
            all.push((address, code));
        }
        address += length as u64;
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(all)
}

/// Takes a table of pieces of code apart, one for each vector: `ends` tells a piece's last instruction, `names` the one whose
/// operand is the vector (the last such of a piece).
fn pieces(
    code: Vec<(u64, Decoded)>,
    ends: impl Fn(&Decoded) -> bool,
    names: impl Fn(&Decoded) -> bool,
) -> Result<Vec<(i64, Vec<u64>)>, Error> {
    let mut all = Vec::new();
    let mut piece = Vec::new();
    let mut vector = None;
    for (address, code) in code {
        piece.push(address);
        if names(&code) {
            vector = immediate(code.operand(0)).or(vector);
        }
        if ends(&code) {
            let vector = vector
                .take()
                .ok_or_else(|| Error::new(format!("the code at {address:#x} does not tell whose vector it is")))?;
            all.push((vector, std::mem::take(&mut piece)));
        }
    }
    match all.len() {
        VECTORS if piece.is_empty() => Ok(all),
        found => Err(Error::new(format!("{found} pieces of code for {VECTORS} vectors"))),
    }
}

fn immediate(operand: Operand) -> Option<i64> {
    Some(match operand {
        Operand::ImmediateI8 { imm } => imm.into(),
        Operand::ImmediateU8 { imm } => imm.into(),
        Operand::ImmediateI32 { imm } => imm.into(),
        Operand::ImmediateU32 { imm } => imm.into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;

    const STUBS: u64 = 0x1010;
    const END: u64 = STUBS + 256 * 16;
    const LAUNCH: u64 = END;
    const FORWARD: u64 = LAUNCH + 16;

    const EXCHANGE: u64 = FORWARD + 1024;

    /// A gate of the right shape: `ret`, three times `ud2` for what is never come to, stubs with the vector in four bytes, launch,
    /// forward, the exchange of vector registers.
    fn gate(vectors: u32) -> Kernel {
        let mut bytes = vec![0xc3, 0x0f, 0x0b, 0xc3, 0x0f, 0x0b, 0x0f, 0x0b];
        bytes.resize(16, 0x90);
        for vector in 0..vectors {
            bytes.extend([0x6a, 0x00, 0x68]);
            bytes.extend(vector.to_le_bytes());
            bytes.extend([0xe9, 0, 0, 0, 0]);
            bytes.extend([0x0f, 0x1f, 0x40, 0x00]);
        }
        bytes.resize((END - 0x1000) as usize, 0x90);
        bytes.extend([0xff, 0xd6, 0xcd, 0x04, 0xeb, 0xfa]);
        bytes.resize((FORWARD - 0x1000) as usize, 0x90);
        (0..=255).for_each(|vector| bytes.extend([0xfb, 0xcd, vector, 0xc3]));
        bytes.extend([0xff, 0xd6, 0xc3, 0xcc]);
        let symbols = [
            ("sandbox_gate_start", 0x1000),
            ("sandbox_gate_window_end", 0x1001),
            ("sandbox_gate_page_fault", 0x1003),
            ("sandbox_gate_debugged", 0x1004),
            ("sandbox_gate_fatal", 0x1006),
            ("sandbox_gate_stubs", STUBS),
            ("sandbox_gate_end", END),
            ("sandbox_gate_launch", LAUNCH),
            ("sandbox_gate_forward", FORWARD),
            ("sandbox_vectors_enter", EXCHANGE),
            ("next", EXCHANGE + 4),
        ];
        Kernel::of(Machine::Q35, &symbols, 0x1000, &bytes)
    }

    #[test]
    fn every_instruction_is_found_and_gaps_are_not() {
        let all = find(&gate(256)).expect("a gate");
        assert_eq!(all.len(), 5 + 3 * 256 + 3 + 3 * 256 + 2);
        assert!(all.is_sorted_by_key(|one| one.address));
        let reasons = |from, to| {
            let part = all.iter().filter(move |one| (from..to).contains(&one.address));
            part.map(|one| one.never.is_some()).collect::<Vec<_>>()
        };
        let of_the_gate: Vec<_> = all[..5].iter().map(|one| one.never).collect();
        assert_eq!(of_the_gate, [None, Some(STEPPED), None, Some(DEBUGGED), Some(FATAL)]);
        let arrivals = arrivals(&gate(256)).expect("a gate");
        assert_eq!(arrivals.len(), 2 + 224);
        assert_eq!(arrivals.first(), Some(&(STUBS + 2 * 16)));
        assert_eq!(reasons(STUBS + 4 * 16, STUBS + 6 * 16), [false, false, false, true, true, true]);
        assert_eq!(reasons(LAUNCH, FORWARD), [false, false, true]);
        assert_eq!(reasons(FORWARD + 31 * 4, FORWARD + 33 * 4), [true, true, true, false, false, false]);
    }

    #[test]
    fn a_gate_of_another_shape_is_refused() {
        assert!(find(&gate(255)).is_err());
        assert!(find(&Kernel::of(Machine::Q35, &[], 0, &[])).is_err());
    }
}
