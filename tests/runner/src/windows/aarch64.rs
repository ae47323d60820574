//! The windows on AArch64: the gate with its vectors, and where sandboxed code begins.

use std::collections::BTreeSet;
use std::ops::Range;

use super::Instruction;
use crate::error::Error;
use crate::kernel::Kernel;

const SIZE: u64 = 4;
/// Bytes for one vector (Arm ARM, section D1.3.1), and those that a run uses: a synchronous exception, an IRQ and an FIQ of
/// unprivileged AArch64 code.
const SLOT: u64 = 0x80;
const USED_SLOTS: std::ops::RangeInclusive<u64> = 8..=10;
const INTERRUPT_SLOTS: [u64; 2] = [9, 10];

/// Encodings (Arm ARM, chapter C6).
const NOP: u32 = 0xd503_201f;
const ERET: u32 = 0xd69f_03e0;
const SVC: u32 = 0xd400_0001;
const SVC_MASK: u32 = 0xffe0_001f;
const RET: u32 = 0xd65f_03c0;
const B: u32 = 0x1400_0000;
const B_MASK: u32 = 0xfc00_0000;
const TBNZ: u32 = 0x3700_0000;
const TBNZ_MASK: u32 = 0x7f00_0000;

const FATAL: &str = "an exception of the gate's own: the end of the machine";
const IMPOSSIBLE: &str = "a vector of what cannot happen in a run";
const OTHER_HALF: &str = "the way of a host whose gate is in the other half of the address space";
const BEHIND_ERET: &str = "behind eret, against speculation";
const BEHIND_RETURN: &str = "behind the sandbox's return, which does not come back";

pub(super) fn find(kernel: &Kernel) -> Result<Vec<Instruction>, Error> {
    let [start, vectors, enter, fatal, end, launch] = ["start", "vectors", "enter", "fatal", "end", "launch"]
        .map(|name| kernel.symbol(&format!("sandbox_gate_{name}")));
    let (start, vectors, enter, fatal, end, launch) = (start?, vectors?, enter?, fatal?, end?, launch?);
    let other_half =
        [other_half(kernel, "sandbox_gate_enter_tagged")?, other_half(kernel, "sandbox_gate_leave_tagged")?];

    let mut all = Vec::new();
    let mut left = false;
    for (address, code) in decode(kernel, start, end)? {
        // What follows is another routine's.
        left &= kernel.place(address).contains('+');
        let in_vectors = (vectors..enter).contains(&address);
        let never = match address {
            _ if in_vectors && !USED_SLOTS.contains(&((address - vectors) / SLOT)) => Some(IMPOSSIBLE),
            _ if address >= fatal => Some(FATAL),
            _ if other_half.iter().any(|part| part.contains(&address)) => Some(OTHER_HALF),
            _ if left => Some(BEHIND_ERET),
            _ => None,
        };
        all.push(Instruction { address, never, in_table: false });
        left |= code == ERET;
    }
    let mut returned = false;
    for (address, code) in decode(kernel, launch, kernel.end_of("sandbox_gate_launch")?)? {
        all.push(Instruction { address, never: returned.then_some(BEHIND_RETURN), in_table: false });
        if code & B_MASK == B {
            break;
        }
        returned |= code & SVC_MASK == SVC;
    }
    let exchange = kernel.symbol("sandbox_vectors_enter")?;
    for (address, code) in decode(kernel, exchange, kernel.end_of("sandbox_vectors_enter")?)? {
        all.push(Instruction { address, never: None, in_table: false });
        if code == RET {
            break;
        }
    }
    Ok(all)
}

/// The part of `routine` that this kernel's gate is in the wrong half of the address space for: the routine begins by branching away
/// if the gate is in the high one.
fn other_half(kernel: &Kernel, routine: &str) -> Result<Range<u64>, Error> {
    let start = kernel.symbol(routine)?;
    match decode(kernel, start, start + SIZE)?[..] {
        [(_, code)] if code & TBNZ_MASK == TBNZ => {
            // Fourteen bits, in words; the parts are near, and behind.
            let high = start + u64::from(code >> 5 & 0x1fff) * SIZE;
            Ok(if start >> 63 != 0 { start + SIZE..high } else { high..kernel.end_of(routine)? })
        }
        _ => Err(Error::new(format!("{routine} does not begin with a choice"))),
    }
}

pub(super) fn arrivals(kernel: &Kernel) -> Result<BTreeSet<u64>, Error> {
    let vectors = kernel.symbol("sandbox_gate_vectors")?;
    Ok(INTERRUPT_SLOTS.map(|slot| vectors + slot * SLOT).into())
}

/// What the code from `start` to `end` consists of, without what fills gaps.
fn decode(kernel: &Kernel, start: u64, end: u64) -> Result<Vec<(u64, u32)>, Error> {
    let bytes = kernel.bytes(start, end)?;
    let words = bytes.chunks_exact(SIZE as usize).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    let placed = (start..).step_by(SIZE as usize).zip(words);
    Ok(placed.filter(|(_, word)| !matches!(*word, 0 | NOP)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;

    const BASE: u64 = 0xffff_ffff_8000_1000;
    const ENTER: u64 = BASE + 0x800;
    const LAUNCH: u64 = ENTER + 48;
    const EXCHANGE: u64 = LAUNCH + 16;

    /// A gate of the right shape: a branch in each slot, an entry of three instructions with a barrier behind, twice a choice of
    /// two ways, a way out of one, a fatal end of one, launch, the exchange of vector registers.
    fn gate() -> Kernel {
        const OTHER: u32 = 0x9100_0000;
        /// `tbnz x0, #1` over one instruction.
        const CHOICE: u32 = TBNZ | 1 << 19 | 2 << 5;
        let mut words = vec![0; 0x200 + 12];
        (0..16).for_each(|slot| words[slot * SLOT as usize / 4] = B);
        let code = [OTHER, OTHER, ERET, 0xd503_3fdf, CHOICE, OTHER, B, OTHER, CHOICE, OTHER, B, OTHER];
        words[0x200..].copy_from_slice(&code);
        words.extend([0xd63f_0020, SVC, B | 0x03ff_ffff, OTHER, OTHER, RET, OTHER]);
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        let symbols = [
            ("sandbox_gate_start", BASE),
            ("sandbox_gate_vectors", BASE),
            ("sandbox_gate_enter", ENTER),
            ("sandbox_gate_enter_tagged", ENTER + 16),
            ("sandbox_gate_leave_tagged", ENTER + 32),
            ("sandbox_gate_fatal", ENTER + 44),
            ("sandbox_gate_end", LAUNCH),
            ("sandbox_gate_launch", LAUNCH),
            ("sandbox_vectors_enter", EXCHANGE),
            ("next", EXCHANGE + 12),
        ];
        Kernel::of(Machine::Virt, &symbols, BASE, &bytes)
    }

    #[test]
    fn every_instruction_is_found_and_gaps_are_not() {
        let all = find(&gate()).expect("a gate");
        let reasons: Vec<_> = all.iter().map(|one| one.never).collect();
        let used: Vec<_> = (0..16).filter(|slot| reasons[*slot].is_none()).collect();
        assert_eq!(used, [8, 9, 10]);
        assert_eq!(arrivals(&gate()), Ok([BASE + 9 * SLOT, BASE + 10 * SLOT].into()));
        let choice = [None, Some(OTHER_HALF), None];
        assert_eq!(reasons[16..20], [None, None, None, Some(BEHIND_ERET)]);
        assert_eq!(reasons[20..23], choice);
        assert_eq!(reasons[24..27], choice);
        assert_eq!(reasons[27..], [Some(FATAL), None, None, Some(BEHIND_RETURN), None, None]);
    }

    #[test]
    fn a_gate_without_its_names_is_refused() {
        assert!(find(&Kernel::of(Machine::Virt, &[], 0, &[])).is_err());
    }
}
