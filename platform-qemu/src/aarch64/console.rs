//! The PL011 as console.

use super::machine_map::UART;
use crate::layout::DIRECT_MAP;
use crate::paging::map_device;
use arm_pl011_uart::{DataBits, LineConfig, PL011Registers, Parity, StopBits, Uart, UniqueMmioPointer};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, Ordering};

/// The rate and the clock of the virt machine's UART; QEMU sends at once whatever they say.
const BAUD_RATE: u32 = 115_200;
const CLOCK: u32 = 24_000_000;

/// Where the registers are mapped now. The boot tables have them in the direct map.
static REGISTERS: AtomicPtr<PL011Registers> = AtomicPtr::new((DIRECT_MAP + UART) as *mut PL011Registers);

/// Maps the registers in the final tables.
pub(super) fn map() -> *mut u8 {
    map_device(UART, size_of::<PL011Registers>() as u64)
}

/// Uses the registers where [`map`] mapped them.
pub(super) fn move_to(registers: *mut u8) {
    REGISTERS.store(registers.cast(), Ordering::Relaxed);
}

/// The driver. Several may exist one after the other, they hold no state.
fn uart() -> Uart<'static> {
    let registers = NonNull::new(REGISTERS.load(Ordering::Relaxed)).expect("never null");
    // SAFETY: the tables in use map the UART there as device memory. Two drivers exist at a time
    // only when a fatal report interrupts `write_bytes`, which then never continues; otherwise the
    // lock of the crate's `console` keeps calls apart.
    Uart::new(unsafe { UniqueMmioPointer::new(registers) })
}

/// Turns the transmitter on.
pub(super) fn init() {
    let config = LineConfig { data_bits: DataBits::Bits8, parity: Parity::None, stop_bits: StopBits::One };
    // The rate can be had from the clock, so this doesn't fail; and if it did, there would be no
    // console to say so.
    let _ = uart().enable(config, BAUD_RATE, CLOCK);
}

/// Writes bytes as they are. The caller keeps calls apart, or accepts mixed output.
pub(crate) fn write_bytes(bytes: &[u8]) {
    let mut uart = uart();
    for &byte in bytes {
        while uart.is_tx_fifo_full() {
            core::hint::spin_loop();
        }
        uart.write_word(byte);
    }
}
