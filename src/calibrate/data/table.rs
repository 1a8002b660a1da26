//! The arrays of one run of the model.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::calibrate::data::input::NamedArray;

/// Arrays that belong together, one per given input.
#[derive(Debug, Clone)]
pub(super) struct Table {
    /// The arrays, and their batch axes.
    pub(super) arrays: BTreeMap<String, (Arc<NamedArray>, Option<usize>)>,
    pub(super) rows: usize,
    pub(super) first_row: u64,
}

impl Table {
    /// Whether a row, by its number over all tables, is in this one.
    pub(super) fn holds(&self, row: &u64) -> bool {
        (self.first_row..self.first_row + self.rows as u64).contains(row)
    }

    /// The length of its sequences: of the longest of the inputs `[batch, length]`, if there are any.
    pub(super) fn length(&self) -> Option<usize> {
        let lengths =
            self.arrays
                .values()
                .filter_map(|(array, axis)| match (axis, &array.data.shape[..]) {
                    (Some(0), [_, length]) => Some((*length).max(1)),
                    _ => None,
                });
        lengths.max()
    }

    /// Tokens of a row, about: its length, or the longest axis of its inputs.
    pub(super) fn tokens(&self) -> usize {
        let arrays = self
            .arrays
            .values()
            .filter(|(array, _)| array.data.shape.len() > 2);
        let others = arrays.filter_map(|(array, axis)| Some((&array.data.shape, (*axis)?)));
        let longest = others.filter_map(|(shape, batch)| {
            let sizes = shape.iter().enumerate();
            sizes
                .filter(|(axis, _)| *axis != batch)
                .map(|(_, n)| *n)
                .max()
        });
        self.length().or(longest.max()).unwrap_or(1)
    }
}

/// A size of batches, `most` at most, that leaves no smaller one at the end: of a few rows every core is to have some, and each
/// shape takes a plan of its own. `most` where only much smaller ones are equal.
pub(super) fn equal_parts(rows: usize, most: usize) -> usize {
    let equal = (1..=most).rev().find(|size| rows.is_multiple_of(*size));
    equal.filter(|size| size * 4 >= most).unwrap_or(most).max(1)
}

#[cfg(test)]
mod tests {
    #[test]
    fn batches_are_equal_where_they_can_be() {
        let cases = [
            (2, 1, 1),
            (8, 4, 4),
            (7, 4, 1),
            (9, 4, 3),
            (13, 8, 8),
            (0, 0, 1),
            (1, 1, 1),
        ];
        for (rows, most, size) in cases {
            assert_eq!(super::equal_parts(rows, most), size, "{rows} {most}");
        }
    }
}
