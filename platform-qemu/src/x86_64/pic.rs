//! The old pair of interrupt controllers: moved out of the exceptions' way and masked.

use x86_64::instructions::port::Port;

const FIRST_VECTOR: u8 = 0x20;
const LINES_EACH: u8 = 8;

/// Command and data port of each; the last is what ties them to one another: the line mask of the
/// first, the number of that line for the second.
const PAIR: [(u16, u16, u8); 2] = [(0x20, 0x21, 1 << 2), (0xa0, 0xa1, 2)];

const INITIALIZE: u8 = 0x11;
const MODE_8086: u8 = 0x01;
const ALL: u8 = 0xff;

pub(super) fn init() {
    for (i, (command, data, cascade)) in (0u8..).zip(PAIR) {
        let mut command = Port::<u8>::new(command);
        let mut data = Port::<u8>::new(data);
        // SAFETY: a PC has the controllers at these ports, and nothing else uses them.
        unsafe {
            command.write(INITIALIZE);
            data.write(FIRST_VECTOR + i * LINES_EACH);
            data.write(cascade);
            data.write(MODE_8086);
            data.write(ALL);
        }
    }
}
