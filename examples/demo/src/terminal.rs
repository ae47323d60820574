//! Pictures on a terminal: two pixels per character, as the upper half block in two colours.
//!
//! Runs in the kernel, so there are no floating-point numbers: a shown pixel is the mean of the
//! source area that it covers, with exact fractions of pixels at the area's edges. The products
//! can't overflow: a picture's sides come with all its pixels in memory, a terminal's are bounded.

use core::fmt::{self, Write};

use crate::picture::Picture;

/// Half a cell high; its foreground is the upper pixel, its background the lower one.
const UPPER_HALF_BLOCK: char = '\u{2580}';
const PIXELS_PER_CELL: usize = 2;

/// Where to draw, and how much room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    columns: usize,
    rows: usize,
}

impl Terminal {
    /// Not a terminal, or none that shows colours: nothing is drawn.
    pub const NONE: Self = Self { columns: 0, rows: 0 };

    /// What a picture takes of a terminal's rows at most: those around it are worth seeing too.
    pub(crate) const ROWS: usize = 32;

    /// Larger ones are used up to here only.
    const MAX: Self = Self { columns: 400, rows: 200 };

    /// A terminal with room for a picture of that many characters.
    pub fn new(columns: usize, rows: usize) -> Self {
        Self { columns: columns.min(Self::MAX.columns), rows: rows.min(Self::MAX.rows) }
    }

    /// The one that a kernel's arguments tell of: `color=1 columns=80` among other words. Without both, or with a number
    /// that is none, [`Terminal::NONE`].
    pub fn from_arguments(arguments: &str) -> Self {
        let value = |name| arguments.split_whitespace().find_map(|word| word.strip_prefix(name));
        match (value("color="), value("columns=").map(str::parse)) {
            (Some("1"), Some(Ok(columns))) => Self::new(columns, Self::ROWS),
            _ => Self::NONE,
        }
    }

    /// Whether anything is drawn at all.
    pub fn is_some(self) -> bool {
        self.columns > 0 && self.rows > 0
    }

    /// Draws a picture as large as fits, but not enlarged.
    pub fn draw(self, picture: &Picture<'_>, out: &mut impl Write) -> fmt::Result {
        if !self.is_some() {
            return Ok(());
        }
        let (width, height) = self.fit(picture.width(), picture.height());
        let scaled = Scaled { picture, width, height };
        for upper in (0..height).step_by(PIXELS_PER_CELL) {
            let mut colours = Colours::default();
            for x in 0..width {
                colours.set_foreground(scaled.colour_at(x, upper), out)?;
                if upper + 1 < height {
                    colours.set_background(scaled.colour_at(x, upper + 1), out)?;
                }
                out.write_char(UPPER_HALF_BLOCK)?;
            }
            out.write_str("\x1b[0m\n")?;
        }
        Ok(())
    }

    /// The largest size of the same shape that fits; half a cell is about square.
    fn fit(self, width: usize, height: usize) -> (usize, usize) {
        let (columns, lines) = (self.columns, self.rows * PIXELS_PER_CELL);
        if width <= columns && height <= lines {
            (width, height)
        } else if width * lines >= height * columns {
            (columns, share(height, columns, width).min(lines))
        } else {
            (share(width, lines, height).min(columns), lines)
        }
    }
}

/// `amount * part / whole`, rounded down but at least 1.
fn share(amount: usize, part: usize, whole: usize) -> usize {
    (amount * part / whole).max(1)
}

/// A picture made smaller.
struct Scaled<'a> {
    picture: &'a Picture<'a>,
    width: usize,
    height: usize,
}

impl Scaled<'_> {
    /// The mean colour of the area that a shown pixel covers.
    fn colour_at(&self, x: usize, y: usize) -> [u8; 3] {
        let mut sums = [0; 3];
        for (source_y, row_weight) in covered(y, self.height, self.picture.height()) {
            for (source_x, weight) in covered(x, self.width, self.picture.width()) {
                let colour = self.picture.colour_at(source_x, source_y);
                for (sum, value) in sums.iter_mut().zip(colour) {
                    *sum += usize::from(value) * weight * row_weight;
                }
            }
        }
        // Each shown pixel covers as many units as the source has pixels, in both directions.
        let area = self.picture.width() * self.picture.height();
        sums.map(|sum| ((sum + area / 2) / area) as u8)
    }
}

/// The source pixels under shown pixel `index`, each with how much of it is covered.
///
/// The unit of length divides both grids: a source pixel is `shown` units long, a shown pixel
/// `source` units. That makes every weight a whole number.
fn covered(index: usize, shown: usize, source: usize) -> impl Iterator<Item = (usize, usize)> {
    let (start, end) = (index * source, (index + 1) * source);
    (start / shown..end.div_ceil(shown)).map(move |pixel| {
        let from = start.max(pixel * shown);
        let to = end.min((pixel + 1) * shown);
        (pixel, to - from)
    })
}

/// The colours that the terminal has at the moment; unchanged ones aren't sent again.
#[derive(Default)]
struct Colours {
    foreground: Option<[u8; 3]>,
    background: Option<[u8; 3]>,
}

impl Colours {
    fn set_foreground(&mut self, colour: [u8; 3], out: &mut impl Write) -> fmt::Result {
        if self.foreground.replace(colour) != Some(colour) {
            let [red, green, blue] = colour;
            write!(out, "\x1b[38;2;{red};{green};{blue}m")?;
        }
        Ok(())
    }

    fn set_background(&mut self, colour: [u8; 3], out: &mut impl Write) -> fmt::Result {
        if self.background.replace(colour) != Some(colour) {
            let [red, green, blue] = colour;
            write!(out, "\x1b[48;2;{red};{green};{blue}m")?;
        }
        Ok(())
    }
}
