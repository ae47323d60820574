//! What a sandbox can reach of the host's memory, and what it cannot.

use core::sync::atomic::{AtomicU64, Ordering};

use sandbox_mode::{Access, Arch, Backend, FaultKind, Format, Host, Out, PAGE_SIZE, Page, Val, VirtAddr};

use crate::host;
use crate::machine::{NO_ADDRESSES, PROCESS_ADDRESSES, RETURN};
use crate::probe::{PageOf, address_of, denied, exit_of, fault, jump, load_word, readable, unreachable};
use crate::suite::{Suite, cases};
use crate::verdict::Outcome;

cases! {
    data_is_unreachable,
    bss_is_unreachable,
    the_hosts_stack_is_unreachable,
    the_hosts_heap_is_unreachable,
    page_tables_are_unreachable,
    the_direct_map_is_unreachable,
    the_gates_data_is_unreachable,
    the_gates_code_is_unreachable,
    a_device_is_unreachable,
    the_rest_of_the_window_is_unreachable,
    text_is_readable,
    text_is_executable,
    text_is_not_writable,
    constants_are_readable,
    constants_are_not_writable,
    constants_are_not_executable,
    vtables_are_readable,
    null_is_unreachable,
    the_first_page_is_unreachable,
    the_lower_half_is_unreachable,
    a_process_is_unreachable,
    addresses_that_do_not_exist_are_unreachable,
    addresses_next_to_those_that_exist_are_unreachable,
    odd_accesses_to_no_address_are_explained,
    the_last_page_is_unreachable,
    an_access_across_a_page_end_names_the_second_page,
}

const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

static DATA: AtomicU64 = AtomicU64::new(SECRET);
static BSS: AtomicU64 = AtomicU64::new(0);
static CONSTANT: [u8; 16] = *b"readable by all!";

/// Nothing in the view is at `address`.
fn unmapped(suite: &Suite, address: u64) -> Outcome {
    unreachable(&mut suite.sandbox()?, address, FaultKind::Unmapped)
}

fn data_is_unreachable(suite: &Suite) -> Outcome {
    unmapped(suite, address_of(&DATA))?;
    expect_eq!(DATA.load(Ordering::Relaxed), SECRET);
    Ok(())
}

fn bss_is_unreachable(suite: &Suite) -> Outcome {
    unmapped(suite, address_of(&BSS))?;
    expect_eq!(BSS.load(Ordering::Relaxed), 0);
    Ok(())
}

fn the_hosts_stack_is_unreachable(suite: &Suite) -> Outcome {
    let secret = core::hint::black_box(SECRET);
    unmapped(suite, address_of(&secret))?;
    expect_eq!(core::hint::black_box(secret), SECRET);
    Ok(())
}

fn the_hosts_heap_is_unreachable(suite: &Suite) -> Outcome {
    let page = PageOf::boxed(0x77);
    unmapped(suite, address_of(&*page))?;
    unmapped(suite, address_of(&*page) + PAGE_SIZE as u64 - 1)?;
    expect!(page.is_full_of(0x77));
    Ok(())
}

fn page_tables_are_unreachable(suite: &Suite) -> Outcome {
    let mut tables = [0; 2];
    suite.hal.host().with_tables(&mut |roots| {
        for (table, root) in tables.iter_mut().zip(roots) {
            *table = root.map_or(0, |root| address_of(suite.hal.host().frame_pointer(root)));
        }
    });
    for table in tables.into_iter().filter(|&table| table != 0) {
        unmapped(suite, table)?;
    }
    // Its own, as far as they are among the frames that the HAL took last.
    let mut sandbox = suite.sandbox()?;
    for frame in host::recent_frames() {
        denied(&mut sandbox, Access::Write, address_of(suite.hal.host().frame_pointer(frame)), FaultKind::Unmapped)?;
    }
    Ok(())
}

fn the_direct_map_is_unreachable(suite: &Suite) -> Outcome {
    // The same frames that the sandbox reaches at their own addresses.
    for address in [address_of(&CONSTANT), jump as *const () as u64] {
        let Some(frame) = suite.frame_of(VirtAddr(address).page()) else { fail!("{address:#x} is not mapped") };
        let alias = address_of(suite.hal.host().frame_pointer(frame));
        expect!(alias != address - address % PAGE_SIZE as u64);
        unmapped(suite, alias)?;
    }
    Ok(())
}

/// Every page that is mapped for privileged code alone.
fn privileged(suite: &Suite, pages: impl Iterator<Item = Page>) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let mut count = 0;
    for page in pages {
        let address = page.start().0;
        denied(&mut sandbox, Access::Read, address, FaultKind::Permission)?;
        denied(&mut sandbox, Access::Write, address + 8, FaultKind::Permission)?;
        denied(&mut sandbox, Access::Execute, address, FaultKind::Permission)?;
        denied(&mut sandbox, Access::Read, address + PAGE_SIZE as u64 - 1, FaultKind::Permission)?;
        count += 1;
    }
    expect!(count > 0, "there are such pages");
    Ok(())
}

fn the_gates_data_is_unreachable(suite: &Suite) -> Outcome {
    privileged(suite, host::gate_data())
}

fn the_gates_code_is_unreachable(suite: &Suite) -> Outcome {
    privileged(suite, suite.hal.gate_code().pages())?;
    // Where it runs elsewhere, the image's part is not needed.
    for page in Backend::gate_text().pages().filter(|&page| !suite.hal.gate_code().contains(page)) {
        unmapped(suite, page.start().0)?;
    }
    Ok(())
}

fn a_device_is_unreachable(suite: &Suite) -> Outcome {
    unmapped(suite, suite.kernel.device().0)
}

fn the_rest_of_the_window_is_unreachable(suite: &Suite) -> Outcome {
    let window = suite.window();
    unmapped(suite, window.start().start().0 + window.bytes() / 2)?;
    unmapped(suite, window.start().start().0 + window.bytes() - 1)
}

fn text_is_readable(suite: &Suite) -> Outcome {
    let address = jump as *const () as u64;
    // SAFETY: the first byte of a function of this kernel's.
    let byte = unsafe { core::ptr::with_exposed_provenance::<u8>(address as usize).read() };
    readable(&mut suite.sandbox()?, address, byte)
}

extern "C" fn answer() -> u64 {
    42
}

fn text_is_executable(suite: &Suite) -> Outcome {
    expect_eq!(suite.sandbox()?.call(|| core::hint::black_box(answer as extern "C" fn() -> u64)(), ())?, 42);
    Ok(())
}

fn text_is_not_writable(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    denied(&mut sandbox, Access::Write, answer as *const () as u64, FaultKind::Permission)?;
    for range in suite.hal.host().image().text {
        denied(&mut sandbox, Access::Write, range.start().start().0, FaultKind::Permission)?;
        denied(&mut sandbox, Access::Write, range.start().start().0 + range.bytes() - 1, FaultKind::Permission)?;
    }
    Ok(())
}

fn constants_are_readable(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    for (index, &byte) in CONSTANT.iter().enumerate() {
        readable(&mut sandbox, address_of(&CONSTANT) + index as u64, byte)?;
    }
    Ok(())
}

fn constants_are_not_writable(suite: &Suite) -> Outcome {
    denied(&mut suite.sandbox()?, Access::Write, address_of(&CONSTANT), FaultKind::Permission)
}

fn constants_are_not_executable(suite: &Suite) -> Outcome {
    denied(&mut suite.sandbox()?, Access::Execute, address_of(&CONSTANT), FaultKind::Permission)?;
    static CODE: [u8; 4] = RETURN;
    denied(&mut suite.sandbox()?, Access::Execute, address_of(&CODE), FaultKind::Permission)
}

trait Shape {
    fn corners(&self) -> u64;
}

struct Polygon(u64);
struct Circle;

impl Shape for Polygon {
    fn corners(&self) -> u64 {
        self.0
    }
}

impl Shape for Circle {
    fn corners(&self) -> u64 {
        0
    }
}

fn vtables_are_readable(suite: &Suite) -> Outcome {
    let count = || {
        let shapes: [&dyn Shape; 3] = core::hint::black_box([&Polygon(3), &Circle, &Polygon(8)]);
        shapes.iter().map(|shape| shape.corners()).sum::<u64>()
    };
    expect_eq!(suite.sandbox()?.call(count, ())?, 11);
    Ok(())
}

fn null_is_unreachable(suite: &Suite) -> Outcome {
    unmapped(suite, 0)
}

fn the_first_page_is_unreachable(suite: &Suite) -> Outcome {
    unmapped(suite, PAGE_SIZE as u64 - 4)
}

fn the_lower_half_is_unreachable(suite: &Suite) -> Outcome {
    PROCESS_ADDRESSES.into_iter().try_for_each(|address| unmapped(suite, address))
}

fn a_process_is_unreachable(suite: &Suite) -> Outcome {
    let mut outcome = Ok(());
    let possible = suite.kernel.with_process_page(&mut |address| outcome = unmapped(suite, address.0));
    possible.or_else(crate::verdict::skip)?;
    outcome
}

fn addresses_that_do_not_exist_are_unreachable(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    for address in NO_ADDRESSES {
        unreachable(&mut sandbox, address, FaultKind::NonCanonical)?;
    }
    Ok(())
}

/// The first and the last address that the tables of this machine do not translate.
fn hole(suite: &Suite) -> [u64; 2] {
    let format = suite.hal.arch().format();
    let exists = |address: u64| format.root_of(VirtAddr(address)).is_some();
    let bits = (12..63).find(|&bits| !exists(1 << bits)).unwrap_or(63);
    [1 << bits, (u64::MAX << bits) - 8]
}

fn addresses_next_to_those_that_exist_are_unreachable(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let [first, last] = hole(suite);
    unreachable(&mut sandbox, first, FaultKind::NonCanonical)?;
    unreachable(&mut sandbox, last, FaultKind::NonCanonical)?;
    // And those that exist just beyond.
    unreachable(&mut sandbox, first - 8, FaultKind::Unmapped)
}

fn odd_accesses_to_no_address_are_explained(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    for address in NO_ADDRESSES.into_iter().chain([hole(suite)[0] + 0x100]).map(|address| address & !0xf) {
        for access in crate::machine::odd_accesses(address) {
            let exit = crate::probe::exit_with(&mut sandbox, access.code, address)?;
            expect_eq!(exit.reason, access.reason, "{} with {address:#x}", access.name);
        }
    }
    Ok(())
}

fn the_last_page_is_unreachable(suite: &Suite) -> Outcome {
    unmapped(suite, u64::MAX - 3)
}

fn an_access_across_a_page_end_names_the_second_page(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    // The buffer ends where its guard page begins.
    let end = sandbox.call(
        |_: u8, _: u8, buffer: &mut [u8]| address_of(buffer) + buffer.len() as u64,
        (Val(0u8), Val(0u8), Out(&mut [0; 16][..])),
    )?;
    let exit = exit_of(&mut sandbox, load_word, (Val(end - 4),))?;
    expect_eq!(exit.reason, fault(end, Access::Read, FaultKind::GuardPage));
    Ok(())
}
