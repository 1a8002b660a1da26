//! Inlining of model-local functions from outside; tests/python/test_functions.py compares it with other tools.

use crate::common::graphs::{info, model};
use onnx_osplus::graph::check;
use onnx_osplus::graph::inline::{RefusedCall, inline};
use onnx_osplus::onnx::node::{int_attr, make_node};
use onnx_osplus::onnx::proto::*;
use onnx_osplus::onnx::{DataType, Model};

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    make_node(op, "", inputs, outputs, vec![])
}

fn call(function: &str, name: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        domain: Some("f".to_owned()),
        ..make_node(function, name, inputs, outputs, vec![])
    }
}

fn function(
    name: &str,
    inputs: &[&str],
    outputs: &[&str],
    nodes: Vec<NodeProto>,
    opset: i64,
) -> FunctionProto {
    let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    let set = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version),
    };
    FunctionProto {
        name: Some(name.to_owned()),
        domain: Some("f".to_owned()),
        input: owned(inputs),
        output: owned(outputs),
        node: nodes,
        opset_import: vec![set("", opset), set("f", 1)],
        ..FunctionProto::default()
    }
}

fn with(opset: i64, functions: Vec<FunctionProto>, nodes: Vec<NodeProto>, output: &str) -> Model {
    let value = |name: &str| info(name, DataType::Float, &[Err("n"), Ok(4)]);
    let graph = GraphProto {
        node: nodes,
        input: vec![value("x")],
        output: vec![value(output)],
        ..GraphProto::default()
    };
    let mut model = model(opset, 9, graph);
    model.proto.functions = functions;
    model.proto.opset_import.push(OperatorSetIdProto {
        domain: Some("f".to_owned()),
        version: Some(1),
    });
    model
}

fn ops(model: &Model) -> Vec<&str> {
    model.graph().node.iter().map(|n| n.op_type()).collect()
}

fn nested() -> Model {
    let inner = function(
        "Inner",
        &["u"],
        &["v"],
        vec![node("Exp", &["u"], &["t"]), node("Log", &["t"], &["v"])],
        17,
    );
    let outer = function(
        "Outer",
        &["u"],
        &["v"],
        vec![
            call("Inner", "first", &["u"], &["t"]),
            node("Neg", &["t"], &["s"]),
            call("Inner", "", &["s"], &["v"]),
        ],
        17,
    );
    let nodes = vec![
        call("Outer", "a", &["x"], &["p"]),
        // A name that inlining the first call would like to have.
        node("Abs", &["p"], &["a_t"]),
        call("Outer", "b", &["a_t"], &["y"]),
    ];
    with(17, vec![outer, inner], nodes, "y")
}

#[test]
fn all_calls() {
    let mut model = nested();
    let done = inline(&mut model, &|_| true).unwrap();
    check(&model).unwrap();
    let once = ["Exp", "Log", "Neg", "Exp", "Log"];
    let expected: Vec<&str> = once.iter().chain(&["Abs"]).chain(&once).copied().collect();
    assert_eq!(ops(&model), expected);
    assert_eq!(done.calls.len(), 6);
    assert!(model.proto.functions.is_empty());
    let outputs: Vec<&str> = model
        .graph()
        .node
        .iter()
        .map(|n| n.output[0].as_str())
        .collect();
    assert_eq!(
        outputs,
        [
            "a_first_t",
            "a_t_2",
            "a_s",
            "p_t",
            "p",
            "a_t",
            "b_first_t",
            "b_t",
            "b_s",
            "y_t",
            "y"
        ]
    );
    // Which call a value comes from: the main graph's node, then the function's.
    assert_eq!(done.origin["a_first_t"], [0, 0]);
    assert_eq!(done.origin["a_s"], [0]);
    assert_eq!(done.origin["y"], [2, 2]);
}

#[test]
fn some_calls() {
    let mut model = nested();
    let wanted: [&[usize]; 2] = [&[2], &[2, 2]];
    let done = inline(&mut model, &|path| wanted.contains(&path)).unwrap();
    assert_eq!(ops(&model), ["Outer", "Abs", "Inner", "Neg", "Exp", "Log"]);
    assert_eq!(done.calls.len(), 2);
    let names: Vec<&str> = model.proto.functions.iter().map(|f| f.name()).collect();
    assert_eq!(names, ["Outer", "Inner"]);
    let mut untouched = nested();
    inline(&mut untouched, &|_| false).unwrap();
    assert_eq!(untouched, nested());
}

/// Whether a function that imports `own` and does `node` can be inlined into a model of opset `model`.
fn fits(own: i64, model: i64, body: NodeProto) -> Result<(), String> {
    let function = function("F", &["u"], &["v"], vec![body], own);
    let nodes = vec![call("F", "c", &["x"], &["y"])];
    let mut model = with(model, vec![function], nodes, "y");
    let before = model.clone();
    let done = inline(&mut model, &|_| true).unwrap();
    match done.refused.into_iter().next() {
        None => Ok(()),
        Some(RefusedCall { reason, .. }) => {
            assert_eq!(model, before);
            Err(reason)
        }
    }
}

#[test]
fn operator_sets() {
    let plain = |op: &str| node(op, &["u"], &["v"]);
    let split = |inputs: &[&str]| node("Split", inputs, &["v"]);
    let reduce = || {
        let mut reduce = plain("ReduceMean");
        reduce.attribute.push(int_attr("keepdims", 0));
        reduce
    };
    for (own, model, body, fit) in [
        (17, 17, reduce(), true),
        (17, 18, reduce(), false),
        (18, 17, reduce(), false),
        (18, 21, reduce(), true),
        (13, 17, reduce(), true),
        // Changed in 11 and 13, compatibly, and in 18.
        (12, 13, plain("Relu"), true),
        (17, 18, split(&["u"]), false),
        (17, 18, split(&["u", "u"]), true),
        (12, 13, plain("Softmax"), false),
        (13, 23, plain("Softmax"), true),
        // A newer function may use what the older operator does not know.
        (19, 17, plain("Reshape"), false),
        (18, 17, plain("Reshape"), true),
        (20, 19, plain("Gelu"), false),
        (20, 22, plain("Gelu"), true),
        (18, 20, plain("NoSuchOperator"), false),
        (18, 99, plain("Relu"), false),
    ] {
        let op = body.op_type().to_owned();
        let found = fits(own, model, body);
        assert_eq!(found.is_ok(), fit, "{op} from {own} to {model}: {found:?}");
        if let Err(reason) = found {
            assert!(
                reason.contains(&op) && reason.contains(&own.to_string()),
                "{reason}"
            );
        }
    }
}

#[test]
fn what_is_no_function_is_left_alone() {
    let reads_nothing = function("F", &["u"], &["v"], vec![node("Neg", &["w"], &["v"])], 17);
    let no_output = function("F", &["u"], &["v"], vec![node("Neg", &["u"], &["w"])], 17);
    let recursive = function(
        "F",
        &["u"],
        &["v"],
        vec![call("F", "r", &["u"], &["v"])],
        17,
    );
    for (function, why) in [
        (reads_nothing, "reads `w`"),
        (no_output, "its output `v`"),
        (recursive, "calls itself"),
    ] {
        let nodes = vec![call("F", "c", &["x"], &["y"])];
        let mut model = with(17, vec![function], nodes, "y");
        let done = inline(&mut model, &|_| true).unwrap();
        assert!(done.refused[0].reason.contains(why), "{:?}", done.refused);
    }
    let identity = function("F", &["u"], &["v"], vec![node("Neg", &["u"], &["v"])], 17);
    let nodes = vec![call("F", "c", &["x", "x"], &["y"])];
    let mut model = with(17, vec![identity], nodes, "y");
    let done = inline(&mut model, &|_| true).unwrap();
    assert!(done.refused[0].reason.contains("2 inputs"));
    assert_eq!(ops(&model), ["F"]);
}
