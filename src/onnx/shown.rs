//! Names from files, as a terminal or a log may show them.

use std::borrow::Cow;

/// `text` with everything escaped that does something other than appear: control characters (line feeds and the escape
/// that starts a terminal's commands among them), marks that turn the direction of writing, invisible characters.
///
/// The form is that of a Rust string, as `\n` and `\u{202e}`. What is on one line stays on one line.
///
/// ```
/// use onnx_osplus::onnx::shown;
///
/// assert_eq!(shown("/encoder/layer.0/MatMul"), "/encoder/layer.0/MatMul");
/// assert_eq!(shown("a\u{1b}[2Jb\nerror: c"), "a\\u{1b}[2Jb\\nerror: c");
/// ```
pub fn shown(text: &str) -> Cow<'_, str> {
    escaped(text, acts)
}

/// [`shown`] for text of several lines: line feeds stay.
pub fn shown_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c != '\n' && acts(c))
}

fn escaped(text: &str, acts: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&acts) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match acts(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Whether a character does something to those around it.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{00ad}'
                | '\u{061c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_is_escaped_and_what_is_read_is_not() {
        for plain in ["", "/a/b.c:0", "größe", "注意力", "× → – …", "a b"] {
            assert!(matches!(shown(plain), Cow::Borrowed(text) if text == plain));
        }
        let acting = "\0\u{7}\u{8}\t\n\r\u{1b}\u{7f}\u{9b}\u{202e}\u{2066}\u{200b}\u{2028}\u{feff}";
        for c in acting.chars() {
            let text = format!("a{c}b");
            let escaped = shown(&text);
            assert!(
                escaped.starts_with("a\\") && escaped.ends_with('b'),
                "{escaped}"
            );
            assert!(escaped.chars().all(|c| c.is_ascii_graphic()), "{escaped}");
        }
        assert_eq!(shown_lines("a\nb\r\n"), "a\nb\\r\n");
    }
}
