//! Writing the constants of a Linear back in the form its operator reads them.

use ndarray::Array2;

use super::RewriteError;
use crate::graph::{Names, Patch, Source, Use, ValueId, View};

use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{DataType, tensor};
use crate::recognise::{Linear, LinearForm};

/// Makes node input (`node`, `slot`), which reads the constant `value`, read `data` instead.
///
/// The initializer is overwritten in place if nothing else reads it; otherwise the node gets a copy of its own
/// under a derived name.
pub(super) fn set_constant(
    view: &View,
    patch: &mut Patch,
    names: &mut Names,
    at: (crate::graph::NodeId, usize),
    value: ValueId,
    new: NewConstant,
) -> Result<(), RewriteError> {
    let name = view.name(value);
    let exclusive = matches!(view.source(value), Source::Initializer(_))
        && view.uses(value)
            == [Use::Node {
                node: at.0,
                input: at.1,
            }];
    let target = if exclusive {
        name.to_owned()
    } else {
        names.derive(name, "osplus")
    };
    let tensor = new.into_tensor(&target)?;
    if exclusive {
        patch.set_initializer(tensor);
    } else {
        patch.add_initializer(tensor);
        patch.rewire(at.0, at.1, target);
    }
    Ok(())
}

/// The elements of a constant to be written, and the float type of the file.
pub(super) struct NewConstant {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub data: Vec<f32>,
    /// Its type in the file.
    pub dtype: DataType,
}

impl NewConstant {
    /// The tensor, under a name.
    pub fn into_tensor(self, name: &str) -> Result<TensorProto, RewriteError> {
        let largest = match self.dtype {
            DataType::Float16 => 65504.0,
            _ => f32::MAX,
        };
        if let Some(&value) = self
            .data
            .iter()
            .find(|x| !x.is_finite() || x.abs() > largest)
        {
            let (name, dtype) = (name.to_owned(), self.dtype.as_str_name());
            return Err(RewriteError::Overflow { name, value, dtype });
        }
        Ok(tensor::from_f32(name, &self.shape, &self.data, self.dtype))
    }
}

/// The layout in which the operator of `linear` stores the effective weight `w`: [K, N].
pub(super) fn stored_weight(linear: &Linear, w: Array2<f32>) -> NewConstant {
    let w = match linear.form {
        LinearForm::Gemm { trans_b: true, .. } => w.reversed_axes(),
        _ => w,
    };
    let shape = w.shape().to_vec();
    NewConstant {
        shape,
        data: w.as_standard_layout().iter().copied().collect(),
        dtype: linear.dtype,
    }
}

/// The node of `linear` for constants that already contain its factors: alpha if the `weight` has been written anew,
/// beta if the `bias` has. `None` if the node needs no change.
pub(super) fn without_factors(
    view: &View,
    linear: &Linear,
    weight: bool,
    bias: bool,
) -> Option<NodeProto> {
    let LinearForm::Gemm { alpha, beta, .. } = linear.form else {
        return None;
    };
    let (alpha, beta) = (weight && alpha != 1.0, bias && beta != 1.0);
    (alpha || beta).then(|| {
        let mut node = view.node(linear.node).clone();
        // Both are 1 where they are left out.
        node.attribute.retain(|a| match a.name.as_deref() {
            Some("alpha") => !alpha,
            Some("beta") => !beta,
            _ => true,
        });
        node
    })
}
