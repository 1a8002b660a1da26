//! Means and mean squares: what stands under the square root of a norm.

use crate::graph::{NodeId, ValueId, View};
use crate::onnx::node::{attr_f, attr_i, attr_ints};
use crate::onnx::op;

use super::norm::NormKind;
use super::transparent::see_through;

/// What stands under the square root.
pub(super) struct Variance {
    pub kind: NormKind,
    /// x, seen through.
    pub x: ValueId,
    /// The value whose squares are averaged, seen through: x − mean(x), or x itself.
    pub centred: ValueId,
    /// Why it is not over the last axis, if so.
    pub problem: Option<String>,
}

/// The variance or mean square that a value is, if it is one.
pub(super) fn variance_of(view: &View, value: ValueId) -> Option<Variance> {
    // mean(x²) − mean(x)²
    if let Some(sub) = view.producer_is(value, op::Sub) {
        let squares = mean_of(view, view.input(sub, 0)?)?;
        let mean = mean_of(view, square_of(view, view.input(sub, 1)?)?)?;
        let x = see_through(view, mean.of);
        return (square_of(view, squares.of)? == x).then_some(Variance {
            kind: NormKind::Layer,
            x,
            centred: x,
            problem: squares.problem.or(mean.problem),
        });
    }
    let mean = mean_of(view, value)?;
    let squared = square_of(view, mean.of)?;
    let centred_of = view
        .producer_is(squared, op::Sub)
        .and_then(|sub| centred_of(view, sub));
    Some(match centred_of {
        Some((x, problem)) => Variance {
            kind: NormKind::Layer,
            x,
            centred: squared,
            problem: mean.problem.or(problem),
        },
        None => Variance {
            kind: NormKind::Rms,
            x: squared,
            centred: squared,
            problem: mean.problem,
        },
    })
}

/// Strips ε: v from Add(v, ε) or Max(v, ε), ε a scalar constant on either side, or from Clip; from one in another, as of
/// Flax's max(mean(x²) − mean(x)², 0) + ε.
pub(super) fn without_epsilon(view: &View, value: ValueId) -> (ValueId, bool) {
    let (mut value, mut found) = (see_through(view, value), false);
    while let Some(inner) = one_less(view, value) {
        (value, found) = (see_through(view, inner), true);
    }
    (value, found)
}

fn one_less(view: &View, value: ValueId) -> Option<ValueId> {
    let (node, 0) = view.producer(value)? else {
        return None;
    };
    match (view.op(node), view.input(node, 0), view.input(node, 1)) {
        (op::Add | op::Max, Some(v), Some(e)) if is_scalar(view, e) => Some(v),
        (op::Add | op::Max, Some(e), Some(v)) if is_scalar(view, e) => Some(v),
        (op::Clip, Some(v), Some(min)) if is_scalar(view, min) => Some(v),
        (op::Clip, Some(v), None) if attr_f(view.node(node), "min").is_some() => Some(v),
        _ => None,
    }
}

/// Whether a value is a scalar constant, in the type of another value perhaps.
fn is_scalar(view: &View, value: ValueId) -> bool {
    let cast = view.producer_is(value, op::CastLike);
    let value = cast.and_then(|node| view.input(node, 0)).unwrap_or(value);
    view.scalar(value).is_some()
}

/// A mean: what it averages, and why it is not over the last axis, if so.
pub(super) struct Mean {
    pub of: ValueId,
    pub problem: Option<String>,
}

/// The ReduceMean that computes a value, or the GlobalAveragePool that tf2onnx makes of it for rank 3.
pub(super) fn mean_of(view: &View, value: ValueId) -> Option<Mean> {
    let value = see_through(view, value);
    if let Some(pool) = view.producer_is(value, op::GlobalAveragePool) {
        let of = view.input(pool, 0)?;
        let rank = rank_of(view, of).unwrap_or(3);
        let problem = (rank != 3).then(|| {
            format!("its mean is a GlobalAveragePool of rank {rank}, not over the last axis alone")
        });
        return Some(Mean { of, problem });
    }
    let node = view.producer_is(value, op::ReduceMean)?;
    let of = view.input(node, 0)?;
    let axes = match (attr_ints(view.node(node), "axes"), view.input(node, 1)) {
        (Some(axes), _) => Some(axes.to_vec()),
        (None, Some(axes)) => match view.constant(axes).and_then(|c| c.into_ints()) {
            Some(axes) => Some(axes),
            None => {
                let name = view.name(axes);
                let problem = Some(format!(
                    "its mean is over axes `{name}`, which are not a constant"
                ));
                return Some(Mean { of, problem });
            }
        },
        (None, None) => None,
    };
    let rank = rank_of(view, of).map(|rank| rank as i64);
    let keep = attr_i(view.node(node), "keepdims").unwrap_or(1) != 0;
    let problem = match axes.as_deref() {
        _ if !keep => Some(
            "its mean drops the axis it is taken over (keepdims = 0); keepdims = 1 is expected"
                .to_owned(),
        ),
        Some([-1]) => None,
        // A positive axis of an unknown rank: exporters count from the front when they know the rank, and
        // normalize the last axis. The shape of γ decides later; nothing but the last axis can broadcast with it.
        Some(&[axis]) if axis > 0 && rank.is_none_or(|r| r == axis + 1) => None,
        Some(axes) => Some(format!(
            "its mean is over axes {axes:?}{}, not over the last axis alone",
            rank.map_or(String::new(), |r| format!(" of rank {r}"))
        )),
        None => Some("its mean is over all axes, not over the last axis alone".to_owned()),
    };
    Some(Mean { of, problem })
}

/// The rank of a value, or of what it is an elementwise function of.
fn rank_of(view: &View, value: ValueId) -> Option<usize> {
    let mut value = value;
    // The squares of a difference of a cast: four steps.
    for _ in 0..4 {
        if let Some(shape) = view.shape(value) {
            return Some(shape.len());
        }
        let (node, _) = view.producer(value)?;
        if !matches!(
            view.op(node),
            op::Pow | op::Mul | op::Sub | op::Identity | op::Cast | op::Dropout
        ) {
            return None;
        }
        value = view.input(node, 0)?;
    }
    view.shape(value).map(|shape| shape.len())
}

/// d, seen through, from Pow(d, 2) or Mul(d, d).
fn square_of(view: &View, value: ValueId) -> Option<ValueId> {
    let (node, _) = view.producer(see_through(view, value))?;
    let (a, b) = (view.input(node, 0)?, view.input(node, 1)?);
    let is_square = match view.op(node) {
        op::Pow => exponent(view, b) == Some(2.0),
        op::Mul => same_difference(view, see_through(view, a), see_through(view, b)),
        _ => false,
    };
    is_square.then(|| see_through(view, a))
}

/// The same value, or x − mean(x) computed twice.
fn same_difference(view: &View, a: ValueId, b: ValueId) -> bool {
    let x_of = |v| {
        view.producer_is(v, op::Sub)
            .and_then(|sub| centred_of(view, sub))
            .map(|(x, _)| x)
    };
    a == b || (x_of(a).is_some() && x_of(a) == x_of(b))
}

/// A constant exponent; exporters also write it as an integer.
pub(super) fn exponent(view: &View, value: ValueId) -> Option<f32> {
    view.scalar(value)
        .or_else(|| match view.constant(value)?.into_ints()?.as_slice() {
            &[i] => Some(i as f32),
            _ => None,
        })
}

/// x, seen through, if `sub` computes x − mean(x), and why the mean is not over the last axis, if so.
pub(super) fn centred_of(view: &View, sub: NodeId) -> Option<(ValueId, Option<String>)> {
    let (a, b) = (view.input(sub, 0)?, view.input(sub, 1)?);
    let (x, mean) = (see_through(view, a), mean_of(view, b)?);
    (see_through(view, mean.of) == x).then_some((x, mean.problem))
}

/// A mean of squares under other arithmetic: what kind of norm it would be, and the node in between.
pub(super) fn buried_mean_of_squares(
    view: &View,
    value: ValueId,
    depth: usize,
) -> Option<(NormKind, String)> {
    let value = see_through(view, value);
    let (node, _) = view.producer(value)?;
    // Deeper than this the mean belongs to something else.
    let seen_through = matches!(
        view.op(node),
        op::Add | op::Sub | op::Mul | op::Div | op::Max | op::Reshape | op::Unsqueeze
    );
    if depth > 3 || !seen_through {
        return None;
    }
    let between = view.node_name(node).to_owned();
    let scaled = matches!(view.op(node), op::Mul | op::Div);
    (0..2)
        .filter_map(|slot| view.input(node, slot))
        .find_map(|v| {
            if let Some(variance) = variance_of(view, v) {
                return Some((variance.kind, between.clone()));
            }
            let sum = view.producer_is(see_through(view, v), op::ReduceSum);
            let is_sum_of_squares = sum
                .and_then(|sum| view.input(sum, 0))
                .is_some_and(|v| square_of(view, v).is_some());
            if scaled && is_sum_of_squares {
                return Some((NormKind::Rms, between.clone()));
            }
            buried_mean_of_squares(view, v, depth + 1)
        })
}
