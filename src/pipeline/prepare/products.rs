//! Products with a weight that is a Linear's by its value, though not by its form: brought into that form.

use std::collections::{BTreeMap, BTreeSet};

use super::changes::Changes;
use crate::calibrate::{Batch, Wanted, shapes};
use crate::error::Error;
use crate::graph::branches::FlatModel;
use crate::graph::infer::{Facts, Limits};
use crate::graph::{Names, NodeId, Patch, ValueId, View, cut};
use crate::onnx::op;
use crate::onnx::{DataType, tensor};
use crate::pipeline::job::Job;
use crate::recognise::asks_rank;
use crate::rewrite::{self, RewriteError, Rewritten};

/// Stores what constants alone tell of a weight or bias: a Gather of one expert's matrix, W + A B of a LoRA. The engine
/// evaluates all of them in one run; what it cannot stays as it is.
pub(super) fn store_weights(
    job: &Job,
    mut model: FlatModel,
    changes: &mut Changes,
) -> Result<FlatModel, Error> {
    let view = model.view();
    let readers = computed_weights(job, &view);
    let values: BTreeSet<ValueId> = readers.iter().map(|&(_, _, value)| value).collect();
    let values: Vec<ValueId> = values.into_iter().collect();
    let Some(arrays) = evaluate(job, &view, &values) else {
        return Ok(model);
    };
    let mut names = Names::new(model.as_model());
    let mut stored: BTreeMap<ValueId, String> = BTreeMap::new();
    let mut patches = Vec::new();
    for (node, slot, value) in readers {
        let of = view.name(value);
        let Some((array, dtype)) = arrays.get(of) else {
            continue;
        };
        let mut patch = Patch::new(format!("store `{of}`, which constants alone tell"));
        let name = stored.entry(value).or_insert_with(|| {
            let name = names.derive(of, "stored");
            let data: Vec<f32> = array.iter().copied().collect();
            patch.add_initializer(tensor::from_f32(&name, array.shape(), &data, *dtype));
            name
        });
        patch.rewire(node, slot, name.clone());
        patches.push(patch);
    }
    if !stored.is_empty() {
        changes.notes.push(format!(
            "{} weights and biases that nodes computed from constants were stored",
            stored.len()
        ));
    }
    drop(view);
    model.apply(patches).map_err(RewriteError::from)?;
    Ok(model)
}

/// The inputs of products, and of Adds behind them, that nodes compute from initializers alone, in a way that the view does
/// not evaluate.
fn computed_weights(job: &Job, view: &View) -> Vec<(NodeId, usize, ValueId)> {
    let fixed = view.fixed_values();
    let dynamic = |v: &ValueId| !fixed.contains(v) && !view.is_constant(*v);
    let is_product =
        |node: NodeId| matches!(view.op(node), op::MatMul | op::Gemm | op::Einsum | op::Conv);
    let mut found = Vec::new();
    for (node, proto) in view.nodes() {
        if job.options.refuses(view.node_name(node)).is_some() {
            continue;
        }
        let inputs =
            (0..proto.input.len()).filter_map(|slot| Some((slot, view.input(node, slot)?)));
        let inputs: Vec<(usize, ValueId)> = inputs.collect();
        let behind_product = |v: ValueId| view.producer(v).is_some_and(|(p, _)| is_product(p));
        let counts = match view.op(node) {
            op::Add => inputs
                .iter()
                .any(|&(_, v)| dynamic(&v) && behind_product(v)),
            _ => is_product(node) && inputs.iter().any(|(_, v)| dynamic(v)),
        };
        if counts {
            let computed = inputs
                .into_iter()
                .filter(|&(_, v)| fixed.contains(&v) && !view.is_constant(v) && of_floats(view, v));
            found.extend(computed.map(|(slot, value)| (node, slot, value)));
        }
    }
    found
}

/// Whether nothing on the way to a value is quantized: such a weight is a Linear's that is done.
fn of_floats(view: &View, value: ValueId) -> bool {
    let take = |node: NodeId| {
        let op = view.node(node).op_type();
        let quantizes = op.contains("Quantize") || op.contains("Dequantize");
        match quantizes || view.node(node).domain() == crate::recognise::MICROSOFT {
            true => Err(op.to_owned()),
            false => Ok(()),
        }
    };
    cut(view, &[value], |_| false, take).is_ok()
}

/// Whether there is a product with a factor in float that no input reaches: without one there is no Linear, whatever data
/// shows.
pub(in crate::pipeline) fn any_candidate(view: &View) -> bool {
    const PRODUCTS: [&str; 9] = [
        op::Attention,
        op::Conv,
        op::Einsum,
        op::FusedGemm,
        op::FusedMatMul,
        op::Gemm,
        op::GemmFastGelu,
        op::MatMul,
        op::PackedAttention,
    ];
    let fixed = view.fixed_values();
    let factor = |value: ValueId| {
        (fixed.contains(&value) || view.is_constant(value)) && of_floats(view, value)
    };
    view.nodes().any(|(node, proto)| {
        let inputs = (0..proto.input.len().min(2)).filter_map(|slot| view.input(node, slot));
        PRODUCTS.contains(&proto.op_type()) && inputs.into_iter().any(factor)
    })
}

type Weights = BTreeMap<String, (ndarray::ArrayD<f32>, DataType)>;

/// The float arrays of values that no input reaches, with their types in the file.
fn evaluate(job: &Job, view: &View, values: &[ValueId]) -> Option<Weights> {
    if values.is_empty() {
        return None;
    }
    let part = cut(view, values, |_| false, |_| Ok(())).ok()?;
    let model = part.model(view, |_| None)?;
    let mut facts = Facts::new(Limits::SIZES);
    for constant in &model.graph().initializer {
        let fact = facts.tensor(constant);
        facts.know(constant.name(), fact);
    }
    facts.follow(model.graph().node.iter());
    let batch = Batch::new(BTreeMap::new(), Vec::new());
    let wanted = Wanted {
        taps: &[],
        outputs: true,
    };
    let plan = job.engine.plan(&model, &batch, &wanted).ok()?;
    let outputs = plan.run(&batch, None).ok()?;
    let typed = outputs.into_iter().filter_map(|(name, array)| {
        let dtype = facts.dtype(&name)?;
        Some((name, (array, dtype)))
    });
    Some(
        typed
            .filter(|(_, (_, dtype))| tensor::is_float(*dtype))
            .collect(),
    )
}

/// Writes Linears in another layout as MatMuls. How many axes a value has is what the file states or two rows show.
pub(super) fn to_matmul(
    job: &Job,
    mut model: FlatModel,
    small: &[Batch],
    changes: &mut Changes,
) -> Result<FlatModel, Error> {
    let view = model.view();
    let asked = view.nodes().filter_map(|(node, _)| asks_rank(&view, node));
    let asked: BTreeSet<String> = asked.map(|v| view.name(v).to_owned()).collect();
    let asked: Vec<String> = asked.into_iter().collect();
    let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
    for batch in small.iter().filter(|_| !asked.is_empty()) {
        let found = shapes(job.engine, model.as_model(), batch, &asked)?;
        ranks.extend(found.into_iter().map(|(name, shape)| (name, shape.len())));
    }
    let rank = |value: ValueId| {
        let stated = || view.shape(value).map(|shape| shape.len());
        ranks.get(view.name(value)).copied().or_else(stated)
    };
    let fixed = view.fixed_values();
    let wanted = |node: NodeId| {
        let inputs = (0..view.node(node).input.len()).filter_map(|slot| view.input(node, slot));
        let mut inputs = inputs.filter(|&v| !view.is_constant(v));
        job.options.refuses(view.node_name(node)).is_none() && !inputs.all(|v| fixed.contains(&v))
    };
    let mut names = Names::new(model.as_model());
    let done = rewrite::to_matmul(&view, &mut names, &rank, wanted)?;
    let (patches, rewritten): (Vec<Patch>, Vec<Rewritten>) = done.into_iter().unzip();
    changes.rewritten = rewritten;
    if !patches.is_empty() {
        changes.notes.push(format!(
            "{} Linears in another layout (Einsum, 1×1 Conv, weights on the left or with axes of size 1) were written as MatMul",
            patches.len()
        ));
    }
    drop(view);
    model.apply(patches).map_err(RewriteError::from)?;
    Ok(model)
}

/// Puts back as it was what still has the form that [`to_matmul`] gave it: neither quantized nor migrated.
///
/// # Errors
/// None but a defect of this tool.
pub(in crate::pipeline) fn restore(
    model: &mut FlatModel,
    rewritten: &[Rewritten],
) -> Result<(), Error> {
    for one in rewritten {
        let patch = one.restore(&model.view());
        model
            .apply(patch.into_iter().collect())
            .map_err(RewriteError::from)?;
    }
    Ok(())
}
