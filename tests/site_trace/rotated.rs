//! Rotations at every kind of sink, proved by running both models; and that another run sees the same Linears.

use super::prove::*;
use onnx_osplus::recognise::rotation_part;
use onnx_osplus::rewrite::Rotated;
use onnx_osplus::solve::Rotation;

/// Channels: 8 · 2 or more can be rotated.
const K: usize = 16;

/// Migrates all sites by random affines and a rotation each; checks that the outputs are the same, that the rotations are known,
/// and that the Linears found are those of the original.
fn prove_rotated(model: &Model, batch: Batch, rank: usize) -> Model {
    let view = View::new(model);
    let found = recognise(&view);
    let batches = [batch];
    let wanted = wanted_shapes(&view, &found);
    let shapes = shapes(&TractEngine, model, &batches[0], &wanted).unwrap();
    let sites = find_sites(&view, &found, &shapes, true);
    let mut affines = affines(&found, &sites, &mut numbers(77));
    let mut rotated = 0;
    for (seed, (site, affine)) in sites.iter().zip(&mut affines).enumerate() {
        let rotation = Rotation::of(found.linears[site.linears[0]].k, seed as u64);
        let Some(rotation) = rotation.filter(|_| site.has_sink()) else {
            continue;
        };
        let rotation = match &site.sink {
            Sink::Traced(trace) if trace.ties.is_some() => {
                rotation.tied(trace.ties.as_deref().unwrap())
            }
            _ => rotation,
        };
        let rotation = match site.allow_signs() {
            true => rotation,
            false => rotation.unsigned(),
        };
        affine.rotation = Some(Rotated { rotation, rank });
        rotated += 1;
    }
    let migrations: Vec<_> = sites.iter().zip(affines).collect();
    let patches = migrate(&view, &found, &migrations, &mut Names::new(model)).unwrap();
    let mut migrated = model.clone();
    graph::apply(&mut migrated, patches).unwrap();
    graph::check(&migrated).unwrap();

    let compared = compare(&TractEngine, model, &[&migrated], &batches, 1, &NoProgress).unwrap();
    for output in &compared[0] {
        let range = (output.range.1 - output.range.0).max(1.0);
        assert!(output.max_abs_error <= 1e-5 * range, "{output:?}");
    }
    let after = View::new(&migrated);
    let again = recognise(&after);
    let names = |found: &Recognised| -> Vec<String> {
        found.linears.iter().map(|l| l.name.clone()).collect()
    };
    assert_eq!(names(&again), names(&found));
    assert_eq!(again.near_misses.len(), found.near_misses.len());
    let parts = after
        .nodes()
        .filter_map(|(id, _)| rotation_part(&after, id));
    assert_eq!(parts.count(), 2 * rotated);
    migrated
}

fn rotated(rank: usize, build: impl FnOnce(&mut Builder)) -> Model {
    let shape: &[usize] = if rank == 3 { &[2, 3, K] } else { &[6, K] };
    let model = graph(rank, K, 1, build);
    prove_rotated(&model, batch(shape, 1), rank)
}

fn count(model: &Model, op: &str) -> usize {
    let nodes = model.graph().node.iter();
    nodes.filter(|n| n.op_type() == op).count()
}

#[test]
fn behind_a_norm_whose_value_others_read() {
    for rank in [2, 3] {
        let model = rotated(rank, |b| {
            b.layer_norm("x", "norm");
            b.linear("norm", "u", K, K);
            b.linear("norm", "v", K, 24);
            b.node("Add", &["norm", "u"], "y");
            b.output("y", K);
            b.output("v", 24);
        });
        // One rotation for both Linears, one Mul and one Add to restore the value: 2 + 2 products.
        assert_eq!(count(&model, "MatMul"), 4);
        assert_eq!((count(&model, "Reshape"), count(&model, "Mul")), (2, 1));
    }
}

#[test]
fn behind_a_norm_that_only_linears_read() {
    let model = rotated(3, |b| {
        b.layer_norm("x", "norm");
        b.linear("norm", "u", K, 24);
        b.output("u", 24);
    });
    assert_eq!((count(&model, "MatMul"), count(&model, "Mul")), (3, 0));
}

#[test]
fn behind_attention_with_free_and_with_tied_channels() {
    rotated(3, |b| attention(b, "x", (2, 8), true));
    let model = rotated(3, |b| grouped_attention(b, 2, 2, 8));
    let names = |suffix: &str| {
        let constants = model.graph().initializer.iter();
        constants.filter(|t| t.name().contains(suffix)).count()
    };
    // 16 channels are 4 · 4, 32 are 4 · 8: matrices of the same size are one.
    assert_eq!((names("rotation_4"), names("rotation_8")), (1, 1));
}

#[test]
fn behind_gelu_by_a_mul_that_takes_the_signs() {
    let model = rotated(3, |b| {
        b.linear("x", "u", K, 24);
        b.node("Erf", &["u"], "e");
        b.node("Mul", &["u", "e"], "v");
        b.linear("v", "y", 24, K);
        b.output("y", K);
    });
    // x and v: 2 Linears, 2 rotations.
    assert_eq!(count(&model, "MatMul"), 6);
}

/// A negative scale does not pass a Relu.
#[test]
fn behind_relu_without_signs() {
    rotated(3, |b| {
        b.linear("x", "u", K, 24);
        b.node("Relu", &["u"], "v");
        b.linear("v", "y", 24, K);
        b.output("y", K);
    });
}

#[test]
fn channels_that_no_rotation_fits_stay() {
    let model = rotated(3, |b| {
        b.linear("x", "u", K, 17);
        b.node("Erf", &["u"], "v");
        b.linear("v", "y", 17, K);
        b.output("y", K);
    });
    assert_eq!(count(&model, "MatMul"), 4);
}

/// What is almost a rotation is a Linear as before.
#[test]
fn near_misses_are_linears() {
    let eye = |b: &mut Builder, name: &str, n: usize, d: f32| {
        let data: Vec<f32> = (0..n * n)
            .map(|i| if i % (n + 1) == 0 { d } else { 0.0 })
            .collect();
        b.constant(name, &[n, n], &data);
    };
    let linears = |d: f32, read_again: bool, both: bool| {
        let model = graph(3, K, 1, |b| {
            eye(b, "inner", 4, d);
            eye(b, "outer", 4, 1.0);
            reshape(b, "x", "split", &[0, 0, 4, 4]);
            b.node("MatMul", &["split", "inner"], "first");
            if both {
                b.node("MatMul", &["outer", "first"], "second");
            } else {
                b.node("Erf", &["first"], "second");
            }
            reshape(b, "second", "y", &[0, 0, K as i64]);
            b.output("y", K);
            if read_again {
                b.node("Erf", &["first"], "z");
                b.graph.output.push(info("z", DataType::Float, &[]));
            }
        });
        recognise(&View::new(&model)).linears.len()
    };
    assert_eq!(linears(1.0, false, true), 0);
    assert_eq!(linears(1.1, false, true), 1);
    assert_eq!(linears(1.0, true, true), 1);
    assert_eq!(linears(1.0, false, false), 1);
}
