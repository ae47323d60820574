//! What a file is, by its content.
//!
//! Runs in the kernel, on untrusted bytes: it compares a few of them and follows nothing.

use core::fmt;

use crate::picture::SIGNATURE;

/// ASN.1's tag of a SEQUENCE.
const SEQUENCE: u8 = 0x30;
/// How far into a file the first line of a PEM block is looked for; text may stand before it.
const PEM_SEARCH_BYTES: usize = 16 * 1024;

/// The kinds of file that the demo tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// No bytes at all.
    Empty,
    /// Begins with the signature of PNG.
    Png,
    /// One DER SEQUENCE that begins with another one and ends with the file.
    Certificate,
    /// As a certificate begins, but the outer length isn't the file's.
    CertificateOfWrongLength,
    /// A certificate in PEM's text form.
    Pem,
    /// Anything else.
    Other,
}

impl Content {
    /// Looks at a file's bytes.
    pub fn of(file: &[u8]) -> Self {
        if file.is_empty() {
            Self::Empty
        } else if file.starts_with(&SIGNATURE) {
            Self::Png
        } else if let Some((header, body)) = sequence_header(file)
            && file.get(header) == Some(&SEQUENCE)
        {
            if body == file.len() - header { Self::Certificate } else { Self::CertificateOfWrongLength }
        } else if is_pem_certificate(file) {
            Self::Pem
        } else {
            Self::Other
        }
    }

    /// For a file that no parser of the demo is for: what to do about it.
    pub fn advice(self) -> Option<&'static str> {
        match self {
            Self::Png | Self::Certificate => None,
            Self::Empty => Some("the file is empty"),
            Self::CertificateOfWrongLength => {
                Some("begins like a certificate, but is cut off or goes on behind its end")
            }
            Self::Pem => Some("a certificate in PEM: make it DER with `openssl x509 -outform DER`"),
            Self::Other => Some("by its content neither a PNG picture nor an X.509 certificate in DER"),
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty file",
            Self::Png => "PNG picture",
            Self::Certificate => "X.509 certificate (DER)",
            Self::CertificateOfWrongLength => "damaged certificate (DER)",
            Self::Pem => "X.509 certificate (PEM)",
            Self::Other => "unknown file",
        })
    }
}

/// Lengths of the header and of the body of the SEQUENCE at the file's start.
fn sequence_header(file: &[u8]) -> Option<(usize, usize)> {
    match *file {
        [SEQUENCE, length @ 0..=0x7f, ..] => Some((2, usize::from(length))),
        [SEQUENCE, 0x81, a, ..] => Some((3, usize::from(a))),
        [SEQUENCE, 0x82, a, b, ..] => Some((4, usize::from(u16::from_be_bytes([a, b])))),
        [SEQUENCE, 0x83, a, b, c, ..] => Some((5, u32::from_be_bytes([0, a, b, c]) as usize)),
        _ => None,
    }
}

/// Whether a line near the file's start opens a certificate in PEM.
fn is_pem_certificate(file: &[u8]) -> bool {
    const LABELS: [&[u8]; 3] =
        [b"-----BEGIN CERTIFICATE-----", b"-----BEGIN TRUSTED CERTIFICATE-----", b"-----BEGIN X509 CERTIFICATE-----"];
    file[..file.len().min(PEM_SEARCH_BYTES)]
        .split(|&byte| byte == b'\n' || byte == b'\r')
        .map(<[u8]>::trim_ascii)
        .any(|line| LABELS.iter().any(|label| line.ends_with(label)))
}
