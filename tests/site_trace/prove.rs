//! Proofs by running: a migrated model against the original, at every traced site; and the blocks they are made of.

pub use std::collections::BTreeMap;

pub use crate::common::graphs::{Builder, Size, info};
pub use ndarray::ArrayD;
pub use onnx_osplus::calibrate::{
    Batch, InputTensor, TractEngine, Values, compare, outputs, shapes,
};
pub use onnx_osplus::graph::{self, Names, View};
pub use onnx_osplus::onnx::node::{float_attr, int_attr, ints_attr, make_node};
pub use onnx_osplus::onnx::{DataType, Model, TextOptions, tensor, text};
pub use onnx_osplus::progress::NoProgress;
pub use onnx_osplus::recognise::{Recognised, recognise};
pub use onnx_osplus::rewrite::{Affine, migrate};
pub use onnx_osplus::site::{Place, Sink, Site, find_sites, wanted_shapes};
pub use proptest::prelude::*;

/// Numbers in [-1, 1], uniform, from a seed (a linear congruential generator, upper bits).
pub fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// The channels of x in every graph here but those of random sizes.
pub const C: usize = 5;

/// A graph around the input x: [batch, tokens, c] or [tokens, c].
pub fn graph(rank: usize, c: usize, seed: u64, build: impl FnOnce(&mut Builder)) -> Model {
    let mut next = numbers(seed);
    let mut builder = Builder::new(Size { c, n: c, rank }, &mut next);
    builder.input("x");
    build(&mut builder);
    builder.model()
}

pub fn batch(shape: &[usize], seed: u64) -> Batch {
    let mut next = numbers(seed ^ 0x5eed);
    let data = (0..shape.iter().product()).map(|_| 2.0 * next()).collect();
    let array = ArrayD::from_shape_vec(shape, data).unwrap();
    let input = InputTensor::from_values(Values::F32(array));
    Batch::new(
        BTreeMap::from([("x".to_owned(), input)]),
        (0..shape[0] as u64).collect(),
    )
}

/// What the sites of a model are, in words: for each its Linears, its sink, and what takes which channels.
pub fn describe(view: &View, found: &Recognised, site: &Site) -> String {
    let numbers = |channels: &[Option<u32>]| {
        let one = |c: &Option<u32>| c.map_or("-".to_owned(), |c| c.to_string());
        channels.iter().map(one).collect::<Vec<_>>().join(" ")
    };
    let what = match &site.sink {
        Sink::Norm(norm) => format!("norm {}", found.norms[*norm].name),
        Sink::Explicit(reason) => format!("explicit: {reason}"),
        Sink::None(reason) => format!("none: {reason}"),
        Sink::Traced(trace) => {
            let fold = |fold: &onnx_osplus::site::Fold| {
                let place = match fold.place {
                    Place::Linear(l) => found.linears[l].name.clone(),
                    Place::Norm(n) => found.norms[n].name.clone(),
                    Place::Constant { value, .. } => view.name(value).to_owned(),
                };
                let shift = if fold.takes_shift { " z," } else { "" };
                format!("{place}{shift} s [{}]", numbers(&fold.channels))
            };
            let mut parts: Vec<_> = trace.folds.iter().map(fold).collect();
            if let Some(ties) = &trace.ties {
                let ties: Vec<_> = ties.iter().map(|&t| Some(t)).collect();
                parts.push(format!("ties [{}]", numbers(&ties)));
            }
            parts.join("; ")
        }
    };
    let linears = site.linears.iter().map(|&l| found.linears[l].name.as_str());
    format!("{} <- {what}", linears.collect::<Vec<_>>().join(", "))
}

/// A model with all its sites migrated by random affines.
pub struct Proof {
    pub migrated: Model,
    /// [`describe`] of every site.
    pub sites: Vec<String>,
}

impl Proof {
    /// The site that the Linear named `/{output}/MatMul` or the like reads.
    pub fn site(&self, linear: &str) -> &str {
        let of = |s: &&String| s.starts_with(&format!("/{linear}"));
        self.sites.iter().find(of).unwrap()
    }
}

/// A random affine for each site that has a sink, equal over tied channels.
pub fn affines(found: &Recognised, sites: &[Site], next: &mut dyn FnMut() -> f32) -> Vec<Affine> {
    let affine = |site: &Site| {
        let k = found.linears[site.linears[0]].k;
        let mut z: Vec<f32> = (0..k).map(|_| 3.0 * next()).collect();
        let mut s: Vec<f32> = (0..k).map(|_| 4_f32.powf(next())).collect();
        if let Sink::Traced(trace) = &site.sink
            && let Some(ties) = &trace.ties
        {
            for (c, &tie) in ties.iter().enumerate() {
                (z[c], s[c]) = (z[tie as usize], s[tie as usize]);
            }
        }
        match site.has_sink() {
            true => Affine {
                shift: site.allow_shift.then_some(z),
                scale: Some(s),
                ..Affine::default()
            },
            false => Affine::default(),
        }
    };
    sites.iter().map(affine).collect()
}

/// `model` with `values` as outputs besides its own.
pub fn showing(model: &Model, values: &[(String, Vec<usize>)]) -> Model {
    let mut model = model.clone();
    let graph = model.graph_mut();
    for (name, shape) in values {
        if graph.output.iter().all(|o| o.name.as_deref() != Some(name)) {
            let dims: Vec<_> = shape.iter().map(|&n| Ok(n as i64)).collect();
            graph.output.push(info(name, DataType::Float, &dims));
        }
    }
    model
}

/// Migrates all sites by random affines, and checks by running both models that the outputs are the same and that
/// each site whose constants take the affine computes x' = (x − z) / s.
pub fn prove(model: &Model, batch: Batch, extra_nodes: bool) -> Proof {
    let first = batch.clone();
    prove_beyond(model, &first, batch, extra_nodes)
}

/// [`prove`] with shapes of another batch than the one that is run.
pub fn prove_beyond(model: &Model, first: &Batch, batch: Batch, extra_nodes: bool) -> Proof {
    graph::check(model).unwrap();
    let view = View::new(model);
    let found = recognise(&view);
    let batches = [batch];
    let wanted = wanted_shapes(&view, &found);
    let of = |batch: &Batch| shapes(&TractEngine, model, batch, &wanted).unwrap();
    let sites = find_sites(&view, &found, &of(first), extra_nodes);
    let shapes = of(&batches[0]);
    let affines = affines(&found, &sites, &mut numbers(77));
    let migrations: Vec<_> = sites.iter().zip(affines.iter().cloned()).collect();
    let patches = migrate(&view, &found, &migrations, &mut Names::new(model)).unwrap();
    let mut migrated = model.clone();
    graph::apply(&mut migrated, patches).unwrap();
    graph::check(&migrated).unwrap();

    let compared = compare(&TractEngine, model, &[&migrated], &batches, 1, &NoProgress).unwrap();
    assert!(!compared[0].is_empty());
    for output in &compared[0] {
        // Relative to the range, unless few elements happen to be much closer than what they are computed from.
        let range = (output.range.1 - output.range.0).max(1.0);
        assert!(output.max_abs_error <= 1e-5 * range, "{output:?}");
    }

    let traced: Vec<_> = sites
        .iter()
        .zip(&affines)
        .filter(|(site, _)| matches!(site.sink, Sink::Traced(_)))
        .collect();
    let values: Vec<_> = traced
        .iter()
        .map(|(site, _)| view.name(site.value).to_owned())
        .map(|name| (name.clone(), shapes[&name].clone()))
        .collect();
    let run = |model: &Model| {
        outputs(
            &TractEngine,
            &showing(model, &values),
            &batches,
            1,
            &NoProgress,
        )
        .unwrap()
    };
    let (before, after) = (run(model), run(&migrated));
    for ((_, affine), (name, _)) in traced.iter().zip(&values) {
        let (x, y) = (&before.batches[0][name], &after.batches[0][name]);
        let largest = y.iter().fold(1.0_f32, |m, y| m.max(y.abs()));
        for ((index, x), y) in x.indexed_iter().zip(y) {
            let c = index[x_rank(&index) - 1];
            let z = affine.shift.as_ref().map_or(0.0, |z| z[c]);
            let expected = (x - z) / affine.scale.as_ref().unwrap()[c];
            assert!(
                (expected - y).abs() <= 1e-5 * largest,
                "{name} {index:?}: {y}, not {expected}"
            );
        }
    }
    let sites = sites.iter().map(|s| describe(&view, &found, s)).collect();
    Proof { migrated, sites }
}

pub fn x_rank(index: &ndarray::IxDyn) -> usize {
    ndarray::Dimension::ndim(index)
}

/// [`prove`] for a graph on x: [2, 3, C].
pub fn prove_graph(build: impl FnOnce(&mut Builder)) -> Proof {
    prove(&graph(3, C, 1, build), batch(&[2, 3, C], 1), true)
}

pub fn ints(b: &mut Builder, name: &str, data: &[i64]) {
    let tensor = tensor::from_i64(name, &[data.len()], data);
    b.graph.initializer.push(tensor);
}

pub fn reshape(b: &mut Builder, x: &str, y: &str, shape: &[i64]) {
    let target = format!("{y}.shape");
    ints(b, &target, shape);
    b.node("Reshape", &[x, &target], y);
}

pub fn transpose(b: &mut Builder, x: &str, y: &str, perm: &[i64]) {
    b.node_with("Transpose", &[x], y, vec![ints_attr("perm", perm)]);
}

pub fn softmax(b: &mut Builder, x: &str, y: &str) {
    b.node_with("Softmax", &[x], y, vec![int_attr("axis", -1)]);
}

/// A Linear with or without bias.
pub fn project(b: &mut Builder, x: &str, y: &str, (k, n): (usize, usize), bias: bool) {
    if bias {
        b.linear(x, y, k, n);
    } else {
        let weight = format!("{y}.weight");
        b.weight(&weight, &[k, n]);
        b.node("MatMul", &[x, &weight], y);
    }
}

/// [B, S, heads · d] to [B, heads, S, d].
pub fn split_heads(b: &mut Builder, x: &str, y: &str, heads: usize, d: usize) {
    let apart = format!("{y}.apart");
    reshape(b, x, &apart, &[0, 0, heads as i64, d as i64]);
    transpose(b, &apart, y, &[0, 2, 1, 3]);
}

/// From query, key and value [B, heads, S, d] to the output projection y: [B, S, C].
pub fn attend(b: &mut Builder, [q, k, v]: [&str; 3], (heads, d): (usize, usize), bias: bool) {
    transpose(b, k, "key_t", &[0, 1, 3, 2]);
    b.node("MatMul", &[q, "key_t"], "scores");
    softmax(b, "scores", "p");
    b.node("MatMul", &["p", v], "context");
    transpose(b, "context", "context_t", &[0, 2, 1, 3]);
    reshape(b, "context_t", "merged", &[0, 0, (heads * d) as i64]);
    let c = b.size.c;
    project(b, "merged", "y", (heads * d, c), bias);
    b.output("y", c);
}

pub fn attention(b: &mut Builder, x: &str, (heads, d): (usize, usize), bias: bool) {
    for y in ["query", "key", "value"] {
        project(b, x, y, (b.size.c, heads * d), bias);
        split_heads(b, y, &format!("{y}_h"), heads, d);
    }
    attend(b, ["query_h", "key_h", "value_h"], (heads, d), bias);
}

/// Key and value have fewer heads: each is read by `repeat` heads of the query.
pub fn grouped_attention(b: &mut Builder, kv: usize, repeat: usize, d: usize) {
    let (c, heads) = (b.size.c, kv * repeat);
    project(b, "x", "query", (c, heads * d), true);
    split_heads(b, "query", "query_h", heads, d);
    for y in ["key", "value"] {
        project(b, "x", y, (c, kv * d), true);
        split_heads(b, y, &format!("{y}_kv"), kv, d);
        let [one, more, axes, target] =
            ["one", "more", "axes", "target"].map(|s| format!("{y}_{s}"));
        ints(b, &axes, &[2]);
        ints(b, &target, &[1, 1, repeat as i64, 1, 1]);
        b.node("Unsqueeze", &[&format!("{y}_kv"), &axes], &one);
        b.node("Expand", &[&one, &target], &more);
        let shape = [0, heads as i64, -1, d as i64];
        reshape(b, &more, &format!("{y}_h"), &shape);
    }
    attend(b, ["query_h", "key_h", "value_h"], (heads, d), false);
}

/// SwiGLU: (g · sigmoid(g)) · up.
pub fn gated(b: &mut Builder, n: usize, up_first: bool) {
    let c = b.size.c;
    project(b, "x", "gate", (c, n), true);
    project(b, "x", "up", (c, n), true);
    b.node("Sigmoid", &["gate"], "sigmoid");
    b.node("Mul", &["gate", "sigmoid"], "silu");
    let factors = match up_first {
        true => ["up", "silu"],
        false => ["silu", "up"],
    };
    b.node("Mul", &factors, "product");
    project(b, "product", "y", (n, c), false);
    b.output("y", c);
}
