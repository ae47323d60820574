//! A kernel that has untrusted files parsed in a sandbox, and then lets the parsers attack it.
//!
//! The files come from the command line (`just demo FILE...`). What the parsers, unmodified crates, make of them is printed;
//! then come files and functions that would take a kernel down, each in a sandbox of its own.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod kernel;

#[cfg(target_os = "none")]
platform_qemu::main!(kernel::main);
