//! Functions and branches, as the engine sees them.

use std::collections::BTreeMap;

use ndarray::{ArrayD, IxDyn};

use super::{info, model};
use crate::calibrate::{
    Batch, EngineError, InputTensor, StatOptions, TractEngine, Values, outputs, shapes, statistics,
};
use crate::onnx::node::{graph_attr, make_node};
use crate::onnx::op;
use crate::onnx::proto::{FunctionProto, GraphProto, NodeProto, OperatorSetIdProto};
use crate::onnx::{DataType, Model};
use crate::progress::NoProgress;

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    make_node(op, "", inputs, outputs, vec![])
}

fn choice(condition: &str, output: &str, then: &[NodeProto], otherwise: &[NodeProto]) -> NodeProto {
    let branch = |nodes: &[NodeProto]| GraphProto {
        node: nodes.to_vec(),
        output: vec![info(
            nodes.last().unwrap().output[0].as_str(),
            DataType::Float,
            &["n", "4"],
        )],
        ..GraphProto::default()
    };
    NodeProto {
        attribute: vec![
            graph_attr("then_branch", branch(then)),
            graph_attr("else_branch", branch(otherwise)),
        ],
        ..node(op::If, &[condition], &[output])
    }
}

/// y = flag ? −x : eˣ, where both branches call their result t.
fn switched() -> Model {
    let flat = model(
        17,
        vec![
            info("x", DataType::Float, &["n", "4"]),
            info("flag", DataType::Bool, &["1"]),
        ],
        vec![
            choice(
                "flag",
                "y",
                &[node(op::Neg, &["x"], &["t"])],
                &[node(op::Exp, &["x"], &["t"])],
            ),
            node(op::Identity, &["y"], &["z"]),
        ],
        vec![],
        &["z"],
    );
    crate::graph::branches::FlatModel::of(flat).into_copy()
}

fn batch(row: u64, flag: bool) -> Batch {
    let x = ArrayD::from_elem(IxDyn(&[1, 4]), 1.0 + row as f32);
    let flag = ArrayD::from_elem(IxDyn(&[1]), flag);
    let inputs = [
        ("x".to_owned(), InputTensor::from_values(Values::F32(x))),
        (
            "flag".to_owned(),
            InputTensor::from_values(Values::Bool(flag)),
        ),
    ];
    Batch::new(BTreeMap::from(inputs), vec![row])
}

fn options() -> StatOptions {
    StatOptions {
        sample_tokens: 8,
        seed: 0,
        threads: 1,
        channels_first: Default::default(),
        extremes_only: Default::default(),
        sizes_only: Default::default(),
    }
}

#[test]
fn each_batch_runs_its_branch() {
    let model = switched();
    let batches = [batch(0, true), batch(1, false), batch(2, true)];
    let all = outputs(&TractEngine, &model, &batches, 1, &NoProgress).unwrap();
    let first: Vec<f32> = all.batches.iter().map(|o| o["z"][[0, 0]]).collect();
    assert_eq!(first, [-1.0, 2f32.exp(), -3.0]);
    // The same from the file's own form.
    let merged = crate::graph::branches::FlatModel::of(model).unflatten();
    assert_eq!(
        outputs(&TractEngine, &merged, &batches, 1, &NoProgress).unwrap(),
        all
    );
}

#[test]
fn statistics_are_of_the_batches_that_take_the_branch() {
    let model = switched();
    // The second of two equal names has another one in the flat form.
    let values = ["t".to_owned(), "t_else".to_owned(), "y".to_owned()];
    let run = |flags: &[bool]| {
        let batches: Vec<Batch> = flags
            .iter()
            .enumerate()
            .map(|(i, &flag)| batch(i as u64, flag))
            .collect();
        let stats = statistics(
            &TractEngine,
            &model,
            &batches,
            &values,
            &options(),
            &NoProgress,
        )
        .unwrap();
        let tokens = |s: &crate::calibrate::ChannelStats| {
            s.folds
                .iter()
                .map(|f| ((f.min[0] * 1000.0).round(), f.tokens))
                .collect::<Vec<_>>()
        };
        values
            .iter()
            .map(|v| stats.get(v).map(tokens))
            .collect::<Vec<_>>()
    };
    // The last digits of an exponential are the engine's affair.
    let e = |x: f32| (x.exp() * 1000.0).round();
    assert_eq!(
        run(&[true, true, false, false]),
        [
            Some(vec![(-1000.0, 1), (-2000.0, 1)]),
            Some(vec![(e(3.0), 1), (e(4.0), 1)]),
            Some(vec![(-1000.0, 2), (-2000.0, 2)]),
        ]
    );
    let silent = run(&[true, true]);
    assert_eq!(silent[1], None, "no batch takes the branch");
    assert!(silent[0].is_some() && silent[2].is_some());
    let known = shapes(&TractEngine, &model, &batch(0, false), &values).unwrap();
    let names: Vec<&str> = known.keys().map(String::as_str).collect();
    assert_eq!(names, ["t_else", "y"]);
}

#[test]
fn conditions_on_shapes_are_decided() {
    // Two of them: the engine alone takes only one If.
    let check = |x: &str, y: &str| {
        let named = |n: &str| format!("{y}_{n}");
        vec![
            node(op::Shape, &[x], &[&named("shape")]),
            node(op::ReduceProd, &[&named("shape")], &[&named("size")]),
            node(op::Cast, &[&named("size")], &[&named("flag")]),
            choice(
                &named("flag"),
                y,
                &[node(op::Neg, &[x], &[&named("t")])],
                &[node(op::Exp, &[x], &[&named("t")])],
            ),
        ]
    };
    let mut nodes = check("x", "y");
    nodes.extend(check("y", "z"));
    for node in nodes.iter_mut().filter(|n| n.op_type() == op::Cast) {
        let to = crate::onnx::node::int_attr("to", DataType::Bool as i64);
        node.attribute.push(to);
    }
    for node in nodes.iter_mut().filter(|n| n.op_type() == op::ReduceProd) {
        node.attribute
            .push(crate::onnx::node::int_attr("keepdims", 0));
    }
    let inputs = vec![
        info("x", DataType::Float, &["n", "4"]),
        info("flag", DataType::Bool, &["1"]),
    ];
    let model = model(17, inputs, nodes, vec![], &["z"]);
    let all = outputs(&TractEngine, &model, &[batch(1, true)], 1, &NoProgress).unwrap();
    assert_eq!(all.batches[0]["z"][[0, 0]], 2.0);
}

#[test]
fn functions_are_run_or_refused_with_the_reason() {
    let set = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version),
    };
    for (opset, fits) in [(17, true), (20, false)] {
        let function = FunctionProto {
            name: Some("F".to_owned()),
            domain: Some("f".to_owned()),
            input: vec!["u".to_owned()],
            output: vec!["v".to_owned()],
            node: vec![
                node(op::Neg, &["u"], &["t"]),
                node(op::ReduceMax, &["t"], &["v"]),
            ],
            opset_import: vec![set("", opset)],
            ..FunctionProto::default()
        };
        let call = NodeProto {
            domain: Some("f".to_owned()),
            ..make_node("F", "the call", &["x"], &["z"], vec![])
        };
        let inputs = vec![
            info("x", DataType::Float, &["n", "4"]),
            info("flag", DataType::Bool, &["1"]),
        ];
        let mut model = model(17, inputs, vec![call], vec![], &["z"]);
        model.proto.opset_import.push(set("f", 1));
        model.proto.functions.push(function);
        match outputs(&TractEngine, &model, &[batch(1, true)], 1, &NoProgress) {
            Ok(all) => {
                assert!(fits);
                assert_eq!(all.batches[0]["z"].iter().next(), Some(&-2.0));
            }
            Err(EngineError::Refused { node, op, reason }) => {
                assert!(!fits && node == "the call" && op == "f.F", "{reason}");
                assert!(reason.contains(op::ReduceMax), "{reason}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
