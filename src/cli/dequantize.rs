//! `onnx-osplus dequantize`: the float model that a quantized one stands for.

use std::path::PathBuf;

use super::files::Files;
use super::shown::{self, Lines};
use anyhow::{Result, bail};
use clap::Args;
use onnx_osplus::graph;
use onnx_osplus::onnx::{self, SaveOptions};
use onnx_osplus::review::Provenance;
use onnx_osplus::rewrite::{Dequantized, dequantize};

/// Nodes that stay on integers and are named.
const NAMED: usize = 5;

/// Make a quantized model float again, whoever quantized it, so that it can be quantized anew
///
/// Takes Q/DQ, integer operators (QLinearMatMul, QGemm, QLinearConv, …) and dynamic quantization (MatMulInteger, …). Weights
/// become the numbers that their integers mean: what rounding lost does not come back.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The quantized model to read
    #[arg(value_name = "IN")]
    input: PathBuf,

    /// The float model to write
    #[arg(value_name = "OUT")]
    output: PathBuf,

    /// Overwrite OUT [example: --force]
    #[arg(long)]
    force: bool,

    /// Store large tensors in a second file, OUT.data; above 2 GB that is done anyway [example: --external-data]
    #[arg(long)]
    external_data: bool,
}

/// Reads IN, writes OUT, and says what was done.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let mut files = Files::default();
    files.reads_model("IN", &arguments.input);
    files.writes("OUT", &arguments.output, arguments.force)?;
    if arguments.external_data {
        files.writes_data_of(&arguments.output, arguments.force)?;
    }
    // The float form of an integer is larger; nodes go away.
    files.has_room(&arguments.output, |bytes| bytes / 4)?;
    let (model, source) = onnx::load_with_source(&arguments.input)?;
    graph::check(&model).map_err(onnx_osplus::Error::from)?;
    let (mut model, done) = dequantize(&model).map_err(onnx_osplus::Error::from)?;
    if done.weights + done.operators == 0 {
        match done.left.is_empty() {
            true => bail!(
                "nothing in {} is quantized; it can be quantized as it is",
                shown::path(&arguments.input)
            ),
            false => bail!(
                "nothing in {} could be dequantized: {}",
                shown::path(&arguments.input),
                named(&done)
            ),
        }
    }
    Provenance::remove(&mut model);
    let save = SaveOptions {
        external_data: arguments.external_data,
        overwrite: arguments.force,
    };
    let saved = super::save(&arguments.output, save, &model, &source, files)?;
    let mut text = Lines::default();
    writeln!(
        text,
        "float      {} weights and biases, {} operators on integers",
        done.weights, done.operators
    )?;
    if !done.left.is_empty() {
        writeln!(text, "left       {}", named(&done))?;
    }
    if let Some(note) = super::left_over(&saved) {
        writeln!(text, "note       {note}")?;
    }
    super::print_summary(&text.text(), &arguments.output, &saved);
    Ok(())
}

/// The nodes that stay as they are.
fn named(done: &Dequantized) -> String {
    let first = done
        .left
        .iter()
        .take(NAMED)
        .map(|(name, op)| format!("{name} ({op})"));
    let more = match done.left.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "{} nodes still on integers: {}{more}",
        done.left.len(),
        first.collect::<Vec<_>>().join(", ")
    )
}
