//! What the CPU has cached: nothing that was true of another sandbox, of this one before, or of the host, is used.

use alloc::boxed::Box;
use alloc::vec::Vec;

use sandbox_mode::{Access, FaultKind, PAGE_SIZE, Permissions, Val};

use crate::machine;
use crate::probe::{PageOf, address_of, denied, grant, load, load_word, pages_at, readable, store, works};
use crate::suite::{Sandbox, Suite, cases};
use crate::verdict::{Outcome, skip};

cases! {
    one_address_belongs_to_many_by_turns,
    a_new_sandbox_has_nothing_of_an_old_one,
    a_page_of_the_hosts_changes_between_runs,
    a_page_comes_and_goes,
    rights_go_down_between_runs,
    another_page_takes_the_place_of_one,
    tags_are_used_where_they_are_given,
}

const PAGE: u64 = PAGE_SIZE as u64;
/// More than there are tags.
const MANY: u64 = 40;

/// An address of every sandbox's own: the end of its stack, which no call here reaches.
fn own_address(suite: &Suite) -> u64 {
    suite.window().start().start().0 + PAGE
}

/// Writes `value` into the sandbox's own memory.
fn keep(sandbox: &mut Sandbox<'_>, address: u64, value: u64) -> Outcome {
    Ok(sandbox.call(write_word, (Val(address), Val(value)))?)
}

fn write_word(address: u64, value: u64) {
    // SAFETY: in a sandbox, whose own memory this is.
    unsafe { core::ptr::with_exposed_provenance_mut::<u64>(address as usize).write_volatile(value) }
}

fn one_address_belongs_to_many_by_turns(suite: &Suite) -> Outcome {
    let address = own_address(suite);
    let mut sandboxes = Vec::new();
    for number in 0..9 {
        let mut sandbox = suite.sandbox()?;
        keep(&mut sandbox, address, number)?;
        sandboxes.push(sandbox);
    }
    for round in 1..=MANY {
        for (number, sandbox) in (0..).zip(&mut sandboxes) {
            expect_eq!(sandbox.call(load_word, (Val(address),))?, number + (round - 1) * 100, "round {round}");
            keep(sandbox, address, number + round * 100)?;
        }
    }
    Ok(())
}

fn a_new_sandbox_has_nothing_of_an_old_one(suite: &Suite) -> Outcome {
    let address = own_address(suite);
    for round in 1..=MANY {
        let mut sandbox = suite.sandbox()?;
        expect_eq!(sandbox.call(load_word, (Val(address),))?, 0, "sandbox {round}");
        keep(&mut sandbox, address, round)?;
        expect_eq!(sandbox.call(load_word, (Val(address),))?, round);
    }
    Ok(())
}

fn a_page_of_the_hosts_changes_between_runs(suite: &Suite) -> Outcome {
    let mut page = PageOf::boxed(0);
    let range = pages_at(address_of(&*page), 1);
    let mut sandbox = suite.sandbox()?;
    for byte in 1..=MANY as u8 {
        grant(&mut sandbox, range, Permissions::READ)?;
        readable(&mut sandbox, address_of(&*page), byte - 1)?;
        sandbox.revoke(range)?;
        page.0.fill(byte);
    }
    Ok(())
}

fn a_page_comes_and_goes(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(0x77);
    let range = pages_at(address_of(&*page), 1);
    let (mut one, mut two) = (suite.sandbox()?, suite.sandbox()?);
    for _ in 0..MANY {
        grant(&mut one, range, Permissions::READ)?;
        readable(&mut one, address_of(&*page), 0x77)?;
        denied(&mut two, Access::Read, address_of(&*page), FaultKind::Unmapped)?;
        one.revoke(range)?;
        denied(&mut one, Access::Read, address_of(&*page), FaultKind::Unmapped)?;
    }
    Ok(())
}

fn rights_go_down_between_runs(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(0);
    let range = pages_at(address_of(&*page), 1);
    let mut sandbox = suite.sandbox()?;
    for _ in 0..MANY {
        grant(&mut sandbox, range, Permissions::READ_WRITE)?;
        sandbox.call(store, (Val(address_of(&*page)),))?;
        sandbox.restrict(range, Permissions::READ)?;
        denied(&mut sandbox, Access::Write, address_of(&*page), FaultKind::Permission)?;
        sandbox.revoke(range)?;
    }
    works(&mut sandbox)
}

/// Buffers lie at the same addresses in all sandboxes, and grow.
fn another_page_takes_the_place_of_one(suite: &Suite) -> Outcome {
    let first_byte = |bytes: &[u8]| u64::from(bytes[0]) + bytes.len() as u64;
    let mut sandboxes = [suite.sandbox()?, suite.sandbox()?, suite.sandbox()?];
    for round in 1..=MANY as usize {
        for (number, sandbox) in sandboxes.iter_mut().enumerate() {
            let bytes: Box<[u8]> = core::iter::repeat_n((round + number) as u8, PAGE_SIZE * round / 8).collect();
            let found = sandbox.call(first_byte, (sandbox_mode::In(&*bytes),))?;
            expect_eq!(found, (round + number + bytes.len()) as u64, "round {round}");
        }
    }
    Ok(())
}

fn tags_are_used_where_they_are_given(suite: &Suite) -> Outcome {
    if !machine::gives_tags(&suite.kernel.cpu_config()) {
        return skip("this kernel gives sandboxes no tags");
    }
    let (mut one, mut two) = (suite.sandbox()?, suite.sandbox()?);
    expect_eq!(one.tag(), None, "before it has run");
    let byte = PageOf::boxed(1);
    let address = address_of(&*byte);
    for sandbox in [&mut one, &mut two] {
        works(sandbox)?;
    }
    let tags = (one.tag(), two.tag());
    expect!(tags.0.is_some() && tags.1.is_some() && tags.0 != tags.1, "{tags:?}");
    works(&mut one)?;
    expect_eq!(one.tag(), tags.0, "used again");
    grant(&mut one, pages_at(address, 1), Permissions::READ)?;
    expect_eq!(one.call(load, (Val(address),))?, 1);
    expect!(one.tag().is_some() && one.tag() != tags.0, "after a grant: {:?}, {:?}", one.tag(), tags.0);
    Ok(())
}
