//! Interrupting the HAL at every instruction of its windows: several boots of one kernel, on CPUs that differ, and what they
//! come to together.

use std::collections::{BTreeMap, BTreeSet};

use crate::boot;
use crate::campaign::{Campaign, Stops};
use crate::error::Error;
use crate::gdb::Gdb;
use crate::guest::Source;
use crate::image;
use crate::injection::sources;
use crate::kernel::Kernel;
use crate::options::Boot;
use crate::summary::Summary;
use crate::windows::{self, Instruction};

/// How many places are named when instructions were not reached.
const NAMED: usize = 12;

/// Runs all boots; those of one image complete each other. Prints the sum as the last line.
pub(crate) fn run(boots: &[Boot]) -> Result<bool, Error> {
    let mut sum = Summary::default();
    let mut images: Vec<_> = boots.iter().map(|boot| &boot.image).collect();
    images.dedup();
    for image in images {
        let kernel = Kernel::read(image)?;
        let windows = windows::find(&kernel)?;
        let mut reached = BTreeMap::new();
        let mut complete = true;
        for boot in boots.iter().filter(|boot| boot.image == *image) {
            println!("== {}", boot::label(boot, image::machine_of(image)?));
            match inject(boot, &kernel, &wanted(&windows, &reached))? {
                Some(stops) => {
                    for (source, stops) in stops {
                        println!("{source:?}: {}", stops.text());
                        sum.passed += stops.at.len() as u64;
                        reached.entry(source).or_insert_with(Stops::default).add(stops);
                    }
                }
                None => {
                    sum.failed += 1;
                    complete = false;
                }
            }
        }
        // What is missing after a failed boot says nothing.
        if complete {
            println!("== {} together", kernel.machine.name());
            sum.failed += judge(&kernel, &windows, &reached);
        }
    }
    println!("{sum}");
    Ok(sum.is_pass())
}

/// What a boot has to come to after others have `reached` something.
fn wanted(windows: &[Instruction], reached: &BTreeMap<Source, Stops>) -> BTreeSet<u64> {
    let done = |address: &u64| !reached.is_empty() && reached.values().all(|stops| stops.at.contains(address));
    let needed = windows.iter().filter(|one| one.never.is_none() && !(one.in_table && done(&one.address)));
    needed.map(|one| one.address).collect()
}

/// One boot. `None`: it failed, and was explained.
fn inject(boot: &Boot, kernel: &Kernel, wanted: &BTreeSet<u64>) -> Result<Option<BTreeMap<Source, Stops>>, Error> {
    let (outcome, stops) = boot::drive(boot, &[], |gdb: Gdb| Campaign::run(gdb, kernel, wanted))?;
    match stops {
        Ok(stops) => Ok(outcome.passed.then_some(stops)),
        Err(error) => {
            eprintln!("qemu-runner: {error}");
            Ok(None)
        }
    }
}

/// Compares what was reached with what is there; returns for how many sources something is missing.
fn judge(kernel: &Kernel, windows: &[Instruction], reached: &BTreeMap<Source, Stops>) -> u64 {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    windows.iter().filter_map(|one| one.never).for_each(|reason| *reasons.entry(reason).or_default() += 1);
    for (reason, count) in &reasons {
        println!("{count:>6} never executed: {reason}");
    }
    let all: BTreeSet<_> = windows.iter().filter(|one| one.never.is_none()).map(|one| one.address).collect();
    let mut failed = 0;
    let none = Stops::default();
    for &source in sources(kernel.machine) {
        let stops = reached.get(&source).unwrap_or(&none);
        let mut wanted = all.clone();
        if source == Source::MachineCheck {
            let behind = reached.get(&Source::Nmi).into_iter().flat_map(|nmi| &nmi.behind);
            behind.filter(|(_, primer)| **primer == source).for_each(|(address, _)| _ = wanted.remove(address));
            let left_out = all.len() - wanted.len();
            println!("{left_out:>6} executed in a machine check only, where a second one resets the CPU");
        }
        println!("{source:?}: {} instructions in the windows, stops at {}", wanted.len(), stops.at.len());
        let missing: Vec<_> = wanted.difference(&stops.at).map(|address| kernel.place(*address)).collect();
        if !missing.is_empty() {
            failed += 1;
            let named = missing[..missing.len().min(NAMED)].join(", ");
            eprintln!("qemu-runner: {source:?}: {} instructions were not reached: {named}", missing.len());
        }
    }
    failed
}

impl Stops {
    /// Takes in what another boot of the same image came to.
    fn add(&mut self, other: Stops) {
        let at: Vec<_> = self.at.union(&other.at).copied().collect();
        let plainly = |stops: &Stops, address| stops.at.contains(address) && !stops.behind.contains_key(address);
        let reached_plainly: Vec<_> =
            at.iter().filter(|address| plainly(self, address) || plainly(&other, address)).copied().collect();
        self.at.extend(other.at);
        self.behind.extend(other.behind);
        self.behind.retain(|address, _| !reached_plainly.contains(address));
    }

    fn text(&self) -> String {
        let Self { at, behind, to_host, to_gate, later } = self;
        format!(
            "made pending at {} instructions, {} of them behind another one: {to_host} arrived at the host, {to_gate} at the \
             gate, {later} later",
            at.len(),
            behind.len()
        )
    }
}
