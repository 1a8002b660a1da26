//! Which rows of a user's files the rows of the data are.

use serde::{Deserialize, Serialize};

use crate::calibrate::data::sources::Origin;

/// The origin of every row, in the order of the data.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Origins {
    rows: Vec<usize>,
    /// Rows of all files but the last, and of those.
    before: usize,
    last: usize,
}

impl Origins {
    /// Adds the rows of a table; without an origin they are all rows of a file, in its order.
    pub(super) fn add(&mut self, rows: usize, origin: Option<&Origin>) {
        if origin.is_none_or(|origin| origin.first) {
            self.before += self.last;
            self.last = origin.map_or(rows, |origin| origin.of);
        }
        let numbers = (0..rows).map(|at| match origin {
            Some(origin) => origin.rows.get(at).copied().unwrap_or(at),
            None => at,
        });
        self.rows.extend(numbers.map(|number| self.before + number));
    }

    /// That of a row; where nothing is known, the row's own number.
    pub(super) fn of(&self, row: u64) -> usize {
        let at = row as usize;
        self.rows.get(at).copied().unwrap_or(at)
    }

    /// The rows of the data.
    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Rows of all files.
    pub(super) fn all(&self) -> usize {
        self.before + self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_over_all_files() {
        let mut origins = Origins::default();
        let made = |rows: &[usize], of, first| Origin {
            rows: rows.to_vec(),
            of,
            first,
        };
        // 10 rows of text, of which 3 are used, in two tables by length; then 2 rows of arrays; then text again.
        origins.add(2, Some(&made(&[9, 0], 10, true)));
        origins.add(1, Some(&made(&[4], 10, false)));
        origins.add(2, None);
        origins.add(1, Some(&made(&[1], 3, true)));
        let found: Vec<usize> = (0..6).map(|row| origins.of(row)).collect();
        assert_eq!(found, [9, 0, 4, 10, 11, 13]);
        assert_eq!(origins.all(), 15);
    }
}
