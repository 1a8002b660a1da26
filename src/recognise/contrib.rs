//! ONNX Runtime's own operators (domain `com.microsoft`) that hold a part of a Linear, as its optimizer writes them.
//!
//! *A bias in what follows*: BiasGelu(x W, b), FastGelu(x W, b), and the `bias` input of SkipLayerNormalization and
//! SkipSimplifiedLayerNormalization over x W. The sum is inside of the operator, so it is no value that could take
//! the affine of another site, but the bias takes the shift of the Linear's own input.
//!
//! *A Linear inside*: Attention (its Q, K and V projections), FusedMatMul (transB, alpha), FusedGemm (an activation
//! behind a Gemm). ONNX Runtime has no integer form of these that it reaches from QuantizeLinear and
//! DequantizeLinear, so they are described here ([`Composite`]) and taken apart by `rewrite::take_apart`.
//!
//! *Left alone*, with the reason: an Attention with a mask, rotary embedding or shared cache that MultiHeadAttention
//! does not take in the same form; transA; operators that have no CPU kernel.

use crate::graph::{NodeId, ValueId, View};
use crate::onnx::node::{attr_f, attr_i, attr_ints, attr_s};
use crate::onnx::op;
use crate::onnx::{DataType, tensor};

use super::linear::Bias;
use super::weight::weight_facts;

/// The domain of ONNX Runtime's own operators.
pub const MICROSOFT: &str = "com.microsoft";

/// The operator of `node` if it is one of ONNX Runtime's own, else "".
pub fn microsoft_op<'m>(view: &View<'m>, node: NodeId) -> &'m str {
    let proto = view.node(node);
    match proto.domain() {
        MICROSOFT => proto.op_type(),
        _ => "",
    }
}

/// An operator with Linears inside.
#[derive(Clone, Debug, PartialEq)]
pub enum Composite {
    /// com.microsoft.Attention: x W + b is [Q | K | V].
    Attention {
        /// W: [C, Nq + Nk + Nv].
        weight: ValueId,
        /// b: [Nq + Nk + Nv], if there is one.
        bias: Option<ValueId>,
        /// Nq, Nk, Nv.
        sizes: [usize; 3],
    },
    /// com.microsoft.FusedMatMul: alpha · x · Wᵀ or alpha · x · W.
    MatMul {
        /// W.
        weight: ValueId,
        /// W is stored as [N, K].
        trans_b: bool,
        /// The factor of the product.
        alpha: f32,
    },
    /// com.microsoft.FusedGemm: an activation of a Gemm.
    Gemm {
        /// The standard operator that the activation is.
        activation: &'static str,
        /// The names of its attributes, in the order of `activation_alpha`, `activation_beta`.
        parameters: &'static [&'static str],
    },
}

/// The Linears inside of `node`: `None` if it has none, `Err(reason)` if they cannot be taken out.
pub fn composite(view: &View, node: NodeId) -> Option<Result<Composite, String>> {
    let op = microsoft_op(view, node);
    match op {
        op::Attention
        | op::FusedMatMul
        | op::FusedGemm
        | op::GemmFastGelu
        | op::PackedAttention => {}
        _ => return None,
    }
    let weight = view.input(node, 1)?;
    if !view.is_constant(weight) {
        return None;
    }
    Some(match op {
        op::Attention => attention(view, node, weight),
        op::FusedMatMul => fused_matmul(view, node, weight),
        op::FusedGemm => fused_gemm(view, node),
        _ => Err(format!(
            "com.microsoft.{op} has no kernel on CPUs and is left as it is; give the model as it was before ONNX \
             Runtime optimized it for another device"
        )),
    })
}

/// The constant bias that an operator after the product of `matmul` adds, [N].
pub(super) fn bias_inside(view: &View, matmul: NodeId, n: usize) -> Option<Bias> {
    let product = view.output(matmul, 0)?;
    let (node, input) = view.only_reader(product)?;
    let slot = match (microsoft_op(view, node), input) {
        (op::BiasGelu | op::FastGelu, 0) => 1,
        (op::SkipLayerNormalization, 0 | 1) => 4,
        (op::SkipSimplifiedLayerNormalization, 0 | 1) => 3,
        _ => return None,
    };
    // Where both terms of the sum are products, the bias is the first one's.
    if input == 1 && is_product(view, view.input(node, 0)?) {
        return None;
    }
    let value = view.input(node, slot)?;
    let (dims, _) = view
        .is_constant(value)
        .then(|| weight_facts(view, value))??;
    (dims == [n]).then_some(Bias {
        node,
        slot,
        value,
        inside: true,
    })
}

fn is_product(view: &View, value: ValueId) -> bool {
    view.producer_is(value, op::MatMul)
        .and_then(|node| view.input(node, 1))
        .is_some_and(|weight| view.is_constant(weight))
}

/// Shape of a constant of rank 2 in float32 or float16, as the kernels take it.
fn matrix(view: &View, weight: ValueId) -> Result<[usize; 2], String> {
    let name = view.name(weight);
    let (dims, dtype) = weight_facts(view, weight)
        .ok_or_else(|| format!("its weight `{name}` is not a constant this tool can read"))?;
    if !tensor::is_float(dtype) || dtype == DataType::Double {
        return Err(format!(
            "its weight `{name}` is {} and not float32 or float16",
            dtype.as_str_name()
        ));
    }
    <[usize; 2]>::try_from(dims.as_slice())
        .ok()
        .filter(|d| d.iter().all(|&n| n > 0))
        .ok_or_else(|| format!("its weight `{name}` has shape {dims:?} and not rank 2"))
}

fn attention(view: &View, node: NodeId, weight: ValueId) -> Result<Composite, String> {
    let proto = view.node(node);
    let [_, columns] = matrix(view, weight)?;
    let sizes = match attr_ints(proto, "qkv_hidden_sizes") {
        Some(sizes) => sizes.iter().map(|&n| usize::try_from(n).ok()).collect(),
        None => (columns % 3 == 0).then_some(vec![columns / 3; 3]),
    };
    let sizes = sizes
        .and_then(|s: Vec<usize>| <[usize; 3]>::try_from(s).ok())
        .filter(|s| s.iter().sum::<usize>() == columns && s.iter().all(|&n| n > 0))
        .ok_or_else(|| {
            format!(
                "the {columns} columns of its weight `{}` are no query, key and value",
                view.name(weight)
            )
        })?;
    let bias = view.input(node, 2);
    if let Some(bias) = bias {
        let dims = view.is_constant(bias).then(|| weight_facts(view, bias));
        if dims.flatten().is_none_or(|(dims, _)| dims != [columns]) {
            return Err(format!(
                "its bias `{}` is no constant of {columns} elements",
                view.name(bias)
            ));
        }
    }
    for (attribute, what) in [
        ("do_rotary", "it rotates query and key itself"),
        (
            "past_present_share_buffer",
            "its past and present share one buffer",
        ),
    ] {
        if attr_i(proto, attribute).unwrap_or(0) != 0 {
            return Err(format!(
                "{what} ({attribute}), which MultiHeadAttention does not do, so its projections are not taken out"
            ));
        }
    }
    if view.input(node, 6).is_some() {
        return Err(
            "it reads past_sequence_length, which MultiHeadAttention does not, so its projections are not taken out"
                .to_owned(),
        );
    }
    if let Some(mask) = view.input(node, 3) {
        mask_carries_over(view, mask)?;
    }
    Ok(Composite::Attention {
        weight,
        bias,
        sizes,
    })
}

/// MultiHeadAttention takes [B], [B, T] and [B, S, T] with the meaning that Attention gives them, but not [2 B],
/// [B, 1], [1, 1] or [B, 1, M, M].
fn mask_carries_over(view: &View, mask: ValueId) -> Result<(), String> {
    let name = view.name(mask);
    match mask_shape(view, mask).as_deref() {
        Some([_, last]) if *last != Some(1) => Ok(()),
        Some([_, _, last]) if *last != Some(1) => Ok(()),
        Some([_]) if one_number_per_row(view, mask) => Ok(()),
        None if one_number_per_row(view, mask) => Ok(()),
        None => Err(format!(
            "the shape of its mask `{name}` is not known, so its projections are not taken out; \
             run shape inference on the model"
        )),
        Some(shape) => {
            let dims: Vec<String> = shape
                .iter()
                .map(|d| d.map_or("?".to_owned(), |d| d.to_string()))
                .collect();
            Err(format!(
                "its mask `{name}` has shape [{}], which MultiHeadAttention does not take, so its projections are \
                 not taken out",
                dims.join(", ")
            ))
        }
    }
}

/// The shape of a mask, from the file or from what it was cast from.
fn mask_shape(view: &View, mut value: ValueId) -> Option<Vec<Option<usize>>> {
    loop {
        if let Some(shape) = view.shape(value) {
            return Some(shape);
        }
        let (node, 0) = view.producer(value)? else {
            return None;
        };
        if !matches!(view.op(node), op::Cast | op::Identity) {
            return None;
        }
        value = view.input(node, 0)?;
    }
}

/// Whether a mask is the number of tokens of each row, [B]: EmbedLayerNormalization's, or the sum of a [B, T].
fn one_number_per_row(view: &View, mut value: ValueId) -> bool {
    while let Some((node, output)) = view.producer(value) {
        match (view.op(node), microsoft_op(view, node), output) {
            (_, op::EmbedLayerNormalization, 1) => return true,
            (op::Cast | op::Identity, _, 0) => match view.input(node, 0) {
                Some(input) => value = input,
                None => return false,
            },
            (op::ReduceSum, _, 0) => {
                let drops_axis = attr_i(view.node(node), "keepdims") == Some(0);
                let rank = view
                    .input(node, 0)
                    .and_then(|v| mask_shape(view, v))
                    .map(|s| s.len());
                return drops_axis && rank == Some(2);
            }
            _ => return false,
        }
    }
    false
}

fn fused_matmul(view: &View, node: NodeId, weight: ValueId) -> Result<Composite, String> {
    let proto = view.node(node);
    matrix(view, weight)?;
    for name in ["transA", "transBatchA", "transBatchB"] {
        if attr_i(proto, name).unwrap_or(0) != 0 {
            return Err(format!(
                "it is a FusedMatMul with {name}: its channels are not on the last axis"
            ));
        }
    }
    Ok(Composite::MatMul {
        weight,
        trans_b: attr_i(proto, "transB").unwrap_or(0) != 0,
        alpha: attr_f(proto, "alpha").unwrap_or(1.0),
    })
}

fn fused_gemm(view: &View, node: NodeId) -> Result<Composite, String> {
    let name = attr_s(view.node(node), "activation").unwrap_or("");
    let (activation, parameters): (_, &[&str]) = match name {
        op::Relu => (op::Relu, &[]),
        op::Sigmoid => (op::Sigmoid, &[]),
        op::Tanh => (op::Tanh, &[]),
        op::Softplus => (op::Softplus, &[]),
        op::Softsign => (op::Softsign, &[]),
        op::LeakyRelu => (op::LeakyRelu, &["alpha"]),
        op::Elu => (op::Elu, &["alpha"]),
        op::ThresholdedRelu => (op::ThresholdedRelu, &["alpha"]),
        op::HardSigmoid => (op::HardSigmoid, &["alpha", "beta"]),
        _ => {
            return Err(format!(
                "it is a FusedGemm with the activation `{name}`, which this tool does not know"
            ));
        }
    };
    Ok(Composite::Gemm {
        activation,
        parameters,
    })
}
