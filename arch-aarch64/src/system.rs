//! System registers that the register crate has no name for, by their encodings, which any assembler takes whatever CPU it
//! was told to assemble for (Arm ARM, section D22).

/// Declares functions that read a system register.
macro_rules! reads {
    ($($(#[$doc:meta])* $function:ident: $name:literal;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Safety
            ///
            /// 1. The CPU has the register.
            #[inline(always)]
            pub(crate) unsafe fn $function() -> u64 {
                let value: u64;
                // SAFETY: (1); reading has no effect.
                unsafe {
                    core::arch::asm!(
                        concat!("mrs {}, ", $name),
                        out(reg) value,
                        options(nomem, nostack, preserves_flags)
                    )
                };
                value
            }
        )*
    };
}

/// Declares functions that write a system register.
macro_rules! writes {
    ($($(#[$doc:meta])* $function:ident: $name:literal;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Safety
            ///
            /// 1. The CPU has the register.
            /// 2. The caller may change what it controls.
            #[inline(always)]
            pub(crate) unsafe fn $function(value: u64) {
                // SAFETY: (1), (2).
                unsafe {
                    core::arch::asm!(
                        concat!("msr ", $name, ", {}"),
                        in(reg) value,
                        options(nostack, preserves_flags)
                    )
                };
            }
        )*
    };
}

reads! {
    /// ID_AA64MMFR3_EL1; zero on CPUs older than it.
    read_mmfr3: "s3_0_c0_c7_3";
    /// TCR2_EL1.
    read_tcr2: "s3_0_c2_c0_3";
    /// SCTLR2_EL1.
    read_sctlr2: "s3_0_c1_c0_3";
    /// GCSCR_EL1.
    read_gcscr: "s3_0_c2_c5_0";
    /// GCSCRE0_EL1.
    read_gcscre0: "s3_0_c2_c5_2";
    /// PSTATE.PAN.
    read_pan: "s3_0_c4_c2_3";
    /// PSTATE.UAO.
    read_uao: "s3_0_c4_c2_4";
    /// PSTATE.DIT.
    read_dit: "s3_3_c4_c2_5";
    /// PSTATE.SSBS.
    read_ssbs: "s3_3_c4_c2_6";
    /// PSTATE.TCO.
    read_tco: "s3_3_c4_c2_7";
    /// DISR_EL1.
    read_disr: "s3_0_c12_c1_1";
    /// PMUSERENR_EL0.
    read_pmuserenr: "s3_3_c9_c14_0";
    /// AMUSERENR_EL0.
    read_amuserenr: "s3_3_c13_c2_3";
}

writes! {
    /// PMUSERENR_EL0.
    write_pmuserenr: "s3_3_c9_c14_0";
    /// AMUSERENR_EL0.
    write_amuserenr: "s3_3_c13_c2_3";
}
