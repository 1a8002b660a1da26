//! The metric that judges the main job: labelled rows, or one that the caller has.

use anyhow::Result;
use onnx_osplus::Evaluation;
use onnx_osplus::calibrate::{CalibSource, Dataset, DecoderData, Labelled, Metric};
use onnx_osplus::onnx::Model;

use super::arguments::Arguments;
use super::labels::Rows;
use super::usage::Usage;

/// Refuses options that mean nothing together. `own` is whether the caller has a metric.
///
/// # Errors
/// Wrong usage.
pub(super) fn check(arguments: &Arguments, own: bool) -> Result<()> {
    let asks = arguments.judging.asks();
    if !arguments.eval.is_empty() && !asks {
        return Err(Usage::error(
            "--eval has rows that judge by their labels: --labels FILE, --label-column NAME or --metric NAME says which they are; \
             onnx-osplus verify compares on rows without labels",
        ));
    }
    if arguments.eval_samples.is_some() && arguments.eval.is_empty() {
        return Err(Usage::error("--eval-samples is for the rows of --eval"));
    }
    if own && (arguments.judging.asks_for_labels() || !arguments.eval.is_empty()) {
        return Err(Usage::error(
            "a metric of your own needs no labels: leave one of them out",
        ));
    }
    Ok(())
}

/// The rows with labels, if they are asked for, and the digest of the data.
///
/// # Errors
/// Data or labels that cannot be read, or do not go together.
pub(super) fn labelled(
    arguments: &Arguments,
    original: &Model,
    data: &Dataset,
) -> Result<Option<(Labelled, String)>> {
    let judging = &arguments.judging;
    if !judging.asks() {
        return Ok(None);
    }
    let own_rows = !arguments.eval.is_empty();
    let (sources, settings) = match own_rows {
        true => (arguments.eval_sources(), arguments.eval_settings()),
        false => (arguments.sources(), arguments.settings()),
    };
    let data = match own_rows {
        true => Dataset::open_with(original, &sources, arguments.batch, &settings)?,
        false => data.clone(),
    };
    let rows = Rows {
        data,
        sources: &sources,
        held_out: !own_rows,
        settings: &settings,
    };
    let digest = rows.data.digest();
    Ok(Some((judging.labelled(rows)?, digest)))
}

/// What is to be said of the data of a decoder that is fed from its encoder.
pub(super) fn decoder_notes(arguments: &Arguments, data: Option<&DecoderData>) -> Vec<String> {
    let Some(data) = data else {
        return Vec::new();
    };
    let mut notes = data.notes.clone();
    if arguments.judging.asks() {
        notes.push(
            "the labels belong to rows of the encoder: they do not judge its decoder".to_owned(),
        );
    }
    notes
}

/// What judges the run.
pub(super) fn asked<'a>(
    arguments: &Arguments,
    labelled: Option<&'a (Labelled, String)>,
    own: Option<&'a dyn Metric>,
) -> Option<Evaluation<'a>> {
    let metric = own.or(labelled.map(|(l, _)| l as &dyn Metric))?;
    Some(Evaluation {
        metric,
        least: arguments.judging.min_metric,
        rows: match (own.is_some(), arguments.eval.is_empty()) {
            (true, _) => "",
            (false, true) => "held out of calibration",
            (false, false) => "of --eval",
        },
    })
}

/// Whether the rows of `--eval` are what they were when they were opened.
///
/// # Errors
/// They are not.
pub(super) fn check_unchanged(
    labelled: Option<&(Labelled, String)>,
    sources: &[CalibSource],
) -> Result<()> {
    match labelled {
        Some((labelled, digest)) if !sources.is_empty() => {
            super::check_data(labelled.data(), digest, sources)
        }
        _ => Ok(()),
    }
}
