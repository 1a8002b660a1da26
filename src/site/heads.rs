//! Channels of attention that can be mixed at no cost: those of one head.
//!
//! ```text
//! y_h = P_h V_h      y_h R = P_h (V_h R)        h: head, y_h: [S, D], V_h: [T, D], R: [D, D]
//! ```
//!
//! Probabilities mix tokens and leave channels alone, so what mixes the channels of a head can be folded into the columns of the
//! Linear that makes V. Scales move through more than mixtures do: through factors per channel, and through operators that bring
//! channels of several tokens together. So the way is walked once more, with numbers of elements in place of those of
//! channels, and only moves of elements are let through. At both ends the elements of a head must be found together: in one
//! token of the site's value, and in one token of the Linear's output.
//!
//! Source: QuaRot (arXiv 2404.00456), the rotation of V.

use ndarray::{ArrayD, IxDyn};

use super::Fold;
use super::labels::{Labels, NONE, Ties, is_channel};
use super::trace::{Ends, Place, Product, Shapes, Shift, Trace, Walk};
use crate::graph::{NodeId, Use, ValueId, View};
use crate::onnx::node::attr_i;
use crate::onnx::op;
use crate::recognise::Recognised;

impl Walk<'_, '_> {
    /// A walk over elements ends at the product of probabilities and V.
    pub(super) fn end_at_product(&mut self, node: NodeId, elements: Labels) -> Result<(), String> {
        let view = self.view;
        let width = elements.shape().last().copied().unwrap_or(0);
        let form = match view.op(node) {
            op::MatMul => Some((1, width, 0)),
            op::Attention => {
                let heads = attr_i(view.node(node), "q_num_heads");
                let size = match elements.ndim() {
                    3 => heads.and_then(|h| width.checked_div(usize::try_from(h).ok()?)),
                    _ => Some(width),
                };
                size.map(|size| (2, size, 0))
            }
            _ => self.heads_of_contrib(node, width),
        };
        let who = view.node_name(node);
        let (slot, size, before) = form.ok_or_else(|| format!("`{who}` is no product with V"))?;
        let ends = self.elements.get_or_insert_default();
        ends.products.push(Product {
            node,
            slot,
            size,
            elements,
            before,
        });
        Ok(())
    }
}

/// D, if the D channels of every head of `value` can be mixed by what is folded where `trace` ends.
pub(super) fn mixable(
    view: &View,
    found: &Recognised,
    shapes: &Shapes,
    value: ValueId,
    readers: &[Use],
    trace: &Trace,
) -> Option<usize> {
    let [
        Fold {
            place: Place::Linear(l),
            channels,
            ..
        },
    ] = &trace.folds[..]
    else {
        return None;
    };
    let width = *shapes.get(view.name(value))?.last()?;
    let walk = |value: ValueId, before: usize, readers: &[Use]| {
        let shape = shapes.get(view.name(value))?;
        let last = *shape.last()?;
        let count: usize = shape.iter().product();
        u32::try_from(count).ok().filter(|&n| is_channel(n))?;
        let number = |i: usize| {
            if i % last.max(1) < before {
                NONE
            } else {
                i as u32
            }
        };
        let elements =
            ArrayD::from_shape_vec(IxDyn(shape), (0..count).map(number).collect()).ok()?;
        let mut walk = Walk {
            view,
            found,
            shapes,
            ties: Ties::new(count),
            folds: Vec::new(),
            positive: false,
            elements: Some(Ends::default()),
            depth: 0,
        };
        walk.visit(value, elements, Shift::Stays, readers).ok()?;
        walk.elements
    };
    let ends = walk(value, 0, readers)?;
    let ([product], []) = (&ends.products[..], &ends.linears[..]) else {
        return None;
    };
    let size = product.size;
    if size < 2 || !width.is_multiple_of(size) || !in_heads(&product.elements, width, size) {
        return None;
    }
    let reader = Use::Node {
        node: product.node,
        input: product.slot,
    };
    let v = view.input(product.node, product.slot)?;
    let ends = walk(v, product.before, &[reader])?;
    let ([], [(linear, elements)]) = (&ends.products[..], &ends.linears[..]) else {
        return None;
    };
    let ties = trace.ties.as_deref();
    let tied = |(c, &tie): (usize, &u32)| tie as usize % size == c % size;
    let alike = ties.is_none_or(|ties| ties.iter().enumerate().all(tied));
    (linear == l && alike && in_columns(elements, channels, size)).then_some(size)
}

/// Whether every row of `size` elements is a head of one token of the site's value, whose tokens have `width` channels.
fn in_heads(elements: &Labels, width: usize, size: usize) -> bool {
    let elements: Vec<u32> = elements.iter().copied().collect();
    elements.chunks(size).all(|row| {
        let first = row[0];
        let follow = |(d, &e): (usize, &u32)| e == first + d as u32;
        match is_channel(first) {
            true => {
                (first as usize % width).is_multiple_of(size) && row.iter().enumerate().all(follow)
            }
            // What nothing reads may become anything, if it is all of a head.
            false => row.iter().all(|&e| !is_channel(e)),
        }
    })
}

/// Whether the columns of a Linear that have the channels of one head are, in every token, the elements of one row of V, each
/// in its place, and all of them.
fn in_columns(elements: &Labels, channels: &[Option<u32>], size: usize) -> bool {
    let heads = channels.iter().flatten().map(|&c| c as usize / size);
    let heads = heads.max().map_or(0, |h| h + 1);
    let mut members = vec![0; heads];
    channels
        .iter()
        .flatten()
        .for_each(|&c| members[c as usize / size] += 1);
    if members.iter().any(|&n| n != 0 && n != size) {
        return false;
    }
    let elements: Vec<u32> = elements.iter().copied().collect();
    elements.chunks(channels.len()).all(|token| {
        let mut rows: Vec<Option<u32>> = vec![None; heads];
        token.iter().zip(channels).all(|(&element, channel)| {
            let Some(channel) = channel.map(|c| c as usize) else {
                return true;
            };
            if !is_channel(element) {
                // What nothing reads may become anything.
                return true;
            }
            let row = rows[channel / size].get_or_insert(element / size as u32);
            element as usize % size == channel % size && *row == element / size as u32
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::labels::UNREAD;
    use super::*;
    use ndarray::array;

    #[test]
    fn a_head_is_whole_in_one_token_or_unread() {
        let heads = |elements: Labels| in_heads(&elements, 4, 2);
        assert!(heads(
            array![[0, 1], [2, 3], [UNREAD, UNREAD], [NONE, UNREAD]].into_dyn()
        ));
        // Across heads, in another order, and with an element that nothing reads.
        for row in [[1, 2], [1, 0], [0, UNREAD], [UNREAD, 0], [NONE, 0]] {
            assert!(!heads(array![row].into_dyn()), "{row:?}");
        }
    }
}
