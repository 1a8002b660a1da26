//! Which channel every element of a value belongs to.
//!
//! A site's channels sit on the last axis of its value, but the same numbers were somewhere else before a head split,
//! a transposition or a concatenation. Labels follow them: an array of the value's shape that holds the channel of
//! each element, or [`NONE`]. Each shape operator is then a rearrangement of labels, for any combination of operators.
//!
//! Where one element belongs to several channels (a value broadcast to several heads), these channels are *tied*:
//! they must get one shift and one scale.

use ndarray::{Array1, ArrayD, Axis, IxDyn, Slice, Zip};

/// An element that belongs to no channel of the site, and that something else reads: it must stay as it is.
pub(super) const NONE: u32 = u32::MAX;

/// An element that nothing reads: it may become anything. All tokens but the first are so where a pooler reads only that.
pub(super) const UNREAD: u32 = u32::MAX - 1;

/// Whether a label is a channel.
pub(super) fn is_channel(label: u32) -> bool {
    label < UNREAD
}

/// A channel number, or [`NONE`], for every element of a value.
pub(super) type Labels = ArrayD<u32>;

/// Labels of a value whose channels are its last axis.
pub(super) fn channels_last(shape: &[usize]) -> Labels {
    let channels = shape.last().map_or(1, |&n| n as u32);
    let row = Array1::from_iter(0..channels).into_dyn();
    // A shape of no axes has one element, which is its channel 0; any other ends in the row's length.
    match row.broadcast(IxDyn(shape)) {
        Some(labels) => labels.to_owned(),
        None => ArrayD::zeros(IxDyn(shape)),
    }
}

/// Channels that must be treated alike, as a union-find forest.
#[derive(Clone, Debug)]
pub(super) struct Ties {
    parent: Vec<u32>,
}

impl Ties {
    /// No ties among `channels` channels.
    pub(super) fn new(channels: usize) -> Self {
        Ties {
            parent: (0..channels as u32).collect(),
        }
    }

    /// The smallest channel that `channel` is tied to.
    pub(super) fn find(&self, mut channel: u32) -> u32 {
        while self.parent[channel as usize] != channel {
            channel = self.parent[channel as usize];
        }
        channel
    }

    /// Ties two channels.
    pub(super) fn tie(&mut self, a: u32, b: u32) {
        let (a, b) = (self.find(a), self.find(b));
        self.parent[a.max(b) as usize] = a.min(b);
    }

    /// For every channel the smallest one it is tied to; `None` if nothing is tied.
    pub(super) fn groups(&self) -> Option<Vec<u32>> {
        let groups: Vec<u32> = (0..self.parent.len() as u32)
            .map(|c| self.find(c))
            .collect();
        groups
            .iter()
            .enumerate()
            .any(|(c, &g)| c as u32 != g)
            .then_some(groups)
    }
}

/// The label of one element that has two. Channels are tied. `None` if it would belong to a channel and to none.
fn join(a: u32, b: u32, ties: &mut Ties) -> Option<u32> {
    match (a, b) {
        (a, b) if a == b => Some(a),
        (UNREAD, other) | (other, UNREAD) => Some(other),
        (NONE, _) | (_, NONE) => None,
        (a, b) => {
            ties.tie(a, b);
            Some(a)
        }
    }
}

/// Labels of the smaller value that was broadcast to `labels`' shape (NumPy's rule). Channels that fall on one element
/// are tied. `None` if an element would belong to a channel and to none.
pub(super) fn unbroadcast(labels: &Labels, shape: &[usize], ties: &mut Ties) -> Option<Labels> {
    if labels.shape() == shape {
        return Some(labels.clone());
    }
    let elements: usize = shape.iter().product();
    let places = ArrayD::from_shape_vec(IxDyn(shape), (0..elements).collect()).ok()?;
    let mut result: Vec<Option<u32>> = vec![None; elements];
    let mut mixed = false;
    // There are as many labels as elements of an activation: counting indices one by one is what takes the time here.
    let places = places.broadcast(labels.raw_dim())?;
    Zip::from(places).and(labels).for_each(|&place, &label| {
        let joined = match result[place] {
            None => Some(label),
            Some(old) => join(old, label, ties),
        };
        mixed |= joined.is_none();
        result[place] = joined;
    });
    let result = result.into_iter().map(|label| label.unwrap_or(NONE));
    let result = ArrayD::from_shape_vec(IxDyn(shape), result.collect()).ok()?;
    (!mixed).then_some(result)
}

/// Labels of the factor V: [.., T, D] of a product P V whose output [.., S, D] has `labels`. Every row of V reaches
/// every row of the output.
pub(super) fn through_product(labels: &Labels, shape: &[usize], ties: &mut Ties) -> Option<Labels> {
    let rank = labels.ndim();
    if rank < 2 || shape.len() < 2 || shape.len() > rank {
        return None;
    }
    let mut one_row = labels.shape().to_vec();
    one_row[rank - 2] = 1;
    let row = unbroadcast(labels, &one_row, ties)?;
    let mut target = shape.to_vec();
    target[shape.len() - 2] = 1;
    let row = unbroadcast(&row, &target, ties)?;
    Some(row.broadcast(IxDyn(shape))?.to_owned())
}

/// Labels of V of an Attention whose output has `labels`: the heads of both are an axis, or, in values of rank 3, parts of
/// the last axis, and then their numbers `heads` (of queries, of values) must be known. Query heads that share a value
/// head tie its channels.
pub(super) fn through_attention(
    labels: &Labels,
    shape: &[usize],
    heads: Option<(usize, usize)>,
    ties: &mut Ties,
) -> Option<Labels> {
    match (labels.shape(), shape) {
        (&[batch, rows, width], &[_, keys, v_width]) => {
            let (q_heads, v_heads) = heads.filter(|(q, v)| *q > 0 && *v > 0)?;
            let by_head = reshape(labels.clone(), &[batch, rows, q_heads, width / q_heads])?;
            let by_head = by_head.permuted_axes(vec![0, 2, 1, 3]);
            let v_shape = [batch, v_heads, keys, v_width / v_heads];
            let of_v = through_attention(&by_head, &v_shape, None, ties)?;
            reshape(of_v.permuted_axes(vec![0, 2, 1, 3]), shape)
        }
        (&[batch, q_heads, rows, width], &[_, v_heads, keys, _]) => {
            let shared = q_heads
                .checked_div(v_heads)
                .filter(|n| n * v_heads == q_heads)?;
            let grouped = reshape(labels.clone(), &[batch, v_heads, shared, rows, width])?;
            let of_v = through_product(&grouped, &[batch, v_heads, 1, keys, width], ties)?;
            reshape(of_v, shape)
        }
        _ => None,
    }
}

/// Labels of the larger value of which `labels` are the elements `range` along `axis`; the rest is `rest`: NONE or UNREAD.
pub(super) fn unslice(
    labels: &Labels,
    shape: &[usize],
    axis: usize,
    range: Slice,
    rest: u32,
) -> Option<Labels> {
    let mut whole: Labels = ArrayD::from_elem(IxDyn(shape), rest);
    let mut part = whole.slice_axis_mut(Axis(axis), range);
    if part.shape() != labels.shape() {
        return None;
    }
    part.assign(labels);
    Some(whole)
}

/// Labels of the value from which a Gather picks `indices` (of any rank, flattened, none negative) along `axis`; what
/// it does not pick is `rest`: NONE or UNREAD. Channels that are picked from one place are tied.
pub(super) fn ungather(
    labels: Labels,
    shape: &[usize],
    axis: usize,
    indices: &[usize],
    rest: u32,
    ties: &mut Ties,
) -> Option<Labels> {
    let mut picked_shape = shape.to_vec();
    *picked_shape.get_mut(axis)? = indices.len();
    let labels = reshape(labels, &picked_shape)?;
    let mut whole: Labels = ArrayD::from_elem(IxDyn(shape), rest);
    let mut picked = vec![false; shape[axis]];
    for (part, &index) in labels.axis_iter(Axis(axis)).zip(indices) {
        let mut place = whole.index_axis_mut(Axis(axis), index);
        if std::mem::replace(picked.get_mut(index)?, true) {
            let joined = tie_all(&place.to_owned(), &part.to_owned(), ties)?;
            place.assign(&joined);
        } else {
            place.assign(&part);
        }
    }
    Some(whole)
}

/// Two labellings of one value as one: channels that fall on one element are tied. `None` if an element belongs to a
/// channel in one of them only.
pub(super) fn tie_all(a: &Labels, b: &Labels, ties: &mut Ties) -> Option<Labels> {
    let mut joined = a.clone();
    for (a, &b) in joined.iter_mut().zip(b) {
        *a = join(*a, b, ties)?;
    }
    Some(joined)
}

/// Labels in another shape of as many elements.
pub(super) fn reshape(labels: Labels, shape: &[usize]) -> Option<Labels> {
    let labels = labels.as_standard_layout().into_owned();
    labels.into_shape_with_order(IxDyn(shape)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn what_was_not_broadcast_keeps_its_labels() {
        let mut ties = Ties::new(2);
        let labels = channels_last(&[3, 2]);
        assert_eq!(labels, array![[0, 1], [0, 1], [0, 1]].into_dyn());
        let same = unbroadcast(&labels, &[3, 2], &mut ties);
        assert_eq!(same, Some(labels));
        assert_eq!(ties.groups(), None);
    }

    #[test]
    fn axes_of_length_one_and_missing_ones_are_broadcast() {
        let mut ties = Ties::new(2);
        let labels = channels_last(&[3, 2]);
        let row = unbroadcast(&labels, &[1, 2], &mut ties);
        assert_eq!(row, Some(array![[0, 1]].into_dyn()));
        let vector = unbroadcast(&labels, &[2], &mut ties);
        assert_eq!(vector, Some(array![0, 1].into_dyn()));
        assert_eq!(ties.groups(), None);
    }

    #[test]
    fn channels_on_one_element_are_tied() {
        let mut ties = Ties::new(4);
        let labels: Labels = array![[0, 2], [1, 3]].into_dyn();
        let column = unbroadcast(&labels, &[2, 1], &mut ties);
        assert_eq!(column, Some(array![[0], [1]].into_dyn()));
        assert_eq!(ties.groups(), Some(vec![0, 1, 0, 1]));
        // Ties add up, whatever their order.
        ties.tie(3, 2);
        assert_eq!(ties.groups(), Some(vec![0, 0, 0, 0]));
    }

    #[test]
    fn an_element_belongs_to_a_channel_or_to_none() {
        let mut ties = Ties::new(2);
        for labels in [array![0, NONE], array![NONE, 0]] {
            assert_eq!(unbroadcast(&labels.into_dyn(), &[1], &mut ties), None);
        }
        let none: Labels = array![NONE, NONE].into_dyn();
        let number = unbroadcast(&none, &[1], &mut ties);
        assert_eq!(number, Some(array![NONE].into_dyn()));
        assert_eq!(ties.groups(), None);
    }

    #[test]
    fn what_nothing_reads_may_become_anything() {
        let mut ties = Ties::new(2);
        let labels: Labels = array![[UNREAD, UNREAD], [0, 1], [UNREAD, UNREAD]].into_dyn();
        let row = unbroadcast(&labels, &[2], &mut ties);
        assert_eq!(row, Some(array![0, 1].into_dyn()));
        let other: Labels = array![[NONE, 0], [0, UNREAD], [UNREAD, 1]].into_dyn();
        let joined = tie_all(&labels, &other, &mut ties);
        let expected = array![[NONE, 0], [0, 1], [UNREAD, 1]].into_dyn();
        assert_eq!(joined, Some(expected));
        assert_eq!(ties.groups(), None);
        let mixed: Labels = array![[UNREAD], [NONE], [0]].into_dyn();
        assert_eq!(unbroadcast(&mixed, &[1], &mut ties), None);
    }

    #[test]
    fn shapes_that_are_not_broadcast_to_each_other_have_no_labels() {
        let mut ties = Ties::new(2);
        let labels = channels_last(&[3, 2]);
        assert_eq!(unbroadcast(&labels, &[4, 2], &mut ties), None);
        assert_eq!(unbroadcast(&labels, &[1, 3, 2], &mut ties), None);
    }

    #[test]
    fn every_row_of_the_right_factor_has_the_labels_of_the_output() {
        let mut ties = Ties::new(4);
        // Two heads of two channels, three rows, from five rows.
        let labels = Labels::from_shape_fn(IxDyn(&[2, 3, 2]), |i| (2 * i[0] + i[2]) as u32);
        let heads = through_product(&labels, &[2, 5, 2], &mut ties).unwrap();
        let expected = Labels::from_shape_fn(IxDyn(&[2, 5, 2]), |i| (2 * i[0] + i[2]) as u32);
        assert_eq!(heads, expected);
        assert_eq!(ties.groups(), None);
        // Both heads read one value.
        for shape in [vec![1, 5, 2], vec![5, 2]] {
            let mut ties = ties.clone();
            let shared = through_product(&labels, &shape, &mut ties).unwrap();
            assert_eq!(
                shared,
                channels_last(&[5, 2]).into_shape_with_order(shape).unwrap()
            );
            assert_eq!(ties.groups(), Some(vec![0, 1, 0, 1]));
        }
        assert_eq!(through_product(&labels, &[2], &mut ties), None);
        assert_eq!(through_product(&labels, &[1, 2, 5, 2], &mut ties), None);
    }

    #[test]
    fn heads_that_share_a_value_tie_its_channels_in_both_forms_of_attention() {
        // Four query heads of two channels, two value heads, three rows from five.
        let labels = channels_last(&[1, 3, 8]);
        let mut ties = Ties::new(8);
        let flat = through_attention(&labels, &[1, 5, 4], Some((4, 2)), &mut ties).unwrap();
        let row = array![[[0, 1, 4, 5]]].into_dyn();
        assert_eq!(flat, row.broadcast(vec![1, 5, 4]).unwrap());
        assert_eq!(ties.groups(), Some(vec![0, 1, 0, 1, 4, 5, 4, 5]));
        let by_head = reshape(labels.clone(), &[1, 3, 4, 2]).unwrap();
        let by_head = by_head.permuted_axes(vec![0, 2, 1, 3]);
        let mut ties = Ties::new(8);
        let heads = through_attention(&by_head, &[1, 2, 5, 2], None, &mut ties).unwrap();
        let same = reshape(flat, &[1, 5, 2, 2]).unwrap();
        assert_eq!(heads, same.permuted_axes(vec![0, 2, 1, 3]));
        assert_eq!(ties.groups(), Some(vec![0, 1, 0, 1, 4, 5, 4, 5]));
        // The number of heads is not known, or does not divide.
        assert_eq!(
            through_attention(&labels, &[1, 5, 4], None, &mut ties),
            None
        );
        assert_eq!(
            through_attention(&by_head, &[1, 3, 5, 2], None, &mut ties),
            None
        );
    }

    #[test]
    fn the_rest_of_a_slice_belongs_to_no_channel() {
        let labels = channels_last(&[1, 2]);
        let whole = unslice(&labels, &[1, 4], 1, Slice::from(1..3), NONE);
        assert_eq!(whole, Some(array![[NONE, 0, 1, NONE]].into_dyn()));
        assert_eq!(unslice(&labels, &[1, 4], 1, Slice::from(1..4), NONE), None);
    }

    #[test]
    fn what_a_gather_picks_keeps_its_labels_and_the_rest_has_none() {
        let mut ties = Ties::new(4);
        let labels: Labels = array![[0, 1], [2, 3]].into_dyn();
        let whole = ungather(labels.clone(), &[3, 2], 0, &[2, 0], NONE, &mut ties);
        assert_eq!(whole, Some(array![[2, 3], [NONE, NONE], [0, 1]].into_dyn()));
        assert_eq!(ties.groups(), None);
        // Both rows are the same one.
        let twice = ungather(labels.clone(), &[3, 2], 0, &[1, 1], NONE, &mut ties);
        assert_eq!(
            twice,
            Some(array![[NONE, NONE], [0, 1], [NONE, NONE]].into_dyn())
        );
        assert_eq!(ties.groups(), Some(vec![0, 1, 0, 1]));
        // One index of rank 0 drops the axis.
        let row: Labels = array![0, 1].into_dyn();
        let column = ungather(row, &[2, 3], 1, &[1], NONE, &mut ties);
        assert_eq!(
            column,
            Some(array![[NONE, 0, NONE], [NONE, 1, NONE]].into_dyn())
        );
        assert_eq!(ungather(labels, &[3, 2], 0, &[1], NONE, &mut ties), None);
    }

    #[test]
    fn a_transposed_value_is_reshaped_in_row_major_order() {
        let labels = channels_last(&[2, 3]).permuted_axes(vec![1, 0]);
        let flat = reshape(labels.clone(), &[6]);
        assert_eq!(flat, Some(array![0, 0, 1, 1, 2, 2].into_dyn()));
        assert_eq!(reshape(labels, &[5]), None);
    }
}
