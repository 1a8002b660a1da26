//! How a diff is shown.

use crate::onnx::shown;

/// What the text form looks like. The library asks no terminal and no environment: the caller decides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// Everything: every constant and name, no folding of repeated blocks, no limit of length.
    pub full: bool,
    /// ANSI colours.
    pub color: bool,
    /// What the reader is to ask for everything with, such as "--full"; without it a text that leaves something out only
    /// says that it does.
    pub ask_for_all: Option<&'static str>,
    /// Columns of the terminal; long names are shortened and lines wrapped to fit. `None` leaves them as they are.
    pub width: Option<usize>,
}

/// The looks of a piece of text.
#[derive(Clone, Copy)]
pub(super) enum Look {
    Added,
    Removed,
    Changed,
    Title,
    Dim,
}

impl Style {
    /// `text` in the colour of `look`, if colours are wanted.
    pub(super) fn paint(self, look: Look, text: &str) -> String {
        let code = match look {
            Look::Added => "32",
            Look::Removed => "31",
            Look::Changed => "33",
            Look::Title => "1",
            Look::Dim => "2",
        };
        match self.color {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// Shortens a name in the middle: `/encoder/lay…/query/MatMul`.
pub(super) fn shorten(name: &str, most: usize) -> String {
    let name = &*shown(name);
    let length = name.chars().count();
    if length <= most || most < 5 {
        return name.to_owned();
    }
    // The end of a name tells more than its start.
    let (head, tail) = ((most - 1) / 3, most - 1 - (most - 1) / 3);
    let start: String = name.chars().take(head).collect();
    let end: String = name.chars().skip(length - tail).collect();
    format!("{start}…{end}")
}
