//! Weights that have been rounded before: plans of one run differ in a few sites, and rounding with error feedback is what
//! takes longest in making a model.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::Array2;

use crate::recognise::LinearId;
use crate::solve::{Migration, QuantizedWeight, WeightSpec};

/// Everything that the integers of a weight depend on and that differs between the plans of one run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RoundedFrom {
    /// A hash of W', `[K, N]`.
    pub(super) weight: u64,
    /// The shift, scale and rotation of the tokens.
    transform: Migration,
    /// How it is quantized.
    pub(super) spec: WeightSpec,
}

impl RoundedFrom {
    pub(super) fn of(weight: &Array2<f32>, transform: &Migration, spec: WeightSpec) -> RoundedFrom {
        RoundedFrom {
            weight: hash(weight),
            transform: transform.clone(),
            spec,
        }
    }
}

/// Independent sums of [`hash`]: one alone waits for every multiplication.
const LANES: usize = 8;

/// A hash of the bits of an array, fast: what is hashed are all weights of a model, for every plan. A step of a lane can be
/// undone, so that arrays which differ in one element never have the same.
pub(crate) fn hash(array: &Array2<f32>) -> u64 {
    const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
    let step = |sum: u64, v: u64| (sum.rotate_left(23) ^ v).wrapping_mul(FACTOR);
    let mut sums = [FACTOR; LANES];
    let array = array.as_standard_layout();
    for chunk in array.as_slice().unwrap_or(&[]).chunks(LANES) {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *sum = step(*sum, u64::from(v.to_bits()));
        }
    }
    let (rows, columns) = array.dim();
    let all = sums.into_iter().chain([rows as u64, columns as u64]);
    all.fold(FACTOR, step)
}

/// The integers of every Linear as they were made last. A run with them gives the same bytes as one without.
#[derive(Default)]
pub(crate) struct KnownWeights {
    last: Mutex<BTreeMap<LinearId, (RoundedFrom, Arc<QuantizedWeight>)>>,
}

impl KnownWeights {
    /// The integers of a Linear, if they were made from the same.
    pub(super) fn get(&self, linear: LinearId, from: &RoundedFrom) -> Option<Arc<QuantizedWeight>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, weight) = last.get(&linear)?;
        (known == from).then(|| weight.clone())
    }

    pub(super) fn keep(&self, linear: LinearId, from: RoundedFrom, weight: Arc<QuantizedWeight>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.insert(linear, (from, weight));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_if_made_from_the_same() {
        let weight = |v: f32| Array2::from_elem((2, 3), v);
        let scaled = Migration {
            scale: Some(vec![2.0, 1.0]),
            ..Migration::default()
        };
        let rounded = Arc::new(QuantizedWeight::symmetric(
            Array2::zeros((2, 3)),
            vec![1.0; 3],
        ));
        let (known, spec) = (KnownWeights::default(), WeightSpec::per_channel(8));
        let (first, second): (LinearId, LinearId) = (0usize.into(), 1usize.into());
        let from = RoundedFrom::of(&weight(1.0), &scaled, spec);
        assert_eq!(known.get(first, &from), None);
        known.keep(first, from.clone(), rounded.clone());
        assert_eq!(known.get(first, &from), Some(rounded.clone()));
        assert_eq!(known.get(second, &from), None);
        assert_eq!(
            known.get(first, &RoundedFrom::of(&weight(-1.0), &scaled, spec)),
            None
        );
        let other_bits = RoundedFrom::of(&weight(1.0), &scaled, WeightSpec::per_channel(4));
        assert_eq!(known.get(first, &other_bits), None);
        let unscaled = RoundedFrom::of(&weight(1.0), &Migration::default(), spec);
        assert_eq!(known.get(first, &unscaled), None);
        // The last is kept.
        known.keep(first, unscaled.clone(), rounded);
        assert!(known.get(first, &unscaled).is_some() && known.get(first, &from).is_none());
    }

    #[test]
    fn what_differs_in_one_element_or_in_order_has_another_hash() {
        let array = Array2::from_shape_fn((5, 7), |(i, j)| (i * 7 + j) as f32);
        let mut seen = std::collections::BTreeSet::from([hash(&array)]);
        for at in 0..34 {
            let mut other = array.clone();
            other[[at / 7, at % 7]] += 0.25;
            assert!(seen.insert(hash(&other)), "{at}");
            let mut other = array.clone();
            other.as_slice_mut().unwrap().swap(at, at + 1);
            assert!(seen.insert(hash(&other)), "{at}");
        }
        let turned = array.clone().into_shape_with_order((7, 5)).unwrap();
        assert!(seen.insert(hash(&turned)));
        assert_eq!(hash(&array), hash(&array.clone()));
    }
}
