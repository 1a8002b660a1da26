//! `onnx-osplus lint`: what a runtime would make of a file.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use onnx_osplus::graph;
use onnx_osplus::onnx;
use onnx_osplus::target::Target;
use onnx_osplus::target::lint::{self, Cost, Finding, lint, sarif};
use serde::Serialize;

use super::arguments::targets;
use super::files::Files;
use super::shown::{self, Lines};
use super::table;

/// Findings of one rule that are shown without -v.
pub(super) const SHOWN: usize = 3;

/// Check ONNX files, ours or not, against what a runtime accepts, understands and runs in integers
///
/// Prints a line per finding: what it costs, the rule, the node, what is wrong and how to mend it. Exit status 1 if
/// something would be rejected or computed wrongly, or a file cannot be read.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The models to check
    #[arg(value_name = "FILE", required = true)]
    models: Vec<PathBuf>,

    /// The runtime; `portable` asks for all three [example: --target tensorrt]
    #[arg(long, value_name = "TARGET", value_parser = targets())]
    target: Target,

    /// What to print: text; JSON for other programs (of several files, an array); SARIF 2.1.0 for code scanning
    /// [example: --format sarif]
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    /// The same as --format json [example: --json]
    #[arg(long, conflicts_with = "format")]
    json: bool,

    /// Print every finding, not only the first three of each rule [example: -v]
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Sarif,
}

/// The JSON of `lint`: stable, fields are only added.
#[derive(Serialize)]
struct Output<'a> {
    /// The version of this format.
    format: u32,
    file: String,
    target: &'static str,
    /// Whether the file can be used as it is: nothing rejected, nothing wrong.
    ok: bool,
    findings: &'a [Finding],
    /// Why the file could not be checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// A file, and its findings or why there are none.
type Checked = (PathBuf, Result<Vec<Finding>, String>);

/// Prints the findings; the exit status says whether one is fatal.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut files = Files::default();
    for model in &arguments.models {
        files.reads_model("FILE", model);
    }
    super::begin(&mut files, None, false)?;
    let mut checked: Vec<Checked> = Vec::new();
    for model in &arguments.models {
        let findings = match check(model, arguments.target) {
            Ok(findings) => Ok(findings),
            // A single file that cannot be read is the error of the command.
            Err(error) if arguments.models.len() == 1 && arguments.format() != Format::Sarif => {
                return Err(error);
            }
            Err(error) => {
                super::say(&super::message(&error));
                Err(error.to_string())
            }
        };
        checked.push((model.clone(), findings));
    }
    let fatal = |(_, findings): &Checked| match findings {
        Ok(findings) => findings.iter().any(|f| f.cost.is_fatal()),
        Err(_) => true,
    };
    super::print(&match arguments.format() {
        Format::Text => texts(&checked, arguments),
        Format::Json => json(&checked, arguments.target)?,
        Format::Sarif => as_sarif(&checked, arguments.target)?,
    });
    Ok(match checked.iter().any(fatal) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

fn check(path: &Path, target: Target) -> Result<Vec<Finding>> {
    let (model, source) = onnx::load_with_source(path)?;
    graph::check(&model).map_err(onnx_osplus::Error::from)?;
    let findings = lint(&model, target);
    source.check_unchanged()?;
    Ok(findings)
}

/// The listing of every file that was read; of several, behind its name.
fn texts(checked: &[Checked], arguments: &Arguments) -> String {
    let target = arguments.target.profile().name;
    let listed = checked.iter().filter_map(|(path, findings)| {
        let text = listing(findings.as_ref().ok()?, target, arguments.verbose);
        Some(match checked.len() {
            1 => text,
            _ => format!("{}\n{text}", shown::path(path)),
        })
    });
    listed.collect()
}

/// An object, or of several files an array of them.
fn json(checked: &[Checked], target: Target) -> Result<String> {
    let outputs: Vec<Output> = checked
        .iter()
        .map(|(path, findings)| {
            let list = findings.as_deref().unwrap_or_default();
            Output {
                format: 1,
                file: path.display().to_string(),
                target: target.profile().name,
                ok: findings.is_ok() && !list.iter().any(|f| f.cost.is_fatal()),
                findings: list,
                error: findings.as_ref().err().map(String::as_str),
            }
        })
        .collect();
    let text = match &outputs[..] {
        [one] => serde_json::to_string_pretty(one)?,
        all => serde_json::to_string_pretty(all)?,
    };
    Ok(text + "\n")
}

fn as_sarif(checked: &[Checked], target: Target) -> Result<String> {
    let names: Vec<String> = checked
        .iter()
        .map(|(p, _)| p.display().to_string())
        .collect();
    let files: Vec<_> = names
        .iter()
        .zip(checked)
        .map(|(path, (_, findings))| lint::Checked {
            path,
            findings: findings.as_deref().map_err(String::as_str),
        })
        .collect();
    Ok(serde_json::to_string_pretty(&sarif(&files, target))? + "\n")
}

impl Arguments {
    fn format(&self) -> Format {
        match self.json {
            true => Format::Json,
            false => self.format,
        }
    }
}

/// A line per finding, and one that sums up.
fn listing(findings: &[Finding], target: &str, verbose: bool) -> String {
    let mut text = Lines::default();
    // Writing to a String cannot fail.
    let _ = lines(&mut text, findings, verbose);
    let count = |cost: Cost| findings.iter().filter(|f| f.cost == cost).count();
    let counts: Vec<String> = Cost::ALL
        .iter()
        .filter(|&&cost| count(cost) > 0)
        .map(|&cost| format!("{} {cost}", count(cost)))
        .collect();
    let _ = match counts.is_empty() {
        true => writeln!(text, "{target}: nothing found"),
        false => writeln!(text, "{target}: {}", counts.join(", ")),
    };
    text.text()
}

/// Groups of the same rule and cost, each cut to the first few.
pub(super) fn lines(out: &mut Lines, findings: &[Finding], verbose: bool) -> std::fmt::Result {
    let key = |f: &Finding| (f.rule.clone(), f.cost);
    let mut rest = findings;
    while let Some(first) = rest.first() {
        let same = rest.iter().take_while(|f| key(f) == key(first)).count();
        let (group, others) = rest.split_at(same);
        let shown = if verbose { same } else { SHOWN };
        for f in group.iter().take(shown) {
            let operator = match f.operator.as_str() {
                "" => String::new(),
                operator => format!(" ({operator})"),
            };
            let line = format!(
                "{:10}  {}  {}{operator}: {}; {}",
                f.cost, f.rule, f.node, f.message, f.mend
            );
            out.wrapped(&line, 12, table::width())?;
        }
        if same > shown {
            writeln!(
                out,
                "            {}  and {} more; -v shows all",
                first.rule,
                same - shown
            )?;
        }
        rest = others;
    }
    // The rules name a setting; here it has a flag.
    if findings.iter().any(|f| f.mend.contains("`clean`")) {
        writeln!(out, "hint        `clean`: quantize with --clean")?;
    }
    Ok(())
}
