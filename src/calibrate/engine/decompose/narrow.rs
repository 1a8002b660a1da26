//! QuantizeLinear to types that the engine lacks. (Scales per block, and scales that are computed: `blocks.rs`.)
//!
//! The engine gets every integer below 8 bits in 8 (constants are widened when they are handed over), so what saturates
//! at 4 bits has to be cut there, and its own default type has to be written out:
//!
//! ```text
//! QuantizeLinear to INT4:  q = Cast(Clip(Cast(QuantizeLinear(x, s, z: int8), float32), −8, 7), int8)
//! ```

use super::blocks;
use super::build::{Build, Outcome};
use crate::calibrate::engine::error::EngineError;
use crate::onnx::node::{attr_i, int_attr, make_node, tensor_attr};
use crate::onnx::op;
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{DataType, tensor};

/// QuantizeLinear to fewer than 8 bits, or to a type that only an attribute tells; and every one of a computed value: it
/// reads `Max(x, x)`, which is x.
///
/// The engine turns DequantizeLinear → … → QuantizeLinear into one table of 256 numbers if all between has one input and
/// output of one shape. It counts Softmax as such, whose result depends on more than one number. Max has two inputs.
pub(super) fn quantize(
    node: &NodeProto,
    build: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    if blocks::at_run_time(node, build) {
        let range = target(node, build).and_then(range);
        let range = range.ok_or_else(|| build.refused("the type of its output is not known"))?;
        return blocks::quantize(node, build, range);
    }
    let x = input(node, 0).filter(|x| build.scope.constant(x).is_none());
    let nodes = match x {
        None => quantized(node, build),
        Some(x) => {
            let mut apart = node.clone();
            apart.input[0] = build.op(op::Max, &[x, x], vec![]);
            let narrow = quantized(&apart, build);
            Some(narrow.unwrap_or_else(|| vec![apart]))
        }
    };
    Ok(replace(nodes, build))
}

fn replace(nodes: Option<Vec<NodeProto>>, build: &mut Build<'_, '_>) -> Outcome {
    let Some(nodes) = nodes else {
        return Outcome::Kept;
    };
    nodes.into_iter().for_each(|node| build.push(node));
    Outcome::Replaced
}

/// The 8-bit type that a type below 8 bits becomes, and its smallest and largest number.
fn widened(dtype: DataType) -> Option<(DataType, f32, f32)> {
    Some(match dtype {
        DataType::Int4 => (DataType::Int8, -8.0, 7.0),
        DataType::Uint4 => (DataType::Uint8, 0.0, 15.0),
        DataType::Int2 => (DataType::Int8, -2.0, 1.0),
        DataType::Uint2 => (DataType::Uint8, 0.0, 3.0),
        _ => return None,
    })
}

/// The type that the engine gets for a type of integers, and its smallest and largest number.
fn range(dtype: DataType) -> Option<(DataType, f32, f32)> {
    widened(dtype).or(match dtype {
        DataType::Int8 => Some((dtype, -128.0, 127.0)),
        DataType::Uint8 => Some((dtype, 0.0, 255.0)),
        DataType::Int16 => Some((dtype, -32768.0, 32767.0)),
        DataType::Uint16 => Some((dtype, 0.0, 65535.0)),
        _ => None,
    })
}

/// The type of the output: that of the zero point, the one that an attribute names, or uint8.
fn target(node: &NodeProto, build: &Build<'_, '_>) -> Option<DataType> {
    if let Some(zero) = input(node, 2) {
        let stored = build.scope.constant(zero).and_then(tensor::dtype);
        return stored.or_else(|| build.scope.dtype(zero));
    }
    let named = attr_i(node, "output_dtype").filter(|&code| code != 0);
    let Some(code) = named else {
        return Some(DataType::Uint8);
    };
    DataType::try_from(i32::try_from(code).ok()?).ok()
}

fn input(node: &NodeProto, slot: usize) -> Option<&str> {
    let name = node.input.get(slot)?;
    (!name.is_empty()).then_some(name)
}

fn quantized(node: &NodeProto, build: &Build<'_, '_>) -> Option<Vec<NodeProto>> {
    let y = node.output.first()?;
    let zero_point = input(node, 2);
    let code = match zero_point {
        Some(name) => build.scope.constant(name)?.data_type(),
        None => i32::try_from(attr_i(node, "output_dtype").unwrap_or(0)).ok()?,
    };
    let dtype = DataType::try_from(code).ok()?;
    let narrow = widened(dtype);
    if narrow.is_none() && (zero_point.is_some() || dtype == DataType::Undefined) {
        return None;
    }
    let mut made = Made::new(node);
    let mut wide = node.clone();
    wide.attribute.retain(|a| a.name() != "output_dtype");
    if zero_point.is_none() {
        let zero = match narrow.map_or(dtype, |(wide, ..)| wide) {
            DataType::Uint8 => tensor::from_u8("", &[], &[0]),
            DataType::Int8 => tensor::from_i8("", &[], &[0]),
            _ => return None,
        };
        wide.input.truncate(2);
        wide.input.push(made.constant("zero_point", zero));
    }
    let Some((dtype, low, high)) = narrow else {
        made.nodes.push(wide);
        return Some(made.nodes);
    };
    wide.output[0] = format!("{y}/wide");
    let quantized = wide.output[0].clone();
    made.nodes.push(wide);
    let float = made.op(op::Cast, &[&quantized], "float", to(DataType::Float));
    let scalar = |v| tensor::from_f32("", &[], &[v], DataType::Float);
    let (low, high) = (
        made.constant("low", scalar(low)),
        made.constant("high", scalar(high)),
    );
    let cut = made.op(op::Clip, &[&float, &low, &high], "cut", vec![]);
    made.last(op::Cast, &[&cut], to(dtype));
    Some(made.nodes)
}

fn to(dtype: DataType) -> Vec<crate::onnx::proto::AttributeProto> {
    vec![int_attr("to", dtype as i64)]
}

/// The nodes that stand for one, named after its first output.
struct Made<'n> {
    node: &'n NodeProto,
    nodes: Vec<NodeProto>,
}

impl<'n> Made<'n> {
    fn new(node: &'n NodeProto) -> Self {
        let nodes = Vec::new();
        Made { node, nodes }
    }

    fn output(&self) -> &'n str {
        self.node.output.first().map_or("", String::as_str)
    }

    fn op(
        &mut self,
        op: &str,
        inputs: &[&str],
        what: &str,
        attributes: Vec<crate::onnx::proto::AttributeProto>,
    ) -> String {
        let name = format!("{}/{what}", self.output());
        self.nodes
            .push(make_node(op, &name, inputs, &[&name], attributes));
        name
    }

    fn constant(&mut self, what: &str, value: TensorProto) -> String {
        self.op(op::Constant, &[], what, vec![tensor_attr("value", value)])
    }

    /// The node that computes what the original computed.
    fn last(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: Vec<crate::onnx::proto::AttributeProto>,
    ) {
        let name = format!("{}/{op}", self.output());
        self.nodes
            .push(make_node(op, &name, inputs, &[self.output()], attributes));
    }
}
