//! The workload kernel as the runner sees it: `protocol.rs` in `tests/windows` has the other side.

use crate::error::Error;
use crate::gdb::Gdb;
use crate::kernel::Kernel;
use crate::moved::Moved;

/// What arrives in the guest. The numbers are the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    Nmi = 0,
    MachineCheck = 1,
    Ordinary = 2,
    Fast = 3,
}

pub(crate) const SOURCES: usize = 4;
/// How many events the guest records.
pub(crate) const LOG_SIZE: usize = 1 << 14;

/// Where the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Round,
    TicksWithout,
    TicksWith,
    Arrivals,
    End,
}

impl Phase {
    pub(crate) fn of(number: u64) -> Result<Self, Error> {
        Ok(match number {
            0 => Self::Round,
            1 => Self::TicksWithout,
            2 => Self::TicksWith,
            3 => Self::Arrivals,
            4 => Self::End,
            _ => return Err(Error::new(format!("the guest reached a phase {number}, which nobody knows"))),
        })
    }
}

/// The guest's variables, by their physical addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guest {
    /// The function that tells a phase.
    pub(crate) reached: u64,
    over: u64,
    quiet: u64,
    lines: u64,
    code: u64,
    counts: u64,
    log: u64,
}

impl Guest {
    pub(crate) fn of(kernel: &Kernel) -> Result<Self, Error> {
        Ok(Self {
            reached: kernel.symbol("windows_reached")?,
            over: kernel.physical("windows_over")?,
            quiet: kernel.physical("windows_quiet")?,
            lines: kernel.physical("windows_lines")?,
            code: kernel.physical("windows_code")?,
            counts: kernel.physical("windows_counts")?,
            log: kernel.physical("windows_log")?,
        })
    }

    /// Ends the guest after this round.
    pub(crate) fn end(&self, gdb: &mut Gdb) -> Result<(), Error> {
        gdb.store_physical(self.over, &1_u64.to_le_bytes())
    }

    /// Whether the lines are the runner's alone.
    pub(crate) fn keep_lines(&self, gdb: &mut Gdb, keep: bool) -> Result<(), Error> {
        gdb.store_physical(self.quiet, &u64::from(keep).to_le_bytes())
    }

    /// The interrupts that may be made pending: an ordinary one and a fast one.
    pub(crate) fn lines(&self, gdb: &mut Gdb) -> Result<[u64; 2], Error> {
        let lines = gdb.load_physical(self.lines, 2)?;
        Ok([lines[0], lines[1]])
    }

    /// Where the gate's code runs, when the HAL is there.
    pub(crate) fn moved_gate(&self, gdb: &mut Gdb, kernel: &Kernel) -> Result<Moved, Error> {
        match gdb.load_physical(self.code, 1)?[0] {
            0 => Ok(Moved::default()),
            address => {
                let linked = kernel.symbol("sandbox_gate_start")?..kernel.symbol("sandbox_gate_end")?;
                Ok(Moved::new(linked, address))
            }
        }
    }

    /// How often each source was recorded.
    pub(crate) fn counts(&self, gdb: &mut Gdb) -> Result<[u64; SOURCES], Error> {
        let counts = gdb.load_physical(self.counts, SOURCES)?;
        Ok(std::array::from_fn(|source| counts[source]))
    }

    /// The first `count` records: sources and interrupted addresses.
    pub(crate) fn log(&self, gdb: &mut Gdb, count: usize) -> Result<Vec<(u64, u64)>, Error> {
        if count > LOG_SIZE {
            return Err(Error::new(format!("the guest recorded {count} events and has room for {LOG_SIZE}")));
        }
        let words = gdb.load_physical(self.log, count * 2)?;
        Ok(words.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
}
