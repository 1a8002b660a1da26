//! Which numbers an element of a value may be, as far as constants decide it: fills and masks.
//!
//! A set of numbers is followed through the graph, element by element. What is computed from data is *any* number of ordinary
//! size, beside which constants such as −1e9 stay what they are: `Where(m, x, −inf)` is any number or −inf.

use std::collections::BTreeMap;

use crate::graph::View;
use crate::onnx::node::{attr_f, attr_i, attr_t};
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, Model, op, tensor};

/// Numbers that an element may become, at most.
const MOST: usize = 8;

/// Elements of a constant that are looked at.
const MOST_ELEMENTS: usize = 1 << 16;

/// The largest number that leaves nothing of a score. Swin's masks add −100.
const DEAD: f64 = -99.0;

/// What elements of `values` are that the model fills in, by the value's name: of each the constants far from any number
/// of ordinary size. `masks` are the inputs of which the numbers are known; those of booleans are.
pub(in crate::calibrate) fn fills<'v>(
    model: &Model,
    masks: &BTreeMap<&str, &[f64]>,
    values: impl Iterator<Item = &'v str>,
) -> BTreeMap<String, Vec<f32>> {
    let view = View::new(model);
    let mut known: BTreeMap<&str, Set> = BTreeMap::new();
    for input in &view.graph().input {
        let boolean = view.value(input.name()).and_then(|id| view.elem_type(id))
            == Some(DataType::Bool as i32);
        match masks.get(input.name()) {
            Some(numbers) => _ = known.insert(input.name(), Set::of(numbers.iter().copied())),
            None if boolean => _ = known.insert(input.name(), Set::of([0.0, 1.0])),
            None => {}
        }
    }
    follow(&view, &mut known, |_, _, _| {});
    let far = |set: &Set| {
        let numbers = set.numbers.iter().filter(|v| v.abs() >= -DEAD);
        numbers.map(|v| *v as f32).collect::<Vec<f32>>()
    };
    let found = values.filter_map(|name| {
        let set = known.get(name).filter(|set| set.any)?;
        Some((name.to_owned(), far(set)))
    });
    found.filter(|(_, fills)| !fills.is_empty()).collect()
}

/// Follows what is `known` of inputs through the graph; `at` each node, its inputs and output may be looked at and changed.
pub(super) fn follow<'m>(
    view: &View<'m>,
    known: &mut BTreeMap<&'m str, Set>,
    mut at: impl FnMut(&NodeProto, &[Set], &mut Set),
) {
    for (_, node) in view.nodes() {
        let inputs = node.input.iter().map(|name| input(view, known, name));
        let inputs: Vec<Set> = inputs.collect();
        let mut output = element(node, &inputs);
        at(node, &inputs, &mut output);
        if output != Set::any() {
            for name in &node.output {
                known.insert(name, output.clone());
            }
        }
    }
}

/// What an element of a value may be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Set {
    pub numbers: Vec<f64>,
    /// Whether it may be some number of ordinary size, too.
    pub any: bool,
    /// Whether it depends on the mask.
    pub masked: bool,
}

impl Set {
    pub(super) fn any() -> Set {
        Set {
            numbers: vec![],
            any: true,
            masked: false,
        }
    }

    pub(super) fn of(numbers: impl IntoIterator<Item = f64>) -> Set {
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

    pub(super) fn dead(&self) -> bool {
        !self.any && !self.numbers.is_empty() && self.numbers.iter().all(|v| *v <= DEAD)
    }
}

/// What an input of a node may be.
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
        | op::LogSoftmax
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
