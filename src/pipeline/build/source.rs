//! What models are made from.

use super::super::calibrate::Calibrated;
use super::super::plan::{Plan, Precision};
use super::known::KnownWeights;
use crate::graph::branches::FlatModel;
use crate::options::Options;
use crate::recognise::{LinearId, Recognised, recognise};
use crate::solve::WeightSpec;

/// What models are made from.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub options: &'a Options,
    pub calibrated: &'a Calibrated,
    pub known: &'a KnownWeights,
}

impl Source<'_> {
    /// How the weight of a Linear with `k` input channels is quantized by a plan.
    pub(crate) fn weight(&self, plan: &Plan, linear: LinearId, k: usize) -> WeightSpec {
        match plan.linears[linear] {
            Precision::Raised => self.options.raised_weight_of(k),
            Precision::Integer | Precision::Float(_) => self.options.weight_of(k),
        }
    }
}

/// What is recognised in a migrated model, which has the Linears of the original in the same order: migration changes
/// constants and adds nodes, no more.
pub(crate) fn recognised(migrated: &FlatModel, calibrated: &Calibrated) -> Recognised {
    let mut found = recognise(&migrated.view());
    // The weights are in float32 on their way to integers, whatever the type of the file.
    let originals = &calibrated.prepared.found.linears;
    for (linear, original) in found.linears.iter_mut().zip(originals) {
        linear.dtype = original.dtype;
    }
    found
}
