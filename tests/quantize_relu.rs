//! A MatMul without bias before a Relu gets a zero bias: ONNX Runtime leaves it in float otherwise.

use crate::recognise::text;
use onnx_osplus::graph::{Names, View, apply};
use onnx_osplus::onnx::Model;
use onnx_osplus::recognise::recognise;
use onnx_osplus::rewrite::{Activation, QuantizePlan, quantize};
use onnx_osplus::solve::{ActivationSpec, WeightSpec};
use onnx_osplus::target::Target;

fn quantized(model: &Model, target: Target, rank: usize) -> Model {
    let view = View::new(model);
    let found = recognise(&view);
    let profile = target.profile();
    let spec = ActivationSpec::per_tensor(8, profile.symmetric);
    let activation = Activation {
        params: spec.params(-1.0, 1.0),
        per_token: None,
        rank,
    };
    let plan = QuantizePlan {
        activations: oxc_index::index_vec![Some(activation); found.linears.len()],
        weight: WeightSpec::per_channel(8),
        raised: Default::default(),
        storage: Default::default(),
        rounded: Default::default(),
        profile,
    };
    let patches = quantize(&view, &found, &plan, &mut Names::new(model)).unwrap();
    let mut result = model.clone();
    apply(&mut result, patches).unwrap();
    result
}

/// The operators of the nodes that read the output of the first MatMul, and what reads those.
fn after_matmul(model: &Model) -> Vec<&str> {
    let graph = model.graph();
    let matmul = graph.node.iter().find(|n| n.op_type() == "MatMul").unwrap();
    let reader = |value: &String| graph.node.iter().find(|n| n.input.contains(value));
    let mut ops = vec![];
    let mut value = &matmul.output[0];
    while let Some(node) = reader(value) {
        ops.push(node.op_type());
        value = &node.output[0];
    }
    ops
}

#[test]
fn zero_bias_before_relu_and_clip() {
    // The targets whose files ONNX Runtime runs.
    for target in [Target::Ort, Target::Portable] {
        for (end, expected) in [
            ("y = Relu(p)", vec!["Add", "Relu"]),
            (
                "const lo[] = 0\n const hi[] = 6\n y = Clip(p, lo, hi)",
                vec!["Add", "Clip"],
            ),
            ("y = Neg(p)", vec!["Neg"]),
            (
                "const b[4]\n s = Add(p, b)\n y = Relu(s)",
                vec!["Add", "Relu"],
            ),
        ] {
            let text = format!("in x[2, 3, 8]\n const w[8, 4]\n p = MatMul(x, w)\n {end}\n out y");
            let model = quantized(&text::model(&text), target, 3);
            assert_eq!(after_matmul(&model), expected, "{end}");
        }
        // Other readers of the product would need the Add as well; ONNX Runtime does not look through it then.
        let text = "in x[2, 3, 8]\n const w[8, 4]\n p = MatMul(x, w)\n y = Relu(p)\n out y\n out p";
        let model = quantized(&text::model(text), target, 3);
        assert_eq!(after_matmul(&model), ["Relu"]);
    }
}

#[test]
fn other_runtimes_need_no_zero_bias() {
    for target in [Target::Tensorrt, Target::Openvino] {
        let text = "in x[2, 3, 8]\n const w[8, 4]\n p = MatMul(x, w)\n y = Relu(p)\n out y";
        let model = quantized(&text::model(text), target, 3);
        assert_eq!(after_matmul(&model), ["Relu"]);
    }
}
