//! What the guest is told about the terminal that shows its output.

use std::io::IsTerminal;

/// The terminal on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terminal {
    pub(crate) color: bool,
    pub(crate) columns: u16,
}

impl Terminal {
    /// The one on standard output now, if it is one.
    pub(crate) fn on_stdout() -> Option<Self> {
        let stdout = std::io::stdout();
        if !stdout.is_terminal() {
            return None;
        }
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Some(Self {
            color: set("NO_COLOR").is_none() && set("TERM").is_some_and(|terminal| terminal != "dumb"),
            columns: match rustix::termios::tcgetwinsize(&stdout) {
                Ok(size) if size.ws_col != 0 => size.ws_col,
                _ => 80,
            },
        })
    }
}

/// The guest's arguments: the words about the terminal first, then the user's.
pub(crate) fn guest_arguments(terminal: Option<Terminal>, users: &str) -> String {
    let mut words = match terminal {
        Some(Terminal { color, columns }) => format!("color={} columns={columns}", u8::from(color)),
        None => "color=0".to_owned(),
    };
    if !users.is_empty() {
        words.push(' ');
        words.push_str(users);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_about_the_terminal_come_first() {
        let wide = Some(Terminal { color: true, columns: 132 });
        assert_eq!(guest_arguments(wide, "only=fp"), "color=1 columns=132 only=fp");
        assert_eq!(guest_arguments(wide, ""), "color=1 columns=132");
        assert_eq!(guest_arguments(None, "a b"), "color=0 a b");
        assert_eq!(guest_arguments(None, ""), "color=0");
    }
}
