//! Memory that cannot be granted.

use sandbox_mode::{Arch, Backend, Error, FaultKind, Host, In, PAGE_SIZE, Page, PageRange, Permissions, VirtAddr};

use crate::host;
use crate::machine::NO_ADDRESSES;
use crate::probe::{PageOf, address_of, grant, jump, pages_at, readable, unreachable, works};
use crate::suite::{Suite, cases};
use crate::verdict::Outcome;

cases! {
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
}

/// A grant that must be refused, after which the sandbox still works.
fn refused(suite: &Suite, range: PageRange, permissions: Permissions, error: Error) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    expect_eq!(grant(&mut sandbox, range, permissions), Err(error), "granting {range:?} as {permissions}");
    works(&mut sandbox)
}

fn parts_of_pages_are_refused(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(0);
    let mut sandbox = suite.sandbox()?;
    for part in [&page.0[..100], &page.0[1..], &page.0[16..32]] {
        let error = Error::NotWholePages { address: VirtAddr::of(part), len: part.len() };
        expect_eq!(sandbox.grant(part), Err(error));
    }
    works(&mut sandbox)
}

fn nothing_is_refused(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(0);
    let mut sandbox = suite.sandbox()?;
    expect_eq!(sandbox.grant(&page.0[..0]), Err(Error::Empty(VirtAddr::of(&*page))));
    let start = address_of(&*page);
    refused(suite, pages_at(start, 0), Permissions::READ, Error::Empty(VirtAddr(start)))
}

fn one_that_is_there_already_is_refused(suite: &Suite) -> Outcome {
    let pages = alloc::boxed::Box::new([const { PageOf([0; PAGE_SIZE]) }; 3]);
    let mut sandbox = suite.sandbox()?;
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
    // What comes last can't be granted, so what came before must be taken back.
    let pages = alloc::boxed::Box::new([const { PageOf([0; PAGE_SIZE]) }; 4]);
    let mut sandbox = suite.sandbox()?;
    sandbox.grant(&pages[3])?;
    let all = pages_at(address_of(&pages[0]), 4);
    let overlap = Err(Error::Overlap(VirtAddr::of(&pages[3]).page()));
    expect_eq!(grant(&mut sandbox, all, Permissions::READ_WRITE), overlap);
    for page in &pages[..3] {
        unreachable(&mut sandbox, address_of(page), FaultKind::Unmapped)?;
    }
    readable(&mut sandbox, address_of(&pages[3]), 0)
}

/// A kernel may map its image so that it can do everything there. What it could execute is then refused for writing nevertheless.
fn escalation(suite: &Suite, page: Page, host: Permissions, wanted: Permissions) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    // Out of the image first, so that it is not refused for being there already.
    let _ = sandbox.revoke(PageRange::single(page));
    let error = match suite.permissions_of(page) {
        Some(found) if found.contains(wanted) => Error::WritableAndExecutable(page),
        _ => Error::Escalation { page, host, wanted },
    };
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
    let code = suite.hal.gate_code();
    let elsewhere = Backend::gate_text().pages().filter(|&page| !code.contains(page));
    for page in code.pages().chain(elsewhere) {
        for permissions in [Permissions::READ, Permissions::READ_EXECUTE] {
            match grant(&mut sandbox, PageRange::single(page), permissions) {
                Err(Error::SandboxMemory(refused) | Error::Overlap(refused)) if refused == page => {}
                other => fail!("granting {page:?}: {other:?}"),
            }
        }
        let revoked = sandbox.revoke(PageRange::single(page));
        let error = if code.contains(page) { Error::SandboxMemory(page) } else { Error::NotGranted(page) };
        expect_eq!(revoked, Err(error), "revoking it");
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
