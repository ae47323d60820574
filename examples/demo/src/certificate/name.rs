//! Distinguished names as text: `C=US, O=Internet Security Research Group, CN=ISRG Root X1`.
//!
//! Runs in the sandbox. The parts stand in the certificate's order. Characters that separate
//! parts are escaped as RFC 4514 has it, so that no value can pose as two parts.

use core::fmt::{self, Write};

use der::asn1::{
    AnyRef, GeneralStringRef, Ia5StringRef, ObjectIdentifier, PrintableStringRef, SequenceRef, Utf8StringRef,
};
use der::{Decode as _, Reader as _, SliceReader, Tag, Tagged as _};

use super::fields::{Name, NameWriter};
use super::syntax::Attribute;
use crate::status::Problem;

/// Short names of the usual attributes; others are shown by their object identifier.
const SHORT_NAMES: [(ObjectIdentifier, &str); 15] = [
    (oid("2.5.4.3"), "CN"),
    (oid("2.5.4.4"), "SN"),
    (oid("2.5.4.5"), "serialNumber"),
    (oid("2.5.4.6"), "C"),
    (oid("2.5.4.7"), "L"),
    (oid("2.5.4.8"), "ST"),
    (oid("2.5.4.9"), "street"),
    (oid("2.5.4.10"), "O"),
    (oid("2.5.4.11"), "OU"),
    (oid("2.5.4.12"), "title"),
    (oid("2.5.4.42"), "GN"),
    (oid("2.5.4.97"), "organizationIdentifier"),
    (oid("0.9.2342.19200300.100.1.1"), "UID"),
    (oid("0.9.2342.19200300.100.1.25"), "DC"),
    (oid("1.2.840.113549.1.9.1"), "emailAddress"),
];

const fn oid(dotted: &str) -> ObjectIdentifier {
    ObjectIdentifier::new_unwrap(dotted)
}

/// Writes a `Name` (a SEQUENCE OF SET OF attributes) as text.
pub(super) fn format(sequence: &SequenceRef) -> Result<Name, Problem> {
    let mut text = NameWriter::default();
    let mut sets = SliceReader::new(sequence.as_bytes())?;
    let mut separator = "";
    while !sets.is_finished() {
        let set: AnyRef<'_> = sets.decode()?;
        set.tag().assert_eq(Tag::Set)?;
        let mut attributes = SliceReader::new(set.value())?;
        while !attributes.is_finished() {
            let attribute = Attribute::decode(&mut attributes)?;
            // The writer cuts what doesn't fit and never fails.
            let _ = text.write_str(separator);
            let _ = write_kind(&mut text, &attribute.kind);
            write_value(&mut text, attribute.value)?;
            separator = " + ";
        }
        separator = ", ";
    }
    Ok(text.finish())
}

fn write_kind(text: &mut NameWriter, kind: &ObjectIdentifier) -> fmt::Result {
    match SHORT_NAMES.iter().find(|(known, _)| known == kind) {
        Some((_, name)) => write!(text, "{name}="),
        None => write!(text, "{kind}="),
    }
}

fn write_value(text: &mut NameWriter, value: AnyRef<'_>) -> Result<(), Problem> {
    match value.tag() {
        Tag::Utf8String => {
            text.write_value(value.decode_as::<Utf8StringRef<'_>>()?.as_str().chars());
        }
        Tag::PrintableString => {
            text.write_value(value.decode_as::<PrintableStringRef<'_>>()?.as_str().chars());
        }
        Tag::Ia5String => {
            text.write_value(value.decode_as::<Ia5StringRef<'_>>()?.as_str().chars());
        }
        Tag::GeneralString => {
            let string = value.decode_as::<GeneralStringRef<'_>>()?;
            text.write_value(string.as_bytes().iter().map(|&byte| char::from(byte)));
        }
        // In practice this is Latin-1, of which `der` reads the ASCII half only.
        Tag::TeletexString | Tag::NumericString | Tag::VisibleString => {
            text.write_value(value.value().iter().map(|&byte| char::from(byte)));
        }
        // `der` has this type with a heap only.
        Tag::BmpString => {
            let (pairs, odd) = value.value().as_chunks();
            if !odd.is_empty() {
                return Err(Problem::BadText);
            }
            let units = pairs.iter().map(|&pair| u16::from_be_bytes(pair));
            text.write_value(char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)));
        }
        _ => {
            let _ = text.write_char('#');
            for byte in value.value() {
                let _ = write!(text, "{byte:02x}");
            }
        }
    }
    Ok(())
}

impl NameWriter {
    /// Writes an attribute's value with the characters escaped that mean something in a name.
    fn write_value(&mut self, characters: impl Iterator<Item = char>) {
        for (index, character) in characters.enumerate() {
            let is_special = matches!(character, ',' | '+' | '"' | '\\' | '<' | '>' | ';')
                || (index == 0 && matches!(character, '#' | ' '));
            if is_special {
                let _ = self.write_char('\\');
            }
            let _ = self.write_char(character);
        }
    }
}
