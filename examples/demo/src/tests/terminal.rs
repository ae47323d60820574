//! Pictures drawn as text.

use std::string::String;
use std::vec;
use std::vec::Vec;

use zerocopy::FromBytes as _;

use super::files;
use crate::picture::{Picture, PictureHeader, decode, measure};
use crate::terminal::Terminal;

/// Draws a picture whose pixels are `colour(x, y)`.
fn draw(terminal: Terminal, (width, height): (u32, u32), colour: impl Fn(u32, u32) -> [u8; 3]) -> String {
    let mut words = [0u32; 8];
    words[2..4].copy_from_slice(&[width, height]);
    words[6] = 3;
    let header: PictureHeader = zerocopy::transmute!(words);
    let pixels: Vec<u8> =
        (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).flat_map(|(x, y)| colour(x, y)).collect();
    let picture = Picture::new(&header, &pixels).unwrap();
    let mut text = String::new();
    terminal.draw(&picture, &mut text).unwrap();
    text
}

/// Columns of every line, without the escape sequences.
fn widths(text: &str) -> Vec<usize> {
    text.lines().map(|line| line.chars().filter(|&c| c == '\u{2580}').count()).collect()
}

#[test]
fn sample_fits_and_uses_the_room() {
    let mut header = PictureHeader::default();
    measure(files::PICTURE, &mut header).check().unwrap();
    let mut pixels = vec![0; header.buffer_len(1 << 20).unwrap()];
    decode(files::PICTURE, &mut header, &mut pixels).check().unwrap();
    let picture = Picture::new(&header, &pixels).unwrap();
    let mut text = String::new();
    Terminal::new(80, 24).draw(&picture, &mut text).unwrap();
    assert_eq!(widths(&text), [76; 24]);
    text.clear();
    Terminal::NONE.draw(&picture, &mut text).unwrap();
    assert_eq!(text, "");
}

#[test]
fn every_shape_fits() {
    let terminal = Terminal::new(20, 6);
    for width in [1, 2, 19, 20, 21, 40, 333] {
        for height in [1, 2, 11, 12, 13, 24, 333] {
            let widths = widths(&draw(terminal, (width, height), |_, _| [9; 3]));
            assert!((1..=6).contains(&widths.len()), "{width}x{height}");
            let all_fit = widths.iter().all(|width| (1..=20).contains(width));
            assert!(all_fit, "{width}x{height}");
        }
    }
}

#[test]
fn colours_are_means_and_are_sent_once() {
    // Two pixels side by side become one.
    let text = draw(Terminal::new(1, 1), (2, 2), |x, _| [x as u8 * 100, 50, 7]);
    assert_eq!(text, "\x1b[38;2;50;50;7m\u{2580}\x1b[0m\n");
    // 3 pixels onto 2: the middle one counts half for both, three halves make one.
    let text = draw(Terminal::new(2, 1), (3, 1), |x, _| [x as u8 * 30, 0, 0]);
    assert_eq!(text, "\x1b[38;2;10;0;0m\u{2580}\x1b[38;2;50;0;0m\u{2580}\x1b[0m\n");
    let plain = draw(Terminal::new(80, 24), (8, 2), |_, _| [1, 2, 3]);
    assert_eq!(plain.matches("38;2;").count(), 1);
    assert_eq!(plain.matches("48;2;1;2;3m").count(), 1);
}

#[test]
fn arguments_are_read() {
    assert_eq!(Terminal::from_arguments("color=1 columns=80"), Terminal::new(80, Terminal::ROWS));
    assert_eq!(Terminal::from_arguments("a columns=7 b color=1 color=0"), Terminal::new(7, Terminal::ROWS));
    for none in ["", "color=0", "color=1", "columns=80", "color=0 columns=80", "color=1 columns=", "color=1 columns=-1"]
    {
        assert_eq!(Terminal::from_arguments(none), Terminal::NONE);
    }
    assert!(!Terminal::from_arguments("color=1 columns=0").is_some());
    assert_eq!(Terminal::from_arguments("color=1 columns=99999999"), Terminal::new(usize::MAX, Terminal::ROWS));
}

#[test]
fn a_picture_larger_than_its_pixels_is_refused() {
    let header = PictureHeader::read_from_bytes(&[1; size_of::<PictureHeader>()]).unwrap();
    assert!(Picture::new(&header, &[0; 64]).is_err());
}
