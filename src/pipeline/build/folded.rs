//! The migrated model, and what is needed to check it where the file is in float16 or bfloat16.
//!
//! Migration is exact in real numbers. In float32 that can be seen: 10⁻⁷ is left. In float16 every folded constant is
//! rounded by up to 5·10⁻⁴, which would hide any mistake of the folding. So the folding is checked with its constants
//! in float32, and what rounding them does is measured separately, against a limit of that type.

use std::collections::{BTreeMap, BTreeSet};

use super::super::plan::{Plan, SitePlan};
use super::super::sites::SiteRow;
use super::source::Source;
use crate::error::Error;
use crate::graph::Names;
use crate::graph::branches::FlatModel;
use crate::onnx::proto::TensorProto;
use crate::onnx::{DataType, Model, tensor};
use crate::recognise::LinearId;
use crate::rewrite::{self, Affine, Precision, RewriteError, Rotated};
use crate::site::Site;

/// A migrated model.
pub(crate) struct Folded {
    /// In the types of the file.
    pub model: FlatModel,
    /// The coarsest type that a migrated constant was rounded to, and the same model with those constants in float32;
    /// `None` if that is what they are in already.
    pub unrounded: Option<(DataType, FlatModel)>,
}

impl Folded {
    /// The prepared model with every shift and scale of the plan folded. Weights of Linears that are `replaced` by
    /// integers later need no type of the file.
    ///
    /// # Errors
    /// A constant that cannot be read, or does not fit its type after migration.
    pub(crate) fn new(
        source: Source,
        plan: &Plan,
        replaced: &BTreeSet<LinearId>,
    ) -> Result<Folded, Error> {
        let prepared = &source.calibrated.prepared;
        let model = &prepared.model;
        let view = model.view();
        let rows = prepared.sites.iter().map(|(_, row)| row);
        let migrations: Vec<(&Site, Affine)> = rows
            .zip(&plan.sites)
            .filter_map(|(row, plan)| migration(row, plan.as_ref()?))
            .collect();
        let fold = |precision| -> Result<FlatModel, Error> {
            let mut names = Names::new(model.as_model());
            let (found, names) = (&prepared.found, &mut names);
            let patches =
                rewrite::migrate_in(precision, replaced, &view, found, &migrations, names)?;
            let mut folded = model.clone();
            folded.apply(patches).map_err(RewriteError::from)?;
            Ok(folded)
        };
        let folded = fold(Precision::OfFile)?;
        let unrounded = match rounded_to(model.as_model(), folded.as_model()) {
            Some(dtype) => Some((dtype, fold(Precision::Float32)?)),
            None => None,
        };
        Ok(Folded {
            model: folded,
            unrounded,
        })
    }
}

/// What is folded at a site, if anything is.
fn migration<'a>(row: &'a SiteRow, plan: &SitePlan) -> Option<(&'a Site, Affine)> {
    let transform = &plan.transform;
    let rank = row.statistics.as_ref().map_or(0, |s| s.rank);
    let rotation = transform.rotation.clone();
    let affine = Affine {
        shift: transform.shift.clone(),
        scale: transform.scale.clone(),
        rotation: rotation.map(|rotation| Rotated { rotation, rank }),
    };
    (row.site.has_sink() && !affine.is_identity()).then_some((&row.site, affine))
}

/// The coarsest type among the constants that are not as they were.
fn rounded_to(before: &Model, after: &Model) -> Option<DataType> {
    let old = before.graph().initializer.iter();
    let old: BTreeMap<&str, &TensorProto> = old.map(|t| (t.name(), t)).collect();
    let mut rounded = None;
    for tensor in &after.graph().initializer {
        let dtype = tensor::dtype(tensor)?;
        let coarser = match dtype {
            DataType::Bfloat16 => true,
            DataType::Float16 => rounded.is_none(),
            _ => false,
        };
        if coarser && old.get(tensor.name()).is_none_or(|old| *old != tensor) {
            rounded = Some(dtype);
        }
    }
    rounded
}

/// The largest relative error of rounding to `dtype`: half the distance from 1 to the next number.
pub(crate) fn rounding_error(dtype: DataType) -> f64 {
    match dtype {
        DataType::Bfloat16 => half::bf16::EPSILON.to_f64() / 2.0,
        DataType::Float16 => half::f16::EPSILON.to_f64() / 2.0,
        _ => f64::from(f32::EPSILON) / 2.0,
    }
}
