//! Vector registers on AArch64: filling them, reading them, and computing in them.

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CPACR_EL1, ID_AA64PFR0_EL1, Readable, Writeable};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Instruction, instruction};

/// Whether the kernel's own code may use the registers at any time.
pub(crate) const USED_BY_CODE: bool = cfg!(target_feature = "neon");

/// V0 to V31, FPCR and FPSR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(64))]
pub(crate) struct Vectors {
    v: [[u64; 2]; 32],
    fpcr: u64,
    fpsr: u64,
    reserved: [u64; 6],
}

/// FPCR: default NaN, flush to zero, rounding toward zero. FPSR: saturation and a few exceptions.
const FPCR: u64 = 1 << 25 | 1 << 24 | 0b11 << 22;
const FPSR: u64 = 1 << 27 | 0b10101;
/// FPCR: exceptions are to trap, which few CPUs can.
const FPCR_TRAPS: u64 = 0b11111 << 8;

impl Vectors {
    /// What a reset leaves.
    pub(crate) fn reset() -> Vectors {
        Vectors { v: [[0; 2]; 32], fpcr: 0, fpsr: 0, reserved: [0; 6] }
    }

    /// Something else in every register, different for each `seed`.
    pub(crate) fn pattern(seed: u64) -> Vectors {
        let word = |number: usize| super::PATTERN ^ seed << 32 ^ number as u64;
        let v = core::array::from_fn(|number| [word(2 * number), word(2 * number + 1)]);
        Vectors { v, fpcr: FPCR, fpsr: FPSR, reserved: [0; 6] }
    }

    /// As bad as a sandbox can make it.
    pub(crate) fn hostile() -> Vectors {
        Vectors { v: [[!0; 2]; 32], fpcr: FPCR | FPCR_TRAPS, fpsr: 0xf800_009f, reserved: [0; 6] }
    }

    /// Every register's words, with its name.
    pub(crate) fn words(&self) -> impl Iterator<Item = (&'static str, usize, u64)> {
        let v = self.v.iter().flatten().enumerate().map(|(word, &value)| ("V", word / 2, value));
        v.chain([("FPCR", 0, self.fpcr), ("FPSR", 0, self.fpsr)])
    }

    /// Those that a call of compiled code leaves alone: all if the code uses none, or what the calling convention says (AAPCS64,
    /// section 6.1.2).
    pub(crate) fn kept_by_calls(&self) -> impl Iterator<Item = (&'static str, usize, u64)> {
        let kept = |&(index, (name, number, _)): &(usize, (&str, usize, u64))| {
            !USED_BY_CODE || name == "FPCR" || (name == "V" && (8..16).contains(&number) && index % 2 == 0)
        };
        self.words().enumerate().filter(kept).map(|(_, word)| word)
    }

    /// What [`hold_vectors`] leaves after so many rounds.
    pub(crate) fn after_rounds(mut self, rounds: u64) -> Vectors {
        for half in 0..2 {
            self.v[31][half] = self.v[31][half].wrapping_add(self.v[30][half].wrapping_mul(rounds));
        }
        self
    }
}

/// What surrounds code for vector registers: kernels without them are assembled without their instructions.
#[cfg(not(target_feature = "neon"))]
macro_rules! assembler {
    (begin) => {
        ".arch_extension fp\n.arch_extension simd"
    };
    (end) => {
        ".arch_extension nosimd\n.arch_extension nofp"
    };
}
#[cfg(target_feature = "neon")]
macro_rules! assembler {
    ($place:ident) => {
        ""
    };
}

global_asm!(
    assembler!(begin),
    ".pushsection .text.suite, \"ax\", @progbits",
    ".balign 16",
    ".global suite_store_vectors",
    "suite_store_vectors:",
    ".irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
    "str q\\number, [x0, #16 * \\number]",
    ".endr",
    "mrs x9, fpcr",
    "str x9, [x0, #{FPCR}]",
    "mrs x9, fpsr",
    "str x9, [x0, #{FPSR}]",
    "ret",
    // Not for compiled code, which may rely on some of them.
    "suite_load_vectors:",
    ".irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
    "ldr q\\number, [x0, #16 * \\number]",
    ".endr",
    "ldr x9, [x0, #{FPCR}]",
    "msr fpcr, x9",
    "ldr x9, [x0, #{FPSR}]",
    "msr fpsr, x9",
    "ret",
    // What compiled code relies on.
    ".macro suite_keep_vectors",
    "stp x29, x30, [sp, #-112]!",
    "stp x19, x20, [sp, #16]",
    "stp d8, d9, [sp, #32]",
    "stp d10, d11, [sp, #48]",
    "stp d12, d13, [sp, #64]",
    "stp d14, d15, [sp, #80]",
    "mrs x9, fpcr",
    "str x9, [sp, #96]",
    ".endm",
    ".macro suite_bring_vectors_back",
    "ldr x9, [sp, #96]",
    "msr fpcr, x9",
    "ldp d14, d15, [sp, #80]",
    "ldp d12, d13, [sp, #64]",
    "ldp d10, d11, [sp, #48]",
    "ldp d8, d9, [sp, #32]",
    "ldp x19, x20, [sp, #16]",
    "ldp x29, x30, [sp], #112",
    ".endm",
    ".global suite_with_vectors",
    "suite_with_vectors:",
    "suite_keep_vectors",
    "mov x19, x3",
    "mov x20, x4",
    "mov x10, x0",
    "mov x0, x4",
    "bl suite_store_vectors",
    "mov x0, x10",
    "bl suite_load_vectors",
    "mov x0, x2",
    "blr x1",
    "mov x0, x19",
    "bl suite_store_vectors",
    "mov x0, x20",
    "bl suite_load_vectors",
    "suite_bring_vectors_back",
    "ret",
    ".global suite_hold_vectors",
    "suite_hold_vectors:",
    "suite_keep_vectors",
    "bl suite_load_vectors",
    "ldr x4, [x1]",
    "mov x5, #0",
    "1: add v31.2d, v31.2d, v30.2d",
    "add x5, x5, #1",
    "ldr x6, [x1]",
    "sub x6, x6, x4",
    "cmp x6, x2",
    "b.lo 1b",
    "mov x0, x3",
    "bl suite_store_vectors",
    "mov x0, x5",
    "suite_bring_vectors_back",
    "ret",
    ".global suite_spoil_vectors_and_return",
    "suite_spoil_vectors_and_return:",
    "bl suite_load_vectors",
    "svc #0",
    ".global suite_spoil_vectors_and_fault",
    "suite_spoil_vectors_and_fault:",
    "bl suite_load_vectors",
    "udf #0",
    ".global suite_multiply_and_add",
    "suite_multiply_and_add:",
    "movi v0.2d, #0",
    "1: ld1 {{v1.2d}}, [x0], #16",
    "ld1 {{v2.2d}}, [x1], #16",
    "fmla v0.2d, v1.2d, v2.2d",
    "subs x2, x2, #2",
    "b.ne 1b",
    "faddp d0, v0.2d",
    "fmov x0, d0",
    "ret",
    ".popsection",
    assembler!(end),
    FPCR = const offset_of!(Vectors, fpcr),
    FPSR = const offset_of!(Vectors, fpsr),
);
unsafe extern "C" {
    /// Stores all registers.
    #[link_name = "suite_store_vectors"]
    pub(crate) safe fn store_vectors(into: &mut Vectors);

    /// Loads all registers, calls `work(context)`, and stores what is in them then in `found`. Those from before wait in `before` and
    /// are there again afterwards.
    ///
    /// # Safety
    ///
    /// 1. `context` is what `work` takes.
    /// 2. The registers can be used.
    #[link_name = "suite_with_vectors"]
    fn with(
        vectors: &Vectors,
        work: unsafe extern "C" fn(*mut ()),
        context: *mut (),
        found: &mut Vectors,
        before: &mut Vectors,
    );

    /// Loads all registers, adds number 30 to number 31 until the counter at `ticks` has moved by `wanted`, but once at least,
    /// and stores them; how often.
    #[link_name = "suite_hold_vectors"]
    pub(crate) safe fn hold_vectors(vectors: &Vectors, ticks: u64, wanted: u64, found: &mut Vectors) -> u64;

    #[link_name = "suite_spoil_vectors_and_return"]
    safe fn spoil_and_return(vectors: &Vectors);

    #[link_name = "suite_spoil_vectors_and_fault"]
    safe fn spoil_and_fault(vectors: &Vectors);

    /// The sum of products, in binary64; `count` is even and not zero.
    ///
    /// # Safety
    ///
    /// 1. So many numbers are at `a` and `b`.
    #[link_name = "suite_multiply_and_add"]
    pub(crate) fn multiply_and_add(a: *const u64, b: *const u64, count: u64) -> u64;
}

/// Loads all registers and returns to the host on the spot.
pub(crate) fn spoil_vectors_and_return(vectors: &Vectors) {
    spoil_and_return(vectors);
}

/// Loads all registers and ends by a fault.
pub(crate) fn spoil_vectors_and_fault(vectors: &Vectors) {
    spoil_and_fault(vectors);
}

/// CPACR_EL1.FPEN, and the lower bits of ZEN and SMEN.
const FPEN: u64 = 0b11 << 20;
const ZEN_EL1: u64 = 1 << 16;

fn set_cpacr(value: u64) {
    CPACR_EL1.set(value);
    barrier::isb(barrier::SY);
}

/// Calls `work` with these registers and returns what is in them afterwards. While `work` runs they are open to the kernel, or
/// closed, which a kernel that is compiled for them can't have.
pub(crate) fn with_vectors(vectors: &Vectors, open: bool, work: &mut dyn FnMut()) -> Vectors {
    struct Context<'a> {
        closed: Option<u64>,
        work: &'a mut dyn FnMut(),
    }
    unsafe extern "C" fn call(context: *mut ()) {
        // SAFETY: `with` passes the pointer below, which is used once at a time.
        let context = unsafe { &mut *context.cast::<Context<'_>>() };
        let cpacr = CPACR_EL1.get();
        if let Some(closed) = context.closed {
            set_cpacr(closed);
        }
        (context.work)();
        set_cpacr(cpacr);
    }
    let before = CPACR_EL1.get();
    let mut context = Context { closed: (!open && !USED_BY_CODE).then_some(before & !FPEN), work };
    let (mut found, mut earlier) = (Vectors::reset(), Vectors::reset());
    set_cpacr(before | FPEN);
    // SAFETY: (1) `call` takes such a pointer; (2) opened above.
    unsafe { with(vectors, call, (&raw mut context).cast(), &mut found, &mut earlier) };
    set_cpacr(before);
    found
}

/// What decides whether the kernel can use vector registers: a call leaves it as it is.
pub(crate) fn vector_control() -> u64 {
    CPACR_EL1.get()
}

/// Calls `work` with each setting of this CPU that forbids vector registers in sandboxes.
pub(crate) fn forbid_vectors(work: &mut dyn FnMut(&'static str)) -> Result<(), &'static str> {
    if ID_AA64PFR0_EL1.read(ID_AA64PFR0_EL1::SVE) == 0 {
        return Err("this CPU has nothing that forbids vector registers in sandboxes: no SVE");
    }
    let before = CPACR_EL1.get();
    set_cpacr(before | ZEN_EL1);
    work("SVE");
    set_cpacr(before);
    Ok(())
}

/// Code that raises exceptions of floating point, on CPUs that can.
pub(crate) fn floating_point_exceptions() -> Result<impl Iterator<Item = Instruction>, &'static str> {
    let before = CPACR_EL1.get();
    set_cpacr(before | FPEN);
    let fpcr: u64;
    // SAFETY: the register can be used, and what it says is used by nobody meanwhile; it gets its old value back.
    unsafe {
        asm!(
            "mrs {old}, s3_3_c4_c4_0",
            "msr s3_3_c4_c4_0, {traps}",
            "mrs {new}, s3_3_c4_c4_0",
            "msr s3_3_c4_c4_0, {old}",
            old = out(reg) _,
            traps = in(reg) FPCR_TRAPS,
            new = lateout(reg) fpcr,
            options(nomem, nostack, preserves_flags)
        );
    }
    set_cpacr(before);
    if fpcr & FPCR_TRAPS != FPCR_TRAPS {
        return Err("floating-point exceptions of this CPU do not trap");
    }
    Ok([instruction!(
        sandbox_mode::ExitReason::FloatingPoint,
        "mov x0, #0x1f00",
        "msr s3_3_c4_c4_0, x0",
        ".inst 0x1e6e1000", // fmov d0, #1.0
        ".inst 0x9e6703e1", // fmov d1, xzr
        ".inst 0x1e611800"  // fdiv d0, d0, d1
    )]
    .into_iter())
}
