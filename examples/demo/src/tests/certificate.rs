//! Good, damaged and malicious certificates.

use std::string::{String, ToString as _};
use std::vec::Vec;
use std::{format, vec};

use zerocopy::FromBytes as _;

use super::{Numbers, files};
use crate::certificate::{CertificateFields, NAME_BYTES, read};
use crate::status::{Problem, Status};

fn read_all(der: &[u8]) -> Result<CertificateFields, Problem> {
    let mut fields = CertificateFields::default();
    read(der, &mut fields).check()?;
    Ok(fields)
}

/// One value in DER.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let value = parts.concat();
    let mut der = vec![tag];
    match value.len() {
        len @ 0..=0x7f => der.push(len as u8),
        len => der.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    if (0x80..0x100).contains(&value.len()) {
        der.splice(1..4, [0x81, value.len() as u8]);
    }
    der.extend(value);
    der
}

const COMMON_NAME: &[u8] = &[0x06, 3, 0x55, 4, 3];
const UNKNOWN_KIND: &[u8] = &[0x06, 3, 0x55, 4, 127];

fn attribute(kind: &[u8], tag: u8, text: &[u8]) -> Vec<u8> {
    tlv(0x30, &[kind, &tlv(tag, &[text])])
}

/// A certificate of version 1 with that many parts chosen.
fn certificate(serial: &[u8], subject: &[u8], not_before: &[u8]) -> Vec<u8> {
    let algorithm = tlv(0x30, &[&[0x06, 3, 0x2b, 0x65, 0x70]]);
    let bits = tlv(0x03, &[&[0, 1, 2, 3]]);
    let not_after = tlv(0x18, &[b"20991231235959Z"]);
    let body = tlv(
        0x30,
        &[
            &tlv(0x02, &[serial]),
            &algorithm,
            &tlv(0x30, &[]),
            &tlv(0x30, &[not_before, &not_after]),
            &tlv(0x30, &[subject]),
            &tlv(0x30, &[&algorithm, &bits]),
        ],
    );
    tlv(0x30, &[&body, &algorithm, &bits])
}

fn utc(text: &[u8]) -> Vec<u8> {
    tlv(0x17, &[text])
}

fn with_subject(subject: &[u8]) -> Result<String, Problem> {
    let der = certificate(&[1], subject, &utc(b"200102030405Z"));
    Ok(read_all(&der)?.subject.to_string())
}

fn with_name(tag: u8, text: &[u8]) -> Result<String, Problem> {
    with_subject(&tlv(0x31, &[&attribute(COMMON_NAME, tag, text)]))
}

#[test]
fn sample_has_the_expected_fields() {
    let fields = read_all(files::CERTIFICATE).unwrap();
    let name = "C=US, O=Internet Security Research Group, CN=ISRG Root X1";
    assert_eq!(fields.subject.to_string(), name);
    assert_eq!(fields.issuer.to_string(), name);
    assert_eq!(fields.serial.to_string(), "82:10:cf:b0:d2:40:e3:59:44:63:e0:bb:63:82:8b:00");
    assert_eq!(fields.not_before.to_string(), "2015-06-04 11:04:38 UTC");
    assert_eq!(fields.not_after.to_string(), "2035-06-04 11:04:38 UTC");
    assert_eq!(fields.version, 3);
}

#[test]
fn every_kind_of_string_is_read() {
    let expect = |tag, text: &[u8], name: &str| {
        assert_eq!(with_name(tag, text).as_deref(), Ok(name), "tag {tag:#x}");
    };
    expect(0x0c, "Zoë".as_bytes(), "CN=Zoë");
    expect(0x13, b"Zoe", "CN=Zoe");
    expect(0x16, b"a@b", "CN=a@b");
    expect(0x14, b"Zo\xeb", "CN=Zoë");
    expect(0x1e, b"\0Z\0o\0\xeb", "CN=Zoë");
    expect(0x1e, b"\xd8\0", "CN=\u{fffd}");
    expect(0x12, b"123", "CN=123");
    expect(0x04, b"\x01\xff", "CN=#01ff");
    assert_eq!(with_name(0x1e, b"\0Z\0"), Err(Problem::BadText));
    assert_eq!(with_name(0x0c, b"\xff"), Err(Problem::BadText));
    assert_eq!(with_name(0x13, b"\xff"), Err(Problem::BadValue));
    assert_eq!(with_name(0x1c, b"\0\0\0Z"), Err(Problem::UnknownTag));
}

#[test]
fn parts_of_names_are_kept_apart() {
    assert_eq!(with_subject(b"").as_deref(), Ok("(no name)"));
    assert_eq!(with_name(0x0c, b"#a, O=Other+C=X\\").as_deref(), Ok("CN=\\#a\\, O=Other\\+C=X\\\\"));
    let parts = [attribute(COMMON_NAME, 0x0c, b"a"), attribute(UNKNOWN_KIND, 0x0c, b"b")].concat();
    assert_eq!(with_subject(&tlv(0x31, &[&parts])).as_deref(), Ok("CN=a + 2.5.4.127=b"));
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    assert_eq!(
        with_name(0x0c, "a\x1b[2J\r\n\u{9b}\u{202e}b".as_bytes()).as_deref(),
        Ok("CN=a\\u{1b}[2J\\u{d}\\u{a}\\u{9b}\\u{202e}b")
    );
}

#[test]
fn long_names_are_cut_between_characters() {
    let long = "ë".repeat(NAME_BYTES);
    let name = with_name(0x0c, long.as_bytes()).unwrap();
    let kept = name.strip_suffix(" ... (cut)").unwrap();
    assert!(kept.len() <= NAME_BYTES && kept.len() > NAME_BYTES - 2);
    assert!(kept.ends_with('ë'));
}

#[test]
fn serial_numbers_and_dates_have_limits() {
    let with = |serial: &[u8], date: &[u8]| read_all(&certificate(serial, b"", &utc(date)));
    let good = b"200102030405Z";
    let text = |serial: &[u8]| with(serial, good).unwrap().serial.to_string();
    assert_eq!(text(&[0]), "00");
    assert_eq!(text(&[0, 0x80]), "80");
    assert_eq!(text(&[0x80, 1]), "80:01 (negative)");
    assert_eq!(text(&[1; 40]).len(), 40 * 3 - 1);
    let problem = |serial: &[u8], date: &[u8]| with(serial, date).unwrap_err();
    assert_eq!(problem(&[1; 41], good), Problem::SerialTooLong);
    assert_eq!(problem(&[1], b"2001020304Z"), Problem::BadDate);
    assert_eq!(problem(&[1], b"201302030405Z"), Problem::BadDate);
    assert_eq!(problem(&[1], b"500102030405Z"), Problem::BadDate);
    assert_eq!(with(&[1], good).unwrap().not_before.to_string(), "2020-01-02 03:04:05 UTC");
}

#[test]
fn other_files_give_their_problem() {
    assert_eq!(read_all(b"").unwrap_err(), Problem::CertificateCutOff);
    assert_eq!(read_all(b"\x02\x01\x01").unwrap_err(), Problem::UnexpectedTag);
    let longer = [files::CERTIFICATE, b"\0"].concat();
    assert_eq!(read_all(&longer).unwrap_err(), Problem::TrailingData);
    assert!(read_all(files::PICTURE).is_err());
}

#[test]
fn cut_off_anywhere_gives_a_problem() {
    for len in 0..files::CERTIFICATE.len() {
        let mut fields = CertificateFields::default();
        let status = read(&files::CERTIFICATE[..len], &mut fields);
        assert_ne!(status, Status::OK, "cut to {len} bytes");
        assert!(!status.to_string().is_empty());
    }
}

#[test]
fn flipped_bits_give_an_answer() {
    let mut numbers = Numbers(0x5eed_0003);
    for _ in 0..20_000 {
        let mut file = files::CERTIFICATE.to_vec();
        for _ in 0..=numbers.below(3) {
            let end = [250, file.len()][numbers.below(2)];
            file[numbers.below(end)] ^= 1 << numbers.below(8);
        }
        let mut fields = CertificateFields::default();
        let status = read(&file, &mut fields);
        assert_ne!(status.check(), Err(Problem::Unlisted));
        assert_harmless(&fields);
    }
}

#[test]
fn any_bytes_are_fields_that_do_no_harm() {
    let mut numbers = Numbers(0x5eed_0004);
    for _ in 0..2000 {
        let bytes: Vec<u8> = (0..size_of::<CertificateFields>()).map(|_| numbers.below(256) as u8).collect();
        assert_harmless(&CertificateFields::read_from_bytes(&bytes).unwrap());
    }
}

/// Prints everything that the kernel prints.
fn assert_harmless(fields: &CertificateFields) {
    let text =
        format!("{} {} {} {} {}", fields.subject, fields.issuer, fields.serial, fields.not_before, fields.not_after);
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
