//! The rules of [`super::trace`] for ONNX Runtime's own attention operators.
//!
//! The rows of the attention probabilities sum to 1, so y = P V becomes (y − z) / s with V' = (V − z) / s, as in the
//! product of a Softmax and V. The operator splits and joins the heads itself: channel c of y is channel c of V, or,
//! where several heads of queries share one of values, the channel of the shared head.
//!
//! MultiHeadAttention adds its own bias [b_q | b_k | b_v] first: b_v' = (b_v − z) / s and V' = V / s.
//!
//! *Walls*: V of former tokens joined in, V handed on to later ones (both would have to change with it), a score that
//! takes weight and gives no value (then only a scale passes).

use std::ops::Range;

use ndarray::IxDyn;

use super::labels::{Labels, NONE, reshape, unbroadcast};
use super::trace::{Fold, Place, Shift, Walk, channels};
use crate::graph::{NodeId, Use, View};
use crate::onnx::node::attr_i;
use crate::onnx::op;
use crate::recognise::microsoft_op;

/// Where one of these operators keeps what the rule has to know.
struct Form {
    /// Heads of values.
    kv_heads: &'static str,
    bias: Option<usize>,
    past_value: usize,
    /// A score of each head without a value.
    sink: Option<usize>,
}

fn form(view: &View, node: NodeId) -> Option<Form> {
    Some(match microsoft_op(view, node) {
        op::MultiHeadAttention => Form {
            kv_heads: "num_heads",
            bias: Some(3),
            past_value: 7,
            sink: None,
        },
        op::GroupQueryAttention => Form {
            kv_heads: "kv_num_heads",
            bias: None,
            past_value: 4,
            sink: Some(11),
        },
        _ => return None,
    })
}

/// The input that holds V: its own, or the one of Q, K and V in one.
fn value_slot(view: &View, node: NodeId) -> usize {
    if view.input(node, 2).is_some() { 2 } else { 0 }
}

/// The inputs of `node` through which [`Walk::contrib`] may follow channels.
pub(super) fn channel_inputs(view: &View, node: NodeId) -> Range<usize> {
    match form(view, node) {
        Some(_) => {
            let slot = value_slot(view, node);
            slot..slot + 1
        }
        None => 0..0,
    }
}

impl Walk<'_, '_> {
    /// The rule of `node` if it is one of these operators.
    pub(super) fn contrib(
        &mut self,
        node: NodeId,
        output: usize,
        labels: &Labels,
        shift: Shift,
    ) -> Option<Result<(), String>> {
        let form = form(self.view, node)?;
        Some(self.values(node, &form, output, labels, shift))
    }

    /// The input of one of these operators that holds V, the channels of a head, and how many of its last axis are before V;
    /// its output has `width` channels.
    pub(super) fn heads_of_contrib(
        &self,
        node: NodeId,
        width: usize,
    ) -> Option<(usize, usize, usize)> {
        let form = form(self.view, node)?;
        let count = |attribute: &str| {
            let count = attr_i(self.view.node(node), attribute)?;
            usize::try_from(count).ok().filter(|&n| n > 0)
        };
        let size = width / count("num_heads")?;
        let slot = value_slot(self.view, node);
        let own = *self.shape_of_input(node, slot).ok()?.last()?;
        let before = match slot {
            0 => own.checked_sub(size * count(form.kv_heads)?)?,
            _ => 0,
        };
        Some((slot, size, before))
    }

    fn values(
        &mut self,
        node: NodeId,
        form: &Form,
        output: usize,
        labels: &Labels,
        shift: Shift,
    ) -> Result<(), String> {
        let view = self.view;
        let name = format!("{} `{}`", microsoft_op(view, node), view.node_name(node));
        if output != 0 {
            return Err(format!("it is a cache of {name}"));
        }
        if let Some(past) = view.input(node, form.past_value) {
            return Err(format!(
                "{name} joins V with the values of former tokens, `{}`",
                view.name(past)
            ));
        }
        if let Some(present) = view.output(node, 2).filter(|v| !view.uses(*v).is_empty()) {
            return Err(format!(
                "{name} hands V on to later tokens, as `{}`",
                view.name(present)
            ));
        }
        let flag = |attribute: &str| attr_i(view.node(node), attribute).unwrap_or(0);
        let has_sink = form
            .sink
            .is_some_and(|slot| view.input(node, slot).is_some());
        if shift.moves() && (has_sink || flag("smooth_softmax") > 0) {
            return Err(format!(
                "the rows of the probabilities in {name} need not sum to 1"
            ));
        }
        let count = |attribute: &str| usize::try_from(flag(attribute)).unwrap_or(0);
        let malformed = || format!("{name} is malformed");
        let mixed = || format!("{name} mixes channels with others");
        let (heads, kv_heads) = (count("num_heads"), count(form.kv_heads));
        let all = labels.shape().last().copied().unwrap_or(0);
        if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 || all % heads != 0 {
            return Err(malformed());
        }
        let (size, group) = (all / heads, heads / kv_heads);
        let row = unbroadcast(labels, &[all], &mut self.ties).ok_or_else(mixed)?;
        let grouped = reshape(row, &[kv_heads, group, size]).ok_or_else(malformed)?;
        // [heads of values, 1, channels]: queries that share a head are tied.
        let row = unbroadcast(&grouped, &[kv_heads, 1, size], &mut self.ties).ok_or_else(mixed)?;
        let width = kv_heads * size;
        let flat = reshape(row.clone(), &[width]).ok_or_else(malformed)?;
        let last_of = |total: usize| -> Result<Labels, String> {
            let before = total.checked_sub(width).ok_or_else(malformed)?;
            let label = |i: usize| i.checked_sub(before).map_or(NONE, |c| flat[c]);
            Ok(Labels::from_shape_fn(IxDyn(&[total]), |i| label(i[0])))
        };
        let slot = value_slot(view, node);
        let shape = self.shape_of_input(node, slot)?;
        let own = match shape.as_slice() {
            [_, _, total] if slot == 0 => last_of(*total)?,
            [_, _, n] if *n == width => flat.clone(),
            [_, h, _, n] if *h == kv_heads && *n == size => row,
            _ => return Err(format!("{name} reads V in a form that is not known")),
        };
        let own = own.broadcast(IxDyn(&shape)).ok_or_else(malformed)?;
        let own = own.to_owned();
        let mut shift = shift;
        let bias = form.bias.filter(|_| shape.len() == 3);
        if let Some((slot, value)) = bias.and_then(|slot| Some((slot, view.input(node, slot)?))) {
            let constant = view.constant(value).and_then(|c| c.into_float());
            let (array, _) = constant.ok_or_else(|| {
                format!("the bias `{}` of {name} is no constant", view.name(value))
            })?;
            self.folds.push(Fold {
                place: Place::Constant {
                    node,
                    slot,
                    value,
                    shift_sign: if shift.moves() { -1 } else { 0 },
                },
                channels: channels(&last_of(array.len())?),
                takes_shift: shift.moves(),
            });
            shift = Shift::Stays;
        }
        let value = view.input(node, slot).ok_or_else(malformed)?;
        self.visit(value, own, shift, &[Use::Node { node, input: slot }])
    }
}
