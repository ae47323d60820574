//! Making something pending in a stopped guest.

use crate::error::Error;
use crate::gdb::Gdb;
use crate::guest::Source;
use crate::machine::Machine;

/// Where q35's CPUs take messages: a write of a vector here is an interrupt of CPU 0 (SDM 3, section 12.11). QEMU keeps it apart
/// from the local APIC's registers, which are the CPU's own affair.
const MESSAGES: u64 = 0xfee0_0000;

/// virt's redistributor of CPU 0, its second frame, and in it GICR_ISPENDR0 (GICv3 specification, section 12.11).
const PENDING: u64 = 0x080a_0000 + 0x1_0000 + 0x200;

/// An uncorrected error in bank 1, and a machine check in progress that can be returned from (SDM 3, section 17.3).
const MACHINE_CHECK: &str = "mce 0 1 0xb000000000000000 0x5 0 0";

/// What a machine can make pending.
pub(crate) fn sources(machine: Machine) -> &'static [Source] {
    match machine {
        Machine::Q35 => &[Source::Nmi, Source::MachineCheck, Source::Ordinary],
        // QEMU has no way to raise an SError of the machine's: its buses report errors at once, as data aborts.
        Machine::Virt => &[Source::Ordinary, Source::Fast],
    }
}

/// What, made pending somewhere in the windows, leads to instructions that are not executed without: the deferral of an NMI and
/// of a machine check, and the paths of the runner's own interrupt.
pub(crate) fn primers(machine: Machine, source: Source) -> &'static [Source] {
    match (machine, source) {
        (Machine::Virt, _) => &[],
        (_, Source::Nmi) => &[Source::Nmi, Source::MachineCheck],
        (_, Source::MachineCheck) => &[Source::Nmi],
        (_, Source::Ordinary | Source::Fast) => &[Source::Ordinary, Source::Nmi, Source::MachineCheck],
    }
}

/// Makes `source` pending. `lines` are the guest's.
pub(crate) fn make_pending(gdb: &mut Gdb, machine: Machine, source: Source, lines: [u64; 2]) -> Result<(), Error> {
    let line = match source {
        Source::Nmi => return gdb.monitor("nmi"),
        Source::MachineCheck => return gdb.monitor(MACHINE_CHECK),
        Source::Ordinary => lines[0],
        Source::Fast => lines[1],
    };
    match machine {
        Machine::Q35 => gdb.store_physical(MESSAGES, &(line as u32).to_le_bytes()),
        Machine::Virt => gdb.store_physical(PENDING, &(1_u32 << line).to_le_bytes()),
    }
}
