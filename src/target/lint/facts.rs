//! What the rules ask of a graph: its quantizations, and the products that read them.
//!
//! ```text
//! x ── QuantizeLinear ── DequantizeLinear ──┐
//! W: int8 ────────────── DequantizeLinear ──┴─ MatMul or Gemm ── …
//! ```

use std::collections::BTreeMap;

use crate::graph::infer;
use crate::graph::{Constant, NodeId, ValueId, View};
use crate::onnx::node::{attr, attr_f, attr_i, attr_t};
use crate::onnx::op;
use crate::onnx::{DataType, tensor};

/// Operators that hand their first input on in another shape or order.
const LAYOUT: [&str; 6] = [
    op::Flatten,
    op::Identity,
    op::Reshape,
    op::Squeeze,
    op::Transpose,
    op::Unsqueeze,
];

/// A QuantizeLinear or DequantizeLinear, of ONNX or of com.microsoft.
#[derive(Clone, Debug)]
pub(super) struct Quant {
    pub node: NodeId,
    /// QuantizeLinear, not DequantizeLinear.
    pub quantizes: bool,
    /// Input 0.
    pub data: Option<ValueId>,
    /// The elements of a constant scale.
    pub scale: Option<Vec<f32>>,
    /// The scale is computed by nodes of the graph.
    pub computed_scale: bool,
    /// The number of elements of the scale, where the file says it.
    pub scale_count: Option<usize>,
    /// Whether there is a zero point at all.
    pub has_zero_point: bool,
    /// The elements of a constant zero point.
    pub zero_point: Option<Vec<i64>>,
    /// The number of elements of the zero point, where the file says it.
    pub zero_point_count: Option<usize>,
    /// The integer type.
    pub dtype: Option<DataType>,
    /// The attribute `output_dtype`, from operator set 21 on.
    pub output_dtype: Option<DataType>,
    /// The attribute `axis`; 1 by default.
    pub axis: i64,
    /// The attribute `block_size`; 0 by default.
    pub block_size: i64,
    /// The rank of the data, where the file says it.
    pub rank: Option<usize>,
    /// The shape of the data where it is a constant, possibly behind a QuantizeLinear.
    pub constant: Option<Vec<usize>>,
    /// The QuantizeLinear that the data comes from.
    pub source: Option<NodeId>,
}

impl Quant {
    /// One scale for the whole tensor, or a number of scales that the file does not say.
    pub(super) fn is_per_tensor(&self) -> bool {
        self.scale_count.is_none_or(|n| n == 1) && self.block_size == 0
    }

    /// A DequantizeLinear of what was quantized at run time.
    pub(super) fn is_activation(&self) -> bool {
        self.source.is_some() && self.constant.is_none()
    }

    /// The axis of the scales, counted from 0; `None` for one scale per tensor or an unknown rank.
    pub(super) fn channel_axis(&self) -> Option<usize> {
        if self.is_per_tensor() {
            return None;
        }
        match usize::try_from(self.axis) {
            Ok(axis) => Some(axis),
            Err(_) => usize::try_from(i64::try_from(self.rank?).ok()? + self.axis).ok(),
        }
    }

    /// Whether some element of the zero point is not 0.
    pub(super) fn is_shifted(&self) -> bool {
        self.zero_point
            .as_ref()
            .is_some_and(|z| z.iter().any(|&z| z != 0))
    }
}

/// A MatMul or Gemm.
#[derive(Clone, Debug)]
pub(super) struct Product {
    pub node: NodeId,
    pub gemm: bool,
    /// Gemm's transB.
    pub trans_b: bool,
    /// Gemm's alpha.
    pub alpha: f32,
    /// The DequantizeLinear that each factor comes from directly.
    pub factors: [Option<Quant>; 2],
    /// Whether a factor comes from a DequantizeLinear at least through operators of layout.
    pub dequantized: [bool; 2],
    /// Gemm's third input.
    pub bias: Option<ValueId>,
    /// The DequantizeLinear it comes from.
    pub dequantized_bias: Option<Quant>,
    /// The output.
    pub output: Option<ValueId>,
}

impl Product {
    /// Both factors, if both are dequantized.
    pub(super) fn pair(&self) -> Option<(&Quant, &Quant)> {
        Some((self.factors[0].as_ref()?, self.factors[1].as_ref()?))
    }

    /// Whether the scales of the second factor, a constant, lie along its output channels.
    pub(super) fn scales_columns(&self) -> Option<bool> {
        let weight = self.factors[1].as_ref()?;
        let shape = weight.constant.as_ref()?;
        let axis = weight.channel_axis()?;
        let columns = match (self.trans_b, shape.len()) {
            (true, _) => 0,
            (false, 0) => return None,
            (false, rank) => rank - 1,
        };
        Some(axis == columns)
    }
}

/// Everything of one graph.
pub(super) struct Facts {
    /// In graph order.
    pub quants: Vec<Quant>,
    /// In graph order.
    pub products: Vec<Product>,
}

impl Facts {
    pub(super) fn new(view: &View) -> Self {
        let mut quants: BTreeMap<NodeId, Quant> = BTreeMap::new();
        for (id, _) in view.nodes() {
            if let Some(quantizes) = is_quant(view, id) {
                let quant = quant(view, id, quantizes, &quants);
                quants.insert(id, quant);
            }
        }
        let products = view
            .nodes()
            .filter_map(|(id, _)| product(view, id, &quants));
        Facts {
            products: products.collect(),
            quants: quants.into_values().collect(),
        }
    }

    /// The quantization at `node`.
    pub(super) fn quant(&self, node: NodeId) -> Option<&Quant> {
        let at = self.quants.binary_search_by_key(&node, |q| q.node).ok()?;
        Some(&self.quants[at])
    }
}

/// `true` for QuantizeLinear, `false` for DequantizeLinear, `None` for everything else.
fn is_quant(view: &View, id: NodeId) -> Option<bool> {
    let node = view.node(id);
    if !matches!(node.domain(), "" | "ai.onnx" | "com.microsoft") {
        return None;
    }
    match node.op_type() {
        op::QuantizeLinear => Some(true),
        op::DequantizeLinear => Some(false),
        _ => None,
    }
}

fn quant(view: &View, id: NodeId, quantizes: bool, before: &BTreeMap<NodeId, Quant>) -> Quant {
    let node = view.node(id);
    let data = view.input(id, 0);
    let (scale, zero_point) = (view.input(id, 1), view.input(id, 2));
    let producer = data.and_then(|d| view.producer(d)).map(|(node, _)| node);
    let source = producer.filter(|p| before.get(p).is_some_and(|q| q.quantizes));
    let output_dtype = attr_i(node, "output_dtype").and_then(|t| i32::try_from(t).ok());
    let output_dtype = output_dtype.and_then(|t| DataType::try_from(t).ok());
    let output_dtype = output_dtype.filter(|&t| t != DataType::Undefined);
    let of_zero_point = zero_point.and_then(|z| elem_type(view, z));
    let dtype = match (quantizes, source) {
        (true, _) => of_zero_point
            .or(output_dtype)
            .or(zero_point.is_none().then_some(DataType::Uint8)),
        (false, Some(q)) => before[&q].dtype,
        (false, None) => data.and_then(|d| elem_type(view, d)).or(of_zero_point),
    };
    let constant = data.filter(|&d| view.is_constant(d));
    let shape = match source {
        // A float weight, quantized where it is read.
        Some(q) => before[&q].constant.clone(),
        None => constant.and_then(|d| constant_shape(view, d)),
    };
    let rank = match (&shape, source) {
        (Some(shape), _) => Some(shape.len()),
        (None, Some(q)) => before[&q].rank,
        (None, None) => data.and_then(|d| view.shape(d)).map(|s| s.len()),
    };
    let scales = scale.and_then(|s| view.constant(s)?.into_float());
    let scales: Option<Vec<f32>> = scales.map(|(array, _)| array.into_iter().collect());
    Quant {
        node: id,
        quantizes,
        data,
        scale_count: count(view, scale, scales.as_ref().map(Vec::len)),
        computed_scale: scale.is_some_and(|s| view.producer(s).is_some() && !view.is_constant(s)),
        scale: scales,
        has_zero_point: zero_point.is_some(),
        zero_point_count: count(view, zero_point, None),
        zero_point: zero_point.and_then(|z| integers(view.constant(z)?)),
        dtype,
        output_dtype,
        axis: attr_i(node, "axis").unwrap_or(1),
        block_size: attr_i(node, "block_size").unwrap_or(0),
        rank,
        constant: shape,
        source,
    }
}

fn integers(constant: Constant) -> Option<Vec<i64>> {
    constant.into_ints()
}

/// The number of elements of a value.
fn count(view: &View, value: Option<ValueId>, known: Option<usize>) -> Option<usize> {
    let shape = || {
        let value = value?;
        let shape = constant_shape(view, value).map(|s| s.into_iter().map(Some).collect());
        let shape: Vec<Option<usize>> = shape.or_else(|| view.shape(value))?;
        infer::product(&shape)
    };
    known.or_else(shape)
}

/// The shape of a constant, without reading it where an initializer or Constant node says it.
fn constant_shape(view: &View, value: ValueId) -> Option<Vec<usize>> {
    if let Some(stored) = view.initializer(value) {
        return tensor::shape(stored).ok();
    }
    let (node, _) = view.producer(value)?;
    let input = || view.input(node, 0);
    match view.op(node) {
        op::Constant => match attr_t(view.node(node), "value") {
            Some(stored) => tensor::shape(stored).ok(),
            None => view.constant(value).map(|c| match c {
                Constant::Float { array, .. } => array.shape().to_vec(),
                Constant::Int(array) => array.shape().to_vec(),
            }),
        },
        // A weight that is stored narrower.
        op::Cast | op::Identity => constant_shape(view, input()?),
        _ if view.is_constant(value) => view.constant(value).map(|c| match c {
            Constant::Float { array, .. } => array.shape().to_vec(),
            Constant::Int(array) => array.shape().to_vec(),
        }),
        _ => None,
    }
}

/// The element type of a value, where the file says it.
pub(super) fn elem_type(view: &View, mut value: ValueId) -> Option<DataType> {
    loop {
        let stated = view
            .elem_type(value)
            .and_then(|t| DataType::try_from(t).ok());
        if let Some(dtype) = stated.filter(|&t| t != DataType::Undefined) {
            return Some(dtype);
        }
        let (node, _) = view.producer(value)?;
        let proto = view.node(node);
        match view.op(node) {
            op::Constant => {
                let int = attr(proto, "value_int").or(attr(proto, "value_ints"));
                return match attr_t(proto, "value") {
                    Some(stored) => tensor::dtype(stored),
                    None if int.is_some() => Some(DataType::Int64),
                    None => None,
                };
            }
            op::Cast => {
                let to = i32::try_from(attr_i(proto, "to")?).ok()?;
                return DataType::try_from(to).ok();
            }
            op if LAYOUT.contains(&op) => value = view.input(node, 0)?,
            _ => return None,
        }
    }
}

fn product(view: &View, id: NodeId, quants: &BTreeMap<NodeId, Quant>) -> Option<Product> {
    let gemm = match view.op(id) {
        op::MatMul => false,
        op::Gemm => true,
        _ => return None,
    };
    let node = view.node(id);
    let dequantize = |value: Option<ValueId>| {
        let (producer, _) = view.producer(value?)?;
        quants.get(&producer).filter(|q| !q.quantizes).cloned()
    };
    let behind = |slot| {
        let mut value = view.input(id, slot);
        while let Some((producer, 0)) = value.and_then(|v| view.producer(v))
            && LAYOUT.contains(&view.op(producer))
        {
            value = view.input(producer, 0);
        }
        dequantize(value).is_some()
    };
    let bias = view.input(id, 2).filter(|_| gemm);
    Some(Product {
        node: id,
        gemm,
        trans_b: gemm && attr_i(node, "transB") == Some(1),
        alpha: attr_f(node, "alpha").filter(|_| gemm).unwrap_or(1.0),
        factors: [dequantize(view.input(id, 0)), dequantize(view.input(id, 1))],
        dequantized: [behind(0), behind(1)],
        bias,
        dequantized_bias: dequantize(bias),
        output: view.output(id, 0),
    })
}
