//! Weights that have been rounded before: plans of one run differ in a few sites, and rounding with error feedback is what
//! takes longest in making a model.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::Array2;

use crate::recognise::LinearId;
use crate::solve::{Migration, QuantizedWeight, WeightSpec};

/// Everything that the integers of a weight depend on and that differs between the plans of one run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RoundedFrom {
    /// A hash of W', `[K, N]`.
    weight: u64,
    /// The shift, scale and rotation of the tokens.
    transform: Migration,
    /// How it is quantized.
    spec: WeightSpec,
}

impl RoundedFrom {
    pub(super) fn of(weight: &Array2<f32>, transform: &Migration, spec: WeightSpec) -> RoundedFrom {
        let mut hasher = DefaultHasher::new();
        for row in weight.rows() {
            row.iter().for_each(|v| hasher.write_u32(v.to_bits()));
        }
        RoundedFrom {
            weight: hasher.finish(),
            transform: transform.clone(),
            spec,
        }
    }
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
}
