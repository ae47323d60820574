//! q35.

use alloc::boxed::Box;
use core::arch::{asm, naked_asm};

use platform_qemu::machine::{apic, exceptions};
use sandbox_mode::ExitReason;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::{lgdt, sgdt};
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::model_specific::{FsBase, GsBase, Msr};
use x86_64::registers::xcontrol::{XCr0, XCr0Flags};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::SegmentSelector;

use crate::calls::{Ending, Wrong, expect};
use crate::protocol::{self, Source};

/// The vector that the runner may make pending. It is not the lowest of its priority class, nor the highest.
pub(crate) const ORDINARY_LINE: usize = 0xe1;
/// There is no second kind.
pub(crate) const FAST_LINE: usize = 0;
/// The platform's tick.
const TICK_LINE: usize = 0x30;
/// What devices may have: the last vector is the spurious one, which nobody acknowledges.
const LINES: core::ops::Range<usize> = 0x20..0xff;

/// The lines that this kernel raises itself, without the tick's if that is to go on.
pub(crate) fn own_lines(tick: bool) -> impl Iterator<Item = usize> {
    LINES.filter(move |&line| line != ORDINARY_LINE && !(tick && line == TICK_LINE))
}

pub(crate) fn raise(line: usize) {
    apic::raise(line as u8);
}

/// What was let through has arrived after this.
pub(crate) fn settle() {
    x86_64::instructions::nop();
}

/// Sleeps until an interrupt was handled.
pub(crate) fn sleep() {
    x86_64::instructions::hlt();
}

/// IA32_MCG_STATUS, and the status of the bank that the runner reports errors in (SDM 3, section 17.3).
const MCG_STATUS: u32 = 0x17a;
const MC1_STATUS: u32 = 0x405;
const MACHINE_CHECK: u8 = 18;
/// CPUID.1:ECX.XSAVE (SDM 2, CPUID).
const CPUID_XSAVE: u32 = 1 << 26;

/// Machine checks are on and handled, and the descriptor table has what the host states need.
pub(crate) fn prepare() {
    exceptions::handle_asynchronous(|vector, address| {
        if vector != MACHINE_CHECK {
            return protocol::record(Source::Nmi, address);
        }
        // SAFETY: ends the error, as the handler of machine checks has to (SDM 3, section 17.8).
        unsafe {
            Msr::new(MC1_STATUS).write(0);
            Msr::new(MCG_STATUS).write(0);
        }
        protocol::record(Source::MachineCheck, address);
    });
    // SAFETY: the handler is there.
    unsafe { Cr4::update(|flags| flags.insert(Cr4Flags::MACHINE_CHECK_EXCEPTION)) };
    extend_descriptors();
}

/// Entries of the platform's table, which ends with its task state.
const PLATFORM_ENTRIES: usize = 5;
const LOCAL_TABLE: SegmentSelector = SegmentSelector(PLATFORM_ENTRIES as u16 * 8);
const ABSENT_SEGMENT: u16 = (PLATFORM_ENTRIES as u16 + 2) << 3 | 3;

/// Descriptors (SDM 3, sections 3.4.5 and 3.5): a present local table, and a data segment for unprivileged code that is absent.
const PRESENT_LOCAL_TABLE: u64 = 0x82 << 40;
const ABSENT_DATA: u64 = 0x72 << 40;

/// Replaces the descriptor table by a longer copy, for good.
fn extend_descriptors() {
    let old = sgdt();
    let mut table = Box::new([0_u64; PLATFORM_ENTRIES + 3]);
    assert!(usize::from(old.limit) + 1 == PLATFORM_ENTRIES * 8, "the platform's descriptor table has changed");
    // SAFETY: GDTR says that so many entries are there.
    unsafe { (old.base.as_ptr::<u64>()).copy_to_nonoverlapping(table.as_mut_ptr(), PLATFORM_ENTRIES) };
    let local = core::ptr::from_mut(Box::leak(Box::new([0_u64; 2]))) as u64;
    let limit = size_of::<[u64; 2]>() as u64 - 1;
    table[PLATFORM_ENTRIES] = limit | (local & 0xff_ffff) << 16 | (local >> 24 & 0xff) << 56 | PRESENT_LOCAL_TABLE;
    table[PLATFORM_ENTRIES + 1] = local >> 32;
    table[PLATFORM_ENTRIES + 2] = ABSENT_DATA;
    let limit = size_of_val(&*table) as u16 - 1;
    let base = VirtAddr::from_ptr(Box::leak(table));
    // SAFETY: the copy has what the registers in use refer to, at the same places.
    unsafe { lgdt(&DescriptorTablePointer { limit, base }) };
}

/// Sets every selector that unprivileged code can set.
#[unsafe(naked)]
pub(crate) extern "C" fn spoil() {
    naked_asm!("mov eax, ss", "mov ds, eax", "mov es, eax", "mov fs, eax", "mov gs, eax", "xor eax, eax", "ret")
}

macro_rules! ending {
    ($what:literal, $right:pat, $($code:literal),+ $(, $name:ident = $value:expr)*) => {{
        #[unsafe(naked)]
        extern "C" fn code() {
            naked_asm!($($code),+, $($name = const $value),*)
        }
        Ending { what: $what, function: code, is_right: |reason| matches!(reason, $right) }
    }};
}

/// One for each vector that unprivileged code can bring about.
pub(crate) fn endings() -> [Ending; 11] {
    [
        ending!("a division by zero", ExitReason::Arithmetic, "xor ecx, ecx", "div ecx"),
        ending!(
            "a single step",
            ExitReason::SingleStep,
            "pushfq",
            "or dword ptr [rsp], {trap}",
            "popfq",
            "nop",
            "ud2",
            trap = x86_64::registers::rflags::RFlags::TRAP_FLAG.bits()
        ),
        ending!("a breakpoint", ExitReason::Breakpoint, "int3"),
        ending!("an undefined instruction", ExitReason::IllegalInstruction, "ud2"),
        ending!("floating point", ExitReason::FloatingPoint, "fldz", "ud2"),
        ending!(
            "an absent segment",
            ExitReason::PrivilegedInstruction,
            "mov eax, {selector}",
            "mov fs, eax",
            "ud2",
            selector = ABSENT_SEGMENT
        ),
        ending!(
            "an absent stack segment",
            ExitReason::PrivilegedInstruction,
            "mov eax, {selector}",
            "mov ss, eax",
            "ud2",
            selector = ABSENT_SEGMENT
        ),
        ending!("a privileged instruction", ExitReason::PrivilegedInstruction, "hlt", "ud2"),
        ending!("an address that is not mapped", ExitReason::MemoryFault(_), "mov rax, [0]", "ud2"),
        ending!("a host call", ExitReason::HostCall(5), "mov eax, 5", "int 4", "ud2"),
        ending!("a kernel's segment", ExitReason::PrivilegedInstruction, "mov eax, 0x10", "mov ds, eax", "ud2"),
    ]
}

/// Settings of the host's that the gate must bring back.
#[derive(Clone, Copy, Default)]
pub(crate) struct HostState {
    local_table: bool,
    segments: bool,
    /// The kernel may use floating point.
    floating: bool,
    /// Vector registers are saved by XSAVE.
    xsave: bool,
    /// The base of GS is zero, and the platform cannot be asked anything.
    no_base: bool,
}

const FS_BASE: u64 = 0x1234_5678_9000;

impl HostState {
    pub(crate) fn all() -> impl Iterator<Item = HostState> {
        let none = HostState::default();
        let all = [
            HostState { local_table: true, ..none },
            HostState { segments: true, floating: true, ..none },
            HostState { local_table: true, segments: true, ..none },
            HostState { xsave: true, ..none },
            HostState { no_base: true, ..none },
        ];
        let has_xsave = core::arch::x86_64::__cpuid(1).ecx & CPUID_XSAVE != 0;
        all.into_iter().filter(move |state| has_xsave || !state.xsave)
    }

    /// Does `work` in this state and sees that it stays.
    pub(crate) fn during(self, work: impl FnOnce() -> Result<(), Wrong>) -> Result<(), Wrong> {
        if self.no_base {
            x86_64::instructions::interrupts::without_interrupts(|| self.put(work))
        } else {
            self.put(work)
        }
    }

    fn put(self, work: impl FnOnce() -> Result<(), Wrong>) -> Result<(), Wrong> {
        let table = if self.local_table { LOCAL_TABLE.0 } else { 0 };
        let segment = if self.segments { SS::get_reg() } else { SegmentSelector::NULL };
        let [before, own] = thread_bases();
        let bases = [if self.segments { FS_BASE } else { before }, if self.no_base { 0 } else { own }];
        let controls = (Cr0::read(), Cr4::read());
        let cr0 = if self.floating { controls.0.difference(Cr0Flags::TASK_SWITCHED) } else { controls.0 };
        let cr4 = if self.xsave { controls.1.union(Cr4Flags::OSXSAVE) } else { controls.1 };
        // SAFETY: this kernel uses neither floating point nor vector registers; the CPU has what `all` let through.
        unsafe {
            Cr0::write(cr0);
            Cr4::write(cr4);
            if self.xsave {
                XCr0::write(XCr0Flags::X87 | XCr0Flags::SSE);
            }
        }
        set(table, segment, bases);
        let done = work();
        let found = (local_table(), [DS::get_reg(), ES::get_reg(), FS::get_reg(), GS::get_reg()], thread_bases());
        let found_controls = (Cr0::read(), Cr4::read());
        set(0, SegmentSelector::NULL, [before, own]);
        // SAFETY: as it was.
        unsafe {
            Cr4::write(controls.1);
            Cr0::write(controls.0);
        }
        done?;
        expect(found_controls == (cr0, cr4), "a control register of the host's has changed")?;
        expect(found == (table, [segment; 4], bases), "a selector or base of the host's has changed")
    }
}

fn set(table: u16, segment: SegmentSelector, [fs, gs]: [u64; 2]) {
    // Loading GS changes its base for a moment, and the platform's handlers need that.
    x86_64::instructions::interrupts::without_interrupts(|| {
        // SAFETY: the descriptors are there and flat, and this kernel uses neither the local table nor FS; the base of GS is the
        // platform's own, or nobody asks the platform.
        unsafe {
            asm!("lldt {:x}", in(reg) table, options(nostack, preserves_flags));
            DS::set_reg(segment);
            ES::set_reg(segment);
            FS::set_reg(segment);
            GS::set_reg(segment);
        }
        FsBase::write(VirtAddr::new(fs));
        GsBase::write(VirtAddr::new(gs));
    });
}

fn local_table() -> u16 {
    let selector: u16;
    // SAFETY: reading has no effect.
    unsafe { asm!("sldt {:x}", out(reg) selector, options(nomem, nostack, preserves_flags)) };
    selector
}

fn thread_bases() -> [u64; 2] {
    [FsBase::read().as_u64(), GsBase::read().as_u64()]
}
