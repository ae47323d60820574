//! X.509 certificates in DER.
//!
//! [`read`] runs in the sandbox: it walks the certificate with the crate `der` and copies a few
//! fields into plain data. It checks no signature and no rule of X.509 beyond the syntax. The
//! kernel prints the fields through their `Display`, which takes every length for a guess, every
//! text for hostile and every date for wrong until checked.

mod fields;
mod name;
mod syntax;

use der::{Decode as _, Error, ErrorKind, Tag};

pub use self::fields::{CertificateFields, Moment, NAME_BYTES, Name, SERIAL_BYTES, Serial};
use self::syntax::Certificate;
use crate::status::{Problem, Status};

/// Reads the fields of a certificate; runs in the sandbox.
pub fn read(der: &[u8], out: &mut CertificateFields) -> Status {
    match Certificate::from_der(der) {
        Ok(certificate) => Status::from(copy(&certificate, out)),
        Err(error) => {
            let problem = problem(error);
            match error.position() {
                Some(position) => Status::at(problem, u32::from(position)),
                None => Status::of(problem),
            }
        }
    }
}

fn copy(certificate: &Certificate<'_>, out: &mut CertificateFields) -> Result<(), Problem> {
    /// The file has 0 for version 1.
    const LAST_VERSION: u8 = 2;

    let body = &certificate.body;
    if body.version > LAST_VERSION {
        return Err(Problem::BadVersion);
    }
    *out = CertificateFields {
        subject: name::format(body.subject)?,
        issuer: name::format(body.issuer)?,
        serial: Serial::new(body.serial.as_bytes())?,
        not_before: Moment::from(&body.validity.not_before),
        not_after: Moment::from(&body.validity.not_after),
        version: u32::from(body.version) + 1,
    };
    Ok(())
}

fn problem(error: Error) -> Problem {
    match error.kind() {
        ErrorKind::Incomplete { .. } => Problem::CertificateCutOff,
        ErrorKind::TrailingData { .. } => Problem::TrailingData,
        ErrorKind::TagUnexpected { .. } => Problem::UnexpectedTag,
        ErrorKind::TagUnknown { .. } => Problem::UnknownTag,
        ErrorKind::TagNumberInvalid | ErrorKind::TagModeUnknown => Problem::BadTag,
        ErrorKind::DateTime
        | ErrorKind::Length { tag: Tag::UtcTime | Tag::GeneralizedTime }
        | ErrorKind::Value { tag: Tag::UtcTime | Tag::GeneralizedTime } => Problem::BadDate,
        ErrorKind::Length { .. } | ErrorKind::IndefiniteLength | ErrorKind::Overflow => Problem::BadLength,
        ErrorKind::Overlength => Problem::CertificateTooLong,
        ErrorKind::Noncanonical { .. } | ErrorKind::SetOrdering => Problem::NotCanonical,
        ErrorKind::Value { .. } => Problem::BadValue,
        ErrorKind::OidMalformed => Problem::BadObjectIdentifier,
        ErrorKind::Utf8(_) => Problem::BadText,
        ErrorKind::NestingDepth => Problem::TooDeep,
        _ => Problem::CertificateRefused,
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        problem(error)
    }
}
