//! Values of a few sequences, out of a run of more.

use ndarray::{ArrayD, Slice};

use super::*;
use crate::calibrate::{Keep, Kept, TractEngine};
use crate::onnx::node::{int_attr, ints_attr, make_node};
use crate::onnx::{DataType, Model, op, tensor};

/// x: [B, S, 4] as it is, with rows and tokens on one axis, with its tokens first, and a value without rows.
fn forms() -> Model {
    let nodes = vec![
        make_node(op::Tanh, "tanh", &["x"], &["t"], vec![]),
        make_node(op::Reshape, "flat", &["t", "shape"], &["f"], vec![]),
        make_node(
            op::Transpose,
            "turn",
            &["t"],
            &["first"],
            vec![ints_attr("perm", &[1, 0, 2])],
        ),
        make_node(op::Shape, "sizes", &["x"], &["s"], vec![]),
        make_node(
            op::Gather,
            "length",
            &["s", "one"],
            &["n"],
            vec![int_attr("axis", 0)],
        ),
        make_node(
            op::Concat,
            "to",
            &["n", "four"],
            &["to_shape"],
            vec![int_attr("axis", 0)],
        ),
        make_node(
            op::Expand,
            "positions",
            &["place", "to_shape"],
            &["p"],
            vec![],
        ),
        make_node(op::Add, "add", &["t", "p"], &["y"], vec![]),
    ];
    let ints = |name: &str, values: &[i64]| tensor::from_i64(name, &[values.len()], values);
    let constants = vec![
        ints("shape", &[-1, 4]),
        ints("one", &[1]),
        ints("four", &[4]),
        tensor::from_f32("place", &[1, 1, 4], &[0.1, 0.2, 0.3, 0.4], DataType::Float),
    ];
    let input = info("x", DataType::Float, &["B", "S", "4"]);
    model(17, vec![input], nodes, constants, &["f", "first", "y"])
}

/// The first rows of what is kept of a run of all.
fn kept(batch: &Batch, others: &[Batch], values: &[&str]) -> Kept {
    let values: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
    let keep = Keep::among(batch, others, &values);
    keep.capture(&TractEngine, &forms()).unwrap()
}

fn batches() -> (Batch, Batch) {
    let all: ArrayD<f32> = wave(&[4, 3, 4]);
    let few = all
        .slice_axis(ndarray::Axis(0), Slice::from(..3))
        .to_owned();
    (f32_batch("x", few, 5), f32_batch("x", all, 5))
}

#[test]
fn the_first_rows_of_a_run_are_those_of_a_run_of_them() {
    let (few, all) = batches();
    let values = ["t", "f", "p", "y"];
    let alone = kept(&few, &[], &values);
    assert_eq!(alone["f"].halves, [1, 1, 1, 0, 0, 0, 1, 1, 1].map(Some));
    assert_eq!(kept(&few, std::slice::from_ref(&all), &values), alone);
}

/// What is run tells itself apart by its numbers.
#[test]
fn rows_that_do_not_come_first_are_run_alone() {
    let (few, all) = batches();
    let double = f32_batch("x", wave(&[4, 3, 4]) * 2.0, 5);
    let of = |others: &[Batch], values: &[&str]| kept(&few, others, values);
    let (alone, with_first) = (of(&[], &["t"]), of(&[], &["t", "first"]));
    assert_ne!(of(std::slice::from_ref(&double), &["t"]), alone);
    assert_eq!(of(&[double], &["t", "first"]), with_first);
    assert_eq!(of(&[all], &["t", "first"]), with_first);
    // Of other rows, or of other sizes, nothing is taken.
    for other in [wave(&[4, 3, 4]) * 2.0, wave(&[4, 2, 4])]
        .into_iter()
        .zip([6, 5])
    {
        let other = f32_batch("x", other.0, other.1);
        assert_eq!(of(&[other], &["t"]), alone);
    }
}
