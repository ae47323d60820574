//! Stack and buffers: where they lie, how they grow, what is left free around them.

use super::audit::audit;
use super::layout::{LAYOUTS, USUAL};
use super::machine::Machine;
use super::processor::next;
use super::rig::{Rig, STACK, SimSandbox};
use crate::arch::Trap;
use crate::argument::{In, Out};
use crate::error::Error;
use crate::sandbox::CallError;

/// Which pages of the window are mapped.
fn mapped(rig: &Rig, sandbox: &SimSandbox<'_>) -> std::vec::Vec<usize> {
    let pages = rig.machine.window.pages().enumerate();
    pages.filter(|&(_, page)| sandbox.view.lookup(rig.hal(), page).is_some()).map(|(index, _)| index).collect()
}

fn call(sandbox: &mut SimSandbox<'_>, input: usize, output: usize) -> Result<(), CallError> {
    next(|_| Ok(Trap::Returned));
    let result =
        sandbox.call(|_: &[u8], _: &mut [u8]| (), (In(&std::vec![1; input][..]), Out(&mut std::vec![0; output][..])));
    if matches!(result, Err(CallError::Setup(_))) {
        // The step was not needed.
        sandbox.call(|| (), ()).unwrap();
    }
    result
}

#[test]
fn every_region_has_guard_pages() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        let mut sandbox = rig.sandbox();
        assert_eq!(mapped(&rig, &sandbox), [1, 2]);
        call(&mut sandbox, 1, 4097).unwrap();
        assert_eq!(mapped(&rig, &sandbox), [1, 2, 4, 6, 7]);
        // Smaller and equal ones use what is there.
        call(&mut sandbox, 4096, 8192).unwrap();
        call(&mut sandbox, 0, 1).unwrap();
        assert_eq!(mapped(&rig, &sandbox), [1, 2, 4, 6, 7]);
        // A larger one goes behind all.
        call(&mut sandbox, 4097, 1).unwrap();
        assert_eq!(mapped(&rig, &sandbox), [1, 2, 6, 7, 9, 10]);
        call(&mut sandbox, 4097, 8193).unwrap();
        assert_eq!(mapped(&rig, &sandbox), [1, 2, 9, 10, 12, 13, 14]);
        audit(&rig, &[&sandbox]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn a_used_up_window_is_laid_out_anew() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    let mut wrapped = false;
    let mut last = 0;
    for pages in 1..120 {
        call(&mut sandbox, pages * 4096, 0).unwrap();
        let mapped = mapped(&rig, &sandbox);
        assert_eq!(mapped.len(), STACK as usize + pages);
        assert!(mapped[2] > 3 && mapped[mapped.len() - 1] < 511);
        wrapped |= mapped[2] < last;
        last = mapped[2];
    }
    assert!(wrapped);
    audit(&rig, &[&sandbox]);
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn the_window_is_used_to_the_last_guard_page() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    // 512 pages: guard, stack, guard; the rest is for one buffer and its guard.
    let most = 512 - 2 - STACK as usize - 1;
    call(&mut sandbox, 4096, 0).unwrap();
    call(&mut sandbox, most * 4096, 0).unwrap();
    assert_eq!(*mapped(&rig, &sandbox).last().unwrap(), 510);
    let full = |needed| Err(CallError::Setup(Error::WindowFull { needed, available: most as u64 + 1 }));
    assert_eq!(call(&mut sandbox, most * 4096 + 1, 0), full(most as u64 + 2));
    call(&mut sandbox, 4096, 4096).unwrap();
    assert_eq!(mapped(&rig, &sandbox), [1, 2, 4, 6]);
    audit(&rig, &[&sandbox]);
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn a_stack_must_fit() {
    let rig = Rig::new(USUAL);
    let with = |bytes: usize| rig.hal().sandbox_with(rig.config().stack_size(bytes)).map(drop);
    assert_eq!(with(0), Err(Error::NoStack));
    assert_eq!(with(511 * 4096), Err(Error::WindowFull { needed: 513, available: 512 }));
    let all = usize::MAX.div_ceil(4096) as u64 + 2;
    assert_eq!(with(usize::MAX), Err(Error::WindowFull { needed: all, available: 512 }));
    with(1).unwrap();
    with(510 * 4096).unwrap();
    let none = rig.hal().sandbox_with(rig.config().stack_size(510 * 4096 + 1)).err();
    assert_eq!(none, Some(Error::WindowFull { needed: 513, available: 512 }));
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn a_window_may_end_with_the_address_space() {
    for &layout in LAYOUTS {
        let mut machine = Machine::new(layout);
        let first = crate::VirtAddr(0u64.wrapping_sub(512 * 4096));
        machine.window = crate::PageRange::from_addresses(first, crate::VirtAddr(0)).unwrap();
        let rig = Rig::stopped(machine).unwrap();
        rig.start_cpu(0).unwrap();
        let mut sandbox = rig.sandbox();
        let pages = 507;
        call(&mut sandbox, pages * 4096, 0).unwrap();
        assert_eq!(mapped(&rig, &sandbox).len(), pages + 2);
        audit(&rig, &[&sandbox]);
    }
}

#[test]
fn pages_that_come_back_are_not_readable_through_old_buffers() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    next(|guest| {
        let (address, _) = guest.part(0)?;
        guest.store(address, &[0x42])?;
        Ok(Trap::Returned)
    });
    sandbox.call(|_: &mut [u8; 4096]| (), (Out(&mut [0; 4096]),)).unwrap();
    // Whatever frames the larger buffer gets, the old page's among them: they are zero.
    next(|guest| {
        let (address, len) = guest.part(0)?;
        let mut bytes = std::vec![1; len as usize];
        guest.load(address, &mut bytes)?;
        assert!(bytes.iter().all(|&byte| byte == 0));
        Ok(Trap::Returned)
    });
    sandbox.call(|_: &mut [u8; 16384]| (), (Out(&mut [0; 16384]),)).unwrap();
}
