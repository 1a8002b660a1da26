//! Which token each vector of an activation belongs to.
//!
//! An activation of shape `[…, C]` is a list of vectors. From the batch's rows and masks, [`places`] tells for each
//! vector its row, its position within the row, and whether it is padding. Recognised shapes, with B rows and S tokens:
//! `[B, S, …, C]`, `[B·S, C]`, `[S, B, C]` (S ≠ B), `[B, heads, S, C]`, `[B·heads, S, C]`; otherwise `[B, …, C]` and
//! `[B·n, C]` without a mask. Anything else belongs to the batch as a whole.

use ndarray::Array2;

use crate::calibrate::data::input::Batch;

/// What is needed of a batch to place its vectors.
#[derive(Debug, Clone)]
pub(in crate::calibrate) struct TokenContext {
    pub rows: Vec<u64>,
    masks: Vec<Array2<bool>>,
    /// Sequence length of a batch without a mask, from its first input `[B, S]`.
    sequence: Option<usize>,
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
    pub(crate) fn new(batch: &Batch) -> TokenContext {
        let b = batch.rows.len();
        let sequence = batch.inputs.values().find_map(|input| {
            let integer = !crate::onnx::tensor::is_float(input.dtype());
            match input.shape() {
                &[n, s] if n == b && integer => Some(s),
                _ => None,
            }
        });
        TokenContext {
            rows: batch.rows.clone(),
            masks: batch
                .mask
                .iter()
                .chain(&batch.further_masks)
                .cloned()
                .collect(),
            sequence,
        }
    }

    /// The global number of the row at `index`; of the batch's first row for a value that belongs to no single row.
    pub(crate) fn row(&self, index: Option<usize>) -> u64 {
        self.rows.get(index.unwrap_or(0)).copied().unwrap_or(0)
    }

    /// The places of the vectors of a value of this `shape`, in row-major order.
    pub(crate) fn places(&self, shape: &[usize]) -> Vec<Place> {
        let lead = &shape[..shape.len().saturating_sub(1)];
        let b = self.rows.len();
        for mask in &self.masks {
            if let Some(layout) = layout(lead, b, mask.ncols()) {
                return arrange(lead, b, layout, mask.ncols(), |r, s| mask[[r, s]]);
            }
        }
        if let Some(s) = self.sequence.filter(|_| self.masks.is_empty())
            && let Some(layout) = layout(lead, b, s)
        {
            return arrange(lead, b, layout, s, |_, _| true);
        }
        let count: usize = lead.iter().product();
        // Vectors per row if the first axis holds the rows, possibly several vectors each.
        let per_row = match lead {
            [n] if b > 0 && n % b == 0 => Some(n / b),
            [n, ..] if *n == b => Some(count / b.max(1)),
            _ => None,
        };
        (0..count)
            .map(|i| match per_row.filter(|n| *n > 0) {
                Some(n) => Place {
                    row: Some(i / n),
                    position: (i % n) as u64,
                    token: None,
                    keep: true,
                },
                None => Place {
                    row: None,
                    position: i as u64,
                    token: None,
                    keep: true,
                },
            })
            .collect()
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
    use super::*;
    use ndarray::array;

    fn context() -> TokenContext {
        TokenContext {
            rows: vec![10, 11],
            masks: vec![array![[true, true, false], [true, false, false]]],
            sequence: None,
        }
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
        assert_eq!(text(&c.places(&[2, 3, 5])), "0+ 0+ 0- 1+ 1- 1-");
        assert_eq!(text(&c.places(&[6, 5])), "0+ 0+ 0- 1+ 1- 1-");
        assert_eq!(text(&c.places(&[3, 2, 5])), "0+ 1+ 0+ 1- 0- 1-");
        assert_eq!(
            text(&c.places(&[2, 3, 2, 5])),
            "0+ 0+ 0+ 0+ 0- 0- 1+ 1+ 1- 1- 1- 1-"
        );
        assert_eq!(
            text(&c.places(&[2, 2, 3, 5])),
            "0+ 0+ 0- 0+ 0+ 0- 1+ 1- 1- 1+ 1- 1-"
        );
        assert_eq!(
            text(&c.places(&[4, 3, 5])),
            "0+ 0+ 0- 0+ 0+ 0- 1+ 1- 1- 1+ 1- 1-"
        );
    }

    #[test]
    fn other_shapes_keep_everything() {
        let c = context();
        assert_eq!(text(&c.places(&[2, 5])), "0+ 1+");
        assert_eq!(text(&c.places(&[4, 5])), "0+ 0+ 1+ 1+");
        assert_eq!(text(&c.places(&[1, 3, 5])), "*+ *+ *+");
        assert_eq!(text(&c.places(&[5])), "*+");
    }

    #[test]
    fn positions_count_the_vectors_of_a_row() {
        let places = context().places(&[3, 2, 5]);
        let positions: Vec<u64> = places.iter().map(|p| p.position).collect();
        assert_eq!(positions, [0, 0, 1, 1, 2, 2]);
        // Two heads of two rows: the second head's vectors are of the same tokens.
        let places = context().places(&[2, 2, 3, 5]);
        let tokens: Vec<usize> = places.iter().map(|p| p.token.unwrap().0).collect();
        assert_eq!(tokens, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]);
        assert_eq!(places[5].token, Some((2, 3)));
        assert!(context().places(&[2, 5]).iter().all(|p| p.token.is_none()));
    }

    #[test]
    fn without_a_mask_the_sequence_length_tells_the_axes() {
        let c = TokenContext {
            masks: vec![],
            sequence: Some(3),
            ..context()
        };
        assert_eq!(text(&c.places(&[3, 2, 5])), "0+ 1+ 0+ 1+ 0+ 1+");
        assert_eq!(text(&c.places(&[6, 5])), "0+ 0+ 0+ 1+ 1+ 1+");
    }
}
