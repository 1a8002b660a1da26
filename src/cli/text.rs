//! `onnx-osplus text`: a model as text that people and `git diff` can read.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use onnx_osplus::onnx;
use onnx_osplus::onnx::text::{TextOptions, text};

use super::files::Files;

/// Print a model in the ONNX textual syntax, for reading and for `git diff`
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The model to print
    #[arg(value_name = "MODEL")]
    model: PathBuf,

    /// Print every element of every tensor, not only type, shape, range and digest [example: --weights]
    #[arg(long)]
    weights: bool,
}

/// Prints the model.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let mut files = Files::default();
    files.reads_model("MODEL", &arguments.model);
    super::begin(&mut files, None, false)?;
    let (model, source) = onnx::load_with_source(&arguments.model)?;
    let options = match arguments.weights {
        true => TextOptions::FULL,
        false => TextOptions::SHORT,
    };
    let text = text(&model, options);
    source.check_unchanged()?;
    super::print(&text);
    Ok(())
}
