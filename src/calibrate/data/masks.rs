//! How masks are read: which of the numbers that an input holds mean padding.
//!
//! The graph says it. Each number that the data have is followed through it, element by element, until a Softmax (or an
//! operator that computes attention): a number with which every score becomes far too small to count means padding. So masks
//! of 1 and 0, inverted ones and those that are added are all read as what they are:
//!
//! ```text
//! (1 − m) · −1e9 + scores        0 is padding
//! Where(m, −inf, scores)         1 is padding
//! m + scores                     −1e9 is padding
//! ```
//!
//! Where no attention is reached, only inputs of the names that exporters use are masks: of these 0 is padding, or what is
//! negative, if anything is.

use std::collections::BTreeMap;

use crate::calibrate::data::fill::MASKS;
use crate::calibrate::data::input::NamedArray;
use crate::calibrate::data::numbers::{Set, follow};
use crate::graph::View;
use crate::onnx::proto::NodeProto;
use crate::onnx::{Model, op};

/// Numbers that one mask holds, at most.
pub(super) const MOST_NUMBERS: usize = 4;

/// How an input is read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reading {
    /// What the input holds.
    pub numbers: Vec<f64>,
    /// What means padding; nothing if all tokens are real.
    pub padding: Vec<f64>,
    /// In words.
    pub note: String,
}

/// How the input called `name` is read that holds `numbers`; `None` if it is no mask.
pub(super) fn reading(model: &Model, name: &str, numbers: &[f64]) -> Option<Reading> {
    let named = MASKS.contains(&name);
    let effects: Vec<Effect> = numbers.iter().map(|&v| effect(model, name, v)).collect();
    let shown = |numbers: &[f64]| {
        let words: Vec<String> = numbers.iter().map(|v| format!("{v}")).collect();
        words.join(" and ")
    };
    let killing = numbers
        .iter()
        .zip(&effects)
        .filter(|(_, e)| **e == Effect::Kills);
    let padding: Vec<f64> = killing.map(|(v, _)| *v).collect();
    if !padding.is_empty() && padding.len() < numbers.len() {
        let note = format!(
            "{name} is read as a mask: {} is padding, attention leaves it out",
            shown(&padding)
        );
        return Some(Reading {
            numbers: numbers.to_vec(),
            padding,
            note,
        });
    }
    if !named {
        return None;
    }
    if effects.contains(&Effect::Keeps) || padding.len() == numbers.len() {
        let note = format!("{name} is read as a mask: none of its tokens is padding");
        return Some(Reading {
            numbers: numbers.to_vec(),
            padding: vec![],
            note,
        });
    }
    let negative: Vec<f64> = numbers.iter().copied().filter(|v| *v < 0.0).collect();
    let padding = match negative.is_empty() {
        true => vec![0.0],
        false => negative,
    };
    let note = format!(
        "{name} is read as a mask: {} is padding, as its name and its numbers say; no attention was seen to leave it out",
        shown(&padding)
    );
    Some(Reading {
        numbers: numbers.to_vec(),
        padding,
        note,
    })
}

/// What a number does to attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// No attention is reached.
    None,
    /// Scores stay.
    Keeps,
    /// No score is left.
    Kills,
}

/// Follows one number of one input through the graph.
fn effect(model: &Model, name: &str, number: f64) -> Effect {
    let view = View::new(model);
    let mut known: BTreeMap<&str, Set> = BTreeMap::new();
    let mask = Set {
        masked: true,
        ..Set::of([number])
    };
    known.insert(name, mask);
    let mut effect = Effect::None;
    follow(&view, &mut known, |node, inputs, output| {
        let masked = inputs.iter().any(|set| set.masked);
        if masked && let Some(dead) = at_attention(node, inputs) {
            match (dead, effect) {
                (true, _) => effect = Effect::Kills,
                (false, Effect::None) => effect = Effect::Keeps,
                _ => {}
            }
        }
        output.masked = masked && !stops(node.op_type());
    });
    effect
}

/// Whether a node that reads the mask is attention, and what is left of it.
fn at_attention(node: &NodeProto, inputs: &[Set]) -> Option<bool> {
    let at = |slot: usize| inputs.get(slot).filter(|set| set.masked);
    let zero = |set: &Set| !set.any && set.numbers == [0.0];
    match (node.domain(), node.op_type()) {
        (_, op::Softmax | op::LogSoftmax) => at(0).map(Set::dead),
        ("com.microsoft", op::MultiHeadAttention) => {
            at(4).map(zero).or_else(|| at(5).map(Set::dead))
        }
        ("com.microsoft", op::Attention) => at(3).map(zero).or_else(|| at(5).map(Set::dead)),
        (_, op::Attention) => at(3).map(|set| zero(set) || set.dead()),
        _ => None,
    }
}

/// Whether what the operator gives tells nothing of single tokens any more.
fn stops(op: &str) -> bool {
    matches!(
        op,
        op::Softmax
            | op::MatMul
            | op::Gemm
            | op::Shape
            | op::Size
            | op::LayerNormalization
            | op::Attention
            | op::MultiHeadAttention
            | op::GroupQueryAttention
    )
}

/// The different numbers of arrays, in ascending order; `None` if they are many.
pub(super) fn few_numbers(arrays: &[&NamedArray]) -> Option<Vec<f64>> {
    let mut found: Vec<f64> = Vec::new();
    for array in arrays {
        for row in 0..array.data.shape.first().copied().unwrap_or(0) {
            for v in array.data.numbers(row) {
                if !found.contains(&v) {
                    found.push(v);
                }
                if found.len() > MOST_NUMBERS {
                    return None;
                }
            }
        }
    }
    found.sort_by(f64::total_cmp);
    Some(found)
}
