//! Packets of the GDB remote protocol ("Debugging with GDB", appendix E.1): `$body#checksum`, with `+` and `-` between.

/// The bytes that mean something in a packet, and the one that stands before them when they do not.
const ESCAPED: [u8; 4] = [b'$', b'#', b'}', b'*'];
const ESCAPE: u8 = b'}';
/// What an escaped byte is combined with.
const ESCAPE_MASK: u8 = 0x20;
/// A run's length is its byte minus this.
const RUN_BIAS: u8 = 29;
/// No answer that is asked for is longer; a stream without an end must not fill the memory.
const LONGEST: usize = 1 << 20;

/// `body` as it goes over the wire.
pub(crate) fn encode(body: &[u8]) -> Vec<u8> {
    let mut packet = vec![b'$'];
    for &byte in body {
        if ESCAPED.contains(&byte) {
            packet.extend([ESCAPE, byte ^ ESCAPE_MASK]);
        } else {
            packet.push(byte);
        }
    }
    let sum = checksum(&packet[1..]);
    packet.push(b'#');
    packet.extend(format!("{sum:02x}").bytes());
    packet
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// What comes in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// The last packet arrived.
    Acknowledged,
    /// It did not; it has to be sent again.
    Refused,
    /// A packet.
    Packet(Vec<u8>),
    /// A packet that is not what was sent.
    Damaged,
}

/// Cuts a stream of bytes into pieces.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next piece that is there as a whole.
    pub(crate) fn next(&mut self) -> Option<Piece> {
        let start = self.bytes.iter().position(|byte| b"+-$".contains(byte)).unwrap_or(self.bytes.len());
        self.bytes.drain(..start);
        match self.bytes.first()? {
            b'+' => {
                self.bytes.remove(0);
                Some(Piece::Acknowledged)
            }
            b'-' => {
                self.bytes.remove(0);
                Some(Piece::Refused)
            }
            _ => {
                let end = self.bytes.iter().position(|byte| *byte == b'#').filter(|end| end + 2 < self.bytes.len());
                match end {
                    Some(end) => {
                        let packet: Vec<u8> = self.bytes.drain(..end + 3).collect();
                        Some(open(&packet[1..end], &packet[end + 1..]).map_or(Piece::Damaged, Piece::Packet))
                    }
                    None if self.bytes.len() > LONGEST => {
                        self.bytes.clear();
                        Some(Piece::Damaged)
                    }
                    None => None,
                }
            }
        }
    }
}

/// The body of a packet, if the checksum is right.
fn open(body: &[u8], sum: &[u8]) -> Option<Vec<u8>> {
    if number(sum)? != u64::from(checksum(body)) {
        return None;
    }
    let mut opened: Vec<u8> = Vec::with_capacity(body.len());
    let mut rest = body.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            ESCAPE => opened.push(rest.next()? ^ ESCAPE_MASK),
            b'*' => {
                let count = rest.next()?.checked_sub(RUN_BIAS)?;
                let last = *opened.last()?;
                opened.extend(std::iter::repeat_n(last, count.into()));
            }
            byte => opened.push(byte),
        }
    }
    Some(opened)
}

/// The number that `digits` are in hexadecimal.
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
    u64::from_str_radix(digits, 16).ok()
}

/// `bytes` in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that `digits` stand for.
pub(crate) fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks(2).map(|pair| number(pair).map(|byte| byte as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(chunks: &[&[u8]]) -> Vec<Piece> {
        let mut decoder = Decoder::default();
        let mut all = Vec::new();
        for chunk in chunks {
            decoder.push(chunk);
            all.extend(std::iter::from_fn(|| decoder.next()));
        }
        all
    }

    fn packet(body: &[u8]) -> Piece {
        Piece::Packet(body.to_vec())
    }

    #[test]
    fn a_packet_ends_with_its_checksum() {
        assert_eq!(encode(b"OK"), b"$OK#9a");
        assert_eq!(encode(b""), b"$#00");
    }

    #[test]
    fn what_is_sent_is_what_arrives() {
        let all: Vec<u8> = (0..=255).collect();
        for body in [&b""[..], b"m1,2", b"a#b$c}d*e", &all] {
            assert_eq!(pieces(&[&encode(body)]), [packet(body)]);
        }
    }

    #[test]
    fn chunks_may_be_cut_anywhere() {
        let stream = [&b"+"[..], &encode(b"T05thread:01;"), b"-+", &encode(b"OK")].concat();
        let whole = pieces(&[&stream]);
        assert_eq!(whole.len(), 5);
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(pieces(&bytes), whole);
    }

    #[test]
    fn runs_are_written_out() {
        // The protocol's own example.
        assert_eq!(pieces(&[b"$0* #7a"]), [packet(b"0000")]);
    }

    #[test]
    fn damage_is_seen() {
        assert_eq!(pieces(&[b"$OK#9b"]), [Piece::Damaged]);
        assert_eq!(pieces(&[b"$OK#zz+"]), [Piece::Damaged, Piece::Acknowledged]);
        assert_eq!(pieces(&[b"$*!#4b"]), [Piece::Damaged]);
        assert_eq!(pieces(&[b"$}#7d"]), [Piece::Damaged]);
        assert_eq!(pieces(&[b"noise$OK#9a"]), [packet(b"OK")]);
        assert_eq!(pieces(&[&vec![b'$'; LONGEST + 1]]), [Piece::Damaged]);
    }

    #[test]
    fn hexadecimal_there_and_back() {
        assert_eq!(hex(&[0, 0xff, 0x1a]), "00ff1a");
        assert_eq!(unhex(b"00ff1a"), Some(vec![0, 0xff, 0x1a]));
        assert_eq!((unhex(b"0"), unhex(b"0g"), number(b"+1"), number(b"")), (None, None, None, None));
    }
}
