//! QEMU's log of executed translation blocks (`-d exec,nochain`), one instruction in each block: which instructions the guest
//! executed.

use std::io::{self, BufRead};

use crate::moved::Moved;
use crate::packet::number;

/// A block begins to run: `Trace 0: 0x7f.. [cs base/address/flags/cflags] symbol`.
const STARTED: &[u8] = b"Trace ";
/// The block before did not: `Stopped execution of TB chain before 0x7f.. [address] symbol`.
const STOPPED: &[u8] = b"Stopped execution of TB chain before ";

/// The addresses of the instructions that were executed, in order, as the symbols have them.
pub(crate) fn read(mut log: impl BufRead, moved: &Moved) -> io::Result<Vec<u64>> {
    let mut executed = Vec::new();
    let mut line = Vec::new();
    while log.read_until(b'\n', &mut line)? > 0 {
        match event(&line) {
            Some(Event::Started(address)) => executed.push(address),
            Some(Event::Stopped(address)) if executed.last() == Some(&address) => _ = executed.pop(),
            Some(Event::Stopped(_)) | None => {}
        }
        line.clear();
    }
    executed.iter_mut().for_each(|address| *address = moved.from(*address));
    Ok(executed)
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Started(u64),
    Stopped(u64),
}

fn event(line: &[u8]) -> Option<Event> {
    let inside = |line: &'_ [u8]| {
        let start = line.iter().position(|byte| *byte == b'[')? + 1;
        let end = line[start..].iter().position(|byte| *byte == b']')? + start;
        Some((start, end))
    };
    let (start, end) = inside(line)?;
    let fields = &line[start..end];
    if line.starts_with(STARTED) {
        return fields.split(|byte| *byte == b'/').nth(1).and_then(number).map(Event::Started);
    }
    line.starts_with(STOPPED).then(|| number(fields).map(Event::Stopped))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executed(log: &str) -> Vec<u64> {
        read(log.as_bytes(), &Moved::default()).expect("bytes in memory")
    }

    #[test]
    fn each_block_is_an_instruction() {
        let log = "Trace 0: 0x7f62b4000100 [0000000000000000/ffffffff80213000/00c0c2b4/ff021201] sandbox_gate_start\n\
                   Trace 0: 0x7f62b4000280 [0000000000000000/ffffffff80213001/00c0c2b4/ff021201] \n";
        assert_eq!(executed(log), [0xffff_ffff_8021_3000, 0xffff_ffff_8021_3001]);
    }

    #[test]
    fn a_block_that_was_left_at_once_does_not_count() {
        let log = "Trace 0: 0x7f00 [0/1000/0/0] \n\
                   Trace 0: 0x7f00 [0/1004/0/0] \n\
                   Stopped execution of TB chain before 0x7f00 [0000000000001004] \n\
                   Trace 0: 0x7f00 [0/2000/0/0] \n";
        assert_eq!(executed(log), [0x1000, 0x2000]);
    }

    #[test]
    fn other_lines_are_not_instructions() {
        for log in
            ["", "\n", "Trace 0: 0x7f00\n", "Trace 0: [1]\n", "Trace 0: [0/xyz/0]\n", "IN: [0/1000/0]\n", "Trace [0/1"]
        {
            assert_eq!(executed(log), [0; 0], "{log}");
        }
        assert_eq!(executed("Stopped execution of TB chain before 0x7f00 [1004]\n"), [0; 0]);
    }
}
