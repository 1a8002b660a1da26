//! ONNX Runtime's attention operators: Attention, MultiHeadAttention and GroupQueryAttention.
//!
//! ```text
//! y = softmax(cap(scale Q Kᵀ) + masks) V        Q: [B, N, S, D], K: [B, N, T, D], V: [B, N, T, E]
//! ```
//!
//! Source: ContribOperators.md of ONNX Runtime, and what its CPU kernels compute where that is silent.

use super::build::{Build, Outcome};
use super::contrib::{named, split_heads};
use super::contrib_rotary::{Rotary, rotate};
use crate::calibrate::engine::error::EngineError;
use crate::onnx::DataType;
use crate::onnx::node::{attr_f, attr_i, attr_ints, int_attr, ints_attr};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

use Outcome::{Kept, Replaced};

/// What is masked out weighs nothing.
const MASKED: f32 = -1e30;

/// One attention over heads that are already apart.
struct Heads {
    /// [B, N, S, D]
    q: String,
    /// [B, N, T, D]
    k: String,
    /// [B, N, T, E]
    v: String,
    scale: Option<f32>,
    softcap: f32,
    /// Terms of the scores, each broadcast to [B, N, S, T].
    terms: Vec<String>,
    /// A further score of each head that takes weight and gives no value, [1, N, 1, 1].
    sink: Option<String>,
}

impl Heads {
    /// Appends the nodes that compute `y`: [B, S, N E].
    fn write(self, b: &mut Build<'_, '_>, y: &str) -> Result<(), EngineError> {
        let [batch, heads, rows, size] = b.axes(&self.q)?;
        let [_, _, columns, _] = b.axes(&self.k)?;
        let [_, _, _, value_size] = b.axes(&self.v)?;
        let scale = match self.scale {
            Some(scale) if scale != 0.0 => scale,
            _ => 1.0 / (size as f32).sqrt(),
        };
        let transposed = vec![ints_attr("perm", &[0, 1, 3, 2])];
        let k = b.op(op::Transpose, &[&self.k], transposed);
        let scores = b.op(op::MatMul, &[&self.q, &k], vec![]);
        let scale = b.float(scale);
        let mut scores = b.op(op::Mul, &[&scores, &scale], vec![]);
        if self.softcap > 0.0 {
            let cap = b.float(self.softcap);
            let part = b.op(op::Div, &[&scores, &cap], vec![]);
            let part = b.op(op::Tanh, &[&part], vec![]);
            scores = b.op(op::Mul, &[&part, &cap], vec![]);
        }
        for term in &self.terms {
            scores = b.op(op::Add, &[&scores, term], vec![]);
        }
        if let Some(sink) = &self.sink {
            let shape = b.ints(&[batch, heads, rows, 1].map(|n| n as i64));
            let sink = b.op(op::Expand, &[sink, &shape], vec![]);
            scores = b.op(op::Concat, &[&scores, &sink], vec![int_attr("axis", 3)]);
        }
        let mut p = b.op(op::Softmax, &[&scores], vec![int_attr("axis", 3)]);
        if self.sink.is_some() {
            p = b.slice(&p, 3, 0..columns);
        }
        let y4 = b.op(op::MatMul, &[&p, &self.v], vec![]);
        let y4 = b.op(
            op::Transpose,
            &[&y4],
            vec![ints_attr("perm", &[0, 2, 1, 3])],
        );
        let shape = [batch, rows, heads * value_size].map(|n| n as i64);
        let shape = b.ints(&shape);
        b.op_to(op::Reshape, &[&y4, &shape], y, vec![]);
        Ok(())
    }
}

/// Where(condition, 0, otherwise)
fn term(b: &mut Build<'_, '_>, condition: &str, otherwise: f32) -> String {
    let (kept, masked) = (b.float(0.0), b.float(otherwise));
    b.op(op::Where, &[condition, &kept, &masked], vec![])
}

fn count(b: &mut Build<'_, '_>, shape: &[usize], first: usize) -> String {
    let n: usize = shape.iter().product();
    let numbers: Vec<f32> = (first..first + n).map(|i| i as f32).collect();
    b.floats(shape, &numbers)
}

/// Token s sees the tokens up to itself, `past` of which stand before the first one.
fn causal(b: &mut Build<'_, '_>, rows: usize, columns: usize) -> String {
    let past = columns.saturating_sub(rows);
    let (at, last) = (count(b, &[1, columns], 0), count(b, &[rows, 1], past + 1));
    let seen = b.op(op::Less, &[&at, &last], vec![]);
    term(b, &seen, MASKED)
}

/// The term of a mask of any of its forms: [B] or [2 B] (ends, then starts), [B, T], [B, S, T]. [B, 1] and [1, 1] stand
/// for none.
fn mask_term(
    b: &mut Build<'_, '_>,
    node: &NodeProto,
    mask: &str,
    batch: usize,
    columns: usize,
) -> Result<Option<String>, EngineError> {
    let shape = b.shape(mask)?;
    let filter = attr_f(node, "mask_filter_value").unwrap_or(-10000.0);
    let mask = b.cast(mask, DataType::Float);
    let kept = match *shape.as_slice() {
        [n] if n == batch || n == 2 * batch => {
            let at = count(b, &[1, 1, 1, columns], 0);
            let ends = b.slice(&mask, 0, 0..batch);
            let ends = b.reshape(&ends, &[batch, 1, 1, 1]);
            let before = b.op(op::Less, &[&at, &ends], vec![]);
            if n == batch {
                before
            } else {
                let starts = b.slice(&mask, 0, batch..n);
                let starts = b.reshape(&starts, &[batch, 1, 1, 1]);
                let outside = b.op(op::Less, &[&at, &starts], vec![]);
                let inside = b.op(op::Not, &[&outside], vec![]);
                b.op(op::And, &[&before, &inside], vec![])
            }
        }
        [_, 1] if columns != 1 => return Ok(None),
        [rows, n] => {
            let mask = b.reshape(&mask, &[rows, 1, 1, n]);
            let zero = b.float(0.0);
            b.op(op::Greater, &[&mask, &zero], vec![])
        }
        [rows, s, n] => {
            let mask = b.reshape(&mask, &[rows, 1, s, n]);
            let zero = b.float(0.0);
            b.op(op::Greater, &[&mask, &zero], vec![])
        }
        _ => return Err(b.refused(format!("a mask of shape {shape:?} is not supported"))),
    };
    Ok(Some(term(b, &kept, filter)))
}

/// The keys or values of former tokens, then those of these.
fn append(b: &mut Build<'_, '_>, past: Option<&str>, new: String) -> String {
    match past {
        Some(past) => b.op(op::Concat, &[past, &new], vec![int_attr("axis", 2)]),
        None => new,
    }
}

/// Terms that Attention and MultiHeadAttention have in common.
fn terms(
    b: &mut Build<'_, '_>,
    node: &NodeProto,
    [q, k]: [&str; 2],
    mask: Option<&str>,
    bias: Option<&str>,
) -> Result<Vec<String>, EngineError> {
    let [batch, _, rows, _] = b.axes(q)?;
    let [_, _, columns, _] = b.axes(k)?;
    let mut terms = Vec::new();
    if let Some(mask) = mask {
        terms.extend(mask_term(b, node, mask, batch, columns)?);
    }
    if attr_i(node, "unidirectional").unwrap_or(0) != 0 {
        terms.push(causal(b, rows, columns));
    }
    terms.extend(bias.map(str::to_owned));
    Ok(terms)
}

fn heads_of(node: &NodeProto, name: &str) -> usize {
    usize::try_from(attr_i(node, name).unwrap_or(0)).unwrap_or(0)
}

/// com.microsoft.Attention: x W + b is [Q | K | V].
pub(super) fn attention(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let input = |slot: usize| named(&node.input, slot);
    let (Some(x), Some(w), Some(y)) = (input(0), input(1), named(&node.output, 0)) else {
        return Ok(Kept);
    };
    if attr_i(node, "do_rotary").unwrap_or(0) != 0 || input(6).is_some() {
        return Err(b.refused("rotary embedding and shared caches in it are not supported"));
    }
    let heads = heads_of(node, "num_heads");
    let mut qkv = b.op(op::MatMul, &[x, w], vec![]);
    if let Some(bias) = input(2) {
        qkv = b.op(op::Add, &[&qkv, bias], vec![]);
    }
    let [_, _, channels] = b.axes(&qkv)?;
    let sizes = match attr_ints(node, "qkv_hidden_sizes") {
        Some(&[q, k, v]) => [q, k, v].map(|n| usize::try_from(n).unwrap_or(0)),
        _ => [channels / 3; 3],
    };
    let mut start = 0;
    let mut parts = Vec::new();
    for size in sizes {
        if start + size > channels {
            return Err(b.refused("its sizes of query, key and value exceed its weight"));
        }
        let part = b.slice(&qkv, 2, start..start + size);
        parts.push(split_heads(b, &part, heads)?);
        start += size;
    }
    let (Some(v), Some(k), Some(q)) = (parts.pop(), parts.pop(), parts.pop()) else {
        return Ok(Kept);
    };
    let past = |b: &mut Build<'_, '_>, at: i64| {
        let past = input(4)?;
        let at = b.int(at);
        Some(b.op(op::Gather, &[past, &at], vec![int_attr("axis", 0)]))
    };
    let (past_k, past_v) = (past(b, 0), past(b, 1));
    let k = append(b, past_k.as_deref(), k);
    let v = append(b, past_v.as_deref(), v);
    if let Some(present) = named(&node.output, 1) {
        let shape: Vec<usize> = [&[1], b.shape(&k)?.as_slice()].concat();
        let (k, v) = (b.reshape(&k, &shape), b.reshape(&v, &shape));
        b.op_to(op::Concat, &[&k, &v], present, vec![int_attr("axis", 0)]);
    }
    let terms = terms(b, node, [&q, &k], input(3), input(5))?;
    let (scale, softcap, sink) = (attr_f(node, "scale"), 0.0, None);
    let all = Heads {
        q,
        k,
        v,
        scale,
        softcap,
        terms,
        sink,
    };
    all.write(b, y)?;
    Ok(Replaced)
}

/// com.microsoft.MultiHeadAttention; key and value may be [B, N, T, D] already. Packed ones have no CPU kernel.
pub(super) fn multi_head(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let input = |slot: usize| named(&node.input, slot);
    let (Some(q), Some(y)) = (input(0), named(&node.output, 0)) else {
        return Ok(Kept);
    };
    let (Some(k), Some(v)) = (input(1), input(2)) else {
        return Err(b.refused("packed query, key and value are not supported"));
    };
    let heads = heads_of(node, "num_heads");
    let mut start = 0;
    let mut parts = Vec::new();
    for x in [q, k, v] {
        let shape = b.shape(x)?;
        if shape.len() == 4 {
            parts.push(x.to_owned());
            continue;
        }
        let size = shape.last().copied().unwrap_or(0);
        let x = match input(3) {
            Some(bias) => {
                let bias = b.slice(bias, 0, start..start + size);
                b.op(op::Add, &[x, &bias], vec![])
            }
            None => x.to_owned(),
        };
        start += size;
        parts.push(split_heads(b, &x, heads)?);
    }
    let (Some(v), Some(k), Some(q)) = (parts.pop(), parts.pop(), parts.pop()) else {
        return Ok(Kept);
    };
    let k = append(b, input(6), k);
    let v = append(b, input(7), v);
    for (slot, value) in [(1, &k), (2, &v)] {
        if let Some(present) = named(&node.output, slot) {
            b.op_to(op::Identity, &[value], present, vec![]);
        }
    }
    if named(&node.output, 3).is_some() {
        return Err(b.refused("its output of scores is not supported"));
    }
    let terms = terms(b, node, [&q, &k], input(4), input(5))?;
    let (scale, softcap, sink) = (attr_f(node, "scale"), 0.0, None);
    let all = Heads {
        q,
        k,
        v,
        scale,
        softcap,
        terms,
        sink,
    };
    all.write(b, y)?;
    Ok(Replaced)
}

/// com.microsoft.GroupQueryAttention: fewer heads of keys and values than of queries, always causal.
pub(super) fn group_query(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let input = |slot: usize| named(&node.input, slot);
    let (Some(x), Some(lengths), Some(y)) = (input(0), input(5), named(&node.output, 0)) else {
        return Ok(Kept);
    };
    let (heads, kv_heads) = (heads_of(node, "num_heads"), heads_of(node, "kv_num_heads"));
    let [batch, rows, _] = b.axes(x)?;
    if kv_heads == 0 || heads % kv_heads != 0 {
        return Err(b.refused(format!("{heads} heads do not share {kv_heads}")));
    }
    if named(&node.output, 3).is_some() {
        return Err(b.refused("its output of scores is not supported"));
    }
    let (mut q, mut k, v) = match (input(1), input(2)) {
        (Some(k), Some(v)) => (
            split_heads(b, x, heads)?,
            split_heads(b, k, kv_heads)?,
            split_heads(b, v, kv_heads)?,
        ),
        _ => {
            let all = split_heads(b, x, heads + 2 * kv_heads)?;
            let ends = [heads, heads + kv_heads, heads + 2 * kv_heads];
            (
                b.slice(&all, 1, 0..ends[0]),
                b.slice(&all, 1, ends[0]..ends[1]),
                b.slice(&all, 1, ends[1]..ends[2]),
            )
        }
    };
    let past = match input(3) {
        Some(past) => {
            let [_, _, length, _] = b.axes(past)?;
            length
        }
        None => 0,
    };
    // Tokens of each row before these: [B, 1].
    let before = if past == 0 {
        None
    } else {
        let lengths = b.cast(lengths, DataType::Float);
        let lengths = b.reshape(&lengths, &[batch, 1]);
        let rest = b.float(rows as f32 - 1.0);
        Some(b.op(op::Sub, &[&lengths, &rest], vec![]))
    };
    if attr_i(node, "do_rotary").unwrap_or(0) != 0 {
        let (Some(cos), Some(sin)) = (input(7), input(8)) else {
            return Err(b.refused("it rotates without a table of cosines and sines"));
        };
        let at = match (input(9), &before) {
            (Some(at), _) => at.to_owned(),
            (None, None) => b.positions(rows),
            (None, Some(before)) => {
                let at = count(b, &[1, rows], 0);
                let at = b.op(op::Add, &[before, &at], vec![]);
                b.cast(&at, DataType::Int64)
            }
        };
        let rotary = Rotary {
            cos,
            sin,
            at: &at,
            interleaved: attr_i(node, "rotary_interleaved").unwrap_or(0) != 0,
        };
        q = rotate(b, &q, &rotary)?;
        k = rotate(b, &k, &rotary)?;
    }
    let columns = past + rows;
    let k = cached(b, input(3), k, before.as_deref(), past)?;
    let v = cached(b, input(4), v, before.as_deref(), past)?;
    for (slot, value) in [(1, &k), (2, &v)] {
        if let Some(present) = named(&node.output, slot) {
            b.op_to(op::Identity, &[value], present, vec![]);
        }
    }
    // Column t is seen from row s if t ≤ before + s, and in a window if t > before + s − window.
    let at = count(b, &[1, 1, 1, columns], 0);
    let own = count(b, &[1, 1, rows, 1], 0);
    let own = match &before {
        Some(before) => {
            let before = b.reshape(before, &[batch, 1, 1, 1]);
            b.op(op::Add, &[&own, &before], vec![])
        }
        None => own,
    };
    let later = b.op(op::Greater, &[&at, &own], vec![]);
    let mut seen = b.op(op::Not, &[&later], vec![]);
    let window = attr_i(node, "local_window_size").unwrap_or(-1);
    if window > 0 {
        let window = b.float(window as f32);
        let first = b.op(op::Sub, &[&own, &window], vec![]);
        let inside = b.op(op::Greater, &[&at, &first], vec![]);
        seen = b.op(op::And, &[&seen, &inside], vec![]);
    }
    let mut terms = vec![term(b, &seen, MASKED)];
    terms.extend(input(10).map(str::to_owned));
    let sink = match input(11) {
        Some(sink) => Some(b.reshape(sink, &[1, heads, 1, 1])),
        None if attr_i(node, "smooth_softmax").unwrap_or(0) > 0 => {
            Some(b.floats(&[1, 1, 1, 1], &[0.0]))
        }
        None => None,
    };
    let all = Heads {
        q,
        k: repeat(b, &k, heads / kv_heads)?,
        v: repeat(b, &v, heads / kv_heads)?,
        scale: attr_f(node, "scale"),
        softcap: attr_f(node, "softcap").unwrap_or(0.0),
        terms,
        sink,
    };
    all.write(b, y)?;
    Ok(Replaced)
}

/// The cache with the new rows: in each row of the batch they stand right behind its own former tokens.
fn cached(
    b: &mut Build<'_, '_>,
    past: Option<&str>,
    new: String,
    before: Option<&str>,
    length: usize,
) -> Result<String, EngineError> {
    let (Some(past), Some(before)) = (past, before) else {
        return Ok(new);
    };
    let all = append(b, Some(past), new);
    let shape: [usize; 4] = b.axes(&all)?;
    // t < before ? t : t + (length − before)
    let at = count(b, &[1, shape[2]], 0);
    let own = b.op(op::Less, &[&at, before], vec![]);
    let total = b.float(length as f32);
    let gap = b.op(op::Sub, &[&total, before], vec![]);
    let moved = b.op(op::Add, &[&at, &gap], vec![]);
    let last = b.float(shape[2] as f32 - 1.0);
    let moved = b.op(op::Min, &[&moved, &last], vec![]);
    let index = b.op(op::Where, &[&own, &at, &moved], vec![]);
    let index = b.cast(&index, DataType::Int64);
    let index = b.reshape(&index, &[shape[0], 1, shape[2], 1]);
    let target: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    let target = b.ints(&target);
    let index = b.op(op::Expand, &[&index, &target], vec![]);
    Ok(b.op(
        op::GatherElements,
        &[&all, &index],
        vec![int_attr("axis", 2)],
    ))
}

/// [B, N, T, D] → [B, N · times, T, D], every head `times` in a row.
fn repeat(b: &mut Build<'_, '_>, x: &str, times: usize) -> Result<String, EngineError> {
    let [batch, heads, rows, size] = b.axes(x)?;
    if times == 1 {
        return Ok(x.to_owned());
    }
    let x = b.reshape(x, &[batch, heads, 1, rows, size]);
    let target = b.ints(&[batch, heads, times, rows, size].map(|n| n as i64));
    let x = b.op(op::Expand, &[&x, &target], vec![]);
    Ok(b.reshape(&x, &[batch, heads * times, rows, size]))
}
