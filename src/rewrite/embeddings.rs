//! Embedding tables in 8 bits: each row has a scale of its own, and only the rows that are picked become floats.
//!
//! ```text
//! ids ─┬─ Gather(q: int8 [V, C]) ─ DequantizeLinear(1) ─┐
//!      └─ Gather(s: [V, 1]) ────────────────────────────┴─ Mul ─ [.., C]
//! ```
//!
//! or, where rows of 8 bits are not exact enough or 4 bits are asked for, in blocks of 16 or 32 elements with a scale each:
//!
//! ```text
//! ids ── GatherBlockQuantized(q: uint8 [V, C · bits / 8], s: [V, C / block]) ─ [.., C]          (com.microsoft)
//! ```
//!
//! The first is the form that keeps the table small everywhere: ONNX Runtime 1.31 and OpenVINO 2026.4 gather int8 rows (0.13 and 0.15 ms for
//! 1024 rows of 384, float 0.06 and 0.15 ms). A DequantizeLinear before the Gather would widen the table in every run; one by
//! blocks behind it takes ONNX Runtime five times as long and is not read by OpenVINO. TensorRT has constants of int8 only
//! right before a DequantizeLinear, so for it tables stay in float.

use std::collections::BTreeSet;

use ndarray::{Array2, Ix2};
use serde::{Deserialize, Serialize};

use super::{RewriteError, microsoft};
use crate::graph::{Names, NodeId, Patch, Use, ValueId, View};
use crate::onnx::node::{attr_i, int_attr, make_node};
use crate::onnx::{DataType, op, tensor};

/// The elements of a block. On MiniLM-L3 tables of 8 bits cost 0.5 dB with blocks of 32, and 0.4 with these.
const BLOCK_OF_8_BITS: usize = 16;
const BLOCK_OF_4_BITS: usize = 32;

/// Factors on the range of a block of 4 bits: a narrower one clips a few elements and rounds all others finer.
const CLIPS: [f32; 6] = [1.0, 0.94, 0.88, 0.82, 0.76, 0.7];

/// How tables are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EmbeddingForm {
    /// 8 bits, a scale per row.
    Rows,
    /// 8 bits, a scale per 16 elements of a row, or 4 bits, a scale per 32, for ONNX Runtime alone.
    Blocks {
        /// Bits of an element.
        bits: u8,
    },
}

impl EmbeddingForm {
    /// Bits of an element.
    pub fn bits(self) -> u8 {
        match self {
            EmbeddingForm::Rows => 8,
            EmbeddingForm::Blocks { bits } => bits,
        }
    }

    /// Elements of a row that share a scale; `None`: all.
    pub fn block(self) -> Option<usize> {
        match self {
            EmbeddingForm::Rows => None,
            EmbeddingForm::Blocks { bits: 8 } => Some(BLOCK_OF_8_BITS),
            EmbeddingForm::Blocks { .. } => Some(BLOCK_OF_4_BITS),
        }
    }
}

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

    /// Bytes in a form: an integer per element, and a scale per row or block.
    pub fn quantized_bytes(&self, form: EmbeddingForm) -> usize {
        let integers = (self.columns * usize::from(form.bits())).div_ceil(8);
        let scales = form.block().map_or(1, |block| self.columns.div_ceil(block));
        self.rows * (integers + 4 * scales)
    }

    /// Whether it can have a form: bytes hold whole elements.
    pub fn takes(&self, form: EmbeddingForm) -> bool {
        form == EmbeddingForm::Rows || self.columns.is_multiple_of(8 / usize::from(form.bits()))
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
            if table.bytes() >= table.quantized_bytes(EmbeddingForm::Rows) + SMALLEST {
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

/// The patches that store the tables in a form, one each; those that cannot have it stay as they are.
///
/// # Errors
/// A table that cannot be read.
pub fn quantize_embeddings(
    view: &View,
    tables: &[EmbeddingTable],
    form: EmbeddingForm,
    names: &mut Names,
) -> Result<Vec<Patch>, RewriteError> {
    let mut patches = Vec::new();
    for table in tables.iter().filter(|table| table.takes(form)) {
        let name = view.name(table.value);
        let unreadable = || RewriteError::Constant(name.to_owned());
        let constant = view.constant(table.value).and_then(|c| c.into_float());
        let (array, dtype) = constant.ok_or_else(unreadable)?;
        let array = array
            .into_dimensionality::<Ix2>()
            .map_err(|_| unreadable())?;
        let mut patch = Patch::new(format!("store the table `{name}` in {} bits", form.bits()));
        if let Some(block) = form.block() {
            let form = (form.bits(), block);
            store_blocks(view, table, (&array, dtype), form, names, &mut patch);
            patches.push(patch);
            continue;
        }
        let (q, scales) = quantize_rows(&array);
        let constants = Constants::store(name, table, (&q, &scales), names, &mut patch);
        for &gather in &table.gathers {
            rewire(view, gather, &constants, dtype, names, &mut patch);
        }
        patches.push(patch);
    }
    Ok(patches)
}

/// GatherBlockQuantized in the place of the Gathers of a table.
fn store_blocks(
    view: &View,
    table: &EmbeddingTable,
    (array, dtype): (&Array2<f32>, DataType),
    (bits, block): (u8, usize),
    names: &mut Names,
    patch: &mut Patch,
) {
    let name = view.name(table.value);
    let (integers, scales) = (
        names.derive(name, "quantized"),
        names.derive(name, "scales"),
    );
    let (data, steps) = quantize_blocks(array, bits, block);
    let width = table.columns * usize::from(bits) / 8;
    let blocks = [table.rows, table.columns.div_ceil(block)];
    patch.add_initializer(tensor::from_u8(&integers, &[table.rows, width], &data));
    patch.add_initializer(tensor::from_f32(&scales, &blocks, &steps, DataType::Float));
    for &gather in &table.gathers {
        let mut node = view.node(gather).clone();
        let (ids, output) = (node.input[1].clone(), node.output[0].clone());
        microsoft(&mut node, op::GatherBlockQuantized, patch);
        node.input = vec![integers.clone(), ids, scales.clone()];
        let attributes = [
            ("bits", i64::from(bits)),
            ("block_size", block as i64),
            ("gather_axis", 0),
            ("quantize_axis", 1),
        ];
        node.attribute = attributes.map(|(name, value)| int_attr(name, value)).into();
        if dtype != DataType::Float {
            node.output[0] = names.derive(&output, "float32");
            let cast = names.derive(view.node_name(gather), op::Cast);
            let to = vec![int_attr("to", dtype as i64)];
            let cast = make_node(op::Cast, &cast, &[&node.output[0]], &[&output], to);
            patch.insert_after(gather, cast);
        }
        patch.replace(gather, node);
    }
}

/// Bytes with the first element in the lowest bits, raised by `2^(bits − 1)`, and the scale of every block of a row.
fn quantize_blocks(table: &Array2<f32>, bits: u8, block: usize) -> (Vec<u8>, Vec<f32>) {
    let middle = f32::from(1u16 << (bits - 1));
    let (mut data, mut scales) = (Vec::new(), Vec::new());
    for row in table.rows() {
        let row: Vec<f32> = row.iter().copied().collect();
        let mut levels: Vec<u8> = Vec::with_capacity(row.len());
        for block in row.chunks(block) {
            let scale = best_scale(block, middle, bits);
            scales.push(scale);
            let level = |x: &f32| (round_to(*x, scale, middle) + middle) as u8;
            levels.extend(block.iter().map(level));
        }
        data.extend(tensor::packed(&levels, bits));
    }
    (data, scales)
}

/// The integer nearest to x / s, from −middle to middle − 1.
fn round_to(x: f32, scale: f32, middle: f32) -> f32 {
    (x / scale).round_ties_even().clamp(-middle, middle - 1.0)
}

/// The scale that leaves least error in a block; 1 where all is zero.
fn best_scale(block: &[f32], middle: f32, bits: u8) -> f32 {
    let largest = block.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    if largest < f32::MIN_POSITIVE * middle {
        return 1.0;
    }
    let clips = if bits < 8 { &CLIPS[..] } else { &CLIPS[..1] };
    let scales = clips.iter().map(|clip| clip * largest / (middle - 1.0));
    let error = |scale: f32| {
        let of = block
            .iter()
            .map(|&x| (round_to(x, scale, middle) * scale - x).powi(2));
        of.sum::<f32>()
    };
    let tried = scales.map(|scale| (scale, error(scale)));
    let least = tried.reduce(|a, b| if b.1 < a.1 { b } else { a });
    least.map_or(1.0, |(scale, _)| scale)
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
