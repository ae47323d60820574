//! What a file is taken for.

use super::files;
use crate::content::Content;

#[test]
fn files_are_known_by_their_content() {
    assert_eq!(Content::of(b""), Content::Empty);
    for picture in [files::PICTURE, files::CORRUPT, files::INTERLACED, files::PANIC] {
        assert_eq!(Content::of(picture), Content::Png);
    }
    assert_eq!(Content::of(files::CERTIFICATE), Content::Certificate);
    assert_eq!(Content::of(b"GIF89a"), Content::Other);
    assert_eq!(Content::of(b"\x89PNG\r\n\x1a"), Content::Other);
    // A private key: a SEQUENCE that begins with a number.
    assert_eq!(Content::of(b"\x30\x03\x02\x01\x00"), Content::Other);
}

#[test]
fn a_certificate_of_the_wrong_length_is_told() {
    let longer = [files::CERTIFICATE, b"\n"].concat();
    assert_eq!(Content::of(&longer), Content::CertificateOfWrongLength);
    for len in 1..files::CERTIFICATE.len() {
        let expected = if len <= 4 { Content::Other } else { Content::CertificateOfWrongLength };
        assert_eq!(Content::of(&files::CERTIFICATE[..len]), expected, "{len}");
    }
}

#[test]
fn pem_is_told_how_to_become_der() {
    let pem = b"Subject: someone\r\n-----BEGIN CERTIFICATE-----\r\nMIIF\r\n";
    assert_eq!(Content::of(pem), Content::Pem);
    assert!(Content::Pem.advice().unwrap().contains("openssl x509"));
    assert_eq!(Content::of(b"-----BEGIN PRIVATE KEY-----\n"), Content::Other);
}

#[test]
fn advice_stands_for_exactly_what_cannot_be_read() {
    for content in [Content::Png, Content::Certificate] {
        assert_eq!(content.advice(), None);
    }
    let other = Content::Other.advice().unwrap();
    assert!(other.contains("PNG") && other.contains("X.509"));
}
