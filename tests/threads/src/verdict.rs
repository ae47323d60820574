//! How a case ends.

use alloc::format;
use alloc::string::String;

use platform_qemu::threads::OutOfMemory;
use sandbox_mode::{CallError, Error, Exit};

/// Why a case did not pass.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Something was not as it must be.
    Failed(String),
    /// The machine can't show it.
    Skipped(&'static str),
}

/// A case's end.
pub(crate) type Outcome<T = ()> = Result<T, Verdict>;

impl From<CallError> for Verdict {
    fn from(error: CallError) -> Self {
        Verdict::Failed(format!("a call that must succeed: {error}"))
    }
}

impl From<Exit> for Verdict {
    fn from(exit: Exit) -> Self {
        Verdict::Failed(format!("a run that must succeed: {exit}"))
    }
}

impl From<Error> for Verdict {
    fn from(error: Error) -> Self {
        Verdict::Failed(format!("{error}"))
    }
}

impl From<OutOfMemory> for Verdict {
    fn from(_: OutOfMemory) -> Self {
        Verdict::Failed("no memory for a thread".into())
    }
}

/// Ends the case as failed, with the place and a message.
macro_rules! fail {
    ($($message:tt)+) => {
        return Err($crate::verdict::Verdict::Failed(alloc::format!("line {}: {}", line!(), format_args!($($message)+))))
    };
}

/// The condition must hold.
macro_rules! expect {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            fail!($($message)+)
        }
    };
    ($condition:expr) => { expect!($condition, "{}", stringify!($condition)) };
}

/// Both must be equal; the second is what it must be.
macro_rules! expect_eq {
    ($found:expr, $wanted:expr, $($what:tt)+) => {{
        let (found, wanted) = (&$found, &$wanted);
        if found != wanted {
            fail!("{}: {found:x?} instead of {wanted:x?}", format_args!($($what)+))
        }
    }};
    ($found:expr, $wanted:expr) => { expect_eq!($found, $wanted, "{}", stringify!($found)) };
}
