//! A stream of bytes cut into lines, as a person would read them.

/// A line longer than this is cut, so that a guest without line ends can't fill the memory.
const LONGEST: usize = 64 * 1024;

/// Takes bytes as they come and gives complete lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    unfinished: Vec<u8>,
}

impl Lines {
    /// Calls `with` for every line that `bytes` complete.
    pub(crate) fn push(&mut self, bytes: &[u8], mut with: impl FnMut(String)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            for piece in part.chunks(LONGEST) {
                self.unfinished.extend_from_slice(piece);
                if self.unfinished.ends_with(b"\n") || self.unfinished.len() >= LONGEST {
                    with(self.take());
                }
            }
        }
    }

    /// The last line, when the stream ended within it.
    pub(crate) fn finish(&mut self) -> Option<String> {
        (!self.unfinished.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        let text = plain(&String::from_utf8_lossy(&self.unfinished));
        self.unfinished.clear();
        text
    }
}

/// `line` without its end and without the escape sequences that colour it.
fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line.trim_end_matches(['\n', '\r']);
    while let Some((before, sequence)) = rest.split_once("\x1b[") {
        text.push_str(before);
        let end = sequence.find(|c| ('\x40'..='\x7e').contains(&c));
        rest = end.map_or("", |end| &sequence[end + 1..]);
    }
    text.push_str(rest);
    text
}

/// Turns the serial line's CR LF into LF, so that logs have plain line ends.
#[derive(Debug, Default)]
pub(crate) struct LineEnds {
    held: bool,
}

impl LineEnds {
    pub(crate) fn convert(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut converted = Vec::with_capacity(bytes.len() + 1);
        for byte in bytes {
            if std::mem::take(&mut self.held) && *byte != b'\n' {
                converted.push(b'\r');
            }
            if *byte == b'\r' {
                self.held = true;
            } else {
                converted.push(*byte);
            }
        }
        converted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut all = Vec::new();
        for chunk in chunks {
            lines.push(chunk, |line| all.push(line));
        }
        all.extend(lines.finish());
        all
    }

    #[test]
    fn chunks_may_be_cut_anywhere() {
        assert_eq!(lines(&[b"a\r", b"\nb", b"c\n", b"", b"d"]), ["a", "bc", "d"]);
        assert_eq!(lines(&[b"a\n\n"]), ["a", ""]);
        assert_eq!(lines(&[b""]), [""; 0]);
    }

    #[test]
    fn colour_and_broken_text_do_not_hide_a_line() {
        assert_eq!(lines(&[b"\x1b[1;32mok\x1b[0m done\n"]), ["ok done"]);
        assert_eq!(lines(&[b"\xffx\n"]), ["\u{fffd}x"]);
        assert_eq!(lines(&[b"x\x1b[12"]), ["x"]);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let flood = vec![b'x'; 3 * LONGEST + 5];
        let all = lines(&[&flood]);
        assert_eq!(all.iter().map(String::len).collect::<Vec<_>>(), [LONGEST, LONGEST, LONGEST, 5]);
    }

    #[test]
    fn only_carriage_returns_before_a_line_feed_go() {
        let mut ends = LineEnds::default();
        assert_eq!(ends.convert(b"a\r"), b"a");
        assert_eq!(ends.convert(b"\nb\rc\r\r\n"), b"\nb\rc\r\n");
    }
}
