//! The first serial port.

use uart_16550::{Config, Uart16550, backend::PioBackend};

const COM1: u16 = 0x3f8;

fn com1() -> Uart16550<PioBackend> {
    // SAFETY: a PC has its first serial port there. Its state is in the device, so that a fresh
    // handle is as good as any; two in use at once can at worst mix their output.
    unsafe { Uart16550::new_port(COM1) }.expect("the ports exist")
}

/// Sets the port up.
pub(super) fn init() {
    // Without a port there is nowhere to say so.
    let _ = com1().init(Config::default());
}

/// Sends bytes and waits until the port has taken them.
pub(crate) fn write_bytes(bytes: &[u8]) {
    com1().send_bytes_exact(bytes);
}
