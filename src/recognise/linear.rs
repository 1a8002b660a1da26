//! Linear layers: y = x W + b.
//!
//! *Matches* MatMul(x, W); MatMul(x, W) followed by Add of a constant b on either side, or by an operator that adds b
//! before it does more (`contrib`); Gemm with any transA, transB, alpha and beta. W is an initializer or a Constant node, possibly behind Transpose, Identity, Reshape,
//! Cast and the like (whatever [`View::constant`] evaluates).
//!
//! *Not matched*, with the reason: W in another layout (`layout`), W of integers or behind a DequantizeLinear (already
//! quantized), W that a caller may override, W computed from constants by operators that are not evaluated here,
//! operators that multiply quantized values. A MatMul of two computed values is attention's business and no
//! near miss.

use ndarray::{Array1, Array2, Ix2};

use super::weight::weight_facts;
use crate::graph::{NodeId, Source, Use, ValueId, View};
use crate::onnx::DataType;
use crate::onnx::node::{attr_f, attr_i};
use crate::onnx::op;
use crate::onnx::tensor;

use super::contrib;
use super::layout::other_layout;

/// The operator that computes x W.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LinearForm {
    /// MatMul: x of any rank, W: [K, N].
    MatMul,
    /// Gemm: `alpha * op(x) * op(W) + beta * c`, x of rank 2.
    Gemm {
        /// x is stored as [K, M]: its channels are not on the last axis.
        trans_a: bool,
        /// W is stored as [N, K].
        trans_b: bool,
        /// The factor of the product.
        alpha: f32,
        /// The factor of the bias.
        beta: f32,
    },
}

/// Where the bias `b: [N]` is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bias {
    /// The Add after a MatMul, or the Gemm itself.
    pub node: NodeId,
    /// The input of that node which holds the constant.
    pub slot: usize,
    /// The constant.
    pub value: ValueId,
    /// It is added inside of an operator that does more, such as BiasGelu: x W + b is no value of the graph.
    pub inside: bool,
}

/// One Linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// The MatMul or Gemm.
    pub node: NodeId,
    /// That node's name.
    pub name: String,
    /// x, read by `node` as input 0.
    pub input: ValueId,
    /// The constant that `node` reads as input 1, in the layout of `form`.
    pub weight: ValueId,
    /// The float type of the weight in the file.
    pub dtype: DataType,
    /// The bias, if there is one and it is a constant of N elements.
    pub bias: Option<Bias>,
    /// A bias that is not one constant per column (computed, or per row): it can stay, but takes no shift.
    pub odd_bias: bool,
    /// The operator.
    pub form: LinearForm,
    /// Input channels.
    pub k: usize,
    /// Output channels.
    pub n: usize,
}

impl Linear {
    /// Whether the channels of x are on its last axis, as everywhere but in a Gemm with transA.
    pub fn channels_last(&self) -> bool {
        !matches!(self.form, LinearForm::Gemm { trans_a: true, .. })
    }

    /// The effective weight W: [K, N], so that the layer computes x W + b: transB and alpha are in it.
    pub fn load_weight(&self, view: &View) -> Option<Array2<f32>> {
        let (array, _) = view.constant(self.weight)?.into_float()?;
        let stored = array.into_dimensionality::<Ix2>().ok()?;
        Some(match self.form {
            LinearForm::MatMul => stored,
            LinearForm::Gemm { trans_b, alpha, .. } => {
                let w = if trans_b {
                    stored.reversed_axes()
                } else {
                    stored
                };
                let w = w.as_standard_layout().into_owned();
                if alpha == 1.0 { w } else { w * alpha }
            }
        })
    }

    /// The effective bias that `node` adds itself: that of a Gemm.
    pub fn inner_bias(&self, view: &View) -> Option<Array1<f32>> {
        let gemm = matches!(self.form, LinearForm::Gemm { .. });
        self.load_bias(view).filter(|_| gemm)
    }

    /// The effective bias `b: [N]`, beta in it; `None` if the layer has none.
    pub fn load_bias(&self, view: &View) -> Option<Array1<f32>> {
        let (array, _) = view.constant(self.bias?.value)?.into_float()?;
        let beta = match self.form {
            LinearForm::Gemm { beta, .. } => beta,
            LinearForm::MatMul => 1.0,
        };
        let flat: Vec<f32> = array.iter().map(|b| b * beta).collect();
        // A Gemm may hold one number for all columns.
        let spread = if flat.len() == 1 {
            vec![flat[0]; self.n]
        } else {
            flat
        };
        Some(Array1::from(spread))
    }
}

/// Matches a Linear at `node`: `None` if the node is no candidate, `Err(reason)` if it almost is one.
pub(super) fn match_at(view: &View, node: NodeId) -> Option<Result<Linear, String>> {
    match view.op(node) {
        op::MatMul | op::Gemm => {}
        op::Einsum | op::Conv => return in_other_layout(view, node).map(Err),
        _ => return other_product(view, node).map(Err),
    }
    if super::rotation_part(view, node).is_some() {
        return None;
    }
    let (x, w) = (view.input(node, 0)?, view.input(node, 1)?);
    if view.is_constant(w) {
        let layout = in_other_layout(view, node);
        return Some(match (layout, match_constant(view, node, x, w)) {
            (Some(reason), Err(_)) => Err(reason),
            (_, matched) => matched,
        });
    }
    let name = view.name(w);
    let reason = if view.is_constant(x) {
        format!(
            "the constant `{}` is on the left of the product; a weight is expected on the right",
            view.name(x)
        )
    } else if let Some(name) = overridable(view, w) {
        format!(
            "its weight `{name}` is also a graph input, so a caller may replace it; remove it from the inputs"
        )
    } else if let Some(dequantize) = dequantized(view, w) {
        format!(
            "its weight `{name}` comes from DequantizeLinear `{dequantize}`, so it is already quantized"
        )
    } else if let Some(op) = fixed(view, w, 0) {
        format!(
            "its weight `{name}` is computed from constants by {op}, which this tool does not evaluate; \
             simplify the model first"
        )
    } else {
        return None;
    };
    Some(Err(reason))
}

/// Why a product that is a Linear in another layout is still in it.
fn in_other_layout(view: &View, node: NodeId) -> Option<String> {
    let rank = |value| view.shape(value).map(|shape| shape.len());
    Some(match other_layout(view, node, &rank)? {
        Err(reason) => reason,
        Ok(layout) => format!(
            "it is a Linear of {} to {} channels in another layout, and was not written as a MatMul with a matrix",
            layout.k(),
            layout.n()
        ),
    })
}

/// Why an operator that multiplies with a stored weight in another way is no float Linear. The same operators over
/// computed values are attention's business.
fn other_product(view: &View, node: NodeId) -> Option<String> {
    let proto = view.node(node);
    let op = proto.op_type.as_deref()?;
    let weight = match (proto.domain.as_deref().unwrap_or(""), op) {
        ("" | "ai.onnx", op::MatMulInteger) => 1,
        ("" | "ai.onnx", op::QLinearMatMul) => 3,
        ("com.microsoft", op::QGemm) => 3,
        (
            "com.microsoft",
            op::MatMulNBits | op::MatMulBnb4 | op::MatMulIntegerToFloat | op::DynamicQuantizeMatMul,
        ) => 1,
        ("com.microsoft", op::QAttention) => 1,
        _ => {
            return contrib::composite(view, node)?.err().or_else(|| {
                Some(format!(
                    "its Linears are inside of com.microsoft.{op}, from which they were not taken out"
                ))
            });
        }
    };
    view.is_constant(view.input(node, weight)?)
        .then(|| format!("it is {op}: already quantized"))
}

/// The DequantizeLinear that a value comes from through operators that only reshape it.
fn dequantized<'m>(view: &View<'m>, mut value: ValueId) -> Option<&'m str> {
    while let (node, 0) = view.producer(value)? {
        match view.op(node) {
            op::DequantizeLinear => return Some(view.node_name(node)),
            op::Identity | op::Cast | op::Transpose | op::Reshape | op::Squeeze | op::Unsqueeze => {
                value = view.input(node, 0)?;
            }
            _ => return None,
        }
    }
    None
}

/// The operator that computes a value from nothing but constants, if it is not one [`View::constant`] evaluates.
fn fixed<'m>(view: &View<'m>, value: ValueId, depth: usize) -> Option<&'m str> {
    let (node, _) = view.producer(value)?;
    let proto = view.node(node);
    // What has inputs left out, subgraphs, or more than a few steps is a computation and no stored weight.
    if depth > 4 || proto.input.is_empty() || crate::onnx::node::subgraphs(proto).next().is_some() {
        return None;
    }
    let mut unknown = None;
    for slot in 0..proto.input.len() {
        let input = view.input(node, slot)?;
        if !view.is_constant(input) {
            unknown = Some(fixed(view, input, depth + 1)?);
        }
    }
    unknown.or(proto.op_type.as_deref())
}

/// The name of the graph input with a default value that a value is made of, if it is.
fn overridable<'m>(view: &View<'m>, value: ValueId) -> Option<&'m str> {
    let mut value = value;
    while let Source::Node { node, .. } = view.source(value) {
        if !crate::graph::constant_expression(view.op(node)) {
            return None;
        }
        value = view.input(node, 0)?;
    }
    let name = view.name(value);
    let has_default = view
        .graph()
        .initializer
        .iter()
        .any(|t| t.name.as_deref() == Some(name));
    (matches!(view.source(value), Source::Input(_)) && has_default).then_some(name)
}

fn match_constant(view: &View, node: NodeId, x: ValueId, w: ValueId) -> Result<Linear, String> {
    let weight_name = view.name(w);
    if view.is_constant(x) {
        return Err("both factors are constants".to_owned());
    }
    let (dims, dtype) = weight_facts(view, w).ok_or_else(|| {
        format!("its weight `{weight_name}` is not a constant this tool can read")
    })?;
    if !tensor::is_float(dtype) {
        return Err(format!(
            "its weight `{weight_name}` is {} and not a float type",
            dtype.as_str_name()
        ));
    }
    let &[rows, columns] = dims.as_slice() else {
        return Err(format!(
            "its weight `{weight_name}` has shape {dims:?} and not rank 2"
        ));
    };
    if rows == 0 || columns == 0 {
        return Err(format!(
            "its weight `{weight_name}` has no elements (shape {dims:?})"
        ));
    }
    let proto = view.node(node);
    let form = if view.op(node) == op::MatMul {
        LinearForm::MatMul
    } else {
        LinearForm::Gemm {
            trans_a: attr_i(proto, "transA").unwrap_or(0) != 0,
            trans_b: attr_i(proto, "transB").unwrap_or(0) != 0,
            alpha: attr_f(proto, "alpha").unwrap_or(1.0),
            beta: attr_f(proto, "beta").unwrap_or(1.0),
        }
    };
    let transposed = matches!(form, LinearForm::Gemm { trans_b: true, .. });
    let (k, n) = if transposed {
        (columns, rows)
    } else {
        (rows, columns)
    };
    let channels = view.shape(x).and_then(|shape| match form {
        LinearForm::Gemm { trans_a: true, .. } => *shape.first()?,
        _ => *shape.last()?,
    });
    if let Some(found) = channels
        && found != k
    {
        return Err(format!(
            "its input has {found} channels where its weight `{weight_name}` takes {k}"
        ));
    }
    let (bias, odd_bias) = match form {
        LinearForm::MatMul => (
            bias_after(view, node, n).or_else(|| contrib::bias_inside(view, node, n)),
            false,
        ),
        LinearForm::Gemm { .. } => match view.input(node, 2) {
            None => (None, false),
            Some(c) => {
                let per_column = view.is_constant(c)
                    && weight_facts(view, c).is_some_and(|(dims, _)| {
                        let last = dims.last().copied().unwrap_or(1);
                        dims.iter().product::<usize>() == last && (last == n || last == 1)
                    });
                let bias = per_column.then_some(Bias {
                    node,
                    slot: 2,
                    value: c,
                    inside: false,
                });
                (bias, !per_column)
            }
        },
    };
    let name = view.node_name(node).to_owned();
    Ok(Linear {
        node,
        name,
        input: x,
        weight: w,
        dtype,
        bias,
        odd_bias,
        form,
        k,
        n,
    })
}

/// The Add of a constant with one element per column that follows a MatMul and is its only reader.
fn bias_after(view: &View, matmul: NodeId, n: usize) -> Option<Bias> {
    let product = view.output(matmul, 0)?;
    let (add, slot) = view.only_reader(product)?;
    if view.op(add) != op::Add {
        return None;
    }
    let other = 1 - slot.min(1);
    let value = view.input(add, other)?;
    if !view.is_constant(value) {
        return None;
    }
    let (dims, _) = weight_facts(view, value)?;
    // [N], [1, N], [1, 1, N], …: the same number for every token.
    let per_column = dims.last() == Some(&n) && dims.iter().product::<usize>() == n;
    per_column.then_some(Bias {
        node: add,
        slot: other,
        value,
        inside: false,
    })
}

/// The value a Linear hands on: after its bias.
impl Linear {
    /// The output y: that of the bias' Add where there is one, else the product's.
    pub fn output(&self, view: &View) -> Option<ValueId> {
        view.output(self.added_bias().map_or(self.node, |b| b.node), 0)
    }

    /// The bias, unless it is added inside of an operator that does more.
    pub fn added_bias(&self) -> Option<Bias> {
        self.bias.filter(|b| !b.inside)
    }

    /// Every reader of the weight, this Linear among them.
    pub fn weight_is_shared(&self, view: &View) -> bool {
        view.uses(self.weight).iter().any(|u| {
            *u != Use::Node {
                node: self.node,
                input: 1,
            }
        })
    }
}
