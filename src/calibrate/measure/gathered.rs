//! Statistics that are not finished: of some batches, to be merged with those of the others.
//!
//! Minimum, maximum and count of a union follow from those of its parts, and so do the `k` tokens of the smallest priorities
//! (bottom-k sampling): merged in any order and finished, parts give the very bytes of one run over all.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::calibrate::engine::error::EngineError;
use crate::calibrate::measure::channel_stats::{ChannelStats, FoldStats, Statistics};

/// A token's place in the order of sampling. Rows and positions make it unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub priority: u64,
    pub row: u64,
    pub position: u64,
}

/// What is known of one half of the tokens of a value.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct GatheredFold {
    /// `[C]`; empty before there was a token.
    pub min: Vec<f32>,
    pub max: Vec<f32>,
    pub tokens: u64,
    /// The smallest keys, ascending.
    pub keys: Vec<Key>,
    /// `[keys, C]`.
    pub vectors: Vec<f32>,
}

/// What is known of one value.
#[derive(Debug, Clone, PartialEq)]
pub struct Gathered {
    pub(super) rank: usize,
    /// Most tokens kept per fold.
    pub(super) sample_tokens: usize,
    pub(super) folds: [GatheredFold; 2],
}

/// Values by name.
pub type GatheredStatistics = BTreeMap<String, Gathered>;

impl GatheredFold {
    fn merge(&mut self, other: GatheredFold, limit: usize) -> Result<(), (usize, usize)> {
        if self.min.is_empty() {
            *self = other;
            return Ok(());
        }
        if other.min.is_empty() {
            return Ok(());
        }
        let channels = self.min.len();
        if other.min.len() != channels {
            return Err((channels, other.min.len()));
        }
        let lower = |(a, b): (&mut f32, &f32)| *a = a.min(*b);
        self.min.iter_mut().zip(&other.min).for_each(lower);
        let higher = |(a, b): (&mut f32, &f32)| *a = a.max(*b);
        self.max.iter_mut().zip(&other.max).for_each(higher);
        self.tokens += other.tokens;
        let own = self
            .keys
            .iter()
            .zip(self.vectors.chunks_exact(channels.max(1)));
        let theirs = other
            .keys
            .iter()
            .zip(other.vectors.chunks_exact(channels.max(1)));
        let mut all: Vec<(&Key, &[f32])> = own.chain(theirs).collect();
        all.sort_by_key(|(key, _)| **key);
        all.truncate(limit);
        let keys = all.iter().map(|(key, _)| **key).collect();
        let vectors = all.iter().flat_map(|(_, x)| x.iter().copied()).collect();
        (self.keys, self.vectors) = (keys, vectors);
        Ok(())
    }

    fn finish(self) -> FoldStats {
        let channels = self.min.len();
        let mut tokens: Vec<(Key, usize)> = self.keys.into_iter().zip(0..).collect();
        tokens.sort_by_key(|(key, _)| (key.row, key.position));
        let mut sample = Vec::with_capacity(tokens.len() * channels);
        for (_, slot) in &tokens {
            sample.extend_from_slice(&self.vectors[slot * channels..][..channels]);
        }
        #[expect(clippy::expect_used, reason = "every key has `channels` values")]
        let sample =
            Array2::from_shape_vec((tokens.len(), channels), sample).expect("one vector per token");
        // −0 and 0 are equal, so which of them is "the minimum" depends on the order; adding 0 makes both 0.
        let positive_zero = |values: Vec<f32>| values.into_iter().map(|v| v + 0.0).collect();
        FoldStats {
            min: positive_zero(self.min),
            max: positive_zero(self.max),
            tokens: self.tokens,
            sample,
            places: tokens
                .iter()
                .map(|(key, _)| (key.row, key.position))
                .collect(),
            weights: None,
        }
    }
}

impl Gathered {
    /// Adds what is known from other batches.
    ///
    /// # Errors
    /// [`EngineError::Channels`].
    pub(super) fn merge(&mut self, name: &str, other: Gathered) -> Result<(), EngineError> {
        self.rank = self.rank.max(other.rank);
        for (own, theirs) in self.folds.iter_mut().zip(other.folds) {
            own.merge(theirs, self.sample_tokens)
                .map_err(|(expected, found)| EngineError::Channels {
                    name: name.to_owned(),
                    expected,
                    found,
                })?;
        }
        Ok(())
    }

    /// # Errors
    /// [`EngineError::NoTokens`].
    pub(super) fn finish(self, name: &str) -> Result<ChannelStats, EngineError> {
        let folds = match self.folds.map(GatheredFold::finish) {
            [a, b] if a.tokens == 0 && b.tokens == 0 => {
                return Err(EngineError::NoTokens {
                    name: name.to_owned(),
                });
            }
            [a, b] if b.tokens == 0 => [a.clone(), a],
            [a, b] if a.tokens == 0 => [b.clone(), b],
            folds => folds,
        };
        Ok(ChannelStats {
            rank: self.rank,
            folds,
        })
    }
}

/// Adds the statistics of other batches to those of some.
///
/// # Errors
/// A value with another number of channels.
pub fn merge(all: &mut GatheredStatistics, part: GatheredStatistics) -> Result<(), EngineError> {
    for (name, new) in part {
        match all.get_mut(&name) {
            Some(known) => known.merge(&name, new)?,
            None => _ = all.insert(name, new),
        }
    }
    Ok(())
}

/// The statistics of all batches.
///
/// # Errors
/// A value of which every token is padding.
pub fn finish(all: GatheredStatistics) -> Result<Statistics, EngineError> {
    let finished = all.into_iter().map(|(name, gathered)| {
        let stats = gathered.finish(&name)?;
        Ok((name, stats))
    });
    finished.collect()
}

/// How a value lies in a file: its counts, in the order of the numbers behind.
#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    rank: usize,
    sample_tokens: usize,
    /// Channels, tokens, keys of each fold.
    folds: [(usize, u64, usize); 2],
}

/// Writes statistics: the length of a JSON header in 8 bytes, the header, then per value and fold the minima and maxima, the
/// keys as (priority, row, position) and the vectors, all little endian.
///
/// # Errors
/// What the system says.
pub fn write(all: &GatheredStatistics, to: &mut impl Write) -> io::Result<()> {
    let entry = |(name, g): (&String, &Gathered)| Entry {
        name: name.clone(),
        rank: g.rank,
        sample_tokens: g.sample_tokens,
        folds: [0, 1].map(|i| {
            let fold = &g.folds[i];
            (fold.min.len(), fold.tokens, fold.keys.len())
        }),
    };
    let header = serde_json::to_vec(&all.iter().map(entry).collect::<Vec<_>>())?;
    to.write_all(&(header.len() as u64).to_le_bytes())?;
    to.write_all(&header)?;
    for fold in all.values().flat_map(|g| &g.folds) {
        for value in fold.min.iter().chain(&fold.max) {
            to.write_all(&value.to_le_bytes())?;
        }
        for key in &fold.keys {
            for number in [key.priority, key.row, key.position] {
                to.write_all(&number.to_le_bytes())?;
            }
        }
        for value in &fold.vectors {
            to.write_all(&value.to_le_bytes())?;
        }
    }
    Ok(())
}

/// Bytes of a header, at most.
const LARGEST_HEADER: u64 = 256 << 20;

/// Reads what [`write()`] has written.
///
/// # Errors
/// What the system says; a file that is cut off or damaged.
pub fn read(from: &mut impl Read) -> io::Result<GatheredStatistics> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > LARGEST_HEADER {
        return Err(damaged("its header has an impossible length"));
    }
    let mut header = Vec::new();
    from.take(length).read_to_end(&mut header)?;
    let entries: Vec<Entry> = serde_json::from_slice(&header)?;
    let mut all = GatheredStatistics::new();
    for entry in entries {
        let [a, b] = entry.folds;
        let mut fold = |(channels, tokens, keys): (usize, u64, usize)| -> io::Result<GatheredFold> {
            let sampled = keys
                .checked_mul(channels)
                .ok_or_else(|| damaged("its sizes are impossible"))?;
            let (min, max) = (floats(from, channels)?, floats(from, channels)?);
            let numbers = bytes(from, keys, 24)?;
            let number = |b: &[u8]| {
                b.iter()
                    .rev()
                    .fold(0u64, |n, &byte| n << 8 | u64::from(byte))
            };
            let key = |b: &[u8]| Key {
                priority: number(&b[..8]),
                row: number(&b[8..16]),
                position: number(&b[16..]),
            };
            Ok(GatheredFold {
                min,
                max,
                tokens,
                keys: numbers.chunks_exact(24).map(key).collect(),
                vectors: floats(from, sampled)?,
            })
        };
        let folds = [fold(a)?, fold(b)?];
        let gathered = Gathered {
            rank: entry.rank,
            sample_tokens: entry.sample_tokens,
            folds,
        };
        all.insert(entry.name, gathered);
    }
    Ok(all)
}

/// `count` pieces of `size` bytes. Memory grows with what is there, not with what a damaged file claims.
fn bytes(from: &mut impl Read, count: usize, size: usize) -> io::Result<Vec<u8>> {
    let short = || io::Error::new(io::ErrorKind::UnexpectedEof, "it is cut off");
    let length = count.checked_mul(size).ok_or_else(short)?;
    let mut found = Vec::new();
    from.take(length as u64).read_to_end(&mut found)?;
    if found.len() == length {
        Ok(found)
    } else {
        Err(short())
    }
}

fn floats(from: &mut impl Read, count: usize) -> io::Result<Vec<f32>> {
    let raw = bytes(from, count, size_of::<f32>())?;
    let float = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    Ok(raw.chunks_exact(size_of::<f32>()).map(float).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold(rows: &[u64]) -> GatheredFold {
        let mut keys: Vec<Key> = rows
            .iter()
            .map(|&row| Key {
                priority: row.wrapping_mul(0x9e37_79b9_7f4a_7c15),
                row,
                position: 0,
            })
            .collect();
        keys.sort();
        keys.truncate(4);
        GatheredFold {
            min: rows
                .iter()
                .map(|&r| -(r as f32))
                .reduce(f32::min)
                .into_iter()
                .collect(),
            max: rows
                .iter()
                .map(|&r| r as f32)
                .reduce(f32::max)
                .into_iter()
                .collect(),
            tokens: rows.len() as u64,
            vectors: keys.iter().map(|k| k.row as f32 + 0.5).collect(),
            keys,
        }
    }

    fn gathered(rows: &[u64]) -> GatheredStatistics {
        let halves = [0, 1].map(|half| {
            let own: Vec<u64> = rows.iter().copied().filter(|r| r % 2 == half).collect();
            fold(&own)
        });
        let value = Gathered {
            rank: 2,
            sample_tokens: 4,
            folds: halves,
        };
        GatheredStatistics::from([("x".to_owned(), value)])
    }

    #[test]
    fn parts_in_any_order_are_the_whole() {
        let all: Vec<u64> = (0..40).collect();
        let whole = finish(gathered(&all)).unwrap();
        for parts in [1, 2, 7] {
            let part = |i: u64| {
                gathered(
                    &all.iter()
                        .copied()
                        .filter(|r| r / 3 % parts == i)
                        .collect::<Vec<_>>(),
                )
            };
            for order in [(0..parts).collect::<Vec<_>>(), (0..parts).rev().collect()] {
                let mut merged = GatheredStatistics::new();
                order
                    .into_iter()
                    .for_each(|i| merge(&mut merged, part(i)).unwrap());
                assert_eq!(finish(merged).unwrap(), whole);
            }
        }
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let all = gathered(&[1, 2, 3, 8]);
        let mut file = Vec::new();
        write(&all, &mut file).unwrap();
        assert_eq!(read(&mut &file[..]).unwrap(), all);
        for length in 0..file.len() {
            assert!(read(&mut &file[..length]).is_err(), "{length}");
        }
        let mut wrong = file.clone();
        wrong[6] = 0xff;
        assert!(read(&mut &wrong[..]).is_err());
    }
}
