//! Reading and making nodes and their attributes.
//!
//! The readers answer `None` both where a node has no attribute of that name and where it has one of another type, so
//! that a default can be put in with `unwrap_or`. An attribute's type is taken from its `type` field; files older than
//! IR version 2 leave that out, and then the value field itself counts.

use super::DataType;
use super::proto::attribute_proto::AttributeType;
use super::proto::tensor_shape_proto::{Dimension, dimension};
use super::proto::{
    AttributeProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};
use bytes::Bytes;

/// The attribute called `name`.
pub fn attr<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attr| attr.name() == name)
}

/// The attribute called `name` if it is of the type `wanted`, or says no type.
fn typed<'a>(node: &'a NodeProto, name: &str, wanted: AttributeType) -> Option<&'a AttributeProto> {
    attr(node, name).filter(|attr| {
        let kind = attr.r#type.unwrap_or(AttributeType::Undefined as i32);
        // A reference to an attribute of the enclosing function has a type, but its value is elsewhere.
        attr.ref_attr_name().is_empty()
            && (kind == wanted as i32 || kind == AttributeType::Undefined as i32)
    })
}

/// An integer attribute. A value of zero that was left out of the file, as proto3 writers do, reads as 0.
pub fn attr_i(node: &NodeProto, name: &str) -> Option<i64> {
    let attr = typed(node, name, AttributeType::Int)?;
    attr.i.or(attr.r#type.map(|_| 0))
}

/// A float attribute. A value of zero that was left out of the file, as proto3 writers do, reads as 0.
pub fn attr_f(node: &NodeProto, name: &str) -> Option<f32> {
    let attr = typed(node, name, AttributeType::Float)?;
    attr.f.or(attr.r#type.map(|_| 0.0))
}

/// A list of integers, possibly empty.
pub fn attr_ints<'a>(node: &'a NodeProto, name: &str) -> Option<&'a [i64]> {
    let attr = typed(node, name, AttributeType::Ints)?;
    (attr.r#type.is_some() || !attr.ints.is_empty()).then_some(attr.ints.as_slice())
}

/// A list of floats, possibly empty.
pub fn attr_floats<'a>(node: &'a NodeProto, name: &str) -> Option<&'a [f32]> {
    let attr = typed(node, name, AttributeType::Floats)?;
    (attr.r#type.is_some() || !attr.floats.is_empty()).then_some(attr.floats.as_slice())
}

/// A string attribute, if it is UTF-8.
pub fn attr_s<'a>(node: &'a NodeProto, name: &str) -> Option<&'a str> {
    let attr = typed(node, name, AttributeType::String)?;
    match &attr.s {
        Some(bytes) => std::str::from_utf8(bytes).ok(),
        None => attr.r#type.map(|_| ""),
    }
}

/// A tensor attribute, such as `value` of Constant.
pub fn attr_t<'a>(node: &'a NodeProto, name: &str) -> Option<&'a TensorProto> {
    typed(node, name, AttributeType::Tensor)?.t.as_ref()
}

/// A graph attribute, such as `body` of Loop.
pub fn attr_g<'a>(node: &'a NodeProto, name: &str) -> Option<&'a GraphProto> {
    typed(node, name, AttributeType::Graph)?.g.as_ref()
}

/// An attribute of one type with no value yet.
fn empty(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(kind as i32),
        ..AttributeProto::default()
    }
}

/// Makes an integer attribute.
pub fn int_attr(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        i: Some(value),
        ..empty(name, AttributeType::Int)
    }
}

/// Makes a float attribute.
pub fn float_attr(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        f: Some(value),
        ..empty(name, AttributeType::Float)
    }
}

/// Makes a list of integers.
pub fn ints_attr(name: &str, value: &[i64]) -> AttributeProto {
    AttributeProto {
        ints: value.to_vec(),
        ..empty(name, AttributeType::Ints)
    }
}

/// Makes a list of floats.
pub fn floats_attr(name: &str, value: &[f32]) -> AttributeProto {
    AttributeProto {
        floats: value.to_vec(),
        ..empty(name, AttributeType::Floats)
    }
}

/// Makes a string attribute.
pub fn string_attr(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        s: Some(Bytes::copy_from_slice(value.as_bytes())),
        ..empty(name, AttributeType::String)
    }
}

/// Makes a tensor attribute.
pub fn tensor_attr(name: &str, value: TensorProto) -> AttributeProto {
    AttributeProto {
        t: Some(value),
        ..empty(name, AttributeType::Tensor)
    }
}

/// Makes a graph attribute.
pub fn graph_attr(name: &str, value: GraphProto) -> AttributeProto {
    AttributeProto {
        g: Some(value),
        ..empty(name, AttributeType::Graph)
    }
}

/// Makes a node of the standard domain; set `domain` on the result for another.
pub fn make_node(
    op_type: &str,
    name: &str,
    inputs: &[&str],
    outputs: &[&str],
    attrs: Vec<AttributeProto>,
) -> NodeProto {
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    NodeProto {
        input: owned(inputs),
        output: owned(outputs),
        name: Some(name.to_owned()),
        op_type: Some(op_type.to_owned()),
        attribute: attrs,
        ..NodeProto::default()
    }
}

/// What a graph says of a float32 input or output of fixed shape.
pub fn float_value(name: &str, shape: &[usize]) -> ValueInfoProto {
    let dim = shape.iter().map(|n| Dimension {
        denotation: None,
        value: Some(dimension::Value::DimValue(*n as i64)),
    });
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            denotation: None,
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(DataType::Float as i32),
                shape: Some(TensorShapeProto { dim: dim.collect() }),
            })),
        }),
        ..Default::default()
    }
}

/// The graphs inside a node (branches of If, bodies of Loop and Scan), in the order of its attributes.
pub fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute
        .iter()
        .flat_map(|attr| attr.g.iter().chain(&attr.graphs))
}

/// The graphs in the attributes of a node, to be changed.
pub fn subgraphs_mut(node: &mut NodeProto) -> impl Iterator<Item = &mut GraphProto> {
    node.attribute
        .iter_mut()
        .flat_map(|attr| attr.g.iter_mut().chain(&mut attr.graphs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::op;

    #[test]
    fn what_is_made_is_read_back() {
        let graph = |name: &str| GraphProto {
            name: Some(name.to_owned()),
            ..GraphProto::default()
        };
        let mut branches = empty("more", AttributeType::Graphs);
        branches.graphs = vec![graph("b"), graph("c")];
        let node = make_node(
            op::If,
            "n",
            &["x", ""],
            &["y"],
            vec![
                int_attr("i", -3),
                float_attr("f", 0.5),
                ints_attr("ints", &[1, -1]),
                floats_attr("floats", &[1.5]),
                string_attr("s", "é"),
                tensor_attr("t", super::super::tensor::from_i64("t", &[1], &[7])),
                graph_attr("g", graph("a")),
                branches,
            ],
        );
        assert_eq!(node.input, ["x", ""]);
        assert_eq!(attr_i(&node, "i"), Some(-3));
        assert_eq!(attr_f(&node, "f"), Some(0.5));
        assert_eq!(attr_ints(&node, "ints"), Some(&[1, -1][..]));
        assert_eq!(attr_floats(&node, "floats"), Some(&[1.5][..]));
        assert_eq!(attr_s(&node, "s"), Some("é"));
        assert_eq!(attr_t(&node, "t").map(TensorProto::name), Some("t"));
        assert_eq!(attr_g(&node, "g").map(GraphProto::name), Some("a"));
        let names: Vec<_> = subgraphs(&node).map(GraphProto::name).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn an_attribute_of_another_type_or_name_is_none() {
        let node = make_node("Op", "n", &[], &[], vec![int_attr("axis", 1)]);
        assert_eq!(attr_f(&node, "axis"), None);
        assert_eq!(attr_ints(&node, "axis"), None);
        assert_eq!(attr_s(&node, "axis"), None);
        assert_eq!(attr_i(&node, "axes"), None);
    }

    #[test]
    fn a_reference_to_a_function_attribute_has_no_value() {
        let mut axis = int_attr("axis", 0);
        axis.i = None;
        axis.ref_attr_name = Some("outer".into());
        let node = make_node("Op", "n", &[], &[], vec![axis]);
        assert_eq!(attr_i(&node, "axis"), None);
    }

    #[test]
    fn a_value_without_type_is_read_and_a_type_without_value_is_zero() {
        let mut old = int_attr("axis", 2);
        old.r#type = None;
        let mut zero = int_attr("keepdims", 0);
        zero.i = None;
        let node = make_node("Op", "n", &[], &[], vec![old, zero]);
        assert_eq!(attr_i(&node, "axis"), Some(2));
        assert_eq!(attr_f(&node, "axis"), None);
        assert_eq!(attr_i(&node, "keepdims"), Some(0));
    }
}
