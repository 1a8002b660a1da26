//! What is added up over the tokens of two models' outputs, row by row, so that any choice of rows can be judged later.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::ArrayD;

use crate::calibrate::data::input::Batch;
use crate::calibrate::data::tokens::TokenContext;
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::measure::distributions::{self, Logarithms, Logs};
use crate::calibrate::measure::row_error::{RowError, token_db};
use crate::graph::axes::Axes;

/// How one output of a model differs from that of the reference.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputComparison {
    /// The output's name.
    pub name: String,
    /// Signal to error ratio in dB; infinite if there is no difference.
    pub sqnr_db: f64,
    /// Cosine of the angle between the two outputs as vectors; 1 if both are zero.
    pub cosine: f64,
    /// Largest difference of two elements.
    pub max_abs_error: f64,
    /// `max_abs_error` relative to the range of the reference's output; 0 if there is no difference.
    pub max_relative_error: f64,
    /// Smallest and largest element of the reference's output.
    pub range: (f64, f64),
    /// Elements compared.
    pub elements: u64,
    /// Elements that both models fill in with a constant (−∞, the smallest float, −10⁴ where a mask says so), or that are the same
    /// infinity or NaN in both: they are in none of these figures.
    pub filled: u64,
    /// Of an integer or boolean output the elements compared, and how many are the same. Its `sqnr_db` is that of elements that
    /// count 1 each, and its errors are the part that is not the same.
    pub agreement: Option<(u64, u64)>,
    /// Of an output `[…, C]` of two or more axes with C ≥ 2: the vectors compared, and how many have their largest element
    /// (the first of equals) at the same place in both models. `(0, 0)` for every other output.
    pub top1: (u64, u64),
    /// Of an output `[…, C]` of two or more axes with C ≥ 8: the mean over its tokens of their own SQNR in dB, each within ± 60.
    ///
    /// `sqnr_db` is that of the largest tokens where some are much larger than the others; this is that of most.
    pub token_sqnr_db: Option<f64>,
    /// The rows compared, ascending.
    pub rows: Vec<RowError>,
    /// The same of its logarithms, if every vector along its last axis is a distribution in both models, as a Softmax gives it.
    pub logarithms: Option<Logarithms>,
}

impl OutputComparison {
    /// The rows that tell how good a model is: those of the logarithms, if the output has some.
    pub fn judged_rows(&self) -> &[RowError] {
        self.logarithms.as_ref().map_or(&self.rows, |l| &l.rows)
    }

    /// [`OutputComparison::sqnr_db`] and [`OutputComparison::token_sqnr_db`] of [`OutputComparison::judged_rows`].
    pub fn judged_db(&self) -> (f64, Option<f64>) {
        let own = (self.sqnr_db, self.token_sqnr_db);
        let of = |l: &Logarithms| (l.sqnr_db, Some(l.token_sqnr_db));
        self.logarithms.as_ref().map_or(own, of)
    }
}

/// Fewer elements are no vector whose direction matters.
const SMALLEST_TOKEN: usize = 8;

/// Sums per row.
pub(super) type RowSums = BTreeMap<u64, Sums>;

/// The comparison over all rows.
pub(super) fn finish(rows: &RowSums, name: &str) -> OutputComparison {
    let mut total = Sums::default();
    rows.values().for_each(|sums| total.add(sums));
    let row = |(&row, sums): (&u64, &Sums)| RowError {
        row,
        reference: sums.reference,
        error: sums.error,
        tokens: sums.tokens,
    };
    OutputComparison {
        rows: rows.iter().map(row).collect(),
        logarithms: distributions::finish(
            rows.iter()
                .map(|(row, s)| (*row, &s.logarithms, s.compared)),
        ),
        ..total.finish(name)
    }
}

/// What is added up over tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sums {
    reference: f64,
    other: f64,
    product: f64,
    error: f64,
    max_error: f64,
    min: f64,
    max: f64,
    elements: u64,
    filled: u64,
    /// Whether elements are the same or not, and nothing between.
    integer: bool,
    agreeing_elements: u64,
    /// Vectors compared, and those with the same largest element.
    vectors: u64,
    agreeing: u64,
    /// Tokens with an SQNR, and its sum in dB.
    tokens: (u64, f64),
    /// Of the tokens that are distributions.
    logarithms: Logs,
    /// All tokens.
    compared: u64,
}

impl Default for Sums {
    fn default() -> Sums {
        Sums {
            reference: 0.0,
            other: 0.0,
            product: 0.0,
            error: 0.0,
            max_error: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            elements: 0,
            filled: 0,
            integer: false,
            agreeing_elements: 0,
            vectors: 0,
            agreeing: 0,
            tokens: (0, 0.0),
            logarithms: Logs::default(),
            compared: 0,
        }
    }
}

impl Sums {
    pub(super) fn add(&mut self, more: &Sums) {
        self.reference += more.reference;
        self.other += more.other;
        self.product += more.product;
        self.error += more.error;
        self.max_error = self.max_error.max(more.max_error);
        self.min = self.min.min(more.min);
        self.max = self.max.max(more.max);
        self.elements += more.elements;
        self.filled += more.filled;
        self.integer |= more.integer;
        self.agreeing_elements += more.agreeing_elements;
        self.vectors += more.vectors;
        self.agreeing += more.agreeing;
        self.tokens = (self.tokens.0 + more.tokens.0, self.tokens.1 + more.tokens.1);
        self.logarithms.add(&more.logarithms);
        self.compared += more.compared;
    }

    fn element(&mut self, r: f64, o: f64) {
        let e = r - o;
        self.reference += r * r;
        self.other += o * o;
        self.product += r * o;
        self.error += e * e;
        self.max_error = self.max_error.max(e.abs());
        self.min = self.min.min(r);
        self.max = self.max.max(r);
        self.elements += 1;
    }

    fn integer(&mut self, r: f32, o: f32) {
        self.integer = true;
        self.element(1.0, f64::from(u8::from(r == o)));
        self.agreeing_elements += u64::from(r == o);
    }

    /// Says that these are the sums of one token.
    fn is_token(&mut self) {
        if self.reference > 0.0 || self.error > 0.0 {
            self.tokens = (1, token_db(self.reference, self.error));
        }
    }

    fn finish(&self, name: &str) -> OutputComparison {
        let norm = (self.reference * self.other).sqrt();
        let range = self.max - self.min;
        OutputComparison {
            name: name.to_owned(),
            sqnr_db: if self.error == 0.0 {
                f64::INFINITY
            } else {
                10.0 * (self.reference / self.error).log10()
            },
            cosine: if self.error == 0.0 {
                1.0
            } else if norm == 0.0 {
                0.0
            } else {
                self.product / norm
            },
            max_abs_error: self.max_error,
            max_relative_error: if self.max_error == 0.0 {
                0.0
            } else if self.integer {
                self.error / self.elements as f64
            } else {
                self.max_error / range
            },
            range: (self.min, self.max),
            elements: self.elements,
            filled: self.filled,
            agreement: self
                .integer
                .then_some((self.elements, self.agreeing_elements)),
            top1: (self.vectors, self.agreeing),
            token_sqnr_db: (self.tokens.0 > 0).then(|| self.tokens.1 / self.tokens.0 as f64),
            rows: Vec::new(),
            logarithms: None,
        }
    }
}

/// What is known of the outputs that are compared.
pub(super) struct Known<'a> {
    /// Where their axes come from.
    pub axes: Arc<Axes>,
    /// Constants that the reference fills in, by output.
    pub fills: &'a BTreeMap<String, Vec<f32>>,
    /// Those that are integer or boolean.
    pub integers: &'a [String],
}

/// A number that is no activation's.
const ENORMOUS: f32 = 1e30;

/// Whether an element is one of the constants that a model fills in; of a large one that a mask adds, what it was added to may
/// be left in it.
pub(super) fn is_filled(v: f32, fills: &[f32]) -> bool {
    let near =
        |c: &f32| v == *c || (c.is_finite() && c.abs() >= 1e3 && (v - c).abs() <= 0.1 * c.abs());
    v.abs() >= ENORMOUS || fills.iter().any(near)
}

/// The outputs that a result is judged by: the float ones of which something was compared, or, without any, all.
pub fn judged(outputs: Vec<OutputComparison>) -> Vec<OutputComparison> {
    let float = |o: &OutputComparison| o.agreement.is_none() && o.elements > 0;
    match outputs.iter().any(float) {
        true => outputs.into_iter().filter(float).collect(),
        false => outputs,
    }
}

/// Compares the outputs of one batch. Elements that are the same infinity or NaN in both are left out, and those that both
/// fill in.
pub(super) fn compare_batch(
    batch: &Batch,
    known: &Known,
    reference: &BTreeMap<String, ArrayD<f32>>,
    other: &BTreeMap<String, ArrayD<f32>>,
) -> Result<BTreeMap<String, RowSums>, EngineError> {
    let context = TokenContext::new(batch, known.axes.clone());
    let missing = other.keys().find(|name| !reference.contains_key(*name));
    if let Some(name) = missing {
        return Err(EngineError::OutputMissing { name: name.clone() });
    }
    let mut result = BTreeMap::new();
    for (name, r) in reference {
        let o = other
            .get(name)
            .ok_or_else(|| EngineError::OutputMissing { name: name.clone() })?;
        if r.shape() != o.shape() {
            return Err(EngineError::OutputShape {
                name: name.clone(),
                reference: r.shape().to_vec(),
                other: o.shape().to_vec(),
            });
        }
        let channels = r.shape().last().copied().unwrap_or(1).max(1);
        let places = context.places(name, r.shape(), false);
        let reference_rank = r.ndim();
        let (r, o) = (r.as_standard_layout(), o.as_standard_layout());
        // Standard layout makes both contiguous.
        let (Some(r), Some(o)) = (r.as_slice(), o.as_slice()) else {
            continue;
        };
        let integer = known.integers.contains(name);
        let fills = known.fills.get(name).map_or(&[][..], Vec::as_slice);
        let vectors = r.chunks_exact(channels).zip(o.chunks_exact(channels));
        let mut rows = RowSums::new();
        for (place, (r, o)) in places.iter().zip(vectors) {
            if !place.keep {
                continue;
            }
            let sums = rows.entry(context.row(place.row)).or_default();
            if integer {
                r.iter().zip(o).for_each(|(r, o)| sums.integer(*r, *o));
                continue;
            }
            if reference_rank > 1 && channels > 1 {
                sums.vectors += 1;
                sums.agreeing += u64::from(largest(r) == largest(o));
            }
            let mut own = Sums::default();
            for (r, o) in r.iter().zip(o) {
                let filled = is_filled(*r, fills) && is_filled(*o, fills);
                if filled || r == o && !r.is_finite() || r.is_nan() && o.is_nan() {
                    own.filled += 1;
                } else if r.is_finite() && o.is_finite() {
                    own.element(f64::from(*r), f64::from(*o));
                } else {
                    return Err(EngineError::OutputNotFinite {
                        name: name.clone(),
                        row: context.row(place.row),
                        value: *o,
                        reference: *r,
                    });
                }
            }
            if reference_rank > 1 && channels >= SMALLEST_TOKEN {
                own.is_token();
            }
            own.compared = 1;
            own.logarithms = Logs::of(r, o);
            sums.add(&own);
        }
        result.insert(name.clone(), rows);
    }
    Ok(result)
}

/// The place of the largest element, the first of equals; NaN is none.
fn largest(vector: &[f32]) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (i, &v) in vector.iter().enumerate() {
        let larger = best.is_none_or(|(_, most)| v > most);
        if larger && !v.is_nan() {
            best = Some((i, v));
        }
    }
    best.map(|(i, _)| i)
}
