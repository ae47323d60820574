//! Good, damaged and malicious pictures.

use std::panic::catch_unwind;
use std::string::ToString as _;
use std::vec::Vec;
use std::{format, vec};

use zerocopy::FromBytes as _;

use super::{Numbers, files};
use crate::digest::Digest;
use crate::picture::{Colour, Note, Picture, PictureHeader, decode, measure};
use crate::status::{Problem, Status};

const LIMIT: usize = 64 << 20;

/// Does what the kernel does, without a sandbox.
fn decode_all(png: &[u8]) -> Result<(PictureHeader, Vec<u8>), Problem> {
    let mut header = PictureHeader::default();
    measure(png, &mut header).check()?;
    let mut pixels = vec![0; header.buffer_len(LIMIT)?];
    decode(png, &mut header, &mut pixels).check()?;
    Ok((header, pixels))
}

/// A PNG file with the given header and other chunks; CRCs are left 0.
fn png(width: u32, height: u32, bits: u8, colour: u8, chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([bits, colour, 0, 0, 0]);
    let mut file = crate::picture::SIGNATURE.to_vec();
    for (kind, data) in core::iter::once(&(b"IHDR", &header[..])).chain(chunks) {
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(*kind);
        file.extend(*data);
        file.extend([0; 4]);
    }
    file
}

/// Uncompressed pixels of at most 65535 bytes in zlib's form.
fn stored(rows: &[u8]) -> Vec<u8> {
    let len = rows.len() as u16;
    let (mut a, mut b) = (1u32, 0u32);
    for &byte in rows {
        a = (a + u32::from(byte)) % 65521;
        b = (b + a) % 65521;
    }
    let mut data = vec![0x78, 0x01, 0x01];
    data.extend(len.to_le_bytes());
    data.extend((!len).to_le_bytes());
    data.extend(rows);
    data.extend((b << 16 | a).to_be_bytes());
    data
}

#[test]
fn sample_has_the_committed_digest() {
    let (header, pixels) = decode_all(files::PICTURE).unwrap();
    let picture = Picture::new(&header, &pixels).unwrap();
    assert_eq!((picture.width(), picture.height()), (320, 200));
    assert_eq!((header.colour(), header.bits()), (Ok(Colour::Rgb), 8));
    assert_eq!(picture.channels(), 3);
    assert_eq!(header.notes().count(), 0);
    assert_eq!(Digest::of(picture.pixels()).to_string(), files::PICTURE_SHA256.trim());
}

#[test]
fn samples_that_are_not_fine_give_their_problem() {
    let problem = |file| decode_all(file).map(drop).unwrap_err();
    assert_eq!(problem(files::INTERLACED), Problem::Interlaced);
    assert!(problem(files::INTERLACED).is_limit());
    assert!(!problem(files::CORRUPT).is_limit());
    assert_eq!(problem(files::CERTIFICATE), Problem::NotPng);
    assert_eq!(problem(b""), Problem::NotPng);
}

#[test]
fn grey_palette_alpha_and_deep_colours_become_rgba() {
    let cases: [(u8, u8, &[u8], [u8; 4]); 6] = [
        (8, 0, &[0, 77], [77, 77, 77, 255]),
        (8, 4, &[0, 77, 9], [77, 77, 77, 9]),
        (8, 6, &[0, 1, 2, 3, 4], [1, 2, 3, 4]),
        (16, 2, &[0, 1, 99, 2, 99, 3, 99], [1, 2, 3, 255]),
        (8, 3, &[0, 1], [40, 50, 60, 128]),
        (1, 0, &[0, 0x80], [255, 255, 255, 255]),
    ];
    for (bits, colour, row, expected) in cases {
        let palette = [10, 20, 30, 40, 50, 60];
        let mut chunks: Vec<(&[u8; 4], &[u8])> = vec![];
        if colour == 3 {
            chunks.extend([(b"PLTE", &palette[..]), (b"tRNS", &[255, 128])]);
        }
        let data = stored(row);
        chunks.extend([(b"IDAT", &data[..]), (b"IEND", &[])]);
        let (header, pixels) = decode_all(&png(1, 1, bits, colour, &chunks)).unwrap();
        let picture = Picture::new(&header, &pixels).unwrap();
        assert_eq!(picture.pixels(), expected, "{bits} bits, colour {colour}");
        assert_eq!(header.notes().any(|note| note == Note::CutTo8Bits), bits == 16);
    }
}

#[test]
fn what_the_parser_skips_is_noted() {
    let data = stored(&[0, 1, 2, 3]);
    let file = png(1, 1, 8, 2, &[(b"acTL", &[0; 8]), (b"tRNS", &[0; 6]), (b"IDAT", &data), (b"IEND", &[])]);
    let (header, _) = decode_all(&file).unwrap();
    let notes: Vec<Note> = header.notes().collect();
    assert_eq!(notes, [Note::TransparentColourIgnored, Note::FirstPictureOnly]);
}

#[test]
fn structure_errors_are_told_apart() {
    let data = stored(&[0, 1, 2, 3]);
    let problem = |file: &[u8]| decode_all(file).map(drop).unwrap_err();
    let one = |chunks: &[(&[u8; 4], &[u8])]| problem(&png(1, 1, 8, 2, chunks));
    assert_eq!(one(&[(b"IEND", &[])]), Problem::NoPixels);
    assert_eq!(one(&[(b"ABCD", &[])]), Problem::UnknownChunk);
    assert_eq!(one(&[(b"IDAT", &data)]), Problem::PictureCutOff);
    assert_eq!(one(&[(b"IDAT", b"ABCDEFGHIJKL")]), Problem::BadZlibHeader);
    assert_eq!(one(&[(b"IDAT", &[0x78, 0x01, 0x07, 0, 0, 0])]), Problem::BadBlockType);
    let mut bad = data.clone();
    bad[10] ^= 1;
    assert_eq!(one(&[(b"IDAT", &bad), (b"IEND", &[])]), Problem::BadChecksum);
    let filter = stored(&[9, 1, 2, 3]);
    assert_eq!(one(&[(b"IDAT", &filter), (b"IEND", &[])]), Problem::BadFilter);
    assert_eq!(problem(&png(0, 1, 8, 2, &[])), Problem::BadHeader);
    assert_eq!(problem(&png(1, 1, 7, 2, &[])), Problem::BadHeader);
    assert_eq!(problem(&png(u32::MAX >> 1, 99, 8, 2, &[])), Problem::TooFewData);
    assert_eq!(problem(&png(u32::MAX >> 1, u32::MAX >> 1, 8, 2, &[])), Problem::PictureTooLarge);
}

#[test]
fn too_little_memory_is_a_limit() {
    let mut header = PictureHeader::default();
    assert_eq!(measure(files::PICTURE, &mut header), Status::OK);
    let needed = header.buffer_len(LIMIT).unwrap();
    assert_eq!(header.buffer_len(needed - 1), Err(Problem::BufferTooSmall));
    let mut pixels = vec![0; needed - 1];
    let status = decode(files::PICTURE, &mut header, &mut pixels);
    assert_eq!(status.check(), Err(Problem::BufferTooSmall));
}

#[test]
fn cut_off_anywhere_gives_a_problem() {
    for len in 0..files::PICTURE.len() {
        // The last cuts are all alike: deep in the pixels, one in a few suffices.
        if len < 512 || len % 97 == 0 || len + 64 > files::PICTURE.len() {
            let result = decode_all(&files::PICTURE[..len]);
            assert!(result.is_err(), "cut to {len} bytes");
        }
    }
}

#[test]
fn flipped_bits_give_an_answer_or_a_panic_of_the_parser() {
    let mut numbers = Numbers(0x5eed_0001);
    for _ in 0..300 {
        let mut file = files::PICTURE.to_vec();
        // Half of them in the first bytes, where the structure is.
        let end = [200, file.len()][numbers.below(2)];
        file[numbers.below(end)] ^= 1 << numbers.below(8);
        // The parser has flaws (below), and containing them is the sandbox's part. What is
        // tested here is the code around it.
        if let Ok(Ok((header, pixels))) = catch_unwind(|| decode_all(&file)) {
            Picture::new(&header, &pixels).unwrap();
        }
    }
}

#[test]
fn the_parser_still_panics_on_the_sample_for_it() {
    assert!(catch_unwind(|| decode_all(files::PANIC)).is_err());
}

#[test]
fn the_sample_of_many_chunks_is_a_good_picture_on_a_large_stack() {
    // On a small stack it would end the whole test run.
    let run = || decode_all(files::DEEP).map(|(header, _)| header.width());
    let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(run);
    assert_eq!(thread.unwrap().join().unwrap(), Ok(64));
}

#[test]
fn any_bytes_are_a_header_that_does_no_harm() {
    let mut numbers = Numbers(0x5eed_0002);
    let pixels = [7; 64];
    for round in 0..20_000 {
        let mut bytes = [0u8; size_of::<PictureHeader>()];
        for byte in &mut bytes {
            // Small numbers too, or no header would be plausible.
            *byte = [numbers.below(256), numbers.below(5), 0, 0][numbers.below(4)] as u8;
        }
        if round == 0 {
            bytes = [0xff; size_of::<PictureHeader>()];
        }
        let header = PictureHeader::read_from_bytes(&bytes).unwrap();
        if let Ok(len) = header.buffer_len(LIMIT) {
            assert!((1..=LIMIT).contains(&len));
        }
        if let Ok(picture) = Picture::new(&header, &pixels) {
            assert!(picture.pixels().len() <= pixels.len());
            picture.colour_at(picture.width() - 1, picture.height() - 1);
            picture.colour_at(usize::MAX, usize::MAX);
        }
        let _ = format!("{:?} {:?}", header.colour(), header.notes().count());
    }
}
