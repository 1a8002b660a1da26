//! What is in the bodies of loops: nothing here looks into them.

use super::work::is_product;
use crate::onnx::node::subgraphs;
use crate::onnx::op;
use crate::onnx::proto::{GraphProto, NodeProto};

/// Operators that run a graph again and again.
const LOOPS: [&str; 3] = [op::Loop, op::Scan, op::SequenceMap];

/// The nodes that repeat products, each with their number in its body; in the branches of an If too.
fn loops(graph: &GraphProto) -> Vec<(&NodeProto, usize)> {
    let of = |node| match LOOPS.contains(&NodeProto::op_type(node)) {
        true => vec![(node, subgraphs(node).map(products).sum())],
        false => subgraphs(node).flat_map(loops).collect(),
    };
    let found = graph.node.iter().flat_map(of);
    found.filter(|(_, products)| *products > 0).collect()
}

fn products(graph: &GraphProto) -> usize {
    let of = |node: &NodeProto| {
        let inside: usize = subgraphs(node).map(products).sum();
        // The engine spells MatMulNBits out before it counts.
        inside + usize::from(is_product(node) || node.op_type() == op::MatMulNBits)
    };
    graph.node.iter().map(of).sum()
}

/// Whether part of the work is in the bodies of loops, so that no one knows how much.
pub fn works_in_loops(graph: &GraphProto) -> bool {
    !loops(graph).is_empty()
}

/// What is to be said of a graph that works in loops.
pub fn loop_note(graph: &GraphProto) -> Option<String> {
    let found = loops(graph);
    let (first, _) = found.first()?;
    let count: usize = found.iter().map(|(_, products)| products).sum();
    let others = match found.len() {
        1 => String::new(),
        n => format!(" and of {} more", n - 1),
    };
    Some(format!(
        "the body of {} `{}`{others} has {count} product{}: what is repeated stays in float, and what part of the work it is \
         cannot be told; an export with its layers one after the other can be quantized whole",
        first.op_type(),
        first.name(),
        if count == 1 { "" } else { "s" }
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::AttributeProto;

    fn with_body(op_type: &str, body: Vec<NodeProto>) -> NodeProto {
        let graph = GraphProto {
            node: body,
            ..GraphProto::default()
        };
        NodeProto {
            op_type: Some(op_type.to_owned()),
            name: Some("layers".to_owned()),
            attribute: vec![AttributeProto {
                g: Some(graph),
                ..AttributeProto::default()
            }],
            ..NodeProto::default()
        }
    }

    fn node(op_type: &str) -> NodeProto {
        NodeProto {
            op_type: Some(op_type.to_owned()),
            ..NodeProto::default()
        }
    }

    fn note(nodes: Vec<NodeProto>) -> Option<String> {
        let graph = GraphProto {
            node: nodes,
            ..GraphProto::default()
        };
        assert_eq!(works_in_loops(&graph), loop_note(&graph).is_some());
        loop_note(&graph)
    }

    #[test]
    fn products_in_bodies_are_told() {
        let body = || {
            vec![
                node("MatMul"),
                node("Add"),
                with_body("If", vec![node("Gemm")]),
            ]
        };
        let said = note(vec![node("MatMul"), with_body("Loop", body())]).unwrap();
        assert!(
            said.starts_with("the body of Loop `layers` has 2 products: "),
            "{said}"
        );
        let said = note(vec![
            with_body("If", vec![with_body("Scan", body())]),
            with_body("Loop", body()),
        ])
        .unwrap();
        assert!(
            said.starts_with("the body of Scan `layers` and of 1 more has 4 products: "),
            "{said}"
        );
    }

    #[test]
    fn other_graphs_have_nothing_to_tell() {
        assert_eq!(
            note(vec![node("MatMul"), with_body("If", vec![node("MatMul")])]),
            None
        );
        assert_eq!(note(vec![with_body("Loop", vec![node("Add")])]), None);
    }
}
