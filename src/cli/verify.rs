//! `onnx-osplus verify`: how far a quantized model is from the float model, at the outputs and Linear by Linear.
//!
//! Exit status: 0 done, 1 failed or below `--min-sqnr` or `--min-metric`, 2 wrong usage.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use onnx_osplus::calibrate::{Dataset, Metric};
use onnx_osplus::onnx;
use onnx_osplus::progress::Progress;
use onnx_osplus::review::{
    Energy, LAYER_TOKENS, LayerError, MetricReport, OutputError, Verification, VerifyError,
    VerifyOptions, VerifyRows, verify,
};

use super::arguments::{parse_batch, parse_threads, source};
use super::data::DataArguments;
use super::engine::EngineArguments;
use super::files::Files;
use super::labels::{LabelArguments, Rows, write_metric};
use super::progress::Terminal;
use super::shown::Lines;
use super::summary::beside;
use super::table;

/// Rows of the table of Linears without -v.
const SHOWN: usize = 10;

/// Compare a quantized model, of any tool, with the float model it was made from
///
/// Runs both on the data and prints, per output, SQNR, cosine, largest error and how often the largest element along the
/// last axis is the same (top-1, for logits); per Linear, its own error (fed with the float model's values) and the error
/// accumulated up to it, worst first.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 done, 1 failed, an output below --min-sqnr or a metric below --min-metric, 2 wrong usage.\n\n\
                  Example: onnx-osplus verify model.onnx int8.onnx --calib heldout.npz --min-sqnr 20"
)]
pub(crate) struct Arguments {
    /// The float model
    #[arg(value_name = "FLOAT")]
    float: PathBuf,

    /// The quantized model: Q/DQ, QOperator or dynamic, with the inputs and outputs of FLOAT
    #[arg(value_name = "QUANT")]
    quantized: PathBuf,

    /// Data to run both on, as for the main job; best rows that did not calibrate QUANT. May be given several times
    /// [example: --calib heldout.npz] [example: --calib input_ids=ids.npy]
    #[arg(long, value_name = "[NAME=]PATH", required = true)]
    calib: Vec<OsString>,

    #[command(flatten)]
    data: DataArguments,

    #[command(flatten)]
    judging: LabelArguments,

    #[command(flatten)]
    engine: EngineArguments,

    /// Exit with status 1 if an output has a lower SQNR than this [example: --min-sqnr 20]
    #[arg(long, value_name = "DB", allow_negative_numbers = true, value_parser = parse_db)]
    min_sqnr: Option<f64>,

    /// Also write the result as JSON, to a file or with - to the standard output in place of the text
    /// [example: --json verify.json]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Overwrite the file of --json if it exists [example: --force]
    #[arg(long)]
    force: bool,

    /// Compare the outputs alone, which is faster [example: --no-layers]
    #[arg(long)]
    no_layers: bool,

    /// Rows of data to run at a time [example: --batch 1]
    #[arg(long, value_name = "ROWS", default_value_t = 8, value_parser = parse_batch)]
    batch: usize,

    /// Batches to run in parallel; 0 means one per core [example: --threads 1]
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_threads)]
    threads: usize,

    /// Print nothing but errors [example: -q]
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,

    /// Print every Linear, and why a figure is missing [example: -v]
    #[arg(short, long)]
    verbose: bool,
}

fn parse_db(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(db) if db.is_finite() => Ok(db),
        Ok(_) => Err("a number of decibels".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Compares the models; status 1 if an output is below `--min-sqnr`, or the metric below `--min-metric`.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let result = compare(arguments, &Terminal::new(arguments.quiet))?;
    let to_stdout = super::write_json(arguments.json.as_deref(), arguments.force, &result)?;
    if !arguments.quiet && !to_stdout {
        super::print(&text(&result, arguments.verbose, table::width()));
    }
    Ok(status(arguments, &result))
}

/// How far QUANT is from FLOAT.
pub(crate) fn compare(arguments: &Arguments, progress: &dyn Progress) -> Result<Verification> {
    let sources: Vec<_> = arguments.calib.iter().map(|text| source(text)).collect();
    let mut files = Files::default();
    files.reads_model("FLOAT", &arguments.float);
    files.reads_model("QUANT", &arguments.quantized);
    let settings = match arguments.judging.asks() {
        true => arguments.data.judging(&arguments.float),
        false => arguments.data.settings(&arguments.float),
    };
    files.reads_data(&sources, &settings);
    for path in arguments.judging.files() {
        files.reads_labels(path);
    }
    super::begin(&mut files, arguments.json.as_deref(), arguments.force)?;
    let (float, float_source) = onnx::load_with_source(&arguments.float)?;
    let (quantized, quantized_source) = onnx::load_with_source(&arguments.quantized)?;
    let mut data = Dataset::open_with(&float, &sources, arguments.batch, &settings)?;
    let digest = data.digest();
    let labelled = match arguments.judging.asks() {
        true => Some(arguments.judging.labelled(Rows {
            data: data.clone(),
            sources: &sources,
            held_out: false,
            settings: &settings,
        })?),
        false => None,
    };
    let options = VerifyOptions {
        threads: arguments.threads,
        layers: !arguments.no_layers,
        ..VerifyOptions::default()
    };
    let engine = arguments.engine.engine()?;
    let compared = |data: &Dataset| {
        let (all, few) = (data.all(), data.few(LAYER_TOKENS));
        let rows = VerifyRows {
            all: &all,
            few: few.as_ref(),
        };
        verify(
            &float,
            &quantized,
            &rows,
            engine.as_ref(),
            &options,
            progress,
        )
    };
    let mut result = match compared(&data) {
        Err(error @ VerifyError::Engine(_)) => {
            data = match data.one_by_one() {
                Some(single) => single,
                None => return Err(error.into()),
            };
            compared(&data).map_err(|_| error)?
        }
        result => result?,
    };
    if let Some(labelled) = &labelled {
        let score = |model| {
            labelled
                .score(model, engine.as_ref(), arguments.threads, progress)
                .map_err(|error| anyhow::Error::from(onnx_osplus::Error::from(error)))
        };
        let (before, after) = (score(&float)?, score(&quantized)?);
        let least = arguments.judging.min_metric;
        result.metric = Some(MetricReport::new(&before, &after, least, ""));
    }
    super::check_data(&data, &digest, &sources)?;
    float_source.check_unchanged()?;
    quantized_source.check_unchanged()?;
    let filled = data.filled().iter();
    let filled = filled.map(|f| format!("input `{}` was filled with {}", f.input, f.rule));
    result
        .notes
        .splice(0..0, filled.chain(data.notes().iter().cloned()));
    Ok(result)
}

/// Whether the metric and every output are good enough; what is not is said.
fn status(arguments: &Arguments, result: &Verification) -> ExitCode {
    if let (Some(metric), Some(wanted)) = (&result.metric, arguments.judging.min_metric)
        && !wanted.allows(metric.float, metric.quantized)
    {
        let least = MetricReport::figure(&metric.name, wanted.least(metric.float));
        super::say(&format!(
            "error: {}, below --min-metric ({least})",
            onnx::shown(&metric.sentence())
        ));
        return ExitCode::FAILURE;
    }
    if arguments.min_sqnr.is_some() && result.outputs.is_empty() {
        super::say(
            "error: no output is float, so none has an SQNR that could be compared with --min-sqnr",
        );
        return ExitCode::FAILURE;
    }
    let below = arguments.min_sqnr.map(|limit| (limit, result.below(limit)));
    match below {
        Some((limit, below)) if !below.is_empty() => {
            for output in below {
                if output.elements == 0 {
                    super::say(&format!(
                        "error: output {} has no element that could be compared, so no SQNR",
                        onnx::shown(&output.name)
                    ));
                    continue;
                }
                let db = output.sqnr_db.unwrap_or(f64::NAN);
                super::say(&format!(
                    "error: output {} has {db:.2} dB, below --min-sqnr {limit}",
                    onnx::shown(&output.name)
                ));
            }
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

fn text(result: &Verification, verbose: bool, width: Option<usize>) -> String {
    let mut out = Lines::default();
    // Writing to a String cannot fail.
    let _ = write_text(&mut out, result, verbose, width);
    out.text()
}

fn write_text(
    out: &mut Lines,
    result: &Verification,
    verbose: bool,
    width: Option<usize>,
) -> std::fmt::Result {
    for note in &result.notes {
        out.wrapped(&format!("note       {note}"), 11, width)?;
    }
    writeln!(out, "outputs    on {} rows", result.rows)?;
    if !result.outputs.is_empty() {
        writeln!(
            out,
            "  SQNR dB  per token  cosine    largest error  of range  top-1   output"
        )?;
    }
    for output in &result.outputs {
        let logarithms = output.log_sqnr_db;
        let behind = logarithms.map_or(String::new(), |db| format!("; its logarithms {db:.2} dB"))
            + &beside(output.elements, output.filled, output.caution.as_deref());
        out.named(&figures(output), &output.name, &behind, width)?;
    }
    for output in &result.agreements {
        let part = 100.0 * output.agreeing as f64 / output.elements.max(1) as f64;
        let before = format!(
            "  {part:>6.2} % of {} elements are the same: ",
            output.elements
        );
        let behind = beside(output.elements, 0, output.caution.as_deref());
        out.named(&before, &output.name, &behind, width)?;
    }
    if let Some(metric) = &result.metric {
        write_metric(out, metric, width)?;
    }
    for name in result.other_outputs.iter() {
        out.named("  no numbers, not compared: ", name, "", width)?;
    }
    layers(out, result, verbose, width)
}

fn figures(output: &OutputError) -> String {
    let without = if output.elements == 0 { "–" } else { "exact" };
    let db = output
        .sqnr_db
        .map_or(without.to_owned(), |db| format!("{db:.2}"));
    let per_token = output
        .token_sqnr_db
        .map_or("–".to_owned(), |db| format!("{db:.2}"));
    let top1 = output
        .top1_agreement
        .map_or("–".to_owned(), |part| format!("{:.1} %", 100.0 * part));
    let of_range = format!("{:.2} %", 100.0 * output.max_relative_error);
    let error = match output.max_abs_error {
        error if error == 0.0 || (1e-3..1e5).contains(&error) => format!("{error:.4}"),
        error => format!("{error:.2e}"),
    };
    format!(
        "  {db:>7}  {per_token:>9}  {:.6}  {error:>13}  {of_range:>8}  {top1:<7} ",
        output.cosine
    )
}

fn layers(
    out: &mut Lines,
    result: &Verification,
    verbose: bool,
    width: Option<usize>,
) -> std::fmt::Result {
    if result.layers.is_empty() {
        return Ok(());
    }
    let count = |has: fn(&LayerError) -> bool| result.layers.iter().filter(|l| has(l)).count();
    let quantized = count(|l| l.quantized.is_some());
    let (own, accumulated) = (
        count(|l| l.fed.is_some()),
        count(|l| l.accumulated.is_some()),
    );
    let line = format!(
        "Linears    {} in the float model, {quantized} quantized; own error of {own}, accumulated of {accumulated}, \
         on {} rows",
        result.layers.len(),
        result.layer_rows
    );
    out.wrapped(&line, 11, width)?;
    writeln!(out, "   own dB  accum.  form         Linear")?;
    let known = |l: &&&LayerError| verbose || l.fed.is_some() || l.accumulated.is_some();
    let worst = result.worst_layers();
    let shown: Vec<_> = worst
        .iter()
        .filter(known)
        .take(if verbose { usize::MAX } else { SHOWN })
        .collect();
    for layer in &shown {
        let mark = if layer.migrated { '~' } else { ' ' };
        let before = format!(
            "  {:>7} {:>7}{mark} {:<12} ",
            db(&layer.fed),
            db(&layer.accumulated),
            form(layer)
        );
        let after = format!("  [{} x {}]", layer.k, layer.n);
        out.named(&before, &layer.name, &after, width)?;
        if let Some(reason) = layer.reason.as_ref().filter(|_| verbose) {
            let reason = format!("{:>32}{reason}", "");
            out.wrapped(&reason, 34, width)?;
        }
    }
    if shown.iter().any(|l| l.migrated) {
        let line = "  ~ held under a shift and scale per channel, in another order or mixed within heads, which was undone before comparing";
        out.wrapped(line, 4, width)?;
    }
    match result.layers.len() - shown.len() {
        0 => Ok(()),
        more => writeln!(out, "  {more} more; -v shows all"),
    }
}

fn db(energy: &Option<Energy>) -> String {
    match energy.map(|e| e.sqnr_db()) {
        None => "–".to_owned(),
        Some(db) if db == f64::INFINITY => "exact".to_owned(),
        Some(db) => format!("{db:.1}"),
    }
}

/// As "u8 x i8/ch": activation and weight.
fn form(layer: &LayerError) -> String {
    let Some(form) = &layer.quantized else {
        return if layer.fed.is_some() { "float" } else { "?" }.to_owned();
    };
    super::form::short_form(form)
}
