//! What the model-specific registers are called that a difference is most likely in; the others go by their numbers.

const NAMES: &[(u32, &str)] = &[
    (0x1b, "IA32_APIC_BASE"),
    (0x174, "IA32_SYSENTER_CS"),
    (0x175, "IA32_SYSENTER_ESP"),
    (0x176, "IA32_SYSENTER_EIP"),
    (0x1d9, "IA32_DEBUGCTL"),
    (0x277, "IA32_PAT"),
    (0xda0, "IA32_XSS"),
    (0xc000_0080, "EFER"),
    (0xc000_0081, "STAR"),
    (0xc000_0082, "LSTAR"),
    (0xc000_0083, "CSTAR"),
    (0xc000_0084, "SFMASK"),
    (0xc000_0100, "FS base"),
    (0xc000_0101, "GS base"),
    (0xc000_0102, "KERNEL_GS base"),
    (0xc000_0103, "TSC_AUX"),
];

/// The name of a register, if it is one of these.
pub(super) fn of(number: u32) -> Option<&'static str> {
    NAMES.iter().find(|(other, _)| *other == number).map(|(_, name)| *name)
}
