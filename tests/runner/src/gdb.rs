//! The client's side of QEMU's debugger stub, as much of it as stops a guest, looks and goes on.
//!
//! One CPU. The stub works on a stopped guest only, so each method but [`Gdb::go_on`] and [`Gdb::step`] expects one.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::machine::Machine;
use crate::moved::Moved;
use crate::packet::{Decoder, Piece, encode, hex, number, unhex};

/// How long QEMU may take to open its socket.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(5);

/// Why the guest no longer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// A breakpoint, or the step is done.
    Stopped,
    /// QEMU has ended.
    Ended,
}

/// What arrives during a single step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pending {
    /// Nothing: it waits.
    Waits,
    /// What is pending, instead of the instruction.
    Arrives,
}

/// A connection to the stub of a stopped guest.
#[derive(Debug)]
pub(crate) struct Gdb {
    stream: UnixStream,
    decoder: Decoder,
    machine: Machine,
    physical: bool,
    stepping: Option<Pending>,
    moved: Moved,
}

fn lost(error: impl std::fmt::Display) -> Error {
    Error::new(format!("the connection to QEMU's debugger stub is lost: {error}"))
}

impl Gdb {
    /// Connects to the socket at `path`, as soon as it is there.
    pub(crate) fn connect(path: &Path, machine: Machine) -> Result<Self, Error> {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline => return Err(lost(error)),
                Err(_) => thread::sleep(LOOK),
            }
        };
        let mut gdb = Self {
            stream,
            decoder: Decoder::default(),
            machine,
            physical: false,
            stepping: None,
            moved: Moved::default(),
        };
        // The stub gives single registers only to those who have read the description.
        gdb.ask("qSupported:xmlRegisters=i386,arm")?;
        gdb.ask("qXfer:features:read:target.xml:0,ffb")?;
        Ok(gdb)
    }

    fn send(&mut self, body: &str) -> Result<(), Error> {
        let packet = encode(body.as_bytes());
        loop {
            self.stream.write_all(&packet).map_err(lost)?;
            match self.piece()? {
                Some(Piece::Acknowledged) => return Ok(()),
                Some(Piece::Refused) => {}
                other => return Err(lost(format!("{body} was answered with {other:?}"))),
            }
        }
    }

    /// What comes next; `None` at the end of the stream.
    fn piece(&mut self) -> Result<Option<Piece>, Error> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(piece) = self.decoder.next() {
                return Ok(Some(piece));
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(length) => self.decoder.push(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(lost(error)),
            }
        }
    }

    fn receive(&mut self) -> Result<Option<Vec<u8>>, Error> {
        loop {
            match self.piece()? {
                Some(Piece::Packet(body)) => {
                    // At the guest's end nobody may be there any more to read it.
                    let _ = self.stream.write_all(b"+");
                    return Ok(Some(body));
                }
                Some(Piece::Damaged) => self.stream.write_all(b"-").map_err(lost)?,
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    fn ask(&mut self, body: &str) -> Result<Vec<u8>, Error> {
        self.send(body)?;
        self.receive()?.ok_or_else(|| lost("it was closed"))
    }

    fn tell(&mut self, body: &str) -> Result<(), Error> {
        match self.ask(body)?.as_slice() {
            b"OK" => Ok(()),
            other => Err(Error::new(format!(
                "QEMU's debugger stub answers '{}' to '{body}'",
                String::from_utf8_lossy(other)
            ))),
        }
    }

    fn resume(&mut self, how: &str) -> Result<Stop, Error> {
        self.send(how)?;
        loop {
            return match self.receive()? {
                None => Ok(Stop::Ended),
                Some(body) => match body.first() {
                    Some(b'T' | b'S') => Ok(Stop::Stopped),
                    Some(b'W' | b'X') => Ok(Stop::Ended),
                    // The guest's output, in some configurations.
                    Some(b'O') => continue,
                    _ => Err(lost(format!("'{}' is no reason to stop", String::from_utf8_lossy(&body)))),
                },
            };
        }
    }

    /// Lets the guest run until it stops. A breakpoint at the next instruction stops it there.
    pub(crate) fn go_on(&mut self) -> Result<Stop, Error> {
        self.resume("c")
    }

    /// One instruction, whatever breakpoint is on it; or, if something pending arrives, none.
    pub(crate) fn step(&mut self, pending: Pending) -> Result<Stop, Error> {
        if self.stepping != Some(pending) {
            // QEMU's mask: 1 for a step at all, 2 and 4 to hold interrupts and timers back.
            self.tell(match pending {
                Pending::Waits => "Qqemu.sstep=7",
                Pending::Arrives => "Qqemu.sstep=1",
            })?;
            self.stepping = Some(pending);
        }
        self.resume("s")
    }

    /// From here on all addresses of instructions are those of the symbols, wherever the code runs.
    pub(crate) fn set_moved(&mut self, moved: Moved) {
        self.moved = moved;
    }

    pub(crate) fn insert(&mut self, address: u64) -> Result<(), Error> {
        self.tell(&format!("Z0,{:x},{}", self.moved.to(address), self.breakpoint_size()))
    }

    pub(crate) fn remove(&mut self, address: u64) -> Result<(), Error> {
        self.tell(&format!("z0,{:x},{}", self.moved.to(address), self.breakpoint_size()))
    }

    fn breakpoint_size(&self) -> u32 {
        match self.machine {
            Machine::Q35 => 1,
            Machine::Virt => 4,
        }
    }

    fn register(&mut self, index: usize) -> Result<u64, Error> {
        let answer = self.ask(&format!("p{index:x}"))?;
        word(&answer).ok_or_else(|| Error::new(format!("QEMU's debugger stub doesn't show register {index}")))
    }

    /// The program counter.
    pub(crate) fn pc(&mut self) -> Result<u64, Error> {
        let address = self.register(match self.machine {
            Machine::Q35 => 16,
            Machine::Virt => 32,
        })?;
        Ok(self.moved.from(address))
    }

    /// The stack pointer.
    pub(crate) fn sp(&mut self) -> Result<u64, Error> {
        self.register(match self.machine {
            Machine::Q35 => 7,
            Machine::Virt => 31,
        })
    }

    /// The first argument of the function that is about to begin.
    pub(crate) fn argument(&mut self) -> Result<u64, Error> {
        self.register(match self.machine {
            Machine::Q35 => 5,
            Machine::Virt => 0,
        })
    }

    fn choose(&mut self, physical: bool) -> Result<(), Error> {
        if self.physical != physical {
            self.tell(&format!("Qqemu.PhyMemMode:{}", u8::from(physical)))?;
            self.physical = physical;
        }
        Ok(())
    }

    fn read(&mut self, address: u64, length: usize) -> Result<Vec<u8>, Error> {
        /// The stub's buffer holds this much for certain.
        const MOST: usize = 1024;
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let count = (length - bytes.len()).min(MOST);
            let answer = self.ask(&format!("m{:x},{count:x}", address + bytes.len() as u64))?;
            match unhex(&answer).filter(|part| part.len() == count) {
                Some(part) => bytes.extend(part),
                None => return Err(Error::new(format!("there is no memory at {address:#x}"))),
            }
        }
        Ok(bytes)
    }

    /// The word at an address that the tables in force map.
    pub(crate) fn load(&mut self, address: u64) -> Result<u64, Error> {
        self.choose(false)?;
        Ok(words(&self.read(address, 8)?)[0])
    }

    /// `count` words from a physical address on.
    pub(crate) fn load_physical(&mut self, address: u64, count: usize) -> Result<Vec<u64>, Error> {
        self.choose(true)?;
        Ok(words(&self.read(address, count * 8)?))
    }

    /// Writes at a physical address, a device's registers included: all bytes at once.
    pub(crate) fn store_physical(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.choose(true)?;
        self.tell(&format!("M{address:x},{:x}:{}", bytes.len(), hex(bytes)))
    }

    /// Has QEMU's monitor carry out `command`, which must print nothing.
    pub(crate) fn monitor(&mut self, command: &str) -> Result<(), Error> {
        self.send(&format!("qRcmd,{}", hex(command.as_bytes())))?;
        let mut said = Vec::new();
        loop {
            match self.receive()?.as_deref() {
                Some(b"OK") => break,
                Some([b'O', text @ ..]) => said.extend(unhex(text).unwrap_or_default()),
                other => return Err(lost(format!("the monitor answers {other:?} to '{command}'"))),
            }
        }
        match String::from_utf8_lossy(&said).trim() {
            "" => Ok(()),
            said => Err(Error::new(format!("QEMU's monitor says to '{command}': {said}"))),
        }
    }

    /// Ends QEMU.
    pub(crate) fn kill(&mut self) {
        // If it has ended already, so much the better.
        let _ = self.stream.write_all(&encode(b"k"));
    }
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|word| word.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))).collect()
}

/// A register's value: bytes in hexadecimal, the lowest first.
fn word(answer: &[u8]) -> Option<u64> {
    let bytes = unhex(answer).filter(|bytes| (1..=8).contains(&bytes.len()))?;
    number(hex(&bytes.into_iter().rev().collect::<Vec<_>>()).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stub that says `script`, whatever it is asked.
    fn stub(script: Vec<u8>) -> Gdb {
        let (stream, mut other) = UnixStream::pair().expect("a pair of sockets");
        thread::spawn(move || {
            let _ = other.write_all(&script);
            // Keeps the connection until the client's end goes.
            let _ = std::io::copy(&mut other, &mut std::io::sink());
        });
        Gdb {
            stream,
            decoder: Decoder::default(),
            machine: Machine::Q35,
            physical: false,
            stepping: None,
            moved: Moved::default(),
        }
    }

    fn script(packets: &[&str]) -> Vec<u8> {
        packets.iter().flat_map(|body| [b"+".to_vec(), encode(body.as_bytes())].concat()).collect()
    }

    #[test]
    fn registers_and_memory_come_lowest_byte_first() {
        let mut gdb = stub(script(&["8877665544332211", "0102030405060708"]));
        assert_eq!(gdb.pc(), Ok(0x1122_3344_5566_7788));
        assert_eq!(gdb.load(0x1000), Ok(0x0807_0605_0403_0201));
    }

    #[test]
    fn a_refusal_is_an_error() {
        assert!(stub(script(&["E14"])).insert(0x1000).is_err());
        assert!(stub(script(&[""])).pc().is_err());
        assert!(stub(script(&["E14"])).load(0).is_err());
        assert!(stub(script(&["0102"])).load(0).is_err());
    }

    #[test]
    fn a_packet_that_was_refused_is_sent_again() {
        let mut gdb = stub([b"-".to_vec(), script(&["OK"])].concat());
        assert_eq!(gdb.insert(0x1000), Ok(()));
    }

    #[test]
    fn each_way_to_stop_is_known() {
        assert_eq!(stub(script(&["T05thread:01;"])).go_on(), Ok(Stop::Stopped));
        assert_eq!(stub(script(&["W21"])).go_on(), Ok(Stop::Ended));
        assert!(stub(script(&["E01"])).go_on().is_err());
    }

    #[test]
    fn the_monitor_is_silent_when_all_is_well() {
        assert_eq!(stub(script(&["OK"])).monitor("nmi"), Ok(()));
        let text = format!("O{}", hex(b"unknown command\r\n"));
        let mut gdb = stub([script(&[&text]), encode(b"OK")].concat());
        assert!(gdb.monitor("nmj").is_err_and(|error| error.to_string().contains("unknown command")));
    }
}
