//! The PL011 as console, polled.

use core::fmt::{self, Write};

use crate::layout::device;
use crate::registers::Lock;

/// Physical address of the UART (QEMU has kept it in all versions of the machine).
pub(crate) const UART: u64 = 0x0900_0000;
/// Registers and bits (PL011 TRM, section 3.2).
const DATA: usize = 0x00;
const FLAGS: usize = 0x18;
const CONTROL: usize = 0x30;
const TRANSMIT_FULL: u32 = 1 << 5;
const ENABLE_TRANSMIT: u32 = 1 << 8 | 1 << 0;

struct Console;

static CONSOLE: Lock<Console> = Lock::new(Console);

fn register(offset: usize) -> *mut u32 {
    device(UART).wrapping_add(offset).cast()
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: registers of a device that is mapped from the start on, and driven here alone.
            unsafe {
                while register(FLAGS).read_volatile() & TRANSMIT_FULL != 0 {}
                register(DATA).write_volatile(byte.into());
            }
        }
        Ok(())
    }
}

/// Turns the transmitter on.
pub(crate) fn start() {
    // SAFETY: as in `write_str`.
    unsafe { register(CONTROL).write_volatile(ENABLE_TRANSMIT) };
}

/// Prints.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    // The console itself never fails.
    let _ = CONSOLE.with(|console| console.write_fmt(text));
}

/// Prints past the lock, which the code that brought the kernel down may hold.
pub(crate) fn print_last(text: fmt::Arguments<'_>) {
    let _ = Console.write_fmt(text);
}

/// Prints a line.
macro_rules! say {
    ($($what:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($what)*))) };
}
pub(crate) use say;
