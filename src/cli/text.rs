//! `onnx-osplus text`: a model as text that people and `git diff` can read.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use onnx_osplus::onnx;
use onnx_osplus::onnx::output;
use onnx_osplus::onnx::text::{TextOptions, text};

use super::files::Files;
use super::shown::{self, Lines};

/// Print a model in the ONNX textual syntax, for reading and for `git diff`
///
/// With --beside the text of each model is kept in a file next to it, MODEL.txt, for reviews that show no binary files.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The model to print; several with --beside or --check
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<PathBuf>,

    /// Print every element of every tensor, not only type, shape, range and digest [example: --weights]
    #[arg(long)]
    weights: bool,

    /// Print nothing: write MODEL.txt where it is missing or of another model; exit status 1 if one was written, as a hook
    /// of pre-commit does [example: --beside]
    #[arg(long)]
    beside: bool,

    /// Write nothing: exit status 1 if a MODEL.txt is missing or of another model [example: --check]
    #[arg(long, conflicts_with = "beside")]
    check: bool,
}

/// Prints the model, or keeps the text beside it.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let models = &arguments.models;
    if !arguments.beside && !arguments.check {
        let [model] = &models[..] else {
            return Err(super::Usage::error(
                "text prints one model; of several it writes the text beside them (--beside) or checks it (--check)",
            ));
        };
        super::print(&text_of(model, arguments)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut files = Files::default();
    for model in models {
        files.reads_model("MODEL", model);
    }
    let mut stale = 0;
    let mut out = Lines::default();
    for model in models {
        let path = beside(model);
        let text = text_of(model, arguments)?;
        if std::fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
            continue;
        }
        stale += 1;
        let name = shown::path(&path);
        match arguments.check {
            true if path.exists() => writeln!(out, "{name} is the text of another model")?,
            true => writeln!(out, "{name} is missing")?,
            false => {
                files.writes("MODEL.txt", &path, true)?;
                output::write(&path, true, |file| file.write_all(text.as_bytes()))
                    .map_err(|error| anyhow!("{error}"))?;
                writeln!(out, "wrote {name}")?;
            }
        }
    }
    if arguments.check && stale > 0 {
        writeln!(out, "hint: onnx-osplus text --beside MODEL… writes them")?;
    }
    super::print(&out.text());
    Ok(match stale {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn text_of(model: &Path, arguments: &Arguments) -> Result<String> {
    let mut files = Files::default();
    files.reads_model("MODEL", model);
    super::begin(&mut files, None, false)?;
    let (model, source) = onnx::load_with_source(model)?;
    let options = match arguments.weights {
        true => TextOptions::FULL,
        false => TextOptions::SHORT,
    };
    let text = text(&model, options);
    source.check_unchanged()?;
    Ok(text)
}

/// MODEL.txt.
fn beside(model: &Path) -> PathBuf {
    let mut name = OsString::from(model);
    name.push(".txt");
    name.into()
}
