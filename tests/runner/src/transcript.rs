//! What is remembered of a guest's output: enough to judge it, and never more than a fixed amount.

use std::collections::VecDeque;

use crate::lines::Lines;
use crate::options::Boot;
use crate::summary::Summary;

/// How many of the last lines are shown when output was withheld and the guest failed.
const TAIL: usize = 40;

/// A text to look for, and whether a line had it.
#[derive(Debug)]
struct Sought {
    text: String,
    seen: bool,
}

impl Sought {
    fn all(texts: &[String]) -> Vec<Self> {
        texts.iter().map(|text| Self { text: text.clone(), seen: false }).collect()
    }
}

/// The output of one boot.
#[derive(Debug)]
pub(crate) struct Transcript {
    lines: Lines,
    tail: VecDeque<String>,
    last: String,
    expected: Vec<Sought>,
    forbidden: Vec<Sought>,
    complaint_lines: Lines,
    complaint: Option<String>,
}

impl Transcript {
    /// Of a boot that looks for the texts of `boot`.
    pub(crate) fn of(boot: &Boot) -> Self {
        Self {
            lines: Lines::default(),
            tail: VecDeque::new(),
            last: String::new(),
            expected: Sought::all(&boot.expect),
            forbidden: Sought::all(&boot.forbid),
            complaint_lines: Lines::default(),
            complaint: None,
        }
    }

    /// Takes what the guest printed.
    pub(crate) fn guest_says(&mut self, bytes: &[u8]) {
        let mut lines = std::mem::take(&mut self.lines);
        lines.push(bytes, |line| self.add(line));
        self.lines = lines;
    }

    /// Takes what QEMU itself wrote to its standard error.
    pub(crate) fn qemu_says(&mut self, bytes: &[u8]) {
        let mut lines = std::mem::take(&mut self.complaint_lines);
        lines.push(bytes, |line| self.complain(line));
        self.complaint_lines = lines;
    }

    /// Ends both streams: a last line without a line end counts, too.
    pub(crate) fn finish(&mut self) {
        if let Some(line) = self.lines.finish() {
            self.add(line);
        }
        if let Some(line) = self.complaint_lines.finish() {
            self.complain(line);
        }
    }

    fn add(&mut self, line: String) {
        for sought in self.expected.iter_mut().chain(&mut self.forbidden) {
            sought.seen |= line.contains(&sought.text);
        }
        if !line.trim().is_empty() {
            line.clone_into(&mut self.last);
        }
        self.remember(line);
    }

    fn complain(&mut self, line: String) {
        if !line.trim().is_empty() {
            self.complaint = Some(line.clone());
        }
        self.remember(line);
    }

    fn remember(&mut self, line: String) {
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// The last lines of both streams.
    pub(crate) fn tail(&self) -> impl Iterator<Item = &str> {
        self.tail.iter().map(String::as_str)
    }

    /// The guest's last line that isn't blank.
    pub(crate) fn last_line(&self) -> &str {
        &self.last
    }

    /// The summary, when the guest's last line is one.
    pub(crate) fn summary(&self) -> Option<Summary> {
        Summary::of_guest_line(&self.last)
    }

    /// QEMU's own last complaint.
    pub(crate) fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    /// The first expected text that no line had.
    pub(crate) fn missing(&self) -> Option<&str> {
        self.expected.iter().find(|sought| !sought.seen).map(|sought| sought.text.as_str())
    }

    /// The first forbidden text that a line had.
    pub(crate) fn forbidden(&self) -> Option<&str> {
        self.forbidden.iter().find(|sought| sought.seen).map(|sought| sought.text.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_the_end_is_kept() {
        let mut transcript = Transcript::of(&Boot::of("k".into()));
        for number in 0..1000 {
            transcript.guest_says(format!("{number}\n").as_bytes());
        }
        transcript.finish();
        let tail: Vec<_> = transcript.tail().collect();
        assert_eq!((tail.len(), tail[0], tail[39]), (40, "960", "999"));
    }

    #[test]
    fn texts_are_found_in_the_guests_lines_only() {
        let mut boot = Boot::of("k".into());
        boot.expect = vec!["ready".into(), "done".into()];
        boot.forbid = vec!["panic".into()];
        let mut transcript = Transcript::of(&boot);
        transcript.guest_says(b"now rea");
        transcript.guest_says(b"dy\n");
        transcript.qemu_says(b"done? panic!\n");
        assert_eq!((transcript.missing(), transcript.forbidden()), (Some("done"), None));
        transcript.guest_says(b"done, no panic");
        transcript.finish();
        assert_eq!((transcript.missing(), transcript.forbidden()), (None, Some("panic")));
        assert_eq!(transcript.complaint(), Some("done? panic!"));
    }
}
