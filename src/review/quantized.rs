//! What is quantized already in a model, whoever quantized it.
//!
//! *Linears*: MatMul and Gemm whose weight comes from a DequantizeLinear of constants (through operators that only
//! rearrange it), and the operators that multiply stored integers: MatMulInteger and QLinearMatMul of ONNX, QGemm,
//! QAttention, MatMulIntegerToFloat, DynamicQuantizeMatMul and MatMulNBits of ONNX Runtime.

use serde::{Deserialize, Serialize};

use crate::graph::{Blocked, NodeId, Symmetry, ValueId, View};
use crate::onnx::node::attr_i;
use crate::onnx::op;
use crate::onnx::tensor;
use crate::recognise::over_magnitude;

/// One Linear with a stored integer weight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct QuantizedLinear {
    /// The node's name.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// The type of the stored weight: "INT8", "UINT8", "INT4", …; "4 bits" for MatMulNBits.
    pub weight: String,
    /// "per-tensor", "per-channel" or "per-block".
    pub granularity: String,
    /// Bits of one stored integer.
    pub bits: Option<u32>,
    /// How many channels of the input share a scale of the weight, where that is not all of them.
    pub group: Option<usize>,
    /// Of a weight in blocks: whether every zero point is the middle of the range.
    pub symmetric: Option<bool>,
    /// Of a weight in blocks what makes it slow or odd: "float zero points", "g_idx", or both.
    pub notes: Vec<String>,
    /// The type of the quantized input; `None` if the input is float.
    pub activation: Option<String>,
    /// "per-tensor", "per-token" or "per-block" (per token, too); `None` if the input is float.
    pub activation_granularity: Option<String>,
    /// Whether the input's scale is found at run time.
    pub dynamic: bool,
}

impl QuantizedLinear {
    /// Says of a weight in blocks what its integers are.
    fn in_blocks(self, blocked: &Blocked) -> QuantizedLinear {
        let symmetry = blocked.symmetry();
        let named = [
            (symmetry == Symmetry::FloatZero, "float zero points"),
            (blocked.is_permuted(), "g_idx"),
        ];
        let notes = named.into_iter().filter(|(is, _)| *is);
        QuantizedLinear {
            bits: Some(blocked.bits),
            group: Some(blocked.block),
            symmetric: Some(symmetry == Symmetry::Symmetric),
            notes: notes.map(|(_, note)| note.to_owned()).collect(),
            ..self
        }
    }
}

/// Every quantized Linear of the main graph and its node, in graph order.
pub fn quantized_linears(view: &View) -> Vec<(NodeId, QuantizedLinear)> {
    let linears = view
        .nodes()
        .filter_map(|(node, _)| Some((node, linear(view, node)?)));
    linears.collect()
}

/// The integers of every embedding table of which rows are picked before they are dequantized, by their names, once each.
pub fn quantized_embeddings(view: &View) -> Vec<String> {
    let mut tables = Vec::new();
    for (node, proto) in view.nodes() {
        let picks = |op: &str| op == op::Gather || op == op::GatherBlockQuantized;
        let Some(table) = view.input(node, 0).filter(|_| picks(proto.op_type())) else {
            continue;
        };
        let integers = constant_type(view, table).is_some_and(|t| t.contains("INT"));
        let rows = view.output(node, 0).and_then(|rows| view.only_reader(rows));
        let dequantized =
            rows.is_some_and(|(reader, _)| view.node(reader).op_type() == op::DequantizeLinear);
        let name = view.name(table).to_owned();
        if integers
            && (dequantized || proto.op_type() == op::GatherBlockQuantized)
            && !tables.contains(&name)
        {
            tables.push(name);
        }
    }
    tables
}

/// The quantized Linear that a node is.
fn linear(view: &View, node: NodeId) -> Option<QuantizedLinear> {
    let proto = view.node(node);
    // Which inputs hold x, the stored weight and its scale.
    let (x, weight, scale) = match proto.op_type() {
        op::MatMul | op::Gemm => return between_dequantizers(view, node),
        op::MatMulInteger => (0, 1, None),
        op::QLinearMatMul => (0, 3, Some(4)),
        op::QGemm => (0, 3, Some(4)),
        op::QAttention => (0, 1, Some(4)),
        op::MatMulIntegerToFloat => (0, 1, Some(3)),
        op::DynamicQuantizeMatMul => (0, 1, Some(2)),
        op::MatMulNBits => return product_of_blocks(view, node),
        _ => return None,
    };
    let stored = view.input(node, weight)?;
    let weight_type = constant_type(view, stored)?;
    let x = view.input(node, x)?;
    let dynamic = proto.op_type() == op::DynamicQuantizeMatMul
        || producer(view, x).is_some_and(|op| op == op::DynamicQuantizeLinear);
    let granularity = match scale.and_then(|slot| view.input(node, slot)) {
        Some(scale) => granularity(view, scale, false),
        // MatMulInteger: the scale is multiplied afterwards, only the zero point tells.
        None => {
            let zero = view.input(node, 3).map(|z| granularity(view, z, false));
            match (zero, scale_behind(view, node)) {
                (_, Some(scale)) => granularity(view, scale, false),
                (zero, None) => zero.unwrap_or("per-tensor"),
            }
        }
    };
    let activation = match proto.op_type() {
        op::DynamicQuantizeMatMul => Some("UINT8".to_owned()),
        _ => Some(integer_type(view, x).unwrap_or_else(|| "integer".to_owned())),
    };
    Some(QuantizedLinear {
        name: view.node_name(node).to_owned(),
        op: proto.op_type().to_owned(),
        bits: bits(&weight_type),
        weight: weight_type,
        granularity: granularity.to_owned(),
        activation,
        activation_granularity: Some(activations(view, x).to_owned()),
        dynamic,
        ..QuantizedLinear::default()
    })
}

/// A MatMulNBits; at accuracy_level 4 it rounds its input itself.
fn product_of_blocks(view: &View, node: NodeId) -> Option<QuantizedLinear> {
    let proto = view.node(node);
    constant_type(view, view.input(node, 1)?)?;
    let bits = attr_i(proto, "bits").unwrap_or(4);
    let blocked = Blocked::in_view(view, node);
    let level = attr_i(proto, "accuracy_level").unwrap_or(0);
    let rounds = blocked
        .as_ref()
        .is_some_and(|b| b.rounds_activations(level));
    let linear = QuantizedLinear {
        name: view.node_name(node).to_owned(),
        op: proto.op_type().to_owned(),
        weight: format!("{bits} bits"),
        granularity: "per-block".to_owned(),
        activation: rounds.then(|| "INT8".to_owned()),
        activation_granularity: rounds.then(|| "per-block".to_owned()),
        dynamic: rounds,
        ..QuantizedLinear::default()
    };
    Some(match &blocked {
        Some(blocked) => linear.in_blocks(blocked),
        None => linear,
    })
}

/// Bits of an integer type by its name.
fn bits(name: &str) -> Option<u32> {
    name.trim_start_matches(|c: char| !c.is_ascii_digit())
        .parse()
        .ok()
}

/// What shares a scale among quantized activations.
fn activations(view: &View, q: ValueId) -> &'static str {
    let Some((quantize, _)) = view.producer(q) else {
        return "per-tensor";
    };
    if view.op(quantize) != op::QuantizeLinear {
        return "per-tensor";
    }
    if attr_i(view.node(quantize), "block_size").unwrap_or(0) > 0 {
        return "per-block";
    }
    let x = view.input(quantize, 0);
    match x.and_then(|x| over_magnitude(view, x)) {
        Some(_) => "per-token",
        None => "per-tensor",
    }
}

/// A MatMul or Gemm of a weight behind a DequantizeLinear.
fn between_dequantizers(view: &View, node: NodeId) -> Option<QuantizedLinear> {
    let weight = dequantizer(view, view.input(node, 1)?)?;
    let weight_type = constant_type(view, view.input(weight, 0)?)?;
    let blocks = attr_i(view.node(weight), "block_size").unwrap_or(0) > 0;
    let x = dequantizer(view, view.input(node, 0)?);
    let quantized = x.and_then(|x| view.input(x, 0));
    let producer = quantized.and_then(|q| producer(view, q));
    let shared = quantized.map(|q| activations(view, q));
    let linear = QuantizedLinear {
        name: view.node_name(node).to_owned(),
        op: view.node(node).op_type().to_owned(),
        bits: bits(&weight_type),
        weight: weight_type,
        granularity: granularity(view, view.input(weight, 1)?, blocks).to_owned(),
        activation: quantized.map(|q| {
            let of_zero = x.and_then(|x| constant_type(view, view.input(x, 2)?));
            let stated = of_zero.or_else(|| integer_type(view, q));
            stated.unwrap_or_else(|| "UINT8".to_owned())
        }),
        activation_granularity: shared.map(str::to_owned),
        dynamic: producer == Some(op::DynamicQuantizeLinear)
            || shared.is_some_and(|shared| shared != "per-tensor"),
        ..QuantizedLinear::default()
    };
    Some(match Blocked::in_view(view, weight) {
        Some(blocked) => linear.in_blocks(&blocked),
        None => linear,
    })
}

fn producer<'m>(view: &View<'m>, value: ValueId) -> Option<&'m str> {
    let (node, _) = view.producer(value)?;
    view.node(node).op_type.as_deref()
}

/// The DequantizeLinear that a value comes from through operators that only rearrange it.
fn dequantizer(view: &View, mut value: ValueId) -> Option<NodeId> {
    while let (node, 0) = view.producer(value)? {
        match view.node(node).op_type() {
            op::DequantizeLinear => return Some(node),
            op::Identity | op::Cast | op::Transpose | op::Reshape | op::Squeeze | op::Unsqueeze => {
                value = view.input(node, 0)?;
            }
            _ => return None,
        }
    }
    None
}

/// The element type of a constant, through the Cast that 4-bit weights may have.
fn constant_type(view: &View, value: ValueId) -> Option<String> {
    let origin = view.origin(value);
    if let Some(stored) = view.initializer(origin) {
        return Some(tensor::dtype(stored)?.as_str_name().to_owned());
    }
    let constant =
        crate::onnx::node::attr_t(view.node(view.producer_is(origin, op::Constant)?), "value")?;
    Some(tensor::dtype(constant)?.as_str_name().to_owned())
}

/// The type of a value that some quantizer computes: that of its zero point.
fn integer_type(view: &View, value: ValueId) -> Option<String> {
    let (node, _) = view.producer(value)?;
    let proto = view.node(node);
    let zero_point = match proto.op_type() {
        op::QuantizeLinear => 2,
        op::DynamicQuantizeLinear => return Some("UINT8".to_owned()),
        op::QLinearMatMul => 7,
        _ => return None,
    };
    let stated = view.input(node, zero_point);
    let stated = stated.and_then(|zero| constant_type(view, zero));
    let named = || {
        let code = i32::try_from(attr_i(proto, "output_dtype")?).ok()?;
        let dtype = crate::onnx::DataType::try_from(code).ok()?;
        (code != 0).then(|| dtype.as_str_name().to_owned())
    };
    let default = || (proto.op_type() == op::QuantizeLinear).then(|| "UINT8".to_owned());
    stated.or_else(named).or_else(default)
}

/// The constant scale of a weight by which the product of a MatMulInteger is multiplied, if it is found.
fn scale_behind(view: &View, node: NodeId) -> Option<ValueId> {
    let (cast, _) = view.only_reader(view.output(node, 0)?)?;
    let (mul, slot) = view.only_reader(view.output(cast, 0)?)?;
    let factor = view.input(mul, 1usize.checked_sub(slot)?)?;
    let constant = |value: &ValueId| view.initializer(*value).is_some();
    if constant(&factor) {
        return Some(factor);
    }
    let (scales, _) = view.producer(factor)?;
    (view.op(scales) == op::Mul)
        .then(|| [0, 1].into_iter().filter_map(|i| view.input(scales, i)))
        .and_then(|mut inputs| inputs.find(constant))
}

/// How many scales there are.
fn granularity(view: &View, scale: ValueId, blocks: bool) -> &'static str {
    let dims = view.shape(view.origin(scale)).unwrap_or_default();
    match dims.iter().map(|d| d.unwrap_or(2)).product::<usize>() {
        _ if blocks => "per-block",
        1 => "per-tensor",
        _ => "per-channel",
    }
}
