//! Tests of calibration as a whole, on tiny models made here.

mod branches;
mod data;
mod engine;
mod gelu;
mod keep;
mod plans;
pub(crate) mod stats;
mod steps;
pub(crate) mod threads;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};

use crate::calibrate::{
    Batch, CalibError, CalibSource, Dataset, Engine, EngineError, InputTensor, Plan, Shapes,
    TractEngine, Values, Wanted,
};
use crate::graph::axes::Axes;
use crate::graph::work::Product;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, type_proto,
};
use crate::onnx::{DataType, Model};

/// A graph input or output; dims are numbers, names, or "?".
fn info(name: &str, dtype: DataType, dims: &[&str]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|d| Dimension {
            denotation: None,
            value: match (d.parse(), *d) {
                (Ok(n), _) => Some(dimension::Value::DimValue(n)),
                (_, "?") => None,
                (_, name) => Some(dimension::Value::DimParam(name.into())),
            },
        })
        .collect();
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            denotation: None,
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(dtype as i32),
                shape: Some(TensorShapeProto { dim }),
            })),
        }),
        ..Default::default()
    }
}

fn model(
    opset: i64,
    inputs: Vec<ValueInfoProto>,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    outputs: &[&str],
) -> Model {
    Model {
        proto: ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto {
                domain: None,
                version: Some(opset),
            }],
            graph: Some(GraphProto {
                name: Some("test".into()),
                node: nodes,
                initializer: initializers,
                input: inputs,
                output: outputs
                    .iter()
                    .map(|name| ValueInfoProto {
                        name: Some((*name).into()),
                        ..Default::default()
                    })
                    .collect(),
                ..Default::default()
            }),
            ..Default::default()
        },
    }
}

/// An array with values that repeat only after a while: −1 to 1, in steps.
fn wave(shape: &[usize]) -> ArrayD<f32> {
    let mut i = 0;
    ArrayD::from_shape_simple_fn(IxDyn(shape), || {
        i += 1;
        ((i * 37 % 101) as f32 - 50.0) / 50.0
    })
}

fn f32_batch(name: &str, array: ArrayD<f32>, first_row: u64) -> Batch {
    let rows = array.shape()[0] as u64;
    Batch::new(
        [(
            name.to_owned(),
            InputTensor::from_values(Values::F32(array)),
        )]
        .into(),
        (first_row..first_row + rows).collect(),
    )
}

fn source(path: PathBuf) -> CalibSource {
    CalibSource { name: None, path }
}

fn named_source(name: &str, path: PathBuf) -> CalibSource {
    CalibSource {
        name: Some(name.into()),
        path,
    }
}

/// The error of opening `sources`, with the folder's name taken out.
fn open_error(model: &Model, sources: &[CalibSource], folder: &Path) -> String {
    let error: CalibError = Dataset::open(model, sources, 8).unwrap_err();
    error
        .to_string()
        .replace(&format!("{}/", folder.display()), "")
        .replace(&folder.display().to_string(), "FOLDER")
}

/// tract, which is asked only for plans of models that the function lets through.
struct Watched<F>(F);

impl<F: Fn(&Model) -> Result<(), EngineError> + Sync> Engine for Watched<F> {
    fn plan(
        &self,
        model: &Model,
        like: &Batch,
        wanted: &Wanted<'_>,
    ) -> Result<Box<dyn Plan>, EngineError> {
        (self.0)(model)?;
        TractEngine.plan(model, like, wanted)
    }

    fn shapes(
        &self,
        model: &Model,
        like: &Batch,
        values: &[String],
    ) -> Result<Option<Shapes>, EngineError> {
        TractEngine.shapes(model, like, values)
    }

    fn products(&self, model: &Model, like: &Batch) -> Result<Vec<Product>, EngineError> {
        TractEngine.products(model, like)
    }

    fn axes(&self, model: &Model, like: &Batch) -> Result<Arc<Axes>, EngineError> {
        TractEngine.axes(model, like)
    }

    fn sharing(&self) -> Box<dyn Engine> {
        TractEngine.sharing()
    }
}
