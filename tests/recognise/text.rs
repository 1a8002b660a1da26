//! Small models as text, one line a thing:
//!
//! ```text
//! in x[2, s, 8]                     a float input; names and ? are free lengths
//! const g[8]                        a float initializer of fixed, uneven numbers
//! const e[] = 1e-5                  the same number everywhere
//! half w[8, 4]    i8 q[8, 4]    ints a = [-1]
//! node c[] = 2                      a Constant node
//! y = ReduceMean{axes = [-1], keepdims = 1}(x, g)
//! out y
//! ```

use onnx_osplus::onnx::node::{float_attr, int_attr, ints_attr, make_node, tensor_attr};
use onnx_osplus::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use onnx_osplus::onnx::proto::*;
use onnx_osplus::onnx::{DataType, Model, tensor};

/// The model a text describes, in the newest operator set that the tests use.
pub fn model(text: &str) -> Model {
    let mut graph = GraphProto {
        name: Some("test".to_owned()),
        ..GraphProto::default()
    };
    for line in text.lines().map(str::trim) {
        let line = line.split('#').next().unwrap().trim();
        if line.is_empty() {
            continue;
        }
        let (word, rest) = line.split_once(' ').unwrap();
        match word {
            "in" => graph.input.push(value_info(rest)),
            "out" => graph.output.push(value_info(rest)),
            "const" => graph.initializer.push(float(rest, DataType::Float)),
            "half" => graph.initializer.push(float(rest, DataType::Float16)),
            "i8" => {
                let (name, shape) = name_and_shape(rest);
                let shape: Vec<usize> = shape.iter().map(|d| d.parse().unwrap()).collect();
                let data = vec![3; shape.iter().product()];
                graph.initializer.push(tensor::from_i8(name, &shape, &data));
            }
            "ints" => {
                let (name, list) = rest.split_once(" = ").unwrap();
                let list = ints(list);
                let shape = [list.len()];
                graph
                    .initializer
                    .push(tensor::from_i64(name, &shape, &list));
            }
            "node" => {
                let tensor = float(rest, DataType::Float);
                let name = tensor.name.clone().unwrap();
                let value = vec![tensor_attr("value", tensor)];
                graph
                    .node
                    .push(make_node("Constant", "", &[], &[&name], value));
            }
            _ => graph.node.push(node(line)),
        }
    }
    Model {
        proto: ModelProto {
            ir_version: Some(10),
            opset_import: vec![opset("", 18), opset("com.microsoft", 1)],
            graph: Some(graph),
            ..ModelProto::default()
        },
    }
}

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version),
    }
}

fn list(text: &str) -> Vec<&str> {
    let items = text.trim().trim_start_matches('[').trim_end_matches(']');
    let items = items.split(',').map(str::trim);
    items.filter(|item| !item.is_empty()).collect()
}

fn ints(text: &str) -> Vec<i64> {
    list(text).iter().map(|i| i.parse().unwrap()).collect()
}

fn name_and_shape(text: &str) -> (&str, Vec<&str>) {
    match text.split_once('[') {
        Some((name, shape)) => (name.trim(), list(shape)),
        None => (text.trim(), vec![]),
    }
}

fn float(text: &str, dtype: DataType) -> TensorProto {
    let (left, value) = match text.split_once(" = ") {
        Some((left, value)) => (left, Some(value.parse().unwrap())),
        None => (text, None),
    };
    let (name, shape) = name_and_shape(left);
    let shape: Vec<usize> = shape.iter().map(|d| d.parse().unwrap()).collect();
    // Uneven numbers away from zero, different from name to name.
    let start: u32 = name.bytes().map(u32::from).sum();
    let uneven = |i: usize| 0.6 + ((start as usize + 7 * i) % 13) as f32 / 8.0;
    let data: Vec<f32> = (0..shape.iter().product())
        .map(|i| value.unwrap_or_else(|| if i % 3 == 1 { -uneven(i) } else { uneven(i) }))
        .collect();
    tensor::from_f32(name, &shape, &data, dtype)
}

fn value_info(text: &str) -> ValueInfoProto {
    let (name, shape) = name_and_shape(text);
    let dim = |d: &&str| {
        use dimension::Value::{DimParam, DimValue};
        let value = match d.parse() {
            Ok(length) => Some(DimValue(length)),
            Err(_) if *d == "?" => None,
            Err(_) => Some(DimParam((*d).to_owned())),
        };
        Dimension {
            denotation: None,
            value,
        }
    };
    let shape = TensorShapeProto {
        dim: shape.iter().map(dim).collect(),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(DataType::Float as i32),
                shape: text.contains('[').then_some(shape),
            })),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

/// `a, b = domain:Op{attributes}(inputs)`
fn node(line: &str) -> NodeProto {
    let (outputs, call) = line.split_once(" = ").unwrap();
    let (head, inputs) = call.split_once('(').unwrap();
    let (op, attributes) = head.split_once('{').unwrap_or((head, ""));
    let inputs: Vec<&str> = match inputs.trim_end_matches(')') {
        "" => vec![],
        inputs => inputs.split(',').map(str::trim).collect(),
    };
    let attributes = attributes
        .trim_end_matches('}')
        .split(';')
        .filter(|a| !a.trim().is_empty())
        .map(|a| {
            let (name, value) = a.split_once('=').unwrap();
            let (name, value) = (name.trim(), value.trim());
            match value.parse() {
                _ if value.starts_with('[') => ints_attr(name, &ints(value)),
                Ok(int) => int_attr(name, int),
                Err(_) => float_attr(name, value.parse().unwrap()),
            }
        });
    let (domain, op) = op.split_once(':').unwrap_or(("", op));
    let outputs: Vec<&str> = outputs.split(',').map(str::trim).collect();
    let name = format!("{}_node", outputs[0]);
    let mut node = make_node(op, &name, &inputs, &outputs, attributes.collect());
    if !domain.is_empty() {
        node.domain = Some(domain.to_owned());
    }
    node
}
