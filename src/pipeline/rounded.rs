//! A weight of a plan that was rounded for what the quantized Linears before it give.

use std::sync::Arc;

use ndarray::Array2;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::solve::sequential::SequentialWeight;
use crate::solve::{QuantizedWeight, WeightSpec};

/// What no plan can be built from without having run the model, and so is a part of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sequential {
    /// A hash of W', for which it was made: with another transform of the site it is not used.
    of: u64,
    /// Bits of the weight, for which the same holds.
    bits: u8,
    #[serde(serialize_with = "write", deserialize_with = "read")]
    weight: Arc<QuantizedWeight>,
    /// What is added to the bias, `[N]`; `None` without one.
    correction: Option<Vec<f32>>,
}

impl Sequential {
    /// Made of a weight with this hash.
    pub(super) fn new(of: u64, spec: &WeightSpec, made: SequentialWeight) -> Sequential {
        Sequential {
            of,
            bits: spec.bits,
            weight: Arc::new(made.weight),
            correction: made.correction,
        }
    }

    /// The integers, if they are of a weight with this hash and quantized so.
    pub(crate) fn of(&self, hash: u64, spec: &WeightSpec) -> Option<&Arc<QuantizedWeight>> {
        let same = self.of == hash && self.bits == spec.bits && self.weight.group == spec.group();
        same.then_some(&self.weight)
    }

    /// Whether these are its integers.
    pub(crate) fn is(&self, weight: &Arc<QuantizedWeight>) -> bool {
        Arc::ptr_eq(&self.weight, weight)
    }

    /// What is added to the bias.
    pub(crate) fn correction(&self) -> Option<&[f32]> {
        self.correction.as_deref()
    }
}

/// A weight as lists of numbers.
#[derive(Serialize, Deserialize)]
struct Stored {
    columns: usize,
    q: Vec<i8>,
    scale: Vec<f32>,
    zero_point: Vec<i8>,
    group: Option<usize>,
}

fn write<S: Serializer>(weight: &Arc<QuantizedWeight>, to: S) -> Result<S::Ok, S::Error> {
    let stored = Stored {
        columns: weight.q.ncols(),
        q: weight.q.iter().copied().collect(),
        scale: weight.scale.clone(),
        zero_point: weight.zero_point.clone(),
        group: weight.group,
    };
    stored.serialize(to)
}

fn read<'d, D: Deserializer<'d>>(from: D) -> Result<Arc<QuantizedWeight>, D::Error> {
    let stored = Stored::deserialize(from)?;
    let rows = stored.q.len().checked_div(stored.columns).unwrap_or(0);
    let q = Array2::from_shape_vec((rows, stored.columns), stored.q);
    Ok(Arc::new(QuantizedWeight {
        q: q.map_err(D::Error::custom)?,
        scale: stored.scale,
        zero_point: stored.zero_point,
        group: stored.group,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Sequential {
        let q = Array2::from_shape_fn((3, 2), |(i, j)| (i * 2 + j) as i8);
        let made = SequentialWeight {
            weight: QuantizedWeight::symmetric(q, vec![0.5, 0.25]),
            correction: Some(vec![1.5, -0.25]),
        };
        Sequential::new(u64::MAX, &WeightSpec::per_channel(4), made)
    }

    #[test]
    fn it_is_written_and_read_again() {
        let text = serde_json::to_string(&made()).unwrap();
        assert_eq!(serde_json::from_str::<Sequential>(&text).unwrap(), made());
        let torn = text.replace("\"columns\":2", "\"columns\":4");
        assert!(serde_json::from_str::<Sequential>(&torn).is_err());
        let none = text.replace("\"columns\":2", "\"columns\":0");
        assert!(serde_json::from_str::<Sequential>(&none).is_err());
    }

    #[test]
    fn it_is_for_one_weight_and_its_bits() {
        let (made, spec) = (made(), WeightSpec::per_channel(4));
        assert!(made.of(u64::MAX, &spec).is_some());
        assert!(made.of(1, &spec).is_none());
        assert!(made.of(u64::MAX, &WeightSpec::per_channel(8)).is_none());
    }
}
