//! Text that fits the terminal: its width, and names shortened in the middle, where they tell least. What is piped has no
//! width, and every name in full.

use std::io::IsTerminal;

/// Columns of the terminal that the standard output is: what COLUMNS says, or the terminal itself, or 80, and at least 40;
/// `None` if it is none.
pub(super) fn width() -> Option<usize> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a program asks the environment for the width of its terminal"
    )]
    let stated = || std::env::var("COLUMNS").ok()?.parse().ok();
    let columns = || stated().or_else(measured).filter(|&columns| columns > 0);
    let is_terminal = std::io::stdout().is_terminal();
    is_terminal.then(|| columns().unwrap_or(80).max(40))
}

fn measured() -> Option<usize> {
    let (terminal_size::Width(columns), _) = terminal_size::terminal_size_of(std::io::stdout())?;
    Some(usize::from(columns))
}

/// `name` in at most `room` characters: what is too long loses its middle.
pub(super) fn shorten(name: &str, room: usize) -> String {
    let length = name.chars().count();
    if length <= room {
        return name.to_owned();
    }
    let kept = room.saturating_sub(1);
    // The end tells more than the beginning.
    let (head, tail) = (kept / 3, kept - kept / 3);
    let start: String = name.chars().take(head).collect();
    let end: String = name.chars().skip(length - tail).collect();
    match room {
        0 => String::new(),
        _ => format!("{start}…{end}"),
    }
}

/// A line that ends with a name: `before`, as much of `name` as fits, and `after`.
pub(super) fn line(before: &str, name: &str, after: &str, width: Option<usize>) -> String {
    let taken = before.chars().count() + after.chars().count();
    let name = match width {
        // A few characters of a name tell nothing.
        Some(width) => shorten(name, width.saturating_sub(taken).max(12)),
        None => name.to_owned(),
    };
    format!("{before}{name}{after}")
}

/// Text in lines of at most `width` columns, broken between words; lines after the first are indented.
pub(super) fn wrap(text: &str, indent: usize, width: Option<usize>) -> String {
    let Some(width) = width else {
        return text.to_owned();
    };
    let (mut wrapped, mut column) = (String::new(), 0);
    for word in text.split_inclusive(' ') {
        let length = word.trim_end().chars().count();
        if column + length > width && column > indent {
            let end = wrapped.trim_end().len();
            wrapped.truncate(end);
            wrapped.push('\n');
            wrapped.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        }
        wrapped.push_str(word);
        column += word.chars().count();
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_lose_their_middle() {
        assert_eq!(
            shorten("/encoder/layer.0/MatMul", 23),
            "/encoder/layer.0/MatMul"
        );
        let short = shorten("/encoder/layer.0/attention/MatMul", 16);
        assert_eq!(short, "/enco…ion/MatMul");
        assert_eq!(shorten("äöüäöüäöü", 4), "ä…öü");
        assert_eq!(
            (shorten("ab", 1), shorten("ab", 0)),
            ("…".to_owned(), String::new())
        );
    }

    #[test]
    fn lines_fit_and_piped_ones_are_whole() {
        let name = "/encoder/layer.0/attention/output/dense/MatMul";
        let narrow = line("  12.3  ", name, " [64 x 64]", Some(40));
        assert_eq!(narrow.chars().count(), 40, "{narrow}");
        assert!(line("  12.3  ", name, " [64 x 64]", None).contains(name));
    }

    #[test]
    fn text_is_broken_between_words() {
        let text = wrap("note       one two three four five six", 11, Some(24));
        assert_eq!(text, "note       one two three\n           four five six");
        assert_eq!(wrap("a b c", 2, None), "a b c");
    }
}
