//! System registers, by name or encoding.

/// Reads a system register.
macro_rules! read {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: the CPU has the register, and reading it changes nothing that code relies on. Not `nomem`: some are read to see
        // whether a device is done.
        #[allow(unused_unsafe, reason = "what is read may be for writing")]
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags)) };
        value
    }};
}

/// Writes a system register and lets the change count for what follows. Unsafe to use: what the register controls must be the caller's
/// to change.
macro_rules! write {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack, preserves_flags))
    }};
}

pub(crate) use {read, write};

/// A four-bit field of an identification register.
pub(crate) fn field(register: u64, shift: u32) -> u64 {
    register >> shift & 0b1111
}

/// What a CPU may have, by identification register.
pub(crate) mod cpu {
    use super::field;

    /// Pointer authentication by any algorithm (ID_AA64ISAR1_EL1.APA, API).
    pub(crate) fn has_pointer_authentication() -> bool {
        let register = read!("id_aa64isar1_el1");
        field(register, 4) != 0 || field(register, 8) != 0
    }

    /// Memory tags that have effects, at EL1 too (ID_AA64PFR1_EL1.MTE).
    pub(crate) fn has_memory_tagging() -> bool {
        field(read!("id_aa64pfr1_el1"), 8) >= 2
    }

    /// TCR_EL1.E0PD0 and E0PD1 (ID_AA64MMFR2_EL1.E0PD).
    pub(crate) fn has_e0pd() -> bool {
        field(read!("id_aa64mmfr2_el1"), 60) != 0
    }

    /// PSTATE.PAN (ID_AA64MMFR1_EL1.PAN).
    pub(crate) fn has_pan() -> bool {
        field(read!("id_aa64mmfr1_el1"), 20) != 0
    }

    /// The exception level that this runs at.
    pub(crate) fn exception_level() -> u64 {
        read!("currentel") >> 2 & 0b11
    }
}

/// Whether IRQs are taken.
pub(crate) fn interrupts_enabled() -> bool {
    read!("daif") & 1 << 7 == 0
}

/// Runs `work` with interrupts masked.
pub(crate) fn masked<T>(work: impl FnOnce() -> T) -> T {
    let masks = read!("daif");
    // SAFETY: masks are put back as they were. Not `nomem`: the work stays inside.
    unsafe { core::arch::asm!("msr daifset, #0b0011", options(nostack, preserves_flags)) };
    let value = work();
    // SAFETY: as above.
    unsafe { core::arch::asm!("msr daif, {}", in(reg) masks, options(nostack, preserves_flags)) };
    value
}

/// A lock that interrupt handlers may take too.
pub(crate) struct Lock<T>(spin::Mutex<T>);

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Lock(spin::Mutex::new(value))
    }

    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        masked(|| work(&mut self.0.lock()))
    }
}
