//! [`print!`](crate::print) and [`println!`](crate::println) to the serial line.
//!
//! Usable anywhere but in an NMI or a machine check, which may interrupt the lock's holder.

use core::fmt::{self, Write};

use crate::{lock::MaskedLock, machine};

static LOCK: MaskedLock<()> = MaskedLock::new(());

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        machine::console::write_bytes(text.as_bytes());
        Ok(())
    }
}

/// Prints formatted text as one piece: no other output comes between.
pub fn print(text: fmt::Arguments) {
    LOCK.with(|()| print_unlocked(text));
}

/// Prints without the lock, for reports that must come out whatever was interrupted.
pub(crate) fn print_unlocked(text: fmt::Arguments) {
    // A failing `Display` is the only source of errors, and there is nobody to tell.
    let _ = Serial.write_fmt(text);
}

/// Prints to the serial line.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::print(format_args!($($argument)*)) };
}

/// Prints to the serial line, with a line feed.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($argument:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($argument)*))) };
}
