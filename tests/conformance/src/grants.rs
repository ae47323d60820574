//! Memory of the host's that a sandbox is granted, and what cannot be granted.

use sandbox_mode::{
    Access, Arch, Backend, Error, FaultKind, Host, In, PAGE_SIZE, Page, PageRange, Permissions, Val, VirtAddr,
};

use crate::host;
use crate::machine::{NO_ADDRESSES, RETURN};
use crate::probe::{BYTE, PageOf, address_of, denied, jump, readable, store, unreachable, works};
use crate::suite::{Sandbox, Suite, cases};
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
    parts_of_pages_are_refused,
    nothing_is_refused,
    one_that_is_there_already_is_refused,
    part_of_the_image_is_refused_as_there_already,
    a_failed_one_leaves_nothing,
    writing_to_constants_is_refused,
    writing_to_text_is_refused,
    executing_data_is_refused,
    odd_permissions_are_refused,
    unmapped_pages_are_refused,
    addresses_that_do_not_exist_are_refused,
    page_tables_are_refused,
    devices_are_refused,
    another_sandboxs_memory_is_refused,
    the_hals_tables_are_refused,
    the_window_is_refused,
    the_gates_data_is_refused,
    the_gates_data_is_refused_under_another_address,
    the_gates_code_is_refused,
    the_gates_code_is_refused_under_another_address,
    text_under_another_address_cannot_be_written,
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

fn pages_at(address: u64, count: u64) -> PageRange {
    PageRange::new(VirtAddr(address).page(), count).expect("inside the address space")
}

/// Grants pages of a test's own.
fn grant(sandbox: &mut Sandbox<'_>, range: PageRange, permissions: Permissions) -> Result<(), Error> {
    // SAFETY: (1) cases grant memory that outlives their sandboxes, or what must be refused; (2) nobody minds changes.
    unsafe { sandbox.grant_range(range, permissions) }
}

/// A grant that must be refused, after which the sandbox still works.
fn refused(suite: &Suite, range: PageRange, permissions: Permissions, error: Error) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    expect_eq!(grant(&mut sandbox, range, permissions), Err(error), "granting {range:?} as {permissions}");
    works(&mut sandbox)
}

fn a_page_is_readable_where_it_is(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(0x61);
    let mut sandbox = suite.hal.sandbox()?;
    sandbox.grant(&*page)?;
    readable(&mut sandbox, address_of(&*page), 0x61)?;
    readable(&mut sandbox, address_of(&*page) + PAGE - 1, 0x61)
}

fn a_page_is_not_writable(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(0x62);
    let mut sandbox = suite.hal.sandbox()?;
    sandbox.grant(&*page)?;
    denied(&mut sandbox, Access::Write, address_of(&*page), FaultKind::Permission)?;
    denied(&mut sandbox, Access::Write, address_of(&*page) + PAGE - 1, FaultKind::Permission)?;
    expect!(page.is_full_of(0x62));
    Ok(())
}

fn a_page_is_not_executable(suite: &Suite) -> Outcome {
    let mut page = PageOf::boxed(0);
    page.0[..4].copy_from_slice(&RETURN);
    let mut sandbox = suite.hal.sandbox()?;
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
    let mut sandbox = suite.hal.sandbox()?;
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
    let mut sandbox = suite.hal.sandbox()?;
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
    let (mut first, mut second) = (suite.hal.sandbox()?, suite.hal.sandbox()?);
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

fn parts_of_pages_are_refused(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(0);
    let mut sandbox = suite.hal.sandbox()?;
    for part in [&page.0[..100], &page.0[1..], &page.0[16..32]] {
        let error = Error::NotWholePages { address: VirtAddr::of(part), len: part.len() };
        expect_eq!(sandbox.grant(part), Err(error));
    }
    works(&mut sandbox)
}

fn nothing_is_refused(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(0);
    let mut sandbox = suite.hal.sandbox()?;
    expect_eq!(sandbox.grant(&page.0[..0]), Err(Error::Empty(VirtAddr::of(&*page))));
    let start = address_of(&*page);
    refused(suite, pages_at(start, 0), Permissions::READ, Error::Empty(VirtAddr(start)))
}

fn one_that_is_there_already_is_refused(suite: &Suite) -> Outcome {
    let pages = alloc::boxed::Box::new([const { PageOf([0; PAGE_SIZE]) }; 3]);
    let mut sandbox = suite.hal.sandbox()?;
    sandbox.grant(&pages[1])?;
    let taken = VirtAddr::of(&pages[1]).page();
    expect_eq!(sandbox.grant(&pages[1]), Err(Error::Overlap(taken)));
    expect_eq!(sandbox.grant(&*pages), Err(Error::Overlap(taken)));
    unreachable(&mut sandbox, address_of(&pages[0]), FaultKind::Unmapped)?;
    unreachable(&mut sandbox, address_of(&pages[2]), FaultKind::Unmapped)
}

fn part_of_the_image_is_refused_as_there_already(suite: &Suite) -> Outcome {
    let image = suite.hal.host().image();
    for (ranges, permissions) in [(image.text, Permissions::READ_EXECUTE), (image.read_only, Permissions::READ)] {
        let page = ranges[0].start();
        refused(suite, PageRange::single(page), permissions, Error::Overlap(page))?;
    }
    Ok(())
}

fn a_failed_one_leaves_nothing(suite: &Suite) -> Outcome {
    // The last page of the heap's memory that is next to what isn't mapped, or simply the end of the image's data.
    let pages = alloc::boxed::Box::new([const { PageOf([0; PAGE_SIZE]) }; 4]);
    let mut sandbox = suite.hal.sandbox()?;
    sandbox.grant(&pages[3])?;
    let all = pages_at(address_of(&pages[0]), 4);
    let overlap = Err(Error::Overlap(VirtAddr::of(&pages[3]).page()));
    expect_eq!(grant(&mut sandbox, all, Permissions::READ_WRITE), overlap);
    for page in &pages[..3] {
        unreachable(&mut sandbox, address_of(page), FaultKind::Unmapped)?;
    }
    readable(&mut sandbox, address_of(&pages[3]), 0)
}

fn escalation(suite: &Suite, page: Page, host: Permissions, wanted: Permissions) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    // Out of the image first, so that it is not refused for being there already.
    let _ = sandbox.revoke(PageRange::single(page));
    let error = Error::Escalation { page, host, wanted };
    expect_eq!(grant(&mut sandbox, PageRange::single(page), wanted), Err(error));
    unreachable(&mut sandbox, page.start().0, FaultKind::Unmapped)
}

static CONSTANT: PageOf = PageOf([7; PAGE_SIZE]);

fn writing_to_constants_is_refused(suite: &Suite) -> Outcome {
    escalation(suite, VirtAddr::of(&CONSTANT).page(), Permissions::READ, Permissions::READ_WRITE)
}

fn writing_to_text_is_refused(suite: &Suite) -> Outcome {
    let page = suite.hal.host().image().text[0].start();
    escalation(suite, page, Permissions::READ_EXECUTE, Permissions::READ_WRITE)
}

fn executing_data_is_refused(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(0);
    escalation(suite, VirtAddr::of(&*page).page(), Permissions::READ_WRITE, Permissions::READ_EXECUTE)
}

fn odd_permissions_are_refused(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(0);
    for bits in
        [(false, false, false), (false, true, false), (false, false, true), (false, true, true), (true, true, true)]
    {
        let wanted = Permissions::new(bits.0, bits.1, bits.2);
        refused(suite, pages_at(address_of(&*page), 1), wanted, Error::BadPermissions(wanted))?;
    }
    Ok(())
}

fn unmapped_pages_are_refused(suite: &Suite) -> Outcome {
    for address in [0, 0x40_0000] {
        let page = VirtAddr(address).page();
        refused(suite, PageRange::single(page), Permissions::READ, Error::NotMapped(page))?;
    }
    Ok(())
}

fn addresses_that_do_not_exist_are_refused(suite: &Suite) -> Outcome {
    for address in NO_ADDRESSES {
        let page = VirtAddr(address).page();
        refused(suite, PageRange::single(page), Permissions::READ, Error::NonCanonical(page.start()))?;
    }
    Ok(())
}

fn page_tables_are_refused(suite: &Suite) -> Outcome {
    let mut tables = [None; 2];
    suite.hal.host().with_tables(&mut |roots| tables = *roots);
    for table in tables.into_iter().flatten() {
        let page = suite.page_of(table);
        for permissions in [Permissions::READ, Permissions::READ_WRITE] {
            refused(suite, PageRange::single(page), permissions, Error::PageTable(page))?;
        }
    }
    Ok(())
}

fn devices_are_refused(suite: &Suite) -> Outcome {
    let page = suite.kernel.device().page();
    for permissions in [Permissions::READ, Permissions::READ_WRITE] {
        refused(suite, PageRange::single(page), permissions, Error::Device(page))?;
    }
    Ok(())
}

fn another_sandboxs_memory_is_refused(suite: &Suite) -> Outcome {
    const SECRET: [u8; 16] = *b"of one sandbox's";
    let mut victim = suite.sandbox()?;
    victim.call(|secret: &[u8; 16]| secret[0], (In(&SECRET),))?;
    let mut found = 0;
    for frame in host::recent_frames() {
        // SAFETY: a frame of RAM; the pointer covers it, and nothing runs that could change it.
        let bytes = unsafe { &*suite.hal.host().frame_pointer(frame).cast::<[u8; PAGE_SIZE]>() };
        if bytes.windows(SECRET.len()).any(|window| window == SECRET) {
            let page = suite.page_of(frame);
            for permissions in [Permissions::READ, Permissions::READ_WRITE] {
                refused(suite, PageRange::single(page), permissions, Error::SandboxMemory(page))?;
            }
            found += 1;
        }
    }
    expect!(found > 0, "the buffer is among the frames that were handed out last");
    Ok(())
}

fn the_hals_tables_are_refused(suite: &Suite) -> Outcome {
    let sandbox = suite.sandbox()?;
    // All that the sandbox consists of: tables, stack, and what the HAL notes of them.
    let frames: alloc::vec::Vec<_> = host::recent_frames().collect();
    let mut refusals = 0;
    let mut other = suite.sandbox()?;
    for frame in frames {
        let page = suite.page_of(frame);
        match grant(&mut other, PageRange::single(page), Permissions::READ_WRITE) {
            Err(Error::SandboxMemory(refused)) if refused == page => refusals += 1,
            // Given back in an earlier case.
            Err(Error::Reserved(_)) => {}
            other => fail!("granting {frame:?}: {other:?}"),
        }
    }
    drop(sandbox);
    expect!(refusals > 16, "{refusals} frames of the HAL's were tried");
    Ok(())
}

fn the_window_is_refused(suite: &Suite) -> Outcome {
    let window = suite.window();
    for skip in [0, 1, window.count() / 2, window.count() - 1] {
        let page = window.start().checked_add(skip).expect("inside");
        refused(suite, PageRange::single(page), Permissions::READ, Error::SandboxMemory(page))?;
    }
    Ok(())
}

fn the_gates_data_is_refused(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    for page in host::gate_data() {
        for permissions in [Permissions::READ, Permissions::READ_WRITE] {
            match grant(&mut sandbox, PageRange::single(page), permissions) {
                Err(Error::SandboxMemory(refused) | Error::Overlap(refused)) if refused == page => {}
                other => fail!("granting {page:?}: {other:?}"),
            }
        }
        let revoked = sandbox.revoke(PageRange::single(page));
        expect_eq!(revoked, Err(Error::SandboxMemory(page)), "revoking it");
    }
    works(&mut sandbox)
}

fn the_gates_data_is_refused_under_another_address(suite: &Suite) -> Outcome {
    // The first ones are the HAL's own; frames of the host's that it shows again are the host's to grant.
    for page in host::gate_data().take(Backend::GATE_FRAMES) {
        let Some(frame) = suite.frame_of(page) else { fail!("{page:?} is not mapped") };
        let alias = suite.page_of(frame);
        refused(suite, PageRange::single(alias), Permissions::READ_WRITE, Error::SandboxMemory(alias))?;
    }
    Ok(())
}

fn the_gates_code_is_refused(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    for page in Backend::gate_text().pages() {
        for permissions in [Permissions::READ, Permissions::READ_EXECUTE] {
            match grant(&mut sandbox, PageRange::single(page), permissions) {
                Err(Error::SandboxMemory(refused) | Error::Overlap(refused)) if refused == page => {}
                other => fail!("granting {page:?}: {other:?}"),
            }
        }
        let revoked = sandbox.revoke(PageRange::single(page));
        expect_eq!(revoked, Err(Error::SandboxMemory(page)), "revoking it");
    }
    works(&mut sandbox)
}

fn the_gates_code_is_refused_under_another_address(suite: &Suite) -> Outcome {
    for page in Backend::gate_text().pages() {
        let Some(frame) = suite.frame_of(page) else { fail!("{page:?} is not mapped") };
        let alias = suite.page_of(frame);
        refused(suite, PageRange::single(alias), Permissions::READ_WRITE, Error::SandboxMemory(alias))?;
    }
    Ok(())
}

fn text_under_another_address_cannot_be_written(suite: &Suite) -> Outcome {
    let Some(frame) = suite.frame_of(VirtAddr(jump as *const () as u64).page()) else { fail!("text is not mapped") };
    let alias = suite.page_of(frame);
    refused(suite, PageRange::single(alias), Permissions::READ_WRITE, Error::WritableAndExecutable(alias))
}

fn revoking_takes_effect(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(9);
    let mut sandbox = suite.hal.sandbox()?;
    sandbox.grant(&*page)?;
    readable(&mut sandbox, address_of(&*page), 9)?;
    sandbox.revoke(pages_at(address_of(&*page), 1))?;
    unreachable(&mut sandbox, address_of(&*page), FaultKind::Unmapped)
}

fn revoking_part_of_one_leaves_the_rest(suite: &Suite) -> Outcome {
    let pages = alloc::boxed::Box::new([const { PageOf([8; PAGE_SIZE]) }; 3]);
    let mut sandbox = suite.hal.sandbox()?;
    sandbox.grant(&*pages)?;
    sandbox.revoke(pages_at(address_of(&pages[1]), 1))?;
    readable(&mut sandbox, address_of(&pages[0]) + PAGE - 1, 8)?;
    unreachable(&mut sandbox, address_of(&pages[1]), FaultKind::Unmapped)?;
    readable(&mut sandbox, address_of(&pages[2]), 8)
}

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
    let mut sandbox = suite.hal.sandbox()?;
    sandbox.grant(&*page)?;
    let (host, wanted) = (Permissions::READ, Permissions::READ_WRITE);
    expect_eq!(sandbox.restrict(range, wanted), Err(Error::Escalation { page: range.start(), host, wanted }));
    denied(&mut sandbox, Access::Write, address_of(&*page), FaultKind::Permission)
}

fn what_was_not_granted_cannot_be_revoked(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(1);
    let range = pages_at(address_of(&*page), 1);
    let mut sandbox = suite.hal.sandbox()?;
    expect_eq!(sandbox.revoke(range), Err(Error::NotGranted(range.start())));
    expect_eq!(sandbox.restrict(range, Permissions::READ), Err(Error::NotGranted(range.start())));
    let stack = suite.window().start().checked_add(1).expect("inside");
    expect_eq!(sandbox.revoke(PageRange::single(stack)), Err(Error::SandboxMemory(stack)), "its stack");
    works(&mut sandbox)
}

fn a_revoked_one_can_be_granted_again(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(4);
    let range = pages_at(address_of(&*page), 1);
    let mut sandbox = suite.hal.sandbox()?;
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
