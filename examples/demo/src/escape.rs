//! Untrusted text on its way to a terminal.
//!
//! A name in a certificate may contain escape sequences that move the cursor, recolour the
//! screen or answer on the keyboard's behalf, and marks that reverse the direction of writing.
//! [`Escaped`] shows such characters by number instead, and bytes that aren't UTF-8 as `U+FFFD`.

use core::fmt::{self, Write};

/// Shows untrusted bytes as harmless text on one line.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if is_harmless(character) {
                    f.write_char(character)?;
                } else {
                    write!(f, "\\u{{{:x}}}", u32::from(character))?;
                }
            }
            if !chunk.invalid().is_empty() {
                f.write_char(char::REPLACEMENT_CHARACTER)?;
            }
        }
        Ok(())
    }
}

/// Whether a terminal just draws the character, in its place.
fn is_harmless(character: char) -> bool {
    let invisible_or_directing = matches!(
        character,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}'
    );
    !character.is_control() && !invisible_or_directing
}
