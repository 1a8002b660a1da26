//! Cutting and matching on graphs of a few nodes.

use super::cut::cut;
use super::prepare::{vectors_differ, without_activation_rounding};
use super::{VerifyOptions, VerifyRows, verify};
use crate::calibrate::tests::stats::{batches, linear};
use crate::calibrate::tests::threads::Counting;
use crate::graph::View;
use crate::onnx::node::make_node;
use crate::onnx::op;
use crate::onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
};
use crate::onnx::{DataType, Model, tensor};
use crate::progress::NoProgress;
use crate::review::quantized_linears;

fn op(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    make_node(op, &format!("node {output}"), inputs, &[output], vec![])
}

fn floats(name: &str, shape: &[usize]) -> TensorProto {
    let data = vec![0.5; shape.iter().product()];
    tensor::from_f32(name, shape, &data, DataType::Float)
}

fn model(node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> Model {
    let info = |name: &str| ValueInfoProto {
        name: Some(name.to_owned()),
        ..Default::default()
    };
    Model {
        proto: ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto {
                domain: None,
                version: Some(17),
            }],
            graph: Some(GraphProto {
                input: vec![info("in")],
                output: vec![info("y")],
                node,
                initializer,
                ..Default::default()
            }),
            ..Default::default()
        },
    }
}

/// in → Relu → x → Q → DQ → MatMul(DQ(w)) → Add(b) → y
fn quantized_linear() -> Model {
    model(
        vec![
            op(op::Relu, &["in"], "x"),
            op(op::QuantizeLinear, &["x", "s", "z"], "q"),
            op(op::DequantizeLinear, &["q", "s", "z"], "d"),
            op(op::DequantizeLinear, &["w", "ws"], "dw"),
            op(op::MatMul, &["d", "dw"], "p"),
            op(op::Add, &["p", "b"], "y"),
        ],
        vec![
            floats("s", &[]),
            tensor::from_u8("z", &[], &[3]),
            tensor::from_i8("w", &[2, 2], &[1, 2, 3, 4]),
            floats("ws", &[2]),
            floats("b", &[2]),
        ],
    )
}

fn names(view: &View, cut: &crate::graph::Cut) -> (Vec<String>, Vec<String>) {
    let nodes = cut.nodes.iter().map(|&n| view.node(n).output[0].clone());
    let fed = cut.fed.iter().map(|&v| view.name(v).to_owned());
    (nodes.collect(), fed.collect())
}

#[test]
fn a_linear_is_cut_out_up_to_the_values_of_both_models() {
    let model = quantized_linear();
    let view = View::new(&model);
    let y = view.value("y").unwrap();
    let found = cut(&view, y, |v| ["x", "in"].contains(&view.name(v))).unwrap();
    let (nodes, fed) = names(&view, &found);
    assert_eq!(nodes, ["q", "d", "dw", "p", "y"]);
    assert_eq!(fed, ["x"]);
    // Where x is not to be trusted, it goes back to the input of the model.
    let (nodes, fed) = names(&view, &cut(&view, y, |_| false).unwrap());
    assert_eq!((nodes[0].as_str(), fed.len()), ("x", 0));
}

#[test]
fn what_is_no_single_linear_is_not_cut_out() {
    let two = model(
        vec![
            op(op::MatMul, &["in", "w"], "x"),
            op(op::Relu, &["x"], "r"),
            op(op::MatMul, &["r", "w"], "y"),
        ],
        vec![floats("w", &[2, 2])],
    );
    let view = View::new(&two);
    let y = view.value("y").unwrap();
    let error = cut(&view, y, |_| false).unwrap_err();
    assert!(error.contains("another product"), "{error}");
    assert!(cut(&view, y, |v| view.name(v) == "r").is_ok());
    let none = cut(&view, view.value("r").unwrap(), |v| view.name(v) == "x").unwrap_err();
    assert!(none.contains("no product"), "{none}");
}

#[test]
fn quantized_linears_are_told_by_their_weights() {
    let model = quantized_linear();
    let found = quantized_linears(&View::new(&model));
    let [(node, linear)] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(View::new(&model).op(*node), linear.op);
    let (weight, activation) = (linear.weight.as_str(), linear.activation.as_deref());
    assert_eq!((weight, activation), ("INT8", Some("UINT8")));
    assert_eq!(
        (linear.granularity.as_str(), linear.dynamic),
        ("per-channel", false)
    );
    // A product of two quantized activations is no Linear, and a float weight is not quantized.
    let mut attention = quantized_linear();
    attention.graph_mut().node[4].input[1] = "d".to_owned();
    assert_eq!(quantized_linears(&View::new(&attention)), []);
    let mut float = quantized_linear();
    float.graph_mut().node[4].input[1] = "ws".to_owned();
    assert_eq!(quantized_linears(&View::new(&float)), []);
}

#[test]
fn rounding_of_activations_is_passed_by_and_that_of_weights_is_not() {
    let model = quantized_linear();
    let unrounded = without_activation_rounding(&model).unwrap();
    let matmul = &unrounded.graph().node[4];
    assert_eq!(matmul.input, ["x", "dw"]);
    let mut weights_only = quantized_linear();
    weights_only.graph_mut().node[4].input[0] = "x".to_owned();
    weights_only.graph_mut().node.drain(1..3);
    assert_eq!(without_activation_rounding(&weights_only), None);
}

#[test]
fn biases_tell_a_migrated_model() {
    let (model, mut other) = (quantized_linear(), quantized_linear());
    assert!(!vectors_differ(&model, &other));
    other.graph_mut().initializer[4] = tensor::from_f32("b", &[2], &[0.5, 0.6], DataType::Float);
    assert!(vectors_differ(&model, &other));
    other.graph_mut().initializer.pop();
    assert!(vectors_differ(&model, &other));
}

#[test]
fn as_many_threads_as_asked_for_run_both_models_and_every_linear() {
    let (model, batches) = (linear(), batches(8, 2, 6));
    let rows = VerifyRows {
        all: &batches,
        few: batches.first(),
    };
    let run = |threads| {
        let engine = Counting::default();
        let options = VerifyOptions {
            threads,
            ..VerifyOptions::default()
        };
        let found = verify(&model, &model, &rows, &engine, &options, &NoProgress).unwrap();
        assert_eq!((found.outputs.len(), found.layers.len()), (1, 1));
        assert!(found.layers[0].fed.is_some(), "{:?}", found.layers[0]);
        engine.work.seen()
    };
    assert_eq!(run(1), (1, 1));
    let (most, all) = run(3);
    assert!((2..=3).contains(&most) && all <= 3, "{most} of {all}");
}
