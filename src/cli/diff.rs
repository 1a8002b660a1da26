//! `onnx-osplus diff`: what differs between two models, for people.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use onnx_osplus::onnx::{self, Model, output};
use onnx_osplus::review::diff::{Diff, MARKDOWN_BYTES, Page, Style, diff};

use super::files::Files;
use super::{Usage, table};

/// Show what differs between two models: nodes, constants, quantization, block by block
///
/// Nodes are matched by name, then by what they compute. A Q/DQ pair, a quantized weight, and blocks that changed alike
/// take one line each. On a terminal long names are shortened; in a pipe or file everything is written as it is.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 done, 1 failed (or the models differ, with --exit-code), 2 wrong usage.\n\n\
                        Example: onnx-osplus diff float.onnx int8.onnx --stat"
)]
pub(crate) struct Arguments {
    /// The model before
    #[arg(value_name = "A")]
    before: PathBuf,

    /// The model after
    #[arg(value_name = "B")]
    after: PathBuf,

    /// Count changes by block and operator in place of showing them [example: --stat]
    #[arg(long, conflicts_with_all = ["full", "json"])]
    stat: bool,

    /// Show everything: every repeated block, every name, every constant [example: --full]
    #[arg(long, conflicts_with = "json")]
    full: bool,

    /// What to print: text; Markdown for a comment on a pull request, with a fold for each block; JSON for other programs,
    /// whose `schema` is 1 [example: --format markdown]
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    /// The same as --format json [example: --json]
    #[arg(long, conflicts_with = "format")]
    json: bool,

    /// Longest Markdown, in bytes; what does not fit is counted in its last sentence [example: --max-bytes 30000]
    #[arg(long, value_name = "BYTES", default_value_t = MARKDOWN_BYTES, value_parser = parse_bytes)]
    max_bytes: usize,

    /// Also write a page on which the changed part of the graph is drawn, before and after [example: --html diff.html]
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Overwrite the file of --html if it exists [example: --force]
    #[arg(long)]
    force: bool,

    /// Colours: on a terminal unless NO_COLOR is set, always, or never [example: --color always]
    #[arg(long, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    color: Color,

    /// Exit with 1 if the models differ, as `git diff --exit-code` does; failures then exit with 2 [example: --exit-code]
    #[arg(long)]
    exit_code: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Markdown,
    Json,
}

fn parse_bytes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if bytes < 8_000 => Err("at least 8000 bytes".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(format!("{error}")),
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

/// Compares the models and prints the differences.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    match compare(arguments) {
        // 1 says that the models differ.
        Err(error) if arguments.exit_code => {
            super::say(&super::message(&error));
            Ok(ExitCode::from(2))
        }
        result => result,
    }
}

fn compare(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.format() == Format::Json && (arguments.stat || arguments.full) {
        return Err(Usage::error(
            "JSON is always whole: --stat and --full are for text and Markdown",
        ));
    }
    let mut files = Files::default();
    files.reads_model("A", &arguments.before);
    files.reads_model("B", &arguments.after);
    if let Some(path) = &arguments.html {
        files.writes("--html", path, arguments.force)?;
    }
    let (before, before_source) = onnx::load_with_source(&arguments.before)?;
    let (after, after_source) = onnx::load_with_source(&arguments.after)?;
    let found = diff(&before, &after);
    let style = arguments.style();
    let text = match arguments.format() {
        Format::Json => format!("{:#}\n", found.json()),
        Format::Markdown => markdown(arguments, &found),
        // Like other diffs, this one has nothing to say of things that are the same.
        Format::Text if found.is_empty() => String::new(),
        Format::Text if arguments.stat => found.stat(style),
        Format::Text => found.text(style),
    };
    before_source.check_unchanged()?;
    after_source.check_unchanged()?;
    write_page(arguments, &found, (&before, &after))?;
    super::print(&text);
    Ok(ExitCode::from(u8::from(
        arguments.exit_code && !found.is_empty(),
    )))
}

/// The page of --html.
fn write_page(arguments: &Arguments, found: &Diff, models: (&Model, &Model)) -> Result<()> {
    let Some(path) = &arguments.html else {
        return Ok(());
    };
    let names = [&arguments.before, &arguments.after].map(|path| path.display().to_string());
    let page = found.html(models, [&names[0], &names[1]]);
    output::write(path, arguments.force, |file| {
        file.write_all(page.as_bytes())
    })
    .map_err(|error| anyhow!("the page: {error}"))
}

/// The comment, in which A and B are called what the user called them.
fn markdown(arguments: &Arguments, found: &Diff) -> String {
    let [a, b] = [&arguments.before, &arguments.after].map(|path| path.display().to_string());
    let ask = format!("onnx-osplus diff {a} {b} --full");
    found.markdown(&Page {
        names: [&a, &b],
        most: arguments.max_bytes,
        stat: arguments.stat,
        full: arguments.full,
        ask_for_all: Some(&ask),
    })
}

impl Arguments {
    /// How text is written, to the terminal that there is.
    fn style(&self) -> Style {
        let terminal = std::io::stdout().is_terminal();
        #[expect(
            clippy::disallowed_methods,
            reason = "https://no-color.org: a program asks the environment"
        )]
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Style {
            full: self.full,
            color: match self.color {
                Color::Auto => terminal && !no_color,
                Color::Always => true,
                Color::Never => false,
            },
            ask_for_all: Some("--full"),
            width: table::width(),
        }
    }

    fn format(&self) -> Format {
        match self.json {
            true => Format::Json,
            false => self.format,
        }
    }
}
