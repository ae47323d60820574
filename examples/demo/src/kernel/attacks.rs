//! Files and functions that would take the kernel down, each in a sandbox of its own.
//!
//! An attack counts as contained if the sandbox ended for the very reason that the attack gives: one that ended before it was
//! even tried would show nothing.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use demo::hostile;
use demo::picture::{self, PictureHeader};
use demo::status::{Problem, Status};
use platform_qemu::host::Qemu;
use sandbox_mode::{
    Access, Arguments, CallError, ExitReason, FaultKind, Function, Hal, In, MemoryFault, Out, Preemption,
};

use super::SAMPLE;
use super::belongings::Belongings;
use super::parsing::{Failure, decode, pixel_buffer, sandbox};
use super::report::{attempt, heading};

/// The sample with one bit of its pixels flipped.
const CORRUPT: &[u8] = include_bytes!("../../../files/corrupt.png");
/// Makes `minipng` panic.
const PANIC: &[u8] = include_bytes!("../../../files/panic.png");
/// Makes `minipng` call itself 8000 times.
const DEEP: &[u8] = include_bytes!("../../../files/deep.png");

/// How long a function may run.
const PATIENCE: Duration = Duration::from_millis(40);

/// Runs attacks, prints what comes of each, and keeps what should have gone otherwise.
pub(crate) struct Attacks<'h, 'f> {
    pub(crate) hal: &'h Hal<Qemu>,
    pub(crate) failures: &'f mut Vec<String>,
}

impl Attacks<'_, '_> {
    /// Files on which the parser fails: as it should, and as it should not.
    pub(crate) fn bad_files(&mut self) {
        heading("Bad files: a damaged one, and two that use flaws of minipng");
        self.bad_file(
            "damage a picture",
            CORRUPT,
            |failure| matches!(failure, Failure::Refused(status) if status.check() == Err(Problem::BadChecksum)),
        );
        // The panic handler is the kernel's. What ends this is the first thing there that needs more rights than a sandbox has.
        self.bad_file("make minipng panic", PANIC, |failure| matches!(failure, Failure::Call(CallError::Exit(_))));
        self.bad_file(
            "make it recurse",
            DEEP,
            |failure| matches!(failure, Failure::Call(CallError::Exit(exit)) if is_stack_overflow(exit.reason)),
        );
    }

    fn bad_file(&mut self, what: &str, png: &[u8], is_expected: fn(Failure) -> bool) {
        match decode(self.hal, png) {
            Ok(_) => self.record(what, false, "nothing: it was decoded"),
            Err(failure @ Failure::Call(CallError::Exit(exit))) => {
                self.record(what, is_expected(failure), &exit.reason.to_string());
            }
            Err(failure) => self.record(what, is_expected(failure), &failure.to_string()),
        }
    }

    /// Parsers that an attacker has taken over.
    pub(crate) fn hostile_parsers(&mut self, belongings: &Belongings) -> Result<(), Failure> {
        heading("Hostile parsers: what they try -> what comes of it");
        self.write_past_output()?;
        self.attack("write kernel data", hostile::write_kernel_data, (In(&belongings.data()),), |reason| {
            is_fault(reason, Access::Write, FaultKind::Unmapped)
        })?;
        let mut leaked = 0;
        let arguments = (In(&belongings.secret()), Out(&mut leaked));
        self.attack("read kernel secret", hostile::read_kernel_secret, arguments, |reason| {
            is_fault(reason, Access::Read, FaultKind::Unmapped)
        })?;
        if leaked != 0 {
            self.failures.push("the secret came out of the sandbox".to_string());
        }
        self.attack("change kernel code", hostile::write_own_code, (), |reason| {
            is_fault(reason, Access::Write, FaultKind::Permission)
        })?;
        self.attack("run its own stack", hostile::run_own_stack, (), |reason| {
            is_fault(reason, Access::Execute, FaultKind::Permission)
        })?;
        self.attack("use up the stack", hostile::overflow_stack, (), is_stack_overflow)?;
        self.attack("mask interrupts", hostile::privileged_instruction, (), |reason| {
            reason == ExitReason::PrivilegedInstruction
        })?;
        self.attack("dereference null", hostile::dereference_null, (), |reason| {
            is_fault(reason, Access::Read, FaultKind::Unmapped)
        })?;
        self.attack("run forever", hostile::run_forever, (), |reason| {
            reason == ExitReason::Preempted(Preemption::Deadline)
        })
    }

    fn write_past_output(&mut self) -> Result<(), Failure> {
        let (mut header, mut measured) = <[PictureHeader; 2]>::default().into();
        sandbox(self.hal)?.call(picture::measure, (In(SAMPLE.bytes), Out(&mut measured)))?;
        let mut pixels = pixel_buffer(&measured)?;
        let arguments = (In(SAMPLE.bytes), Out(&mut header), Out(&mut pixels[..]));
        self.attack("write past output", hostile::write_past_output, arguments, |reason| {
            is_fault(reason, Access::Write, FaultKind::GuardPage)
        })?;
        if pixels.iter().any(|&byte| byte != 0) {
            self.failures.push("the output of a call that ended badly was used".to_string());
        }
        Ok(())
    }

    fn attack<F, T>(
        &mut self,
        what: &str,
        function: F,
        arguments: T,
        is_expected: fn(ExitReason) -> bool,
    ) -> Result<(), Failure>
    where
        F: Function<T, Status>,
        T: Arguments,
    {
        let mut sandbox = sandbox(self.hal)?;
        sandbox.limit_time(Some(PATIENCE))?;
        let reason = match sandbox.call(function, arguments) {
            Err(CallError::Exit(exit)) => exit.reason,
            Err(error) => return Err(error.into()),
            Ok(status) => {
                self.record(what, false, &status.to_string());
                return Ok(());
            }
        };
        self.record(what, is_expected(reason), &reason.to_string());
        Ok(())
    }

    fn record(&mut self, what: &str, is_expected: bool, outcome: &str) {
        // The longest of these leaves no room in its line.
        attempt(what, outcome.trim_start_matches("memory fault: "));
        if !is_expected {
            self.failures.push(format!("{what}: {outcome}, which is not how this must end"));
        }
    }
}

fn is_fault(reason: ExitReason, access: Access, kind: FaultKind) -> bool {
    matches!(reason, ExitReason::MemoryFault(fault) if (fault.access, fault.kind) == (access, kind))
}

fn is_stack_overflow(reason: ExitReason) -> bool {
    matches!(reason, ExitReason::MemoryFault(MemoryFault { kind: FaultKind::StackOverflow, .. }))
}
