//! What a model is worth to its user: metrics of labelled rows, and how sure they are.
//!
//! ```text
//! accuracy    answers that are the label / answers
//! f1          2 tp / (2 tp + fp + fn), of class 1 where there are two classes, else the mean over the classes that occur
//! matthews    the correlation of answers and labels as classes (Gorodkin's, for any number of classes)
//! spearman    Pearson's correlation of the ranks, ties sharing their mean rank
//! pearson     Σ (a − ā)(l − l̄) / √( Σ (a − ā)² · Σ (l − l̄)² )
//! auc         the part of all pairs of label 1 and label 0 in which the first has the larger answer, ties counted half
//! ```
//!
//! More is better in all of them. How far another sample of rows may be from a figure is told by the jackknife, which leaves out
//! a fiftieth of the rows at a time; of accuracy by the binomial distribution, which knows something where no answer is wrong.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::calibrate::data::labels::LabelError;
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::Engine;
use crate::onnx::Model;
use crate::progress::Progress;

/// Groups that the jackknife leaves out.
const GROUPS: usize = 50;

/// Standard errors that 95 of 100 samples are within.
const STUDENT: f64 = 2.0;

/// A figure of labels and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// The part of the answers that are right.
    Accuracy,
    /// The harmonic mean of precision and recall.
    F1,
    /// The correlation of classes.
    Matthews,
    /// The correlation of ranks.
    Spearman,
    /// The correlation of numbers.
    Pearson,
    /// The area under the receiver operating characteristic.
    Auc,
}

impl MetricKind {
    /// All of them.
    pub const ALL: [MetricKind; 6] = [
        MetricKind::Accuracy,
        MetricKind::F1,
        MetricKind::Matthews,
        MetricKind::Spearman,
        MetricKind::Pearson,
        MetricKind::Auc,
    ];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            MetricKind::Accuracy => "accuracy",
            MetricKind::F1 => "f1",
            MetricKind::Matthews => "matthews",
            MetricKind::Spearman => "spearman",
            MetricKind::Pearson => "pearson",
            MetricKind::Auc => "auc",
        }
    }

    /// The metric of that name.
    pub fn named(name: &str) -> Option<MetricKind> {
        MetricKind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether answers are classes, not numbers.
    pub fn is_of_classes(self) -> bool {
        matches!(
            self,
            MetricKind::Accuracy | MetricKind::F1 | MetricKind::Matthews
        )
    }

    /// The metric of some answers; NaN where it is not defined, as a correlation with a constant. Of `classes` classes where
    /// answers are such.
    pub fn of<'a>(self, classes: usize, answers: impl Iterator<Item = &'a Answer> + Clone) -> f64 {
        let pairs = answers.map(|a| (a.label, a.answer));
        match self {
            MetricKind::Accuracy => {
                let (n, right) = pairs.fold((0.0, 0.0), |(n, right), (label, answer)| {
                    (n + 1.0, right + f64::from(label == answer))
                });
                right / n
            }
            MetricKind::F1 => f1(classes, pairs),
            MetricKind::Matthews => matthews(pairs),
            MetricKind::Pearson => pearson(&pairs.collect::<Vec<_>>()),
            MetricKind::Spearman => {
                let (labels, answers): (Vec<f64>, Vec<f64>) = pairs.unzip();
                let ranked = ranks(&labels).into_iter().zip(ranks(&answers));
                match answers.iter().any(|a| a.is_nan()) {
                    true => f64::NAN,
                    false => pearson(&ranked.collect::<Vec<_>>()),
                }
            }
            MetricKind::Auc => auc(&pairs.collect::<Vec<_>>()),
        }
    }
}

/// What a model says of a row, and what it should say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// The row; of a pair, the number of the pair.
    pub row: u64,
    /// The class, or a number.
    pub label: f64,
    /// The class with the largest logit, −1 if one is no number; or a number.
    pub answer: f64,
}

/// What a metric says of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Score {
    /// What it is called: "accuracy".
    pub name: String,
    /// More is better.
    pub value: f64,
    /// Which metric of [`Score::answers`] it is; `None` of one that the caller has.
    pub kind: Option<MetricKind>,
    /// The output that was looked at.
    pub output: Option<String>,
    /// Classes of the model, where answers are such.
    pub classes: usize,
    /// Every answer, in the order of the rows.
    pub answers: Vec<Answer>,
    /// What else a reader should know.
    pub notes: Vec<String>,
}

impl Score {
    /// A figure without answers.
    pub fn value(name: &str, value: f64) -> Score {
        Score {
            name: name.to_owned(),
            value,
            ..Score::default()
        }
    }

    /// Rows, or pairs of rows, that were asked.
    pub fn rows(&self) -> usize {
        let rows: BTreeSet<u64> = self.answers.iter().map(|a| a.row).collect();
        rows.len()
    }

    /// What the figure of other rows may differ by, in 95 of 100 cases; `None` where nothing tells.
    pub fn known_to(&self) -> Option<f64> {
        let kind = self.kind?;
        let n = self.answers.len() as f64;
        if kind == MetricKind::Accuracy && self.rows() == self.answers.len() {
            // Agresti and Coull: two right and two wrong answers more.
            let right = (self.value * n + 2.0) / (n + 4.0);
            return Some(STUDENT * (right * (1.0 - right) / (n + 4.0)).sqrt());
        }
        let answers: Vec<Both> = self.answers.iter().map(|a| (*a, *a)).collect();
        jackknife(&answers, &|left| {
            kind.of(self.classes, left.iter().map(|(a, _)| a))
        })
    }

    /// The same of the difference to `other`, which was asked the same rows.
    pub fn difference_known_to(&self, other: &Score) -> Option<f64> {
        let kind = self.kind?;
        let pairs: Vec<Both> = self
            .answers
            .iter()
            .copied()
            .zip(other.answers.iter().copied())
            .collect();
        if kind == MetricKind::Accuracy && self.rows() == self.answers.len() {
            let is_right = |a: &Answer| f64::from(a.label == a.answer);
            let n = pairs.len() as f64;
            let differences = pairs.iter().map(|(a, b)| is_right(a) - is_right(b));
            let (sum, squares) = differences.fold((0.0, 0.0), |(s, q), d| (s + d, q + d * d));
            // One answer more that changes: of few rows it is chance if none does.
            let variance = (squares + 1.0 - sum * sum / n).max(0.0);
            return (n > 0.0).then(|| STUDENT * variance.sqrt() / n);
        }
        jackknife(&pairs, &|left| {
            let first = kind.of(self.classes, left.iter().map(|(a, _)| a));
            first - kind.of(self.classes, left.iter().map(|(_, b)| b))
        })
    }

    /// Answers that differ from those of `other`, where they are classes.
    pub fn changed(&self, other: &Score) -> Option<usize> {
        let kind = self.kind.filter(|kind| kind.is_of_classes());
        let pairs = self.answers.iter().zip(&other.answers);
        kind.map(|_| pairs.filter(|(a, b)| a.answer != b.answer).count())
    }
}

/// What a model must be worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MinMetric {
    /// At least so much.
    Value(f64),
    /// At most so much less than the float model.
    Fall(f64),
}

impl MinMetric {
    /// The least that is asked of the quantized model, where the float model is worth `float`.
    pub fn least(self, float: f64) -> f64 {
        match self {
            MinMetric::Value(value) => value,
            // What rounding makes of a difference of equal numbers is none.
            MinMetric::Fall(fall) => float - fall - 1e-12,
        }
    }

    /// Whether `value` is enough. What is no number never is.
    pub fn allows(self, float: f64, value: f64) -> bool {
        value >= self.least(float)
    }
}

/// What is wrong with a metric, or with what it asks.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MetricError {
    /// The labels.
    #[error(transparent)]
    Labels(#[from] LabelError),
    /// The model cannot be run on the rows.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The labels and the outputs do not go together.
    #[error("the labels cannot be compared with the model's outputs: {0}")]
    Outputs(String),
    /// The caller's own metric, in its words.
    #[error("{0}")]
    Other(String),
}

/// Who knows what a model is worth.
pub trait Metric: Sync {
    /// What it is called.
    fn name(&self) -> String;

    /// What `model` is worth: more is better.
    ///
    /// # Errors
    /// The model cannot be run, or its outputs are not what the metric needs.
    fn score(
        &self,
        model: &Model,
        engine: &dyn Engine,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<Score, MetricError>;
}

/// What two models answer to the same.
type Both = (Answer, Answer);

/// [`STUDENT`] standard errors of `figure` by the delete-a-group jackknife over rows: √( (G − 1)/G · Σ (f₋ᵢ − mean)² ). `None` of
/// less than two rows, or where it is not defined without some.
fn jackknife(answers: &[Both], figure: &dyn Fn(&[Both]) -> f64) -> Option<f64> {
    let rows: BTreeSet<u64> = answers.iter().map(|(a, _)| a.row).collect();
    let groups = rows.len().min(GROUPS);
    let group: BTreeMap<u64, usize> = rows
        .into_iter()
        .enumerate()
        .map(|(at, row)| (row, at % groups.max(1)))
        .collect();
    if groups < 2 {
        return None;
    }
    let without = |out: usize| {
        let left = answers
            .iter()
            .filter(|(a, _)| group.get(&a.row) != Some(&out));
        figure(&left.copied().collect::<Vec<_>>())
    };
    let found: Vec<f64> = (0..groups).map(without).collect();
    let n = groups as f64;
    let mean = found.iter().sum::<f64>() / n;
    let squares: f64 = found.iter().map(|f| (f - mean).powi(2)).sum();
    let error = STUDENT * ((n - 1.0) / n * squares).sqrt();
    error.is_finite().then_some(error)
}

/// F1 of class 1, or the mean over the classes that occur.
fn f1(classes: usize, pairs: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let of = |class: f64| {
        let (mut both, mut either) = (0.0, 0.0);
        for (label, answer) in pairs.clone() {
            let (is, says) = (label == class, answer == class);
            both += f64::from(is && says);
            either += f64::from(is) + f64::from(says);
        }
        2.0 * both / either
    };
    if classes <= 2 {
        return match of(1.0) {
            // Neither a label nor an answer is of that class.
            undefined if undefined.is_nan() => 0.0,
            defined => defined,
        };
    }
    let all = pairs.clone().flat_map(|(label, answer)| [label, answer]);
    let occur: BTreeSet<i64> = all.map(|class| class as i64).collect();
    occur.iter().map(|class| of(*class as f64)).sum::<f64>() / occur.len() as f64
}

/// The correlation of classes: (n · right − Σ lₖ aₖ) / √( (n² − Σ lₖ²)(n² − Σ aₖ²) ), with lₖ labels and aₖ answers of class k.
fn matthews(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
    let mut counts: BTreeMap<i64, (f64, f64)> = BTreeMap::new();
    let (mut n, mut right) = (0.0, 0.0);
    for (label, answer) in pairs {
        n += 1.0;
        right += f64::from(label == answer);
        counts.entry(label as i64).or_default().0 += 1.0;
        counts.entry(answer as i64).or_default().1 += 1.0;
    }
    let sum = |of: fn(&(f64, f64)) -> f64| counts.values().map(of).sum::<f64>();
    let scale = (n * n - sum(|c| c.0 * c.0)) * (n * n - sum(|c| c.1 * c.1));
    match scale > 0.0 {
        true => (n * right - sum(|c| c.0 * c.1)) / scale.sqrt(),
        // All are of one class: no correlation.
        false => 0.0,
    }
}

fn pearson(pairs: &[(f64, f64)]) -> f64 {
    let n = pairs.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (a, b) in pairs {
        xy += (a - x) * (b - y);
        xx += (a - x).powi(2);
        yy += (b - y).powi(2);
    }
    xy / (xx * yy).sqrt()
}

/// Ranks from 1 on; equal numbers share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    while first < order.len() {
        let value = values[order[first]];
        let same = order[first..].iter().take_while(|at| values[**at] == value);
        // A NaN is not even equal to itself.
        let end = first + same.count().max(1);
        for at in &order[first..end] {
            ranks[*at] = (first + 1 + end) as f64 / 2.0;
        }
        first = end;
    }
    ranks
}

/// By the ranks of the answers (Mann and Whitney): (Σ ranks of label 1 − n₁ (n₁ + 1)/2) / (n₁ n₀).
fn auc(pairs: &[(f64, f64)]) -> f64 {
    if pairs.iter().any(|(_, answer)| answer.is_nan()) {
        return f64::NAN;
    }
    let answers: Vec<f64> = pairs.iter().map(|(_, answer)| *answer).collect();
    let ranked = pairs.iter().zip(ranks(&answers));
    let (ones, sum) = ranked
        .filter(|((label, _), _)| *label > 0.5)
        .fold((0.0, 0.0), |(n, sum), (_, rank)| (n + 1.0, sum + rank));
    let zeros = pairs.len() as f64 - ones;
    (sum - ones * (ones + 1.0) / 2.0) / (ones * zeros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(pairs: &[(f64, f64)]) -> Vec<Answer> {
        let answer = |(row, &(label, answer)): (usize, &(f64, f64))| Answer {
            row: row as u64,
            label,
            answer,
        };
        pairs.iter().enumerate().map(answer).collect()
    }

    fn of(kind: MetricKind, classes: usize, pairs: &[(f64, f64)]) -> f64 {
        kind.of(classes, answers(pairs).iter())
    }

    /// The figures of scikit-learn and SciPy for the same numbers.
    #[test]
    fn figures_are_those_of_other_tools() {
        let two = [(1., 1.), (1., 0.), (0., 0.), (0., 1.), (1., 1.), (0., 0.)];
        assert!((of(MetricKind::Accuracy, 2, &two) - 4.0 / 6.0).abs() < 1e-12);
        assert!((of(MetricKind::F1, 2, &two) - 2.0 / 3.0).abs() < 1e-12);
        assert!((of(MetricKind::Matthews, 2, &two) - 1.0 / 3.0).abs() < 1e-12);
        let three = [(0., 0.), (1., 2.), (2., 2.), (1., 1.), (0., 0.), (2., 1.)];
        assert!((of(MetricKind::F1, 3, &three) - 2.0 / 3.0).abs() < 1e-12);
        assert!((of(MetricKind::Matthews, 3, &three) - 0.5).abs() < 1e-12);
        let numbers = [(1., 0.1), (2., 0.4), (3., 0.35), (3., 0.8), (5., 0.9)];
        assert!((of(MetricKind::Spearman, 0, &numbers) - 0.820_782_681_668_123_3).abs() < 1e-9);
        assert!((of(MetricKind::Pearson, 0, &numbers) - 0.867_048_995_923_981_7).abs() < 1e-9);
        let scores = [(0., 0.1), (0., 0.4), (1., 0.35), (1., 0.8)];
        assert!((of(MetricKind::Auc, 0, &scores) - 0.75).abs() < 1e-12);
    }

    #[test]
    fn what_is_not_defined_is_no_number() {
        assert!(of(MetricKind::Spearman, 0, &[(1., 2.), (1., 3.)]).is_nan());
        assert!(of(MetricKind::Spearman, 0, &[(1., f64::NAN), (2., 3.)]).is_nan());
        assert!(of(MetricKind::Auc, 0, &[(1., 2.), (1., 3.)]).is_nan());
        assert!(of(MetricKind::Accuracy, 2, &[]).is_nan());
        assert_eq!(of(MetricKind::F1, 2, &[(0., 0.)]), 0.0);
        assert_eq!(of(MetricKind::Matthews, 2, &[(0., 0.)]), 0.0);
        let fall = MinMetric::Fall(0.5);
        assert!(!fall.allows(1.0, f64::NAN));
        assert!(fall.allows(0.8, 0.3) && !fall.allows(0.8, 0.29));
        assert!(MinMetric::Value(0.3).allows(0.0, 0.3));
    }

    fn score(kind: MetricKind, pairs: &[(f64, f64)]) -> Score {
        let answers = answers(pairs);
        Score {
            value: kind.of(2, answers.iter()),
            kind: Some(kind),
            classes: 2,
            answers,
            ..Score::default()
        }
    }

    #[test]
    fn few_rows_tell_little() {
        let right = [(1., 1.); 16];
        let few = score(MetricKind::Accuracy, &right).known_to().unwrap();
        assert!((0.1..0.2).contains(&few), "{few}");
        let many = score(MetricKind::Accuracy, &[(1., 1.); 1600]);
        assert!(many.known_to().unwrap() < 0.005);
        // That nothing changed among few rows does not mean that nothing does.
        let same = score(MetricKind::Accuracy, &right);
        assert!(same.difference_known_to(&same).unwrap() > 0.1);
        assert!(many.difference_known_to(&many).unwrap() < 0.002);
        assert_eq!(many.changed(&many), Some(0));
    }

    /// Of one proportion the jackknife and the binomial distribution say the same.
    #[test]
    fn the_jackknife_is_the_binomial_error_of_a_proportion() {
        let pairs: Vec<(f64, f64)> = (0..50).map(|n| (1., f64::from(n % 5 != 0))).collect();
        let twice: Vec<Both> = answers(&pairs).iter().map(|a| (*a, *a)).collect();
        let by_rows = jackknife(&twice, &|left| {
            MetricKind::Accuracy.of(2, left.iter().map(|(a, _)| a))
        });
        let binomial = 2.0 * (0.8f64 * 0.2 / 49.0).sqrt();
        assert!((by_rows.unwrap() - binomial).abs() < 1e-9);
        let correlated = score(
            MetricKind::Spearman,
            &[(1., 1.), (2., 2.), (3., 2.5), (4., 4.)],
        );
        assert!(correlated.known_to().is_some());
        assert_eq!(score(MetricKind::Spearman, &[(1., 1.)]).known_to(), None);
    }

    #[test]
    fn every_metric_has_a_name() {
        for kind in MetricKind::ALL {
            assert_eq!(MetricKind::named(kind.name()), Some(kind));
        }
        assert_eq!(MetricKind::named("bleu"), None);
    }
}
