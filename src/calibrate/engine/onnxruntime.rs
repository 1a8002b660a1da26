//! ONNX Runtime as the calibration engine: a library that the user has, loaded at run time.
//!
//! It runs what it runs for the user, operators of Microsoft's domain included. Values inside are tapped as further graph outputs; each
//! output is cast to float32 in the graph. Optimizations that change results (fused integer kernels, whose sums may saturate) are
//! off: Q and DQ are computed as ONNX defines them.
//!
//! Which rows and tokens a value's vectors are is told by the same copy of the model as for tract; where an operator has no rule
//! there, shapes tell it ([`crate::calibrate::TractEngine`] would refuse such a model).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{ArrayD, IxDyn};
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputValue};
use ort::value::Tensor;
use prost::Message;

use crate::calibrate::data::array::Values;
use crate::calibrate::data::input::{Batch, Shapes};
use crate::calibrate::engine::copy::{Known, calibration_copy, shapes_text};
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::{Engine, Plan, TapSink, Wanted, input_of, run_failed};
use crate::calibrate::engine::resolve::resolve;
use crate::calibrate::engine::shapes::products;
use crate::graph::Names;
use crate::graph::axes::Axes;
use crate::graph::work::Product;
use crate::onnx::node::{int_attr, make_node};
use crate::onnx::proto::{GraphProto, TypeProto, ValueInfoProto, type_proto};
use crate::onnx::save::needs_external_data;
use crate::onnx::{DataType, Model, SaveOptions, op, save, tensor};

/// Runs models with ONNX Runtime, in the types of the model.
#[derive(Debug, Clone)]
pub struct OnnxRuntimeEngine {
    provider: Provider,
}

/// Where ONNX Runtime computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Provider {
    /// On the processor.
    #[default]
    Cpu,
    /// On a card of NVIDIA, with the library's CUDA provider.
    Cuda,
}

fn failed(shapes: &Shapes, reason: impl std::fmt::Display) -> EngineError {
    EngineError::Plan {
        shapes: shapes_text(shapes),
        reason: said(reason),
    }
}

/// What the library says, on one line, with its name.
fn said(reason: impl std::fmt::Display) -> String {
    format!("ONNX Runtime: {}", reason.to_string().replace('\n', " "))
}

impl OnnxRuntimeEngine {
    /// Loads the library, `libonnxruntime.so` or whatever the platform calls it, of version 1.17 or newer. A process loads one.
    ///
    /// # Errors
    /// [`EngineError::Library`]: it is none, or too old.
    pub fn load(library: &Path, provider: Provider) -> Result<OnnxRuntimeEngine, EngineError> {
        let fail = |reason: String| EngineError::Library {
            path: library.to_owned(),
            reason,
        };
        let environment = ort::init_from(library).map_err(|error| fail(error.to_string()))?;
        environment.commit();
        Ok(OnnxRuntimeEngine { provider })
    }

    fn session(&self, model: &Model, shapes: &Shapes) -> Result<Session, EngineError> {
        let fail = |error: &dyn std::fmt::Display| failed(shapes, error);
        let builder = Session::builder().map_err(|e| fail(&e))?;
        let builder = builder.with_optimization_level(GraphOptimizationLevel::Level1);
        let builder = builder.map_err(|e| fail(&e))?;
        // What fails is told once, by the error that is handed on.
        let builder = builder
            .with_log_level(ort::logging::LogLevel::Fatal)
            .map_err(|e| fail(&e))?;
        let threads = rayon::current_num_threads();
        let mut builder = builder.with_intra_threads(threads).map_err(|e| fail(&e))?;
        if self.provider == Provider::Cuda {
            let cuda = ort::ep::CUDA::default().build().error_on_failure();
            builder = builder
                .with_execution_providers([cuda])
                .map_err(|e| fail(&e))?;
        }
        if !needs_external_data(model, &SaveOptions::default()) {
            return builder
                .commit_from_memory(&model.proto.encode_to_vec())
                .map_err(|e| fail(&e));
        }
        let folder = tempfile::tempdir().map_err(|e| fail(&e))?;
        let path = folder.path().join("model.onnx");
        let options = SaveOptions {
            external_data: true,
            overwrite: true,
        };
        save(model, &path, &options).map_err(|e| fail(&e))?;
        builder.commit_from_file(&path).map_err(|e| fail(&e))
    }
}

impl Engine for OnnxRuntimeEngine {
    fn plan(
        &self,
        model: &Model,
        like: &Batch,
        wanted: &Wanted<'_>,
    ) -> Result<Box<dyn Plan>, EngineError> {
        let resolved = resolve(self, model, like)?;
        let model = resolved.model.as_ref().unwrap_or(model);
        let shapes = like.shapes();
        let taps = resolved.computed(wanted.taps);
        let exposed = Exposed::new(model, &taps, wanted.outputs)?;
        let session = self.session(&exposed.model, &shapes)?;
        let narrow = exposed.narrow;
        Ok(Box::new(OrtPlan {
            session: Mutex::new(session),
            inputs: inputs(model, &shapes, &narrow),
            taps: exposed.taps,
            outputs: exposed.outputs,
            integers: exposed.integers,
            skipped: exposed.skipped,
            axes: Arc::new(axes(model, like)),
        }))
    }

    fn shapes(
        &self,
        model: &Model,
        like: &Batch,
        values: &[String],
    ) -> Result<Option<Shapes>, EngineError> {
        let wanted = Wanted {
            taps: values,
            outputs: false,
        };
        let plan = self.plan(model, like, &wanted)?;
        let seen = Arc::new(Seen(Mutex::new(BTreeMap::new())));
        plan.run(like, Some(seen.clone()))?;
        let seen = seen.0.lock().unwrap_or_else(PoisonError::into_inner);
        let named = seen
            .iter()
            .map(|(tap, shape)| (values[*tap].clone(), shape.clone()));
        Ok(Some(named.collect()))
    }

    fn products(&self, model: &Model, like: &Batch) -> Result<Vec<Product>, EngineError> {
        let resolved = resolve(self, model, like)?;
        let model = resolved.model.as_ref().unwrap_or(model);
        let copy = calibration_copy(model, &like.shapes(), &Known::new())?;
        products(self, &copy, model, like)
    }

    fn axes(&self, model: &Model, like: &Batch) -> Result<Arc<Axes>, EngineError> {
        let resolved = resolve(self, model, like)?;
        Ok(Arc::new(axes(
            resolved.model.as_ref().unwrap_or(model),
            like,
        )))
    }

    fn sharing(&self) -> Box<dyn Engine> {
        Box::new(self.clone())
    }
}

/// Where the axes of values come from, as far as the operators on the way are known.
fn axes(model: &Model, like: &Batch) -> Axes {
    let (shapes, by_row) = (like.shapes(), like.by_row());
    match calibration_copy(model, &shapes, &Known::new()) {
        Ok(copy) => copy.axes(&shapes, &by_row),
        Err(_) => {
            let mut axes = Axes::new();
            for (name, shape) in &shapes {
                axes.input(name, shape, by_row.contains(name.as_str()));
            }
            axes
        }
    }
}

/// The inputs of the session in its order: name and shape.
fn inputs(
    model: &Model,
    shapes: &Shapes,
    narrow: &BTreeMap<String, String>,
) -> Vec<(String, String, Vec<usize>)> {
    let inputs = model.graph().input.iter().filter_map(|input| {
        let name = input.name().to_owned();
        let fed = narrow.get(&name).unwrap_or(&name).clone();
        shapes.get(&name).map(|shape| (name, fed, shape.clone()))
    });
    inputs.collect()
}

/// A model whose outputs are what is wanted, as float32.
struct Exposed {
    model: Model,
    /// Number of the tap, and the name of the output.
    taps: Vec<(usize, String)>,
    /// Name of the value, and that of the output.
    outputs: Vec<(String, String)>,
    integers: Vec<String>,
    skipped: Vec<String>,
    /// Inputs of other float types: they are fed as float32, under another name.
    narrow: BTreeMap<String, String>,
}

fn dtype(info: &ValueInfoProto) -> Option<DataType> {
    match info.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => DataType::try_from(tensor.elem_type()).ok(),
        _ => None,
    }
}

impl Exposed {
    fn new(
        model: &Model,
        taps: &[(usize, &String)],
        with_outputs: bool,
    ) -> Result<Exposed, EngineError> {
        let mut exposed = Exposed {
            model: model.clone(),
            taps: vec![],
            outputs: vec![],
            integers: vec![],
            skipped: vec![],
            narrow: BTreeMap::new(),
        };
        let mut names = Names::new(model);
        let stated = std::mem::take(&mut exposed.model.graph_mut().output);
        exposed.feed_floats(&mut names);
        let known = known_values(model.graph());
        for (number, name) in taps {
            if !known.contains(name.as_str()) {
                return Err(EngineError::UnknownValue {
                    name: (*name).clone(),
                });
            }
            let output = exposed.as_float(name, &mut names);
            exposed.taps.push((*number, output));
        }
        for info in stated.iter().filter(|_| with_outputs) {
            let name = info.name();
            match dtype(info) {
                Some(DataType::String) => exposed.skipped.push(name.to_owned()),
                None if info.r#type.is_some() => exposed.skipped.push(name.to_owned()),
                found => {
                    if found.is_some_and(|dtype| !tensor::is_float(dtype)) {
                        exposed.integers.push(name.to_owned());
                    }
                    let output = exposed.as_float(name, &mut names);
                    exposed.outputs.push((name.to_owned(), output));
                }
            }
        }
        Ok(exposed)
    }

    /// Makes the value an output of float32.
    fn as_float(&mut self, name: &str, names: &mut Names) -> String {
        let output = names.derive(name, "float");
        let to = vec![int_attr("to", DataType::Float as i64)];
        let graph = self.model.graph_mut();
        let cast = make_node(op::Cast, &format!("{output}_cast"), &[name], &[&output], to);
        graph.node.push(cast);
        graph.output.push(ValueInfoProto {
            name: Some(output.clone()),
            r#type: Some(TypeProto {
                value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                    elem_type: Some(DataType::Float as i32),
                    shape: None,
                })),
                ..Default::default()
            }),
            ..Default::default()
        });
        output
    }

    /// Inputs of float16, bfloat16 and float64 become float32, with a Cast behind them.
    fn feed_floats(&mut self, names: &mut Names) {
        let graph = self.model.graph_mut();
        let mut casts = Vec::new();
        for input in &mut graph.input {
            let Some(found) =
                dtype(input).filter(|d| tensor::is_float(*d) && *d != DataType::Float)
            else {
                continue;
            };
            let name = input.name().to_owned();
            let fed = names.derive(&name, "fed");
            let to = vec![int_attr("to", found as i64)];
            casts.push(make_node(
                op::Cast,
                &format!("{fed}_cast"),
                &[&fed],
                &[&name],
                to,
            ));
            if let Some(type_proto::Value::TensorType(tensor)) =
                input.r#type.as_mut().and_then(|t| t.value.as_mut())
            {
                tensor.elem_type = Some(DataType::Float as i32);
            }
            input.name = Some(fed.clone());
            self.narrow.insert(name, fed);
        }
        graph.node.splice(0..0, casts);
    }
}

/// What can be tapped: what nodes of the main graph compute, and what it is given.
fn known_values(graph: &GraphProto) -> BTreeSet<&str> {
    let made = graph
        .node
        .iter()
        .flat_map(|node| &node.output)
        .map(String::as_str);
    made.chain(graph.input.iter().map(|input| input.name()))
        .collect()
}

/// A session, and what its inputs and outputs are.
struct OrtPlan {
    /// The library runs one batch at a time, on all threads.
    session: Mutex<Session>,
    /// The model's name, the session's, the shape.
    inputs: Vec<(String, String, Vec<usize>)>,
    taps: Vec<(usize, String)>,
    outputs: Vec<(String, String)>,
    integers: Vec<String>,
    skipped: Vec<String>,
    axes: Arc<Axes>,
}

impl Plan for OrtPlan {
    fn run(
        &self,
        batch: &Batch,
        taps: Option<Arc<dyn TapSink>>,
    ) -> Result<BTreeMap<String, ArrayD<f32>>, EngineError> {
        let fail = |reason: &dyn std::fmt::Display| run_failed(batch, said(reason));
        let mut inputs = Vec::new();
        for (name, fed, expected) in &self.inputs {
            let values = input_of(batch, name, expected)?.values()?;
            inputs.push((fed.clone(), value(values).map_err(|e| fail(&e))?));
        }
        if self.taps.is_empty() && self.outputs.is_empty() {
            // The library does not run for nothing.
            return Ok(BTreeMap::new());
        }
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let found = session.run(inputs).map_err(|e| fail(&e))?;
        let array = |name: &str| -> Result<ArrayD<f32>, EngineError> {
            let (shape, data) = found[name]
                .try_extract_tensor::<f32>()
                .map_err(|e| fail(&e))?;
            let shape: Vec<usize> = shape
                .iter()
                .map(|&n| usize::try_from(n).unwrap_or(0))
                .collect();
            ArrayD::from_shape_vec(IxDyn(&shape), data.to_vec()).map_err(|e| fail(&e))
        };
        if let Some(sink) = taps {
            for (number, output) in &self.taps {
                sink.take(*number, array(output)?.view())?;
            }
        }
        let outputs = self.outputs.iter();
        outputs
            .map(|(name, output)| Ok((name.clone(), array(output)?)))
            .collect()
    }

    fn integer_outputs(&self) -> &[String] {
        &self.integers
    }

    fn skipped_outputs(&self) -> &[String] {
        &self.skipped
    }

    fn axes(&self) -> Arc<Axes> {
        self.axes.clone()
    }
}

/// Remembers shapes.
struct Seen(Mutex<BTreeMap<usize, Vec<usize>>>);

impl TapSink for Seen {
    fn take(&self, tap: usize, value: ndarray::ArrayViewD<'_, f32>) -> Result<(), EngineError> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(tap, value.shape().to_vec());
        Ok(())
    }
}

/// The values of an input as a tensor of the library.
fn value(values: Values) -> ort::Result<SessionInputValue<'static>> {
    macro_rules! tensor {
        ($array:expr) => {{
            let array = $array;
            let shape: Vec<i64> = array.shape().iter().map(|&n| n as i64).collect();
            let data: Vec<_> = array.iter().copied().collect();
            Ok(SessionInputValue::from(Tensor::from_array((shape, data))?))
        }};
    }
    match values {
        Values::F32(a) => tensor!(a),
        Values::I8(a) => tensor!(a),
        Values::I16(a) => tensor!(a),
        Values::I32(a) => tensor!(a),
        Values::I64(a) => tensor!(a),
        Values::U8(a) => tensor!(a),
        Values::U16(a) => tensor!(a),
        Values::U32(a) => tensor!(a),
        Values::U64(a) => tensor!(a),
        Values::Bool(a) => tensor!(a),
    }
}
