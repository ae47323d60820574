//! PNG pictures.
//!
//! [`measure`] and [`decode`] run in the sandbox, around the crate `minipng`. The kernel calls
//! the first, lends as much memory as [`PictureHeader::buffer_len`] says, calls the second, and
//! sees the result through [`Picture::new`].
//!
//! Limits of `minipng`, each with its line in [`Problem`] or [`Note`]: no interlacing, no unknown
//! critical chunks; 16 bits per channel are cut to 8; a transparent colour of a picture without a
//! palette isn't applied; of an animation the still picture is shown. It doesn't compare the
//! chunks' CRCs, only the checksum of the pixels.

use core::fmt;

use minipng::{BitDepth, ColorType, Error, ImageHeader};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::status::{Problem, Status};

/// The first bytes of every PNG file.
pub const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// Facts about a picture, as the sandboxed parser gives them; any bit pattern is valid.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PictureHeader {
    needed_bytes: u64,
    width: u32,
    height: u32,
    /// [`Colour`] by number.
    colour: u32,
    /// Per channel, in the file.
    bits: u32,
    /// Bytes per pixel after decoding.
    channels: u32,
    /// One bit per [`Note`].
    notes: u32,
}

/// Reads a picture's header; runs in the sandbox.
pub fn measure(png: &[u8], header: &mut PictureHeader) -> Status {
    match minipng::decode_png_header(png) {
        Ok(image) => {
            *header = PictureHeader::from_image(&image, png);
            Status::OK
        }
        Err(error) => Status::of(problem(error)),
    }
}

/// Decodes a picture into `pixels`, as RGB or RGBA with 8 bits each; runs in the sandbox.
///
/// `pixels` is also the parser's working memory, so it may have to be larger than the pixels are.
pub fn decode(png: &[u8], header: &mut PictureHeader, pixels: &mut [u8]) -> Status {
    Status::from(decode_into(png, header, pixels).map_err(problem))
}

fn decode_into(png: &[u8], header: &mut PictureHeader, pixels: &mut [u8]) -> Result<(), Error> {
    *header = PictureHeader::from_image(&minipng::decode_png_header(png)?, png);
    let mut image = minipng::decode_png(png, pixels)?;
    if header.channels != RGB_BYTES {
        image.convert_to_rgba8bpc()?;
    }
    Ok(())
}

const RGB_BYTES: u32 = 3;
const RGBA_BYTES: u32 = 4;

impl PictureHeader {
    fn from_image(image: &ImageHeader, png: &[u8]) -> Self {
        let kept_as_it_is = matches!((image.color_type(), image.bit_depth()), (ColorType::Rgb, BitDepth::Eight));
        let needed = if kept_as_it_is { image.required_bytes() } else { image.required_bytes_rgba8bpc() };
        Self {
            needed_bytes: needed as u64,
            width: image.width(),
            height: image.height(),
            colour: Colour::from(image.color_type()) as u32,
            bits: image.bit_depth() as u32,
            channels: if kept_as_it_is { RGB_BYTES } else { RGBA_BYTES },
            notes: notes(image, png),
        }
    }

    /// How many bytes to lend to [`decode`], if that is at most `limit`.
    pub fn buffer_len(&self, limit: usize) -> Result<usize, Problem> {
        self.pixels_len()?;
        match usize::try_from(self.needed_bytes) {
            Ok(0) => Err(Problem::BadAnswer),
            Ok(needed) if needed <= limit => Ok(needed),
            _ => Err(Problem::BufferTooSmall),
        }
    }

    /// How many bytes [`decode`] says it needs, unchecked; for messages only.
    pub fn claimed_bytes(&self) -> u64 {
        self.needed_bytes
    }

    /// Pixels per row, unchecked; for messages only.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows, unchecked; for messages only.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Bits per channel in the file, unchecked; for messages only.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// The kind of colours in the file.
    pub fn colour(&self) -> Result<Colour, Problem> {
        Colour::ALL.into_iter().find(|&colour| colour as u32 == self.colour).ok_or(Problem::BadAnswer)
    }

    /// What the pixels don't show of the file.
    pub fn notes(&self) -> impl Iterator<Item = Note> + use<> {
        let notes = self.notes;
        Note::ALL.into_iter().filter(move |&note| notes & note.bit() != 0)
    }

    /// Bytes of the decoded pixels.
    fn pixels_len(&self) -> Result<usize, Problem> {
        if self.width == 0 || self.height == 0 {
            return Err(Problem::BadAnswer);
        }
        if self.channels != RGB_BYTES && self.channels != RGBA_BYTES {
            return Err(Problem::BadAnswer);
        }
        [self.height, self.channels]
            .into_iter()
            .try_fold(self.width as usize, |product, factor| product.checked_mul(factor as usize))
            .ok_or(Problem::BadAnswer)
    }
}

/// A picture from a sandbox whose header was checked against its pixels.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    width: usize,
    height: usize,
    channels: usize,
    pixels: &'a [u8],
}

impl<'a> Picture<'a> {
    /// Checks what [`decode`] gave back.
    pub fn new(header: &PictureHeader, pixels: &'a [u8]) -> Result<Self, Problem> {
        let len = header.pixels_len()?;
        Ok(Self {
            width: header.width as usize,
            height: header.height as usize,
            channels: header.channels as usize,
            pixels: pixels.get(..len).ok_or(Problem::BadAnswer)?,
        })
    }

    /// Pixels per row; at least 1.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows; at least 1.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Bytes per pixel: 3 for RGB, 4 for RGBA.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// All pixels, row by row from the top, without gaps.
    pub fn pixels(&self) -> &'a [u8] {
        self.pixels
    }

    /// One pixel on a black background; black if there's no such pixel.
    pub fn colour_at(&self, x: usize, y: usize) -> [u8; 3] {
        if x >= self.width || y >= self.height {
            return [0; 3];
        }
        let index = (y * self.width + x) * self.channels;
        match self.pixels.get(index..index + self.channels) {
            Some(&[red, green, blue]) => [red, green, blue],
            Some(&[red, green, blue, alpha]) => {
                [red, green, blue].map(|value| (u16::from(value) * u16::from(alpha) / u16::from(u8::MAX)) as u8)
            }
            _ => [0; 3],
        }
    }
}

/// The kinds of colours that a PNG file can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Colour {
    /// Shades of grey.
    Grey = 1,
    /// Shades of grey with opacity.
    GreyAlpha = 2,
    /// Red, green, blue.
    Rgb = 3,
    /// Red, green, blue, opacity.
    Rgba = 4,
    /// Numbers of colours in a palette.
    Palette = 5,
}

impl Colour {
    const ALL: [Self; 5] = [Self::Grey, Self::GreyAlpha, Self::Rgb, Self::Rgba, Self::Palette];
}

impl From<ColorType> for Colour {
    fn from(colour: ColorType) -> Self {
        match colour {
            ColorType::Gray => Self::Grey,
            ColorType::GrayAlpha => Self::GreyAlpha,
            ColorType::Rgb => Self::Rgb,
            ColorType::Rgba => Self::Rgba,
            ColorType::Indexed => Self::Palette,
        }
    }
}

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grey => "grey",
            Self::GreyAlpha => "grey with alpha",
            Self::Rgb => "RGB",
            Self::Rgba => "RGBA",
            Self::Palette => "palette",
        })
    }
}

/// Limits of the parser that lose something of a picture without failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Note {
    /// 16 bits per channel.
    CutTo8Bits = 0,
    /// `tRNS` in a picture without a palette.
    TransparentColourIgnored = 1,
    /// `acTL`: an animation.
    FirstPictureOnly = 2,
}

impl Note {
    const ALL: [Self; 3] = [Self::CutTo8Bits, Self::TransparentColourIgnored, Self::FirstPictureOnly];

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CutTo8Bits => "limit: the picture has 16 bits per channel, of which 8 are kept",
            Self::TransparentColourIgnored => {
                "limit: the picture names one colour as transparent (tRNS), which minipng ignores"
            }
            Self::FirstPictureOnly => {
                "limit: the picture is animated (APNG), of which minipng decodes the still picture"
            }
        })
    }
}

/// Looks through the chunks before the pixels for what `minipng` skips silently.
fn notes(image: &ImageHeader, png: &[u8]) -> u32 {
    /// A chunk's length and type stand before its data, its CRC behind.
    const BEFORE: usize = 8;
    const AROUND: usize = 12;

    let mut notes = 0;
    if image.bit_depth() == BitDepth::Sixteen {
        notes |= Note::CutTo8Bits.bit();
    }
    let mut rest = png.get(SIGNATURE.len()..).unwrap_or_default();
    while let Some(&[a, b, c, d, ref kind @ ..]) = rest.first_chunk::<BEFORE>() {
        match kind {
            b"IDAT" | b"IEND" => break,
            b"tRNS" if image.color_type() != ColorType::Indexed => {
                notes |= Note::TransparentColourIgnored.bit();
            }
            b"acTL" => notes |= Note::FirstPictureOnly.bit(),
            _ => {}
        }
        let len = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_add(AROUND);
        rest = rest.get(len..).unwrap_or_default();
    }
    notes
}

fn problem(error: Error) -> Problem {
    match error {
        Error::UnexpectedEof => Problem::PictureCutOff,
        Error::BufferTooSmall => Problem::BufferTooSmall,
        Error::TooLargeForUsize => Problem::PictureTooLarge,
        Error::NotPng => Problem::NotPng,
        Error::BadIhdr => Problem::BadHeader,
        Error::UnrecognizedChunk => Problem::UnknownChunk,
        Error::BadBlockType => Problem::BadBlockType,
        Error::BadNlen => Problem::BadStoredLength,
        Error::TooMuchData => Problem::TooMuchData,
        Error::UnexpectedEob => Problem::BlockCutOff,
        Error::BadZlibHeader => Problem::BadZlibHeader,
        Error::BadCode => Problem::BadCode,
        Error::BadHuffmanDict => Problem::BadCodeTable,
        Error::BadBackReference => Problem::BadBackReference,
        Error::UnsupportedInterlace => Problem::Interlaced,
        Error::BadFilter => Problem::BadFilter,
        Error::BadPlteChunk => Problem::BadPalette,
        Error::BadTrnsChunk => Problem::BadTransparency,
        Error::NoIdat => Problem::NoPixels,
        Error::BadAdlerChecksum => Problem::BadChecksum,
        Error::BadChunkSize => Problem::BadChunkSize,
        Error::CompressedSizeTooSmall => Problem::TooFewData,
        _ => Problem::PictureRefused,
    }
}
