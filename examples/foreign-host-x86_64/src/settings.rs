//! What the command line asks for: the words of QEMU's fw_cfg file `opt/sandbox/args`, read byte by byte.

use alloc::string::String;
use alloc::vec::Vec;

use x86_64::instructions::port::{Port, PortReadOnly};

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const DIRECTORY: u16 = 0x19;
const NAME: &[u8] = b"opt/sandbox/args\0";

fn read<const N: usize>() -> [u8; N] {
    // SAFETY: QEMU's device, which hands out the selected file a byte at a time.
    core::array::from_fn(|_| unsafe { PortReadOnly::new(DATA).read() })
}

fn select(file: u16) {
    // SAFETY: as above; selecting begins at the file's first byte.
    unsafe { Port::<u16>::new(SELECTOR).write(file) };
}

/// The words.
pub(crate) fn read_words() -> String {
    select(DIRECTORY);
    let count = u32::from_be_bytes(read());
    for _ in 0..count {
        let (size, file, _reserved) = (u32::from_be_bytes(read()), u16::from_be_bytes(read()), read::<2>());
        if read::<56>().starts_with(NAME) {
            select(file);
            let bytes: Vec<u8> = (0..size).flat_map(|_| read::<1>()).collect();
            return String::from_utf8_lossy(&bytes).into_owned();
        }
    }
    String::new()
}
