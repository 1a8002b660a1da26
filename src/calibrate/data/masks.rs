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
use crate::graph::View;
use crate::onnx::node::{attr_f, attr_i, attr_t};
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, Model, op, tensor};

/// Numbers that one mask holds, at most.
pub(super) const MOST_NUMBERS: usize = 4;

/// Numbers that an element may become, at most.
const MOST: usize = 8;

/// Elements of a constant that are looked at.
const MOST_ELEMENTS: usize = 1 << 16;

/// The largest number that leaves nothing of a score. Swin's masks add −100.
const DEAD: f64 = -99.0;

/// How an input is read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reading {
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
        return Some(Reading { padding, note });
    }
    if !named {
        return None;
    }
    if effects.contains(&Effect::Keeps) || padding.len() == numbers.len() {
        let note = format!("{name} is read as a mask: none of its tokens is padding");
        return Some(Reading {
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
    Some(Reading { padding, note })
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

/// What an element of a value may be.
#[derive(Debug, Clone, PartialEq)]
struct Set {
    numbers: Vec<f64>,
    /// Whether it may be some number of ordinary size, too.
    any: bool,
    /// Whether it depends on the mask.
    masked: bool,
}

impl Set {
    fn any() -> Set {
        Set {
            numbers: vec![],
            any: true,
            masked: false,
        }
    }

    fn of(numbers: impl IntoIterator<Item = f64>) -> Set {
        let mut set = Set {
            numbers: vec![],
            any: false,
            masked: false,
        };
        numbers.into_iter().for_each(|v| set.add(Some(v)));
        set
    }

    /// `None` is any number.
    fn add(&mut self, number: Option<f64>) {
        match number {
            Some(v) if v.is_nan() => self.any = true,
            Some(v) if self.numbers.contains(&v) => {}
            Some(v) if self.numbers.len() < MOST => self.numbers.push(v),
            _ => self.any = true,
        }
    }

    fn elements(&self) -> impl Iterator<Item = Option<f64>> {
        self.numbers
            .iter()
            .map(|v| Some(*v))
            .chain(self.any.then_some(None))
    }

    fn dead(&self) -> bool {
        !self.any && !self.numbers.is_empty() && self.numbers.iter().all(|v| *v <= DEAD)
    }
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
    for (_, node) in view.nodes() {
        let inputs: Vec<Set> = node
            .input
            .iter()
            .map(|name| input(&view, &known, name))
            .collect();
        let masked = inputs.iter().any(|set| set.masked);
        if masked && let Some(dead) = at_attention(node, &inputs) {
            match (dead, effect) {
                (true, _) => effect = Effect::Kills,
                (false, Effect::None) => effect = Effect::Keeps,
                _ => {}
            }
        }
        let mut output = element(node, &inputs);
        output.masked = masked && !stops(node.op_type());
        if output.masked || output != Set::any() {
            for name in &node.output {
                known.insert(name, output.clone());
            }
        }
    }
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

fn input(view: &View, known: &BTreeMap<&str, Set>, name: &str) -> Set {
    if let Some(set) = known.get(name) {
        return set.clone();
    }
    let initializer = view.value(name).and_then(|id| view.initializer(id));
    initializer.map_or_else(Set::any, constant)
}

/// The different numbers of a tensor, if they are few.
fn constant(tensor: &crate::onnx::proto::TensorProto) -> Set {
    let elements = tensor::shape(tensor).map(|s| s.iter().product::<usize>());
    let small = elements.is_ok_and(|n| n <= MOST_ELEMENTS);
    match tensor::dtype(tensor) {
        Some(dtype) if small && tensor::is_float(dtype) => match tensor::float_array(tensor) {
            Ok(array) => Set::of(array.iter().map(|v| f64::from(*v))),
            Err(_) => Set::any(),
        },
        Some(DataType::String) | None => Set::any(),
        Some(_) if small => match tensor::int_array(tensor) {
            Ok(array) => Set::of(array.iter().map(|v| *v as f64)),
            Err(_) => Set::any(),
        },
        // A large table of booleans is a causal mask.
        Some(DataType::Bool) => Set::of([0.0, 1.0]),
        Some(_) => Set::any(),
    }
}

/// What an element of the first output may be.
fn element(node: &NodeProto, inputs: &[Set]) -> Set {
    let flag = |v: bool| f64::from(u8::from(v));
    let two = |f: &dyn Fn(Option<f64>, Option<f64>) -> Option<f64>| pairs(inputs, f);
    let compare = |f: fn(f64, f64) -> bool| compared(inputs, f);
    let one = |f: &dyn Fn(f64) -> f64| match inputs.first() {
        Some(set) => mapped(set, f),
        None => Set::any(),
    };
    match node.op_type() {
        op::Constant => attr_t(node, "value").map_or_else(Set::any, constant),
        op::ConstantOfShape => attr_t(node, "value").map_or_else(|| Set::of([0.0]), constant),
        op::Cast if attr_i(node, "to") == Some(DataType::Bool as i64) => {
            compared(&[inputs[0].clone(), Set::of([0.0])], |a, b| a != b)
        }
        op::Not => compared(&[inputs[0].clone(), Set::of([0.0])], |a, b| a == b),
        op::Neg => one(&|v| -v),
        op::Abs => one(&f64::abs),
        op::Sign => one(&f64::signum),
        op::Log => one(&f64::ln),
        op::Exp => one(&f64::exp),
        op::Clip => {
            let low = inputs.get(1).and_then(|s| s.numbers.first().copied());
            let high = inputs.get(2).and_then(|s| s.numbers.first().copied());
            let low = low
                .or(attr_f(node, "min").map(f64::from))
                .unwrap_or(f64::MIN);
            let high = high
                .or(attr_f(node, "max").map(f64::from))
                .unwrap_or(f64::MAX);
            one(&|v| v.max(low).min(high))
        }
        op::Add => two(&|a, b| plus(a, b, 1.0)),
        op::Sub => two(&|a, b| plus(a, b, -1.0)),
        op::Mul => two(&|a, b| match (a, b) {
            (Some(0.0), _) | (_, Some(0.0)) => Some(0.0),
            (a, b) => Some(a? * b?),
        }),
        op::Div => two(&|a, b| match (a, b) {
            (Some(0.0), _) => Some(0.0),
            // Scores over √d: what is dead stays dead.
            (Some(a), None) if a <= DEAD => Some(a),
            (a, b) => Some(a? / b?),
        }),
        op::Min => two(&|a, b| match (a, b) {
            (Some(a), None) | (None, Some(a)) if a <= DEAD => Some(a),
            (a, b) => Some(a?.min(b?)),
        }),
        op::Max => two(&|a, b| match (a, b) {
            (Some(a), None) | (None, Some(a)) if a >= -DEAD => Some(a),
            (a, b) => Some(a?.max(b?)),
        }),
        op::Equal => compare(|a, b| a == b),
        op::Greater => compare(|a, b| a > b),
        op::GreaterOrEqual => compare(|a, b| a >= b),
        op::Less => compare(|a, b| a < b),
        op::LessOrEqual => compare(|a, b| a <= b),
        op::And => logic(inputs, |a, b| flag(a && b)),
        op::Or => logic(inputs, |a, b| flag(a || b)),
        op::Xor => logic(inputs, |a, b| flag(a != b)),
        op::IsInf | op::IsNaN => Set::of([0.0, 1.0]),
        op::Where => chosen(inputs),
        op::Concat => inputs.iter().fold(Set::of([]), |all, set| union(&all, set)),
        op::Pad | op::Trilu => inputs
            .first()
            .map_or_else(Set::any, |set| union(set, &Set::of([0.0]))),
        // Elements in other places.
        op::Identity
        | op::Cast
        | op::CastLike
        | op::Reshape
        | op::Flatten
        | op::Squeeze
        | op::Unsqueeze
        | op::Expand
        | op::Tile
        | op::Transpose
        | op::Slice
        | op::Gather
        | op::GatherElements
        | op::GatherND
        | op::Split
        | op::Dropout
        | op::ReduceMin
        | op::ReduceMax => inputs.first().cloned().unwrap_or_else(Set::any),
        _ => Set::any(),
    }
}

/// A dead number takes an ordinary one with it.
fn plus(a: Option<f64>, b: Option<f64>, sign: f64) -> Option<f64> {
    match (a, b.map(|b| sign * b)) {
        (Some(a), Some(b)) => Some(a + b),
        (Some(a), None) | (None, Some(a)) if a <= DEAD => Some(a),
        _ => None,
    }
}

fn mapped(set: &Set, f: &dyn Fn(f64) -> f64) -> Set {
    let mut result = Set::of([]);
    set.elements().for_each(|v| result.add(v.map(f)));
    result
}

fn pairs(inputs: &[Set], f: &dyn Fn(Option<f64>, Option<f64>) -> Option<f64>) -> Set {
    let mut result = Set::of([]);
    if let [a, b, ..] = inputs {
        for x in a.elements() {
            b.elements().for_each(|y| result.add(f(x, y)));
        }
    }
    result
}

fn compared(inputs: &[Set], f: fn(f64, f64) -> bool) -> Set {
    match inputs {
        [a, b, ..] if !a.any && !b.any => {
            pairs(inputs, &|x, y| Some(f64::from(u8::from(f(x?, y?)))))
        }
        _ => Set::of([0.0, 1.0]),
    }
}

/// Of booleans, of which one that may be any is both.
fn logic(inputs: &[Set], f: impl Fn(bool, bool) -> f64) -> Set {
    let both = |set: &Set| match set.any {
        true => Set::of([0.0, 1.0]),
        false => set.clone(),
    };
    let inputs: Vec<Set> = inputs.iter().map(both).collect();
    pairs(&inputs, &|a, b| Some(f(a? != 0.0, b? != 0.0)))
}

fn chosen(inputs: &[Set]) -> Set {
    let [condition, yes, no] = inputs else {
        return Set::any();
    };
    let may = |v: bool| condition.any || condition.numbers.iter().any(|c| (*c != 0.0) == v);
    match (may(true), may(false)) {
        (true, false) => yes.clone(),
        (false, true) => no.clone(),
        _ => union(yes, no),
    }
}

fn union(a: &Set, b: &Set) -> Set {
    let mut result = a.clone();
    b.elements().for_each(|v| result.add(v));
    result
}
