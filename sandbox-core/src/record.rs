//! The HAL's own record of frames: which are its tables, which are sandboxes' memory, which the gate, and which of the
//! host's are granted for writing or for execution.
//!
//! The host cannot tell a sandbox's buffer from its own memory once it has given the frame away, and a direct map reaches
//! all of them: this record is what refuses such a grant, and what keeps a frame from being writable in one view and
//! executable in another. It is a radix tree kept in frames, so no heap is needed; nodes go back to the host
//! when nothing is recorded in them. What must hold: a node's population, kept in the low bits of the entry that points to
//! it, is the number of its entries that are not zero.

use crate::addr::{Frame, PAGE_SIZE};
use crate::error::Error;
use crate::format::ENTRIES;
use crate::host::Host;

/// What a frame is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FrameUse {
    /// Nothing the HAL knows of.
    None,
    /// The host's, writable in so many views.
    Writable(u16),
    /// The host's, executable in so many grants.
    Executable(u16),
    /// A page table of the HAL's.
    Table,
    /// A sandbox's stack, buffer or saved registers.
    Private,
    /// The gate's data.
    Gate,
}

const COUNT: u16 = 0x3fff;
const EXECUTABLE: u16 = 0x4000;
const TABLE: u16 = 0x8000;
const PRIVATE: u16 = 0x8001;
const GATE: u16 = 0x8002;

impl FrameUse {
    fn encode(self) -> u16 {
        match self {
            FrameUse::None => 0,
            FrameUse::Writable(count) => count,
            FrameUse::Executable(count) => EXECUTABLE | count,
            FrameUse::Table => TABLE,
            FrameUse::Private => PRIVATE,
            FrameUse::Gate => GATE,
        }
    }

    fn decode(word: u16) -> FrameUse {
        match word {
            0 => FrameUse::None,
            TABLE => FrameUse::Table,
            PRIVATE => FrameUse::Private,
            GATE => FrameUse::Gate,
            word if word & EXECUTABLE != 0 => FrameUse::Executable(word & COUNT),
            word => FrameUse::Writable(word & COUNT),
        }
    }
}

/// Uses recorded in one leaf node.
const LEAF_BITS: u32 = 11;
const NODE_BITS: u32 = 9;
/// Levels of nodes, leaves included.
const LEVELS: usize = 4;
/// Frame numbers have 40 bits (52 bits of physical address); what the levels leave over is the top array's.
const TOP: usize = 1 << (40 - LEAF_BITS - NODE_BITS * (LEVELS as u32 - 1));
const POPULATION: u64 = PAGE_SIZE as u64 - 1;

const _: () = assert!(size_of::<u16>() << LEAF_BITS == PAGE_SIZE && 1 << NODE_BITS == ENTRIES && TOP == 4);

/// The tree. An entry is the physical address of a node plus that node's population, or zero.
pub(crate) struct Record {
    top: [u64; TOP],
    nodes: Filter,
}

/// How many nodes there are of each hash: a quick way to say that a frame is none. A count that has reached its end stays.
struct Filter([u8; 1 << FILTER_BITS]);

const FILTER_BITS: u32 = 8;

impl Filter {
    fn count(&mut self, node: Frame) -> &mut u8 {
        &mut self.0[Self::hash(node)]
    }

    /// Fibonacci hashing: the upper bits of a product with 2^64 divided by the golden ratio.
    fn hash(node: Frame) -> usize {
        (node.number().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - FILTER_BITS)) as usize
    }

    fn add(&mut self, node: Frame) {
        let count = self.count(node);
        *count = count.saturating_add(1);
    }

    fn remove(&mut self, node: Frame) {
        let count = self.count(node);
        if *count != u8::MAX {
            *count -= 1;
        }
    }

    fn may_contain(&self, node: Frame) -> bool {
        self.0[Self::hash(node)] != 0
    }
}

/// The entries passed on the way to a frame's leaf, top first.
type Path = [*mut u64; LEVELS];

impl Record {
    pub(crate) const fn new() -> Record {
        Record { top: [0; TOP], nodes: Filter([0; 1 << FILTER_BITS]) }
    }

    fn node(host: &impl Host, entry: u64) -> *mut u64 {
        host.frame_pointer(Frame::containing(entry)).cast()
    }

    fn index(number: u64, level: usize) -> usize {
        let shift = LEAF_BITS + NODE_BITS * (LEVELS - 1 - level) as u32;
        (number >> shift) as usize & if level == 0 { TOP - 1 } else { ENTRIES - 1 }
    }

    fn slot(number: u64) -> usize {
        number as usize & ((1 << LEAF_BITS) - 1)
    }

    /// The way to `frame`'s use, made where it is missing if `create`.
    fn path(&mut self, host: &impl Host, frame: Frame, create: bool) -> Result<Option<(Path, *mut u16)>, Error> {
        let mut path: Path = [core::ptr::null_mut(); LEVELS];
        path[0] = &raw mut self.top[Self::index(frame.number(), 0)];
        for level in 0..LEVELS {
            // SAFETY: `path[level]` points into `self.top` or into a node, which is a live frame of ours, at an index below its
            // number of entries; `self` is borrowed mutably, so nobody else uses the tree.
            unsafe {
                if *path[level] == 0 {
                    if !create {
                        return Ok(None);
                    }
                    let node = match host.allocate_frame() {
                        Some(node) if self.is_free(host, node) && node != frame => node,
                        refused => {
                            prune(host, &mut self.nodes, &path, level);
                            return Err(refused.map_or(Error::OutOfFrames, Error::FrameInUse));
                        }
                    };
                    host.frame_pointer(node).write_bytes(0, PAGE_SIZE);
                    self.nodes.add(node);
                    *path[level] = node.start();
                    if level > 0 {
                        *path[level - 1] += 1;
                    }
                }
                let node = Self::node(host, *path[level]);
                if level + 1 < LEVELS {
                    path[level + 1] = node.add(Self::index(frame.number(), level + 1));
                } else {
                    return Ok(Some((path, node.cast::<u16>().add(Self::slot(frame.number())))));
                }
            }
        }
        Ok(None)
    }

    /// What `frame` is used for.
    pub(crate) fn get(&self, host: &impl Host, frame: Frame) -> FrameUse {
        let mut entry = self.top[Self::index(frame.number(), 0)];
        for level in 1..=LEVELS {
            if entry == 0 {
                return FrameUse::None;
            }
            let node = Self::node(host, entry);
            // SAFETY: a node is a live frame of entries, or of uses at the last level; both indices are below their number.
            unsafe {
                if level == LEVELS {
                    return FrameUse::decode(*node.cast::<u16>().add(Self::slot(frame.number())));
                }
                entry = *node.add(Self::index(frame.number(), level));
            }
        }
        FrameUse::None
    }

    /// Whether the HAL does not use `frame` for anything, the record itself included.
    pub(crate) fn is_free(&self, host: &impl Host, frame: Frame) -> bool {
        self.get(host, frame) == FrameUse::None && !self.is_node(host, frame)
    }

    /// Records a new use of `frame`. Fails, and changes nothing, when memory for a node is lacking.
    pub(crate) fn set(&mut self, host: &impl Host, frame: Frame, new: FrameUse) -> Result<(), Error> {
        let Some((path, slot)) = self.path(host, frame, new != FrameUse::None)? else {
            return Ok(());
        };
        // SAFETY: both pointers lead into live nodes; see `path`.
        unsafe {
            match (*slot != 0, new != FrameUse::None) {
                (false, true) => *path[LEVELS - 1] += 1,
                (true, false) => *path[LEVELS - 1] -= 1,
                _ => {}
            }
            *slot = new.encode();
        }
        prune(host, &mut self.nodes, &path, LEVELS);
        Ok(())
    }

    /// Counts one more view that writes to (or, with `execute`, executes) a frame of the host's. `Ok(false)` if that would make
    /// it writable and executable, or the frame is the HAL's.
    pub(crate) fn claim(&mut self, host: &impl Host, frame: Frame, execute: bool) -> Result<bool, Error> {
        let new = match (self.get(host, frame), execute) {
            (FrameUse::None, true) => FrameUse::Executable(1),
            (FrameUse::None, false) => FrameUse::Writable(1),
            (FrameUse::Executable(count), true) if count < COUNT => FrameUse::Executable(count + 1),
            (FrameUse::Writable(count), false) if count < COUNT => FrameUse::Writable(count + 1),
            _ => return Ok(false),
        };
        self.set(host, frame, new).map(|()| true)
    }

    /// Takes one [`claim`](Record::claim) back.
    pub(crate) fn unclaim(&mut self, host: &impl Host, frame: Frame) {
        let new = match self.get(host, frame) {
            FrameUse::Executable(count) if count > 1 => FrameUse::Executable(count - 1),
            FrameUse::Writable(count) if count > 1 => FrameUse::Writable(count - 1),
            FrameUse::Executable(_) | FrameUse::Writable(_) => FrameUse::None,
            other => other,
        };
        // Never fails: the path exists, or there is nothing to take back.
        let _ = self.set(host, frame, new);
    }

    /// Whether `frame` is one of the tree's own nodes.
    pub(crate) fn is_node(&self, host: &impl Host, frame: Frame) -> bool {
        fn search(host: &impl Host, entry: u64, level: usize, frame: Frame) -> bool {
            if entry == 0 {
                return false;
            }
            if Frame::containing(entry) == frame {
                return true;
            }
            let node = Record::node(host, entry);
            // SAFETY: a node above the leaves is a live frame of `ENTRIES` entries.
            level + 1 < LEVELS && (0..ENTRIES).any(|i| search(host, unsafe { *node.add(i) }, level + 1, frame))
        }
        self.nodes.may_contain(frame) && self.top.iter().any(|&entry| search(host, entry, 0, frame))
    }
}

/// Gives back the nodes of `path` above index `below` that have become empty, deepest first.
fn prune(host: &impl Host, nodes: &mut Filter, path: &Path, below: usize) {
    for level in (0..below).rev() {
        // SAFETY: as in `Record::path`, which made `path` and whose tree is still borrowed mutably; an entry with population 0
        // points to a node that nothing points into any more, so the frame, which came from `allocate_frame`, can go
        // back. Its bytes are all zero, as empty nodes are.
        unsafe {
            let entry = *path[level];
            if entry & POPULATION != 0 {
                return;
            }
            *path[level] = 0;
            host.free_frame(Frame::containing(entry));
            nodes.remove(Frame::containing(entry));
            if level > 0 {
                *path[level - 1] -= 1;
            }
        }
    }
}
