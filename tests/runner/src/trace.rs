//! What the HAL costs, by traces of the windows workload: how long an interrupt that arrives in a sandbox takes to the host's own
//! handler, and that the host's handlers are the same instructions with the HAL as without it.
//!
//! QEMU counts: it runs one instruction at a time and logs each, in the parts that the guest marks and nowhere else.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use crate::boot;
use crate::error::Error;
use crate::gdb::{Gdb, Pending, Stop};
use crate::guest::{Guest, Phase, Source};
use crate::image;
use crate::injection::make_pending;
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::options::Boot;
use crate::route::Routes;
use crate::summary::Summary;
use crate::trace_log;

/// Instructions that an interrupt may take from a sandbox to the host's own handler, in a release build.
const MOST: usize = 150;
/// Time is executed instructions, and sleep takes none: how loaded this machine is must not show.
const CLOCK: [&str; 2] = ["-icount", "shift=0,sleep=off"];
/// Ticks that each part has at least.
const TICKS: usize = 3;
/// How often each of NMI and machine check is made to arrive in a sandbox.
const ASYNCHRONOUS: usize = 4;

/// What the guest executed in each part.
#[derive(Debug, Default)]
struct Traces {
    without: Vec<u64>,
    with: Vec<u64>,
    arrivals: Vec<u64>,
}

/// Traces all boots. Prints the sum as the last line.
pub(crate) fn run(boots: &[Boot]) -> Result<bool, Error> {
    let mut sum = Summary::default();
    for boot in boots {
        println!("== {}", boot::label(boot, image::machine_of(&boot.image)?));
        let kernel = Kernel::read(&boot.image)?;
        let routes = Routes::of(&kernel)?;
        let guest = Guest::of(&kernel)?;
        let folder = tempfile::tempdir().map_err(|error| Error::new(format!("cannot make a folder: {error}")))?;
        let log = folder.path().join("trace");
        let (outcome, traces) = boot::drive(boot, &CLOCK, |mut gdb: Gdb| {
            let traces = trace(&mut gdb, &kernel, guest, &log);
            if traces.is_err() {
                gdb.kill();
            }
            traces
        })?;
        let judged = match traces {
            Ok(_) if !outcome.passed => [Err(Error::new("the guest failed")), Err(Error::new("the guest failed"))],
            Ok(traces) => [latency(&routes, &traces), zero_cost(&routes, &traces)],
            Err(error) => [Err(Error::new("there is no trace")), Err(error)],
        };
        for result in judged {
            match result {
                Ok(text) => {
                    sum.passed += 1;
                    println!("{text}");
                }
                Err(error) => {
                    sum.failed += 1;
                    eprintln!("qemu-runner: {error}");
                }
            }
        }
    }
    println!("{sum}");
    Ok(sum.is_pass())
}

/// Lets the guest run to its end and traces what it asks for.
fn trace(gdb: &mut Gdb, kernel: &Kernel, guest: Guest, log: &Path) -> Result<Traces, Error> {
    let mut traces = Traces::default();
    let mut part = None;
    gdb.insert(guest.reached)?;
    while gdb.go_on()? == Stop::Stopped {
        let at = gdb.pc()?;
        if at != guest.reached {
            return Err(Error::new(format!("the guest stopped at {}, where nobody asked it to", kernel.place(at))));
        }
        let phase = Phase::of(gdb.argument()?)?;
        let moved = guest.moved_gate(gdb, kernel)?;
        gdb.set_moved(moved.clone());
        match (phase, part.take()) {
            (Phase::TicksWithout | Phase::TicksWith | Phase::Arrivals, None) => {
                part = Some(phase);
                gdb.monitor(&format!("logfile {}", log.display()))?;
                gdb.monitor("singlestep on")?;
                gdb.monitor("log exec,nochain")?;
            }
            (Phase::End, Some(began)) => {
                gdb.monitor("log none")?;
                gdb.monitor("singlestep off")?;
                let unreadable = |error| Error::new(format!("cannot read the trace: {error}"));
                let executed = File::open(log).and_then(|file| trace_log::read(BufReader::new(file), &moved));
                *match began {
                    Phase::TicksWithout => &mut traces.without,
                    Phase::TicksWith => &mut traces.with,
                    _ => &mut traces.arrivals,
                } = executed.map_err(unreadable)?;
            }
            (phase, began) => {
                return Err(Error::new(format!(
                    "the guest is in the phase {phase:?} after {began:?}: was it booted with `--args trace`?"
                )));
            }
        }
        gdb.step(Pending::Waits)?;
        if phase == Phase::Arrivals && kernel.machine == Machine::Q35 {
            interrupt_sandbox(gdb, kernel)?;
        }
    }
    Ok(traces)
}

/// NMIs and machine checks that arrive at the first instruction of a sandbox.
fn interrupt_sandbox(gdb: &mut Gdb, kernel: &Kernel) -> Result<(), Error> {
    let first = kernel.symbol("sandbox_gate_launch")?;
    gdb.insert(first)?;
    for number in 0..2 * ASYNCHRONOUS {
        if gdb.go_on()? == Stop::Ended || gdb.pc()? != first {
            return Err(Error::new("the guest did not come to a sandbox"));
        }
        let source = [Source::Nmi, Source::MachineCheck][number % 2];
        make_pending(gdb, kernel.machine, source, [0; 2])?;
        gdb.step(Pending::Arrives)?;
    }
    gdb.remove(first)
}

/// How long interrupts take.
fn latency(routes: &Routes<'_>, traces: &Traces) -> Result<String, Error> {
    let forwards = routes.forwards(&traces.arrivals)?;
    let least = forwards.iter().map(|forward| forward.len()).min();
    let (Some(least), Some(longest)) = (least, forwards.iter().max_by_key(|forward| forward.len())) else {
        return Err(Error::new("no interrupt arrived in a sandbox"));
    };
    let most = longest.len();
    let text = format!(
        "{} interrupts took {least} to {most} instructions from a sandbox to the host's handler",
        forwards.len()
    );
    if most <= MOST {
        return Ok(text);
    }
    Err(Error::new(format!("{text}, which is more than {MOST}: {}", routes.breakdown(longest))))
}

/// Whether a tick is the same instructions with the HAL as without.
fn zero_cost(routes: &Routes<'_>, traces: &Traces) -> Result<String, Error> {
    let (without, with) = (routes.handlers(&traces.without)?, routes.handlers(&traces.with)?);
    if without.len() < TICKS || with.len() < TICKS {
        return Err(Error::new(format!("{} and {} ticks are too few", without.len(), with.len())));
    }
    match without.iter().chain(&with).find(|tick| **tick != without[0]) {
        None => Ok(format!(
            "{} ticks without the HAL and {} with it: {} instructions each, the same",
            without.len(),
            with.len(),
            without[0].len()
        )),
        Some(other) => Err(Error::new(format!(
            "a tick differs between without and with the HAL: {}",
            routes.difference(without[0], other)
        ))),
    }
}
