//! The kernel is mapped as it claims to be, and sandboxes see it so.

use sandbox_mode::{Access, CallError, ExitReason, FaultKind, Hal, MemoryFault, PageRange, Val, VirtAddr};

use super::{Bench, End, Outcome, checks, fail, must_be};
use crate::host::{Foreign, cpu_config, with_asids};
use crate::layout::{self, BLOCK, DIRECT, LOWER_BITS, PAGE, UPPER_BITS};
use crate::tables;

checks! {
    the_image_is_in_blocks_and_runs
    addresses_outside_39_bits_do_not_exist
    the_window_can_be_in_the_lower_half
    sandboxes_have_asids_where_nothing_is_global
}

fn the_image_is_in_blocks_and_runs(bench: &'static Bench) -> Outcome {
    let find = |address| tables::with(|tables| tables.find(address)).ok_or(End::Skipped("nothing is mapped"));
    let (text, reach) = find(layout::text().start)?;
    must_be!(reach, BLOCK);
    let (constant, reach) = find(layout::constants().start)?;
    must_be!((reach, tables::is_contiguous(constant)), (PAGE, true));
    let (variable, reach) = find(layout::variables().start)?;
    must_be!((reach, tables::is_contiguous(variable)), (PAGE, false));
    for entry in [text, constant, variable] {
        must_be!(tables::is_global(entry), bench.global);
    }
    Ok(())
}

fn read(address: u64) -> u8 {
    // SAFETY: none: the CPU decides.
    unsafe { core::ptr::with_exposed_provenance::<u8>(address as usize).read_volatile() }
}

fn addresses_outside_39_bits_do_not_exist(bench: &'static Bench) -> Outcome {
    let below = (u64::MAX << UPPER_BITS) - PAGE;
    let above = 1 << LOWER_BITS;
    let mut sandbox = bench.hal.sandbox()?;
    for (address, kind) in [
        (below, FaultKind::NonCanonical),
        (0xffff_0000_0000_0000, FaultKind::NonCanonical),
        (above, FaultKind::NonCanonical),
        (above - PAGE, FaultKind::Unmapped),
        (DIRECT, FaultKind::Unmapped),
    ] {
        let Err(CallError::Exit(exit)) = sandbox.call(read, (Val(address),)) else { fail!("{address:#x} was read") };
        let fault = MemoryFault { address: VirtAddr(address), access: Access::Read, kind };
        must_be!(exit.reason, ExitReason::MemoryFault(fault));
    }
    Ok(())
}

/// Sandboxes may live among addresses of processes, which have none of them in their views.
fn the_window_can_be_in_the_lower_half(_bench: &'static Bench) -> Outcome {
    let window = PageRange::covering(VirtAddr(0x7000_0000_0000), 1 << 30).expect("whole pages");
    let hal = alloc::boxed::Box::leak(alloc::boxed::Box::new(Hal::new(Foreign { window, ..Foreign::new() })?));
    // SAFETY: as where the bench starts its own.
    unsafe { hal.start_cpu(cpu_config()) }?;
    let mut sandbox = hal.sandbox()?;
    let here = sandbox.call(|number: &u64| core::ptr::from_ref(number).addr() as u64, (sandbox_mode::In(&7u64),))?;
    if !window.contains(VirtAddr(here).page()) {
        fail!("the buffer is at {here:#x}");
    }
    must_be!(sandbox.call(|number: u64| number * 3, (Val(5u64),))?, 15);
    Ok(())
}

fn sandboxes_have_asids_where_nothing_is_global(bench: &'static Bench) -> Outcome {
    let (mut one, mut two) = (bench.hal.sandbox()?, bench.hal.sandbox()?);
    must_be!(one.call(|| 1u8, ())? + two.call(|| 2u8, ())?, 3);
    let asids = (one.tag(), two.tag());
    must_be!((asids.0.is_some(), asids.1.is_some()), (!bench.global, !bench.global));
    if !bench.global {
        must_be!(asids.0 == asids.1, false);
    }
    // Given to a kernel whose mappings are global, they are of no use, and do no harm.
    let hal: &'static Hal<Foreign> = alloc::boxed::Box::leak(alloc::boxed::Box::new(Hal::new(Foreign::new())?));
    // SAFETY: as where the bench starts its own.
    unsafe { hal.start_cpu(with_asids(cpu_config())) }?;
    let mut sandbox = hal.sandbox()?;
    must_be!(sandbox.call(|number: u64| number * 3, (Val(5u64),))?, 15);
    must_be!(sandbox.tag().is_some(), !bench.global);
    Ok(())
}
