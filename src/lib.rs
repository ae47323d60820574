//! Sandbox Mode: a kernel calls one of its own functions in the CPU's unprivileged mode, in an address space that is a
//! subset of the kernel's own, at the same addresses, with permissions that only go down.
//!
//! The function reads what it was granted and changes nothing but its output. A fault ends the sandbox and comes back as
//! an [`ExitReason`]; the kernel goes on.
//!
//! ```ignore
//! fn checksum(data: &[u8], sum: &mut u32) -> u32 { /* untrusted work */ }
//!
//! let mut sandbox = hal.sandbox()?;
//! let mut sum = 0;
//! let length = sandbox.call(checksum, (In(&file[..]), Out(&mut sum)))?;
//! ```
//!
//! A kernel implements [`Host`], makes one [`Hal`], and calls [`Hal::start_cpu`](sandbox_core::Hal::start_cpu) on each CPU;
//! then it makes a [`Sandbox`] wherever it needs one. This crate picks the backend for the target; all else
//! is `sandbox-core`. `docs/add-to-your-kernel.md` in the repository is the checklist.
//!
//! * **Arguments**: a tuple of up to [`MAX_ARGUMENTS`] of [`In`], [`Out`], [`InOut`] and [`Val`] (up to [`MAX_VALUE`] bytes). Results
//!   have up to [`MAX_RESULT`] bytes. Types of your own derive `FromBytes`, `IntoBytes` and `Immutable` of zerocopy 0.8.
//! * **Limits**: [`Sandbox::limit_time`](sandbox_core::Sandbox::limit_time) and
//!   [`Sandbox::cancel_by`](sandbox_core::Sandbox::cancel_by) stop a call that takes too long. What
//!   [`Sandbox::start`](sandbox_core::Sandbox::start) began can go on afterwards: [`Run::resume`](sandbox_core::Run::resume).
//! * **Targets**: `x86_64-unknown-none`, `aarch64-unknown-none-softfloat` and `aarch64-unknown-none`. On others there is no
//!   backend, and only what is common to all is here.

#![no_std]

pub use sandbox_core::*;

cfg_if::cfg_if! {
    if #[cfg(all(target_arch = "x86_64", target_os = "none"))] {
        pub use arch_x86_64::CpuConfig;
        /// The backend for this target.
        pub type Backend = arch_x86_64::X86_64;
    } else if #[cfg(all(target_arch = "aarch64", target_os = "none"))] {
        pub use arch_aarch64::CpuConfig;
        /// The backend for this target.
        pub type Backend = arch_aarch64::Aarch64;
    }
}

cfg_if::cfg_if! {
    if #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_os = "none"))] {
        /// The HAL of a host kernel `H` on this target.
        pub type Hal<H> = sandbox_core::Hal<H, Backend>;
        /// A sandbox of a host kernel `H` on this target.
        pub type Sandbox<'a, H> = sandbox_core::Sandbox<'a, H, Backend>;
        /// A call in progress, of a host kernel `H` on this target.
        pub type Run<'r, 'a, H, T, R> = sandbox_core::Run<'r, 'a, H, Backend, T, R>;
        /// What became of a step of a [`Run`].
        pub type Progress<'r, 'a, H, T, R> = sandbox_core::Progress<'r, 'a, H, Backend, T, R>;
    }
}
