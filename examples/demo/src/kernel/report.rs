//! The printed page: headings, and lines of a label and a text, in 80 columns.

use alloc::string::{String, ToString};
use core::fmt::Display;

use platform_qemu::println;

const COLUMNS: usize = 80;

/// Begins a section.
pub(crate) fn heading(text: impl Display) {
    println!("\n{text}");
}

/// A fact, such as a file's.
pub(crate) fn fact(label: &str, text: impl Display) {
    println!("{}", wrapped(&alloc::format!("  {label:<12}"), &text.to_string()));
}

/// What was tried, and what came of it.
pub(crate) fn attempt(label: &str, outcome: impl Display) {
    println!("{}", wrapped(&alloc::format!("  {label:<18} -> "), &outcome.to_string()));
}

/// `text` behind `start`, broken between words where the line is full, each further line as far indented as the first.
fn wrapped(start: &str, text: &str) -> String {
    let indentation = start.chars().count();
    let mut page = String::from(start);
    let mut column = indentation;
    for word in text.split_inclusive(' ') {
        let len = word.chars().count();
        if column > indentation && column + word.trim_end().chars().count() > COLUMNS {
            page.truncate(page.trim_end().len());
            page.push('\n');
            page.extend(core::iter::repeat_n(' ', indentation));
            column = indentation;
        }
        page.push_str(word);
        column += len;
    }
    page
}
