//! The parts of the demo that know nothing of the machine: what runs in the sandbox, and what
//! the kernel does with the answer.
//!
//! [`picture`] and [`certificate`] hold the functions that the kernel calls in a sandbox. They
//! wrap third-party parsers, unmodified, and need only stack, code, constants and what they are
//! passed. [`hostile`] holds the same kind of function gone bad. Everything else runs in the
//! kernel.
//!
//! What must hold: an output of a sandboxed function may contain any bytes at all. The output
//! types are therefore plain data, and the kernel reads them only through accessors that check
//! every length, range and character on the way.

#![no_std]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod certificate;
pub mod content;
pub mod digest;
pub mod escape;
pub mod hostile;
pub mod picture;
pub mod status;
pub mod terminal;

#[cfg(test)]
mod tests;
