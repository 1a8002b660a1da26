//! The whole job for a Rust program: load, look at, quantize, read the report, verify on other data, save.
//!
//!     cargo run --example quantize -- models/tiny/model.onnx models/tiny/calib.npz models/tiny/heldout.npz out.onnx

use std::error::Error;
use std::path::{Path, PathBuf};

use onnx_osplus::calibrate::{CalibSource, Dataset, TractEngine};
use onnx_osplus::progress::NoProgress;
use onnx_osplus::review::{LAYER_TOKENS, Report, VerifyOptions, VerifyRows, verify};
use onnx_osplus::target::{Target, lint};
use onnx_osplus::{Options, Quantizer, anatomy, onnx};

#[expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program may print and read its arguments"
)]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [model, calibration, held_out, out] = &arguments[..] else {
        return Err("usage: quantize MODEL CALIBRATION HELD_OUT OUT".into());
    };
    for line in quantize(model, calibration, held_out, out)? {
        println!("{line}");
    }
    Ok(())
}

/// Says what it found and did, line by line.
pub fn quantize(
    model: &Path,
    calibration: &Path,
    held_out: &Path,
    out: &Path,
) -> Result<Vec<String>, Box<dyn Error>> {
    let mut said = Vec::new();

    // Load. The tensors stay where they are in the file until someone reads them.
    let (float, files) = onnx::load_with_source(model)?;
    said.push(format!("operator set {}", float.opset()));

    // Inspect: what is there, and which channels stick out. Nothing is changed.
    let data = open(&float, calibration)?;
    let options = Options::default();
    let seen = anatomy(&float, Some(&data), &TractEngine, &options, &NoProgress)?;
    let outliers = seen.sites.iter().filter_map(|s| s.outliers.as_ref()?.ratio);
    said.push(format!(
        "{} Linears read {} values; the largest channel is {:.0} times the median one",
        seen.linears.len(),
        seen.sites.len(),
        outliers.fold(1.0, f32::max)
    ));

    // Quantize. What was written has been compared with the float model and with plain min-max on held-out rows.
    let quantized = Quantizer::new(&float)
        .target(Target::Ort)
        .source(&files)
        .calibrate_on(&data)
        .run()?;

    // The report says what was done and why. It is plain data with a JSON form, and reads back what it wrote.
    let report = &quantized.report;
    for (name, output) in &report.outputs {
        let db = |db: Option<f64>| db.map_or("exact".to_owned(), |db| format!("{db:.1} dB"));
        let (ours, plain) = (db(output.sqnr_db), db(output.plain_sqnr_db));
        said.push(format!("{name}: {ours}, plain min-max {plain}"));
    }
    for linear in report.linears.iter().filter(|l| l.reason.is_some()) {
        let reason = linear.reason.as_deref().unwrap_or_default();
        said.push(format!("{} stays in float: {reason}", linear.name));
    }
    let json = serde_json::to_string_pretty(report)?;
    let again: Report = serde_json::from_str(&json)?;
    said.push(format!("decision: {:?}", again.decision));

    // Verify: on data that neither calibrated nor chose anything. Any two models will do, of this tool or another.
    let others = open(&float, held_out)?;
    let (all, few) = (others.all(), others.few(LAYER_TOKENS));
    let rows = VerifyRows {
        all: &all,
        few: few.as_ref(),
    };
    let how = VerifyOptions::default();
    let verified = verify(
        &float,
        &quantized.model,
        &rows,
        &TractEngine,
        &how,
        &NoProgress,
    )?;
    if let Some(output) = verified.below(20.0).first() {
        return Err(format!("{} is not good enough: {:?}", output.name, output.sqnr_db).into());
    }
    if let Some(worst) = verified.worst_layers().first() {
        said.push(format!("the Linear with the largest error: {}", worst.name));
    }

    // Lint: what the runtime will make of the file.
    let findings = lint::lint(&quantized.model, Target::Ort);
    said.push(format!("{} findings", findings.len()));

    // Save. The file appears whole or not at all.
    let written = quantized.save(out)?;
    said.push(format!("{} bytes", written.bytes));
    Ok(said)
}

fn open(model: &onnx::Model, path: &Path) -> Result<Dataset, Box<dyn Error>> {
    let source = CalibSource {
        name: None,
        path: path.to_owned(),
    };
    // At most eight rows are run at a time.
    Ok(Dataset::open(model, &[source], 8)?)
}
