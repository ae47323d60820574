//! What keeps a guest from being booted at all: wrong usage, missing files, missing programs.

use std::{fmt, io};

/// One line for the person at the terminal, with what to do about it where that isn't plain.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Error(String);

impl Error {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Standard output is gone or full, so nobody can read what the guest prints.
    pub(crate) fn output(error: &io::Error) -> Self {
        Self(format!("cannot write to standard output: {error}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<lexopt::Error> for Error {
    fn from(error: lexopt::Error) -> Self {
        Self(format!("{error} (--help lists the options)"))
    }
}
