//! q35.

use core::sync::atomic::{AtomicPtr, Ordering};

use conformance::Line;
use platform_qemu::machine::{apic, exceptions};
use platform_qemu::{memory, paging};
use sandbox_mode::VirtAddr;
use x86_64::instructions::port::Port;
use x86_64::registers::control::{Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;
use x86_64::registers::xcontrol::{XCr0, XCr0Flags};

/// A vector that nothing else uses.
pub(crate) const ORDINARY_LINE: usize = 0x80;
pub(crate) const FAST_LINE: Option<usize> = None;
/// The I/O APIC: through which `raise_nmi_after` comes.
pub(crate) const DEVICE: u64 = 0xfec0_0000;

const CPUID_FEATURES: u32 = 7;
const CPUID_PKU: u32 = 1 << 3;

/// XSAVE and AVX, of leaf 1.
const CPUID_XSAVE_AVX: u32 = 1 << 26 | 1 << 28;

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_EIP: u32 = 0x176;
const KERNEL_CODE: u64 = 0x08;

/// SYSCALL, SYSENTER, protection keys and vector instructions work as in a kernel with user programs. The entry of system calls is
/// never reached.
pub(crate) fn prepare() {
    let entry = never as *const () as u64;
    // SAFETY: ring 3 is entered by nobody but the HAL, which must keep all of this from it; keys concern user pages only, of which
    // this kernel has none. The CPU has protection keys if it says so.
    unsafe {
        Efer::update(|flags| flags.insert(EferFlags::SYSTEM_CALL_EXTENSIONS));
        Msr::new(STAR).write(KERNEL_CODE << 32);
        Msr::new(LSTAR).write(entry);
        Msr::new(SYSENTER_CS).write(KERNEL_CODE);
        Msr::new(SYSENTER_EIP).write(entry);
        Cr4::update(|flags| flags.insert(Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE));
        if core::arch::x86_64::__cpuid_count(CPUID_FEATURES, 0).ecx & CPUID_PKU != 0 {
            Cr4::update(|flags| flags.insert(Cr4Flags::PROTECTION_KEY_USER));
        }
        if core::arch::x86_64::__cpuid(1).ecx & CPUID_XSAVE_AVX == CPUID_XSAVE_AVX {
            Cr4::update(|flags| flags.insert(Cr4Flags::OSXSAVE));
            XCr0::write(XCr0Flags::X87 | XCr0Flags::SSE | XCr0Flags::AVX);
        }
    }
}

extern "C" fn never() {
    panic!("a sandbox called the kernel");
}

pub(crate) fn raise(line: Line) -> Result<(), &'static str> {
    match line {
        Line::Ordinary => apic::raise(ORDINARY_LINE as u8),
        Line::NonMaskable => apic::raise_nmi(),
        Line::Fast => return Err("x86-64 has no FIQ"),
    }
    Ok(())
}

pub(crate) fn inspect(look: &mut dyn FnMut(&'static str, u64)) {
    apic::settings().for_each(|(name, value)| look(name, value));
}

pub(crate) fn raise_vector(vector: u8) -> Result<(), &'static str> {
    apic::raise(vector);
    Ok(())
}

/// The local APIC's registers: where they are, which vectors are in service, and the end of the last one's (SDM 3, table 12-1).
const APIC: u64 = 0xfee0_0000;
const IN_SERVICE: usize = 0x100;
const END_OF_INTERRUPT: usize = 0xb0;

pub(crate) fn end_vector(vector: u8) {
    static REGISTERS: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
    let mut registers = REGISTERS.load(Ordering::Relaxed);
    if registers.is_null() {
        registers = paging::map_device(APIC, platform_qemu::layout::PAGE_SIZE);
        REGISTERS.store(registers, Ordering::Relaxed);
    }
    // SAFETY: the local APIC's registers, mapped for good; ending a service that has begun is all that happens.
    unsafe {
        let word = registers.add(IN_SERVICE + usize::from(vector / 32) * 16).cast::<u32>().read_volatile();
        if word >> (vector % 32) & 1 != 0 {
            registers.add(END_OF_INTERRUPT).cast::<u32>().write_volatile(0);
        }
    }
}

pub(crate) fn nmi_count() -> u64 {
    exceptions::nmi_count()
}

/// The I/O APIC's registers: an index, and a window to the register it names (82093AA, section 3.1).
const WINDOW: usize = 0x10;
/// The redirection of input 2, where a PC's interval timer arrives: its low and high half.
const TIMER_LOW: u32 = 0x10 + 2 * 2;
const TIMER_HIGH: u32 = TIMER_LOW + 1;
const DELIVER_NMI: u32 = 0b100 << 8;

/// The interval timer's channel 0, both bytes of the count, output goes high when it has run out (8254, "Mode 0").
const TIMER_COMMAND: u16 = 0x43;
const TIMER_CHANNEL: u16 = 0x40;
const ONE_SHOT: u8 = 0b0011_0000;

/// The interval timer, through the I/O APIC, whose registers are at `device`.
pub(crate) fn raise_nmi_after(device: VirtAddr, steps: u16) -> Result<(), &'static str> {
    let registers = core::ptr::with_exposed_provenance_mut::<u8>(device.0 as usize);
    let write = |index: u32, value: u32| {
        // SAFETY: the I/O APIC's registers, mapped for good, which nothing else in this kernel uses.
        unsafe {
            registers.cast::<u32>().write_volatile(index);
            registers.add(WINDOW).cast::<u32>().write_volatile(value);
        }
    };
    write(TIMER_HIGH, 0);
    write(TIMER_LOW, DELIVER_NMI);
    let [low, high] = steps.max(1).to_le_bytes();
    let mut channel = Port::<u8>::new(TIMER_CHANNEL);
    // SAFETY: the interval timer's channel 0, which nothing else in this kernel uses.
    unsafe {
        Port::<u8>::new(TIMER_COMMAND).write(ONE_SHOT);
        channel.write(low);
        channel.write(high);
    }
    Ok(())
}

/// Where the process's page is, and what a table's entry for it says: present, writable, for user code.
const PROCESS_PAGE: u64 = 0x40_0000;
const USER: u64 = 0b111;
const LEVELS: usize = 4;

/// Maps a page in the empty lower half of the kernel's own tables.
pub(crate) fn with_process_page(work: &mut dyn FnMut(VirtAddr)) -> Result<(), &'static str> {
    let mut frames = [0; LEVELS];
    for frame in &mut frames {
        *frame = memory::allocate_frame().ok_or("no memory for a page of a process")?;
        // SAFETY: the frame is ours.
        unsafe { memory::direct(*frame).write_bytes(0, platform_qemu::layout::PAGE_SIZE as usize) };
    }
    let entry = |level: usize| {
        let table = if level == 0 { paging::root() } else { frames[level - 1] };
        let index = (PROCESS_PAGE >> (39 - 9 * level)) as usize % 512;
        memory::direct(table).cast::<u64>().wrapping_add(index)
    };
    for (level, frame) in frames.iter().enumerate() {
        // SAFETY: an entry of the root's lower half, which is empty, or of a table of ours.
        unsafe { entry(level).write_volatile(frame | USER) };
    }
    work(VirtAddr(PROCESS_PAGE));
    // SAFETY: the entry is back to what it was, and no translation through it remains.
    unsafe { entry(0).write_volatile(0) };
    x86_64::instructions::tlb::flush_all();
    frames.into_iter().for_each(memory::free_frame);
    Ok(())
}
