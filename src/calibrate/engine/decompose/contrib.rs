//! ONNX Runtime's fusions around a norm, an activation or a product, as its optimizer writes them.

use super::build::{Build, Outcome};
use crate::calibrate::engine::error::EngineError;
use crate::onnx::DataType;
use crate::onnx::node::{
    attr_f, attr_floats, attr_i, attr_s, float_attr, int_attr, ints_attr, string_attr,
};
use crate::onnx::op;
use crate::onnx::proto::{AttributeProto, NodeProto};

use Outcome::{Kept, Replaced};

/// The name in a slot of a list of inputs or outputs, if it is not left out.
pub(super) fn named(names: &[String], slot: usize) -> Option<&str> {
    names
        .get(slot)
        .map(String::as_str)
        .filter(|name| !name.is_empty())
}

/// [B, S, N D] → [B, N, S, D]
pub(super) fn split_heads(
    b: &mut Build<'_, '_>,
    x: &str,
    heads: usize,
) -> Result<String, EngineError> {
    let [batch, rows, channels] = b.axes(x)?;
    if heads == 0 || channels % heads != 0 {
        return Err(b.refused(format!("{channels} channels are not {heads} heads")));
    }
    let x = b.reshape(x, &[batch, rows, heads, channels / heads]);
    Ok(b.op(op::Transpose, &[&x], vec![ints_attr("perm", &[0, 2, 1, 3])]))
}

fn ends(node: &NodeProto) -> Option<(&str, &str)> {
    Some((named(&node.input, 0)?, named(&node.output, 0)?))
}

fn epsilon(node: &NodeProto, default: f32) -> AttributeProto {
    float_attr("epsilon", attr_f(node, "epsilon").unwrap_or(default))
}

/// `y = LayerNormalization(x + skip + bias, γ, β)`, and the sum itself as output 3. (Outputs 1 and 2 are for training.)
pub(super) fn skip_layer_norm(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    skip_norm(node, b, op::LayerNormalization, Some(3), 4)
}

/// `y = RMSNormalization(x + skip + bias, γ)`, and the sum itself as output 3.
pub(super) fn skip_rms_norm(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    skip_norm(node, b, op::RMSNormalization, None, 3)
}

fn skip_norm(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
    norm: &str,
    beta: Option<usize>,
    bias: usize,
) -> Result<Outcome, EngineError> {
    let (Some((x, y)), Some(skip), Some(gamma)) =
        (ends(node), named(&node.input, 1), named(&node.input, 2))
    else {
        return Ok(Kept);
    };
    let mut sum = b.op(op::Add, &[x, skip], vec![]);
    if let Some(bias) = named(&node.input, bias) {
        sum = b.op(op::Add, &[&sum, bias], vec![]);
    }
    let mut inputs = vec![sum.as_str(), gamma];
    inputs.extend(beta.and_then(|slot| named(&node.input, slot)));
    let attributes = vec![int_attr("axis", -1), epsilon(node, 1e-12)];
    b.op_to(norm, &inputs, y, attributes);
    if let Some(output) = named(&node.output, 3) {
        b.op_to(op::Identity, &[&sum], output, vec![]);
    }
    Ok(Replaced)
}

/// ONNX Runtime's name of RMSNormalization, in either domain.
pub(super) fn simplified_norm(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    let (Some((x, y)), Some(gamma)) = (ends(node), named(&node.input, 1)) else {
        return Ok(Kept);
    };
    let axis = int_attr("axis", attr_i(node, "axis").unwrap_or(-1));
    let attributes = vec![axis, epsilon(node, 1e-5)];
    b.op_to(op::RMSNormalization, &[x, gamma], y, attributes);
    Ok(Replaced)
}

/// `y = LayerNormalization(words[ids] + positions[at] + types[segments], γ, β)`; output 1 is the number of tokens of
/// each row by the mask, output 2 the sum of the embeddings.
pub(super) fn embed_layer_norm(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    let input = |slot: usize| named(&node.input, slot);
    let (Some((ids, y)), Some(words), Some(positions), Some(gamma), Some(beta)) =
        (ends(node), input(2), input(3), input(5), input(6))
    else {
        return Ok(Kept);
    };
    let [rows, length] = b.axes(ids)?;
    let at = match input(8) {
        Some(at) => at.to_owned(),
        None => b.positions(length),
    };
    let words = b.op(op::Gather, &[words, ids], vec![]);
    let positions = b.op(op::Gather, &[positions, &at], vec![]);
    let mut sum = b.op(op::Add, &[&words, &positions], vec![]);
    if let (Some(segments), Some(types)) = (input(1), input(4)) {
        let types = b.op(op::Gather, &[types, segments], vec![]);
        sum = b.op(op::Add, &[&sum, &types], vec![]);
    }
    let attributes = vec![int_attr("axis", -1), epsilon(node, 1e-12)];
    b.op_to(op::LayerNormalization, &[&sum, gamma, beta], y, attributes);
    if let Some(output) = named(&node.output, 2) {
        b.op_to(op::Identity, &[&sum], output, vec![]);
    }
    if let Some(output) = named(&node.output, 1) {
        let count = match input(7) {
            // As a product with ones, which needs no operator that changed with the operator set.
            Some(mask) => {
                let mask = b.cast(mask, DataType::Float);
                let ones = b.floats(&[length], &vec![1.0; length]);
                b.op(op::MatMul, &[&mask, &ones], vec![])
            }
            None => b.floats(&[rows], &vec![0.0; rows]),
        };
        let to = vec![int_attr("to", DataType::Int32 as i64)];
        b.op_to(op::Cast, &[&count], output, to);
    }
    Ok(Replaced)
}

/// `y = Gelu(x + bias)`
pub(super) fn bias_gelu(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    gelu(node, b, vec![])
}

/// `y = Gelu(x + bias)` with the hyperbolic tangent.
pub(super) fn fast_gelu(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    gelu(node, b, vec![string_attr("approximate", "tanh")])
}

fn gelu(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
    attributes: Vec<AttributeProto>,
) -> Result<Outcome, EngineError> {
    let Some((x, y)) = ends(node) else {
        return Ok(Kept);
    };
    let x = match named(&node.input, 1) {
        Some(bias) => b.op(op::Add, &[x, bias], vec![]),
        None => x.to_owned(),
    };
    b.op_to(op::Gelu, &[&x], y, attributes);
    Ok(Replaced)
}

/// `y = x Sigmoid(alpha x)`
pub(super) fn quick_gelu(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let Some((x, y)) = ends(node) else {
        return Ok(Kept);
    };
    let alpha = b.float(attr_f(node, "alpha").unwrap_or(1.702));
    let scaled = b.op(op::Mul, &[x, &alpha], vec![]);
    let gate = b.op(op::Sigmoid, &[&scaled], vec![]);
    b.op_to(op::Mul, &[x, &gate], y, vec![]);
    Ok(Replaced)
}

/// `y = alpha op(a) op(b)`, where op transposes and, with transBatch, moves the rows behind the batch axes first.
pub(super) fn fused_matmul(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    let (Some((x, y)), Some(w)) = (ends(node), named(&node.input, 1)) else {
        return Ok(Kept);
    };
    let flag = |name: &str| attr_i(node, name).unwrap_or(0) != 0;
    let mut factors = Vec::new();
    for (factor, trans, batch) in [
        (x, flag("transA"), flag("transBatchA")),
        (w, flag("transB"), flag("transBatchB")),
    ] {
        let rank = b.shape(factor)?.len() as i64;
        if rank < 2 || !(trans || batch) {
            factors.push(factor.to_owned());
            continue;
        }
        let mut perm: Vec<i64> = (0..rank).collect();
        if batch {
            perm.remove(0);
            perm.insert(rank as usize - 2, 0);
        }
        if trans {
            perm.swap(rank as usize - 2, rank as usize - 1);
        }
        factors.push(b.op(op::Transpose, &[factor], vec![ints_attr("perm", &perm)]));
    }
    match attr_f(node, "alpha").unwrap_or(1.0) {
        1.0 => b.op_to(op::MatMul, &[&factors[0], &factors[1]], y, vec![]),
        alpha => {
            let product = b.op(op::MatMul, &[&factors[0], &factors[1]], vec![]);
            let alpha = b.float(alpha);
            b.op_to(op::Mul, &[&product, &alpha], y, vec![]);
        }
    }
    Ok(Replaced)
}

/// `y = activation(Conv(x, w, b) + z)`, `b` and `z` where they are given
pub(super) fn fused_conv(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let (Some((x, y)), Some(w)) = (ends(node), named(&node.input, 1)) else {
        return Ok(Kept);
    };
    let of_conv = |a: &&AttributeProto| !a.name().starts_with("activation");
    let attributes = node.attribute.iter().filter(of_conv).cloned().collect();
    let inputs: Vec<&str> = [Some(x), Some(w), named(&node.input, 2)]
        .into_iter()
        .flatten()
        .collect();
    let mut sum = b.op(op::Conv, &inputs, attributes);
    if let Some(z) = named(&node.input, 3) {
        sum = b.op(op::Add, &[&sum, z], vec![]);
    }
    let activation = attr_s(node, "activation").unwrap_or(op::Identity);
    let parameters = attr_floats(node, "activation_params").unwrap_or_default();
    // Clip has its limits as inputs, all others what they need as attributes.
    if activation == op::Clip {
        let limits: Vec<String> = parameters.iter().map(|&limit| b.float(limit)).collect();
        let mut inputs = vec![sum.as_str()];
        inputs.extend(limits.iter().map(String::as_str));
        b.op_to(activation, &inputs, y, vec![]);
    } else {
        let named = ["alpha", "beta"].into_iter().zip(parameters);
        let parameters = named.map(|(name, &value)| float_attr(name, value));
        b.op_to(activation, &[&sum], y, parameters.collect());
    }
    Ok(Replaced)
}

/// `y = activation(Gemm(a, b, c))`
pub(super) fn fused_gemm(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let (Some((_, y)), Some(activation)) = (ends(node), attr_s(node, "activation")) else {
        return Ok(Kept);
    };
    let of_gemm = |a: &&AttributeProto| !a.name().starts_with("activation");
    let attributes = node.attribute.iter().filter(of_gemm).cloned().collect();
    let inputs: Vec<&str> = node.input.iter().map(String::as_str).collect();
    let product = b.op(op::Gemm, &inputs, attributes);
    let parameters = [("activation_alpha", "alpha"), ("activation_beta", "beta")];
    let parameters = parameters
        .into_iter()
        .filter_map(|(stored, name)| Some(float_attr(name, attr_f(node, stored)?)))
        .collect();
    b.op_to(activation, &[&product], y, parameters);
    Ok(Replaced)
}
