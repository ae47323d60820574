//! A kernel that lacks something, or has on what this version cannot keep its promises with, is told by name, and nothing is kept.

use alloc::boxed::Box;
use core::arch::naked_asm;
use core::ops::Range;

use sandbox_mode::{
    CallError, CpuConfig, Error, FatalReport, Frame, FrameKind, Hal, Host, Image, Page, PageRange, Permissions, Roots,
    Unsupported, VirtAddr,
};

use super::{Bench, End, Outcome, checks, fail, must_be};
use crate::boot::{MAIR, TCR_E0PD1};
use crate::host::{Foreign, cpu_config};
use crate::layout::{self, DIRECT, GIB, PAGE};
use crate::registers::{cpu, masked, read, write};
use crate::{frames, tables};

checks! {
    a_window_that_is_no_good
    an_image_that_is_not_what_it_says
    too_many_cpus
    no_memory
    no_write_back_memory
    another_granule
    pointer_authentication
    memory_tagging
    the_wrong_stack_pointer
    another_translation_control_on_this_cpu
    el0_kept_out_without_consent
    asids_that_are_in_use
    no_room_for_the_gate
    a_cpu_that_was_not_started
    a_cpu_that_was_started_twice
}

/// A host with something wrong.
struct Odd {
    inner: Foreign,
    oddity: Oddity,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Oddity {
    NoMemory,
    /// No room for the gate's code, or for its data.
    NoGate(Permissions),
    Cpus(usize),
}

// SAFETY: as the inner host, which answers; less is promised.
unsafe impl Host for Odd {
    fn allocate_frame(&self) -> Option<Frame> {
        (self.oddity != Oddity::NoMemory).then(|| self.inner.allocate_frame())?
    }

    unsafe fn free_frame(&self, frame: Frame) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.inner.free_frame(frame) }
    }

    fn frame_pointer(&self, frame: Frame) -> *mut u8 {
        self.inner.frame_pointer(frame)
    }

    fn frame_kind(&self, frame: Frame) -> FrameKind {
        self.inner.frame_kind(frame)
    }

    fn with_tables(&self, walk: &mut dyn FnMut(&Roots)) {
        self.inner.with_tables(walk);
    }

    unsafe fn map_gate(&self, frames: &[Frame], permissions: Permissions) -> Option<Page> {
        // SAFETY: the caller's promise is the same.
        (self.oddity != Oddity::NoGate(permissions)).then(|| unsafe { self.inner.map_gate(frames, permissions) })?
    }

    fn window(&self) -> PageRange {
        self.inner.window()
    }

    fn image(&self) -> Image<'_> {
        self.inner.image()
    }

    fn cpu_index(&self) -> usize {
        self.inner.cpu_index()
    }

    fn cpu_count(&self) -> usize {
        match self.oddity {
            Oddity::Cpus(count) => count,
            _ => self.inner.cpu_count(),
        }
    }

    fn fatal(&self, report: &FatalReport) -> ! {
        self.inner.fatal(report)
    }
}

/// The error of a HAL that must not be made; no frame may be missing afterwards.
fn refusal<H: Host>(host: H) -> Outcome<Error> {
    let before = frames::count_free();
    let error = Hal::new(host).err();
    must_be!(frames::count_free(), before);
    error.ok_or(End::Failed("the HAL was made".into()))
}

fn odd(oddity: Oddity) -> Odd {
    Odd { inner: Foreign::new(), oddity }
}

/// What `error` names as on, or as missing.
fn names(error: Result<(), Error>, wanted: Unsupported, part: &str) -> Outcome {
    let Err(Error::Unsupported(found)) = error else { fail!("{error:?}") };
    let what = match (found, wanted) {
        (Unsupported::Enabled(what), Unsupported::Enabled(_)) => what,
        (Unsupported::Missing(what), Unsupported::Missing(_)) => what,
        _ => fail!("{found:?}"),
    };
    if !what.contains(part) {
        fail!("'{what}' does not name {part}");
    }
    Ok(())
}

const ENABLED: Unsupported = Unsupported::Enabled("");
const MISSING: Unsupported = Unsupported::Missing("");

fn range(range: Range<u64>) -> PageRange {
    PageRange::from_addresses(VirtAddr(range.start), VirtAddr(range.end)).expect("whole pages")
}

fn a_window_that_is_no_good(_bench: &'static Bench) -> Outcome {
    for window in [
        // All RAM is there; the image is there; so is a device.
        DIRECT..DIRECT + GIB,
        layout::text().start..layout::text().start + GIB,
        layout::DEVICES..layout::DEVICES + GIB,
        // Beyond what 39 bits reach, above and across.
        0xffff_0000_0000_0000..0xffff_0000_4000_0000,
        DIRECT - GIB..DIRECT + PAGE,
        // Smaller than a table.
        layout::WINDOW.start..layout::WINDOW.start + 511 * PAGE,
    ] {
        let window = range(window);
        must_be!(refusal(Foreign { window, ..Foreign::new() })?, Error::BadWindow(window));
    }
    Ok(())
}

fn an_image_that_is_not_what_it_says(_bench: &'static Bench) -> Outcome {
    let good = Foreign::new();
    // Without the gate.
    let Error::BadImage(_) = refusal(Foreign { text: good.constants, ..good.clone() })? else { fail!("accepted") };
    // With a page that isn't mapped, and with one that isn't executable.
    let end = layout::variables().end;
    let constants = [range(layout::constants().start..end + PAGE)];
    must_be!(refusal(Foreign { constants, ..good.clone() })?, Error::NotMapped(VirtAddr(end).page()));
    let text = [range(layout::text().start..layout::constants().end)];
    let Error::Escalation { page, host, wanted } = refusal(Foreign { text, ..good })? else { fail!("accepted") };
    must_be!(page, VirtAddr(layout::constants().start).page());
    must_be!((host, wanted), (Permissions::READ, Permissions::READ_EXECUTE));
    Ok(())
}

fn too_many_cpus(_bench: &'static Bench) -> Outcome {
    let Error::TooManyCpus { cpus, .. } = refusal(odd(Oddity::Cpus(usize::MAX)))? else { fail!("accepted") };
    must_be!(cpus, usize::MAX);
    Ok(())
}

fn no_memory(_bench: &'static Bench) -> Outcome {
    must_be!(refusal(odd(Oddity::NoMemory))?, Error::OutOfFrames);
    Ok(())
}

/// Makes a HAL while `$register` has `$value`.
macro_rules! with_register {
    ($register:literal, $value:expr) => {
        masked(|| {
            let before = read!($register);
            // SAFETY: for a moment and masked, a value that changes nothing of how this kernel's upper half is translated and executed.
            unsafe { write!($register, $value) };
            let error = refusal(Foreign::new());
            // SAFETY: as it was.
            unsafe { write!($register, before) };
            error
        })
    };
}

fn no_write_back_memory(_bench: &'static Bench) -> Outcome {
    /// Write-back memory too, but without a hint to allocate when it is written.
    const NO_WRITE_ALLOCATE: u64 = 0xee;
    let error = with_register!("mair_el1", MAIR & !0xff | NO_WRITE_ALLOCATE)?;
    names(Err(error), MISSING, "MAIR_EL1")
}

fn another_granule(_bench: &'static Bench) -> Outcome {
    /// TCR_EL1.TG0: 64 KiB.
    const TG0_64K: u64 = 0b01 << 14;
    let error = with_register!("tcr_el1", read!("tcr_el1") | TG0_64K)?;
    names(Err(error), MISSING, "4 KiB granule")
}

fn pointer_authentication(_bench: &'static Bench) -> Outcome {
    if !cpu::has_pointer_authentication() {
        return Err(End::Skipped("this CPU has no pointer authentication"));
    }
    // SCTLR_EL1.EnDB, EnDA, EnIB, EnIA. Nothing in this kernel is compiled for it.
    for bit in [13, 27, 30, 31] {
        let error = with_register!("sctlr_el1", read!("sctlr_el1") | 1 << bit)?;
        names(Err(error), ENABLED, "pointer authentication")?;
    }
    Ok(())
}

fn memory_tagging(_bench: &'static Bench) -> Outcome {
    if !cpu::has_memory_tagging() {
        return Err(End::Skipped("this CPU has no memory tagging"));
    }
    // SCTLR_EL1.ATA0, ATA. Nothing in this kernel is mapped as tagged.
    for bit in [42, 43] {
        let error = with_register!("sctlr_el1", read!("sctlr_el1") | 1 << bit)?;
        names(Err(error), ENABLED, "memory tagging")?;
    }
    Ok(())
}

/// Calls `work(context)` on SP_EL0, which is the stack pointer meanwhile.
///
/// # Safety
///
/// 1. Interrupts are masked.
/// 2. `context` is what `work` takes.
#[unsafe(naked)]
unsafe extern "C" fn on_sp_el0(work: unsafe extern "C" fn(*mut ()), context: *mut ()) {
    naked_asm!(
        "stp x19, x30, [sp, #-16]!",
        "mrs x19, sp_el0",
        "mov x9, sp",
        "msr sp_el0, x9",
        "msr spsel, #0",
        "mov x9, x0",
        "mov x0, x1",
        "blr x9",
        "msr spsel, #1",
        "msr sp_el0, x19",
        "ldp x19, x30, [sp], #16",
        "ret",
    )
}

fn the_wrong_stack_pointer(_bench: &'static Bench) -> Outcome {
    unsafe extern "C" fn make(into: *mut ()) {
        // SAFETY: the pointer below.
        let into = unsafe { &mut *into.cast::<Option<Error>>() };
        *into = Hal::new(Foreign::new()).err();
    }
    let mut error: Option<Error> = None;
    // SAFETY: (1) masked; (2) such a pointer.
    masked(|| unsafe { on_sp_el0(make, (&raw mut error).cast()) });
    names(error.map_or(Ok(()), Err), MISSING, "SP_EL1")
}

/// Starts this CPU for a HAL of its own, which stays.
fn start<H: Host>(host: H, config: CpuConfig) -> Outcome<(&'static Hal<H>, Result<(), Error>)> {
    let hal: &'static Hal<H> = Box::leak(Box::new(Hal::new(host)?));
    // SAFETY: (1) the only CPU, on its own tables; (2), (3) what is not so must be found out.
    Ok((hal, unsafe { hal.start_cpu(config) }))
}

fn another_translation_control_on_this_cpu(_bench: &'static Bench) -> Outcome {
    /// SCTLR_EL1.WXN. Nothing in the upper half is writable and executable.
    const WXN: u64 = 1 << 19;
    let hal: &'static Hal<Foreign> = Box::leak(Box::new(Hal::new(Foreign::new())?));
    let result = masked(|| {
        let before = read!("sctlr_el1");
        // SAFETY: masked, so that no process runs, whose pages are both.
        unsafe { write!("sctlr_el1", before | WXN) };
        // SAFETY: as in `start`.
        let result = unsafe { hal.start_cpu(cpu_config()) };
        // SAFETY: as it was.
        unsafe { write!("sctlr_el1", before) };
        result
    });
    names(result, MISSING, "WXN")
}

fn el0_kept_out_without_consent(_bench: &'static Bench) -> Outcome {
    if !cpu::has_e0pd() {
        return Err(End::Skipped("this CPU has no E0PD"));
    }
    let set = || read!("tcr_el1") & TCR_E0PD1;
    // SAFETY: as this kernel starts its CPU; starting the HAL for the bench has cleared it.
    unsafe { write!("tcr_el1", read!("tcr_el1") | TCR_E0PD1) };
    let (_, refused) = start(Foreign::new(), CpuConfig::default())?;
    names(refused, ENABLED, "E0PD")?;
    must_be!(set(), TCR_E0PD1);
    let (hal, started) = start(Foreign::new(), CpuConfig::default().clear_e0pd(true))?;
    started?;
    must_be!(set(), 0);
    must_be!(hal.sandbox()?.call(|| 6u8, ())?, 6);
    Ok(())
}

fn asids_that_are_in_use(_bench: &'static Bench) -> Outcome {
    // The first thread's is zero.
    let (_, started) = start(Foreign::new(), cpu_config().asids(0..=9))?;
    let Err(Error::BadTags { first: 0, last: 9, .. }) = started else { fail!("{started:?}") };
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is wrong with it")]
    let (_, started) = start(Foreign::new(), cpu_config().asids(9..=8))?;
    let Err(Error::BadTags { first: 9, last: 8, .. }) = started else { fail!("{started:?}") };
    Ok(())
}

fn no_room_for_the_gate(_bench: &'static Bench) -> Outcome {
    must_be!(refusal(odd(Oddity::NoGate(Permissions::READ_EXECUTE)))?, Error::GateNotMapped);
    let (_, started) = start(odd(Oddity::NoGate(Permissions::READ_WRITE)), cpu_config())?;
    must_be!(started, Err(Error::GateNotMapped));
    let (_, started) = start(odd(Oddity::Cpus(0)), cpu_config())?;
    must_be!(started, Err(Error::TooManyCpus { cpus: 0, most: 0 }));
    // The kernel's tables are as they were.
    must_be!(tables::with(|tables| tables.find(layout::GATE.end - PAGE)), None);
    Ok(())
}

fn a_cpu_that_was_not_started(_bench: &'static Bench) -> Outcome {
    let hal: Hal<Foreign> = Hal::new(Foreign::new())?;
    let result = hal.sandbox()?.call(|| 5u8, ());
    must_be!(result, Err(CallError::Setup(Error::CpuNotStarted(0))));
    Ok(())
}

fn a_cpu_that_was_started_twice(bench: &'static Bench) -> Outcome {
    // SAFETY: (1) is not so, and must be found out; the rest is.
    let result = unsafe { bench.hal.start_cpu(cpu_config()) };
    must_be!(result, Err(Error::CpuStartedTwice(0)));
    must_be!(bench.hal.sandbox()?.call(|| 5u8, ())?, 5);
    Ok(())
}
