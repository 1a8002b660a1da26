//! A diff as Markdown, for a comment on a pull request.
//!
//! ```text
//! heading ─ summary ─ table of sizes ─ a fold per block, its lines in a fence ─ what was left out, in a sentence
//! ```
//!
//! Names come from files that a stranger may have made. They stand in three places only: in a fence that is longer than
//! any run of backticks in it; in `<code>`, inside of a block of HTML, where Markdown has no meaning, as text in which
//! nothing is markup; or as plain words. Inside of `<code>` and fences GitHub and GitLab make no links, mentions,
//! references or emoji.

use std::fmt::Write;

use maud::Render;

use crate::onnx::shown;

use super::Diff;
use super::change::{Change, Kind, Sign};
use super::group::{Row, Section, ranges, sections};
use super::style::{Style, shorten};
use super::summary::{plural, size};
use super::text::{counted, inside, joined};

/// As long as a comment gets: GitHub takes 65,536 characters, and what sends it may add some of its own. Bytes are counted,
/// of which there are never fewer than characters.
pub const MARKDOWN_BYTES: usize = 65_000;

/// What the last sentences and the closing tags may take of it.
const RESERVED: usize = 1_200;
/// What a command that shows everything may take of that.
const COMMAND: usize = 600;
/// Less than this cannot hold heading, summary and what is left out, were every character of them an entity.
const LEAST: usize = 8_000;
/// Longest line inside of a fold, in characters.
const LONGEST: usize = 400;
/// Longest name in a line, in characters.
const NAME: usize = 120;
/// Longest summary, in characters.
const SUMMARY: usize = 3_000;
/// Folds are open where all of them together are no longer than this.
const OPEN: usize = 24;

/// What a comment says beside the differences.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// The names of A and B, as the reader knows them.
    pub names: [&'a str; 2],
    /// At most so many bytes; [`MARKDOWN_BYTES`] fits a comment. Less than 8000 are taken as 8000.
    pub most: usize,
    /// Counts by block in place of the changes.
    pub stat: bool,
    /// Every constant, name and repeated block, as far as `most` reaches.
    pub full: bool,
    /// What the reader is to ask for everything with, such as "onnx-osplus diff A B --full".
    pub ask_for_all: Option<&'a str>,
}

impl Default for Page<'_> {
    fn default() -> Self {
        Page {
            names: ["A", "B"],
            most: MARKDOWN_BYTES,
            stat: false,
            full: false,
            ask_for_all: None,
        }
    }
}

impl Diff {
    /// The diff as GitHub-flavoured Markdown of at most [`Page::most`] bytes: a summary, the sizes, and a `<details>` for
    /// each block that changed. What does not fit is counted in the last sentence. Ends with a line feed.
    ///
    /// ```
    /// use onnx_osplus::onnx::{self, LoadError};
    /// use onnx_osplus::review::diff::{Page, diff};
    ///
    /// let before = onnx::load("models/tiny/model.onnx")?;
    /// let mut after = before.clone();
    /// after.graph_mut().node[0].name = Some("`</details>`".to_owned());
    /// let comment = diff(&before, &after).markdown(&Page::default());
    /// assert!(comment.starts_with("<h3><code>A</code> → <code>B</code></h3>\n"));
    /// assert_eq!(comment.matches("<details").count(), comment.lines().filter(|l| *l == "</details>").count());
    /// # Ok::<(), LoadError>(())
    /// ```
    pub fn markdown(&self, page: &Page) -> String {
        let most = page.most.max(LEAST);
        let [a, b] = page.names.map(|name| code(&shorten(name, NAME)));
        let mut out = format!(
            "<h3>{a} → {b}</h3>\n\n<p>{}</p>\n",
            prose(&self.summary(), SUMMARY.min(most / 12))
        );
        if self.is_empty() {
            return out;
        }
        let _ = write!(
            out,
            "\n| | before | after |\n|---|---:|---:|\n| nodes | {} | {} |\n| weights | {} | {} |\n",
            self.nodes.0,
            self.nodes.1,
            size(self.bytes.0),
            size(self.bytes.1)
        );
        let mut notes = Vec::new();
        if page.stat || (self.little_in_common() && !page.full) {
            let lines = self.stat(Style::default());
            let lines: Vec<String> = lines.lines().map(cut).collect();
            let kept = fold(
                &mut out,
                most - RESERVED,
                ("changes by block", true),
                "text",
                &lines,
            );
            if kept < lines.len() {
                notes.push(plural(lines.len() - kept, "line"));
            }
        } else {
            notes = self.folds(&mut out, most - RESERVED, page.full);
        }
        if !notes.is_empty() {
            let ask = page.ask_for_all.map_or(String::new(), |ask| {
                // Part of a command is none: it stands as it is, or what follows it is said.
                match code(&shorten(ask, usize::MAX)) {
                    ask if ask.len() <= COMMAND => format!("; {ask} shows them"),
                    _ => "; the same command with <code>--full</code> shows them".into(),
                }
            });
            let _ = write!(out, "\n<p>Not shown: {}{ask}.</p>\n", notes.join(", "));
        }
        out
    }

    /// A fold for each section, as many as fit; what is left out, in words.
    fn folds(&self, out: &mut String, most: usize, full: bool) -> Vec<String> {
        let (sections, hidden) = sections(self, full);
        let style = Style {
            full,
            ..Style::default()
        };
        let open = sections.iter().map(|s| s.rows.len()).sum::<usize>() <= OPEN;
        let (mut changes, mut blocks) = (0, 0);
        for section in &sections {
            let rows: Vec<_> = section
                .rows
                .iter()
                .map(|r| lines(r, section, style, NAME))
                .collect();
            let flat: Vec<String> = rows.iter().flatten().cloned().collect();
            let kept = fold(out, most, (&title(section), open), "diff", &flat);
            let mut end = 0;
            let left = rows.iter().zip(&section.rows).filter(|(lines, row)| {
                end += lines.len();
                end > kept && matches!(row, Row::Change(_))
            });
            let left = left.count() * section.times();
            changes += left;
            blocks += if left > 0 { section.times() } else { 0 };
        }
        let mut notes = Vec::new();
        if changes > 0 {
            notes.push(format!(
                "{} in {}, for which a comment has no room",
                plural(changes, "change"),
                plural(blocks, "block")
            ));
        }
        notes.extend(counted(&hidden));
        notes
    }
}

/// Writes a fold with as many of the lines as `most` bytes of `out` have room for; how many those are. None at all leaves
/// `out` as it was.
fn fold(
    out: &mut String,
    most: usize,
    (title, open): (&str, bool),
    language: &str,
    lines: &[String],
) -> usize {
    let run = lines.iter().map(|line| longest_run(line, '`')).max();
    let fence = "`".repeat((run.unwrap_or(0) + 1).max(3));
    let open = if open { " open" } else { "" };
    let head = format!("\n<details{open}><summary>{title}</summary>\n\n{fence}{language}\n");
    let tail = format!("{fence}\n\n</details>\n");
    let mut room = most.saturating_sub(out.len() + head.len() + tail.len());
    let mut fits = |line: &&String| {
        let fits = line.len() < room;
        room = room.saturating_sub(line.len() + 1);
        fits
    };
    let kept: Vec<&String> = lines.iter().take_while(|x| fits(x)).collect();
    if kept.is_empty() {
        return 0;
    }
    out.push_str(&head);
    for line in &kept {
        let _ = writeln!(out, "{line}");
    }
    out.push_str(&tail);
    kept.len()
}

/// The title of a fold, as HTML.
fn title(section: &Section) -> String {
    let name = match section.title.as_str() {
        "" => "model",
        title => title,
    };
    let mut text = code(&shorten(name, NAME));
    if section.layers.len() > 1 {
        let layers = shorten(&ranges(&section.layers), NAME);
        let _ = write!(text, " × {} (* = {layers})", section.layers.len());
    }
    let count = |sign| section.changes().filter(|c| c.sign == sign).count();
    let _ = write!(
        text,
        ": +{} −{} ~{}",
        count(Sign::Added),
        count(Sign::Removed),
        count(Sign::Changed)
    );
    text
}

/// The lines of one row, as a fence of the language `diff` colours them: `!` is a change.
pub(super) fn lines(row: &Row, section: &Section, style: Style, most: usize) -> Vec<String> {
    let line = |sign: char, parts: &[_]| {
        let text = joined(parts, &section.block, style, most).concat();
        cut(&format!("{sign} {}", text.trim_end()))
    };
    match row {
        Row::Skipped(count) => vec![format!("  … {count} unchanged")],
        Row::Context(op, name) => {
            let name = shorten(inside(name, &section.block), most);
            vec![cut(&format!("  {}  {name}", shown(op)))]
        }
        Row::Change(change) => {
            let sign = match change.sign {
                Sign::Added => '+',
                Sign::Removed => '-',
                Sign::Changed => '!',
            };
            let mut lines = vec![line(sign, &change.line)];
            lines.extend(details(change, style.full).map(|detail| {
                let text = joined(detail, &section.block, style, most).concat();
                cut(&format!("{sign}     {}", text.trim_end()))
            }));
            lines
        }
    }
}

/// The class of a line of [`lines`].
pub(super) fn sign_of(line: &str) -> &'static str {
    match line.as_bytes().first() {
        Some(b'+') => "added",
        Some(b'-') => "removed",
        Some(b'!') => "otherwise",
        _ => "same",
    }
}

/// What stands beneath a change; new names only where there is nothing else, or everything is asked for.
fn details(change: &Change, full: bool) -> impl Iterator<Item = &Vec<super::Part>> {
    let renames = change.renames.iter();
    let shown = renames.filter(move |_| full || change.kind == Kind::Name);
    shown.chain(&change.details)
}

/// A line of at most [`LONGEST`] characters, which says how many more there were.
fn cut(line: &str) -> String {
    let length = line.chars().count();
    if length <= LONGEST {
        return line.to_owned();
    }
    let start: String = line.chars().take(LONGEST).collect();
    format!("{start}… ({} more)", plural(length - LONGEST, "character"))
}

/// The longest run of a character.
fn longest_run(text: &str, of: char) -> usize {
    let runs = text.split(|c| c != of).map(str::len);
    runs.max().unwrap_or(0)
}

/// Text as HTML, in which nothing is markup.
fn escaped(text: &str) -> String {
    let html = shown(text).render().into_string();
    html.replace('`', "&#96;")
}

/// A name in the face of code.
fn code(text: &str) -> String {
    format!("<code>{}</code>", escaped(text))
}

/// Running text, in which what is no plain word stands in the face of code: a mention or a link is none there.
fn prose(text: &str, most: usize) -> String {
    let plain = |word: &str| {
        let bare = word.trim_end_matches([':', '.', ',', ';']);
        let letter = |c: char| c.is_alphanumeric() || "(),;+-–→%×*./".contains(c);
        let link = bare.contains("www.") || bare.contains("GH-");
        bare.chars().all(letter) && !link && bare.chars().count() <= NAME
    };
    let word = |word: &str| match plain(word) {
        true => escaped(word),
        false => code(&shorten(word, NAME)),
    };
    let mut length = 0;
    let words: Vec<&str> = text.split(' ').collect();
    let mut fits = |word: &&&str| {
        length += word.chars().count().min(NAME) + 1;
        length <= most
    };
    let kept: Vec<String> = words
        .iter()
        .take_while(|x| fits(x))
        .map(|w| word(w))
        .collect();
    let left = words.len() - kept.len();
    let more = match left {
        0 => String::new(),
        left => format!(" … ({} more)", plural(left, "word")),
    };
    kept.join(" ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto, NodeProto};
    use crate::review::diff::diff;

    /// What a comment must not obey.
    const HOSTILE: [&str; 8] = [
        "````\n</details>",
        "</code></summary><script>alert(1)</script>",
        "@everyone #1 https://example.com",
        "| a | b |\n|---|",
        "<!-- --> ![x](y)",
        "\u{202e}\u{1b}[2J",
        "&lt; \\` ~~~",
        ":+1: GH-12 www.example.com",
    ];

    fn model(names: &[String]) -> crate::onnx::Model {
        let node = |name: &String| NodeProto {
            name: Some(name.clone()),
            op_type: Some(name.clone()),
            input: vec!["x".to_owned()],
            output: vec![format!("{name}_out")],
            ..NodeProto::default()
        };
        let graph = GraphProto {
            node: names.iter().map(node).collect(),
            ..GraphProto::default()
        };
        crate::onnx::Model {
            proto: ModelProto {
                graph: Some(graph),
                ..ModelProto::default()
            },
        }
    }

    #[test]
    fn names_are_never_markup_and_folds_are_closed() {
        let names: Vec<String> = HOSTILE.iter().map(|&n| n.to_owned()).collect();
        let comment = diff(&model(&[]), &model(&names)).markdown(&Page {
            names: HOSTILE.first_chunk().copied().unwrap(),
            full: true,
            ..Page::default()
        });
        let mut fence: Option<&str> = None;
        let mut inside = Vec::new();
        for line in comment.lines() {
            match fence {
                Some(open) if line == open => fence = None,
                Some(_) => inside.push(line),
                None if line.starts_with("```") => fence = Some(line.trim_end_matches("diff")),
                None => {
                    for word in ["<script", "`", "\u{1b}"] {
                        assert!(!line.contains(word), "{word} in {line}");
                    }
                    // Names stand in blocks of HTML, inside of which Markdown has no meaning.
                    assert!(!line.contains("![") || line.starts_with('<'));
                    assert!(!line.contains("@everyone") || line.contains("<code>@everyone"));
                }
            }
        }
        assert_eq!(fence, None);
        assert!(inside.len() >= HOSTILE.len(), "{comment}");
        let count = |what: &str| comment.lines().filter(|l| l.starts_with(what)).count();
        assert_eq!(count("<details"), count("</details>"));
    }

    #[test]
    fn it_is_never_longer_than_asked_for_and_says_what_is_missing() {
        let long = "<&\"".repeat(200);
        let names: Vec<String> = (0..1_500).map(|i| format!("@{long}{i}.{i}.x.y")).collect();
        let found = diff(&model(&[]), &model(&names));
        for most in [0, LEAST, 20_000, MARKDOWN_BYTES] {
            for (full, stat) in [(false, false), (true, false), (false, true)] {
                let page = Page {
                    names: [&long, &long],
                    most,
                    stat,
                    full,
                    ask_for_all: Some(&long),
                };
                let comment = found.markdown(&page);
                assert!(
                    comment.len() <= most.max(LEAST),
                    "{} of {most}",
                    comment.len()
                );
                assert!(!full || comment.contains("for which a comment has no room"));
                assert_eq!(
                    comment.matches("<details").count(),
                    comment.matches("</details>").count()
                );
            }
        }
    }

    #[test]
    fn words_of_the_summary_stay_words() {
        assert_eq!(
            prose("12 weights quantized (float → int8). All 81 nodes.", 100),
            "12 weights quantized (float → int8). All 81 nodes."
        );
        assert_eq!(
            prose("1 of @user, 2 <b>", 100),
            "1 of <code>@user,</code> 2 <code>&lt;b&gt;</code>"
        );
        assert_eq!(prose("one two three", 8), "one two … (1 word more)");
    }
}
