//! Normalizations: y = n(x) γ + β with n the standardisation (LayerNormalization) or the division by the root
//! mean square (RMSNormalization) over the last axis.
//!
//! *Matches* LayerNormalization, SimplifiedLayerNormalization, RMSNormalization as single operators, ONNX Runtime's
//! fusions of a norm with the sum before it (SkipLayerNormalization, SkipSimplifiedLayerNormalization,
//! EmbedLayerNormalization; all of these here), and decompositions (`decomposed`).
//!
//! A fusion has further outputs, such as the sum that the next residual reads. They are values of their own: the norm's
//! γ and β do not reach them.
//!
//! *Not matched*, with the reason: another axis than the last, γ or β that is not a constant per channel, no γ.

use crate::graph::{NodeId, ValueId, View};
use crate::onnx::node::attr_i;
use crate::onnx::op;

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
            NormKind::Layer => op::LayerNormalization,
            NormKind::Rms => op::RMSNormalization,
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
    /// What it normalizes; `None` where that is a sum inside of the operator.
    pub input: Option<ValueId>,
    /// y.
    pub output: ValueId,
    /// The node that produces `output`.
    pub last: NodeId,
    /// γ.
    pub gamma: NormParam,
    /// β, if there is one.
    pub beta: Option<NormParam>,
    /// The input of `node` that would hold a β, for the operators that have such an input.
    pub beta_slot: Option<usize>,
    /// C.
    pub channels: usize,
}

pub(super) type Outcome = Result<Norm, (NormKind, String)>;

/// Where a norm that is one operator reads its constants.
struct Fused {
    kind: NormKind,
    gamma: usize,
    beta: Option<usize>,
    /// Whether it can be told to normalize over more than the last axis.
    has_axis: bool,
}

impl Fused {
    /// Whether its first input is what it normalizes, and no part of a sum.
    fn reads_input(&self) -> bool {
        self.gamma == 1
    }

    fn of(view: &View, node: NodeId) -> Option<Fused> {
        let proto = view.node(node);
        let standard = Fused {
            kind: NormKind::Rms,
            gamma: 1,
            beta: None,
            has_axis: true,
        };
        let ort = Fused {
            has_axis: false,
            ..standard
        };
        Some(match (view.op(node), proto.domain(), proto.op_type()) {
            (op::LayerNormalization, ..) => Fused {
                kind: NormKind::Layer,
                beta: Some(2),
                ..standard
            },
            // ONNX Runtime writes the second one without a version into the standard domain.
            (op::RMSNormalization | op::SimplifiedLayerNormalization, ..)
            | (_, "com.microsoft", op::SimplifiedLayerNormalization) => standard,
            (_, "com.microsoft", op::SkipLayerNormalization) => Fused {
                kind: NormKind::Layer,
                gamma: 2,
                beta: Some(3),
                ..ort
            },
            (_, "com.microsoft", op::SkipSimplifiedLayerNormalization) => Fused { gamma: 2, ..ort },
            (_, "com.microsoft", op::EmbedLayerNormalization) => Fused {
                kind: NormKind::Layer,
                gamma: 5,
                beta: Some(6),
                ..ort
            },
            _ => return None,
        })
    }
}

/// Matches a norm at `node`: `None` if the node is no candidate, `Err` if it almost is one.
pub(super) fn match_at(view: &View, node: NodeId) -> Option<Outcome> {
    match Fused::of(view, node) {
        Some(form) => Some(fused(view, node, &form).map_err(|reason| (form.kind, reason))),
        None => decomposed::match_at(view, node),
    }
}

fn fused(view: &View, node: NodeId, form: &Fused) -> Result<Norm, String> {
    let (Some(x), Some(output)) = (view.input(node, 0), view.output(node, 0)) else {
        return Err("its input or output is missing".to_owned());
    };
    let axis = attr_i(view.node(node), "axis").unwrap_or(-1);
    let rank = view.shape(x).map(|s| s.len() as i64);
    // Counted from the front with an unknown rank: a γ with one element per channel tells that it is the last.
    if form.has_axis && axis != -1 && (axis <= 0 || rank.is_some_and(|r| r != axis + 1)) {
        let rank = rank.map_or("unknown".to_owned(), |r| r.to_string());
        return Err(format!(
            "it normalizes from axis {axis} (of rank {rank}), not over the last axis alone"
        ));
    }
    let (gamma, channels) = match view.input(node, form.gamma) {
        Some(value) => param(view, node, form.gamma, value, "γ")?,
        None => return Err("it has no γ that could take a scale".to_owned()),
    };
    let beta = match form
        .beta
        .and_then(|slot| Some((slot, view.input(node, slot)?)))
    {
        Some((slot, value)) => {
            let (beta, c) = param(view, node, slot, value, "β")?;
            if c != channels {
                return Err(format!("γ has {channels} elements and β {c}"));
            }
            Some(beta)
        }
        None => None,
    };
    Ok(Norm {
        kind: form.kind,
        node,
        name: view.node_name(node).to_owned(),
        fused: true,
        input: form.reads_input().then_some(x),
        output,
        last: node,
        gamma,
        beta,
        beta_slot: form.beta,
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
