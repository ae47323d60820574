//! An auditor of the CPU's state: reads all that privileged code can read, and tells what differs.
//!
//! It asks the architecture, not the HAL: whole ranges of register numbers are tried once, at the start, and those that the CPU
//! does not refuse are read each time (through [`Kernel::set_fixup`], which lets an instruction be refused without harm).
//! What may differ is listed with reasons, and nothing else may: [`ignored`].
//!
//! What must hold: a snapshot is taken with interrupts masked, on one CPU, and leaves everything as it was. Two that are compared
//! are from the same CPU.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use sandbox_mode::{Arch, Backend};

use crate::kernel::Kernel;

pub(crate) mod hardening;
pub(crate) mod leaks;
pub(crate) mod poison;

cfg_if::cfg_if! {
    if #[cfg(target_arch = "x86_64")] {
        #[path = "x86_64/mod.rs"]
        mod machine;
    } else if #[cfg(target_arch = "aarch64")] {
        #[path = "aarch64/mod.rs"]
        mod machine;
    } else {
        compile_error!("the auditor knows x86-64 and AArch64");
    }
}

pub(crate) use machine::protections;
#[cfg(target_arch = "aarch64")]
pub(crate) use machine::registers;

/// A piece of state: a register, or a word of a table that a register points to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register {
    group: &'static str,
    /// Which one of its kind; [`Register::ONLY`] if there is no other.
    number: u32,
}

impl Register {
    const ONLY: u32 = u32::MAX;

    const fn only(name: &'static str) -> Register {
        Register { group: name, number: Register::ONLY }
    }

    const fn of(group: &'static str, number: u32) -> Register {
        Register { group, number }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Register::ONLY => f.write_str(self.group),
            number => machine::name(self.group, number, f),
        }
    }
}

/// A register that may change between two snapshots, or that is not read at all.
#[derive(Clone, Copy, Debug)]
pub struct Ignored {
    register: Register,
    name: &'static str,
    bits: u64,
    reason: &'static str,
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.register)?;
        if !self.name.is_empty() {
            write!(f, " ({})", self.name)?;
        }
        if self.bits != u64::MAX {
            write!(f, ", bits {:#x}", self.bits)?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// What snapshots may differ in, and why.
pub fn ignored() -> impl Iterator<Item = &'static Ignored> {
    machine::IGNORED.iter().chain(machine::NOT_READ)
}

/// The state at some moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    words: Vec<(Register, u64)>,
}

impl Snapshot {
    fn only(&mut self, name: &'static str, value: u64) {
        self.words.push((Register::only(name), value));
    }

    fn number(&mut self, group: &'static str, number: u32, value: u64) {
        self.words.push((Register::of(group, number), value));
    }

    /// The words of something larger, numbered from 0.
    fn all(&mut self, group: &'static str, values: impl IntoIterator<Item = u64>) {
        self.words.extend((0..).zip(values).map(|(number, value)| (Register::of(group, number), value)));
    }

    /// How many registers and words it holds.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether it holds nothing, which no machine's does.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    fn find(&self, register: Register) -> Option<u64> {
        self.words.iter().find(|(other, _)| *other == register).map(|(_, value)| *value)
    }

    /// What is different in `after`, apart from what is [`ignored`].
    pub fn differences(&self, after: &Snapshot) -> Vec<Difference> {
        let same_registers = self.words.len() == after.words.len()
            && self.words.iter().zip(&after.words).all(|((one, _), (other, _))| one == other);
        let differs = |&Difference { register, before, after }: &Difference| match (before, after) {
            (Some(before), Some(after)) => (before ^ after) & !ignored_bits(register) != 0,
            _ => before != after,
        };
        if same_registers {
            return self
                .words
                .iter()
                .zip(&after.words)
                .filter(|((_, before), (_, after))| before != after)
                .map(|(&(register, before), &(_, after))| Difference {
                    register,
                    before: Some(before),
                    after: Some(after),
                })
                .filter(differs)
                .collect();
        }
        let gone = self.words.iter().map(|&(register, before)| Difference {
            register,
            before: Some(before),
            after: after.find(register),
        });
        let new = after
            .words
            .iter()
            .filter(|(register, _)| self.find(*register).is_none())
            .map(|&(register, value)| Difference { register, before: None, after: Some(value) });
        gone.chain(new).filter(differs).collect()
    }
}

fn ignored_bits(register: Register) -> u64 {
    machine::IGNORED.iter().filter(|ignored| ignored.register == register).fold(0, |bits, ignored| bits | ignored.bits)
}

/// A register that changed.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    register: Register,
    before: Option<u64>,
    after: Option<u64>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { register, before, after } = *self;
        match (before, after) {
            (Some(before), Some(after)) => write!(f, "{register} was {before:#x} and is {after:#x}"),
            (Some(before), None) => write!(f, "{register} was {before:#x} and is not readable any more"),
            (None, after) => write!(f, "{register} was not readable and is {:#x}", after.unwrap_or(0)),
        }
    }
}

/// Where privileged code goes on after an instruction at an address that the CPU refused; `None` if it doesn't.
pub type Fixup = fn(u64) -> Option<u64>;

/// Shows state by name to the function that it is called with; as [`Kernel::inspect`].
type Inspect = Box<dyn Fn(&mut dyn FnMut(&'static str, u64)) + Send + Sync>;

/// Takes snapshots.
pub struct Auditor {
    inspect: Inspect,
    readable: machine::Readable,
    /// What the kernel's own handlers change.
    busy: Vec<Register>,
}

impl Auditor {
    /// An auditor for the suite's kernel. Finds out what can be read on this CPU.
    ///
    /// # Errors
    ///
    /// Why the kernel can't let instructions be refused.
    pub fn new(kernel: &'static dyn Kernel) -> Result<Auditor, &'static str> {
        let mut auditor = Auditor::with(|fixup| kernel.set_fixup(fixup), |look| kernel.inspect(look))?;
        let is_busy = |register: &Register| {
            let name = alloc::format!("{register}");
            kernel.busy().iter().any(|busy| name.contains(busy))
        };
        auditor.busy = auditor.look().words.into_iter().map(|(register, _)| register).filter(is_busy).collect();
        Ok(auditor)
    }

    /// An auditor for any kernel: `set_fixup` and `inspect` are what [`Kernel::set_fixup`] and [`Kernel::inspect`] say.
    ///
    /// # Errors
    ///
    /// Why the kernel can't let instructions be refused.
    pub fn with(
        set_fixup: impl FnOnce(Fixup) -> Result<(), &'static str>,
        inspect: impl Fn(&mut dyn FnMut(&'static str, u64)) + Send + Sync + 'static,
    ) -> Result<Auditor, &'static str> {
        set_fixup(machine::fixup)?;
        let state = Backend::mask_interrupts();
        let readable = machine::Readable::find();
        // SAFETY: (1) from `mask_interrupts` above, in this thread.
        unsafe { Backend::restore_interrupts(state) };
        Ok(Auditor { inspect: Box::new(inspect), readable, busy: Vec::new() })
    }

    /// The state of this CPU now.
    pub fn look(&self) -> Snapshot {
        let mut snapshot = Snapshot { words: Vec::with_capacity(self.readable.words() + KERNELS_WORDS) };
        machine::look_before_masking(&mut snapshot);
        let state = Backend::mask_interrupts();
        self.readable.look(&mut snapshot);
        (self.inspect)(&mut |name, value| snapshot.only(name, value));
        snapshot.words.retain(|(register, _)| !self.busy.contains(register));
        // SAFETY: (1) from `mask_interrupts` above, in this thread.
        unsafe { Backend::restore_interrupts(state) };
        snapshot
    }
}

/// Room for what a kernel shows of its own.
const KERNELS_WORDS: usize = 64;
