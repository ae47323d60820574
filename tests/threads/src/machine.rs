//! The lines of the suite's own interrupts, and what else differs between the machines.

#[cfg(target_arch = "aarch64")]
mod lines {
    use platform_qemu::machine::interrupts::{self, make_urgent};

    /// Software-generated interrupts that nothing else uses.
    pub(crate) const ORDINARY: usize = 1;
    pub(crate) const URGENT: usize = 3;
    const VANISHING: usize = 4;

    /// Lets [`URGENT`] interrupt other handlers.
    pub(crate) fn prepare_urgent() {
        make_urgent(URGENT);
    }

    pub(crate) fn spurious_count() -> u64 {
        interrupts::spurious_count()
    }

    /// Sends an interrupt and takes it back, which the CPU may notice too late.
    pub(crate) fn send_spurious(cpu: usize) {
        platform_qemu::interrupts::register(VANISHING, || {});
        interrupts::send(cpu, VANISHING);
        interrupts::withdraw(cpu, VANISHING);
    }

    pub(crate) fn send_nmi(_cpu: usize) -> Result<(), &'static str> {
        Err("this machine has no non-maskable interrupts")
    }

    pub(crate) fn nmi_count() -> u64 {
        0
    }

    /// The stack for interrupts of unprivileged code, which other machines have.
    pub(crate) fn set_kernel_stack(_top: u64) {}

    pub(crate) fn kernel_stack() -> u64 {
        0
    }
}

#[cfg(target_arch = "x86_64")]
mod lines {
    use platform_qemu::machine::{apic, exceptions, segments};

    /// Vectors that nothing else uses.
    pub(crate) const ORDINARY: usize = 0x80;
    /// Of a higher class than the alarm's, so it interrupts that one's handler.
    pub(crate) const URGENT: usize = 0xa0;

    pub(crate) fn prepare_urgent() {}

    pub(crate) fn spurious_count() -> u64 {
        exceptions::spurious_count()
    }

    /// The vector of spurious interrupts, in service this time: it takes the same way.
    pub(crate) fn send_spurious(cpu: usize) {
        apic::send_to(cpu, apic::SPURIOUS as u8);
    }

    pub(crate) fn send_nmi(cpu: usize) -> Result<(), &'static str> {
        apic::send_nmi_to(cpu);
        Ok(())
    }

    pub(crate) fn nmi_count() -> u64 {
        exceptions::nmi_count()
    }

    pub(crate) use segments::{kernel_stack, set_kernel_stack};
}

pub(crate) use lines::*;
