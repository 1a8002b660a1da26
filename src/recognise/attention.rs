//! Attention by its two products of computed values: S = Q Kᵀ, O = P V with P = softmax(S …).
//!
//! ```text
//! Q ──┐                                                             ┌── P
//!     MatMul ── scale, mask, Cast, Reshape … ── Softmax ── Cast … ──┤
//! K' ─┘                                                             MatMul ── O
//!                                                              V ───┘
//! ```
//!
//! *Matches* from each Softmax backwards to the one MatMul of two computed values that its scores come from, through
//! scaling, masks, biases, soft caps and whatever moves elements without changing them; and forwards to the one MatMul
//! with another computed value that reads the probabilities, through operators that leave them in 0..1. What stands before
//! Q, K and V (head splits, rotary embedding, caches, repeated heads, scales on either side) does not matter.
//!
//! *Not matched*, with the reason: scores of several products, probabilities read by several products or changed on the
//! way, products that are quantized already or that are no MatMul (FusedMatMul, Einsum), operators that compute attention
//! as a whole (Attention of ONNX 23, ONNX Runtime's MultiHeadAttention and GroupQueryAttention). A Softmax of a Linear's
//! output (a router, a classifier) is no attention.

use std::collections::BTreeSet;

use super::NearMiss;
use crate::graph::{NodeId, Source, Use, ValueId, View};
use crate::onnx::DataType;
use crate::onnx::node::attr_i;
use crate::onnx::op;
use crate::onnx::tensor;

/// More values than stand between the two products of any attention.
const MOST_VALUES: usize = 200;

/// A MatMul of two computed values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// The MatMul.
    pub node: NodeId,
    /// That node's name.
    pub name: String,
    /// What it reads: the left side `[…, M, D]`, the right side `[…, D, N]`.
    pub operands: [ValueId; 2],
    /// The float type of both.
    pub dtype: DataType,
}

/// One attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attention {
    /// Q Kᵀ.
    pub scores: Product,
    /// The Softmax between the two.
    pub softmax: NodeId,
    /// P V.
    pub context: Product,
    /// Which operand of `context` holds the probabilities; 0 but where everything is transposed.
    pub probabilities: usize,
    /// The probabilities before a guard, where one stands right before the product: `Where(IsNaN(p), constant, p)`, as
    /// exporters write for rows in which every key is masked.
    pub unguarded: Option<ValueId>,
}

/// Every attention of a graph in the order of its Softmax, and what almost is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attentions {
    /// Those whose two products were found.
    pub found: Vec<Attention>,
    /// Softmaxes and operators of which they were not, with the reason.
    pub near_misses: Vec<NearMiss>,
}

/// Why a Softmax of the product of two computed values is none: a classifier compares its inputs with prototypes, too.
const UNREAD: &str = "no MatMul reads its probabilities";

impl Attentions {
    /// Those near misses that are an attention all the same: of which only the two products were not found.
    pub fn unmatched(&self) -> impl Iterator<Item = &NearMiss> {
        self.near_misses.iter().filter(|miss| miss.reason != UNREAD)
    }
}

/// Whether a Softmax is that of an attention, and not a classifier's, a router's or a pooler's.
pub fn is_attention(view: &View, softmax: NodeId) -> bool {
    match_at(view, softmax).is_some_and(|found| !matches!(found, Err(reason) if reason == UNREAD))
}

/// Finds every attention. Cost: one pass over the nodes, and a walk of bounded length from each Softmax.
pub fn attentions(view: &View) -> Attentions {
    let mut all = Attentions::default();
    let mut taken = BTreeSet::new();
    for (node, proto) in view.nodes() {
        let whole = proto.op_type().contains(op::Attention)
            && (view.op(node) == op::Attention || !super::microsoft_op(view, node).is_empty());
        let result = match view.op(node) {
            _ if whole => Some(Err(format!(
                "{} computes attention as a whole; its products stay in float",
                proto.op_type()
            ))),
            op::Softmax => match_at(view, node),
            _ => None,
        };
        match result {
            Some(Ok(attention)) => {
                let nodes = [attention.scores.node, attention.context.node];
                if nodes.iter().any(|n| taken.contains(n)) {
                    let reason = "another Softmax stands at the same product".to_owned();
                    all.miss(view, node, reason);
                } else {
                    taken.extend(nodes);
                    all.found.push(attention);
                }
            }
            Some(Err(reason)) => all.miss(view, node, reason),
            None => {}
        }
    }
    all
}

impl Attentions {
    fn miss(&mut self, view: &View, node: NodeId, reason: String) {
        self.near_misses.push(NearMiss {
            node,
            name: view.node_name(node).to_owned(),
            kind: op::Attention,
            reason,
        });
    }
}

/// The attention around a Softmax: `None` if its input comes from no product of two computed values.
fn match_at(view: &View, softmax: NodeId) -> Option<Result<Attention, String>> {
    let (scores, others) = scores(view, softmax);
    if scores.is_empty() && others.is_empty() {
        return None;
    }
    Some(assemble(view, softmax, &scores, &others))
}

fn assemble(
    view: &View,
    softmax: NodeId,
    scores: &BTreeSet<NodeId>,
    others: &BTreeSet<NodeId>,
) -> Result<Attention, String> {
    let name = |&node: &NodeId| format!("{} `{}`", view.node(node).op_type(), view.node_name(node));
    let names =
        |nodes: &mut dyn Iterator<Item = &NodeId>| nodes.map(name).collect::<Vec<_>>().join(", ");
    let mut all = scores.iter().chain(others);
    let scores = match (scores.len(), others.len()) {
        (1, 0) => product(view, *scores.iter().next().ok_or("no product")?)?,
        (0, 1) => {
            return Err(format!(
                "its scores come from {}; a MatMul of two computed values is expected",
                names(&mut all)
            ));
        }
        (n, m) => {
            return Err(format!(
                "its scores come from {} products: {}",
                n + m,
                names(&mut all)
            ));
        }
    };
    let (readers, walls) = readers(view, softmax);
    let (context, probabilities) = match readers.as_slice() {
        [one] => *one,
        [] if walls.is_empty() => {
            return Err(UNREAD.to_owned());
        }
        [] => {
            return Err(format!(
                "its probabilities are read by {}; a MatMul with another computed value is expected",
                names(&mut walls.iter())
            ));
        }
        many => {
            let nodes: BTreeSet<NodeId> = many.iter().map(|(node, _)| *node).collect();
            return Err(format!(
                "its probabilities are read by {} products: {}",
                many.len(),
                names(&mut nodes.iter())
            ));
        }
    };
    let context = product(view, context)?;
    Ok(Attention {
        scores,
        softmax,
        unguarded: unguarded(view, context.operands[probabilities]),
        context,
        probabilities,
    })
}

/// The products that the input of a Softmax is made of: MatMuls of two computed values, and products in another form.
fn scores(view: &View, softmax: NodeId) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
    let (mut scores, mut others) = (BTreeSet::new(), BTreeSet::new());
    let mut seen = BTreeSet::new();
    let mut stack: Vec<ValueId> = view.input(softmax, 0).into_iter().collect();
    while let Some(value) = stack.pop() {
        if seen.len() >= MOST_VALUES || !seen.insert(value) {
            continue;
        }
        let Some((node, _)) = view.producer(value) else {
            continue;
        };
        let slots = match view.op(node) {
            op::MatMul => {
                if is_product(view, node) {
                    scores.insert(node);
                }
                continue;
            }
            op::Einsum => {
                if is_product(view, node) {
                    others.insert(node);
                }
                continue;
            }
            op::Where => 1..3,
            op::Add | op::Sub | op::Mul | op::Div | op::Min | op::Max | op::Concat => {
                0..view.node(node).input.len()
            }
            op::Cast
            | op::Clip
            | op::Dropout
            | op::Expand
            | op::Identity
            | op::Neg
            | op::Pad
            | op::Reshape
            | op::Slice
            | op::Squeeze
            | op::Tanh
            | op::Transpose
            | op::Unsqueeze => 0..1,
            _ => {
                if super::microsoft_op(view, node).contains(op::MatMul) && is_product(view, node) {
                    others.insert(node);
                }
                continue;
            }
        };
        stack.extend(slots.filter_map(|slot| view.input(node, slot)));
    }
    (scores, others)
}

/// The products that read the probabilities of a Softmax, each with the slot; and what else changes or reads them.
fn readers(view: &View, softmax: NodeId) -> (Vec<(NodeId, usize)>, BTreeSet<NodeId>) {
    let mut products = Vec::new();
    let mut walls = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut stack: Vec<ValueId> = view.output(softmax, 0).into_iter().collect();
    while let Some(value) = stack.pop() {
        if seen.len() >= MOST_VALUES || !seen.insert(value) {
            continue;
        }
        for reader in view.uses(value) {
            let &Use::Node { node, input } = reader else {
                // Attention weights that are an output, too, are read as they are.
                continue;
            };
            let passes = match view.op(node) {
                op::MatMul if is_product(view, node) => {
                    if !products.contains(&(node, input)) {
                        products.push((node, input));
                    }
                    continue;
                }
                op::Cast
                | op::Dropout
                | op::Expand
                | op::Identity
                | op::Reshape
                | op::Slice
                | op::Squeeze
                | op::Transpose
                | op::Unsqueeze => input == 0,
                op::Where => input > 0 && is_probability(view, node, 3 - input),
                // What is asked of them leads to a mask or a shape.
                op::Shape | op::Size | op::IsNaN => continue,
                _ => false,
            };
            if !passes {
                walls.insert(node);
                continue;
            }
            stack.extend(view.output(node, 0));
        }
    }
    products.sort_unstable();
    (products, walls)
}

/// What a guard against NaN reads, if `value` is one.
fn unguarded(view: &View, value: ValueId) -> Option<ValueId> {
    let node = view.producer_is(value, op::Where)?;
    let guarded = view.input(node, 2)?;
    let condition = view.producer_is(view.input(node, 0)?, op::IsNaN)?;
    (view.input(condition, 0) == Some(guarded)).then_some(guarded)
}

/// Whether an input is a constant within 0..1, or that of every element of a tensor.
fn is_probability(view: &View, node: NodeId, slot: usize) -> bool {
    let Some(mut value) = view.input(node, slot) else {
        return false;
    };
    let mut steps = 0;
    while let Some((node, 0)) = view.producer(value)
        && matches!(
            view.op(node),
            op::Expand | op::Cast | op::CastLike | op::Identity
        )
        && let Some(input) = view.input(node, 0)
        && steps < MOST_VALUES
    {
        (value, steps) = (input, steps + 1);
    }
    let constant = view.constant(value).and_then(|c| c.into_float());
    constant.is_some_and(|(array, _)| array.iter().all(|p| (0.0..=1.0).contains(p)))
}

/// Whether neither input of a product is a weight, nor one that a caller may replace. A cache may be an input.
fn is_product(view: &View, node: NodeId) -> bool {
    let computed = |value: ValueId| match view.source(value) {
        Source::Node { .. } => !view.is_constant(value) && !is_quantized_weight(view, value),
        Source::Input(_) => {
            let name = view.name(value);
            !view.graph().initializer.iter().any(|t| t.name() == name)
        }
        Source::Initializer(_) | Source::Unknown => false,
    };
    [0, 1]
        .iter()
        .all(|&slot| view.input(node, slot).is_some_and(computed))
}

/// Whether a value is a weight behind DequantizeLinear: a quantized Linear's.
fn is_quantized_weight(view: &View, mut value: ValueId) -> bool {
    for _ in 0..MOST_VALUES {
        let Some((node, _)) = view.producer(value) else {
            return false;
        };
        let input = view.input(node, 0);
        match view.op(node) {
            op::DequantizeLinear | op::QuantizeLinear
                if input.is_some_and(|v| view.is_constant(v)) =>
            {
                return true;
            }
            op::DequantizeLinear
            | op::Cast
            | op::Identity
            | op::Reshape
            | op::Transpose
            | op::Squeeze
            | op::Unsqueeze => {}
            _ => return false,
        }
        let Some(input) = input else {
            return false;
        };
        value = input;
    }
    false
}

fn product(view: &View, node: NodeId) -> Result<Product, String> {
    let name = view.node_name(node);
    let missing = || format!("an input of MatMul `{name}` is missing");
    let operands = [
        view.input(node, 0).ok_or_else(missing)?,
        view.input(node, 1).ok_or_else(missing)?,
    ];
    for operand in operands {
        if view.producer_is(operand, op::DequantizeLinear).is_some() {
            return Err(format!("MatMul `{name}` reads quantized values already"));
        }
    }
    let [left, right] = operands.map(|operand| float_type(view, operand));
    let dtype = left.or(right).ok_or_else(|| {
        format!(
            "the float type of what MatMul `{name}` reads is not known; run shape inference first"
        )
    })?;
    Ok(Product {
        node,
        name: name.to_owned(),
        operands,
        dtype,
    })
}

/// The float type of a value: that of the nearest Cast, constant or stated type before it.
fn float_type(view: &View, mut value: ValueId) -> Option<DataType> {
    let known = |number: i32| {
        let dtype = DataType::try_from(number).ok()?;
        tensor::is_float(dtype).then_some(dtype)
    };
    // No way through a graph is longer than its list of nodes.
    for _ in 0..=view.graph().node.len() {
        if let Some(stated) = view.elem_type(value) {
            return known(stated);
        }
        let (node, _) = view.producer(value)?;
        let slot = match view.op(node) {
            op::Cast => return known(i32::try_from(attr_i(view.node(node), "to")?).ok()?),
            op::Constant => return view.constant(value)?.into_float().map(|(_, dtype)| dtype),
            op::CastLike | op::DequantizeLinear | op::Where => 1,
            op::MatMul | op::Gemm | op::Add | op::Sub | op::Mul | op::Div
                if view.input(node, 1).is_some_and(|v| view.is_constant(v)) =>
            {
                1
            }
            _ => 0,
        };
        value = view.input(node, slot)?;
    }
    None
}
