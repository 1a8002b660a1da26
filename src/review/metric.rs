//! What a metric says of the float and of the quantized model, and how sure that is.

use serde::{Deserialize, Serialize};

use super::json::number;
use crate::calibrate::{MetricKind, MinMetric, Score};

/// Fewer rows than this are no verdict, whatever they say.
const FEW_ROWS: usize = 100;

/// A metric of both models. Field names are the keys of the JSON form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MetricReport {
    /// What it is called: "accuracy".
    pub name: String,
    /// The output that was looked at; `None` of a metric of the caller's own.
    pub output: Option<String>,
    /// Rows, or pairs of rows, that were asked; 0 where it is not known.
    pub rows: usize,
    /// Which rows, in words; empty where it is not known.
    pub rows_of: String,
    /// What it says of the float model; more is better.
    #[serde(deserialize_with = "number")]
    pub float: f64,
    /// What it says of the quantized model.
    #[serde(deserialize_with = "number")]
    pub quantized: f64,
    /// The least that was asked for; `None` if nothing was.
    pub least: Option<f64>,
    /// What `quantized` may differ by on other rows, in 95 of 100 cases; `None` where nothing tells.
    pub known_to: Option<f64>,
    /// What `quantized − float` may differ by on other rows.
    pub difference_known_to: Option<f64>,
    /// Answers that are not the same in both models, where they are classes.
    pub changed: Option<usize>,
    /// Why this is no verdict, if it is none.
    pub caution: Option<String>,
    /// What else a reader should know.
    pub notes: Vec<String>,
}

impl MetricReport {
    /// That of two models on the same rows.
    pub fn new(float: &Score, quantized: &Score, least: Option<MinMetric>, rows_of: &str) -> Self {
        let mut report = MetricReport {
            name: quantized.name.clone(),
            output: quantized.output.clone(),
            rows: quantized.rows(),
            rows_of: rows_of.to_owned(),
            float: float.value,
            quantized: quantized.value,
            least: least.map(|least| least.least(float.value)),
            known_to: quantized.known_to(),
            difference_known_to: quantized.difference_known_to(float),
            changed: quantized.changed(float),
            caution: None,
            notes: quantized.notes.clone(),
        };
        report.caution = report.doubt(least);
        report.notes.extend(guesses(float));
        report
    }

    /// As "accuracy falls from 92.1 % to 91.9 % (412 rows)".
    pub fn sentence(&self) -> String {
        let (float, quantized) = self.figures();
        let change = match self.quantized - self.float {
            _ if float == quantized => format!("stays at {float}"),
            change if change < 0.0 => format!("falls from {float} to {quantized}"),
            change if change > 0.0 => format!("rises from {float} to {quantized}"),
            _ => format!("was {float}, is {quantized}"),
        };
        let rows = match self.rows {
            0 => String::new(),
            1 => " (1 row)".to_owned(),
            rows => format!(" ({rows} rows)"),
        };
        format!("{} {change}{rows}", self.name)
    }

    /// How sure that is, as "known to ± 2.7 points, the change to ± 0.5"; nothing where nothing tells.
    pub fn sureness(&self) -> Option<String> {
        let (known, change) = (self.known_to?, self.difference_known_to?);
        let of = |value: f64| match is_part(&self.name) {
            true => format!("{:.1}", 100.0 * value),
            false => format!("{value:.4}"),
        };
        let unit = if is_part(&self.name) { " points" } else { "" };
        Some(format!(
            "on other rows ± {}{unit}, the change ± {}",
            of(known),
            of(change)
        ))
    }

    /// Both figures, with as many digits as tell them apart.
    fn figures(&self) -> (String, String) {
        let of = |value, digits| shown(&self.name, value, digits);
        let digits = [1, 2, 3];
        let apart = digits
            .into_iter()
            .find(|d| of(self.float, *d) != of(self.quantized, *d));
        let digits = apart.filter(|_| self.float != self.quantized).unwrap_or(1);
        (of(self.float, digits), of(self.quantized, digits))
    }

    /// A figure as people write it: "92.1 %" of what is a part of all, "0.8713" of anything else.
    pub fn figure(name: &str, value: f64) -> String {
        shown(name, value, 1)
    }

    /// Why a reader should not rely on it.
    fn doubt(&self, least: Option<MinMetric>) -> Option<String> {
        if self.rows == 0 {
            return None;
        }
        if self.rows < FEW_ROWS {
            return Some(format!(
                "{} are too few for a verdict; label some hundred",
                match self.rows {
                    1 => "1 row".to_owned(),
                    rows => format!("{rows} rows"),
                }
            ));
        }
        match (least, self.difference_known_to) {
            (Some(MinMetric::Fall(fall)), Some(known)) if known > fall => {
                let of = |value| MetricReport::figure(&self.name, value).replace(" %", " points");
                Some(format!(
                    "these rows tell a change to ± {}, which is more than the fall of {} that was allowed",
                    of(known),
                    of(fall)
                ))
            }
            _ => None,
        }
    }
}

/// Whether a metric is a part of all, to be shown in percent.
fn is_part(name: &str) -> bool {
    matches!(
        MetricKind::named(name),
        Some(MetricKind::Accuracy | MetricKind::F1)
    )
}

fn shown(name: &str, value: f64, digits: usize) -> String {
    match (MetricKind::named(name), value) {
        (_, value) if !value.is_finite() => "no number".to_owned(),
        _ if is_part(name) => format!("{:.digits$} %", 100.0 * value),
        (Some(_), value) => format!("{value:.0$}", digits + 3),
        (None, value) => format!("{value:.0$}", digits + 5)
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned(),
    }
}

/// What is said of a float model that knows no more than someone who always gives the commonest answer.
fn guesses(float: &Score) -> Option<String> {
    let kind = float.kind.filter(|kind| *kind == MetricKind::Accuracy)?;
    let mut labels: Vec<i64> = float.answers.iter().map(|a| a.label as i64).collect();
    labels.sort_unstable();
    let commonest = labels.chunk_by(|a, b| a == b).map(<[i64]>::len).max()?;
    let part = commonest as f64 / labels.len() as f64;
    (float.value <= part && part < 1.0).then(|| {
        format!(
            "the float model's {} of {} is no more than the commonest label gives ({}): do the labels have the numbers of the \
             model's classes?",
            kind.name(),
            MetricReport::figure(kind.name(), float.value),
            MetricReport::figure(kind.name(), part)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::Answer;

    fn score(right: usize, of: usize) -> Score {
        let answer = |row: usize| Answer {
            row: row as u64,
            label: (row % 2) as f64,
            answer: if row < right { row % 2 } else { (row + 1) % 2 } as f64,
        };
        let answers: Vec<Answer> = (0..of).map(answer).collect();
        Score {
            name: "accuracy".to_owned(),
            value: MetricKind::Accuracy.of(2, answers.iter()),
            kind: Some(MetricKind::Accuracy),
            classes: 2,
            answers,
            ..Score::default()
        }
    }

    #[test]
    fn the_sentence_that_people_want() {
        let fall = Some(MinMetric::Fall(0.005));
        let report = MetricReport::new(&score(379, 412), &score(378, 412), fall, "");
        assert_eq!(
            report.sentence(),
            "accuracy falls from 92.0 % to 91.7 % (412 rows)"
        );
        assert_eq!(report.changed, Some(1));
        // Nearly the same is not the same.
        let report = MetricReport::new(&score(9_001, 10_000), &score(9_000, 10_000), fall, "");
        assert_eq!(
            report.sentence(),
            "accuracy falls from 90.01 % to 90.00 % (10000 rows)"
        );
        assert_eq!(report.caution, None);
        let report = MetricReport::new(&score(90, 100), &score(90, 100), None, "");
        assert_eq!(report.sentence(), "accuracy stays at 90.0 % (100 rows)");
        let own = MetricReport::new(
            &Score::value("bleu", 31.25),
            &Score::value("bleu", 31.5),
            None,
            "",
        );
        assert_eq!(own.sentence(), "bleu rises from 31.25 to 31.5");
        assert_eq!((own.caution, own.known_to), (None, None));
        let none = MetricReport::new(
            &Score::value("bleu", 1.0),
            &Score::value("bleu", f64::NAN),
            None,
            "",
        );
        assert_eq!(none.sentence(), "bleu was 1, is no number");
    }

    #[test]
    fn too_few_rows_are_said() {
        let report = MetricReport::new(&score(15, 16), &score(15, 16), None, "");
        assert!(report.caution.unwrap().starts_with("16 rows are too few"));
        // Of 200 rows none changed; of other 200 a few may.
        let fall = Some(MinMetric::Fall(0.001));
        let report = MetricReport::new(&score(180, 200), &score(180, 200), fall, "");
        let told = report.caution.unwrap();
        assert!(
            told.contains("± 1.0 points") && told.contains("0.1 points"),
            "{told}"
        );
    }

    #[test]
    fn a_model_that_guesses_is_asked_about() {
        let report = MetricReport::new(&score(100, 200), &score(100, 200), None, "");
        assert!(report.notes[0].contains("50.0 %"), "{:?}", report.notes);
        assert!(
            MetricReport::new(&score(150, 200), &score(150, 200), None, "")
                .notes
                .is_empty()
        );
    }
}
