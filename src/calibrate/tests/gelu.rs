//! A GELU with a constant per channel in it is computed as it is written.

use ndarray::array;

use super::engine::run;
use super::*;
use crate::onnx::node::make_node;
use crate::onnx::{op, tensor};

/// GELU(x · a) · b · c, with constants of one or two elements, and an Identity where one is asked for.
fn gelu(scales: [&[f32]; 3], identity: bool) -> ArrayD<f32> {
    let float =
        |name: &str, data: &[f32]| tensor::from_f32(name, &[data.len()], data, DataType::Float);
    let mul = |name: &str, a: &str, b: &str| make_node(op::Mul, name, &[a, b], &[name], vec![]);
    let erf = if identity { "same" } else { "erf" };
    let nodes = vec![
        mul("scaled", "x", "a"),
        make_node(op::Erf, "erf", &["scaled"], &["erf"], vec![]),
        make_node(op::Identity, "same", &["erf"], &["same"], vec![]),
        make_node(op::Add, "plus", &[erf, "one"], &["plus"], vec![]),
        mul("times", "x", "plus"),
        mul("half", "b", "times"),
        mul("y", "half", "c"),
    ];
    let [a, b, c] = scales;
    let constants = vec![
        float("a", a),
        float("b", b),
        float("c", c),
        float("one", &[1.0]),
    ];
    let inputs = vec![info("x", DataType::Float, &["b", "s", "2"])];
    let model = model(17, inputs, nodes, constants, &["y"]);
    let x = array![[[1f32, 1.0], [-0.5, -0.5]]].into_dyn();
    run(&model, f32_batch("x", x, 0))
        .unwrap()
        .remove("y")
        .unwrap()
}

#[test]
fn a_constant_per_channel_is_no_number() {
    let r = std::f32::consts::FRAC_1_SQRT_2;
    let expected = gelu([&[r], &[0.5], &[1.0]], false);
    for identity in [false, true] {
        // The second channel three times as large, wherever that is written.
        for scales in [
            [&[r][..], &[0.5], &[1.0, 3.0]],
            [&[r], &[0.5, 1.5], &[1.0]],
            [&[r], &[0.5, 1.5], &[1.0, 1.0]],
        ] {
            let found = gelu(scales, identity);
            for (found, one) in found.rows().into_iter().zip(expected.rows()) {
                let want = array![one[0], 3.0 * one[1]];
                let far = (&found - &want).iter().any(|d| d.abs() > 1e-6);
                assert!(!far, "{scales:?} {identity}: {found} instead of {want}");
            }
        }
        // Another curve in the second channel.
        let found = gelu([&[r, 0.0], &[0.5], &[1.0]], identity);
        assert!((found[[0, 0, 1]] - 0.5).abs() < 1e-6 && (found[[0, 1, 1]] + 0.25).abs() < 1e-6);
    }
}
