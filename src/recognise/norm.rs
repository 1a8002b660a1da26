//! Normalizations: y = n(x) γ + β with n the standardisation (LayerNormalization) or the division by the root
//! mean square (RMSNormalization) over the last axis.
//!
//! *Matches* LayerNormalization, SimplifiedLayerNormalization, RMSNormalization as single operators (here), and
//! their decompositions (`decomposed`).
//!
//! *Not matched*, with the reason: another axis than the last, γ or β that is not a constant per channel, no γ,
//! operators of ONNX Runtime that join a norm with something else.

use crate::graph::{NodeId, ValueId, View};
use crate::onnx::node::attr_i;

use super::decomposed;

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

pub(super) type Outcome = Result<Norm, (NormKind, String)>;

/// Matches a norm at `node`: `None` if the node is no candidate, `Err` if it almost is one.
pub(super) fn match_at(view: &View, node: NodeId) -> Option<Outcome> {
    match view.op(node) {
        "LayerNormalization" => return Some(fused(view, node, NormKind::Layer)),
        "RMSNormalization" => return Some(fused(view, node, NormKind::Rms)),
        // ONNX Runtime writes this one without a version into the standard domain.
        "SimplifiedLayerNormalization" => return Some(fused(view, node, NormKind::Rms)),
        "Sqrt" | "Pow" => return decomposed::match_at(view, node),
        _ => {}
    }
    let proto = view.node(node);
    let kind = match (proto.domain.as_deref()?, proto.op_type.as_deref()?) {
        ("com.microsoft", "SimplifiedLayerNormalization") => {
            return Some(fused(view, node, NormKind::Rms));
        }
        ("com.microsoft", "SkipLayerNormalization" | "EmbedLayerNormalization") => NormKind::Layer,
        ("com.microsoft", "SkipSimplifiedLayerNormalization") => NormKind::Rms,
        _ => return None,
    };
    let op = proto.op_type.as_deref()?;
    Some(Err((
        kind,
        format!(
            "com.microsoft.{op} is ONNX Runtime's fusion of a norm with what stands before it; \
             give the model as it was before ONNX Runtime optimized it"
        ),
    )))
}

fn fused(view: &View, node: NodeId, kind: NormKind) -> Outcome {
    let fail = |reason: String| Err((kind, reason));
    let (Some(x), Some(output)) = (view.input(node, 0), view.output(node, 0)) else {
        return fail("its input or output is missing".to_owned());
    };
    let axis = attr_i(view.node(node), "axis").unwrap_or(-1);
    let rank = view.shape(x).map(|s| s.len() as i64);
    // Counted from the front with an unknown rank: a γ with one element per channel tells that it is the last.
    if axis != -1 && (axis <= 0 || rank.is_some_and(|r| r != axis + 1)) {
        let rank = rank.map_or("unknown".to_owned(), |r| r.to_string());
        return fail(format!(
            "it normalizes from axis {axis} (of rank {rank}), not over the last axis alone"
        ));
    }
    let (gamma, channels) = match view.input(node, 1) {
        Some(value) => param(view, node, 1, value, "γ").map_err(|e| (kind, e))?,
        None => return fail("it has no γ that could take a scale".to_owned()),
    };
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
    Ok(Norm {
        kind,
        node,
        name: view.node_name(node).to_owned(),
        fused: true,
        output,
        last: node,
        gamma,
        beta,
        channels,
    })
}

/// A constant with one element per channel, and their number.
pub(super) fn param(
    view: &View,
    node: NodeId,
    slot: usize,
    value: ValueId,
    what: &str,
) -> Result<(NormParam, usize), String> {
    let name = view.name(value);
    if !view.is_constant(value) {
        return Err(format!("its {what} `{name}` is not a constant"));
    }
    let constant = view.constant(value).and_then(|c| c.into_float());
    let (array, _) =
        constant.ok_or_else(|| format!("its {what} `{name}` is not a float constant"))?;
    let channels = array.shape().last().copied().unwrap_or(1);
    if array.len() != channels || channels < 2 {
        return Err(format!(
            "its {what} `{name}` has shape {:?}, not one element per channel of the last axis",
            array.shape()
        ));
    }
    Ok((NormParam { node, slot, value }, channels))
}
