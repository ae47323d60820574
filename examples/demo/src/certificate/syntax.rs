//! The part of X.509's syntax (RFC 5280, section 4.1) that the demo reads, for the crate `der`.
//!
//! What the demo doesn't show (keys, signatures, extensions) is kept as undecoded parts. Only
//! decoders are derived: nothing is written as DER.

use der::asn1::{AnyRef, BitStringRef, GeneralizedTime, IntRef, ObjectIdentifier, SequenceRef, UtcTime};
use der::{Choice, DateTime, DecodeValue, Sequence};

/// A whole certificate.
#[derive(DecodeValue)]
#[expect(dead_code, reason = "some parts are decoded only to be skipped")]
pub(super) struct Certificate<'a> {
    pub(super) body: Body<'a>,
    signature_algorithm: &'a SequenceRef,
    signature: BitStringRef<'a>,
}

impl<'a> Sequence<'a> for Certificate<'a> {}

/// What the issuer signs.
#[derive(DecodeValue)]
#[expect(dead_code, reason = "some parts are decoded only to be skipped")]
pub(super) struct Body<'a> {
    #[asn1(context_specific = "0", default = "version_1")]
    pub(super) version: u8,
    pub(super) serial: IntRef<'a>,
    signature_algorithm: &'a SequenceRef,
    pub(super) issuer: &'a SequenceRef,
    pub(super) validity: Validity,
    pub(super) subject: &'a SequenceRef,
    public_key: &'a SequenceRef,
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", optional = "true")]
    issuer_unique_id: Option<BitStringRef<'a>>,
    #[asn1(context_specific = "2", tag_mode = "IMPLICIT", optional = "true")]
    subject_unique_id: Option<BitStringRef<'a>>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT", optional = "true")]
    extensions: Option<&'a SequenceRef>,
}

impl<'a> Sequence<'a> for Body<'a> {}

/// The number that stands for version 1, which a certificate leaves out.
fn version_1() -> u8 {
    0
}

/// From when to when the certificate counts.
#[derive(DecodeValue)]
pub(super) struct Validity {
    pub(super) not_before: Time,
    pub(super) not_after: Time,
}

impl<'a> Sequence<'a> for Validity {}

/// A moment in either of two notations.
#[derive(Clone, Copy, Choice)]
pub(super) enum Time {
    #[asn1(type = "UTCTime")]
    Utc(UtcTime),
    #[asn1(type = "GeneralizedTime")]
    General(GeneralizedTime),
}

impl Time {
    pub(super) fn date_time(&self) -> DateTime {
        match self {
            Self::Utc(time) => time.to_date_time(),
            Self::General(time) => time.to_date_time(),
        }
    }
}

/// One part of a name, such as the country.
#[derive(DecodeValue)]
pub(super) struct Attribute<'a> {
    pub(super) kind: ObjectIdentifier,
    pub(super) value: AnyRef<'a>,
}

impl<'a> Sequence<'a> for Attribute<'a> {}
