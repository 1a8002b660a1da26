//! Shapes that do not follow from those of the inputs: what the engine says of the part of the model before, and what the
//! file states.

use std::collections::BTreeMap;

use crate::calibrate::data::input::{Batch, Shapes};
use crate::calibrate::engine::copy::{Copy, Known, calibration_copy, shapes_text};
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::node::node_label;
use crate::calibrate::engine::plan::Engine;
use crate::graph::infer::{Fact, Facts, Limits, Value, known as all_known};
use crate::graph::work::Product;
use crate::graph::{NodeId, ValueId, View, cut};
use crate::onnx::Model;
use crate::onnx::proto::tensor_shape_proto::dimension::Value as DimValue;
use crate::onnx::proto::{ValueInfoProto, type_proto};

/// What every product of the copy multiplies; shapes that do not follow from those of the inputs, the engine knows.
///
/// # Errors
/// A shape that depends on the data.
pub(super) fn products(
    engine: &dyn Engine,
    copy: &Copy,
    model: &Model,
    like: &Batch,
) -> Result<Vec<Product>, EngineError> {
    let unknown = match copy.products(&Known::new()) {
        Ok(products) => return Ok(products),
        Err(unknown) => unknown,
    };
    let shapes = engine.shapes(model, like, &unknown)?.unwrap_or_default();
    let shapes = shapes.into_iter();
    let known = shapes.map(|(name, shape)| (name, Fact::of_shape(None, &shape)));
    copy.products(&known.collect())
        .map_err(|mut unknown| EngineError::Plan {
            shapes: shapes_text(&like.shapes()),
            reason: format!("the shape of `{}` is not known", unknown.remove(0)),
        })
}

/// What the engine says of the shape of a value: of the part of the model that computes it, and what is known there.
type OfPart<'f> = &'f dyn Fn(&Model, &String, &Known) -> Option<Vec<usize>>;

/// The copy of a model for batches like one. Where it asks for a shape that does not follow from those of the inputs, the
/// engine is asked, with the part of the model before it; what it does not know either, the file may state. A part is told
/// what is known, or it would ask for the same again, once for every part that it is in.
///
/// # Errors
/// Those of [`calibration_copy`]; a shape that no one knows.
pub(super) fn copy_of<'m>(
    model: &'m Model,
    like: &Batch,
    beside: &Known,
    of_part: OfPart,
) -> Result<Copy<'m>, EngineError> {
    let shapes = like.shapes();
    let sizes = like.sizes().into_iter().map(|(name, (dtype, array))| {
        let value = Value::Ints(array.into_shared());
        (name, Fact::of_value(dtype, value))
    });
    let mut known = beside.clone();
    known.extend(sizes);
    loop {
        match calibration_copy(model, &shapes, &known) {
            Err(EngineError::UnknownShape { node, op, value }) => {
                let more = found_shapes(of_part, model, &shapes, &node, &known);
                if more.is_empty() {
                    return Err(at_fault(model, &known, &shapes, (node, op, value)));
                }
                known.extend(more);
            }
            copy => return copy,
        }
    }
}

/// The shapes of what the node called `label` reads, of those of which nothing is known yet. Empty if neither the engine nor
/// the file tells one.
fn found_shapes(
    of_part: OfPart,
    model: &Model,
    shapes: &Shapes,
    label: &str,
    known: &Known,
) -> Known {
    let view = View::new(model);
    let Some(node) = node_called(&view, label) else {
        return Known::new();
    };
    let facts = facts(model, shapes, known);
    let unknown = |v: &ValueId| facts.get(view.name(*v)).and_then(Fact::shape).is_none();
    let inputs = (0..view.node(node).input.len()).filter_map(|slot| view.input(node, slot));
    let mut found = Known::new();
    for value in inputs.filter(|v| unknown(v) && view.producer(*v).is_some()) {
        let part = part_of(&view, value);
        let shape = part.and_then(|part| of_part(&part, &view.name(value).to_owned(), known));
        let shape = shape.or_else(|| {
            let sizes = named_sizes(model, shapes);
            stated_shape(view.graph().value_info.iter(), view.name(value), &sizes)
        });
        if let Some(shape) = shape {
            found.insert(view.name(value).to_owned(), Fact::of_shape(None, &shape));
        }
    }
    found
}

fn node_called(view: &View, label: &str) -> Option<NodeId> {
    view.nodes()
        .find(|(_, node)| node_label(node) == label)
        .map(|(id, _)| id)
}

/// The part of the model that computes a value.
fn part_of(view: &View, value: ValueId) -> Option<Model> {
    let part = cut(view, &[value], |_| false, |_| Ok(())).ok()?;
    part.model(view, |_| None)
}

/// The sizes that the names of axes have at these input shapes.
fn named_sizes(model: &Model, shapes: &Shapes) -> BTreeMap<String, usize> {
    let mut sizes = BTreeMap::new();
    for input in &model.graph().input {
        let dims = dims(input).into_iter().flatten();
        let Some(shape) = shapes.get(input.name()) else {
            continue;
        };
        for (dim, &size) in dims.zip(shape) {
            if let Some(DimValue::DimParam(name)) = dim {
                sizes.entry(name.clone()).or_insert(size);
            }
        }
    }
    sizes
}

/// The shape that the file states for a value, its named axes as large as those of the inputs.
fn stated_shape<'i>(
    mut infos: impl Iterator<Item = &'i ValueInfoProto>,
    name: &str,
    sizes: &BTreeMap<String, usize>,
) -> Option<Vec<usize>> {
    let info = infos.find(|info| info.name() == name)?;
    let size = |dim: &Option<DimValue>| match dim.as_ref()? {
        DimValue::DimValue(n) => usize::try_from(*n).ok(),
        DimValue::DimParam(name) => sizes.get(name).copied(),
    };
    dims(info)?.iter().map(size).collect()
}

fn dims(info: &ValueInfoProto) -> Option<Vec<Option<DimValue>>> {
    match info.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => {
            let dims = tensor.shape.as_ref()?.dim.iter();
            Some(dims.map(|dim| dim.value.clone()).collect())
        }
        _ => None,
    }
}

/// What follows from the shapes of the inputs, and from what else is known.
fn facts(model: &Model, shapes: &Shapes, known: &Known) -> Facts {
    let mut facts = Facts::new(Limits::SIZES);
    for constant in &model.graph().initializer {
        let fact = facts.tensor(constant);
        facts.know(constant.name(), fact);
    }
    for (name, shape) in shapes {
        facts.know(
            name,
            Fact {
                dims: Some(all_known(shape)),
                ..Fact::default()
            },
        );
    }
    for (name, fact) in known {
        facts.know(name, fact.clone());
    }
    facts.follow(model.graph().node.iter());
    facts
}

/// The error for a shape that no one knows. It names the node that makes it so: the first, going back, that has inputs of
/// known shapes alone.
fn at_fault(
    model: &Model,
    known: &Known,
    shapes: &Shapes,
    (node, op, value): (String, String, String),
) -> EngineError {
    let view = View::new(model);
    let facts = facts(model, shapes, known);
    let unknown = |v: &ValueId| facts.get(view.name(*v)).and_then(Fact::shape).is_none();
    let inputs = |id: NodeId| {
        let slots = 0..view.node(id).input.len();
        slots
            .filter_map(|slot| view.input(id, slot))
            .find(|v| unknown(v))
    };
    let mut at = view.value(&value).filter(|v| unknown(v));
    at = at.or_else(|| inputs(node_called(&view, &node)?));
    let mut guilty = None;
    while let Some((producer, _)) = at.and_then(|v| view.producer(v)) {
        guilty = at.map(|v| (producer, v));
        at = inputs(producer);
    }
    match guilty {
        Some((producer, output)) => EngineError::Refused {
            node: node_label(view.node(producer)),
            op: view.node(producer).op_type().to_owned(),
            reason: format!(
                "the shape of its output `{}` is not known before it runs, and {op} `{node}` needs it",
                view.name(output)
            ),
        },
        None => EngineError::UnknownShape { node, op, value },
    }
}
