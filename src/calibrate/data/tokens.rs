//! Which token each vector of an activation belongs to.
//!
//! An activation of shape `[…, C]` is a list of vectors. From the batch's rows and masks, [`TokenContext::places`] tells for
//! each vector its row, its position within the row, and whether it is padding.
//!
//! Which axis holds rows and which tokens, in whatever layout, is told by where the axes come from
//! ([`Axes`](crate::graph::axes)), and so is the sequence that a mask is of: the one whose tokens it is laid over. A length says
//! nothing, because the two sequences of an encoder–decoder may have the same. Only of a value behind an operator without a
//! rule the shape is asked, and only in a batch of one kind of sequence: with B rows and S tokens `[B, S, …, C]`, `[B·S, C]`,
//! `[S, B, C]` (S ≠ B), `[B, heads, S, C]`, `[B·heads, S, C]`; otherwise `[B, …, C]` and `[B·n, C]` without a mask. Anything else
//! belongs to the batch as a whole.

use std::sync::Arc;

use ndarray::Array2;

use crate::calibrate::data::input::{Batch, PaddingMask};
use crate::graph::axes::{Axes, Axis, Symbol};

/// What is needed of a batch to place its vectors.
#[derive(Debug, Clone)]
pub(in crate::calibrate) struct TokenContext {
    pub rows: Vec<u64>,
    axes: Arc<Axes>,
    /// Masks with the axis whose tokens they are of.
    masks: Vec<(Symbol, Array2<bool>)>,
    /// The mask and the length of the batch's sequences, if they are of one kind.
    sole: Sole,
}

/// What is known of the sequences of a batch whose sequences are all of one kind.
#[derive(Debug, Clone, Default)]
struct Sole {
    mask: Option<Array2<bool>>,
    length: Option<usize>,
}

/// The place of one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::calibrate) struct Place {
    /// Index into the batch's rows; `None` if the vector belongs to no single row.
    pub row: Option<usize>,
    /// Number of the vector within its row.
    pub position: u64,
    /// Place in its sequence and the length of that; `None` if the shape does not tell.
    pub token: Option<(usize, usize)>,
    /// False for padding.
    pub keep: bool,
}

/// How the leading axes hold batch and sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// `lead[batch]` is B and `lead[sequence]` is S.
    Axes { batch: usize, sequence: usize },
    /// One leading axis of B·S.
    Flat,
    /// `[B·heads, S]`.
    Heads { heads: usize },
}

impl TokenContext {
    /// For the values of a plan whose axes are these.
    pub(in crate::calibrate) fn new(batch: &Batch, axes: Arc<Axes>) -> TokenContext {
        let located = |mask: &PaddingMask| Some((symbol(&axes, batch, mask)?, mask.real.clone()));
        TokenContext {
            rows: batch.rows.clone(),
            masks: batch.masks.iter().filter_map(located).collect(),
            sole: Sole::of(&axes, batch),
            axes,
        }
    }

    /// The global number of the row at `index`; of the batch's first row for a value that belongs to no single row.
    pub(crate) fn row(&self, index: Option<usize>) -> u64 {
        self.rows.get(index.unwrap_or(0)).copied().unwrap_or(0)
    }

    /// The mask of the batch's sequences, if they are all of one kind.
    pub(crate) fn sole_mask(&self) -> Option<&Array2<bool>> {
        self.sole.mask.as_ref()
    }

    /// The places of the vectors of the value `name` of this `shape`, in row-major order; of its transpose if `reversed`.
    pub(crate) fn places(&self, name: &str, shape: &[usize], reversed: bool) -> Vec<Place> {
        let lead = shape.len().saturating_sub(1);
        let mut axes = self.axes.of(name).map(<[Axis]>::to_vec);
        if let Some(axes) = axes.as_mut().filter(|_| reversed) {
            axes.reverse();
        }
        match axes.filter(|axes| axes.len() == shape.len()) {
            Some(axes) => self.of_axes(&axes[..lead], &shape[..lead]),
            None => self.of_shape(&shape[..lead]),
        }
    }

    /// The places of what the first axes of a value count; `shape` has their sizes.
    pub(crate) fn of_first(&self, name: &str, shape: &[usize]) -> Option<Vec<Place>> {
        let axes = self.axes.of(name)?.get(..shape.len())?;
        Some(self.of_axes(axes, shape))
    }

    fn of_axes(&self, lead: &[Axis], shape: &[usize]) -> Vec<Place> {
        let axes = &*self.axes;
        let row = axes
            .rows()
            .and_then(|rows| Coordinate::new(axes, lead, rows));
        let along = |(symbol, real)| Some((Coordinate::single(axes, lead, symbol)?, real));
        let masks: Vec<_> = self
            .masks
            .iter()
            .map(|(s, m)| (*s, m))
            .filter_map(along)
            .collect();
        let is_token = |s: &Symbol| {
            axes.rows()
                .is_none_or(|rows| axes.offset(*s, rows).is_none())
        };
        let first = lead
            .iter()
            .flatten()
            .filter_map(|f| Some(f.origin?.0))
            .find(is_token);
        let token = first.and_then(|s| Some((Coordinate::single(axes, lead, s)?, axes.size(s))));
        let count = shape.iter().product();
        let mut seen = vec![0u64; self.rows.len() + 1];
        let mut index = vec![0; shape.len()];
        let mut places = Vec::with_capacity(count);
        for _ in 0..count {
            let row = match &row {
                Some(row) => usize::try_from(row.at(&index))
                    .ok()
                    .filter(|r| *r < self.rows.len()),
                // All that one row alone gives belongs to it.
                None => (self.rows.len() == 1).then_some(0),
            };
            let position = &mut seen[row.map_or(0, |r| r + 1)];
            let real = |(along, real): &(Coordinate, &Array2<bool>)| {
                let token = usize::try_from(along.at(&index)).ok();
                let known = row.zip(token).and_then(|(r, t)| real.get([r, t]));
                known.is_none_or(|real| *real)
            };
            places.push(Place {
                row,
                position: *position,
                token: token
                    .as_ref()
                    .and_then(|(at, len)| Some((usize::try_from(at.at(&index)).ok()?, *len))),
                keep: masks.iter().all(real),
            });
            *position += 1;
            // The next index in row-major order.
            for (i, size) in index.iter_mut().zip(shape).rev() {
                *i += 1;
                if *i < *size {
                    break;
                }
                *i = 0;
            }
        }
        places
    }

    /// The places by the shape alone.
    fn of_shape(&self, lead: &[usize]) -> Vec<Place> {
        let b = self.rows.len();
        if let Some(mask) = &self.sole.mask
            && let Some(layout) = layout(lead, b, mask.ncols())
        {
            return arrange(lead, b, layout, mask.ncols(), |r, s| mask[[r, s]]);
        }
        if let Some(s) = self.sole.length.filter(|_| self.sole.mask.is_none())
            && let Some(layout) = layout(lead, b, s)
        {
            return arrange(lead, b, layout, s, |_, _| true);
        }
        let count: usize = lead.iter().product();
        // Vectors per row if the first axis holds the rows, possibly several vectors each.
        let per_row = match lead {
            _ if b == 1 => Some(count),
            [n] if b > 0 && n % b == 0 => Some(n / b),
            [n, ..] if *n == b => Some(count / b.max(1)),
            _ => None,
        };
        let place = |i: usize| {
            let (row, position) = match per_row.filter(|n| *n > 0) {
                Some(n) => (Some(i / n), (i % n) as u64),
                None => (None, i as u64),
            };
            Place {
                row,
                position,
                token: None,
                keep: true,
            }
        };
        (0..count).map(place).collect()
    }
}

/// The element of a symbol's axis that an index is.
struct Coordinate {
    offset: i64,
    /// Per axis, for every index; empty where it adds nothing.
    parts: Vec<Vec<i64>>,
}

impl Coordinate {
    /// Along the axis of `symbol`; `None` if none of `axes` is of its tokens.
    fn new(axes: &Axes, of: &[Axis], symbol: Symbol) -> Option<Coordinate> {
        let own = |axis: &Axis| {
            let mut offset = None;
            let mut values = vec![0i64];
            for factor in axis {
                let origin = factor
                    .origin
                    .and_then(|(s, start, step)| Some((axes.offset(s, symbol)?, start, step)));
                if let Some((by, start, _)) = origin {
                    offset = Some(offset.unwrap_or(by) + start as i64);
                }
                let step = origin.map_or(0, |(.., step)| step as i64);
                let next = values
                    .iter()
                    .flat_map(|v| (0..factor.size as i64).map(move |i| v + i * step));
                values = next.collect();
            }
            Some((offset?, values))
        };
        let parts: Vec<_> = of.iter().map(own).collect();
        let mut offsets = parts.iter().flatten().map(|(offset, _)| *offset);
        // Parts of one axis share where it starts.
        let first = offsets.next()?;
        Some(Coordinate {
            offset: first,
            parts: parts
                .into_iter()
                .map(|p| p.map_or_else(Vec::new, |(_, values)| values))
                .collect(),
        })
    }

    /// [`Coordinate::new`], if it tells single tokens and not windows of several.
    fn single(axes: &Axes, of: &[Axis], symbol: Symbol) -> Option<Coordinate> {
        let steps = of
            .iter()
            .flatten()
            .filter_map(|f| f.origin.filter(|_| f.size > 1));
        let steps = steps.filter(|(s, ..)| axes.offset(*s, symbol).is_some());
        let least = steps.map(|(.., step)| step).min();
        Coordinate::new(axes, of, symbol).filter(|_| least.is_none_or(|step| step == 1))
    }

    fn at(&self, index: &[usize]) -> i64 {
        let part = |(values, &i): (&Vec<i64>, &usize)| values.get(i).copied().unwrap_or(0);
        self.offset + self.parts.iter().zip(index).map(part).sum::<i64>()
    }
}

/// The axis that a mask is laid over: its own last one, if the model lays it over tokens; else, where it only counts them, the
/// one of another input that the model gives the same name, or the only one that there is.
fn symbol(axes: &Axes, batch: &Batch, mask: &PaddingMask) -> Option<Symbol> {
    let length = mask.real.ncols();
    let own = axes
        .of_input(&mask.input)
        .and_then(|s| s.iter().copied().rev().find(|s| axes.size(*s) == length));
    let tokens = sequences(axes, batch);
    if let Some(own) = own
        && tokens.iter().any(|t| axes.offset(own, *t).is_some())
    {
        return Some(own);
    }
    let alike: Vec<Symbol> = tokens
        .into_iter()
        .filter(|t| axes.size(*t) == length)
        .collect();
    let first = *alike.first()?;
    let of_one_kind = alike.iter().all(|t| axes.offset(*t, first) == Some(0));
    of_one_kind.then_some(first)
}

/// The axes of inputs that hold tokens: the first behind the rows, of what is no mask.
fn sequences(axes: &Axes, batch: &Batch) -> Vec<Symbol> {
    let is_mask = |name: &str| batch.masks.iter().any(|mask| mask.input == name);
    let inputs = axes.inputs().filter(|(name, symbols)| {
        symbols.len() > 1 && axes.rows() == symbols.first().copied() && !is_mask(name)
    });
    inputs
        .map(|(_, symbols)| symbols[1])
        .filter(|s| axes.size(*s) > 0)
        .collect()
}

impl Sole {
    fn of(axes: &Axes, batch: &Batch) -> Sole {
        let tokens = sequences(axes, batch);
        let Some(&first) = tokens.first() else {
            return Sole::default();
        };
        if tokens.iter().any(|t| axes.offset(*t, first).is_none()) || batch.masks.len() > 1 {
            return Sole::default();
        }
        let mask = batch.masks.first().map(|mask| mask.real.clone());
        let integer = |(name, symbols): (&str, &[Symbol])| {
            let ids = symbols.len() == 2 && symbols[1] == first;
            ids && batch
                .inputs
                .get(name)
                .is_some_and(|input| !crate::onnx::tensor::is_float(input.dtype()))
        };
        Sole {
            mask,
            length: axes.inputs().any(integer).then(|| axes.size(first)),
        }
    }
}

fn layout(lead: &[usize], b: usize, s: usize) -> Option<Layout> {
    let axes = |batch, sequence| Some(Layout::Axes { batch, sequence });
    match lead {
        [n] if *n == b * s => Some(Layout::Flat),
        [n, t, ..] if (*n, *t) == (b, s) => axes(0, 1),
        [t, n] if (*n, *t) == (b, s) => axes(1, 0),
        [n, _, t, ..] if (*n, *t) == (b, s) => axes(0, 2),
        [n, t] if *t == s && b > 0 && *n > b && n % b == 0 => Some(Layout::Heads { heads: n / b }),
        _ => None,
    }
}

fn arrange(
    lead: &[usize],
    b: usize,
    layout: Layout,
    s: usize,
    real: impl Fn(usize, usize) -> bool,
) -> Vec<Place> {
    let count: usize = lead.iter().product();
    // The number of a vector within its row is the number of vectors of that row before it.
    let mut seen = vec![0u64; b];
    let strides: Vec<usize> = (0..lead.len())
        .map(|axis| lead[axis + 1..].iter().product())
        .collect();
    (0..count)
        .map(|i| {
            let index = |axis: usize| i / strides[axis] % lead[axis];
            let (row, token) = match layout {
                Layout::Axes { batch, sequence } => (index(batch), index(sequence)),
                Layout::Flat => (i / s, i % s),
                Layout::Heads { heads } => (index(0) / heads, index(1)),
            };
            let position = seen[row];
            seen[row] += 1;
            Place {
                row: Some(row),
                position,
                token: Some((token, s)),
                keep: real(row, token),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::calibrate::data::array::Values;
    use crate::calibrate::data::input::InputTensor;
    use ndarray::{ArrayD, IxDyn, array};

    /// Two rows of three tokens, of which nothing else is known.
    fn batch(masks: Vec<PaddingMask>) -> (Batch, Arc<Axes>) {
        let ids = InputTensor::from_values(Values::I64(ArrayD::zeros(IxDyn(&[2, 3]))));
        let inputs = BTreeMap::from([("ids".to_owned(), ids)]);
        let mut axes = Axes::new();
        axes.input("ids", &[2, 3], true);
        let batch = Batch {
            masks,
            ..Batch::new(inputs, vec![10, 11])
        };
        (batch, Arc::new(axes))
    }

    fn context() -> TokenContext {
        let real = array![[true, true, false], [true, false, false]];
        let (batch, axes) = batch(vec![PaddingMask::new("mask", real)]);
        TokenContext::new(&batch, axes)
    }

    /// The places of a value behind an operator without a rule.
    fn places_of(context: &TokenContext, shape: &[usize]) -> Vec<Place> {
        context.places("unknown", shape, false)
    }
    /// Row and keep of each vector, e.g. "0+ 0+ 0- 1+ 1- 1-".
    fn text(places: &[Place]) -> String {
        let text: Vec<String> = places
            .iter()
            .map(|p| {
                let row = p.row.map_or("*".into(), |r| r.to_string());
                format!("{row}{}", if p.keep { "+" } else { "-" })
            })
            .collect();
        text.join(" ")
    }

    #[test]
    fn recognised_shapes_use_the_mask() {
        let c = context();
        assert_eq!(text(&places_of(&c, &[2, 3, 5])), "0+ 0+ 0- 1+ 1- 1-");
        assert_eq!(text(&places_of(&c, &[6, 5])), "0+ 0+ 0- 1+ 1- 1-");
        assert_eq!(text(&places_of(&c, &[3, 2, 5])), "0+ 1+ 0+ 1- 0- 1-");
        assert_eq!(
            text(&places_of(&c, &[2, 3, 2, 5])),
            "0+ 0+ 0+ 0+ 0- 0- 1+ 1+ 1- 1- 1- 1-"
        );
        assert_eq!(
            text(&places_of(&c, &[2, 2, 3, 5])),
            "0+ 0+ 0- 0+ 0+ 0- 1+ 1- 1- 1+ 1- 1-"
        );
        assert_eq!(
            text(&places_of(&c, &[4, 3, 5])),
            "0+ 0+ 0- 0+ 0+ 0- 1+ 1- 1- 1+ 1- 1-"
        );
    }

    #[test]
    fn other_shapes_keep_everything() {
        let c = context();
        assert_eq!(text(&places_of(&c, &[2, 5])), "0+ 1+");
        assert_eq!(text(&places_of(&c, &[4, 5])), "0+ 0+ 1+ 1+");
        assert_eq!(text(&places_of(&c, &[1, 3, 5])), "*+ *+ *+");
        assert_eq!(text(&places_of(&c, &[5])), "*+");
    }

    #[test]
    fn positions_count_the_vectors_of_a_row() {
        let places = places_of(&context(), &[3, 2, 5]);
        let positions: Vec<u64> = places.iter().map(|p| p.position).collect();
        assert_eq!(positions, [0, 0, 1, 1, 2, 2]);
        // Two heads of two rows: the second head's vectors are of the same tokens.
        let places = places_of(&context(), &[2, 2, 3, 5]);
        let tokens: Vec<usize> = places.iter().map(|p| p.token.unwrap().0).collect();
        assert_eq!(tokens, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]);
        assert_eq!(places[5].token, Some((2, 3)));
        assert!(
            places_of(&context(), &[2, 5])
                .iter()
                .all(|p| p.token.is_none())
        );
    }

    #[test]
    fn without_a_mask_the_sequence_length_tells_the_axes() {
        let (batch, axes) = batch(vec![]);
        let c = TokenContext::new(&batch, axes);
        assert_eq!(text(&places_of(&c, &[3, 2, 5])), "0+ 1+ 0+ 1+ 0+ 1+");
        assert_eq!(text(&places_of(&c, &[6, 5])), "0+ 0+ 0+ 1+ 1+ 1+");
    }

    #[test]
    fn a_length_identifies_no_sequence() {
        let real = array![[true, true, false], [true, false, false]];
        let (mut batch, _) = batch(vec![PaddingMask::new("mask", real)]);
        batch
            .inputs
            .insert("other".into(), batch.inputs["ids"].clone());
        let mut axes = Axes::new();
        for input in ["ids", "other", "mask"] {
            axes.input(input, &[2, 3], true);
        }
        let c = TokenContext::new(&batch, Arc::new(axes));
        for value in ["ids", "other", "unknown"] {
            assert!(c.places(value, &[2, 3, 5], false).iter().all(|p| p.keep));
        }
    }

    #[test]
    fn what_one_row_gives_belongs_to_it() {
        let (mut batch, _) = batch(vec![]);
        batch.rows = vec![7];
        let c = TokenContext::new(&batch, Arc::new(Axes::new()));
        assert_eq!(text(&places_of(&c, &[3, 1, 5])), "0+ 0+ 0+");
    }
}
