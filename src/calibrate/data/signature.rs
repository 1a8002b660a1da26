//! The inputs a model wants: name, element type, shape.

use std::collections::BTreeSet;

use crate::calibrate::data::array::type_name;
use crate::calibrate::data::cache::state_head_size;
use crate::calibrate::data::error::CalibError;
use crate::graph::View;
use crate::onnx::Model;
use crate::onnx::proto::tensor_proto::DataType;
use crate::onnx::proto::tensor_shape_proto::dimension::Value as DimValue;
use crate::onnx::proto::{ValueInfoProto, type_proto};

/// One axis of a model input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// Always this size.
    Fixed(usize),
    /// A size with a name; equal names mean equal sizes.
    Named(String),
    /// Any size.
    Any,
}

impl Dim {
    /// The name of the size, where it has one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Dim::Named(name) => Some(name),
            Dim::Fixed(_) | Dim::Any => None,
        }
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dim::Fixed(n) => n.fmt(f),
            Dim::Named(name) => name.fmt(f),
            Dim::Any => f.write_str("?"),
        }
    }
}

/// A graph input that is not an initializer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInput {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DataType,
    /// Its axes; `None` if the model does not even say how many there are.
    pub shape: Option<Vec<Dim>>,
}

impl ModelInput {
    /// The shape as text, e.g. `[batch, 128]`.
    pub fn shape_text(&self) -> String {
        match &self.shape {
            None => "[?…]".into(),
            Some(dims) => {
                let dims: Vec<_> = dims.iter().map(Dim::to_string).collect();
                format!("[{}]", dims.join(", "))
            }
        }
    }
}

impl std::fmt::Display for ModelInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {} {}",
            self.name,
            type_name(self.dtype),
            self.shape_text()
        )
    }
}

/// The inputs of `model` in graph order, without those that have an initializer (before IR version 4 every
/// initializer was also listed as an input).
pub fn model_inputs(model: &Model) -> Result<Vec<ModelInput>, CalibError> {
    let graph = model.graph();
    let initializers: BTreeSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    let mut inputs: Vec<ModelInput> = graph
        .input
        .iter()
        .filter(|input| !initializers.contains(input.name()))
        .map(model_input)
        .collect::<Result<_, _>>()?;
    let view = View::new(model);
    for input in &mut inputs {
        let Some([_, _, _, last @ (Dim::Named(_) | Dim::Any)]) = input.shape.as_deref_mut() else {
            continue;
        };
        if let Some(size) = state_head_size(&view, &input.name) {
            *last = Dim::Fixed(size);
        }
    }
    Ok(inputs)
}

fn model_input(info: &ValueInfoProto) -> Result<ModelInput, CalibError> {
    let fail = |found: &str| CalibError::InputType {
        name: info.name().to_owned(),
        found: found.to_owned(),
    };
    let tensor = match info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(type_proto::Value::TensorType(tensor)) => tensor,
        Some(_) => return Err(fail("it is a sequence, map, optional or sparse tensor")),
        None => return Err(fail("it has no type")),
    };
    let dtype = DataType::try_from(tensor.elem_type())
        .ok()
        .filter(|dtype| crate::calibrate::data::array::Element::from_onnx(*dtype).is_some())
        .ok_or_else(|| {
            let name = DataType::try_from(tensor.elem_type()).map(|d| d.as_str_name());
            fail(&format!("element type {}", name.unwrap_or("unknown")))
        })?;
    let shape = tensor.shape.as_ref().map(|shape| {
        shape
            .dim
            .iter()
            .map(|dim| match &dim.value {
                Some(DimValue::DimValue(n)) => usize::try_from(*n).map_or(Dim::Any, Dim::Fixed),
                Some(DimValue::DimParam(name)) if !name.is_empty() => Dim::Named(name.clone()),
                _ => Dim::Any,
            })
            .collect()
    });
    Ok(ModelInput {
        name: info.name().to_owned(),
        dtype,
        shape,
    })
}

/// All inputs, one per line, for error messages.
pub(super) fn list(inputs: &[ModelInput]) -> String {
    let mut text = "the model's inputs are:".to_owned();
    for input in inputs {
        // A line for each, whatever is in its name.
        let line = input.to_string();
        text.push_str(&format!("\n  {}", crate::onnx::shown(&line)));
    }
    text
}
