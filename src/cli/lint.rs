//! `onnx-osplus lint`: what a runtime would make of a file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use onnx_osplus::graph;
use onnx_osplus::onnx;
use onnx_osplus::target::Target;
use onnx_osplus::target::lint::{Cost, Finding, lint};
use serde::Serialize;

use super::arguments::targets;
use super::files::Files;
use super::{shown::Lines, table};

/// Findings of one rule that are shown without -v.
pub(super) const SHOWN: usize = 3;

/// Check an ONNX file, ours or not, against what a runtime accepts, understands and runs in integers
///
/// Prints a line per finding: what it costs, the rule, the node, what is wrong and how to mend it. Exit status 1 if
/// something would be rejected or computed wrongly.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The model to check
    #[arg(value_name = "FILE")]
    model: PathBuf,

    /// The runtime; `portable` asks for all three [example: --target tensorrt]
    #[arg(long, value_name = "TARGET", value_parser = targets())]
    target: Target,

    /// Print the findings as JSON [example: --json]
    #[arg(long)]
    json: bool,

    /// Print every finding, not only the first three of each rule [example: -v]
    #[arg(short, long)]
    verbose: bool,
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
}

/// Prints the findings; the exit status says whether one is fatal.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let target = arguments.target;
    let mut files = Files::default();
    files.reads_model("FILE", &arguments.model);
    super::begin(&mut files, None, false)?;
    let (model, source) = onnx::load_with_source(&arguments.model)?;
    graph::check(&model).map_err(onnx_osplus::Error::from)?;
    let findings = lint(&model, target);
    source.check_unchanged()?;
    let ok = !findings.iter().any(|f| f.cost.is_fatal());
    let text = match arguments.json {
        true => {
            let output = Output {
                format: 1,
                file: arguments.model.display().to_string(),
                target: target.profile().name,
                ok,
                findings: &findings,
            };
            serde_json::to_string_pretty(&output)? + "\n"
        }
        false => listing(&findings, target.profile().name, arguments.verbose),
    };
    super::print(&text);
    Ok(match ok {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
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
