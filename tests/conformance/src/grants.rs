//! Memory of the host's that a sandbox is granted, and that is taken back from it.

use sandbox_mode::{Access, Error, FaultKind, PAGE_SIZE, PageRange, Permissions, Val};

use crate::machine::RETURN;
use crate::probe::{BYTE, PageOf, address_of, denied, grant, jump, pages_at, readable, store, unreachable, works};
use crate::suite::{Suite, cases};
use crate::verdict::Outcome;

cases! {
    a_page_is_readable_where_it_is,
    a_page_is_not_writable,
    a_page_is_not_executable,
    neighbours_of_a_page_stay_unreachable,
    several_pages_are_readable,
    a_later_change_is_seen,
    one_sandboxs_is_not_anothers,
    a_writable_one_changes_the_hosts_memory,
    a_writable_one_is_not_executable,
    revoking_takes_effect,
    revoking_part_of_one_leaves_the_rest,
    revoking_part_of_the_image_concerns_one_sandbox,
    restricting_takes_effect,
    restricting_text_takes_execution_away,
    restricting_cannot_add,
    what_was_not_granted_cannot_be_revoked,
    a_revoked_one_can_be_granted_again,
    memory_can_be_granted_to_many,
}

const PAGE: u64 = PAGE_SIZE as u64;

fn a_page_is_readable_where_it_is(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(0x61);
    let mut sandbox = suite.sandbox()?;
    sandbox.grant(&*page)?;
    readable(&mut sandbox, address_of(&*page), 0x61)?;
    readable(&mut sandbox, address_of(&*page) + PAGE - 1, 0x61)
}

fn a_page_is_not_writable(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(0x62);
    let mut sandbox = suite.sandbox()?;
    sandbox.grant(&*page)?;
    denied(&mut sandbox, Access::Write, address_of(&*page), FaultKind::Permission)?;
    denied(&mut sandbox, Access::Write, address_of(&*page) + PAGE - 1, FaultKind::Permission)?;
    expect!(page.is_full_of(0x62));
    Ok(())
}

fn a_page_is_not_executable(suite: &Suite) -> Outcome {
    let mut page = PageOf::boxed(0);
    page.0[..4].copy_from_slice(&RETURN);
    let mut sandbox = suite.sandbox()?;
    sandbox.grant(&*page)?;
    denied(&mut sandbox, Access::Execute, address_of(&*page), FaultKind::Permission)
}

#[repr(C)]
struct Neighbours {
    before: PageOf,
    granted: PageOf,
    after: PageOf,
}

fn neighbours_of_a_page_stay_unreachable(suite: &Suite) -> Outcome {
    let pages = alloc::boxed::Box::new(Neighbours {
        before: PageOf([1; PAGE_SIZE]),
        granted: PageOf([2; PAGE_SIZE]),
        after: PageOf([3; PAGE_SIZE]),
    });
    let mut sandbox = suite.sandbox()?;
    sandbox.grant(&pages.granted)?;
    let start = address_of(&pages.granted);
    readable(&mut sandbox, start, 2)?;
    unreachable(&mut sandbox, start - 1, FaultKind::Unmapped)?;
    unreachable(&mut sandbox, start + PAGE, FaultKind::Unmapped)?;
    expect!(pages.before.is_full_of(1) && pages.after.is_full_of(3));
    Ok(())
}

fn several_pages_are_readable(suite: &Suite) -> Outcome {
    // More than one table's worth.
    let pages: alloc::vec::Vec<PageOf> = (0..600u32).map(|number| PageOf([number as u8; PAGE_SIZE])).collect();
    let mut sandbox = suite.sandbox()?;
    sandbox.grant(&pages[..])?;
    for (number, page) in pages.iter().enumerate() {
        readable(&mut sandbox, address_of(page) + number as u64, number as u8)?;
    }
    Ok(())
}

fn a_later_change_is_seen(suite: &Suite) -> Outcome {
    use core::sync::atomic::{AtomicU64, Ordering};
    #[repr(C, align(4096))]
    struct Numbers([AtomicU64; PAGE_SIZE / 8]);
    static NUMBERS: Numbers = Numbers([const { AtomicU64::new(0) }; PAGE_SIZE / 8]);
    let mut sandbox = suite.sandbox()?;
    sandbox.grant(&NUMBERS)?;
    for number in [5, 6] {
        NUMBERS.0[3].store(number, Ordering::Relaxed);
        readable(&mut sandbox, address_of(&NUMBERS.0[3]), number as u8)?;
    }
    Ok(())
}

fn one_sandboxs_is_not_anothers(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(0x63);
    let (mut first, mut second) = (suite.sandbox()?, suite.sandbox()?);
    first.grant(&*page)?;
    readable(&mut first, address_of(&*page), 0x63)?;
    unreachable(&mut second, address_of(&*page), FaultKind::Unmapped)
}

fn a_writable_one_changes_the_hosts_memory(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(1);
    let start = address_of(&*page);
    let mut sandbox = suite.sandbox()?;
    grant(&mut sandbox, pages_at(start, 1), Permissions::READ_WRITE)?;
    sandbox.call(store, (Val(start + 17),))?;
    let found = core::hint::black_box(&page).0;
    expect!(found.iter().enumerate().all(|(index, &byte)| byte == if index == 17 { BYTE } else { 1 }));
    unreachable(&mut sandbox, start - 1, FaultKind::Unmapped)?;
    unreachable(&mut sandbox, start + PAGE, FaultKind::Unmapped)
}

fn a_writable_one_is_not_executable(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(1);
    let start = address_of(&*page);
    let mut sandbox = suite.sandbox()?;
    grant(&mut sandbox, pages_at(start, 1), Permissions::READ_WRITE)?;
    denied(&mut sandbox, Access::Execute, start, FaultKind::Permission)
}

fn revoking_takes_effect(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(9);
    let mut sandbox = suite.sandbox()?;
    sandbox.grant(&*page)?;
    readable(&mut sandbox, address_of(&*page), 9)?;
    sandbox.revoke(pages_at(address_of(&*page), 1))?;
    unreachable(&mut sandbox, address_of(&*page), FaultKind::Unmapped)
}

fn revoking_part_of_one_leaves_the_rest(suite: &Suite) -> Outcome {
    let pages = alloc::boxed::Box::new([const { PageOf([8; PAGE_SIZE]) }; 3]);
    let mut sandbox = suite.sandbox()?;
    sandbox.grant(&*pages)?;
    sandbox.revoke(pages_at(address_of(&pages[1]), 1))?;
    readable(&mut sandbox, address_of(&pages[0]) + PAGE - 1, 8)?;
    unreachable(&mut sandbox, address_of(&pages[1]), FaultKind::Unmapped)?;
    readable(&mut sandbox, address_of(&pages[2]), 8)
}

static CONSTANT: PageOf = PageOf([7; PAGE_SIZE]);

fn revoking_part_of_the_image_concerns_one_sandbox(suite: &Suite) -> Outcome {
    let (mut first, mut second) = (suite.sandbox()?, suite.sandbox()?);
    let constant = address_of(&CONSTANT);
    readable(&mut first, constant, 7)?;
    first.revoke(pages_at(constant, 1))?;
    unreachable(&mut first, constant, FaultKind::Unmapped)?;
    readable(&mut second, constant, 7)?;
    readable(&mut suite.sandbox()?, constant, 7)
}

fn restricting_takes_effect(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(1);
    let start = address_of(&*page);
    let mut sandbox = suite.sandbox()?;
    grant(&mut sandbox, pages_at(start, 1), Permissions::READ_WRITE)?;
    sandbox.call(store, (Val(start),))?;
    sandbox.restrict(pages_at(start, 1), Permissions::READ)?;
    denied(&mut sandbox, Access::Write, start, FaultKind::Permission)?;
    readable(&mut sandbox, start, BYTE)
}

#[unsafe(naked)]
#[unsafe(link_section = ".text.suite_page")]
extern "C" fn on_its_own_page() {
    core::arch::naked_asm!(".balign 4096", "ret", ".balign 4096")
}

fn restricting_text_takes_execution_away(suite: &Suite) -> Outcome {
    let start = (on_its_own_page as *const () as u64).next_multiple_of(PAGE);
    let mut sandbox = suite.sandbox()?;
    sandbox.call(jump, (Val(start),))?;
    sandbox.restrict(pages_at(start, 1), Permissions::READ)?;
    denied(&mut sandbox, Access::Execute, start, FaultKind::Permission)?;
    readable(&mut sandbox, start, RETURN[0])?;
    suite.sandbox()?.call(jump, (Val(start),))?;
    Ok(())
}

fn restricting_cannot_add(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(1);
    let range = pages_at(address_of(&*page), 1);
    let mut sandbox = suite.sandbox()?;
    sandbox.grant(&*page)?;
    let (host, wanted) = (Permissions::READ, Permissions::READ_WRITE);
    expect_eq!(sandbox.restrict(range, wanted), Err(Error::Escalation { page: range.start(), host, wanted }));
    denied(&mut sandbox, Access::Write, address_of(&*page), FaultKind::Permission)
}

fn what_was_not_granted_cannot_be_revoked(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(1);
    let range = pages_at(address_of(&*page), 1);
    let mut sandbox = suite.sandbox()?;
    expect_eq!(sandbox.revoke(range), Err(Error::NotGranted(range.start())));
    expect_eq!(sandbox.restrict(range, Permissions::READ), Err(Error::NotGranted(range.start())));
    let stack = suite.window().start().checked_add(1).expect("inside");
    expect_eq!(sandbox.revoke(PageRange::single(stack)), Err(Error::SandboxMemory(stack)), "its stack");
    works(&mut sandbox)
}

fn a_revoked_one_can_be_granted_again(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(4);
    let range = pages_at(address_of(&*page), 1);
    let mut sandbox = suite.sandbox()?;
    for _ in 0..10 {
        grant(&mut sandbox, range, Permissions::READ_WRITE)?;
        sandbox.revoke(range)?;
        sandbox.grant(&*page)?;
        readable(&mut sandbox, address_of(&*page), 4)?;
        sandbox.revoke(range)?;
    }
    Ok(())
}

fn memory_can_be_granted_to_many(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(5);
    let start = address_of(&*page);
    let mut sandboxes = alloc::vec::Vec::new();
    for _ in 0..40 {
        let mut sandbox = suite.sandbox()?;
        grant(&mut sandbox, pages_at(start, 1), Permissions::READ_WRITE)?;
        sandboxes.push(sandbox);
    }
    sandboxes[0].call(store, (Val(start + 1),))?;
    for sandbox in &mut sandboxes {
        readable(sandbox, start + 1, BYTE)?;
    }
    Ok(())
}
