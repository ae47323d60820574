//! SHA-256, by which the demo shows that the pixels from the sandbox are the right ones.
//!
//! Runs in the kernel, which has no vector registers: the crate is built with its portable code
//! only.

use core::fmt;

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest; shown in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
