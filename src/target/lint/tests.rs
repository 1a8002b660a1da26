//! The rules themselves are proved on the runtimes by `tests/python/test_lint_rules.py`; here is what needs no runtime.

use std::collections::BTreeSet;

use super::*;
use crate::onnx::node::{graph_attr, int_attr, make_node};
use crate::onnx::op;
use crate::onnx::proto::{
    FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto,
};
use crate::onnx::{DataType, tensor};

#[test]
fn ids_are_unique_and_every_rule_says_everything() {
    let mut ids = BTreeSet::new();
    for rule in rules(Target::Portable) {
        assert!(ids.insert(rule.id), "{} twice", rule.id);
        for text in [rule.title, rule.source, rule.mend] {
            assert!(text.len() > 10, "{}: {text}", rule.id);
        }
        // A continued line of source keeps no run of spaces.
        let spaces = rule.mend.contains("  ") || rule.source.contains("  ");
        assert!(!spaces, "{}", rule.id);
    }
    assert!(ids.len() > 40, "{}", ids.len());
}

/// x → Q → DQ → MatMul with a weight of int8: `zero` is the zero point of x.
fn product() -> Vec<NodeProto> {
    vec![
        make_node(op::QuantizeLinear, "q", &["x", "s", "z"], &["x_q"], vec![]),
        make_node(
            op::DequantizeLinear,
            "dq",
            &["x_q", "s", "z"],
            &["x_dq"],
            vec![],
        ),
        make_node(
            op::DequantizeLinear,
            "w_dq",
            &["w", "ws"],
            &["w_f"],
            vec![int_attr("axis", 1)],
        ),
        make_node(op::MatMul, "product", &["x_dq", "w_f"], &["y"], vec![]),
    ]
}

fn constants() -> Vec<crate::onnx::proto::TensorProto> {
    vec![
        tensor::from_f32("s", &[], &[0.1], DataType::Float),
        tensor::from_i8("z", &[], &[5]),
        tensor::from_i8("w", &[2, 3], &[1, 2, 3, 4, 5, 6]),
        tensor::from_f32("ws", &[3], &[0.1; 3], DataType::Float),
    ]
}

fn info(name: &str) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(name.to_owned()),
        ..ValueInfoProto::default()
    }
}

fn model(graph: GraphProto, functions: Vec<FunctionProto>) -> Model {
    let set = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version),
    };
    Model {
        proto: ModelProto {
            ir_version: Some(9),
            opset_import: vec![set("", 17), set("local", 1)],
            graph: Some(graph),
            functions,
            ..ModelProto::default()
        },
    }
}

fn found(model: &Model) -> Vec<(String, String)> {
    let findings = lint(model, Target::Tensorrt);
    findings.into_iter().map(|f| (f.rule, f.node)).collect()
}

#[test]
fn a_pair_is_one_finding() {
    let graph = GraphProto {
        node: product(),
        initializer: constants(),
        input: vec![info("x")],
        output: vec![info("y")],
        ..GraphProto::default()
    };
    assert_eq!(
        found(&model(graph, vec![])),
        [("T1-zero-point".to_owned(), "q".to_owned())]
    );
}

#[test]
fn a_branch_is_looked_at_with_the_constants_around_it() {
    let branch = GraphProto {
        node: product(),
        output: vec![info("y")],
        ..GraphProto::default()
    };
    let other = GraphProto {
        node: vec![make_node(op::Identity, "same", &["x"], &["y2"], vec![])],
        output: vec![info("y2")],
        ..GraphProto::default()
    };
    let branches = vec![
        graph_attr("then_branch", branch),
        graph_attr("else_branch", other),
    ];
    let graph = GraphProto {
        node: vec![
            make_node(op::Det, "outside", &["x"], &["d"], vec![]),
            make_node(op::If, "if", &["c"], &["out"], branches),
        ],
        initializer: constants(),
        input: vec![info("x"), info("c")],
        output: vec![info("out"), info("d")],
        ..GraphProto::default()
    };
    // What surrounds the branches is found once, not once per branch.
    assert_eq!(
        found(&model(graph, vec![])),
        [
            ("T1-zero-point".to_owned(), "if/then_branch/q".to_owned()),
            ("T10-operator".to_owned(), "outside".to_owned()),
        ]
    );
}

#[test]
fn a_call_is_opened() {
    let function = FunctionProto {
        name: Some("Linear".to_owned()),
        domain: Some("local".to_owned()),
        input: ["x", "s", "z", "w", "ws"].map(str::to_owned).to_vec(),
        output: vec!["y".to_owned()],
        node: product(),
        opset_import: vec![OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(17),
        }],
        ..FunctionProto::default()
    };
    let call = NodeProto {
        domain: Some("local".to_owned()),
        ..make_node(
            "Linear",
            "call",
            &["x", "s", "z", "w", "ws"],
            &["y"],
            vec![],
        )
    };
    let graph = GraphProto {
        node: vec![call],
        initializer: constants(),
        input: vec![info("x")],
        output: vec![info("y")],
        ..GraphProto::default()
    };
    let found = found(&model(graph, vec![function]));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, "T1-zero-point");
    assert!(found[0].1.contains("call"), "{}", found[0].1);
}
