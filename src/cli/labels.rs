//! What a model is worth by labels beside the data: `--labels` and what goes with it, of the main job and of `verify`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use onnx_osplus::calibrate::{
    CalibSource, Dataset, Labelled, LabelledOptions, Labels, MetricKind, MinMetric,
};
use onnx_osplus::prepare::Settings;
use onnx_osplus::review::MetricReport;

use super::shown::Lines;
use super::usage::Usage;

/// The flags for labels.
#[derive(Clone, Debug, Args)]
pub(crate) struct LabelArguments {
    /// Labels of the rows that judge: a .npy with one for each row of the data (or for each pair of rows), a .txt with a line each,
    /// or a .csv, .tsv, .jsonl, .json or .parquet with a column of them [default: a column of the data themselves, if any of these
    /// options is given] [example: --labels labels.npy]
    #[arg(long, value_name = "FILE")]
    labels: Vec<PathBuf>,

    /// The column with the labels [default: label, score, …, or the only one without text] [example: --label-column stars]
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,

    /// What is told of labels and outputs [default: accuracy of classes, spearman of numbers and of pairs, auc of 0 and 1 where
    /// the model gives one number] [example: --metric f1]
    #[arg(long, value_name = "METRIC", value_parser = metrics())]
    metric: Option<MetricKind>,

    /// The output that answers [default: the first whose shape goes with the labels] [example: --metric-output logits]
    #[arg(long, value_name = "NAME")]
    metric_output: Option<String>,

    /// The least that the quantized model must be worth, or behind a minus how much less than the float model; Linears are left in
    /// float until it is, and the exit status is 1 if it never is [example: --min-metric -0.5%] [example: --min-metric 0.9]
    #[arg(long, value_name = "VALUE|-DROP", allow_hyphen_values = true, value_parser = parse_min_metric)]
    pub(crate) min_metric: Option<MinMetric>,
}

/// The names of metrics.
fn metrics() -> impl TypedValueParser<Value = MetricKind> {
    PossibleValuesParser::new(MetricKind::ALL.map(MetricKind::name))
        .try_map(|name| MetricKind::named(&name).ok_or("no metric of that name"))
}

/// `0.9` or `90%` at least; `-0.005` or `-0.5%` of fall at most.
fn parse_min_metric(text: &str) -> Result<MinMetric, String> {
    let wrong = || {
        format!(
            "`{text}` is neither a value such as 0.9 or 90%, nor a fall such as -0.5% or -0.005"
        )
    };
    let (number, unit) = match text.strip_suffix('%') {
        Some(number) => (number.trim(), 100.0),
        None => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(value) if !value.is_finite() => Err(wrong()),
        Ok(value) if number.starts_with('-') => Ok(MinMetric::Fall(-value / unit)),
        Ok(value) => Ok(MinMetric::Value(value / unit)),
        Err(_) => Err(wrong()),
    }
}

/// The data that labels may belong to.
pub(super) struct Rows<'a> {
    pub(super) data: Dataset,
    pub(super) sources: &'a [CalibSource],
    /// Whether those of it that set no range judge, or all.
    pub(super) held_out: bool,
    pub(super) settings: &'a Settings,
}

impl LabelArguments {
    /// Whether anything is asked for that needs labels.
    pub(super) fn asks(&self) -> bool {
        self.asks_for_labels() || self.min_metric.is_some()
    }

    /// The same without what a metric of the caller's own knows too.
    pub(super) fn asks_for_labels(&self) -> bool {
        !self.labels.is_empty()
            || self.label_column.is_some()
            || self.metric.is_some()
            || self.metric_output.is_some()
    }

    /// The files that are read.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        self.labels.iter().map(PathBuf::as_path)
    }

    /// The rows with their labels.
    ///
    /// # Errors
    /// There are no labels, or none that go with the rows.
    pub(super) fn labelled(&self, rows: Rows) -> Result<Labelled> {
        let paths = match self.labels.is_empty() {
            false => self.labels.clone(),
            true => rows.sources.iter().map(column_of).collect::<Result<_>>()?,
        };
        let labels = Labels::read(&paths, self.label_column.as_deref(), rows.settings)
            .map_err(onnx_osplus::calibrate::MetricError::from)
            .map_err(onnx_osplus::Error::from)?;
        let options = LabelledOptions {
            kind: self.metric,
            output: self.metric_output.clone(),
        };
        let make = match rows.held_out {
            true => Labelled::of_held_out,
            false => Labelled::of_all,
        };
        Ok(make(rows.data, labels, options, rows.settings)
            .map_err(onnx_osplus::calibrate::MetricError::from)
            .map_err(onnx_osplus::Error::from)?)
    }
}

/// The file of a source, if it can have a column of labels.
fn column_of(source: &CalibSource) -> Result<PathBuf> {
    let tables = ["csv", "tsv", "jsonl", "ndjson", "json", "parquet"];
    let extension = source.path.extension();
    let extension = extension.map(|e| e.to_string_lossy().to_lowercase());
    match extension.is_some_and(|e| tables.contains(&e.as_str())) {
        true => Ok(source.path.clone()),
        false => Err(Usage::error(format!(
            "{} has no column of labels; --labels FILE names them",
            source.path.display()
        ))),
    }
}

/// The metric in the summary of a run or of a comparison.
pub(super) fn write_metric(
    out: &mut Lines,
    metric: &MetricReport,
    width: Option<usize>,
) -> std::fmt::Result {
    let of = match metric.rows_of.is_empty() {
        true => String::new(),
        false => format!(", {}", metric.rows_of),
    };
    out.wrapped(&format!("metric     {}{of}", metric.sentence()), 11, width)?;
    let changed = metric.changed.map(|n| match n {
        1 => "1 answer changed".to_owned(),
        n => format!("{n} answers changed"),
    });
    let more: Vec<String> = changed.into_iter().chain(metric.sureness()).collect();
    if !more.is_empty() {
        out.wrapped(&format!("           {}", more.join("; ")), 11, width)?;
    }
    for said in metric.caution.iter().chain(&metric.notes) {
        out.wrapped(&format!("           {said}"), 11, width)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_or_a_fall() {
        assert_eq!(parse_min_metric("0.9"), Ok(MinMetric::Value(0.9)));
        assert_eq!(parse_min_metric("90%"), Ok(MinMetric::Value(0.9)));
        assert_eq!(parse_min_metric("-0.5%"), Ok(MinMetric::Fall(0.005)));
        assert_eq!(parse_min_metric("-0.005"), Ok(MinMetric::Fall(0.005)));
        assert_eq!(parse_min_metric("-0"), Ok(MinMetric::Fall(0.0)));
        for wrong in ["", "%", "-", "x", "nan", "inf%", "1.2.3"] {
            assert!(parse_min_metric(wrong).is_err(), "{wrong}");
        }
    }
}
