//! QEMU's fw_cfg device, read by DMA.
//!
//! The guest hands the device the physical address of a big-endian control block. QEMU does the
//! transfer before the register write returns, and clears the block's control word.

use alloc::{boxed::Box, string::String, vec::Vec};
use core::{ffi::CStr, fmt};

use crate::{machine, memory};

const KEY_SIGNATURE: u16 = 0x00;
/// How many CPUs the machine starts with, in 16 bits.
const KEY_CPU_COUNT: u16 = 0x05;
const KEY_DIRECTORY: u16 = 0x19;

const CONTROL_ERROR: u32 = 1 << 0;
const CONTROL_READ: u32 = 1 << 1;
const CONTROL_SELECT: u32 = 1 << 3;

/// The device's DMA control block; every field is big-endian.
#[repr(C, align(16))]
struct Control {
    control: u32,
    length: u32,
    address: u64,
}

/// One entry of the device's directory, as it lies in memory (big-endian).
#[repr(C)]
#[derive(Clone, Copy)]
struct DirectoryEntry {
    size: [u8; 4],
    key: [u8; 2],
    reserved: [u8; 2],
    name: [u8; 56],
}

/// What the device would not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no fw_cfg device that speaks DMA.
    Absent,
    /// The device refused the transfer of this item.
    Transfer(u16),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Absent => write!(f, "no fw_cfg device with DMA"),
            Self::Transfer(key) => write!(f, "fw_cfg refused to transfer item {key:#x}"),
        }
    }
}

/// A named file of the device.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name, such as `opt/sandbox/args`.
    pub name: String,
    key: u16,
    size: usize,
}

impl Entry {
    /// Its contents, on the heap.
    pub fn read(&self) -> Result<Vec<u8>, Error> {
        read(self.key, self.size)
    }
}

fn check_signature() -> Result<(), Error> {
    if read(KEY_SIGNATURE, 4)? == b"QEMU" { Ok(()) } else { Err(Error::Absent) }
}

/// How many CPUs the machine has.
pub fn cpu_count() -> Result<usize, Error> {
    check_signature()?;
    let count = read(KEY_CPU_COUNT, 2)?;
    Ok(u16::from_le_bytes([count[0], count[1]]).into())
}

/// The files that the device has.
pub fn directory() -> Result<Vec<Entry>, Error> {
    check_signature()?;
    // The directory is a count and the entries. Each read starts at the item's beginning.
    let head = read(KEY_DIRECTORY, 4)?;
    let count = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let bytes = read(KEY_DIRECTORY, 4 + count * size_of::<DirectoryEntry>())?;
    let entries = bytes[4..].chunks_exact(size_of::<DirectoryEntry>());
    Ok(entries.map(entry).collect())
}

fn entry(bytes: &[u8]) -> Entry {
    // SAFETY: `chunks_exact` gave as many bytes as the type has; it is made of bytes alone, so any
    // value and alignment is fine.
    let raw = unsafe { bytes.as_ptr().cast::<DirectoryEntry>().read() };
    let name = CStr::from_bytes_until_nul(&raw.name).unwrap_or_default();
    Entry {
        name: String::from_utf8_lossy(name.to_bytes()).into_owned(),
        key: u16::from_be_bytes(raw.key),
        size: u32::from_be_bytes(raw.size) as usize,
    }
}

/// Reads the first `size` bytes of an item.
fn read(key: u16, size: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::<u8>::with_capacity(size);
    let command = u32::from(key) << 16 | CONTROL_SELECT | CONTROL_READ;
    let control = Box::into_raw(Box::new(Control {
        control: command.to_be(),
        length: (size as u32).to_be(),
        address: memory::physical(bytes.as_mut_ptr()).to_be(),
    }));
    machine::fw_cfg::dma(memory::physical(control.cast()));
    // SAFETY: the pointer came from the box just now. The device writes the word, hence volatile.
    let status = u32::from_be(unsafe { (&raw const (*control).control).read_volatile() });
    // SAFETY: as above, and the device is done with it.
    drop(unsafe { Box::from_raw(control) });
    match status {
        0 => {
            // SAFETY: the device filled `size` bytes of the vector's own capacity.
            unsafe { bytes.set_len(size) };
            Ok(bytes)
        }
        _ if status & CONTROL_ERROR != 0 => Err(Error::Transfer(key)),
        // The device would have cleared the word: there is none.
        _ => Err(Error::Absent),
    }
}
