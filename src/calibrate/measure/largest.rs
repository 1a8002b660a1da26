//! The tokens of a value that stick out: those with the largest magnitude, kept while the model runs.
//!
//! ```text
//! size of a token x: [C]     max_j |x_j|
//! ```
//!
//! Only a few are kept, ordered by size, row and place, so that they are the same for any number of threads.

use std::cmp::Reverse;

/// One token of a value.
#[derive(Debug, Clone, PartialEq)]
pub struct LargeToken {
    /// The number of its row over all data.
    pub row: u64,
    /// The number of its vector within the row.
    pub vector: u64,
    /// Its place in its sequence and the length of that, padding included; `None` where the shape of the value does not say.
    pub place: Option<(usize, usize)>,
    /// The channel of its largest element.
    pub channel: usize,
    /// That element.
    pub value: f32,
}

impl LargeToken {
    /// The order in which tokens are kept: the largest first; no two of one value are equal.
    fn order(&self) -> (Reverse<u32>, u64, u64) {
        (Reverse(bits(self.value)), self.row, self.vector)
    }
}

/// |x| of finite numbers as integers in the same order, which vectorize.
fn bits(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// The size of a token, in an order-preserving form.
fn size(x: &[f32]) -> u32 {
    x.iter().fold(0, |largest, v| largest.max(bits(*v)))
}

/// The largest tokens so far.
#[derive(Debug, Default)]
pub(super) struct Largest {
    tokens: Vec<LargeToken>,
    limit: usize,
}

impl Largest {
    /// Keeps at most `limit` tokens.
    pub(super) fn new(limit: usize) -> Largest {
        Largest {
            tokens: Vec::new(),
            limit,
        }
    }

    /// Looks at one token: `x` is finite, and `at` gives row, vector and place.
    pub(super) fn offer(
        &mut self,
        x: &[f32],
        at: impl FnOnce() -> (u64, u64, Option<(usize, usize)>),
    ) {
        let size = size(x);
        let least = self.tokens.last().map_or(0, |t| bits(t.value));
        if self.limit == 0 || (self.tokens.len() == self.limit && size < least) {
            return;
        }
        let Some(channel) = x.iter().position(|v| bits(*v) == size) else {
            return;
        };
        let (row, vector, place) = at();
        self.insert(LargeToken {
            row,
            vector,
            place,
            channel,
            value: x[channel],
        });
    }

    /// Takes the tokens of another batch.
    pub(super) fn merge(&mut self, other: Largest) {
        other.tokens.into_iter().for_each(|t| self.insert(t));
    }

    fn insert(&mut self, token: LargeToken) {
        let at = self.tokens.partition_point(|t| t.order() < token.order());
        self.tokens.insert(at, token);
        self.tokens.truncate(self.limit);
    }

    /// The largest first.
    pub(super) fn into_tokens(self) -> Vec<LargeToken> {
        self.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(limit: usize, tokens: &[(u64, u64, [f32; 3])]) -> Largest {
        let mut largest = Largest::new(limit);
        for (row, vector, x) in tokens {
            largest.offer(x, || (*row, *vector, Some((*vector as usize, 9))));
        }
        largest
    }

    const TOKENS: [(u64, u64, [f32; 3]); 5] = [
        (0, 0, [1.0, -2.0, 0.5]),
        (0, 1, [0.0, -0.0, 0.0]),
        (1, 0, [7.0, 3.0, -7.5]),
        (1, 1, [2.0, 0.0, 0.0]),
        (2, 4, [-9.0, 9.0, 8.0]),
    ];

    #[test]
    fn the_largest_come_first_with_their_channel() {
        let found = of(3, &TOKENS).into_tokens();
        let seen: Vec<_> = found
            .iter()
            .map(|t| (t.row, t.vector, t.channel, t.value))
            .collect();
        // Of equals the first.
        assert_eq!(seen, [(2, 4, 0, -9.0), (1, 0, 2, -7.5), (0, 0, 1, -2.0)]);
        assert_eq!(found[0].place, Some((4, 9)));
        assert!(of(0, &TOKENS).into_tokens().is_empty());
    }

    #[test]
    fn any_order_and_any_split_give_the_same() {
        let whole = of(3, &TOKENS).into_tokens();
        for at in 0..TOKENS.len() {
            let mut parts = of(3, &TOKENS[at..]);
            parts.merge(of(3, &TOKENS[..at]));
            assert_eq!(parts.into_tokens(), whole);
        }
        let mut backwards = TOKENS;
        backwards.reverse();
        assert_eq!(of(3, &backwards).into_tokens(), whole);
    }
}
