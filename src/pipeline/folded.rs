//! The migrated model, and what is needed to check it where the file is in float16 or bfloat16.
//!
//! Migration is exact in real numbers. In float32 that can be seen: 10⁻⁷ is left. In float16 every folded constant is
//! rounded by up to 5·10⁻⁴, which would hide any mistake of the folding. So the folding is checked with its constants
//! in float32, and what rounding them does is measured separately, against a limit of that type.

use std::collections::BTreeMap;

use crate::Error;
use crate::graph::{self, Patch};
use crate::onnx::proto::TensorProto;
use crate::onnx::{DataType, Model, tensor};
use crate::rewrite::{Precision, RewriteError};

/// A migrated model.
pub(crate) struct Folded {
    /// In the types of the file.
    pub model: Model,
    /// The coarsest type that a migrated constant was rounded to, and the same model with those constants in float32;
    /// `None` if that is what they are in already.
    pub unrounded: Option<(DataType, Model)>,
}

impl Folded {
    /// `model` after the patches that `migrate` makes.
    pub fn new(
        model: &Model,
        migrate: impl Fn(Precision) -> Result<Vec<Patch>, RewriteError>,
    ) -> Result<Folded, Error> {
        let fold = |precision| -> Result<Model, Error> {
            let mut folded = model.clone();
            graph::apply(&mut folded, migrate(precision)?).map_err(RewriteError::from)?;
            Ok(folded)
        };
        let folded = fold(Precision::OfFile)?;
        let unrounded = match rounded_to(model, &folded) {
            Some(dtype) => Some((dtype, fold(Precision::Float32)?)),
            None => None,
        };
        Ok(Folded {
            model: folded,
            unrounded,
        })
    }
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
