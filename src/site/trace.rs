//! Commutation: how an affine per channel moves backwards through one operator, to constants that can take it.
//!
//! If the value v must become v' = (v − z) / s, each operator says what its inputs or constants must become:
//!
//! | operator | rule | safe when |
//! |---|---|---|
//! | Linear output y = u W + b | W' = W diag(1/s), b' = (b − z) / s | always: a sink |
//! | norm output y = n γ + β | γ' = γ / s, β' = (β − z) / s | a sink; a shift needs β |
//! | Add, Sub of a constant c | c' = (c − z) / s and the other input becomes a / s | c spans the channels |
//! | Mul, Div by one number | the other input becomes a / s | scale only |
//! | Mul of a constant per channel | c' = c / s | scale only: a sink |
//! | Mul(a, b) | one of a, b becomes a / s | scale only |
//! | Relu | the input becomes a / s | scale only, s > 0 |
//! | ReduceMean over tokens | the input becomes (a − z) / s | the axes are known |
//! | ReduceSum over tokens | the input becomes a / s | scale only |
//! | P V with P = Softmax | V' = (V − z) / s, because the rows of P sum to 1 | else scale only |
//! | Attention(Q, K, V) | V' = (V − z) / s | no past values, values not kept for later |
//! | MultiHeadAttention, GroupQueryAttention | V' = (V − z) / s, by the same rule | no past or present values |
//! | Reshape, Transpose, Squeeze, Unsqueeze, Flatten, Expand, Slice, Split, SplitToSequence and SequenceAt, Gather, Concat | channels are relabelled | bounds, sizes and indices are constants or follow from shapes (`sizes`) |
//! | Identity, Dropout, Cast | unchanged | always |
//!
//! Anything else is a *wall*. So is a value that something else reads as well, unless that reader sees none of the
//! channels (the query and key slices of a fused QKV). What nothing reads (all tokens but the one that a pooler takes)
//! may become anything.

use std::collections::BTreeMap;

use super::compound::split_behind;
use super::labels::{Labels, NONE, Ties, UNREAD, channels_last, is_channel, unbroadcast};
use super::rules::{channel_inputs, measured_values};
use crate::graph::{NodeId, Use, ValueId, View};
use crate::onnx::op;
use crate::recognise::{LinearId, NormId, Recognised};

/// The concrete shapes of values in one run, by name.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// A constant that takes a part of the affine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The output columns and the bias of `Recognised::linears[_]`; one label per column.
    Linear(LinearId),
    /// γ and β of `Recognised::norms[_]`; one label per channel of the norm.
    Norm(NormId),
    /// The constant in input `slot` of `node`; one label per element.
    Constant {
        /// The reader.
        node: NodeId,
        /// Which of its inputs.
        slot: usize,
        /// The constant.
        value: ValueId,
        /// Whether the shift is subtracted from it: −1 or 1 times z (the constant of an Add, or of a Sub), 0 for none.
        shift_sign: i8,
    },
}

/// One place and the channels of its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    /// The constants.
    pub place: Place,
    /// The channel of each column or element, `None` for those that are not concerned.
    pub channels: Vec<Option<u32>>,
    /// Whether this place takes the shift; every place takes the scale.
    pub takes_shift: bool,
}

/// How the affine of a site reaches constants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Every place that changes.
    pub folds: Vec<Fold>,
    /// For every channel the smallest one that must have the same shift and scale; `None` if all are free.
    pub ties: Option<Vec<u32>>,
    /// Whether a shift can be folded as well.
    pub allow_shift: bool,
    /// Whether the scale must be positive: the way passes a Relu.
    pub positive: bool,
}

/// Whether the shift goes backwards with the scale, or only the scale does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shift {
    Moves,
    Stays,
}

impl Shift {
    pub(super) fn moves(self) -> bool {
        self == Shift::Moves
    }
}

/// The values on the way back from `value` whose shapes [`trace`] may have to know, `value` among them.
pub(super) fn values_on_the_way(view: &View, found: &Recognised, value: ValueId) -> Vec<ValueId> {
    let mut seen = vec![value];
    let mut measured = Vec::new();
    let mut next = 0;
    while let Some(&value) = seen.get(next) {
        next += 1;
        // A path through 64 values is no attention block any more.
        if seen.len() > 64 || sink(view, found, value).is_some() {
            continue;
        }
        let Some((node, _)) = view.producer(value) else {
            continue;
        };
        // A sequence has no shape: its tensor is behind it.
        let node = match view.op(node) {
            op::SequenceAt => match split_behind(view, node) {
                Some(split) => split,
                None => continue,
            },
            _ => node,
        };
        // Other readers of this value may be Slices of it.
        let readers = view.uses(value).iter().filter_map(|reader| match reader {
            Use::Node { node, .. } => Some(*node),
            _ => None,
        });
        for node in readers.chain([node]) {
            measured.extend(measured_values(view, node));
        }
        for slot in channel_inputs(view, node) {
            if let Some(input) = view.input(node, slot)
                && !view.is_constant(input)
                && !seen.contains(&input)
            {
                seen.push(input);
            }
        }
    }
    seen.extend(measured);
    seen.sort_unstable();
    seen.dedup();
    seen
}

/// Follows the channels of `value`, whose readers `readers` absorb the affine, back to constants.
///
/// # Errors
/// Why there is no way: the wall, in words.
pub(super) fn trace(
    view: &View,
    found: &Recognised,
    shapes: &Shapes,
    value: ValueId,
    readers: &[Use],
) -> Result<Trace, String> {
    let shape = shapes
        .get(view.name(value))
        .ok_or("its shape is not known")?;
    let channels = shape.last().copied().unwrap_or(0);
    // With a shift if possible; where a rule refuses the shift, the scale alone may pass.
    let attempt = |shift: Shift| {
        let mut walk = Walk {
            view,
            found,
            shapes,
            ties: Ties::new(channels),
            folds: Vec::new(),
            positive: false,
            elements: None,
            depth: 0,
        };
        walk.visit(value, channels_last(shape), shift, readers)?;
        Ok::<_, String>(Trace {
            ties: walk.ties.groups(),
            folds: walk.folds,
            allow_shift: shift.moves(),
            positive: walk.positive,
        })
    };
    attempt(Shift::Moves).or_else(|_| attempt(Shift::Stays))
}

/// Where probabilities are multiplied by V.
#[derive(Clone)]
pub(super) struct Product {
    pub node: NodeId,
    /// The input that holds V.
    pub slot: usize,
    /// D.
    pub size: usize,
    /// The elements of the site's value, by those of the output: a row of D after another.
    pub elements: Labels,
    /// How many of the last axis of the input are not V, before it.
    pub before: usize,
}

/// What a walk over elements has come to.
#[derive(Clone, Default)]
pub(super) struct Ends {
    pub products: Vec<Product>,
    pub linears: Vec<(LinearId, Labels)>,
}

#[derive(Clone)]
pub(super) struct Walk<'a, 'm> {
    pub(super) view: &'a View<'m>,
    pub(super) found: &'a Recognised,
    pub(super) shapes: &'a Shapes,
    pub(super) ties: Ties,
    pub(super) folds: Vec<Fold>,
    /// See [`Trace::positive`].
    pub(super) positive: bool,
    /// Where a walk over elements ends ([`super::heads`]); `None` if this is one over channels.
    pub(super) elements: Option<Ends>,
    /// How many values the walk has come through on its way to here.
    pub(super) depth: usize,
}

/// How far a walk goes. What exporters write between a norm and its Linears are some dozen operators; a file with a
/// chain of hundreds must not use up the stack.
const MAX_DEPTH: usize = 200;

/// A norm or Linear whose output is `value`.
fn sink(view: &View, found: &Recognised, value: ValueId) -> Option<Place> {
    let linear = found.linears.position(|l| l.output(view) == Some(value));
    let norm = || found.norms.position(|n| n.output == value).map(Place::Norm);
    linear.map(Place::Linear).or_else(norm)
}

impl Walk<'_, '_> {
    /// `value` must become (v − z) / s, or v / s without `shift`, for the readers `from`.
    pub(super) fn visit(
        &mut self,
        value: ValueId,
        mut labels: Labels,
        shift: Shift,
        from: &[Use],
    ) -> Result<(), String> {
        let view = self.view;
        if labels.is_empty() {
            // A past of length zero: in use it has elements, and they are not scaled.
            return Err(format!("`{}` is empty in calibration", view.name(value)));
        }
        if !labels.iter().any(|&l| is_channel(l)) {
            return Ok(());
        }
        for reader in view.uses(value).iter().filter(|u| !from.contains(u)) {
            if self.reads_elements(*reader) {
                labels.mapv_inplace(|l| if l == UNREAD { NONE } else { l });
            }
            if !self.sees_no_channel(&labels, *reader) {
                return Err(format!(
                    "`{}` is also read by {}",
                    view.name(value),
                    self.who(*reader)
                ));
            }
        }
        if let Some(place) = sink(view, self.found, value) {
            return match (&mut self.elements, place) {
                (None, place) => self.fold_sink(place, &labels, shift),
                (Some(ends), Place::Linear(l)) => {
                    ends.linears.push((l, labels));
                    Ok(())
                }
                (Some(_), _) => Err("its elements come from a norm".to_owned()),
            };
        }
        let Some((node, output)) = view.producer(value) else {
            return Err(format!("`{}` is no computed value", view.name(value)));
        };
        if self.depth >= MAX_DEPTH {
            return Err(format!(
                "more than {MAX_DEPTH} operators lie between it and `{}`",
                view.name(value)
            ));
        }
        self.depth += 1;
        let done = self.rule(node, output, labels, shift);
        self.depth -= 1;
        done
    }

    fn who(&self, reader: Use) -> String {
        match reader {
            Use::Node { node, .. } => {
                let op = self.view.node(node).op_type.as_deref().unwrap_or("?");
                format!("{op} `{}`", self.view.node_name(node))
            }
            Use::Captured { node } => format!("a subgraph of `{}`", self.view.node_name(node)),
            Use::GraphOutput(_) => "the caller (it is a graph output)".to_owned(),
        }
    }

    /// The norm or Linear takes the affine.
    fn fold_sink(&mut self, place: Place, labels: &Labels, shift: Shift) -> Result<(), String> {
        let count = match place {
            Place::Linear(l) => {
                let linear = &self.found.linears[l];
                if linear.odd_bias {
                    return Err(format!(
                        "the bias of `{}` is no constant per column",
                        linear.name
                    ));
                }
                linear.n
            }
            Place::Norm(n) => {
                let norm = &self.found.norms[n];
                if shift.moves() && norm.beta.is_none() {
                    return Err("its bias cannot take a shift".to_owned());
                }
                norm.channels
            }
            // Operators fold into these themselves; `sink` never answers one.
            Place::Constant { .. } => labels.len(),
        };
        let columns = unbroadcast(labels, &[count], &mut self.ties)
            .ok_or("its columns belong to a channel in some places only")?;
        self.folds.push(Fold {
            place,
            channels: channels(&columns),
            takes_shift: shift.moves(),
        });
        Ok(())
    }
}

pub(super) fn channels(labels: &Labels) -> Vec<Option<u32>> {
    labels.iter().map(|&l| is_channel(l).then_some(l)).collect()
}
