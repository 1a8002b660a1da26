//! The standard Attention (opset 23 to 25), written out:
//!
//! ```text
//! S = scale · Q Kᵀ      (mode 0)      S₁ = softcap · tanh(S / softcap)      (mode 1)
//! S₂ = S₁ + mask        (mode 2)      P = Softmax(S₂)                       (mode 3)      Y = P V
//! ```
//!
//! Q: [B, Hq, Sq, D], K and V: [B, Hkv, Sk, D], as 3-D inputs [B, S, H·D]; Hq is a multiple of Hkv, and neighbouring query
//! heads share a head of K and V. Past keys and values stand before the new ones. The order of softcap and mask, and
//! the mode numbers, are those of ONNX Runtime. The engine has the operator, but without softcap, modes, boolean masks, masks shorter than the keys,
//! and causal masks behind past keys.

use super::build::{Build, Outcome};
use crate::calibrate::engine::error::EngineError;
use crate::onnx::DataType;
use crate::onnx::node::{attr_f, attr_i, int_attr, ints_attr};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

/// What is added to the score of a key that a query must not see: it weighs nothing, and a query that sees none is finite.
const MASKED: f32 = -1e30;

/// See the module.
pub(super) fn attention(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let slot = |at: usize| node.input.get(at).filter(|name| !name.is_empty());
    let shape = |at: usize| slot(at).and_then(|name| b.scope.shape(name));
    let (Some(q), Some(k), Some(v)) = (slot(0), slot(1), slot(2)) else {
        return Ok(Outcome::Kept);
    };
    let (Some(q_shape), Some(k_shape)) = (shape(0), shape(1)) else {
        return boolean_mask(node, b);
    };
    let past_length = match (slot(4), shape(4)) {
        (None, _) => 0,
        (Some(_), Some(past)) if past.len() == 4 => past[2],
        _ => return boolean_mask(node, b),
    };
    let heads = |name: &str| attr_i(node, name).and_then(|n| usize::try_from(n).ok());
    let (q_heads, kv_heads, q_length, depth, new_keys) =
        match (q_shape.as_slice(), k_shape.as_slice()) {
            (&[_, q_heads, q_length, depth], &[_, kv_heads, keys, _]) => {
                (q_heads, kv_heads, q_length, depth, keys)
            }
            (&[_, q_length, width], &[_, keys, _]) => {
                let (Some(q_heads), Some(kv_heads)) = (heads("q_num_heads"), heads("kv_num_heads"))
                else {
                    return Err(b.refused("q_num_heads and kv_num_heads are needed for 3-D inputs"));
                };
                (q_heads, kv_heads, q_length, width / q_heads.max(1), keys)
            }
            _ => return Err(b.refused(format!("Q has shape {q_shape:?} and K {k_shape:?}"))),
        };
    if kv_heads == 0 || q_heads % kv_heads != 0 {
        let reason = format!("{q_heads} query heads cannot share {kv_heads} key heads");
        return Err(b.refused(reason));
    }
    let flat = q_shape.len() == 3;
    let mut per_head = |x: &str, heads: usize| -> String {
        if !flat {
            return x.to_owned();
        }
        let split = b.ints(&[0, 0, heads as i64, -1]);
        let split = b.op(op::Reshape, &[x, &split], vec![]);
        b.op(
            op::Transpose,
            &[&split],
            vec![ints_attr("perm", &[0, 2, 1, 3])],
        )
    };
    let q = per_head(q, q_heads);
    let k = per_head(k, kv_heads);
    let v = per_head(v, kv_heads);
    let with_past = |b: &mut Build<'_, '_>, past: Option<&String>, new: String| match past {
        Some(past) => b.op(op::Concat, &[past, &new], vec![int_attr("axis", 2)]),
        None => new,
    };
    let k = with_past(b, slot(4), k);
    let v = with_past(b, slot(5), v);
    let output = |at: usize| node.output.get(at).filter(|name| !name.is_empty());
    for (value, name) in [(&k, output(1)), (&v, output(2))] {
        if let Some(name) = name {
            b.op_to(op::Identity, &[value], name, vec![]);
        }
    }
    let shared = |b: &mut Build<'_, '_>, x: String| {
        if q_heads == kv_heads {
            return x;
        }
        let group = q_heads / kv_heads;
        let of_query: Vec<i64> = (0..q_heads).map(|head| (head / group) as i64).collect();
        let of_query = b.ints(&of_query);
        b.op(op::Gather, &[&x, &of_query], vec![int_attr("axis", 1)])
    };
    let k = shared(b, k);
    let v = shared(b, v);

    let scale = attr_f(node, "scale").unwrap_or_else(|| (depth as f32).sqrt().recip());
    let scale = b.float(scale);
    let q = b.op(op::Mul, &[&q, &scale], vec![]);
    let k = b.op(op::Transpose, &[&k], vec![ints_attr("perm", &[0, 1, 3, 2])]);
    let product = b.op(op::MatMul, &[&q, &k], vec![]);
    let mut stages = vec![product.clone()];
    let mut scores = product;
    let softcap = attr_f(node, "softcap").unwrap_or(0.0);
    if softcap > 0.0 {
        let cap = b.float(softcap);
        let ratio = b.op(op::Div, &[&scores, &cap], vec![]);
        let ratio = b.op(op::Tanh, &[&ratio], vec![]);
        scores = b.op(op::Mul, &[&ratio, &cap], vec![]);
    }
    stages.push(scores.clone());
    let keys = past_length + new_keys;
    for bias in biases(node, b, q_length, past_length, keys)? {
        scores = b.op(op::Add, &[&scores, &bias], vec![]);
    }
    stages.push(scores.clone());
    let weights = b.op(op::Softmax, &[&scores], vec![int_attr("axis", -1)]);
    stages.push(weights.clone());
    if let Some(name) = output(3) {
        let mode = usize::try_from(attr_i(node, "qk_matmul_output_mode").unwrap_or(0));
        let stage = mode.ok().and_then(|mode| stages.get(mode));
        let stage = stage.ok_or_else(|| b.refused("qk_matmul_output_mode is not 0, 1, 2 or 3"))?;
        b.op_to(op::Identity, &[stage], name, vec![]);
    }
    let Some(y) = output(0) else {
        return Ok(Outcome::Replaced);
    };
    if !flat {
        b.op_to(op::MatMul, &[&weights, &v], y, vec![]);
        return Ok(Outcome::Replaced);
    }
    let mixed = b.op(op::MatMul, &[&weights, &v], vec![]);
    let rows = b.op(
        op::Transpose,
        &[&mixed],
        vec![ints_attr("perm", &[0, 2, 1, 3])],
    );
    let merged = b.ints(&[0, 0, -1]);
    b.op_to(op::Reshape, &[&rows, &merged], y, vec![]);
    Ok(Outcome::Replaced)
}

/// What is added to the scores: the mask, the causal mask, the mask of keys beyond `nonpad_kv_seqlen`.
fn biases(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
    q_length: usize,
    past_length: usize,
    keys: usize,
) -> Result<Vec<String>, EngineError> {
    let slot = |at: usize| node.input.get(at).filter(|name| !name.is_empty());
    let mut all = Vec::new();
    if let Some(mask) = slot(3) {
        let boolean = b.scope.dtype(mask) == Some(DataType::Bool);
        let known = b.scope.shape(mask);
        let mut bias = if boolean {
            additive(b, mask)
        } else {
            mask.clone()
        };
        if let Some(shape) = known
            && let Some(&length) = shape.last()
            && length < keys
            && length != 1
        {
            // Keys beyond the mask are masked.
            let mut rest = shape.clone();
            rest[shape.len() - 1] = keys - length;
            let count = rest.iter().product();
            let rest = b.floats(&rest, &vec![MASKED; count]);
            bias = b.op(op::Concat, &[&bias, &rest], vec![int_attr("axis", -1)]);
        }
        all.push(bias);
    }
    let columns: Vec<i64> = (0..keys as i64).collect();
    let [left, right] = window(node);
    let causal = (attr_i(node, "is_causal").unwrap_or(0) != 0).then_some(0);
    let limits = [
        (op::LessOrEqual, causal),
        (op::GreaterOrEqual, left.map(|left| -left)),
        (op::LessOrEqual, right),
    ];
    for (operator, shift) in limits {
        let Some(shift) = shift else { continue };
        let own = past_length as i64..(past_length + q_length) as i64;
        let rows: Vec<i64> = own.map(|row| row.saturating_add(shift)).collect();
        let (rows, columns) = (b.ints(&rows), b.ints(&columns));
        let axis = b.ints(&[1]);
        let rows = b.op(op::Unsqueeze, &[&rows, &axis], vec![]);
        let seen = b.op(operator, &[&columns, &rows], vec![]);
        all.push(additive(b, &seen));
    }
    if let Some(lengths) = slot(6) {
        if left.or(right).is_some() {
            return Err(b.refused("a window beside nonpad_kv_seqlen is not known"));
        }
        let axes = b.ints(&[1, 2, 3]);
        let lengths = b.op(op::Unsqueeze, &[lengths, &axes], vec![]);
        let columns = b.ints(&columns);
        let seen = b.op(op::Less, &[&columns, &lengths], vec![]);
        all.push(additive(b, &seen));
    }
    Ok(all)
}

/// How far before and behind its own position a query sees (opset 25): `None` is as far as there are keys.
fn window(node: &NodeProto) -> [Option<i64>; 2] {
    ["left_window_size", "right_window_size"].map(|name| attr_i(node, name).filter(|&n| n >= 0))
}

/// What a key adds to its score: nothing where `seen` is true.
fn additive(b: &mut Build<'_, '_>, seen: &str) -> String {
    let (kept, masked) = (b.float(0.0), b.float(MASKED));
    b.op(op::Where, &[seen, &kept, &masked], vec![])
}

/// Where shapes are not known, the engine's own operator may do; it wants a float mask.
fn boolean_mask(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    if window(node).iter().any(Option::is_some) {
        return Err(b.refused("the shapes of Q and K must be known where there is a window"));
    }
    let mask = match node.input.get(3) {
        Some(mask) if b.scope.dtype(mask) == Some(DataType::Bool) => mask,
        _ => return Ok(Outcome::Kept),
    };
    let mut attention = node.clone();
    attention.input[3] = additive(b, mask);
    b.push(attention);
    Ok(Outcome::Replaced)
}
