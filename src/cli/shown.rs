//! Text for people: what comes from files is escaped, and nobody who stops listening changes what is done.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::path::Path;

use onnx_osplus::onnx::shown;

use super::table;

/// Lines of text, in which names from files are shown and never act.
///
/// `writeln!` writes one line: line feeds in it come from names, and are escaped like every other control character.
#[derive(Default)]
pub(super) struct Lines(String);

impl Lines {
    /// For `write!` and `writeln!`.
    pub(super) fn write_fmt(&mut self, arguments: fmt::Arguments) -> fmt::Result {
        let text = arguments.to_string();
        match text.strip_suffix('\n') {
            Some(line) => writeln!(self.0, "{}", shown(line)),
            None => self.0.write_str(&shown(&text)),
        }
    }

    /// Text in as many lines as the width needs; those after the first are indented.
    pub(super) fn wrapped(
        &mut self,
        text: &str,
        indent: usize,
        width: Option<usize>,
    ) -> fmt::Result {
        writeln!(self.0, "{}", table::wrap(&shown(text), indent, width))
    }

    /// A line that ends with a name, of which as much is shown as fits.
    pub(super) fn named(
        &mut self,
        before: &str,
        name: &str,
        after: &str,
        width: Option<usize>,
    ) -> fmt::Result {
        let line = table::line(&shown(before), &shown(name), &shown(after), width);
        writeln!(self.0, "{line}")
    }

    /// All of it.
    pub(super) fn text(self) -> String {
        self.0
    }
}

/// A path as it is shown.
pub(super) fn path(path: &Path) -> String {
    shown(&path.display().to_string()).into_owned()
}

/// Writes a line to the standard error. A reader who has gone away, or a full disk, is no reason to stop.
pub(super) fn say(line: &str) {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "{line}").and_then(|()| err.flush());
}

/// Writes text to the standard output. A reader who closes a pipe early wants no more; what else goes wrong is said on the
/// standard error. Neither changes what is done, nor the exit status.
pub(super) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            say(&format!(
                "warning: the standard output could not be written: {error}"
            ));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_on_its_line() {
        let mut lines = Lines::default();
        let name = "a\nerror: b\u{1b}[2J";
        writeln!(lines, "note       {name}").unwrap();
        lines.wrapped("one two\nthree", 2, Some(8)).unwrap();
        lines.named("  ", "x\r\ny", "", None).unwrap();
        let expected = "note       a\\nerror: b\\u{1b}[2J\none\n  two\\nthree\n  x\\r\\ny\n";
        assert_eq!(lines.text(), expected);
    }
}
