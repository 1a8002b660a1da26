//! `onnx-osplus dequantize`: the float model that a quantized one stands for.

use std::path::PathBuf;

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

    /// Overwrite OUT
    #[arg(long)]
    force: bool,

    /// Store large tensors in a second file, OUT.data; above 2 GB that is done anyway
    #[arg(long)]
    external_data: bool,
}

/// Reads IN, writes OUT, and says what was done.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    super::check_paths(&arguments.input, &arguments.output, arguments.force, &[])?;
    let model = onnx::load(&arguments.input)?;
    graph::check(&model).map_err(onnx_osplus::Error::from)?;
    let (mut model, done) = dequantize(&model).map_err(onnx_osplus::Error::from)?;
    if done.weights + done.operators == 0 {
        match done.left.is_empty() {
            true => bail!(
                "nothing in {} is quantized; it can be quantized as it is",
                arguments.input.display()
            ),
            false => bail!(
                "nothing in {} could be dequantized: {}",
                arguments.input.display(),
                named(&done)
            ),
        }
    }
    Provenance::remove(&mut model);
    let save = SaveOptions {
        external_data: arguments.external_data,
        overwrite: arguments.force,
    };
    let saved = onnx::save(&model, &arguments.output, &save)?;
    let mut text = format!(
        "float      {} weights and biases, {} operators on integers\n",
        done.weights, done.operators
    );
    if !done.left.is_empty() {
        text += &format!("left       {}\n", named(&done));
    }
    super::print_summary(&text, &arguments.output, &saved)
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
