//! Vector registers on x86-64: filling them, reading them, and computing in them.

use core::arch::global_asm;
use core::mem::offset_of;

use sandbox_mode::ExitReason;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::xcontrol::{XCr0, XCr0Flags};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Instruction, instruction};

/// Whether the kernel's own code may use the registers at any time.
pub(crate) const USED_BY_CODE: bool = cfg!(target_feature = "sse");

/// What FXSAVE stores (SDM 1, table 10-2), and the upper halves of the YMM registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(64))]
pub(crate) struct Vectors {
    fcw: u16,
    fsw: u16,
    /// One bit for each register that holds something.
    ftw: u16,
    fop: u16,
    pointers: [u64; 2],
    mxcsr: u32,
    mxcsr_mask: u32,
    /// Ten bytes each.
    st: [[u64; 2]; 8],
    xmm: [[u64; 2]; 16],
    rest: [u64; 12],
    upper: [[u64; 2]; 16],
    /// Whether there are upper halves.
    wide: u64,
    reserved: [u64; 7],
}

/// All exceptions masked, rounding toward zero; for x87 with the shortest results, for SSE with zeros for denormal ones.
const FCW: u16 = 0x0c7f;
const MXCSR: u32 = 0xff80;
/// All exceptions unmasked, and all raised: x87's would come with the next instruction.
const FCW_UNMASKED: u16 = 0x0340;
const FSW_PENDING: u16 = 0x80ff;
const MXCSR_UNMASKED: u32 = 0x603f;
const ST_MASK: [u64; 2] = [!0, 0xffff];

fn is_wide() -> bool {
    Cr4::read().contains(Cr4Flags::OSXSAVE) && XCr0::read().contains(XCr0Flags::AVX)
}

impl Vectors {
    /// What a reset leaves, or FNINIT.
    pub(crate) fn reset() -> Vectors {
        Vectors { wide: is_wide().into(), ..Vectors::RESET }
    }

    const RESET: Vectors = Vectors {
        fcw: 0x037f,
        fsw: 0,
        ftw: 0,
        fop: 0,
        pointers: [0; 2],
        mxcsr: 0x1f80,
        mxcsr_mask: 0,
        st: [[0; 2]; 8],
        xmm: [[0; 2]; 16],
        rest: [0; 12],
        upper: [[0; 2]; 16],
        wide: 0,
        reserved: [0; 7],
    };

    /// Something else in every register, different for each `seed`.
    pub(crate) fn pattern(seed: u64) -> Vectors {
        let word = |number: usize| super::PATTERN ^ seed << 32 ^ number as u64;
        let pair = |first: usize, number: usize| [word(first + 2 * number), word(first + 2 * number + 1)];
        Vectors {
            fcw: FCW,
            ftw: 0xff,
            mxcsr: MXCSR,
            st: core::array::from_fn(|number| [word(number), word(number) & ST_MASK[1]]),
            xmm: core::array::from_fn(|number| pair(0x100, number)),
            upper: core::array::from_fn(|number| pair(0x200, number)),
            ..Vectors::reset()
        }
    }

    /// As bad as a sandbox can make it.
    pub(crate) fn hostile() -> Vectors {
        Vectors {
            fcw: FCW_UNMASKED,
            fsw: FSW_PENDING,
            mxcsr: MXCSR_UNMASKED,
            st: [ST_MASK; 8],
            xmm: [[!0; 2]; 16],
            upper: [[!0; 2]; 16],
            ..Vectors::pattern(0)
        }
    }

    /// Every register's words, with its name. Not where the last x87 instruction was, which some CPUs keep only if it raised
    /// an exception.
    pub(crate) fn words(&self) -> impl Iterator<Item = (&'static str, usize, u64)> {
        let pairs = |name, pairs: [[u64; 2]; 16], used: usize| {
            pairs.into_iter().take(used).enumerate().flat_map(move |(n, [low, high])| [(name, n, low), (name, n, high)])
        };
        let mut st = [[0; 2]; 16];
        st[..8].copy_from_slice(&self.st);
        let controls = [
            ("FCW", 0, u64::from(self.fcw)),
            ("FSW", 0, self.fsw.into()),
            ("FTW", 0, self.ftw.into()),
            ("MXCSR", 0, self.mxcsr.into()),
        ];
        let upper = pairs("the upper half of YMM", self.upper, if is_wide() { 16 } else { 0 });
        controls.into_iter().chain(pairs("ST", st, 8)).chain(pairs("XMM", self.xmm, 16)).chain(upper)
    }

    /// Those that a call of compiled code leaves alone: all if the code uses none, or the control registers.
    pub(crate) fn kept_by_calls(&self) -> impl Iterator<Item = (&'static str, usize, u64)> {
        self.words().filter(|&(name, ..)| !USED_BY_CODE || ["FCW", "MXCSR"].contains(&name))
    }

    /// What [`hold_vectors`] leaves after so many rounds.
    pub(crate) fn after_rounds(mut self, rounds: u64) -> Vectors {
        for half in 0..2 {
            self.xmm[15][half] = self.xmm[15][half].wrapping_add(self.xmm[14][half].wrapping_mul(rounds));
        }
        self
    }
}

global_asm!(
    ".pushsection .text.suite, \"ax\", @progbits",
    ".balign 16",
    ".macro suite_upper_halves instruction",
    ".irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "suite_\\instruction \\number",
    ".endr",
    ".endm",
    ".macro suite_store_half number",
    "vextractf128 [rdi + {UPPER} + 16 * \\number], ymm\\number, 1",
    ".endm",
    ".macro suite_load_half number",
    "vinsertf128 ymm\\number, ymm\\number, [rdi + {UPPER} + 16 * \\number], 1",
    ".endm",
    // FXSAVE does not look for pending exceptions.
    ".global suite_store_vectors",
    "suite_store_vectors:",
    "fxsave64 [rdi]",
    "cmp qword ptr [rdi + {WIDE}], 0",
    "je 2f",
    "suite_upper_halves store_half",
    "2: ret",
    "suite_load_vectors:",
    "fxrstor64 [rdi]",
    "cmp qword ptr [rdi + {WIDE}], 0",
    "je 2f",
    "suite_upper_halves load_half",
    "2: ret",
    ".global suite_with_vectors",
    "suite_with_vectors:",
    "push rbx",
    "push rbp",
    "push rdi",
    "mov rbx, rcx",
    "mov rbp, r8",
    "mov rdi, r8",
    "call suite_store_vectors",
    "mov rdi, [rsp]",
    "call suite_load_vectors",
    "mov rdi, rdx",
    "call rsi",
    "mov rdi, rbx",
    "call suite_store_vectors",
    "mov rdi, rbp",
    "call suite_load_vectors",
    "pop rdi",
    "pop rbp",
    "pop rbx",
    "ret",
    ".global suite_hold_vectors",
    "suite_hold_vectors:",
    "sub rsp, 24",
    "stmxcsr [rsp]",
    "fnstcw [rsp + 8]",
    "call suite_load_vectors",
    "mov r8, [rsi]",
    "xor eax, eax",
    // Not VPADDQ, which would clear the upper half.
    "2: paddq xmm15, xmm14",
    "inc rax",
    "mov r9, [rsi]",
    "sub r9, r8",
    "cmp r9, rdx",
    "jb 2b",
    "mov rdi, rcx",
    "call suite_store_vectors",
    "fninit",
    "fldcw [rsp + 8]",
    "ldmxcsr [rsp]",
    "add rsp, 24",
    "ret",
    ".global suite_spoil_vectors_and_return",
    "suite_spoil_vectors_and_return:",
    "call suite_load_vectors",
    "xor eax, eax",
    "int 4",
    ".global suite_spoil_vectors_and_fault",
    "suite_spoil_vectors_and_fault:",
    "call suite_load_vectors",
    "ud2",
    ".global suite_multiply_and_add",
    "suite_multiply_and_add:",
    "xorpd xmm0, xmm0",
    "2: movupd xmm1, [rdi]",
    "movupd xmm2, [rsi]",
    "mulpd xmm1, xmm2",
    "addpd xmm0, xmm1",
    "add rdi, 16",
    "add rsi, 16",
    "sub rdx, 2",
    "jnz 2b",
    "movapd xmm1, xmm0",
    "unpckhpd xmm1, xmm1",
    "addsd xmm0, xmm1",
    "movq rax, xmm0",
    "ret",
    ".popsection",
    UPPER = const offset_of!(Vectors, upper),
    WIDE = const offset_of!(Vectors, wide),
);

unsafe extern "C" {
    /// Stores all registers; the upper halves if it says so there.
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

    /// Loads all registers, adds XMM14 to XMM15 until the counter at `ticks` has moved by `wanted`, but once at least, and
    /// stores them; how often.
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

fn set_cr0(value: Cr0Flags) {
    // SAFETY: `value` differs from what is there in the bits that concern floating point, which compiled code doesn't use here.
    unsafe { Cr0::write(value) };
}

const CLOSED: Cr0Flags = Cr0Flags::TASK_SWITCHED.union(Cr0Flags::EMULATE_COPROCESSOR);

/// Calls `work` with these registers and returns what is in them afterwards. While `work` runs they are open to the kernel, or
/// closed, which a kernel that is compiled for them can't have.
pub(crate) fn with_vectors(vectors: &Vectors, open: bool, work: &mut dyn FnMut()) -> Vectors {
    struct Context<'a> {
        close: bool,
        work: &'a mut dyn FnMut(),
    }
    unsafe extern "C" fn call(context: *mut ()) {
        // SAFETY: `with` passes the pointer below, which is used once at a time.
        let context = unsafe { &mut *context.cast::<Context<'_>>() };
        let cr0 = Cr0::read();
        if context.close {
            set_cr0(cr0 | Cr0Flags::TASK_SWITCHED);
        }
        (context.work)();
        set_cr0(cr0);
    }
    let before = Cr0::read();
    let mut context = Context { close: !open && !USED_BY_CODE, work };
    let (mut found, mut earlier) = (Vectors::reset(), Vectors::reset());
    set_cr0(before - CLOSED);
    // SAFETY: (1) `call` takes such a pointer; (2) opened above.
    unsafe { with(vectors, call, (&raw mut context).cast(), &mut found, &mut earlier) };
    set_cr0(before);
    found
}

/// What decides whether the kernel can use vector registers: a call leaves it as it is.
pub(crate) fn vector_control() -> u64 {
    Cr0::read_raw()
}

/// Calls `work` with each setting of this CPU that forbids vector registers in sandboxes.
pub(crate) fn forbid_vectors(work: &mut dyn FnMut(&'static str)) -> Result<(), &'static str> {
    if USED_BY_CODE {
        return Err("this kernel itself needs what would forbid vector registers in sandboxes");
    }
    let before = Cr4::read();
    for (flag, name) in [(Cr4Flags::OSFXSR, "OSFXSR"), (Cr4Flags::OSXMMEXCPT_ENABLE, "OSXMMEXCPT")] {
        // SAFETY: concerns floating point alone, which compiled code doesn't use here; put back below.
        unsafe { Cr4::write(before - flag) };
        work(name);
        // SAFETY: as it was.
        unsafe { Cr4::write(before) };
    }
    Ok(())
}

/// Code that raises exceptions of floating point, on CPUs that can.
pub(crate) fn floating_point_exceptions() -> Result<impl Iterator<Item = Instruction>, &'static str> {
    const FP: ExitReason = ExitReason::FloatingPoint;
    Ok([
        instruction!(FP, "push 0x37b", "fldcw [rsp]", "pop rax", "fld1", "fldz", "fdivp", "fwait"),
        instruction!(
            FP,
            "push 0x1d80",
            "ldmxcsr [rsp]",
            "pop rax",
            "mov eax, 1",
            "cvtsi2sd xmm0, eax",
            "xorpd xmm1, xmm1",
            "divsd xmm0, xmm1"
        ),
    ]
    .into_iter())
}
