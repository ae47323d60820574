//! The windows on AArch64: the gate with its vectors, and where sandboxed code begins.

use std::collections::BTreeSet;

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
const B: u32 = 0x1400_0000;
const B_MASK: u32 = 0xfc00_0000;

const FATAL: &str = "an exception of the gate's own: the end of the machine";
const IMPOSSIBLE: &str = "a vector of what cannot happen in a run";
const BEHIND_ERET: &str = "behind eret, against speculation";
const BEHIND_RETURN: &str = "behind the sandbox's return, which does not come back";

pub(super) fn find(kernel: &Kernel) -> Result<Vec<Instruction>, Error> {
    let [start, vectors, enter, fatal, end, launch] = ["start", "vectors", "enter", "fatal", "end", "launch"]
        .map(|name| kernel.symbol(&format!("sandbox_gate_{name}")));
    let (start, vectors, enter, fatal, end, launch) = (start?, vectors?, enter?, fatal?, end?, launch?);

    let mut all = Vec::new();
    let mut left = false;
    for (address, code) in decode(kernel, start, end)? {
        // What follows is another routine's.
        left &= kernel.place(address).contains('+');
        let in_vectors = (vectors..enter).contains(&address);
        let never = match address {
            _ if in_vectors && !USED_SLOTS.contains(&((address - vectors) / SLOT)) => Some(IMPOSSIBLE),
            _ if address >= fatal => Some(FATAL),
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
    Ok(all)
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

    const ENTER: u64 = 0x1800;
    const LAUNCH: u64 = 0x1820;

    /// A gate of the right shape: a branch in each slot, an entry of three instructions with a barrier behind, a way out of
    /// one, a fatal end of one, launch.
    fn gate() -> Kernel {
        let mut words = vec![0; 0x200 + 8];
        (0..16).for_each(|slot| words[slot * SLOT as usize / 4] = B);
        let code = [0x9100_0000, 0x9100_0000, ERET, 0xd503_3fdf, 0x9100_0000, B, NOP, 0];
        words[0x200..].copy_from_slice(&code);
        words.extend([0xd63f_0020, SVC, B | 0x03ff_ffff, 0x9100_0000]);
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        let symbols = [
            ("sandbox_gate_start", 0x1000),
            ("sandbox_gate_vectors", 0x1000),
            ("sandbox_gate_enter", ENTER),
            ("sandbox_gate_save", ENTER + 16),
            ("sandbox_gate_fatal", ENTER + 20),
            ("sandbox_gate_end", LAUNCH),
            ("sandbox_gate_launch", LAUNCH),
            ("next", LAUNCH + 16),
        ];
        Kernel::of(Machine::Virt, &symbols, 0x1000, &bytes)
    }

    #[test]
    fn every_instruction_is_found_and_gaps_are_not() {
        let all = find(&gate()).expect("a gate");
        let reasons: Vec<_> = all.iter().map(|one| one.never).collect();
        let used: Vec<_> = (0..16).filter(|slot| reasons[*slot].is_none()).collect();
        assert_eq!(used, [8, 9, 10]);
        assert_eq!(arrivals(&gate()), Ok([0x1000 + 9 * SLOT, 0x1000 + 10 * SLOT].into()));
        assert_eq!(
            reasons[16..],
            [None, None, None, Some(BEHIND_ERET), None, Some(FATAL), None, None, Some(BEHIND_RETURN)]
        );
    }

    #[test]
    fn a_gate_without_its_names_is_refused() {
        assert!(find(&Kernel::of(Machine::Virt, &[], 0, &[])).is_err());
    }
}
