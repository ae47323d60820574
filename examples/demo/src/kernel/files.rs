//! The files from the command line, and what came of each.

use core::fmt;

use demo::certificate::CertificateFields;
use demo::content::Content;
use demo::digest::Digest;
use demo::escape::Escaped;
use demo::terminal::Terminal;
use platform_qemu::files::File;
use platform_qemu::host::Qemu;
use platform_qemu::print;
use sandbox_mode::Hal;

use super::parsing::{Decoded, Failure, Parsed, parse};
use super::report::{fact, heading};

/// Parses a file and prints what came of it; the digest of the pixels, if it is a picture.
pub(crate) fn show(hal: &Hal<Qemu>, file: File, terminal: Terminal) -> Result<Option<Digest>, Failure> {
    let content = Content::of(file.bytes);
    heading(format_args!("{} ({content}, {} bytes)", Escaped(file.name.as_bytes()), file.bytes.len()));
    match parse(hal, file.bytes)? {
        Parsed::Picture(decoded) => show_picture(&decoded, terminal).map(Some),
        Parsed::Certificate(fields) => {
            show_certificate(&fields);
            Ok(None)
        }
    }
}

fn show_picture(decoded: &Decoded, terminal: Terminal) -> Result<Digest, Failure> {
    let (header, picture) = (&decoded.header, decoded.picture()?);
    let colour = header.colour().map_err(Failure::BadOutput)?;
    let digest = Digest::of(picture.pixels());
    let (width, height) = (picture.width(), picture.height());
    fact("size", format_args!("{width} x {height} pixels, {colour}, {} bits per channel", header.bits()));
    for note in header.notes() {
        fact("note", note);
    }
    fact("sha-256", digest);
    // The console takes everything.
    let _ = terminal.draw(&picture, &mut Console);
    Ok(digest)
}

fn show_certificate(fields: &CertificateFields) {
    fact("subject", fields.subject);
    fact("issuer", fields.issuer);
    fact("valid from", fields.not_before);
    fact("until", fields.not_after);
    fact("serial", fields.serial);
    fact("version", fields.version);
}

/// The serial line.
struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        print!("{text}");
        Ok(())
    }
}
