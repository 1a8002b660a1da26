//! A model in steps is the model.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::*;
use crate::calibrate::{Behind, Keep, StepError, Steps, Walk, vectors};
use crate::graph::{ValueId, View};
use crate::onnx::node::make_node;
use crate::onnx::{op, tensor};

/// y = (r W₂) + x with r = Relu(x W₁ + b): the residual is read behind both products, the mask m in every step.
fn two_linears() -> Model {
    let numbers = |n: usize| wave(&[n]).into_raw_vec_and_offset().0;
    let float = |name: &str, dims: &[usize]| {
        let n = dims.iter().product();
        tensor::from_f32(name, dims, &numbers(n), DataType::Float)
    };
    let nodes = vec![
        make_node(op::Neg, "neg", &["x"], &["n"], vec![]),
        make_node(op::Tanh, "tanh", &["n"], &["t"], vec![]),
        make_node(op::MatMul, "first", &["t", "w1"], &["p1"], vec![]),
        make_node(op::Add, "bias", &["p1", "b"], &["a1"], vec![]),
        make_node(op::Relu, "relu", &["a1"], &["r"], vec![]),
        make_node(op::MatMul, "second", &["r", "w2"], &["p2"], vec![]),
        make_node(op::Shape, "shape", &["a1"], &["s"], vec![]),
        make_node(op::Reshape, "same", &["a1", "s"], &["again"], vec![]),
        make_node(op::Mul, "gate", &["again", "p2"], &["g"], vec![]),
        make_node(op::Add, "residual", &["g", "t"], &["y0"], vec![]),
        make_node(op::Sigmoid, "end", &["y0"], &["y"], vec![]),
        make_node(op::MatMul, "third", &["y", "w2"], &["z"], vec![]),
    ];
    let constants = vec![float("w1", &[4, 4]), float("b", &[4]), float("w2", &[4, 4])];
    let input = info("x", DataType::Float, &["B", "S", "4"]);
    model(17, vec![input], nodes, constants, &["z", "y"])
}

fn times(x: &ArrayD<f32>, w: &str, model: &Model) -> ArrayD<f32> {
    let view = View::new(model);
    let w = view.constant(view.value(w).unwrap()).unwrap();
    let w = w.into_float().unwrap().0;
    let w = w.into_shape_with_order((4, 4)).unwrap();
    let (shape, tokens) = (x.shape().to_vec(), x.len() / 4);
    let x = x.clone().into_shape_with_order((tokens, 4)).unwrap();
    x.dot(&w).into_shape_with_order(IxDyn(&shape)).unwrap()
}

#[test]
fn steps_with_the_own_products_give_what_the_model_gives() {
    let model = two_linears();
    let view = View::new(&model);
    let id = |name: &str| view.value(name).unwrap();
    // Batches of two shapes.
    let batches = [
        f32_batch("x", wave(&[2, 3, 4]), 0),
        f32_batch("x", wave(&[1, 5, 4]) * 0.7, 2),
    ];
    let outside: BTreeSet<ValueId> = ["p1", "p2"].map(id).into();
    let mut steps = Steps::new(&TractEngine, &model, &batches, 2, outside);
    let x = steps.value(id("t"), &[id("r"), id("y")]).unwrap();
    assert_eq!(x.len(), 4);
    assert_eq!(x[..2], x[2..]);
    steps.put(id("p1"), x.iter().map(|x| times(x, "w1", &model)).collect());
    let r = steps.value(id("r"), &[id("y")]).unwrap();
    // The second stream gives something else from here on.
    let products = r.iter().enumerate().map(|(i, r)| match i < 2 {
        true => times(r, "w2", &model),
        false => times(r, "w2", &model) + 0.5,
    });
    steps.put(id("p2"), products.collect());
    let y = steps.value(id("y"), &[]).unwrap();
    let wanted = Wanted {
        taps: &[],
        outputs: true,
    };
    for (i, y) in y.iter().enumerate() {
        let batch = &batches[i % 2];
        let plan = TractEngine.plan(&model, batch, &wanted).unwrap();
        let expected = &plan.run(batch, None).unwrap()["y"];
        let worst = (y - expected).iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert_eq!(worst < 1e-5, i < 2, "{i}: {worst}");
    }
}

#[test]
fn a_value_behind_one_that_is_missing_is_refused() {
    let model = two_linears();
    let view = View::new(&model);
    let id = |name: &str| view.value(name).unwrap();
    let batches = [f32_batch("x", wave(&[2, 3, 4]), 0)];
    let outside: BTreeSet<ValueId> = ["p1", "p2"].map(id).into();
    let mut steps = Steps::new(&TractEngine, &model, &batches, 1, outside);
    let refused = steps.value(id("r"), &[]);
    assert!(matches!(refused, Err(StepError::Order(why)) if why.contains("`p1`")));
}

#[test]
fn vectors_tell_padding_and_sizes() {
    let model = two_linears();
    let batches = [f32_batch("x", wave(&[2, 3, 4]), 0)];
    let found = vectors(&TractEngine, &model, &batches, &["t".to_owned()]).unwrap();
    let found = &found[0]["t"];
    assert_eq!(found.real, [true; 6]);
    assert!(found.sizes.iter().all(|size| *size > 0.0) && found.sizes.len() == 6);
}

/// The nodes of the models that a walk plans, where those of fewer than `least` are refused; what it gives is what the whole
/// model gives.
fn walked(least: usize) -> Vec<usize> {
    let planned = Mutex::new(Vec::new());
    let engine = Watched(|model: &Model| {
        let nodes = model.graph().node.len();
        planned.lock().unwrap().push(nodes);
        match nodes < least {
            true => Err(EngineError::UnsupportedOps { ops: Vec::new() }),
            false => Ok(()),
        }
    });
    let model = two_linears();
    let batch = f32_batch("x", wave(&[2, 3, 4]), 0);
    let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    // A value of two waves, one that nothing behind reads, and an order that is not that of the graph.
    let waves: Vec<Vec<String>> =
        vec![&["t", "p1"][..], &["y0", "p1"], &["r"], &["g", "t"], &["z"]]
            .into_iter()
            .map(names)
            .collect();
    let mut walk = Walk::new(&engine, &model, &batch, waves.clone()).unwrap();
    for values in &waves {
        let (batch, values) = (&batch, &values[..]);
        let expected = Keep::among(batch, &[], values).capture(&TractEngine, &model);
        assert_eq!(walk.wave().unwrap(), expected.unwrap(), "{values:?}");
    }
    planned.lock().unwrap().clone()
}

#[test]
fn a_walk_runs_no_product_twice() {
    // Shape and Reshape may be read again.
    let (whole, planned) = (two_linears().graph().node.len(), walked(0));
    assert!(planned.iter().sum::<usize>() <= whole + 3, "{planned:?}");
}

#[test]
fn a_walk_over_what_cannot_be_run_in_parts_runs_the_whole() {
    let whole = two_linears().graph().node.len();
    let planned = walked(whole);
    // One part is tried.
    assert_eq!(planned.iter().filter(|&&n| n < whole).count(), 1);
    assert_eq!(planned.iter().filter(|&&n| n == whole).count(), 5);
}

/// `model` with another weight of node `name`, which reads `w2` in it.
fn other_weight(model: &Model, name: &str) -> Model {
    let mut other = model.clone();
    let graph = other.graph_mut();
    let node = graph.node.iter_mut().find(|node| node.name() == name);
    node.unwrap().input[1] = "other".to_owned();
    let numbers = wave(&[16]).mapv(|v| v * 0.9).into_raw_vec_and_offset().0;
    let weight = tensor::from_f32("other", &[4, 4], &numbers, DataType::Float);
    graph.initializer.push(weight);
    other
}

#[test]
fn of_a_model_that_differs_in_a_node_only_what_is_behind_it_is_run() {
    let model = two_linears();
    let batches = [
        f32_batch("x", wave(&[2, 3, 4]), 0),
        f32_batch("x", wave(&[1, 5, 4]) * 0.7, 2),
    ];
    let wanted = Wanted {
        taps: &[],
        outputs: true,
    };
    let changed = ["second", "third"].map(|name| other_weight(&model, name));
    let whole = Mutex::new(0);
    // Of the changed models none with the node that all have first.
    let engine = Watched(|model: &Model| {
        let graph = model.graph();
        let has = |name: &str| graph.node.iter().any(|node| node.name() == name);
        let changed = graph.initializer.iter().any(|w| w.name() == "other");
        *whole.lock().unwrap() += usize::from(changed && has("neg"));
        Ok(())
    });
    let mut behind = Behind::new(&engine, &model, &batches, &["second", "third"]).unwrap();
    let mut run = |at: usize, count: usize| {
        behind.advance(count);
        for batch in &batches {
            let plan = behind.plan(&changed[at], batch, &wanted).unwrap();
            let expected = TractEngine.plan(&changed[at], batch, &wanted).unwrap();
            let (found, expected) = (plan.run(batch, None), expected.run(batch, None));
            assert_eq!(found.unwrap(), expected.unwrap());
        }
        std::mem::take(&mut *whole.lock().unwrap())
    };
    assert_eq!([run(0, 1), run(1, 1)], [0, 0]);
    // Nothing is known of a difference that was not announced.
    assert_eq!([run(0, 1), run(1, 1)], [2, 2]);
}
