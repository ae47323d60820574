//! The record of frames by itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::host::SimHost;
use super::layout::USUAL;
use super::machine::Machine;
use crate::addr::Frame;
use crate::error::Error;
use crate::record::{FrameUse, Record};

fn frame(number: u64) -> Frame {
    Frame::from_start(number << 12).unwrap()
}

/// A record on a machine of its own.
struct Bench {
    host: SimHost,
    record: Record,
}

impl Bench {
    fn new() -> Bench {
        Bench { host: SimHost(Arc::new(Machine::new(USUAL))), record: Record::new() }
    }

    fn set(&mut self, number: u64, new: FrameUse) -> Result<(), Error> {
        self.record.set(&self.host, frame(number), new)
    }

    fn get(&self, number: u64) -> FrameUse {
        self.record.get(&self.host, frame(number))
    }

    fn nodes(&self) -> usize {
        self.host.0.outstanding()
    }
}

/// Frames that share all, some or no nodes, the last ones that there can be among them.
const FRAMES: [u64; 9] = [0, 1, 2047, 2048, 1 << 20, (1 << 20) + 1, 1 << 29, 3 << 38, (1 << 40) - 1];

#[test]
fn nodes_come_and_go_with_what_is_in_them() {
    let mut bench = Bench::new();
    assert_eq!(bench.nodes(), 0);
    bench.set(5, FrameUse::None).unwrap();
    assert_eq!(bench.nodes(), 0);
    for (number, nodes) in FRAMES.into_iter().zip([4, 4, 4, 5, 7, 7, 10, 14, 17]) {
        bench.set(number, FrameUse::Private).unwrap();
        assert_eq!(bench.nodes(), nodes, "{number:#x}");
    }
    assert!(FRAMES.iter().all(|&number| bench.get(number) == FrameUse::Private));
    for other in [3, 2049, 1 << 21, 1 << 28, 1 << 39] {
        assert_eq!(bench.get(other), FrameUse::None);
    }
    for number in FRAMES {
        bench.set(number, FrameUse::Table).unwrap();
        bench.set(number, FrameUse::None).unwrap();
        bench.set(number, FrameUse::None).unwrap();
        assert_eq!(bench.get(number), FrameUse::None);
    }
    assert_eq!(bench.nodes(), 0);
}

#[test]
fn nodes_are_known_as_such() {
    let mut bench = Bench::new();
    for number in FRAMES {
        bench.set(number, FrameUse::Gate).unwrap();
    }
    let nodes = bench.host.0.taken();
    let is_node = |frame| bench.record.is_node(&bench.host, frame);
    let some = |step: usize| if cfg!(miri) { step } else { 1 };
    assert!(nodes.iter().step_by(some(6)).all(|&node| is_node(node) && !bench.record.is_free(&bench.host, node)));
    let others = (0x600..0xa00).map(frame).filter(|frame| !nodes.contains(frame));
    assert!(others.step_by(some(400)).all(|other| !is_node(other)));
    assert!(!is_node(frame(0)));
    for number in FRAMES {
        bench.set(number, FrameUse::None).unwrap();
    }
}

#[test]
fn uses_survive_their_encoding() {
    let mut bench = Bench::new();
    let counts = [1, 2, 0x3ffe, 0x3fff];
    let counted = counts.into_iter().flat_map(|count| [FrameUse::Writable(count), FrameUse::Executable(count)]);
    for purpose in counted.chain([FrameUse::Table, FrameUse::Private, FrameUse::Gate, FrameUse::None]) {
        bench.set(7, purpose).unwrap();
        assert_eq!(bench.get(7), purpose);
    }
}

#[test]
fn claims_are_counted() {
    let mut bench = Bench::new();
    let Bench { host, record } = &mut bench;
    let f = frame(9);
    for execute in [true, false] {
        assert_eq!(record.claim(host, f, execute), Ok(true));
        assert_eq!(record.claim(host, f, !execute), Ok(false));
        assert_eq!(record.claim(host, f, execute), Ok(true));
        record.unclaim(host, f);
        assert_eq!(record.claim(host, f, !execute), Ok(false));
        record.unclaim(host, f);
        record.unclaim(host, f);
        assert_eq!(record.get(host, f), FrameUse::None);
    }
    for (full, execute) in [(FrameUse::Writable(0x3fff), false), (FrameUse::Executable(0x3fff), true)] {
        // One more than can be counted is refused, not lost.
        record.set(host, f, full).unwrap();
        assert_eq!(record.claim(host, f, execute), Ok(false));
        assert_eq!(record.get(host, f), full);
    }
    for own in [FrameUse::Table, FrameUse::Private, FrameUse::Gate] {
        record.set(host, f, own).unwrap();
        assert_eq!((record.claim(host, f, false), record.claim(host, f, true)), (Ok(false), Ok(false)));
        record.unclaim(host, f);
        assert_eq!(record.get(host, f), own);
    }
    record.set(host, f, FrameUse::None).unwrap();
}

#[test]
fn a_failure_changes_nothing() {
    let mut bench = Bench::new();
    for present in [None, Some(1 << 20), Some(1 << 29), Some(0)] {
        if let Some(number) = present {
            bench.set(number, FrameUse::Table).unwrap();
        }
        let before = bench.nodes();
        for budget in 0.. {
            bench.host.0.limit_allocations(Some(budget));
            let result = bench.set(2048, FrameUse::Private);
            bench.host.0.limit_allocations(None);
            if result == Ok(()) {
                break;
            }
            assert_eq!((result, bench.nodes(), bench.get(2048)), (Err(Error::OutOfFrames), before, FrameUse::None));
        }
        bench.set(2048, FrameUse::None).unwrap();
        assert_eq!(bench.nodes(), before);
    }
    for number in [1 << 20, 1 << 29, 0] {
        bench.set(number, FrameUse::None).unwrap();
    }
}

#[test]
fn a_frame_that_is_in_use_does_not_become_a_node() {
    let mut bench = Bench::new();
    // A host that hands out a frame of ours once more, or the very frame that is being recorded.
    let own = bench.host.0.take();
    bench.set(own.number(), FrameUse::Private).unwrap();
    let node = bench.host.0.taken()[0];
    let (other, new) = (frame(1 << 30), bench.host.0.take());
    for (in_use, recorded) in [(own, other), (node, other)] {
        let before = bench.nodes();
        bench.host.0.offer(in_use);
        assert_eq!(bench.set(recorded.number(), FrameUse::Table), Err(Error::FrameInUse(in_use)));
        if in_use == own {
            bench.host.0.forget(own);
        }
        assert_eq!((bench.nodes(), bench.get(recorded.number())), (before, FrameUse::None));
        assert_eq!(bench.get(own.number()), FrameUse::Private);
    }
    bench.set(own.number(), FrameUse::None).unwrap();
    bench.host.0.offer(new);
    assert_eq!(bench.set(new.number(), FrameUse::Table), Err(Error::FrameInUse(new)));
    bench.host.0.forget(new);
}

#[test]
fn it_does_what_a_map_does() {
    let mut bench = Bench::new();
    let mut model: BTreeMap<u64, FrameUse> = BTreeMap::new();
    let mut random = super::model::Random(7);
    for _ in 0..if cfg!(miri) { 300 } else { 20_000 } {
        let number = FRAMES[random.below(FRAMES.len())] ^ random.below(4) as u64;
        let new = [FrameUse::None, FrameUse::Table, FrameUse::Writable(3)][random.below(3)];
        bench.set(number, new).unwrap();
        model.insert(number, new);
        let other = FRAMES[random.below(FRAMES.len())] ^ random.below(4) as u64;
        assert_eq!(bench.get(other), model.get(&other).copied().unwrap_or(FrameUse::None));
    }
    for number in model.keys() {
        bench.set(*number, FrameUse::None).unwrap();
    }
    assert_eq!(bench.nodes(), 0);
}
