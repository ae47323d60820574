//! The fields of a certificate as they cross the sandbox's boundary: plain data in which any bit
//! pattern is valid, and what the kernel makes of it.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::syntax::Time;
use crate::escape::Escaped;
use crate::status::Problem;

/// Room for a name.
pub const NAME_BYTES: usize = 508;
/// Room for a serial number; the standard allows half of it.
pub const SERIAL_BYTES: usize = 40;

/// What [`read`](super::read) gives back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CertificateFields {
    /// Whom the certificate is about.
    pub subject: Name,
    /// Who signed it.
    pub issuer: Name,
    /// The issuer's number for it.
    pub serial: Serial,
    /// The beginning of its validity.
    pub not_before: Moment,
    /// The end of its validity.
    pub not_after: Moment,
    /// 1 to 3, if the parser is honest.
    pub version: u32,
}

/// A distinguished name as text, cut at the end of the room for it.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Name {
    len: u16,
    /// 0 if the name is complete.
    cut: u16,
    bytes: [u8; NAME_BYTES],
}

impl Name {
    /// The text's bytes: untrusted, but not out of bounds.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..NAME_BYTES.min(usize::from(self.len))]
    }

    /// Whether there was more than fits.
    pub fn is_cut(&self) -> bool {
        self.cut != 0
    }
}

impl Default for Name {
    fn default() -> Self {
        Self { len: 0, cut: 0, bytes: [0; NAME_BYTES] }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bytes().is_empty() {
            return f.write_str("(no name)");
        }
        Escaped(self.bytes()).fmt(f)?;
        f.write_str(if self.is_cut() { " ... (cut)" } else { "" })
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Fills a [`Name`]; text beyond its room is dropped, by whole characters.
#[derive(Default)]
pub(super) struct NameWriter(Name);

impl NameWriter {
    pub(super) fn finish(self) -> Name {
        self.0
    }
}

impl fmt::Write for NameWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let start = usize::from(self.0.len);
            let end = start + character.len_utf8();
            // After a cut nothing more is let in, not even a shorter character.
            match self.0.bytes.get_mut(start..end) {
                Some(room) if self.0.cut == 0 => {
                    character.encode_utf8(room);
                    self.0.len = end as u16;
                }
                _ => self.0.cut = 1,
            }
        }
        Ok(())
    }
}

/// A certificate's serial number.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Serial {
    len: u32,
    bytes: [u8; SERIAL_BYTES],
}

impl Serial {
    pub(super) fn new(number: &[u8]) -> Result<Self, Problem> {
        let mut serial = Self::default();
        serial.bytes.get_mut(..number.len()).ok_or(Problem::SerialTooLong)?.copy_from_slice(number);
        serial.len = number.len() as u32;
        Ok(serial)
    }

    /// The number's bytes, most significant first, in two's complement: untrusted, but not out of
    /// bounds.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..SERIAL_BYTES.min(self.len as usize)]
    }
}

impl Default for Serial {
    fn default() -> Self {
        Self { len: 0, bytes: [0; SERIAL_BYTES] }
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.bytes() {
            // The zero only says that the number is positive.
            [0, rest @ ..] if !rest.is_empty() => rest,
            bytes => bytes,
        };
        for (index, byte) in digits.iter().enumerate() {
            let separator = if index == 0 { "" } else { ":" };
            write!(f, "{separator}{byte:02x}")?;
        }
        match self.bytes().first() {
            Some(0x80..) => f.write_str(" (negative)"),
            Some(_) => Ok(()),
            None => f.write_str("(no number)"),
        }
    }
}

/// A date and time in UTC.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Moment {
    year: u16,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
    unused: u8,
}

impl Moment {
    fn is_plausible(&self) -> bool {
        (1970..=9999).contains(&self.year)
            && (1..=12).contains(&self.month)
            && (1..=31).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second < 60
    }
}

impl From<&Time> for Moment {
    fn from(time: &Time) -> Self {
        let time = time.date_time();
        Self {
            year: time.year(),
            month: time.month(),
            day: time.day(),
            hour: time.hour(),
            minute: time.minutes(),
            second: time.seconds(),
            unused: 0,
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_plausible() {
            return f.write_str("(not a date)");
        }
        let Self { year, month, day, hour, minute, second, unused: _ } = self;
        write!(f, "{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}
