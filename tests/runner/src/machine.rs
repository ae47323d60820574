//! The two QEMU machines and what differs between them.

use std::ffi::OsString;

/// A machine of QEMU's that the kernels of this workspace boot on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    /// x86-64.
    Q35,
    /// AArch64.
    Virt,
}

impl Machine {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Virt => "virt",
        }
    }

    /// The CPU model when none is asked for. q35 has one of its own; the one virt has is 32-bit.
    pub(crate) fn default_cpu(self) -> Option<&'static str> {
        match self {
            Self::Q35 => None,
            Self::Virt => Some("cortex-a72"),
        }
    }

    /// QEMU's arguments for the machine itself, the guest's way to set the exit status included.
    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            // Without -no-reboot a triple fault would boot again and again.
            Self::Q35 => &["-machine", "q35", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"],
            Self::Virt => {
                &["-machine", "virt,gic-version=3", "-no-reboot", "-semihosting-config", "enable=on,target=native"]
            }
        }
    }

    /// The program's usual name.
    pub(crate) fn program_name(self) -> &'static str {
        match self {
            Self::Q35 => "qemu-system-x86_64",
            Self::Virt => "qemu-system-aarch64",
        }
    }

    /// The environment variable that names another program instead.
    pub(crate) fn program_variable(self) -> &'static str {
        match self {
            Self::Q35 => "QEMU_X86_64",
            Self::Virt => "QEMU_AARCH64",
        }
    }

    /// The Debian package that holds the program.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::Q35 => "qemu-system-x86",
            Self::Virt => "qemu-system-arm",
        }
    }

    /// The program to start.
    pub(crate) fn program(self) -> OsString {
        match std::env::var_os(self.program_variable()) {
            Some(program) if !program.is_empty() => program,
            _ => self.program_name().into(),
        }
    }
}
