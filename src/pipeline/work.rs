//! Who does the multiplications: integers, or float and as which operator.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::{Plan, Precision};
use super::prepare::Prepared;
use crate::calibrate::{Batch, Engine};
use crate::graph::work::Product;
use crate::graph::{Use, View, works_in_loops};
use crate::onnx::{Model, op, tensor};
use crate::recognise::Recognised;
use crate::review::WorkReport;

/// The work of a plan on one batch; `None` if its shapes are not known. `written` is the model that it made.
pub(super) fn work_of(
    engine: &dyn Engine,
    prepared: &Prepared,
    plan: &Plan,
    batch: &Batch,
    written: &Model,
) -> Option<WorkReport> {
    let view = prepared.model.view();
    let products = products(engine, prepared.model.as_model(), batch)?;
    let linears = prepared.found.linears.iter().zip(&plan.linears);
    let integer = |p: &&Precision| plan.format.quantizes() && p.is_integer();
    let linears = linears
        .filter(|(_, p)| integer(p))
        .filter_map(|(l, _)| view.output(l.node, 0));
    let mut int8: BTreeSet<&str> = linears.map(|v| view.name(v)).collect();
    let attentions = plan.attention.iter().filter(|a| a.precision.is_integer());
    let names: BTreeSet<&String> = attentions.flat_map(|a| &a.products).collect();
    let in_attention = view
        .nodes()
        .filter(|(node, _)| names.contains(&view.node_name(*node).to_owned()));
    int8.extend(in_attention.filter_map(|(node, _)| Some(view.name(view.output(node, 0)?))));
    let rotations = prepared
        .sites
        .iter()
        .zip(&plan.sites)
        .filter_map(|((_, row), site)| {
            let rotation = site.as_ref()?.transform.rotation.as_ref()?;
            let first = row.selected(&prepared.found).next()?;
            let output = view.name(view.output(first.node, 0)?);
            let linear = products.iter().find(|p| p.output == output)?;
            let tokens = linear.multiplications / (first.k * first.n) as f64;
            Some(tokens * rotation.channels() as f64 * rotation.cost())
        });
    let rotations: Vec<f64> = rotations.collect();
    let mut work = report(
        &view,
        &prepared.found,
        &products,
        &int8,
        &rotations,
        batch.rows.len(),
    );
    (work.embedding_bytes, work.float_bytes) = float_bytes(written);
    Some(work)
}

/// The work of a model if every Linear were in integers, and of those that `skipped` names in float.
pub(super) fn work_of_model(
    engine: &dyn Engine,
    model: &Model,
    found: &Recognised,
    batch: &Batch,
) -> Option<WorkReport> {
    let view = View::new(model);
    let products = products(engine, model, batch)?;
    let linears = found.linears.iter().filter_map(|l| view.output(l.node, 0));
    let int8 = linears.map(|v| view.name(v)).collect();
    let mut work = report(&view, found, &products, &int8, &[], batch.rows.len());
    (work.embedding_bytes, work.float_bytes) = float_bytes(model);
    Some(work)
}

/// Every product, where all of them and their shapes are known.
fn products(engine: &dyn Engine, model: &Model, batch: &Batch) -> Option<Vec<Product>> {
    match works_in_loops(model.graph()) {
        true => None,
        false => engine.products(model, batch).ok(),
    }
}

fn report(
    view: &View,
    found: &Recognised,
    products: &[Product],
    int8: &BTreeSet<&str>,
    rotations: &[f64],
    rows: usize,
) -> WorkReport {
    let linears: BTreeSet<&str> = found
        .linears
        .iter()
        .filter_map(|l| Some(view.name(view.output(l.node, 0)?)))
        .collect();
    let kind = |p: &Product| match p.op.as_str() {
        _ if linears.contains(p.output.as_str()) => "Linears".to_owned(),
        op::MatMul | op::Gemm | op::MatMulInteger | op::Einsum if !p.weight => {
            format!("{} of two activations", p.op)
        }
        op::MatMul | op::Gemm | op::MatMulInteger => format!("{} that is no Linear", p.op),
        op => op.to_owned(),
    };
    let mut integers = 0.0;
    let mut float: BTreeMap<String, (usize, f64)> = BTreeMap::new();
    for product in products {
        if int8.contains(product.output.as_str()) {
            integers += product.multiplications;
            continue;
        }
        let (nodes, sum) = float.entry(kind(product)).or_default();
        (*nodes, *sum) = (*nodes + 1, *sum + product.multiplications);
    }
    if !rotations.is_empty() {
        float.insert(
            "rotations".to_owned(),
            (rotations.len(), rotations.iter().sum()),
        );
    }
    let float = float
        .into_iter()
        .map(|(what, (nodes, sum))| (what, nodes, sum));
    WorkReport::new(rows, integers, float)
}

/// Bytes of embedding tables in float, and of all constants in float.
fn float_bytes(model: &Model) -> (u64, u64) {
    let view = View::new(model);
    let (mut tables, mut all) = (0, 0);
    for stored in &view.graph().initializer {
        let Some(dtype) = tensor::dtype(stored).filter(|t| tensor::is_float(*t)) else {
            continue;
        };
        let size = match dtype {
            crate::onnx::DataType::Double => 8,
            crate::onnx::DataType::Float => 4,
            _ => 2,
        };
        let elements: u64 = stored.dims.iter().map(|&d| d.max(0) as u64).product();
        all += size * elements;
        let read_by_row = |reader: &Use| match *reader {
            Use::Node { node, input: 0 } => view.op(node) == op::Gather,
            _ => false,
        };
        let uses = view.value(stored.name()).map_or(&[][..], |v| view.uses(v));
        if stored.dims.len() == 2 && uses.iter().any(read_by_row) {
            tables += size * elements;
        }
    }
    (tables, all)
}
