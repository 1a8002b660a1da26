//! What several sections are made of.

use maud::{Markup, html};

/// A table that scrolls by itself if the page is narrow: its head and its rows.
pub(super) fn table(head: &Markup, rows: &Markup) -> Markup {
    html! {
        div.scroll { table { tr { (head) } (rows) } }
    }
}

pub(super) fn decibels(db: Option<f64>, none: &str) -> String {
    db.map_or(none.to_owned(), |db| format!("{db:.2} dB"))
}
