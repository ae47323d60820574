//! Running out of frames at every step: a typed error, and nothing lost.

use alloc::boxed::Box;
use alloc::vec;

use sandbox_mode::{
    CallError, Config, Error, FaultKind, Hal, In, InOut, Out, PAGE_SIZE, PageRange, Permissions, VirtAddr,
};

use crate::host::{self, SuiteHost};
use crate::probe::{PageOf, address_of, readable, unreachable, works};
use crate::suite::{Sandbox, Suite, cases};
use crate::verdict::Outcome;

cases! {
    making_a_hal_can_fail_at_every_allocation,
    making_a_sandbox_can_fail_at_every_allocation,
    a_call_can_fail_at_every_allocation,
    a_growing_call_can_fail_at_every_allocation,
    a_grant_can_fail_at_every_allocation,
    a_large_grant_can_fail_at_every_allocation,
    a_writable_grant_can_fail_at_every_allocation,
    revoking_from_the_image_can_fail_at_every_allocation,
    restricting_the_image_can_fail_at_every_allocation,
}

/// More allocations than anything here needs.
const MANY: usize = 2000;

/// Does `act` with the first allocation failing, then the second, and so on until it needs no more, each time on something
/// fresh from `prepare`. `failed` says what must hold of it after a failure. In between, all frames are back.
fn at_every_allocation<P>(
    suite: &Suite,
    what: &str,
    prepare: impl Fn() -> Outcome<P>,
    act: impl Fn(&mut P) -> Result<(), Error>,
    failed: impl Fn(&mut P) -> Outcome,
) -> Outcome {
    let free = suite.kernel.free_frames();
    for count in 0..MANY {
        let mut prepared = prepare()?;
        host::fail_after(count);
        let result = act(&mut prepared);
        let injected = host::stop_failing();
        match (result, injected) {
            (Ok(()), false) => {
                suite.note(format_args!("{what}: failed at each of {count} allocations"));
                expect!(count > 0, "{what} allocates");
                return Ok(());
            }
            (Err(Error::OutOfFrames), true) => failed(&mut prepared)?,
            (result, _) => fail!("{what}, failure {count}: {result:?}, a failure was injected: {injected}"),
        }
        drop(prepared);
        expect_eq!(suite.kernel.free_frames(), free, "{what}: free frames after failure {count}");
        expect_eq!(host::take_unclean(), 0, "{what}: frames with something in them after failure {count}");
    }
    fail!("{what} never succeeds")
}

/// The error of a call that could not begin.
fn setup(result: Result<u64, CallError>) -> Result<(), Error> {
    match result {
        Err(CallError::Setup(error)) => Err(error),
        // Nothing here ends otherwise; a sandbox that did would not work afterwards.
        _ => Ok(()),
    }
}

fn making_a_hal_can_fail_at_every_allocation(suite: &Suite) -> Outcome {
    // One more, that is never started on a CPU and so changes nothing.
    let make = |_: &mut ()| Hal::new(SuiteHost::new(suite.kernel)).map(drop);
    at_every_allocation(suite, "a HAL", || Ok(()), make, |_| works(&mut suite.sandbox()?))
}

fn making_a_sandbox_can_fail_at_every_allocation(suite: &Suite) -> Outcome {
    for pages in [1, 16, 600] {
        let config = Config::default().stack_size(pages * PAGE_SIZE);
        let make = |_: &mut ()| suite.sandbox_with(config).map(drop);
        at_every_allocation(suite, "a sandbox", || Ok(()), make, |_| works(&mut suite.sandbox()?))?;
    }
    let make = |_: &mut ()| suite.sandbox_with(Config::default().vectors(true)).map(drop);
    at_every_allocation(suite, "a sandbox with vectors", || Ok(()), make, |_| works(&mut suite.sandbox()?))
}

fn sum(a: &[u8], b: &mut [u8], c: &mut [u8]) -> u64 {
    b.fill(1);
    (a.len() + b.len() + c.len()) as u64
}

fn call(sandbox: &mut Sandbox<'_>, len: usize) -> Result<(), Error> {
    let (a, mut b, mut c) = (vec![1; len], vec![2; len], vec![3; 3 * len]);
    let result = setup(sandbox.call(sum, (In(&a[..]), Out(&mut b[..]), InOut(&mut c[..]))));
    // The outputs of a call that could not begin are untouched; a wrong one shows up as a missing failure.
    if result.is_err() && !(b.iter().all(|&byte| byte == 2) && c.iter().all(|&byte| byte == 3)) {
        return Ok(());
    }
    result
}

fn a_call_can_fail_at_every_allocation(suite: &Suite) -> Outcome {
    let act = |sandbox: &mut Sandbox<'static>| call(sandbox, PAGE_SIZE);
    at_every_allocation(suite, "a call with buffers", || Ok(suite.sandbox()?), act, works)
}

fn a_growing_call_can_fail_at_every_allocation(suite: &Suite) -> Outcome {
    let prepare = || {
        let mut sandbox = suite.sandbox()?;
        call(&mut sandbox, 100)?;
        Ok(sandbox)
    };
    at_every_allocation(suite, "a call with larger buffers", prepare, |sandbox| call(sandbox, 3 * PAGE_SIZE), works)
}

/// Granting `pages` of them, so that a failure leaves all unmapped.
fn granting(suite: &Suite, what: &str, count: usize, permissions: Permissions) -> Outcome {
    let pages: Box<[PageOf]> = (0..count).map(|_| PageOf([6; PAGE_SIZE])).collect();
    let start = address_of(&pages[0]);
    let Some(range) = PageRange::new(VirtAddr(start).page(), count as u64) else { fail!("{start:#x}") };
    // SAFETY: (1) `pages` outlives the sandboxes, which live for one round each; (2) nobody minds changes.
    let act = |sandbox: &mut Sandbox<'static>| unsafe { sandbox.grant_range(range, permissions) };
    let failed = |sandbox: &mut Sandbox<'static>| {
        unreachable(sandbox, start, FaultKind::Unmapped)?;
        unreachable(sandbox, start + range.bytes() - 4, FaultKind::Unmapped)
    };
    at_every_allocation(suite, what, || Ok(suite.sandbox()?), act, failed)
}

fn a_grant_can_fail_at_every_allocation(suite: &Suite) -> Outcome {
    granting(suite, "a grant", 1, Permissions::READ)
}

fn a_large_grant_can_fail_at_every_allocation(suite: &Suite) -> Outcome {
    granting(suite, "a grant of 1200 pages", 1200, Permissions::READ)
}

fn a_writable_grant_can_fail_at_every_allocation(suite: &Suite) -> Outcome {
    granting(suite, "a writable grant", 3, Permissions::READ_WRITE)
}

static CONSTANT: PageOf = PageOf([7; PAGE_SIZE]);

fn constant() -> PageRange {
    PageRange::single(VirtAddr::of(&CONSTANT).page())
}

fn revoking_from_the_image_can_fail_at_every_allocation(suite: &Suite) -> Outcome {
    let act = |sandbox: &mut Sandbox<'static>| sandbox.revoke(constant());
    let failed = |sandbox: &mut Sandbox<'static>| readable(sandbox, address_of(&CONSTANT), 7);
    at_every_allocation(suite, "revoking a page of the image", || Ok(suite.sandbox()?), act, failed)
}

fn restricting_the_image_can_fail_at_every_allocation(suite: &Suite) -> Outcome {
    let text = address_of(works as *const ());
    let act =
        |sandbox: &mut Sandbox<'static>| sandbox.restrict(PageRange::single(VirtAddr(text).page()), Permissions::READ);
    at_every_allocation(suite, "restricting a page of text", || Ok(suite.sandbox()?), act, works)
}
