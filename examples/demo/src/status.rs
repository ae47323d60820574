//! What a sandboxed function answers: a [`Status`] in plain data, made of a [`Problem`] and the
//! place in the file.
//!
//! A `Status` comes out of a sandbox, so its code may be any number; [`Status::check`] maps what
//! isn't listed to [`Problem::Unlisted`].

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Answer of a sandboxed parser; any bit pattern is valid.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Status {
    /// 0 for success, otherwise the number of a [`Problem`].
    code: u32,
    /// 0 for unknown, otherwise 1 more than the offset of the bad byte in the file.
    place: u32,
}

impl Status {
    /// The file was parsed.
    pub const OK: Self = Self { code: 0, place: 0 };

    /// The status for a problem at an unknown place.
    pub const fn of(problem: Problem) -> Self {
        Self { code: problem as u32, place: 0 }
    }

    /// The status for a problem at an offset in the file.
    pub const fn at(problem: Problem, offset: u32) -> Self {
        Self { code: problem as u32, place: offset.saturating_add(1) }
    }

    /// Success, or the problem.
    pub fn check(self) -> Result<(), Problem> {
        if self == Self::OK {
            return Ok(());
        }
        Err(TABLE
            .iter()
            .map(|&(problem, _)| problem)
            .find(|&problem| problem as u32 == self.code)
            .unwrap_or(Problem::Unlisted))
    }

    /// Offset of the bad byte, if the parser told it.
    pub fn offset(self) -> Option<u32> {
        self.place.checked_sub(1)
    }
}

impl From<Result<(), Problem>> for Status {
    fn from(result: Result<(), Problem>) -> Self {
        match result {
            Ok(()) => Self::OK,
            Err(problem) => Self::of(problem),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.check(), self.offset()) {
            (Ok(()), _) => f.write_str("parsed"),
            (Err(problem), None) => problem.fmt(f),
            (Err(problem), Some(offset)) => write!(f, "{problem} (at byte {offset})"),
        }
    }
}

/// Declares [`Problem`] and its texts together, so that none can lack the other.
macro_rules! problems {
    ($($(#[$attribute:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why a file wasn't parsed. The numbers are part of what crosses the sandbox's boundary.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        #[non_exhaustive]
        pub enum Problem {
            $(#[doc = $text] $(#[$attribute])* $name = $code,)*
        }

        /// Every problem with its text.
        pub(crate) const TABLE: &[(Problem, &str)] = &[$((Problem::$name, $text),)*];
    };
}

problems! {
    // Answers that no well-behaved parser gives.
    Unlisted = 1, "the sandboxed function answered with a code that isn't on the list";
    BadAnswer = 2, "the sandboxed function reports success, but its output makes no sense";
    GotAway = 3, "the hostile function did what it wanted and returned";

    // Limits.
    Interlaced = 10, "limit: the picture is interlaced (Adam7), which minipng doesn't decode";
    UnknownChunk = 11, "limit: the picture has a critical chunk that minipng doesn't know";
    PictureTooLarge = 12, "limit: the pixels don't fit into the address space";
    BufferTooSmall = 13, "limit: the pixels need more memory than the demo lends to a sandbox";
    CertificateTooLong = 14, "limit: the file is longer than der reads (4 GiB)";
    SerialTooLong = 15, "limit: the certificate's serial number is longer than 40 bytes";
    UnknownTag = 16, "limit: a part of the certificate is of a type that der doesn't know";
    BadDate = 17, "limit: a date isn't one that der reads (1970 to 9999, UTC, with seconds)";
    TooDeep = 18, "limit: the data is nested deeper than der follows (64 levels)";

    // Damaged pictures, in the order of minipng's errors.
    PictureCutOff = 30, "the picture ends too early: the file is cut off";
    NotPng = 31, "the file has no PNG signature";
    BadHeader = 32, "the picture's header (IHDR) is invalid";
    BadBlockType = 33, "the compressed pixels have a block of an invalid type";
    BadStoredLength = 34, "a stored block of the compressed pixels contradicts itself on its length";
    TooMuchData = 35, "the compressed pixels expand to more than the picture's size";
    BlockCutOff = 36, "a block of the compressed pixels ends too early";
    BadZlibHeader = 37, "the compressed pixels don't begin with a valid zlib header";
    BadCode = 38, "the compressed pixels contain an invalid Huffman code";
    BadCodeTable = 39, "the compressed pixels define an invalid Huffman table";
    BadBackReference = 40, "the compressed pixels refer to data before their beginning";
    BadFilter = 41, "a row of the picture has an invalid filter";
    BadPalette = 42, "the picture's palette (PLTE) is invalid";
    BadTransparency = 43, "the picture's transparency (tRNS) is invalid";
    NoPixels = 44, "the picture has no pixels (no IDAT chunk)";
    BadChecksum = 45, "the pixels don't match their checksum (Adler-32): the file is damaged";
    BadChunkSize = 46, "a chunk of the picture is longer than the file: it is cut off or damaged";
    TooFewData = 47, "the file is too small to contain a picture of the size that it claims";
    PictureRefused = 48, "minipng refused the picture for a reason that the demo doesn't know";

    // Damaged certificates, by der's kinds of error.
    CertificateCutOff = 60, "the certificate ends too early: the file is cut off";
    TrailingData = 61, "there is data after the end of the certificate or of one of its parts";
    UnexpectedTag = 62, "the file is DER, but not a certificate: a part has the wrong type";
    BadTag = 63, "a type tag of the certificate is invalid";
    BadLength = 64, "a length in the certificate is invalid or not in its shortest form";
    NotCanonical = 65, "a value in the certificate isn't in its canonical form (BER, not DER?)";
    BadValue = 66, "a value in the certificate is invalid";
    BadObjectIdentifier = 67, "an object identifier in the certificate is malformed";
    BadText = 68, "a text in the certificate has invalid characters";
    BadVersion = 69, "the certificate is of a version that doesn't exist";
    CertificateRefused = 70, "der refused the certificate for a reason that the demo doesn't know";
}

impl Problem {
    /// The text for people.
    pub fn text(self) -> &'static str {
        TABLE.iter().find(|&&(problem, _)| problem == self).map_or("", |&(_, text)| text)
    }

    /// Whether the file may be fine and the parser just doesn't do this.
    pub fn is_limit(self) -> bool {
        (10..30).contains(&(self as u32))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl core::error::Error for Problem {}
