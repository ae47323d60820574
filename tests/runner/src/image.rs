//! The kernel image: what its ELF header says about the machine it is for.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::Error;
use crate::machine::Machine;

/// As much of the ELF header as is looked at: identification, type, machine.
const HEADER: usize = 20;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const MACHINE_AARCH64: u16 = 183;

/// The machine that the image at `path` boots on.
pub(crate) fn machine_of(path: &Path) -> Result<Machine, Error> {
    let unreadable = |error| Error::new(format!("cannot read the image {}: {error}", path.display()));
    let mut header = Vec::with_capacity(HEADER);
    File::open(path).and_then(|file| file.take(HEADER as u64).read_to_end(&mut header)).map_err(unreadable)?;
    machine_in(&header).map_err(|why| Error::new(format!("cannot boot {}: {why}", path.display())))
}

fn machine_in(header: &[u8]) -> Result<Machine, &'static str> {
    if header.len() < HEADER || !header.starts_with(b"\x7fELF") {
        return Err("it is not an ELF file");
    }
    if header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN {
        return Err("it is not a 64-bit little-endian ELF file");
    }
    let machine = match u16::from_le_bytes([header[18], header[19]]) {
        MACHINE_X86_64 => Machine::Q35,
        MACHINE_AARCH64 => Machine::Virt,
        _ => return Err("it is for neither x86-64 nor AArch64"),
    };
    match u16::from_le_bytes([header[16], header[17]]) {
        TYPE_EXECUTABLE => Ok(machine),
        // The flags of .cargo/config.toml did not reach the linker; it would die without a word.
        TYPE_SHARED => Err("it was linked without the flags of .cargo/config.toml (is RUSTFLAGS set?)"),
        _ => Err("it is not an executable"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u16, machine: u16) -> Vec<u8> {
        let mut header = vec![0; HEADER];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        header[16..18].copy_from_slice(&kind.to_le_bytes());
        header[18..20].copy_from_slice(&machine.to_le_bytes());
        header
    }

    #[test]
    fn the_machine_follows_from_the_header() {
        assert_eq!(machine_in(&header(2, 62)), Ok(Machine::Q35));
        assert_eq!(machine_in(&header(2, 183)), Ok(Machine::Virt));
    }

    #[test]
    fn what_cannot_boot_is_refused() {
        assert!(machine_in(b"").is_err());
        assert!(machine_in(b"#!/bin/sh\nexit 0\nexit 0\n").is_err());
        assert!(machine_in(&header(2, 62)[..19]).is_err());
        assert!(machine_in(&header(2, 243)).is_err());
        assert!(machine_in(&header(1, 62)).is_err());
        assert!(machine_in(&header(3, 62)).is_err_and(|why| why.contains("RUSTFLAGS")));
        let mut narrow = header(2, 62);
        narrow[4] = 1;
        assert!(machine_in(&narrow).is_err());
    }
}
