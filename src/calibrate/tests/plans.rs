//! What is kept from one plan to the next.

use std::collections::BTreeMap;
use std::sync::Mutex;

use ndarray::array;

use super::engine::{embedding, ids_batch, qdq, shifted};
use super::*;
use crate::calibrate::engine::copy::calibration_copy;
use crate::calibrate::measure::compare::Reference;
use crate::calibrate::{compare_with, outputs};
use crate::onnx::node::{ints_attr, make_node};
use crate::onnx::op;
use crate::onnx::tensor;
use crate::progress::NoProgress;

#[test]
fn a_reference_runs_once_for_several_comparisons() {
    let batches: Vec<Batch> = (0..3)
        .map(|i| f32_batch("x", wave(&[2, 3, 2]) + i as f32 * 0.1, 2 * i as u64))
        .collect();
    let (same, other) = (shifted(0.), shifted(0.3));
    // Models are told apart by their first initializer.
    let planned: Mutex<BTreeMap<Vec<u8>, usize>> = Mutex::default();
    let engine = Watched(|model: &Model| {
        let key = model.graph().initializer[0].raw_data().to_vec();
        *planned.lock().unwrap().entry(key).or_default() += 1;
        Ok(())
    });
    let mut reference = Reference::new(&same, &batches);
    let mut compared = || compare_with(&engine, &mut reference, &[&other], 2, &NoProgress).unwrap();
    let first = compared();
    assert_eq!(compared(), first);
    let plans: Vec<usize> = planned.lock().unwrap().values().copied().collect();
    assert_eq!(plans, [1, 2]);
}

#[test]
fn a_reference_takes_further_rows() {
    let batch = |row: u64| f32_batch("x", wave(&[1, 3, 2]) + row as f32 * 0.1, row);
    let batches: Vec<Batch> = (0..4).map(batch).collect();
    let (same, other) = (shifted(0.), shifted(0.3));
    let compared = |reference: &mut Reference| {
        compare_with(&TractEngine, reference, &[&other], 1, &NoProgress).unwrap()
    };
    let mut growing = Reference::new(&same, &batches[..1]);
    assert_eq!(compared(&mut growing)[0][0].rows.len(), 1);
    growing.extend(&batches[1..]);
    let all = compared(&mut Reference::new(&same, &batches));
    assert_eq!(compared(&mut growing), all);
}

/// A weight that two nodes dequantize, and one that differs in its zero point.
#[test]
fn a_shared_weight_is_dequantized_once_and_under_every_name() {
    let mut model = qdq(13, tensor::from_i8("z", &[], &[0]));
    let graph = model.proto.graph.as_mut().unwrap();
    graph
        .initializer
        .push(tensor::from_i8("wz1", &[2], &[1, 0]));
    for (zero, name) in [("wz", "again"), ("wz1", "other")] {
        let mut node = graph.node[2].clone();
        (node.name, node.output) = (Some(name.into()), vec![name.into()]);
        node.input[2] = zero.into();
        graph.node.push(node);
        let y = make_node(
            op::MatMul,
            "",
            &["xd", name],
            &[&format!("y_{name}")],
            vec![],
        );
        graph.node.push(y);
    }
    for name in ["again", "y_again", "y_other", "m"] {
        let output = info(name, DataType::Float, &["a", "b"]);
        graph.output.push(output);
    }
    let batch = f32_batch("x", array![[0.74f32, -0.75, 1.25]].into_dyn(), 0);
    let copy = calibration_copy(&model, &batch.shapes(), &Default::default()).unwrap();
    let nodes = &copy.proto.graph.as_ref().unwrap().node;
    let first = nodes.iter().position(|n| n.output == ["wd"]).unwrap();
    let kinds: Vec<&str> = nodes[first..].iter().map(|n| n.op_type()).collect();
    assert_eq!(
        kinds,
        [
            op::Identity,
            op::MatMul,
            op::Add,
            op::Identity,
            op::MatMul,
            op::Identity,
            op::MatMul
        ]
    );
    assert_eq!(copy.blocked.len(), 2);
    assert_eq!(nodes[first + 4].input[1], "wd");
    let y = outputs(&TractEngine, &model, &[batch], 1, &NoProgress).unwrap();
    let y = &y.batches[0];
    assert_eq!(y["y_again"], y["m"]);
    let w = array![[0.5f32, -4.], [1.5, -8.], [2.5, -256.]];
    assert_eq!(y["again"], w.into_dyn());
    let x = array![[0.5f32, -1., 1.]];
    let w = array![[0.0f32, -4.], [1., -8.], [2., -256.]];
    assert_eq!(y["y_other"], x.dot(&w).into_dyn());
}

#[test]
fn plans_that_share_tables_run_as_if_they_did_not() {
    let shared = TractEngine.sharing();
    let other = {
        let mut other = embedding();
        let table = [10f32, 11., 12., 13., 14., 15.];
        other.proto.graph.as_mut().unwrap().initializer[0] =
            tensor::from_f32("table", &[3, 2], &table, DataType::Float);
        other
    };
    for (model, first) in [(embedding(), 0.), (other, 10.), (embedding(), 0.)] {
        for ids in [array![[0i64, 2]], array![[0, 2, 1]]] {
            let found = outputs(shared.as_ref(), &model, &[ids_batch(ids)], 1, &NoProgress);
            let y = &found.unwrap().batches[0]["y"];
            assert_eq!(
                y.iter().take(4).copied().collect::<Vec<f32>>(),
                [0., 1., 4., 5.].map(|v: f32| v + first)
            );
        }
    }
}

/// Two models that are compared draw the same numbers, whatever their nodes are called; different values do not.
#[test]
fn random_numbers_are_the_same_in_every_run() {
    let noisy = |op: &str, inputs: &[&str]| {
        let shape = vec![ints_attr("shape", &[2, 3, 2])];
        let attributes = if inputs.is_empty() { shape } else { vec![] };
        let draw = |y: &str| make_node(op, &format!("node_{y}"), inputs, &[y], attributes.clone());
        model(
            17,
            vec![info("x", DataType::Float, &["2", "3", "2"])],
            vec![
                draw("r"),
                draw("r2"),
                make_node(op::Add, "add", &["x", "r"], &["y"], vec![]),
                make_node(op::Sub, "sub", &["r", "r2"], &["d"], vec![]),
            ],
            vec![],
            &["y", "d"],
        )
    };
    let ops = [op::RandomUniform, op::RandomNormal].map(|op| (op.to_owned(), format!("{op}Like")));
    for (plain, like) in ops {
        for (op, inputs) in [(plain, &[][..]), (like, &["x"][..])] {
            let model = noisy(&op, inputs);
            let batches = [f32_batch("x", wave(&[2, 3, 2]), 0)];
            let run = || outputs(&TractEngine, &model, &batches, 1, &NoProgress).unwrap();
            let (first, second) = (run(), run());
            assert_eq!(first, second, "{op}");
            let [d, y] = ["d", "y"].map(|name| &first.batches[0][name]);
            assert!(d.iter().all(|v| *v != 0.0), "{op}");
            assert_ne!(*y, wave(&[2, 3, 2]), "{op}");
        }
    }
}
