//! Files, parsed in sandboxes.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use demo::certificate::{self, CertificateFields};
use demo::content::Content;
use demo::picture::{self, Picture, PictureHeader};
use demo::status::{Problem, Status};
use platform_qemu::host::Qemu;
use sandbox_mode::{CallError, Config, Hal, In, Out, Sandbox};

/// The stack of a parser. For the sample files `minipng` takes 28 KiB and `der` 12 KiB, with less optimization 44 and 12 KiB;
/// what is left is for files less usual. `deep.png` would need more than 512 KiB.
const STACK_SIZE: usize = 128 * 1024;

/// The most memory that a picture gets: half of the kernel's heap, enough for 16 million pixels.
const MOST_PIXEL_BYTES: usize = 64 * 1024 * 1024;

/// Why there is nothing to show of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Failure {
    /// No parser is for it.
    Unsupported(&'static str),
    /// The parser refused it.
    Refused(Status),
    /// The parser said that all is well, but what it gave can't be used.
    BadOutput(Problem),
    /// The picture needs this many bytes, which is more than it gets.
    TooLarge(u64),
    /// The kernel hasn't got that many bytes.
    OutOfMemory(usize),
    /// The parser did not come back, or could not be called.
    Call(CallError),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unsupported(advice) => f.write_str(advice),
            Failure::Refused(status) => status.fmt(f),
            Failure::BadOutput(problem) => problem.fmt(f),
            Failure::TooLarge(bytes) => {
                write!(f, "limit: its pixels need {bytes} bytes; a picture gets at most {MOST_PIXEL_BYTES}")
            }
            Failure::OutOfMemory(bytes) => {
                write!(
                    f,
                    "its pixels need {bytes} bytes, which the kernel's heap hasn't got: give the machine more memory"
                )
            }
            Failure::Call(CallError::Exit(exit)) => write!(f, "the parser was stopped: {}", exit.reason),
            Failure::Call(CallError::Setup(error)) => error.fmt(f),
        }
    }
}

impl<E: Into<CallError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Call(error.into())
    }
}

/// What a parser made of a file.
pub(crate) enum Parsed {
    Picture(Decoded),
    Certificate(Box<CertificateFields>),
}

/// A decoded picture, as it came out of the sandbox.
pub(crate) struct Decoded {
    pub(crate) header: PictureHeader,
    bytes: Vec<u8>,
}

impl Decoded {
    pub(crate) fn picture(&self) -> Result<Picture<'_>, Failure> {
        Picture::new(&self.header, &self.bytes).map_err(Failure::BadOutput)
    }
}

/// A sandbox for a parser.
pub(crate) fn sandbox(hal: &Hal<Qemu>) -> Result<Sandbox<'_, Qemu>, CallError> {
    Ok(hal.sandbox_with(Config::default().stack_size(STACK_SIZE))?)
}

/// Parses a file by the parser that is for its content.
pub(crate) fn parse(hal: &Hal<Qemu>, file: &[u8]) -> Result<Parsed, Failure> {
    let content = Content::of(file);
    match content.advice() {
        Some(advice) => Err(Failure::Unsupported(advice)),
        None if content == Content::Png => decode(hal, file).map(Parsed::Picture),
        None => read_certificate(hal, file).map(Box::new).map(Parsed::Certificate),
    }
}

/// Decodes a picture: the sandbox says how much memory that takes, and gets it if it makes sense.
pub(crate) fn decode(hal: &Hal<Qemu>, png: &[u8]) -> Result<Decoded, Failure> {
    let mut sandbox = sandbox(hal)?;
    let mut header = PictureHeader::default();
    checked(sandbox.call(picture::measure, (In(png), Out(&mut header))))?;
    let mut bytes = pixel_buffer(&header)?;
    checked(sandbox.call(picture::decode, (In(png), Out(&mut header), Out(&mut bytes[..]))))?;
    Ok(Decoded { header, bytes })
}

/// Memory for the pixels of a picture that a sandbox has measured.
pub(crate) fn pixel_buffer(header: &PictureHeader) -> Result<Vec<u8>, Failure> {
    let len = header.buffer_len(MOST_PIXEL_BYTES).map_err(|problem| match problem {
        Problem::BufferTooSmall => Failure::TooLarge(header.claimed_bytes()),
        problem => Failure::BadOutput(problem),
    })?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| Failure::OutOfMemory(len))?;
    bytes.resize(len, 0);
    Ok(bytes)
}

fn read_certificate(hal: &Hal<Qemu>, der: &[u8]) -> Result<CertificateFields, Failure> {
    let mut fields = CertificateFields::default();
    checked(sandbox(hal)?.call(certificate::read, (In(der), Out(&mut fields))))?;
    Ok(fields)
}

fn checked(answer: Result<Status, CallError>) -> Result<(), Failure> {
    match answer? {
        Status::OK => Ok(()),
        status => Err(Failure::Refused(status)),
    }
}
