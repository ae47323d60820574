//! The first serial port, the way out of QEMU, and what happens on a panic.

use core::fmt::{self, Write};

use qemu_exit::{QEMUExit, X86};
use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550Tty};

use crate::lock::Masked;

const COM1: u16 = 0x3f8;
/// The isa-debug-exit device, and what it is told: QEMU's status is twice that plus one.
const EXIT: u16 = 0xf4;
const PASS: u32 = 33;
const FAIL: u32 = 35;

static PORT: Masked<Option<Uart16550Tty<PioBackend>>> = Masked::new(None);

/// Prints to the serial port.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    PORT.with(|port| {
        if port.is_none() {
            // SAFETY: a PC has its first serial port there, and nothing else in this kernel uses it.
            *port = unsafe { Uart16550Tty::new_port(COM1, Config::default()) }.ok();
        }
        if let Some(port) = port {
            // Nowhere is left to complain.
            let _ = port.write_fmt(text);
        }
    });
}

/// Prints a line.
macro_rules! println {
    ($($text:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($text)*))) };
}
pub(crate) use println;

/// Ends the machine.
pub(crate) fn exit(pass: bool) -> ! {
    // SAFETY: whoever boots this puts the device at that port.
    let device = unsafe { X86::new(EXIT, PASS) };
    if pass { device.exit_success() } else { device.exit(FAIL >> 1) }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    // First of all: in a sandbox this ends the call.
    x86_64::instructions::interrupts::disable();
    println!("{info}");
    exit(false)
}
