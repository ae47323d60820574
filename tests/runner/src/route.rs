//! What a trace says: how long interrupts take through the gate, and which instructions the host's handlers are.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::error::Error;
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::windows;

/// What of a kernel the traces pass through.
#[derive(Debug)]
pub(crate) struct Routes<'k> {
    kernel: &'k Kernel,
    /// The first instructions of the host's own handlers.
    host: Range<u64>,
    /// Where an interrupt that arrives in a sandbox begins in the gate.
    arrivals: BTreeSet<u64>,
    entry: u64,
}

impl<'k> Routes<'k> {
    pub(crate) fn of(kernel: &'k Kernel) -> Result<Self, Error> {
        let host = match kernel.machine {
            Machine::Q35 => "interrupt_stubs",
            Machine::Virt => "__vectors",
        };
        Ok(Self {
            kernel,
            host: kernel.symbol(host)?..kernel.end_of(host)?,
            arrivals: windows::arrivals(kernel)?,
            entry: kernel.symbol("sandbox_gate_enter")?,
        })
    }

    /// For each interrupt that arrived in a sandbox: what was executed before the first instruction of the host's handler.
    pub(crate) fn forwards<'t>(&self, trace: &'t [u64]) -> Result<Vec<&'t [u64]>, Error> {
        let mut all = Vec::new();
        let mut rest = trace;
        while let Some(start) = rest.iter().position(|address| self.arrivals.contains(address)) {
            rest = &rest[start..];
            let end = rest.iter().position(|address| self.host.contains(address) || *address == self.entry);
            match end.map(|end| (end, rest[end])) {
                Some((end, address)) if address != self.entry => {
                    all.push(&rest[..end]);
                    rest = &rest[end..];
                }
                _ => {
                    let place = self.kernel.place(rest[0]);
                    return Err(Error::new(format!("an interrupt came to {place} and not to the host's handler")));
                }
            }
        }
        Ok(all)
    }

    /// Each run of one of the host's handlers, from its first instruction to the one that returns from the exception.
    pub(crate) fn handlers<'t>(&self, trace: &'t [u64]) -> Result<Vec<&'t [u64]>, Error> {
        let mut all = Vec::new();
        let mut rest = trace;
        while let Some(start) = rest.iter().position(|address| self.host.contains(address)) {
            rest = &rest[start..];
            let end = rest.iter().position(|address| self.returns(*address));
            let end = end.ok_or_else(|| Error::new("the trace ends in a handler"))? + 1;
            all.push(&rest[..end]);
            rest = &rest[end..];
        }
        Ok(all)
    }

    fn returns(&self, address: u64) -> bool {
        /// `iretq`, and `eret`.
        const RETURNS: [&[u8]; 2] = [&[0x48, 0xcf], &[0xe0, 0x03, 0x9f, 0xd6]];
        let code = match self.kernel.machine {
            Machine::Q35 => RETURNS[0],
            Machine::Virt => RETURNS[1],
        };
        self.kernel.bytes(address, address + code.len() as u64).is_ok_and(|bytes| bytes == code)
    }

    /// How many instructions of `trace` are in which function, in the order in which they were first come to.
    pub(crate) fn breakdown(&self, trace: &[u64]) -> String {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for address in trace {
            let function = self.kernel.function(*address);
            match counts.iter_mut().find(|(name, _)| *name == function) {
                Some((_, count)) => *count += 1,
                None => counts.push((function, 1)),
            }
        }
        counts.into_iter().map(|(name, count)| format!("{count} in {name}")).collect::<Vec<_>>().join(", ")
    }

    /// Where `one` and `other` part.
    pub(crate) fn difference(&self, one: &[u64], other: &[u64]) -> String {
        let same = one.iter().zip(other).take_while(|(one, other)| one == other).count();
        let last = one[..same].last().map_or("the first instruction".to_owned(), |address| self.kernel.place(*address));
        format!("they part behind {last}: {}; {}", self.breakdown(one), self.breakdown(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Handlers at 0x2000, `iretq` at 0x3000, arrivals at 0x1100, the way in at 0x1000.
    fn kernel() -> Kernel {
        let symbols = [("interrupt_stubs", 0x2000), ("on_interrupt", 0x2010), ("iret", 0x3000)];
        Kernel::of(Machine::Q35, &symbols, 0x3000, &[0x48, 0xcf, 0x90, 0x90])
    }

    fn routes(kernel: &Kernel) -> Routes<'_> {
        Routes { kernel, host: 0x2000..0x2010, arrivals: [0x1100].into(), entry: 0x1000 }
    }

    #[test]
    fn latency_ends_at_the_hosts_first_instruction() {
        let kernel = kernel();
        let routes = routes(&kernel);
        assert_eq!(routes.forwards(&[]), Ok(vec![]));
        let trace = [0x1000, 0x500, 0x1100, 0x1101, 0x1102, 0x2004, 0x2010, 0x3000, 0x1000, 0x1100, 0x2000];
        assert_eq!(routes.forwards(&trace), Ok(vec![&[0x1100, 0x1101, 0x1102][..], &[0x1100]]));
    }

    #[test]
    fn an_interrupt_that_gets_lost_is_seen() {
        let kernel = kernel();
        let routes = routes(&kernel);
        assert!(routes.forwards(&[0x1100, 0x1101, 0x1000, 0x2000]).is_err());
        assert!(routes.forwards(&[0x1100, 0x1101]).is_err());
    }

    #[test]
    fn handlers_go_from_their_entry_to_their_return() {
        let kernel = kernel();
        let routes = routes(&kernel);
        let trace = [0x500, 0x2000, 0x2010, 0x3000, 0x500, 0x2008, 0x3000];
        assert_eq!(routes.handlers(&trace), Ok(vec![&[0x2000, 0x2010, 0x3000][..], &[0x2008, 0x3000][..]]));
        assert!(routes.handlers(&[0x2000, 0x2010]).is_err());
    }

    #[test]
    fn differences_have_names() {
        let kernel = kernel();
        let text = routes(&kernel).difference(&[0x2000, 0x2010, 0x3000], &[0x2000, 0x2010, 0x2014, 0x3000]);
        assert_eq!(
            text,
            "they part behind on_interrupt: 1 in interrupt_stubs, 1 in on_interrupt, 1 in iret; \
             1 in interrupt_stubs, 2 in on_interrupt, 1 in iret"
        );
    }
}
