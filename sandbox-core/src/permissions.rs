//! What code may do with a page.
//!
//! Read, write and execute as the *host's privileged mode* has them; whether unprivileged code may use a page at all is
//! the view's business. The only arithmetic is downward: nothing here makes a set larger.

use core::fmt;

/// One way of using memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Access {
    /// A load.
    Read,
    /// A store, or a read-modify-write.
    Write,
    /// An instruction fetch.
    Execute,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Read => "read",
            Access::Write => "write",
            Access::Execute => "execute",
        })
    }
}

/// A set of accesses.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Permissions(u8);

const R: u8 = 1;
const W: u8 = 2;
const X: u8 = 4;

impl Permissions {
    /// No access.
    pub const NONE: Permissions = Permissions(0);
    /// Read only.
    pub const READ: Permissions = Permissions(R);
    /// Read and write.
    pub const READ_WRITE: Permissions = Permissions(R | W);
    /// Read and execute.
    pub const READ_EXECUTE: Permissions = Permissions(R | X);
    /// Everything. A view never has such a page; a careless host may.
    pub const ALL: Permissions = Permissions(R | W | X);

    /// A set from its parts.
    pub const fn new(read: bool, write: bool, execute: bool) -> Permissions {
        Permissions(if read { R } else { 0 } | if write { W } else { 0 } | if execute { X } else { 0 })
    }

    /// Whether the set has `access`.
    pub const fn allows(self, access: Access) -> bool {
        let bit = match access {
            Access::Read => R,
            Access::Write => W,
            Access::Execute => X,
        };
        self.0 & bit != 0
    }

    /// Whether everything in `other` is in this set.
    pub const fn contains(self, other: Permissions) -> bool {
        self.0 & other.0 == other.0
    }

    /// What both sets have.
    #[must_use]
    pub const fn intersection(self, other: Permissions) -> Permissions {
        Permissions(self.0 & other.0)
    }

    /// The set `to`, if it is a subset of this one; `None` would be an escalation.
    pub const fn downgrade(self, to: Permissions) -> Option<Permissions> {
        if self.contains(to) { Some(to) } else { None }
    }

    /// Whether the set has both write and execute.
    pub const fn writable_and_executable(self) -> bool {
        self.0 & (W | X) == W | X
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in [(R, "r"), (W, "w"), (X, "x")] {
            f.write_str(if self.0 & bit != 0 { letter } else { "-" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_downgrades() {
        for have in 0..8 {
            for want in 0..8 {
                let (have, want) = (Permissions(have), Permissions(want));
                let subset =
                    [Access::Read, Access::Write, Access::Execute].iter().all(|&a| !want.allows(a) || have.allows(a));
                assert_eq!(have.downgrade(want), subset.then_some(want));
                assert!(have.contains(have.intersection(want)));
            }
        }
    }
}
