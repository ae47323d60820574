//! One boot in which something is made pending at each instruction of the windows in turn.
//!
//! All instructions that are still to do have a breakpoint. The guest goes round; where it stops, the source is made pending,
//! the breakpoint goes, and the guest goes on. One is under way at a time, so each is accounted for: NMIs and machine checks
//! are seen to arrive at that very instruction (the frame they push says so), and at the start of each round the guest
//! has recorded everything.
//!
//! What no round comes to is tried again with a *primer*: another source, or the same, made pending at a few places, leads to
//! the paths of the deferral. An NMI inside those is held back by the CPU until the first one's handler returns; it must
//! still be recorded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::error::Error;
use crate::gdb::{Gdb, Pending, Stop};
use crate::guest::{Guest, Phase, SOURCES, Source};
use crate::injection::{make_pending, primers, sources};
use crate::kernel::Kernel;
use crate::machine::Machine;

/// Where a primer is made pending: in the way in, in the way out, and in the sandbox.
const PRIMED: [&str; 3] = ["sandbox_gate_window", "sandbox_gate_leave", "sandbox_gate_launch"];
/// So many rounds without a new stop, and what is left is not reached.
const IDLE_ROUNDS: u32 = 2;
/// So many primers without a new stop, and what is left is not reached by them.
const IDLE_PRIMERS: u32 = 30;

/// How something that was made pending arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// At the host's own handler, on the spot.
    Host(u64),
    /// At the gate, on the spot: the host's handler follows when its table is back.
    Gate(u64),
    /// Later: it was masked.
    Later(u64),
}

/// What one source came to in one boot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stops {
    /// The instructions at which it was made pending.
    pub(crate) at: BTreeSet<u64>,
    /// Those that were not come to but behind a primer.
    pub(crate) behind: BTreeMap<u64, Source>,
    pub(crate) to_host: usize,
    pub(crate) to_gate: usize,
    pub(crate) later: usize,
}

/// A boot under way.
pub(crate) struct Campaign<'k> {
    gdb: Gdb,
    kernel: &'k Kernel,
    guest: Guest,
    lines: [u64; 2],
    /// All that was made pending, in order.
    arrivals: [Vec<Arrival>; SOURCES],
    stops: BTreeMap<Source, Stops>,
    breakpoints: BTreeSet<u64>,
    /// The breakpoint that the guest was last seen at.
    last_stop: Option<u64>,
}

impl<'k> Campaign<'k> {
    /// Goes through all of `wanted` with each source that the machine has. Ends the guest in any case.
    pub(crate) fn run(
        mut gdb: Gdb,
        kernel: &'k Kernel,
        wanted: &BTreeSet<u64>,
    ) -> Result<BTreeMap<Source, Stops>, Error> {
        let guest = match Guest::of(kernel) {
            Ok(guest) => guest,
            Err(error) => {
                gdb.kill();
                return Err(error);
            }
        };
        let mut campaign = Campaign {
            gdb,
            kernel,
            guest,
            lines: [0; 2],
            arrivals: Default::default(),
            stops: BTreeMap::new(),
            breakpoints: BTreeSet::new(),
            last_stop: None,
        };
        match campaign.all(wanted) {
            Ok(()) => Ok(campaign.stops),
            Err(error) => {
                campaign.gdb.kill();
                Err(error)
            }
        }
    }

    fn all(&mut self, wanted: &BTreeSet<u64>) -> Result<(), Error> {
        self.insert(self.guest.reached)?;
        self.next_stop()?;
        self.lines = self.guest.lines(&mut self.gdb)?;
        let moved = self.guest.moved_gate(&mut self.gdb, self.kernel)?;
        self.gdb.set_moved(moved);
        for &source in sources(self.kernel.machine) {
            let is_line = matches!(source, Source::Ordinary | Source::Fast);
            self.guest.keep_lines(&mut self.gdb, is_line)?;
            let mut left = wanted.clone();
            self.rounds(source, None, &mut left)?;
            for &primer in primers(self.kernel.machine, source) {
                self.rounds(source, Some(primer), &mut left)?;
            }
        }
        self.check_log()?;
        self.guest.end(&mut self.gdb)?;
        self.remove(self.guest.reached)?;
        match self.gdb.go_on()? {
            Stop::Ended => Ok(()),
            Stop::Stopped => Err(self.unexpected()?),
        }
    }

    fn insert(&mut self, address: u64) -> Result<(), Error> {
        if self.breakpoints.insert(address) { self.gdb.insert(address) } else { Ok(()) }
    }

    fn remove(&mut self, address: u64) -> Result<(), Error> {
        if self.breakpoints.remove(&address) { self.gdb.remove(address) } else { Ok(()) }
    }

    fn unexpected(&mut self) -> Result<Error, Error> {
        let at = self.gdb.pc()?;
        Ok(Error::new(format!("the guest stopped at {}, where nobody asked it to", self.kernel.place(at))))
    }

    /// Lets the guest run to the next breakpoint, past the one it may be at.
    fn next_stop(&mut self) -> Result<u64, Error> {
        let ended = || Error::new("the guest ended before it was asked to");
        let here = self.gdb.pc()?;
        // Where an arrival led is a stop of its own.
        let is_old = self.last_stop == Some(here) && self.breakpoints.contains(&here);
        if is_old && self.gdb.step(Pending::Waits)? == Stop::Ended {
            return Err(ended());
        }
        if self.gdb.go_on()? == Stop::Ended {
            return Err(ended());
        }
        let at = self.gdb.pc()?;
        self.last_stop = Some(at);
        if self.breakpoints.contains(&at) { Ok(at) } else { Err(self.unexpected()?) }
    }

    /// Goes round, with a stop at each of `left`, until no round comes to any.
    fn rounds(&mut self, source: Source, primer: Option<Source>, left: &mut BTreeSet<u64>) -> Result<(), Error> {
        if left.is_empty() {
            return Ok(());
        }
        let mut primed = BTreeSet::new();
        if primer.is_some() {
            for name in PRIMED {
                primed.insert(self.kernel.symbol(name)?);
            }
        }
        for &address in left.iter().chain(&primed) {
            self.insert(address)?;
        }
        // Come to while something else was under way: without a breakpoint for a while, since each stop takes its time.
        let mut parked = VecDeque::new();
        let mut just_primed = BTreeSet::new();
        let (mut idle, mut fresh, mut idle_primers) = (0, false, 0);
        while !left.is_empty() && idle < IDLE_ROUNDS && idle_primers < IDLE_PRIMERS {
            let at = self.next_stop()?;
            if at == self.guest.reached {
                self.check_round()?;
                idle = if fresh { 0 } else { idle + 1 };
                fresh = false;
                for address in parked.drain(..) {
                    self.insert(address)?;
                }
                continue;
            }
            let under_way = self.under_way()?;
            if left.contains(&at) {
                let alone = under_way[source as usize] == 0;
                // The one under way was accepted, or this place would have been come to without it. A second machine check
                // would reset the machine.
                let behind_primer = primer == Some(source) && under_way[source as usize] == 1;
                self.remove(at)?;
                if alone || behind_primer && source != Source::MachineCheck {
                    left.remove(&at);
                    (fresh, idle_primers) = (true, 0);
                    let arrival = self.stop(source, at, alone)?;
                    let stops = self.stops.entry(source).or_default();
                    stops.count(arrival);
                    if let Some(primer) = primer {
                        stops.behind.insert(at, primer);
                    }
                    if let Some(address) = parked.pop_front() {
                        self.insert(address)?;
                    }
                } else {
                    parked.push_back(at);
                }
            } else if let Some(primer) = primer
                // The entry that it called off begins anew: not again then, or no call would ever get further.
                && !just_primed.remove(&at)
                && under_way == [0; SOURCES]
            {
                just_primed.insert(at);
                idle_primers += 1;
                if let Some(address) = parked.pop_front() {
                    self.insert(address)?;
                }
                self.stop(primer, at, true)?;
            }
        }
        for address in left.iter().chain(&primed) {
            self.remove(*address)?;
        }
        // To the start of a round, where nothing is under way.
        while self.next_stop()? != self.guest.reached {}
        self.check_round()
    }

    /// What was made pending and not recorded yet.
    fn under_way(&mut self) -> Result<[u64; SOURCES], Error> {
        let recorded = self.guest.counts(&mut self.gdb)?;
        Ok(std::array::from_fn(|source| (self.arrivals[source].len() as u64).wrapping_sub(recorded[source])))
    }

    /// Makes `source` pending at `at`, where the guest is. If nothing holds it back it has to arrive there.
    fn stop(&mut self, source: Source, at: u64, arrives: bool) -> Result<Arrival, Error> {
        make_pending(&mut self.gdb, self.kernel.machine, source, self.lines)?;
        let mut arrival = Arrival::Later(at);
        if arrives && matches!(source, Source::Nmi | Source::MachineCheck) {
            if self.gdb.step(Pending::Arrives)? == Stop::Ended {
                return Err(Error::new(format!("the guest ended by a {source:?} at {}", self.kernel.place(at))));
            }
            let handler = self.gdb.pc()?;
            let sp = self.gdb.sp()?;
            let interrupted = self.gdb.load(sp)?;
            arrival = match self.kernel.function(handler) {
                "interrupt_stubs" if interrupted == at => Arrival::Host(at),
                "sandbox_gate_stubs" if interrupted == at => Arrival::Gate(at),
                _ => {
                    return Err(Error::new(format!(
                        "a {source:?} at {} arrived at {} as if from {}",
                        self.kernel.place(at),
                        self.kernel.place(handler),
                        self.kernel.place(interrupted)
                    )));
                }
            };
        }
        self.arrivals[source as usize].push(arrival);
        Ok(arrival)
    }

    /// At the start of a round the guest has recorded what was made pending, each once.
    fn check_round(&mut self) -> Result<(), Error> {
        let phase = Phase::of(self.gdb.argument()?)?;
        if phase != Phase::Round {
            return Err(Error::new(format!("the guest is in the phase {phase:?}: was it booted for tracing?")));
        }
        let under_way = self.under_way()?;
        if under_way == [0; SOURCES] {
            return Ok(());
        }
        let last = self.arrivals.iter().filter_map(|all| all.last()).map(|last| match last {
            Arrival::Host(at) | Arrival::Gate(at) | Arrival::Later(at) => self.kernel.place(*at),
        });
        Err(Error::new(format!(
            "pending and not recorded (NMI, machine check, interrupt, fast interrupt): {:?}; the last were at {:?}",
            under_way.map(|count| count as i64),
            last.collect::<Vec<_>>()
        )))
    }

    /// What the guest recorded is what was made pending: at the same addresses or, where the gate took it, from the
    /// instruction by which the gate hands it on.
    fn check_log(&mut self) -> Result<(), Error> {
        let count = self.arrivals.iter().map(Vec::len).sum();
        let log = self.guest.log(&mut self.gdb, count)?;
        for (source, arrivals) in self.arrivals.iter().enumerate() {
            let recorded = log.iter().filter(|(of, _)| *of == source as u64).map(|(_, at)| *at);
            for (arrival, recorded) in arrivals.iter().zip(recorded) {
                let is_right = match arrival {
                    Arrival::Host(at) => recorded == *at,
                    Arrival::Gate(_) => is_behind_int(self.kernel, recorded),
                    Arrival::Later(_) => true,
                };
                if !is_right {
                    return Err(Error::new(format!(
                        "{arrival:x?} was recorded as if from {}",
                        self.kernel.place(recorded)
                    )));
                }
            }
        }
        Ok(())
    }
}

impl Stops {
    fn count(&mut self, arrival: Arrival) {
        let (count, at) = match arrival {
            Arrival::Host(at) => (&mut self.to_host, at),
            Arrival::Gate(at) => (&mut self.to_gate, at),
            Arrival::Later(at) => (&mut self.later, at),
        };
        *count += 1;
        self.at.insert(at);
    }
}

/// Whether the instruction before `address` is `int 2` or `int 18`.
fn is_behind_int(kernel: &Kernel, address: u64) -> bool {
    kernel.machine == Machine::Q35
        && kernel.bytes(address.wrapping_sub(2), address).is_ok_and(|code| matches!(code, [0xcd, 2 | 18]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deferral_is_known_by_its_instruction() {
        let kernel = Kernel::of(Machine::Q35, &[], 0x1000, &[0xcd, 2, 0xcd, 18, 0xcd, 3]);
        let behind: Vec<_> = (0x1000..0x1007).map(|address| is_behind_int(&kernel, address)).collect();
        assert_eq!(behind, [false, false, true, false, true, false, false]);
    }
}
