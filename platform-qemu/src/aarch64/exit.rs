//! Ends the machine by semihosting; QEMU's exit status says whether the kernel passed.
//!
//! The semihosting call is undefined at EL0, so unprivileged code can't forge a pass.

use qemu_exit::{AArch64, QEMUExit};

/// The status of a kernel that passed. Zero is avoided: too much else ends with it.
const SUCCESS: u32 = 33;
/// The status of a kernel that failed.
pub(super) const FAILURE: u32 = 35;

/// The semihosting call and its reason code, for code that runs before Rust can.
pub(super) const SYS_EXIT: u64 = 0x18;
/// ADP_Stopped_ApplicationExit: the status follows.
pub(super) const STOPPED_APPLICATION_EXIT: u64 = 0x20026;

/// Ends the machine with the passing or the failing status.
pub(crate) fn exit(pass: bool) -> ! {
    AArch64::new().exit(if pass { SUCCESS } else { FAILURE })
}
