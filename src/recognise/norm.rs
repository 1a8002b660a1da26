//! Normalizations: y = n(x) γ + β with n the standardisation (LayerNormalization) or the division by the root
//! mean square (RMSNormalization) over the last axis.
//!
//! *Matches* LayerNormalization, SimplifiedLayerNormalization, RMSNormalization as single operators, and their
//! decompositions, found from their square root:
//!
//! ```text
//! d = x − ReduceMean(x)          (LayerNormalization; for RMSNormalization d = x)
//! v = ReduceMean(d²)             Pow(d, 2) or Mul(d, d)
//! r = Sqrt(v + ε)                or Sqrt(v) + ε
//! n = d / r                      or d · Reciprocal(r), d · (1 / r)
//! y = n · γ + β                  either factor order; β may be missing, and is for RMSNormalization
//! ```
//!
//! Identity, Dropout and Cast may stand anywhere in between.
//!
//! *Not matched*, with the reason: another axis than the last, γ or β that is not a constant per channel, no γ.

use crate::graph::{NodeId, Use, ValueId, View};
use crate::onnx::node::{attr_f, attr_i, attr_ints};

use super::transparent::{passage, see_through};

/// Which normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Mean and variance (ONNX LayerNormalization).
    Layer,
    /// Root mean square only (ONNX RMSNormalization).
    Rms,
}

impl NormKind {
    /// The name of the ONNX operator.
    pub fn op_type(self) -> &'static str {
        match self {
            NormKind::Layer => "LayerNormalization",
            NormKind::Rms => "RMSNormalization",
        }
    }
}

/// Where a constant γ or β is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormParam {
    /// The reader: the norm itself, or the Mul or Add of its decomposition.
    pub node: NodeId,
    /// The input of the reader that holds the constant.
    pub slot: usize,
    /// The constant: `[C]`, or `[1, …, C]`.
    pub value: ValueId,
}

/// One normalization.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// Which one.
    pub kind: NormKind,
    /// The single operator, or the square root of the decomposition.
    pub node: NodeId,
    /// The name of the node that produces `output`.
    pub name: String,
    /// The single operator in place of a decomposition.
    pub fused: bool,
    /// y.
    pub output: ValueId,
    /// The node that produces `output`.
    pub last: NodeId,
    /// γ.
    pub gamma: NormParam,
    /// β, if there is one.
    pub beta: Option<NormParam>,
    /// C.
    pub channels: usize,
}

type Outcome = Result<Norm, (NormKind, String)>;

/// Matches a norm at `node`: `None` if the node is no candidate, `Err` if it almost is one.
pub(super) fn match_at(view: &View, node: NodeId) -> Option<Outcome> {
    match view.op(node) {
        "LayerNormalization" => Some(fused(view, node, NormKind::Layer)),
        "RMSNormalization" => Some(fused(view, node, NormKind::Rms)),
        "Sqrt" => decomposed(view, node),
        // ONNX Runtime registers these without a version in the standard domain, too.
        _ => match view.node(node).op_type.as_deref() {
            Some("SimplifiedLayerNormalization") => Some(fused(view, node, NormKind::Rms)),
            _ => None,
        },
    }
}

fn fused(view: &View, node: NodeId, kind: NormKind) -> Outcome {
    let fail = |reason: String| Err((kind, reason));
    let (Some(x), Some(output)) = (view.input(node, 0), view.output(node, 0)) else {
        return fail("its input or output is missing".to_owned());
    };
    let axis = attr_i(view.node(node), "axis").unwrap_or(-1);
    let rank = view.shape(x).map(|s| s.len() as i64);
    if axis != -1 && rank != Some(axis + 1) {
        return fail(format!(
            "it normalizes from axis {axis}, not over the last axis alone"
        ));
    }
    if (1..3).any(|i| {
        view.output(node, i)
            .is_some_and(|v| !view.uses(v).is_empty())
    }) {
        return fail("its mean or deviation is read as well".to_owned());
    }
    let gamma = match view.input(node, 1) {
        Some(value) => param(view, node, 1, value, "γ").map_err(|e| (kind, e))?,
        None => return fail("it has no γ that could take a scale".to_owned()),
    };
    let channels = gamma.1;
    let beta = match (kind, view.input(node, 2)) {
        (NormKind::Layer, Some(value)) => {
            let (beta, c) = param(view, node, 2, value, "β").map_err(|e| (kind, e))?;
            if c != channels {
                return fail(format!("γ has {channels} elements and β {c}"));
            }
            Some(beta)
        }
        _ => None,
    };
    let name = view.node_name(node).to_owned();
    Ok(Norm {
        kind,
        node,
        name,
        fused: true,
        output,
        last: node,
        gamma: gamma.0,
        beta,
        channels,
    })
}

/// A constant with one element per channel, and their number.
fn param(
    view: &View,
    node: NodeId,
    slot: usize,
    value: ValueId,
    what: &str,
) -> Result<(NormParam, usize), String> {
    let name = view.name(value);
    let constant = view.constant(value).and_then(|c| c.into_float());
    let (array, _) =
        constant.ok_or_else(|| format!("its {what} `{name}` is not a float constant"))?;
    let channels = array.shape().last().copied().unwrap_or(1);
    if array.len() != channels || array.ndim() == 0 {
        return Err(format!(
            "its {what} `{name}` has shape {:?}, not one element per channel",
            array.shape()
        ));
    }
    Ok((NormParam { node, slot, value }, channels))
}

/// The decomposition around a Sqrt. A Sqrt of anything but a mean of squares is no candidate.
fn decomposed(view: &View, sqrt: NodeId) -> Option<Outcome> {
    let (variance, epsilon_inside) = without_epsilon(view, view.input(sqrt, 0)?);
    let mean = mean_of(view, variance)?;
    let squared = square_of(view, mean.of)?;

    // From here on it is a norm, or a near miss of one.
    let centred = view
        .producer_is(squared, "Sub")
        .filter(|&sub| is_mean_of_first(view, sub))
        .and_then(|sub| view.input(sub, 0));
    let kind = if centred.is_some() {
        NormKind::Layer
    } else {
        NormKind::Rms
    };
    Some(decomposed_from(
        view,
        sqrt,
        kind,
        &mean,
        squared,
        epsilon_inside,
    ))
}

fn decomposed_from(
    view: &View,
    sqrt: NodeId,
    kind: NormKind,
    mean: &Mean,
    centred: ValueId,
    epsilon_inside: bool,
) -> Outcome {
    let fail = |reason: String| Err((kind, reason));
    if let Some(reason) = &mean.problem {
        return fail(reason.clone());
    }
    let mut root = forward(view, view.output(sqrt, 0));
    if !epsilon_inside
        && let Some((add, sum)) = root.and_then(|r| reader_with_constant(view, r, &["Add", "Max"]))
        && is_scalar(view, add)
    {
        root = forward(view, Some(sum));
    }
    let Some(root) = root else {
        return fail("its square root is not read".to_owned());
    };
    let Some(normalized) = normalize(view, centred, root) else {
        return fail(
            "its square root does not divide the value whose squares were averaged".to_owned(),
        );
    };
    scale_and_shift(view, sqrt, kind, normalized)
}

/// n · γ + β from n on.
fn scale_and_shift(view: &View, sqrt: NodeId, kind: NormKind, normalized: ValueId) -> Outcome {
    let fail = |reason: String| Err((kind, reason));
    let Some(normalized) = forward(view, Some(normalized)) else {
        return fail("the normalized value has several readers before γ".to_owned());
    };
    let Some((mul, scaled)) = reader_with_constant(view, normalized, &["Mul"]) else {
        return fail(
            "no Mul with a constant γ follows, so there is nothing that could take a scale"
                .to_owned(),
        );
    };
    let (slot, value) =
        constant_input(view, mul).ok_or((kind, "γ is not a constant".to_owned()))?;
    let (gamma, channels) = param(view, mul, slot, value, "γ").map_err(|e| (kind, e))?;
    let mut norm = Norm {
        kind,
        node: sqrt,
        name: view.node_name(mul).to_owned(),
        fused: false,
        output: scaled,
        last: mul,
        gamma,
        beta: None,
        channels,
    };
    if kind == NormKind::Layer
        && let Some(inner) = forward(view, Some(scaled))
        && let Some((add, output)) = reader_with_constant(view, inner, &["Add"])
        && let Some((slot, value)) = constant_input(view, add)
        && let Ok((beta, c)) = param(view, add, slot, value, "β")
        && c == channels
    {
        norm.beta = Some(beta);
        norm.output = output;
        norm.last = add;
        norm.name = view.node_name(add).to_owned();
    }
    Ok(norm)
}

/// Strips ε: v from Add(v, ε) or Max(v, ε), ε a scalar constant on either side.
fn without_epsilon(view: &View, value: ValueId) -> (ValueId, bool) {
    let value = see_through(view, value);
    let Some((node, 0)) = view.producer(value) else {
        return (value, false);
    };
    if !matches!(view.op(node), "Add" | "Max" | "Clip") {
        return (value, false);
    }
    let (a, b) = (view.input(node, 0), view.input(node, 1));
    match (a, b) {
        (Some(v), Some(e)) if view.scalar(e).is_some() => (see_through(view, v), true),
        (Some(e), Some(v)) if view.op(node) != "Clip" && view.scalar(e).is_some() => {
            (see_through(view, v), true)
        }
        (Some(v), None) if attr_f(view.node(node), "min").is_some() => (see_through(view, v), true),
        _ => (value, false),
    }
}

/// A ReduceMean: what it averages, and why it is not over the last axis, if so.
struct Mean {
    of: ValueId,
    problem: Option<String>,
}

fn mean_of(view: &View, value: ValueId) -> Option<Mean> {
    let node = view.producer_is(see_through(view, value), "ReduceMean")?;
    let of = view.input(node, 0)?;
    let axes = match (attr_ints(view.node(node), "axes"), view.input(node, 1)) {
        (Some(axes), _) => Some(axes.to_vec()),
        (None, Some(axes)) => view.constant(axes).and_then(|c| c.into_ints()),
        (None, None) => None,
    };
    let rank = view.shape(of).map(|s| s.len() as i64);
    let keep = attr_i(view.node(node), "keepdims").unwrap_or(1) != 0;
    let problem = match axes.as_deref() {
        _ if !keep => Some("its mean drops the axis it is taken over".to_owned()),
        Some([-1]) => None,
        // A positive axis of an unknown rank: exporters count from the front when they know the rank, and
        // normalize the last axis. The shape of γ decides later; nothing but the last axis can broadcast with it.
        Some(&[axis]) if axis > 0 && rank.is_none_or(|r| r == axis + 1) => None,
        Some(axes) => Some(format!(
            "its mean is over axes {axes:?}, not over the last axis"
        )),
        None => Some("its mean is over axes that are not a constant".to_owned()),
    };
    Some(Mean { of, problem })
}

/// d from Pow(d, 2) or Mul(d, d).
fn square_of(view: &View, value: ValueId) -> Option<ValueId> {
    let (node, _) = view.producer(see_through(view, value))?;
    let (a, b) = (view.input(node, 0)?, view.input(node, 1)?);
    let is_square = match view.op(node) {
        "Pow" => exponent(view, b) == Some(2.0),
        "Mul" => see_through(view, a) == see_through(view, b),
        _ => false,
    };
    is_square.then(|| see_through(view, a))
}

/// A constant exponent; exporters also write it as an integer.
fn exponent(view: &View, value: ValueId) -> Option<f32> {
    view.scalar(value)
        .or_else(|| match view.constant(value)?.into_ints()?.as_slice() {
            &[i] => Some(i as f32),
            _ => None,
        })
}

/// Whether `sub` computes a − ReduceMean(a).
fn is_mean_of_first(view: &View, sub: NodeId) -> bool {
    let (Some(a), Some(b)) = (view.input(sub, 0), view.input(sub, 1)) else {
        return false;
    };
    mean_of(view, b)
        .is_some_and(|m| m.problem.is_none() && see_through(view, m.of) == see_through(view, a))
}

/// n: the value that is `centred` divided by `root`, by Div or by Mul with a reciprocal.
fn normalize(view: &View, centred: ValueId, root: ValueId) -> Option<ValueId> {
    for reader in view.uses(root) {
        let Use::Node { node, input } = *reader else {
            continue;
        };
        let other = |slot: usize| view.input(node, slot).map(|v| see_through(view, v));
        match (view.op(node), input) {
            ("Div", 1) if other(0).is_some_and(|d| same_centred(view, d, centred)) => {
                return view.output(node, 0);
            }
            ("Div", 1) if view.input(node, 0).and_then(|v| view.scalar(v)) == Some(1.0) => {}
            ("Reciprocal", 0) => {}
            _ => continue,
        }
        // 1 / root: the product with the centred value comes next.
        let inverse = forward(view, view.output(node, 0))?;
        for reader in view.uses(inverse) {
            let Use::Node { node: mul, input } = *reader else {
                continue;
            };
            let factor = view
                .input(mul, 1 - input.min(1))
                .map(|v| see_through(view, v));
            if view.op(mul) == "Mul" && factor.is_some_and(|d| same_centred(view, d, centred)) {
                return view.output(mul, 0);
            }
        }
    }
    None
}

/// The same value, or a second copy of the same x − mean(x) (some exporters compute it twice).
fn same_centred(view: &View, a: ValueId, b: ValueId) -> bool {
    if a == b {
        return true;
    }
    let operand = |v| {
        let sub = view
            .producer_is(v, "Sub")
            .filter(|&s| is_mean_of_first(view, s))?;
        view.input(sub, 0).map(|x| see_through(view, x))
    };
    operand(a).is_some() && operand(a) == operand(b)
}

/// Walks down through transparent operators while they are the only reader.
fn forward(view: &View, value: Option<ValueId>) -> Option<ValueId> {
    let mut value = value?;
    while let Some((node, 0)) = view.only_reader(value) {
        match (passage(view, node), view.output(node, 0)) {
            (Some(_), Some(next)) => value = next,
            _ => break,
        }
    }
    Some(value)
}

/// The only reader of `value` if it is one of `ops` and its other input a constant; and that reader's output.
fn reader_with_constant(view: &View, value: ValueId, ops: &[&str]) -> Option<(NodeId, ValueId)> {
    let (node, slot) = view.only_reader(value)?;
    let other = view.input(node, 1 - slot.min(1))?;
    let matches = ops.contains(&view.op(node)) && view.is_constant(other);
    matches
        .then(|| view.output(node, 0).map(|out| (node, out)))
        .flatten()
}

/// The constant among the two inputs of a node.
fn constant_input(view: &View, node: NodeId) -> Option<(usize, ValueId)> {
    [1, 0]
        .into_iter()
        .filter_map(|slot| view.input(node, slot).map(|v| (slot, v)))
        .find(|&(_, v)| view.is_constant(v))
}

/// Whether the constant input of a node has a single element.
fn is_scalar(view: &View, node: NodeId) -> bool {
    constant_input(view, node).is_some_and(|(_, v)| view.scalar(v).is_some())
}
