//! Models in the form in which Linears and values are matched.

use crate::graph::branches::FlatModel;
use crate::graph::{self, Names, Patch, View, inline, opset};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;
use crate::onnx::{Model, tensor};
use crate::rewrite;

/// The oldest operator set whose operators all recognisers know.
const OPSET: i64 = 13;

/// A copy of `model` (weights shared) in which functions are inlined and branches laid open, under the names that they get
/// in the main job. What cannot be opened stays closed: its Linears are then not compared.
pub(super) fn opened(model: &Model) -> Model {
    let mut opened = FlatModel::of(model.clone()).into_copy();
    if inline(&mut opened, &|_| true).is_err() {
        return model.clone();
    }
    if opset::raise(&mut opened, OPSET).is_ok_and(|raised| !raised.functions.is_empty()) {
        // A function of an older operator set could not be inlined before; what is left stays a call.
        let _ = inline(&mut opened, &|_| true);
    }
    FlatModel::of(opened).into_copy()
}

/// [`opened`], and the Linears inside of ONNX Runtime's operators and in other layouts as in the main job. What is not
/// known here is how many axes a value has of which the file does not say it.
pub(super) fn taken_apart(model: &Model) -> Model {
    let mut model = opened(model);
    type Step = fn(&View, &mut Names) -> Result<Vec<Patch>, rewrite::RewriteError>;
    let apart: Step = |view, names| rewrite::take_apart(view, names, |_| true);
    let as_matrices: Step = |view, names| {
        let rank = |value| view.shape(value).map(|shape| shape.len());
        let done = rewrite::to_matmul(view, names, &rank, |_| true)?;
        Ok(done.into_iter().map(|(patch, _)| patch).collect())
    };
    for step in [apart, as_matrices] {
        let patches = step(&View::new(&model), &mut Names::new(&model));
        let Ok(patches) = patches else {
            continue;
        };
        let mut changed = model.clone();
        if graph::apply(&mut changed, patches).is_ok() {
            model = changed;
        }
    }
    model
}

/// The model with every QuantizeLinear → DequantizeLinear between computed values passed by, and MatMulNBits at a level that
/// computes in float: weights stay rounded, activations do not. `None` if there is neither.
pub(super) fn without_activation_rounding(model: &Model) -> Option<Model> {
    let view = View::new(model);
    let mut renamed = std::collections::BTreeMap::new();
    for (node, proto) in view.nodes() {
        let pair = || {
            let (quantize, _) = view.producer(view.input(node, 0)?)?;
            if view.node(quantize).op_type() != op::QuantizeLinear {
                return None;
            }
            let before = view.input(quantize, 0)?;
            let (is_computed, after) = (!view.is_constant(before), view.output(node, 0)?);
            is_computed.then(|| (view.name(after).to_owned(), view.name(before).to_owned()))
        };
        if proto.op_type() == op::DequantizeLinear
            && let Some((after, before)) = pair()
        {
            renamed.insert(after, before);
        }
    }
    let level = |proto: &NodeProto| {
        let at = proto
            .attribute
            .iter()
            .position(|a| a.name() == "accuracy_level")?;
        (proto.op_type() == op::MatMulNBits && proto.attribute[at].i() != 0).then_some(at)
    };
    if renamed.is_empty() && !view.nodes().any(|(_, proto)| level(proto).is_some()) {
        return None;
    }
    let mut unrounded = model.clone();
    for node in &mut unrounded.graph_mut().node {
        if let Some(at) = level(node) {
            node.attribute[at].i = Some(0);
        }
        for input in &mut node.input {
            // A pair may read the result of another pair.
            let mut steps = 0;
            while let Some(before) = renamed.get(input).filter(|_| steps < renamed.len()) {
                *input = before.clone();
                steps += 1;
            }
        }
    }
    Some(unrounded)
}

/// Whether the float vectors of the models (biases, constants of norms) differ: migration cannot do without, plain
/// quantization leaves them as they are. A vector that is missing in the other model is not known to be the same.
pub(super) fn vectors_differ(float: &Model, other: &Model) -> bool {
    let vectors = |model: &'_ Model| -> std::collections::BTreeMap<String, Option<Vec<f32>>> {
        let tensors = model.graph().initializer.iter();
        let vectors = tensors.filter(|t| {
            let longer = t.dims.iter().filter(|&&d| d > 1).count();
            longer == 1 && tensor::dtype(t).is_some_and(tensor::is_float)
        });
        let elements = |t| Some(tensor::float_array(t).ok()?.into_iter().collect());
        vectors
            .map(|t| (t.name().to_owned(), elements(t)))
            .collect()
    };
    let others = vectors(other);
    vectors(float)
        .iter()
        .any(|(name, vector)| others.get(name) != Some(vector))
}
