//! Labelled rows as a metric: the outputs of a model become answers.
//!
//! ```text
//! labels                          outputs                  answers                        metric, if none is named
//! one per row                     [rows, C], C ≥ 2         the largest of C               accuracy
//! one per row                     [rows] or [rows, 1]      the number                     auc of labels 0 and 1, else spearman
//! one per token, [rows, T]        [rows, T, C]             the largest of C               accuracy
//! one per pair of rows            [rows, C]                cosine of the two vectors      spearman
//! one per pair of rows            [rows, T, C]             the same, tokens pooled        spearman
//! ```

use std::collections::BTreeMap;

use ndarray::{ArrayD, ArrayViewD, Axis, Ix2, Ix3};

use crate::calibrate::data::dataset::Dataset;
use crate::calibrate::data::input::Batch;
use crate::calibrate::data::labels::{LabelError, Labels};
use crate::calibrate::engine::plan::Engine;
use crate::calibrate::measure::compare::{Found, reduce_outputs};
use crate::calibrate::measure::metric::{Answer, Metric, MetricError, MetricKind, Score};
use crate::onnx::Model;
use crate::prepare::Settings;
use crate::prepare::labels::{Pooling, pooling};
use crate::progress::Progress;

/// What can be said of how labelled rows judge.
#[derive(Debug, Clone, Default)]
pub struct LabelledOptions {
    /// The metric; `None` for the usual one of such labels.
    pub kind: Option<MetricKind>,
    /// The output to look at; `None` for the first that suits.
    pub output: Option<String>,
}

/// Rows with labels.
pub struct Labelled {
    data: Dataset,
    /// Only those of it that set no range.
    held_out: bool,
    labels: Labels,
    of_pairs: bool,
    options: LabelledOptions,
    pooling: (Pooling, bool),
}

impl Labelled {
    /// All rows of `data`, which are others than those that calibrate.
    ///
    /// # Errors
    /// More or fewer labels than rows; a configuration of the model that cannot be read.
    pub fn of_all(
        data: Dataset,
        labels: Labels,
        options: LabelledOptions,
        settings: &Settings,
    ) -> Result<Labelled, LabelError> {
        let of_pairs = labels.are_of_pairs(&data)?;
        Ok(Labelled {
            pooling: pooling(settings)?,
            data,
            held_out: false,
            labels,
            of_pairs,
            options,
        })
    }

    /// The rows of the calibration data `data` that set no range.
    ///
    /// # Errors
    /// Those of [`Labelled::of_all`]; too few rows to hold any out.
    pub fn of_held_out(
        data: Dataset,
        labels: Labels,
        options: LabelledOptions,
        settings: &Settings,
    ) -> Result<Labelled, LabelError> {
        if !data.split().held_out_used {
            let rows = data.rows();
            return Err(LabelError::NoneHeldOut { rows });
        }
        let labelled = Labelled::of_all(data, labels, options, settings)?;
        match labelled.of_pairs {
            true => Err(LabelError::PairsHeldOut),
            false => Ok(Labelled {
                held_out: true,
                ..labelled
            }),
        }
    }

    /// The data that the labels belong to.
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    fn batches(&self, data: &Dataset) -> Vec<Batch> {
        match self.held_out {
            true => data.split().held_out,
            false => data.all(),
        }
    }

    /// The labels of a row of the data.
    fn labels(&self, row: u64) -> &[f64] {
        self.labels.of(self.data.origin(row))
    }

    /// Runs `model`, and reads its answers.
    fn read(
        &self,
        model: &Model,
        batches: &[Batch],
        engine: &dyn Engine,
        running: (usize, &dyn Progress),
    ) -> Result<Score, MetricError> {
        let names: Vec<&str> = model.graph().output.iter().map(|o| o.name()).collect();
        let reduce = |batch: &Batch, outputs: Found| self.answers_of(&names, batch, &outputs);
        let (read, _) = reduce_outputs(engine, model, batches, running, &reduce)?;
        let mut all = Read::default();
        for batch in read {
            all.add(batch?);
        }
        self.score(all)
    }

    /// What one batch says.
    fn answers_of(
        &self,
        names: &[&str],
        batch: &Batch,
        outputs: &Found,
    ) -> Result<Read, MetricError> {
        let rows = batch.rows.len();
        let labels = batch.rows.iter().map(|row| self.labels(*row).len());
        // Rows without a label have none; those of others are alike.
        let width = if self.of_pairs {
            0
        } else {
            labels.max().unwrap_or(0)
        };
        let (name, output) = self.output(names, outputs, rows, width)?;
        let mut read = Read {
            output: name.to_owned(),
            pooled: self.of_pairs && output.ndim() == 3,
            ..Read::default()
        };
        if self.of_pairs {
            for (row, vector) in batch.rows.iter().zip(self.vectors(batch, output)) {
                read.vectors.insert(self.data.origin(*row), vector);
            }
            return Ok(read);
        }
        for (at, row) in batch.rows.iter().enumerate() {
            let of_row = output.index_axis(Axis(0), at);
            read.add_row(*row, self.labels(*row), of_row);
        }
        Ok(read)
    }

    /// The output to look at: the one that was named, or the first that suits the labels.
    fn output<'o>(
        &self,
        names: &[&'o str],
        outputs: &'o Found,
        rows: usize,
        width: usize,
    ) -> Result<(&'o str, &'o ArrayD<f32>), MetricError> {
        let suits = |output: &ArrayD<f32>, pools: bool| match (self.of_pairs, output.shape()) {
            (_, [n, ..]) if *n != rows => false,
            (_, [] | [_, _, _, _, ..]) => false,
            (true, [_, n]) => *n > 1,
            (true, [_, _, _]) => pools,
            (true, _) => false,
            (false, [_, tokens, _]) => *tokens == width && width > 1,
            (false, _) => width <= 1,
        };
        let known = |name: &'o str| Some((name, outputs.get(name)?));
        let shape =
            |(name, output): &(&str, &ArrayD<f32>)| format!("`{name}` {:?}", output.shape());
        let all = || {
            let all: Vec<String> = names
                .iter()
                .filter_map(|n| known(n))
                .map(|o| shape(&o))
                .collect();
            all.join(", ")
        };
        if let Some(named) = &self.options.output {
            let found = names.iter().find(|name| *name == named);
            let found = found.and_then(|name| known(name)).ok_or_else(|| {
                MetricError::Outputs(format!(
                    "the model has no float output `{named}`; it has {}",
                    all()
                ))
            })?;
            return match suits(found.1, true) {
                true => Ok(found),
                false => Err(MetricError::Outputs(format!(
                    "the output {} does not go with {}",
                    shape(&found),
                    self.said(rows, width)
                ))),
            };
        }
        let first = |pools: bool| {
            let mut known = names.iter().filter_map(|name| known(name));
            known.find(|(_, output)| suits(output, pools))
        };
        first(false).or_else(|| first(true)).ok_or_else(|| {
            MetricError::Outputs(format!(
                "no output goes with {}: of {rows} rows they are {}",
                self.said(rows, width),
                all()
            ))
        })
    }

    /// What there are labels for.
    fn said(&self, rows: usize, width: usize) -> String {
        match (self.of_pairs, width) {
            (true, _) => "one label per pair of rows, which needs a vector per row".to_owned(),
            (false, 0 | 1) => {
                "one label per row, which needs logits [rows, classes] or a number per row"
                    .to_owned()
            }
            (false, _) => {
                format!("{width} labels per row, which need logits [{rows}, {width}, classes]")
            }
        }
    }

    /// A vector for each row.
    fn vectors(&self, batch: &Batch, output: &ArrayD<f32>) -> Vec<Vec<f64>> {
        let wide = |v: &f32| f64::from(*v);
        if let Ok(vectors) = output.view().into_dimensionality::<Ix2>() {
            return vectors
                .rows()
                .into_iter()
                .map(|v| v.iter().map(wide).collect())
                .collect();
        }
        let Ok(tokens) = output.view().into_dimensionality::<Ix3>() else {
            return Vec::new();
        };
        let mask = batch
            .mask()
            .filter(|m| m.dim() == (tokens.dim().0, tokens.dim().1));
        let pooled = |(row, tokens): (usize, ndarray::ArrayView2<f32>)| {
            let real = |at: &usize| mask.is_none_or(|mask| mask[[row, *at]]);
            let real: Vec<usize> = (0..tokens.nrows()).filter(real).collect();
            let used = match (self.pooling.0, &real[..]) {
                (Pooling::First, [first, ..]) => vec![*first],
                (Pooling::Last, [.., last]) => vec![*last],
                _ => real,
            };
            let sum = |channel: usize| {
                used.iter()
                    .map(|at| wide(&tokens[[*at, channel]]))
                    .sum::<f64>()
            };
            let count = used.len().max(1) as f64;
            (0..tokens.ncols())
                .map(|channel| sum(channel) / count)
                .collect()
        };
        tokens.outer_iter().enumerate().map(pooled).collect()
    }

    /// The figure of all answers.
    fn score(&self, mut read: Read) -> Result<Score, MetricError> {
        let mut notes = Vec::new();
        if self.of_pairs {
            read.pair(&self.labels);
            if read.pooled && !self.pooling.1 {
                notes.push(format!(
                    "a row's vector is the mean of those of its tokens in `{}`",
                    read.output
                ));
            }
        }
        if read.answers.is_empty() {
            let rows = self.batches(&self.data).iter().map(|b| b.rows.len()).sum();
            return Err(LabelError::None(rows).into());
        }
        let labels: Vec<f64> = self.labels.all().filter(|l| !l.is_nan()).collect();
        let whole = labels.iter().all(|l| l.fract() == 0.0);
        let two = whole && labels.iter().all(|l| (-100.0..=1.0).contains(l));
        let kind = self
            .options
            .kind
            .unwrap_or(match (self.of_pairs, read.classes) {
                (true, _) => MetricKind::Spearman,
                (false, 0..=1) if two => MetricKind::Auc,
                (false, 0..=1) => MetricKind::Spearman,
                (false, _) => MetricKind::Accuracy,
            });
        let (answers, classes) = read.as_asked(kind, self.of_pairs)?;
        if answers.is_empty() {
            return Err(LabelError::None(read.answers.len()).into());
        }
        Ok(Score {
            name: kind.name().to_owned(),
            value: kind.of(classes, answers.iter()),
            kind: Some(kind),
            output: Some(read.output),
            classes,
            answers,
            notes,
        })
    }
}

impl Metric for Labelled {
    fn name(&self) -> String {
        self.options
            .kind
            .map_or("metric", MetricKind::name)
            .to_owned()
    }

    fn score(
        &self,
        model: &Model,
        engine: &dyn Engine,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<Score, MetricError> {
        let running = (threads, progress);
        let batches = self.batches(&self.data);
        match self.read(model, &batches, engine, running) {
            Err(error @ MetricError::Engine(_)) => match self.data.one_by_one() {
                Some(single) => {
                    let batches = self.batches(&single);
                    self.read(model, &batches, engine, running)
                        .map_err(|_| error)
                }
                None => Err(error),
            },
            read => read,
        }
    }
}

/// What was read of the outputs: of rows with labels, every number of logits.
#[derive(Default)]
struct Read {
    output: String,
    /// Numbers of an answer; 1 where it is a number itself.
    classes: usize,
    answers: Vec<RawAnswer>,
    /// By the row in the user's files, for pairs.
    vectors: BTreeMap<usize, Vec<f64>>,
    pooled: bool,
}

/// What stands in the output for one label.
struct RawAnswer {
    row: u64,
    label: f64,
    /// The place of the largest number, and for one or two classes the number or the difference.
    class: f64,
    number: f64,
}

impl Read {
    fn add(&mut self, other: Read) {
        self.output = other.output;
        self.pooled |= other.pooled;
        self.classes = self.classes.max(other.classes);
        self.answers.extend(other.answers);
        self.vectors.extend(other.vectors);
    }

    /// The answers of a row: `[C]`, or `[T, C]` with T labels.
    fn add_row(&mut self, row: u64, labels: &[f64], output: ArrayViewD<f32>) {
        let count = labels.len().max(1);
        let numbers: Vec<f64> = output.iter().map(|v| f64::from(*v)).collect();
        self.classes = numbers.len() / count;
        for (label, numbers) in labels.iter().zip(numbers.chunks(self.classes.max(1))) {
            self.answers.push(RawAnswer {
                row,
                label: *label,
                class: largest(numbers),
                number: match numbers {
                    [no, yes] => yes - no,
                    [number] => *number,
                    _ => f64::NAN,
                },
            });
        }
    }

    /// Makes answers of the vectors of pairs: their cosines.
    fn pair(&mut self, labels: &Labels) {
        for (pair, first) in self.vectors.iter().filter(|(row, _)| *row % 2 == 0) {
            let second = self.vectors.get(&(pair + 1));
            let (Some(second), Some(label)) = (second, labels.of(pair / 2).first()) else {
                continue;
            };
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let cosine = dot(first, second) / (dot(first, first) * dot(second, second)).sqrt();
            self.answers.push(RawAnswer {
                row: *pair as u64 / 2,
                label: *label,
                class: -1.0,
                number: cosine,
            });
        }
    }

    /// Answers as a metric wants them, and how many classes there are.
    fn as_asked(
        &self,
        kind: MetricKind,
        of_pairs: bool,
    ) -> Result<(Vec<Answer>, usize), MetricError> {
        let labelled = self.answers.iter().filter(|a| !a.label.is_nan());
        let answer = |raw: &RawAnswer, answer: f64| Answer {
            row: raw.row,
            label: raw.label,
            answer,
        };
        let wrong = |text: String| Err(MetricError::Outputs(text));
        if !kind.is_of_classes() {
            if self.classes > 2 {
                return wrong(format!(
                    "{} compares numbers, and the output `{}` has {} for each label",
                    kind.name(),
                    self.output,
                    self.classes
                ));
            }
            // A label below 0 says that there is none, where they are those of two classes.
            let is_label = |a: &&RawAnswer| kind != MetricKind::Auc || a.label >= 0.0;
            let labelled: Vec<&RawAnswer> = labelled.filter(is_label).collect();
            if kind == MetricKind::Auc
                && let Some(other) = labelled.iter().find(|a| a.label != 0.0 && a.label != 1.0)
            {
                return wrong(format!(
                    "auc is of labels 0 and 1, and one is {}",
                    other.label
                ));
            }
            return Ok((labelled.iter().map(|a| answer(a, a.number)).collect(), 0));
        }
        if of_pairs {
            return wrong(format!(
                "{} compares classes, and a pair of vectors has a cosine: spearman, pearson or auc do",
                kind.name()
            ));
        }
        let classes = self.classes.max(2);
        // As data sets mark what has no label.
        let labelled: Vec<&RawAnswer> = labelled.filter(|a| a.label >= 0.0).collect();
        let is_class = |label: f64| label.fract() == 0.0 && label < classes as f64;
        if let Some(other) = labelled.iter().find(|a| !is_class(a.label)) {
            return wrong(format!(
                "the label {} is none of the {classes} classes of the output `{}`",
                other.label, self.output
            ));
        }
        // One number tells two classes apart: a probability from one half on, a logit from 0 on.
        let numbers = || labelled.iter().map(|a| a.number);
        let is_part = numbers().all(|n| (0.0..=1.0).contains(&n));
        let threshold = if is_part { 0.5 } else { 0.0 };
        let class = |a: &RawAnswer| match self.classes {
            1 => f64::from(a.number > threshold),
            _ => a.class,
        };
        let answers = labelled.iter().map(|a| answer(a, class(a)));
        Ok((answers.collect(), classes))
    }
}

/// The place of the largest number, the first if there are several; −1, which is no class, if one is no number.
fn largest(numbers: &[f64]) -> f64 {
    let mut best = 0;
    for (at, number) in numbers.iter().enumerate() {
        if number.is_nan() {
            return -1.0;
        }
        if *number > numbers[best] {
            best = at;
        }
    }
    best as f64
}
