//! Typed calls: values, inputs, outputs, results, and what becomes of them when the code misbehaves.

use super::audit::audit;
use super::layout::{LAYOUTS, USUAL};
use super::processor::{cpu, interrupts_masked, next, refused};
use super::rig::Rig;
use crate::arch::Trap;
use crate::argument::{In, InOut, Out, Val};
use crate::error::Error;
use crate::exit::{ExitReason, FaultKind, MemoryFault};
use crate::permissions::Access;
use crate::run::Progress;
use crate::sandbox::CallError;
use crate::window::Placement;

const PLACEMENTS: [Placement; 2] = [Placement::End, Placement::Start];

#[derive(Clone, Copy, Debug, PartialEq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
struct Header {
    width: u32,
    height: u32,
    length: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

#[derive(Clone, Copy, Debug, PartialEq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C, align(4096))]
struct Whole([u8; 4096]);

fn parse(text: &str, numbers: &[u32], scale: u64, header: &mut Header, counters: &mut [u16]) -> Header {
    assert_eq!(*header, Header { width: 0, height: 0, length: 0 });
    header.width = numbers.iter().sum();
    header.height = text.chars().count() as u32;
    header.length = text.len() as u64 * scale;
    counters.iter_mut().for_each(|counter| *counter += 1);
    *header
}

#[test]
fn everything_arrives_and_comes_back() {
    for &layout in LAYOUTS {
        for placement in PLACEMENTS {
            let rig = Rig::new(layout);
            let mut sandbox = rig.hal().sandbox_with(rig.config().placement(placement)).unwrap();
            for round in 0..if cfg!(miri) { 2 } else { 3 } {
                let numbers: std::vec::Vec<u32> = (0..1500 * round).collect();
                let mut header = Header { width: 9, height: 9, length: 9 };
                let mut counters = [round as u16; 5];
                let arguments = (In("grüße"), In(&numbers[..]), Val(3u64), Out(&mut header), InOut(&mut counters[1..]));
                let result: Header = sandbox.call(parse, arguments).unwrap();
                assert_eq!(result, Header { width: numbers.iter().sum(), height: 5, length: 21 });
                assert_eq!(header, result);
                let round = round as u16;
                assert_eq!(counters, [round, round + 1, round + 1, round + 1, round + 1]);
            }
            audit(&rig, &[&sandbox]);
        }
    }
}

#[test]
fn alignment_is_kept_at_both_ends() {
    for placement in PLACEMENTS {
        let rig = Rig::new(USUAL);
        let mut sandbox = rig.hal().sandbox_with(rig.config().placement(placement)).unwrap();
        let aligned = |line: &Line, lines: &[Line], whole: &Whole, value: Line, wide: u128, out: &mut Whole| {
            out.0 = whole.0;
            let addresses = [(line as *const Line).addr(), lines.as_ptr().addr(), (&raw const value).addr()];
            (addresses.iter().all(|address| address.is_multiple_of(64))
                && (whole as *const Whole).addr().is_multiple_of(4096)
                && (&raw const wide).addr().is_multiple_of(16)) as u8
                + value.0[63]
                + lines[2].0[0]
                + wide as u8
        };
        let mut out = std::boxed::Box::new(Whole([0; 4096]));
        let whole = std::boxed::Box::new(Whole([0x77; 4096]));
        let arguments = (
            In(&Line([1; 64])),
            In(&[Line([2; 64]); 3][..]),
            In(&*whole),
            Val(Line([3; 64])),
            Val(4u128),
            Out(&mut *out),
        );
        let sum: u8 = sandbox.call(aligned, arguments).unwrap();
        assert_eq!((sum, *out == *whole), (1 + 3 + 2 + 4, true));
    }
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn empty_buffers_are_no_trouble() {
    for &layout in LAYOUTS {
        for placement in PLACEMENTS {
            let rig = Rig::new(layout);
            let mut sandbox = rig.hal().sandbox_with(rig.config().placement(placement)).unwrap();
            let lengths = |a: &[u64], b: &mut [u8], c: &str, d: &(), e: &[u8; 0]| {
                b.fill(1);
                let _ = d;
                (a.len() + b.len() + c.len() + e.len()) as u64
            };
            let empty = || (In(&[0u64; 0][..]), In(""), In(&()), In(&[0u8; 0]));
            let (a, c, d, e) = empty();
            let none: u64 = sandbox.call(lengths, (a, Out(&mut [0u8; 0][..]), c, d, e)).unwrap();
            let (_, c, d, e) = empty();
            let mut three = [0u8; 3];
            let some: u64 = sandbox.call(lengths, (In(&[0u64; 2][..]), Out(&mut three[..]), c, d, e)).unwrap();
            let (a, c, d, e) = empty();
            let again: u64 = sandbox.call(lengths, (a, Out(&mut [0u8; 0][..]), c, d, e)).unwrap();
            assert_eq!((none, some, again, three), (0, 5, 0, [1; 3]));
        }
    }
}

#[test]
fn data_lies_next_to_its_guard_page() {
    for placement in PLACEMENTS {
        let rig = Rig::new(USUAL);
        let mut sandbox = rig.hal().sandbox_with(rig.config().placement(placement)).unwrap();
        for len in [1, 4095, 4096, 4097, 9000].into_iter().step_by(if cfg!(miri) { 3 } else { 1 }) {
            next(move |guest| {
                let (address, found) = guest.part(0)?;
                assert_eq!(found, len);
                let (outside, inside) = match placement {
                    Placement::End => (address + len, address + len - 1),
                    Placement::Start => (address - 1, address),
                };
                guest.store(inside, &[1])?;
                guest.store(outside, &[1])?;
                Ok(Trap::Returned)
            });
            let mut data = std::vec![0u8; len as usize];
            match sandbox.call(|_: &mut [u8]| (), (InOut(&mut data[..]),)) {
                Err(CallError::Exit(exit)) => assert!(matches!(
                    exit.reason,
                    ExitReason::MemoryFault(MemoryFault { kind: FaultKind::GuardPage, access: Access::Write, .. })
                )),
                other => panic!("{other:?}"),
            }
            assert_eq!(data, std::vec![0u8; len as usize], "an output changed although the call failed");
        }
    }
}

#[test]
fn the_rest_of_a_buffers_pages_has_nothing_of_the_hosts() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    next(|guest| {
        let (address, len) = guest.part(0)?;
        let mut page = [0xff; 4096];
        guest.load(address & !0xfff, &mut page)?;
        assert!(page[..4096 - len as usize].iter().all(|&byte| byte == 0));
        assert_eq!(page[4096 - len as usize..], [9; 10]);
        let mut stack = [0xff; 4096];
        guest.load(guest.start().stack.0 & !0xfff, &mut stack)?;
        let used = (guest.start().argument.0 & 0xfff) as usize;
        assert!(stack[..used].iter().all(|&byte| byte == 0));
        Ok(Trap::Returned)
    });
    sandbox.call(|_: &[u8]| (), (In(&[9u8; 10][..]),)).unwrap();
}

#[test]
fn outputs_change_on_return_only() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    let write = |guest: &mut super::processor::Guest<'_>, value: u8| {
        let (address, len) = guest.part(0)?;
        guest.store(address, &std::vec![value; len as usize])
    };
    let mut data = [1u8; 5000];
    for (value, trap) in [(2, Trap::HostCall(1)), (3, Trap::Fault)] {
        next(move |guest| {
            write(guest, value)?;
            if trap == Trap::Fault { Err(refused(0x666, Access::Read)) } else { Ok(trap) }
        });
        assert!(sandbox.call(|_: &mut [u8; 5000]| (), (Out(&mut data),)).is_err());
        assert_eq!(data, [1; 5000]);
    }
    // A suspended run is dropped.
    next(move |guest| write(guest, 4).map(|()| Trap::Interrupt(1)));
    let run = sandbox.start(|_: &mut [u8; 5000]| (), (Out(&mut data),)).unwrap();
    match run.step().unwrap() {
        Progress::Suspended(run) => drop(run),
        _ => panic!(),
    }
    assert_eq!(data, [1; 5000]);
    // What an earlier call left in the buffer is not an output of the next one.
    next(|_| Ok(Trap::Returned));
    sandbox.call(|_: &mut [u8; 5000]| (), (Out(&mut data),)).unwrap();
    assert_eq!(data, [0; 5000]);
    next(move |guest| write(guest, 5).map(|()| Trap::Returned));
    sandbox.call(|_: &mut [u8; 5000]| (), (InOut(&mut data),)).unwrap();
    assert_eq!(data, [5; 5000]);
    audit(&rig, &[&sandbox]);
}

#[test]
fn an_input_is_a_copy() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    let data = [1u8; 100];
    next(|guest| {
        let (address, len) = guest.part(0)?;
        guest.store(address, &std::vec![7; len as usize])?;
        // Nor does a sandbox that overwrites what it was told change where the host looks.
        guest.store(guest.start().argument.0, &[0xff; 128])?;
        Ok(Trap::Returned)
    });
    let mut out = [3u8; 10];
    sandbox.call(|_: &[u8; 100], _: &mut [u8; 10]| (), (In(&data), Out(&mut out))).unwrap();
    assert_eq!((data, out), ([1; 100], [0; 10]));
}

#[test]
fn results_are_what_the_sandbox_left() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    assert_eq!(sandbox.call(|a: u64, b: u64| a.wrapping_mul(b), (Val(6u64), Val(7u64))), Ok(42));
    let large: [u8; 1024] = sandbox.call(|byte: u8| [byte; 1024], (Val(7u8),)).unwrap();
    assert_eq!(large, [7; 1024]);
    assert_eq!(sandbox.call(|| Line([1; 64]), ()), Ok(Line([1; 64])));
    sandbox.call(|| (), ()).unwrap();
    let eight = (Val(1u8), Val(2u8), Val(3u8), Val(4u8), Val(5u8), Val(6u8), Val(7u8), Val(8u8));
    let sum = |a, b, c, d, e, f, g, h| -> u8 { a + 2 * b + 3 * c + 4 * d + e + f + g + h };
    assert_eq!(sandbox.call(sum, eight), Ok(1 + 4 + 9 + 16 + 5 + 6 + 7 + 8));
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn interrupts_are_forwarded_and_the_run_goes_on() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    next(|_| Ok(Trap::Interrupt(11)));
    next(|_| Ok(Trap::Again));
    next(|_| Ok(Trap::Interrupt(12)));
    assert_eq!(sandbox.call(|| 5u32, ()), Ok(5));
    assert_eq!(cpu(|cpu| (cpu.forwarded.clone(), cpu.entered)), ([11, 12].into(), 4));
    assert!(!interrupts_masked());
}

#[test]
fn a_run_is_made_of_steps() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    let mut out = 0u32;
    next(|_| Ok(Trap::Interrupt(11)));
    let run = sandbox.start(|out: &mut u32| *out = 5, (Out(&mut out),)).unwrap();
    assert_eq!(cpu(|cpu| cpu.entered), 0);
    let Progress::Suspended(run) = run.step().unwrap() else { panic!() };
    let Progress::Returned(()) = run.step().unwrap() else { panic!() };
    assert_eq!(out, 5);
    // Runs that are never stepped leave nothing behind either.
    let _abandoned = sandbox.start(|out: &mut u32| *out = 6, (Out(&mut out),)).unwrap();
    assert_eq!((sandbox.call(|| 1u8, ()), out), (Ok(1), 5));
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn a_cpu_that_was_not_started_enters_nothing() {
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    for index in [1, 3, 4095, 4096, usize::MAX] {
        cpu(|cpu| cpu.index = index);
        assert_eq!(sandbox.call(|| (), ()), Err(CallError::Setup(Error::CpuNotStarted(index))));
        assert!(!interrupts_masked());
    }
    cpu(|cpu| cpu.index = 0);
    sandbox.call(|| (), ()).unwrap();
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn messages_name_what_went_wrong() {
    use std::string::ToString;
    let rig = Rig::new(USUAL);
    let mut sandbox = rig.sandbox();
    next(|guest| {
        guest.registers.at = 0x4000;
        Err(refused(0x1000, Access::Write))
    });
    let error = sandbox.call(|| (), ()).unwrap_err();
    assert_eq!(error.to_string(), "memory fault: write at 0x1000: not mapped in the sandbox (instruction at 0x4000)");
    let error = super::rig::grant(&mut sandbox, rig.data(3), crate::Permissions::READ).unwrap_err();
    assert!(error.to_string().contains(&std::format!("{}", rig.data(3).start().start())));
}
