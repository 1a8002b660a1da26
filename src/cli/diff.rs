//! `onnx-osplus diff`: what differs between two models, for people.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use onnx_osplus::onnx;
use onnx_osplus::review::diff::{Style, diff};

use super::files::Files;
use super::table;

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

    /// Print JSON for other programs; its `schema` is 1 [example: --json]
    #[arg(long)]
    json: bool,

    /// Colours: on a terminal unless NO_COLOR is set, always, or never [example: --color always]
    #[arg(long, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    color: Color,

    /// Exit with 1 if the models differ, as `git diff --exit-code` does; failures then exit with 2 [example: --exit-code]
    #[arg(long)]
    exit_code: bool,
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
    let mut files = Files::default();
    files.reads_model("A", &arguments.before);
    files.reads_model("B", &arguments.after);
    super::begin(&mut files, None, false)?;
    let (before, before_source) = onnx::load_with_source(&arguments.before)?;
    let (after, after_source) = onnx::load_with_source(&arguments.after)?;
    let found = diff(&before, &after);
    let terminal = std::io::stdout().is_terminal();
    #[expect(
        clippy::disallowed_methods,
        reason = "https://no-color.org: a program asks the environment"
    )]
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let style = Style {
        full: arguments.full,
        color: match arguments.color {
            Color::Auto => terminal && !no_color,
            Color::Always => true,
            Color::Never => false,
        },
        ask_for_all: Some("--full"),
        width: table::width(),
    };
    // Like other diffs, this one has nothing to say of things that are the same.
    let text = match (arguments.json, found.is_empty()) {
        (true, _) => format!("{:#}\n", found.json()),
        (false, true) => String::new(),
        (false, false) if arguments.stat => found.stat(style),
        (false, false) => found.text(style),
    };
    before_source.check_unchanged()?;
    after_source.check_unchanged()?;
    super::print(&text);
    Ok(ExitCode::from(u8::from(
        arguments.exit_code && !found.is_empty(),
    )))
}
