//! What part of the work is in integers, and what speed to expect at most from that.

use serde::{Deserialize, Serialize};

use super::json::number;

/// How many times as fast as in float32 a processor multiplies int8, at most: four times as many fit its registers.
pub const INT8_RATE: f64 = 4.0;

/// Who does the multiplications of a model, on the first calibration rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct WorkReport {
    /// Multiplications per row of data.
    #[serde(deserialize_with = "number")]
    pub multiplications: f64,
    /// The part of them, from 0 to 1, that is in integers.
    #[serde(deserialize_with = "number")]
    pub int8: f64,
    /// What stays in float, the largest part first.
    pub float: Vec<FloatWork>,
    /// How many times as fast as the float model the result can be at most, `1 / ((1 − p) + p / 4)` with p = `int8`: if integers are
    /// multiplied four times as fast, and nothing but multiplications takes time.
    #[serde(deserialize_with = "number")]
    pub speed_at_most: f64,
    /// Bytes of embedding tables in float: read by row, never multiplied.
    pub embedding_bytes: u64,
    /// Bytes of all constants in float, those tables among them.
    pub float_bytes: u64,
}

/// Products of one kind that stay in float.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct FloatWork {
    /// "Linears", "Conv", "MatMul of two activations", …
    pub what: String,
    /// How many nodes they are.
    pub nodes: usize,
    /// Their part of the multiplications, from 0 to 1.
    #[serde(deserialize_with = "number")]
    pub part: f64,
}

impl WorkReport {
    /// From multiplications in integers and in float, the latter by kind with the number of nodes; of `rows` rows.
    pub fn new(
        rows: usize,
        int8: f64,
        float: impl IntoIterator<Item = (String, usize, f64)>,
    ) -> WorkReport {
        let float: Vec<(String, usize, f64)> = float.into_iter().collect();
        let all = int8 + float.iter().map(|(.., n)| n).sum::<f64>();
        let part = |n: f64| if all > 0.0 { n / all } else { 0.0 };
        let kinds = float.into_iter().map(|(what, nodes, n)| FloatWork {
            what,
            nodes,
            part: part(n),
        });
        let mut float: Vec<FloatWork> = kinds.collect();
        float.sort_by(|a, b| b.part.total_cmp(&a.part).then(a.what.cmp(&b.what)));
        let share = part(int8);
        WorkReport {
            multiplications: all / rows.max(1) as f64,
            int8: share,
            float,
            speed_at_most: 1.0 / (1.0 - share + share / INT8_RATE),
            ..WorkReport::default()
        }
    }

    /// In one line.
    pub fn words(&self) -> String {
        let part = |f: &FloatWork| format!("{} {:.1} %", f.what, 100.0 * f.part);
        let float: Vec<String> = self
            .float
            .iter()
            .filter(|f| f.part >= 0.0005)
            .map(part)
            .collect();
        let float = match float.is_empty() {
            true => String::new(),
            false => format!(", in float {}", float.join(", ")),
        };
        format!(
            "{:.1} % of the multiplications in int8{float}",
            100.0 * self.int8
        )
    }

    /// What speed that allows, in one line.
    pub fn speed(&self) -> String {
        format!(
            "at most {:.1} times as fast as float, were int8 {INT8_RATE} times as fast and multiplying all that takes time",
            self.speed_at_most
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_follows_from_the_share() {
        let float = [
            ("Conv".to_owned(), 2, 150.0),
            ("MatMul of two activations".to_owned(), 4, 50.0),
        ];
        let work = WorkReport::new(2, 600.0, float);
        assert_eq!((work.multiplications, work.int8), (400.0, 0.75));
        assert!((work.speed_at_most - 1.0 / 0.4375).abs() < 1e-12);
        assert_eq!(
            work.words(),
            "75.0 % of the multiplications in int8, in float Conv 18.8 %, MatMul of two activations 6.2 %"
        );
        assert_eq!(WorkReport::new(1, 0.0, []).speed_at_most, 1.0);
    }
}
