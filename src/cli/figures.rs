//! Numbers as tables and lines of text have them.

use onnx_osplus::review::TokenFacts;

/// The row of one token in the table of outlier tokens.
pub(super) fn token_row(token: &TokenFacts) -> String {
    fn text<T: ToString>(value: Option<T>) -> String {
        value.map_or("–".to_owned(), |value| value.to_string())
    }
    let ratio = token.ratio.map(|r| format!("{r:.1}"));
    format!(
        "  {:>7}  {:>7.2}  {:>6}  {:>8}  {:>6}  {:>7}  ",
        text(ratio),
        token.value.abs(),
        token.row,
        text(token.position),
        text(token.id),
        token.channel
    )
}

/// As "22.7 M".
pub(super) fn counted(n: u64) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.2} G", n / 1e9),
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n if n >= 1e4 => format!("{:.0} k", n / 1e3),
        n => format!("{n}"),
    }
}
