//! The old interval timer: its frequency is the same on every PC, so it measures other clocks.

use x86_64::instructions::port::Port;

const FREQUENCY: u32 = 1_193_182;
const CHANNEL_2: u16 = 0x42;
const COMMAND: u16 = 0x43;
/// Bit 0 lets channel 2 count, bit 1 sends it to the speaker, bit 5 reads its output.
const CONTROL: u16 = 0x61;

const GATE: u8 = 1 << 0;
const SPEAKER: u8 = 1 << 1;
const OUTPUT: u8 = 1 << 5;

/// Channel 2, both bytes of the count, output goes high when it has run out.
const ONE_SHOT: u8 = 0b1011_0000;

/// Runs `begin`, waits a hundredth of a second, runs `end`.
pub(super) fn hundredth<R>(begin: impl FnOnce(), end: impl FnOnce() -> R) -> R {
    let [low, high, ..] = (FREQUENCY / 100).to_le_bytes();
    let mut control = Port::<u8>::new(CONTROL);
    let mut channel = Port::<u8>::new(CHANNEL_2);
    // SAFETY: a PC has the timer at these ports, and nothing else uses its channel 2.
    unsafe {
        let before = control.read() & !(GATE | SPEAKER);
        control.write(before | GATE);
        Port::<u8>::new(COMMAND).write(ONE_SHOT);
        channel.write(low);
        begin();
        // The count starts with its second byte.
        channel.write(high);
        while control.read() & OUTPUT == 0 {}
        let result = end();
        control.write(before);
        result
    }
}
