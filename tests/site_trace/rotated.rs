//! Rotations at every kind of sink, proved by running both models; and that another run sees the same Linears.

use super::prove::*;
use onnx_osplus::recognise::rotation_part;
use onnx_osplus::rewrite::Rotated;
use onnx_osplus::solve::{Mixing, Rotation};

/// Channels: 8 · 2 or more can be rotated.
const K: usize = 16;

/// Migrates all sites by random affines and a rotation each; checks that the outputs are the same, that the rotations are known,
/// and that the Linears found are those of the original.
fn prove_rotated(model: &Model, batch: Batch, rank: usize) -> Model {
    prove_forms(model, batch, rank, |site, channels, seed| {
        let rotation = Rotation::of(channels, seed);
        rotation.filter(|_| site.has_sink())
    })
}

/// The same with the rotation that `form` gives a site of so many channels.
fn prove_forms(
    model: &Model,
    batch: Batch,
    rank: usize,
    form: impl Fn(&Site, usize, u64) -> Option<Rotation>,
) -> Model {
    let view = View::new(model);
    let found = recognise(&view);
    let batches = [batch];
    let wanted = wanted_shapes(&view, &found);
    let shapes = shapes(&TractEngine, model, &batches[0], &wanted).unwrap();
    let sites = find_sites(&view, &found, &shapes, true);
    let mut affines = affines(&found, &sites, &mut numbers(77));
    let mut products = 0;
    for (seed, (site, affine)) in sites.iter().zip(&mut affines).enumerate() {
        let k = found.linears[site.linears[0]].k;
        let Some(rotation) = form(site, k, seed as u64) else {
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
        products += match rotation.mixing() {
            Mixing::All => 2,
            Mixing::Blocks => 1,
            Mixing::Heads => 0,
        };
        affine.rotation = Some(Rotated { rotation, rank });
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
    assert_eq!(parts.count(), products);
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

/// The sites of a model whose channels may stand in another order, and those whose heads may be mixed.
fn freedom(model: &Model, batch: &Batch) -> (usize, usize) {
    let view = View::new(model);
    let found = recognise(&view);
    let wanted = wanted_shapes(&view, &found);
    let shapes = shapes(&TractEngine, model, batch, &wanted).unwrap();
    let sites = find_sites(&view, &found, &shapes, true);
    let ordered = sites.iter().filter(|s| !s.reorder.is_empty()).count();
    (
        ordered,
        sites.iter().filter(|s| s.mixable.is_some()).count(),
    )
}

/// Blocks behind an order wherever that is free.
fn in_blocks(rank: usize, build: impl FnOnce(&mut Builder)) -> Model {
    let shape: &[usize] = if rank == 3 { &[2, 3, K] } else { &[6, K] };
    let (model, batch) = (graph(rank, K, 1, build), batch(shape, 1));
    assert!(freedom(&model, &batch).0 > 0);
    prove_forms(&model, batch, rank, |site, channels, seed| {
        let energy: Vec<f64> = (0..channels).map(|c| ((c * 37) % 11) as f64).collect();
        let blocks = Rotation::blocks(channels, 4, seed)?.balanced(&energy);
        (!site.reorder.is_empty()).then_some(blocks)
    })
}

#[test]
fn blocks_behind_an_order_that_the_linears_before_take() {
    for rank in [2, 3] {
        let model = in_blocks(rank, |b| {
            b.linear("x", "u", K, 24);
            b.node("Erf", &["u"], "e");
            b.node("Mul", &["u", "e"], "v");
            b.linear("v", "y", 24, K);
            b.output("y", K);
        });
        // The Mul that scales v stands before one product.
        assert_eq!(count(&model, "MatMul") + count(&model, "Gemm"), 3);
    }
    // Both factors of a gated FFN are in the same order, and the scale is folded into one.
    in_blocks(3, |b| {
        b.linear("x", "gate", K, 24);
        b.linear("x", "up", K, 24);
        b.node("Sigmoid", &["gate"], "s");
        b.node("Mul", &["gate", "s"], "act");
        b.node("Mul", &["act", "up"], "v");
        b.linear("v", "y", 24, K);
        b.output("y", K);
    });
    // In one Linear.
    in_blocks(3, |b| {
        b.linear("x", "both", K, 48);
        let split = b.node_with("Split", &["both"], "gate", vec![int_attr("axis", -1)]);
        split.output.push("up".to_owned());
        b.node("Sigmoid", &["gate"], "s");
        b.node("Mul", &["s", "up"], "v");
        b.linear("v", "y", 24, K);
        b.output("y", K);
    });
    // A Relu, which no negative scale passes.
    in_blocks(3, |b| {
        b.linear("x", "u", K, 24);
        b.node("Relu", &["u"], "v");
        b.linear("v", "y", 24, K);
        b.output("y", K);
    });
}

#[test]
fn an_order_that_someone_else_would_see_is_not_free() {
    let ordered = |between: fn(&mut Builder)| {
        let model = graph(3, K, 1, |b| {
            b.linear("x", "u", K, 24);
            between(b);
            b.linear("v", "y", 24, K);
            b.output("y", K);
        });
        freedom(&model, &batch(&[2, 3, K], 1)).0
    };
    assert_eq!(
        ordered(|b| {
            b.node("Erf", &["u"], "v");
        }),
        1
    );
    // A constant per channel; a norm; sums over channels; another reader of a value between, or of the last.
    assert_eq!(
        ordered(|b| {
            let data: Vec<f32> = (0..24).map(|c| 1.0 + c as f32).collect();
            b.constant("slope", &[24], &data);
            b.node("Erf", &["u"], "e");
            b.node("Mul", &["e", "slope"], "v");
        }),
        0
    );
    assert_eq!(
        ordered(|b| {
            b.node("Softmax", &["u"], "v");
        }),
        0
    );
    assert_eq!(
        ordered(|b| {
            b.node("Erf", &["u"], "v");
            b.node("Neg", &["u"], "z");
            b.output("z", 24);
        }),
        0
    );
    assert_eq!(
        ordered(|b| {
            b.node("Erf", &["u"], "v");
            b.node("Neg", &["v"], "z");
            b.output("z", 24);
        }),
        0
    );
    // Whoever reads the shape sees no order.
    assert_eq!(
        ordered(|b| {
            b.node("Erf", &["u"], "v");
            b.node("Shape", &["v"], "size");
            b.graph.output.push(info("size", DataType::Int64, &[]));
        }),
        1
    );
}

/// Heads mixed in the columns of V: no node more.
fn in_heads(size: usize, build: impl FnOnce(&mut Builder)) {
    let (model, batch) = (graph(3, K, 1, build), batch(&[2, 3, K], 1));
    assert_eq!(freedom(&model, &batch).1, 1);
    let nodes = |model: &Model| {
        let added = ["Mul", "Add"];
        let nodes = model.graph().node.iter();
        nodes.filter(|n| !added.contains(&n.op_type())).count()
    };
    let before = nodes(&model);
    let after = prove_forms(&model, batch, 3, |site, channels, seed| {
        assert!(site.mixable.is_none_or(|found| found == size));
        Rotation::heads(channels, site.mixable?, seed)
    });
    assert_eq!(nodes(&after), before);
}

#[test]
fn heads_are_mixed_in_the_columns_of_v() {
    in_heads(8, |b| attention(b, "x", (2, 8), true));
    in_heads(4, |b| attention(b, "x", (4, 4), false));
    in_heads(8, |b| grouped_attention(b, 2, 2, 8));
}

#[test]
fn channels_of_several_tokens_are_not_mixed() {
    // Each half of the channels comes from another token: a scale passes, a mixture does not.
    let model = graph(3, K, 1, |b| {
        b.linear("x", "v", K, 16);
        b.node("Softmax", &["x"], "p");
        reshape(b, "v", "wide", &[2, 1, 48]);
        reshape(b, "wide", "back", &[2, 6, 8]);
        reshape(b, "back", "w", &[2, 3, 16]);
        b.linear("w", "y", 16, K);
        b.output("y", K);
    });
    assert_eq!(freedom(&model, &batch(&[2, 3, K], 1)).1, 0);
    // A factor per channel behind the product.
    let model = graph(3, K, 1, |b| {
        let data: Vec<f32> = (0..16).map(|c| 1.0 + c as f32 / 8.0).collect();
        b.constant("slope", &[16], &data);
        b.linear("x", "q", K, 3);
        b.linear("x", "v", K, 16);
        b.node("Softmax", &["q"], "p");
        b.node("MatMul", &["p", "v"], "o");
        b.node("Mul", &["o", "slope"], "w");
        b.linear("w", "y", 16, K);
        b.output("y", K);
    });
    assert_eq!(freedom(&model, &batch(&[2, 3, K], 1)).1, 0);
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

/// So is what is almost one of blocks.
#[test]
fn near_misses_of_blocks_are_linears() {
    let linears = |d: f32, joined: &[i64], between: bool| {
        let model = graph(3, K, 1, |b| {
            let eye = (0..16).map(|i| if i % 5 == 0 { d } else { 0.0 });
            b.constant("inner", &[4, 4], &eye.collect::<Vec<f32>>());
            reshape(b, "x", "split", &[0, 0, 4, 4]);
            b.node("MatMul", &["split", "inner"], "first");
            if between {
                b.node("Erf", &["first"], "second");
            } else {
                b.node("Identity", &["first"], "second");
            }
            reshape(b, if between { "second" } else { "first" }, "y", joined);
            b.output("y", K);
        });
        recognise(&View::new(&model)).linears.len()
    };
    assert_eq!(linears(1.1, &[0, 0, 16], false), 1);
    assert_eq!(linears(1.0, &[0, 0, 16], true), 1);
    assert_eq!(linears(1.0, &[0, -1, 8], true), 1);
}
