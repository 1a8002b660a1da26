//! Embedding tables in 8 bits: each row has a scale of its own, and only the rows that are picked become floats.
//!
//! ```text
//! ids ─┬─ Gather(q: int8 [V, C]) ─ DequantizeLinear(1) ─┐
//!      └─ Gather(s: [V, 1]) ────────────────────────────┴─ Mul ─ [.., C]
//! ```
//!
//! This is the form that keeps the table small: ONNX Runtime 1.31 and OpenVINO 2026.4 gather int8 rows (0.13 and 0.15 ms for
//! 1024 rows of 384, float 0.06 and 0.15 ms). A DequantizeLinear before the Gather would widen the table in every run; one by
//! blocks behind it takes ONNX Runtime five times as long and is not read by OpenVINO. TensorRT has constants of int8 only
//! right before a DequantizeLinear, so for it tables stay in float.

use std::collections::BTreeSet;

use ndarray::{Array2, Ix2};

use super::RewriteError;
use crate::graph::{Names, NodeId, Patch, Use, ValueId, View};
use crate::onnx::node::{attr_i, int_attr, make_node};
use crate::onnx::{DataType, op, tensor};

/// Smaller tables save less than the three nodes are worth, in bytes.
const SMALLEST: usize = 16 << 10;

/// A table of less than one in so many bytes of all tables stays in float.
const SMALL_PART: usize = 20;

/// One table that rows are picked from by computed indices.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingTable {
    /// The constant, [V, C].
    pub value: ValueId,
    /// The Gathers that read it.
    pub gathers: Vec<NodeId>,
    /// V.
    pub rows: usize,
    /// C.
    pub columns: usize,
    /// Its type in the file.
    pub dtype: DataType,
    /// Whether something else reads it too, as a head with tied weights does: then the float table stays in the file.
    pub shared: bool,
}

impl EmbeddingTable {
    /// Bytes in the file as it is.
    pub fn bytes(&self) -> usize {
        let size = match self.dtype {
            DataType::Float16 | DataType::Bfloat16 => 2,
            DataType::Double => 8,
            _ => 4,
        };
        self.rows * self.columns * size
    }

    /// Bytes in 8 bits: an integer per element and a scale per row.
    pub fn quantized_bytes(&self) -> usize {
        self.rows * (self.columns + 4)
    }
}

/// The embedding tables of a graph, in the order of their first Gather. A table that is picked from by constants alone, and a
/// small one, is none.
pub fn embedding_tables(view: &View) -> Vec<EmbeddingTable> {
    let fixed = view.fixed_values();
    let mut tables: Vec<EmbeddingTable> = Vec::new();
    for (node, proto) in view.nodes() {
        let (Some(value), Some(ids)) = (view.input(node, 0), view.input(node, 1)) else {
            continue;
        };
        if view.op(node) != op::Gather || attr_i(proto, "axis").unwrap_or(0) != 0 {
            continue;
        }
        if let Some(table) = tables.iter_mut().find(|t| t.value == value) {
            table.gathers.push(node);
            continue;
        }
        let computed = !fixed.contains(&ids) && !view.is_constant(ids);
        let stored = view.initializer(view.origin(value));
        if let Some(stored) = stored.filter(|_| computed && view.is_constant(value))
            && let (Some(dtype), Some([rows, columns])) =
                (tensor::dtype(stored), matrix(view, value))
            && tensor::is_float(dtype)
        {
            let table = EmbeddingTable {
                value,
                gathers: vec![node],
                rows,
                columns,
                dtype,
                shared: false,
            };
            if table.bytes() >= table.quantized_bytes() + SMALLEST {
                tables.push(table);
            }
        }
    }
    // The error of a small table is as large as that of a large one.
    let all: usize = tables.iter().map(EmbeddingTable::bytes).sum();
    tables.retain(|table| table.bytes() * SMALL_PART >= all);
    for table in &mut tables {
        let own: BTreeSet<NodeId> = table.gathers.iter().copied().collect();
        let other = |reader: &Use| !matches!(reader, Use::Node { node, .. } if own.contains(node));
        table.shared = view.uses(table.value).iter().any(other);
    }
    tables
}

/// The shape of a constant of rank 2.
fn matrix(view: &View, value: ValueId) -> Option<[usize; 2]> {
    let shape = match view.initializer(value) {
        Some(stored) => tensor::shape(stored).ok()?,
        None => view
            .constant_fact(value, crate::graph::infer::Limits::SIZES)?
            .shape()?,
    };
    <[usize; 2]>::try_from(shape).ok()
}

/// The patches that store the tables in 8 bits, one each.
///
/// # Errors
/// A table that cannot be read.
pub fn quantize_embeddings(
    view: &View,
    tables: &[EmbeddingTable],
    names: &mut Names,
) -> Result<Vec<Patch>, RewriteError> {
    let mut patches = Vec::new();
    for table in tables {
        let name = view.name(table.value);
        let unreadable = || RewriteError::Constant(name.to_owned());
        let constant = view.constant(table.value).and_then(|c| c.into_float());
        let (array, dtype) = constant.ok_or_else(unreadable)?;
        let array = array
            .into_dimensionality::<Ix2>()
            .map_err(|_| unreadable())?;
        let mut patch = Patch::new(format!("store the table `{name}` in 8 bits"));
        let (q, scales) = quantize_rows(&array);
        let constants = Constants::store(name, table, (&q, &scales), names, &mut patch);
        for &gather in &table.gathers {
            rewire(view, gather, &constants, dtype, names, &mut patch);
        }
        patches.push(patch);
    }
    Ok(patches)
}

/// round(x / s) with s = max |x| / 127 of each row; an empty row has the scale 1.
fn quantize_rows(table: &Array2<f32>) -> (Vec<i8>, Vec<f32>) {
    let mut scales = Vec::with_capacity(table.nrows());
    let mut q = Vec::with_capacity(table.len());
    for row in table.rows() {
        let largest = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
        scales.push(scale);
        q.extend(
            row.iter()
                .map(|x| (x / scale).round_ties_even().clamp(-127.0, 127.0) as i8),
        );
    }
    (q, scales)
}

/// The names of what stands for a table.
struct Constants {
    integers: String,
    scales: String,
    one: String,
    zero: String,
}

impl Constants {
    fn store(
        name: &str,
        table: &EmbeddingTable,
        (q, scales): (&[i8], &[f32]),
        names: &mut Names,
        patch: &mut Patch,
    ) -> Constants {
        let mut derive = |what: &str| names.derive(name, what);
        let constants = Constants {
            integers: derive("quantized"),
            scales: derive("row_scales"),
            one: derive("scale"),
            zero: derive("zero_point"),
        };
        patch.add_initializer(tensor::from_i8(
            &constants.integers,
            &[table.rows, table.columns],
            q,
        ));
        let float = DataType::Float;
        patch.add_initializer(tensor::from_f32(
            &constants.scales,
            &[table.rows, 1],
            scales,
            float,
        ));
        patch.add_initializer(tensor::from_f32(&constants.one, &[], &[1.0], float));
        patch.add_initializer(tensor::from_i8(&constants.zero, &[], &[0]));
        constants
    }
}

/// The Gather picks integers; what stands behind it gives its old output.
fn rewire(
    view: &View,
    gather: NodeId,
    table: &Constants,
    dtype: DataType,
    names: &mut Names,
    patch: &mut Patch,
) {
    let proto = view.node(gather);
    let base = view.node_name(gather);
    let (ids, output) = (&proto.input[1], &proto.output[0]);
    let mut derive = |what: &str| names.derive(output, what);
    let (rows, wide, scales) = (derive("quantized"), derive("levels"), derive("scales"));
    let float = match dtype {
        DataType::Float => output.clone(),
        _ => derive("float32"),
    };
    let mut picks = proto.clone();
    picks.input[0] = table.integers.clone();
    picks.output[0] = rows.clone();
    patch.replace(gather, picks);
    let mut name = |what: &str| names.derive(base, what);
    let dequantize = [rows.as_str(), &table.one, &table.zero];
    let picked = [table.scales.as_str(), ids.as_str()];
    let nodes = [
        make_node(
            op::DequantizeLinear,
            &name(op::DequantizeLinear),
            &dequantize,
            &[&wide],
            vec![],
        ),
        make_node(
            op::Gather,
            &name("scales"),
            &picked,
            &[&scales],
            vec![int_attr("axis", 0)],
        ),
        make_node(
            op::Mul,
            &name(op::Mul),
            &[&wide, &scales],
            &[&float],
            vec![],
        ),
    ];
    nodes
        .into_iter()
        .for_each(|node| patch.insert_after(gather, node));
    if dtype != DataType::Float {
        let to = vec![int_attr("to", dtype as i64)];
        patch.insert_after(
            gather,
            make_node(op::Cast, &name(op::Cast), &[&float], &[output], to),
        );
    }
}

/// Indices, integers and scales, if `mul` is the product of rows and their scales.
pub fn quantized_table(view: &View, mul: NodeId) -> Option<[ValueId; 3]> {
    (view.op(mul) == op::Mul).then_some(())?;
    let dequantize = view.producer_is(view.input(mul, 0)?, op::DequantizeLinear)?;
    let rows = view.producer_is(view.input(dequantize, 0)?, op::Gather)?;
    let scales = view.producer_is(view.input(mul, 1)?, op::Gather)?;
    let ids = view.input(rows, 1)?;
    let is_one = view.scalar(view.input(dequantize, 1)?) == Some(1.0);
    let [integers, scale] = [view.input(rows, 0)?, view.input(scales, 0)?];
    let stored = [integers, scale].iter().all(|&v| view.is_constant(v));
    (is_one && stored && view.input(scales, 1)? == ids).then_some([ids, integers, scale])
}
