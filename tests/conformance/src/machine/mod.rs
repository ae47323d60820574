//! What takes instructions: the functions that cases call in a sandbox, and the host's state around a call.
//!
//! Each machine supplies the same names. Functions that are called in a sandbox are safe functions, since that is what they
//! look like to a host; nothing else may call them. A naked one does its deed with its very first instruction, so a case
//! knows where a fault must be.

cfg_if::cfg_if! {
    if #[cfg(target_arch = "x86_64")] {
        mod x86_64;
        mod x86_64_debug;
        mod x86_64_exceptions;
        mod x86_64_forwarding;
        mod x86_64_poison;
        mod x86_64_instructions;
        mod x86_64_resistance;
        mod x86_64_state;
        mod x86_64_vectors;
        pub(crate) use x86_64::*;
        pub(crate) use x86_64_instructions::*;
        pub(crate) use x86_64_poison::*;
        pub(crate) use x86_64_resistance::*;
        pub(crate) use x86_64_state::*;
        pub(crate) use x86_64_vectors::*;
    } else if #[cfg(target_arch = "aarch64")] {
        mod aarch64;
        mod aarch64_poison;
        mod aarch64_instructions;
        mod aarch64_resistance;
        mod aarch64_state;
        mod aarch64_vectors;
        pub(crate) use aarch64::*;
        pub(crate) use aarch64_instructions::*;
        pub(crate) use aarch64_poison::*;
        pub(crate) use aarch64_resistance::*;
        pub(crate) use aarch64_state::*;
        pub(crate) use aarch64_vectors::*;
    } else {
        compile_error!("the suite knows x86-64 and AArch64");
    }
}

use core::sync::atomic::AtomicBool;

use sandbox_mode::ExitReason;

use crate::suite::Case;

/// [`Kernel::uses_thread_base`](crate::Kernel::uses_thread_base).
pub(crate) static THREAD_BASE_IN_USE: AtomicBool = AtomicBool::new(false);

/// Cases that only one machine has.
#[cfg(target_arch = "x86_64")]
pub(crate) const FILES: &[(&str, &[Case])] =
    &[("debug", x86_64_debug::CASES), ("forwarding", x86_64_forwarding::CASES)];
/// Cases that only one machine has.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) const FILES: &[(&str, &[Case])] = &[];

/// A function that changes what unprivileged code can change.
pub(crate) struct Spoiler {
    pub(crate) what: &'static str,
    pub(crate) code: extern "C" fn(),
    /// Whether it returns to the host; else it ends in an illegal instruction.
    pub(crate) returns: bool,
}

impl Spoiler {
    fn new(what: &'static str, returns: bool, code: extern "C" fn()) -> Self {
        Spoiler { what, code, returns }
    }
}

/// A function that sets all that unprivileged code can set, then leaves. It takes a word of features that it may use.
pub(crate) struct Poisoner {
    pub(crate) what: &'static str,
    pub(crate) code: extern "C" fn(),
    pub(crate) end: End,
}

/// How a function ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Returns,
    Exits(ExitReason),
    /// It stays where it is until something from outside comes.
    Spins,
}

/// An instruction (or a few) that must end a sandbox.
pub(crate) struct Instruction {
    /// As an assembler writes it.
    pub(crate) name: &'static str,
    /// A function that begins with it.
    pub(crate) code: extern "C" fn(),
    /// How it must end.
    pub(crate) reason: ExitReason,
}

impl Instruction {
    /// In how many bytes from the function's start it must stop: the first, if it is a single one.
    pub(crate) fn bytes(&self) -> u64 {
        const LONGEST: u64 = 16;
        if self.name.contains(';') { LONGEST * self.name.split(';').count() as u64 } else { 1 }
    }
}

/// A function that begins with the instructions in `text` and returns if they do.
macro_rules! instruction {
    (@name $text:literal $(, $more:literal)*) => { concat!($text $(, "; ", $more)*) };
    ($reason:expr, $($text:literal),+) => {{
        #[unsafe(naked)]
        extern "C" fn code() {
            core::arch::naked_asm!($($text,)+ "ret")
        }
        $crate::machine::Instruction { name: $crate::machine::instruction!(@name $($text),+), code, reason: $reason }
    }};
}
use instruction;
