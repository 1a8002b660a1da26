//! ONNX Runtime's RotaryEmbedding, also inside of GroupQueryAttention.

use super::build::{Build, Outcome};
use super::contrib::{named, split_heads};
use crate::calibrate::engine::error::EngineError;
use crate::onnx::node::{attr_i, int_attr, ints_attr};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

/// How to rotate.
pub(super) struct Rotary<'a> {
    /// [positions, R / 2]
    pub cos: &'a str,
    /// [positions, R / 2]
    pub sin: &'a str,
    /// The position of each token, [B, S] or [1, S].
    pub at: &'a str,
    /// Whether pairs are neighbours, and not R / 2 apart.
    pub interleaved: bool,
}

/// `(a, c) → (a cos − c sin, c cos + a sin)` for the pairs in the first R channels of each head of x: [B, N, S, D].
pub(super) fn rotate(
    b: &mut Build<'_, '_>,
    x: &str,
    rotary: &Rotary<'_>,
) -> Result<String, EngineError> {
    let [batch, heads, rows, size] = b.axes(x)?;
    let half = b.shape(rotary.cos)?.last().copied().unwrap_or(0);
    if half == 0 || 2 * half > size {
        return Err(b.refused(format!("{half} angles do not fit heads of {size}")));
    }
    let [at_rows, _] = b.axes(rotary.at)?;
    let mut table = |table: &str| {
        let rows_of = b.op(op::Gather, &[table, rotary.at], vec![int_attr("axis", 0)]);
        b.reshape(&rows_of, &[at_rows, 1, rows, half])
    };
    let (cos, sin) = (table(rotary.cos), table(rotary.sin));
    let (first, second) = if rotary.interleaved {
        let turned = b.slice(x, 3, 0..2 * half);
        let pairs = b.reshape(&turned, &[batch, heads, rows, half, 2]);
        let mut part = |i: usize| {
            let part = b.slice(&pairs, 4, i..i + 1);
            b.reshape(&part, &[batch, heads, rows, half])
        };
        (part(0), part(1))
    } else {
        (b.slice(x, 3, 0..half), b.slice(x, 3, half..2 * half))
    };
    let mut product = |x: &str, factor: &str| b.op(op::Mul, &[x, factor], vec![]);
    let (fc, ss) = (product(&first, &cos), product(&second, &sin));
    let (sc, fs) = (product(&second, &cos), product(&first, &sin));
    let first = b.op(op::Sub, &[&fc, &ss], vec![]);
    let second = b.op(op::Add, &[&sc, &fs], vec![]);
    let mut turned = if rotary.interleaved {
        let [first, second] =
            [first, second].map(|x| b.reshape(&x, &[batch, heads, rows, half, 1]));
        let pairs = b.op(op::Concat, &[&first, &second], vec![int_attr("axis", 4)]);
        b.reshape(&pairs, &[batch, heads, rows, 2 * half])
    } else {
        b.op(op::Concat, &[&first, &second], vec![int_attr("axis", 3)])
    };
    if 2 * half < size {
        let rest = b.slice(x, 3, 2 * half..size);
        turned = b.op(op::Concat, &[&turned, &rest], vec![int_attr("axis", 3)]);
    }
    Ok(turned)
}

/// com.microsoft.RotaryEmbedding of x: [B, S, N D] or [B, N, S, D].
pub(super) fn rotary_embedding(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    let input = |slot: usize| named(&node.input, slot);
    let (Some(x), Some(at), Some(cos), Some(sin), Some(y)) = (
        input(0),
        input(1),
        input(2),
        input(3),
        named(&node.output, 0),
    ) else {
        return Ok(Outcome::Kept);
    };
    if attr_i(node, "is_packed_batching").unwrap_or(0) != 0 {
        return Err(b.refused("packed batches are not supported"));
    }
    let shape = b.shape(x)?;
    let half = b.shape(cos)?.last().copied().unwrap_or(0);
    let (x4, rows) = match *shape.as_slice() {
        [_, _, rows, _] => (x.to_owned(), rows),
        [_, rows, channels] => {
            let heads = match usize::try_from(attr_i(node, "num_heads").unwrap_or(0)) {
                Ok(heads) if heads > 0 => heads,
                // All of each head is rotated.
                _ => channels.checked_div(2 * half).unwrap_or(0),
            };
            (split_heads(b, x, heads)?, rows)
        }
        _ => return Err(b.refused("its input has neither three nor four axes")),
    };
    let at = if b.shape(at)?.len() == 1 {
        // The position of the first token.
        let next = b.positions(rows);
        b.op(op::Add, &[&next, at], vec![])
    } else {
        at.to_owned()
    };
    let interleaved = attr_i(node, "interleaved").unwrap_or(0) != 0;
    let rotary = Rotary {
        cos,
        sin,
        at: &at,
        interleaved,
    };
    let turned = rotate(b, &x4, &rotary)?;
    if shape.len() == 4 {
        b.op_to(op::Identity, &[&turned], y, vec![]);
    } else {
        let joined = b.op(
            op::Transpose,
            &[&turned],
            vec![ints_attr("perm", &[0, 2, 1, 3])],
        );
        let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let shape = b.ints(&shape);
        b.op_to(op::Reshape, &[&joined, &shape], y, vec![]);
    }
    Ok(Outcome::Replaced)
}
