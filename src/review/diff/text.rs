//! A diff as lines of text.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::onnx::shown;

use super::Diff;
use super::change::{Kind, Part, Sign};
use super::group::{Row, Section, ranges, sections};
use super::style::{Look, Style, shorten};
use super::summary::plural;

/// More lines than this tell nobody anything; [`Style::full`] shows them.
const MOST_LINES: usize = 400;

impl Diff {
    /// The diff for reading: a paragraph, then what changed, block by block. Ends with a line feed.
    pub fn text(&self, style: Style) -> String {
        let mut out = wrap(&self.summary(), style.width, "");
        if self.is_empty() {
            return out;
        }
        if self.little_in_common() && !style.full {
            if let Some(ask) = style.ask_for_all {
                let _ = writeln!(out, "{ask} shows every change.");
            }
            out.push('\n');
            out.push_str(&self.stat(style));
            return out;
        }
        let (sections, hidden) = sections(self, style.full);
        let (mut lines, mut left) = (0, 0);
        for section in &sections {
            let text = show(section, style);
            if lines > MOST_LINES && !style.full {
                left += section.times() * section.changes().count();
                continue;
            }
            lines += text.lines().count();
            out.push_str(&text);
        }
        let mut notes = Vec::new();
        if left > 0 {
            notes.push(plural(left, "more change"));
        }
        notes.extend(counted(&hidden));
        if !notes.is_empty() {
            let ask = style
                .ask_for_all
                .map_or(String::new(), |ask| format!("; {ask} shows them"));
            let note = format!("Not shown: {}{ask}.", notes.join(", "));
            let _ = write!(out, "\n{}", wrap(&note, style.width, ""));
        }
        out
    }
}

/// "4 renamings" for each kind of change that is not shown.
pub(super) fn counted(hidden: &BTreeMap<Kind, usize>) -> Vec<String> {
    let count = |(kind, n): (&Kind, &usize)| {
        let word = match kind.word() {
            "value_info" => "stated type",
            "order" => "change of order",
            "name" => "renaming",
            word => word,
        };
        match (*n, word) {
            (1, word) => format!("1 {word}"),
            (n, "change of order") => format!("{n} changes of order"),
            (n, word) => format!("{n} {word}s"),
        }
    };
    hidden.iter().map(count).collect()
}

fn show(section: &Section, style: Style) -> String {
    let mut out = String::new();
    let title = match section.title.as_str() {
        "" => "model",
        title => title,
    };
    let mut title = style.paint(Look::Title, &shown(title));
    if section.layers.len() > 1 {
        let layers = ranges(&section.layers);
        let first = section.layers[0];
        let _ = write!(
            title,
            "  × {}  (* = {layers}; names are those of {first})",
            section.layers.len()
        );
    }
    let _ = writeln!(out, "\n{title}");
    for row in &section.rows {
        match row {
            Row::Skipped(count) => {
                let text = format!("    … {count} unchanged");
                let _ = writeln!(out, "{}", style.paint(Look::Dim, &text));
            }
            Row::Context(op, name) => {
                let name = inside(name, &section.block);
                let most = style
                    .width
                    .map_or(usize::MAX, |w| w.saturating_sub(6 + op.len()));
                let text = format!("    {}  {}", shown(op), shorten(name, most));
                let _ = writeln!(out, "{}", style.paint(Look::Dim, &text));
            }
            Row::Change(change) => {
                let (sign, look) = match change.sign {
                    Sign::Added => ("+", Look::Added),
                    Sign::Removed => ("-", Look::Removed),
                    Sign::Changed => ("~", Look::Changed),
                };
                let text = fit(&change.line, &section.block, style, 4);
                let mut lines = text.split('\n');
                let first = format!("  {sign} {}", lines.next().unwrap_or_default());
                let _ = writeln!(out, "{}", style.paint(look, &first));
                for line in lines {
                    let _ = writeln!(out, "{}", style.paint(look, &format!("        {line}")));
                }
                let quiet = !style.full && change.kind != super::Kind::Name;
                let renames = change.renames.iter().filter(|_| !quiet);
                for detail in renames.chain(&change.details) {
                    for line in fit(detail, &section.block, style, 8).split('\n') {
                        let _ = writeln!(out, "{}", style.paint(look, &format!("        {line}")));
                    }
                }
            }
        }
    }
    out
}

/// A line in as many lines as the width needs, broken between parts.
fn fit(parts: &[Part], block: &str, style: Style, indent: usize) -> String {
    let Some(width) = style.width else {
        return joined(parts, block, style, usize::MAX)
            .concat()
            .trim_end()
            .to_owned();
    };
    let width = width.saturating_sub(1);
    let text = joined(parts, block, style, usize::MAX).concat();
    if text.trim_end().chars().count() + indent <= width {
        return text.trim_end().to_owned();
    }
    let most = (width / 2).max(24);
    let mut lines = vec![String::new()];
    for chunk in joined(parts, block, style, most)
        .concat()
        .split_inclusive(' ')
    {
        let at = if lines.len() == 1 { indent } else { 8 };
        let line = lines.last().map_or(0, |l| l.chars().count());
        let long = line + at + chunk.trim_end().chars().count() > width;
        if long && line > 0 {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(if line.is_empty() {
                chunk.trim_start()
            } else {
                chunk
            });
        }
    }
    let trimmed: Vec<&str> = lines.iter().map(|l| l.trim_end()).collect();
    trimmed.join("\n")
}

/// The parts as text; digests are cut to eight digits, and left out where blocks differ.
pub(super) fn joined(parts: &[Part], block: &str, style: Style, most: usize) -> Vec<String> {
    let gone = parts.iter().any(|part| matches!(part, Part::Digest(None)));
    let mut out = Vec::new();
    for part in parts {
        out.push(match part {
            Part::Name(name) => shorten(inside(name, block), most),
            Part::Digest(_) if gone => String::new(),
            Part::Digest(Some(digest)) if !style.full => format!("{:08x}", digest >> 32),
            Part::Word(text) if gone && text == "→" => String::new(),
            part => shown(&part.text()).into_owned(),
        });
    }
    out
}

/// A name without the path of its block, or without as much of it as weights are named by.
pub(super) fn inside<'n>(name: &'n str, block: &str) -> &'n str {
    let block = block.rsplit(" › ").next().unwrap_or(block);
    let bare = name.trim_start_matches('/');
    let steps = block.match_indices('.').map(|(i, _)| i + 1);
    let ends = std::iter::once(0).chain(steps).map(|start| &block[start..]);
    // One step of several could be anything's name.
    for end in ends.filter(|end| end.contains('.') || *end == block) {
        match bare.get(..end.len() + 1) {
            Some(head)
                if !end.is_empty()
                    && head.ends_with(['/', '.'])
                    && head[..end.len()].replace('/', ".") == end =>
            {
                return &bare[end.len() + 1..];
            }
            _ => {}
        }
    }
    name
}

/// Running text in lines of at most `width`.
pub(super) fn wrap(text: &str, width: Option<usize>, indent: &str) -> String {
    let width = width.unwrap_or(100).saturating_sub(1).max(20);
    let mut out = String::from(indent);
    let mut column = 0;
    for word in shown(text).split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > width {
            out.push('\n');
            out.push_str(indent);
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
    out
}
