//! What the registers are called that a difference is most likely in; the others go by their encodings.

use super::registers::encoding;

const NAMES: &[(u16, &str)] = &[
    (encoding(2, 0, 0, 2, 2), "MDSCR_EL1"),
    (encoding(2, 0, 1, 1, 4), "OSLSR_EL1"),
    (encoding(3, 0, 1, 0, 0), "SCTLR_EL1"),
    (encoding(3, 0, 1, 0, 2), "CPACR_EL1"),
    (encoding(3, 0, 1, 2, 0), "ZCR_EL1"),
    (encoding(3, 0, 1, 2, 6), "SMCR_EL1"),
    (encoding(3, 0, 2, 0, 0), "TTBR0_EL1"),
    (encoding(3, 0, 2, 0, 1), "TTBR1_EL1"),
    (encoding(3, 0, 2, 0, 2), "TCR_EL1"),
    (encoding(3, 0, 4, 1, 0), "SP_EL0"),
    (encoding(3, 0, 4, 2, 0), "SPSel"),
    (encoding(3, 0, 4, 2, 3), "PAN"),
    (encoding(3, 0, 4, 2, 4), "UAO"),
    (encoding(3, 0, 4, 6, 0), "ICC_PMR_EL1"),
    (encoding(3, 0, 7, 4, 0), "PAR_EL1"),
    (encoding(3, 0, 10, 2, 0), "MAIR_EL1"),
    (encoding(3, 0, 12, 0, 0), "VBAR_EL1"),
    (encoding(3, 0, 12, 11, 3), "ICC_RPR_EL1"),
    (encoding(3, 0, 13, 0, 1), "CONTEXTIDR_EL1"),
    (encoding(3, 0, 13, 0, 4), "TPIDR_EL1"),
    (encoding(3, 0, 14, 1, 0), "CNTKCTL_EL1"),
    (encoding(3, 3, 4, 2, 2), "SVCR"),
    (encoding(3, 3, 4, 2, 5), "DIT"),
    (encoding(3, 3, 4, 2, 6), "SSBS"),
    (encoding(3, 3, 4, 2, 7), "TCO"),
    (encoding(3, 3, 4, 4, 0), "FPCR"),
    (encoding(3, 3, 4, 4, 1), "FPSR"),
    (encoding(3, 3, 9, 14, 0), "PMUSERENR_EL0"),
    (encoding(3, 3, 13, 0, 2), "TPIDR_EL0"),
    (encoding(3, 3, 13, 0, 3), "TPIDRRO_EL0"),
    (encoding(3, 3, 13, 0, 5), "TPIDR2_EL0"),
    (encoding(3, 3, 13, 0, 7), "SCXTNUM_EL0"),
    (encoding(3, 3, 14, 2, 1), "CNTP_CTL_EL0"),
    (encoding(3, 3, 14, 2, 2), "CNTP_CVAL_EL0"),
    (encoding(3, 3, 14, 3, 1), "CNTV_CTL_EL0"),
];

/// The name of a register, if it is one of these.
pub(super) fn of(number: u16) -> Option<&'static str> {
    NAMES.iter().find(|(other, _)| *other == number).map(|(_, name)| *name)
}
