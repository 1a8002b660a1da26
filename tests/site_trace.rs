//! Sinks by commutation: what each rule reaches, and that the migrated graph computes the same from x' = (x − z) / s.

mod common;

use std::collections::BTreeMap;

use common::graphs::{Builder, Size, info};
use ndarray::ArrayD;
use onnx_osplus::calibrate::{Batch, InputTensor, TractEngine, Values, compare, outputs, shapes};
use onnx_osplus::graph::{self, Names, View};
use onnx_osplus::onnx::node::{
    float_attr, graph_attr, int_attr, ints_attr, make_node, tensor_attr,
};
use onnx_osplus::onnx::proto::{GraphProto, ValueInfoProto};
use onnx_osplus::onnx::{DataType, Model, TextOptions, tensor, text};
use onnx_osplus::progress::NoProgress;
use onnx_osplus::recognise::{Recognised, recognise};
use onnx_osplus::rewrite::{Affine, migrate};
use onnx_osplus::site::{Place, Sink, Site, find_sites, wanted_shapes};
use proptest::prelude::*;

/// Numbers in [-1, 1], uniform, from a seed (a linear congruential generator, upper bits).
fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// The channels of x in every graph here but those of random sizes.
const C: usize = 5;

/// A graph around the input x: [batch, tokens, c] or [tokens, c].
fn graph(rank: usize, c: usize, seed: u64, build: impl FnOnce(&mut Builder)) -> Model {
    let mut next = numbers(seed);
    let mut builder = Builder::new(Size { c, n: c, rank }, &mut next);
    builder.input("x");
    build(&mut builder);
    builder.model()
}

fn batch(shape: &[usize], seed: u64) -> Batch {
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
fn describe(view: &View, found: &Recognised, site: &Site) -> String {
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
struct Proof {
    migrated: Model,
    /// [`describe`] of every site.
    sites: Vec<String>,
}

impl Proof {
    /// The site that the Linear named `/{output}/MatMul` or the like reads.
    fn site(&self, linear: &str) -> &str {
        let of = |s: &&String| s.starts_with(&format!("/{linear}"));
        self.sites.iter().find(of).unwrap()
    }
}

/// A random affine for each site that has a sink, equal over tied channels.
fn affines(found: &Recognised, sites: &[Site], next: &mut dyn FnMut() -> f32) -> Vec<Affine> {
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
            },
            false => Affine::default(),
        }
    };
    sites.iter().map(affine).collect()
}

/// `model` with `values` as outputs besides its own.
fn showing(model: &Model, values: &[(String, Vec<usize>)]) -> Model {
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
fn prove(model: &Model, batch: Batch, extra_nodes: bool) -> Proof {
    let first = batch.clone();
    prove_beyond(model, &first, batch, extra_nodes)
}

/// [`prove`] with shapes of another batch than the one that is run.
fn prove_beyond(model: &Model, first: &Batch, batch: Batch, extra_nodes: bool) -> Proof {
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

fn x_rank(index: &ndarray::IxDyn) -> usize {
    ndarray::Dimension::ndim(index)
}

/// [`prove`] for a graph on x: [2, 3, C].
fn prove_graph(build: impl FnOnce(&mut Builder)) -> Proof {
    prove(&graph(3, C, 1, build), batch(&[2, 3, C], 1), true)
}

fn ints(b: &mut Builder, name: &str, data: &[i64]) {
    let tensor = tensor::from_i64(name, &[data.len()], data);
    b.graph.initializer.push(tensor);
}

fn reshape(b: &mut Builder, x: &str, y: &str, shape: &[i64]) {
    let target = format!("{y}.shape");
    ints(b, &target, shape);
    b.node("Reshape", &[x, &target], y);
}

fn transpose(b: &mut Builder, x: &str, y: &str, perm: &[i64]) {
    b.node_with("Transpose", &[x], y, vec![ints_attr("perm", perm)]);
}

fn softmax(b: &mut Builder, x: &str, y: &str) {
    b.node_with("Softmax", &[x], y, vec![int_attr("axis", -1)]);
}

/// A Linear with or without bias.
fn project(b: &mut Builder, x: &str, y: &str, (k, n): (usize, usize), bias: bool) {
    if bias {
        b.linear(x, y, k, n);
    } else {
        let weight = format!("{y}.weight");
        b.weight(&weight, &[k, n]);
        b.node("MatMul", &[x, &weight], y);
    }
}

/// [B, S, heads · d] to [B, heads, S, d].
fn split_heads(b: &mut Builder, x: &str, y: &str, heads: usize, d: usize) {
    let apart = format!("{y}.apart");
    reshape(b, x, &apart, &[0, 0, heads as i64, d as i64]);
    transpose(b, &apart, y, &[0, 2, 1, 3]);
}

/// From query, key and value [B, heads, S, d] to the output projection y: [B, S, C].
fn attend(b: &mut Builder, [q, k, v]: [&str; 3], (heads, d): (usize, usize), bias: bool) {
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

fn attention(b: &mut Builder, x: &str, (heads, d): (usize, usize), bias: bool) {
    for y in ["query", "key", "value"] {
        project(b, x, y, (b.size.c, heads * d), bias);
        split_heads(b, y, &format!("{y}_h"), heads, d);
    }
    attend(b, ["query_h", "key_h", "value_h"], (heads, d), bias);
}

/// Key and value have fewer heads: each is read by `repeat` heads of the query.
fn grouped_attention(b: &mut Builder, kv: usize, repeat: usize, d: usize) {
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
fn gated(b: &mut Builder, n: usize, up_first: bool) {
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

#[test]
fn the_value_of_an_attention_takes_shift_and_scale() {
    for bias in [true, false] {
        let proof = prove_graph(|b| attention(b, "x", (2, 2), bias));
        let suffix = if bias { ".product" } else { "" };
        assert_eq!(
            proof.site("y"),
            format!("/y{suffix}/MatMul <- /value{suffix}/MatMul z, s [0 1 2 3]")
        );
        assert_eq!(
            proof.site("query"),
            format!(
                "/query{suffix}/MatMul, /key{suffix}/MatMul, /value{suffix}/MatMul \
                 <- explicit: `x` is no computed value"
            )
        );
    }
}

#[test]
fn one_linear_absorbs_a_site_and_takes_another() {
    let proof = prove_graph(|b| {
        b.layer_norm("x", "norm");
        attention(b, "norm", (2, 2), true);
    });
    assert_eq!(
        proof.sites,
        [
            "/query.product/MatMul, /key.product/MatMul, /value.product/MatMul \
             <- norm /norm/LayerNormalization",
            "/y.product/MatMul <- /value.product/MatMul z, s [0 1 2 3]",
        ]
    );
}

#[test]
fn heads_that_share_a_value_tie_its_channels() {
    let proof = prove_graph(|b| grouped_attention(b, 2, 2, 2));
    assert_eq!(
        proof.site("y"),
        "/y/MatMul <- /value.product/MatMul z, s [0 1 4 5]; ties [0 1 0 1 4 5 4 5]"
    );
}

/// The weight and the bias of the Linear of that name.
fn constants(model: &Model, name: &str) -> (ndarray::Array2<f32>, ndarray::Array1<f32>) {
    let view = View::new(model);
    let linears = recognise(&view).linears;
    let linear = linears.iter().find(|l| l.name == name).unwrap();
    (
        linear.load_weight(&view).unwrap(),
        linear.load_bias(&view).unwrap(),
    )
}

#[test]
fn a_fused_query_key_value_changes_the_columns_of_the_value_alone() {
    let (heads, d) = (2, 2);
    let n = heads * d;
    let split = |b: &mut Builder, x: &str| {
        ints(b, "sizes", &[n as i64; 3]);
        let axis = vec![int_attr("axis", -1)];
        let outputs = ["query", "key", "value"];
        let node = make_node("Split", "split", &[x, "sizes"], &outputs, axis);
        b.graph.node.push(node);
    };
    let head_last = |b: &mut Builder| {
        for y in ["query", "key", "value"] {
            split_heads(b, y, &format!("{y}_h"), heads, d);
        }
        attend(b, ["query_h", "key_h", "value_h"], (heads, d), true);
    };
    let by_split = graph(3, C, 1, |b| {
        b.layer_norm("x", "norm");
        b.linear("norm", "qkv", C, 3 * n);
        split(b, "qkv");
        head_last(b);
    });
    let by_slice = graph(3, C, 1, |b| {
        b.layer_norm("x", "norm");
        b.linear("norm", "qkv", C, 3 * n);
        ints(b, "axes", &[-1]);
        let ends = [n as i64, 2 * n as i64, i64::MAX];
        for (i, (y, end)) in ["query", "key", "value"].into_iter().zip(ends).enumerate() {
            let [from, to] = ["from", "to"].map(|s| format!("{y}_{s}"));
            ints(b, &from, &[(i * n) as i64]);
            ints(b, &to, &[end]);
            b.node("Slice", &["qkv", &from, &to, "axes"], y);
        }
        head_last(b);
    });
    let gpt2 = graph(3, C, 1, |b| {
        b.layer_norm("x", "norm");
        reshape(b, "norm", "rows", &[-1, C as i64]);
        b.weight("weight", &[C, 3 * n]);
        b.weight("bias", &[3 * n]);
        b.node("Gemm", &["rows", "weight", "bias"], "qkv_rows");
        reshape(b, "qkv_rows", "qkv", &[2, -1, 3 * n as i64]);
        split(b, "qkv");
        head_last(b);
    });
    let bloom = graph(3, C, 1, |b| {
        b.layer_norm("x", "norm");
        b.linear("norm", "qkv", C, 3 * n);
        reshape(b, "qkv", "fused", &[0, 0, heads as i64, 3, d as i64]);
        for (i, y) in ["query", "key", "value"].into_iter().enumerate() {
            let [index, apart, y_h] = ["index", "apart", "h"].map(|s| format!("{y}_{s}"));
            b.graph
                .initializer
                .push(tensor::from_i64(&index, &[], &[i as i64]));
            b.node_with(
                "Gather",
                &["fused", &index],
                &apart,
                vec![int_attr("axis", 3)],
            );
            transpose(b, &apart, &y_h, &[0, 2, 1, 3]);
        }
        attend(b, ["query_h", "key_h", "value_h"], (heads, d), true);
    });
    let last = "- - - - - - - - 0 1 2 3";
    let per_head = "- - - - 0 1 - - - - 2 3";
    let product = "/qkv.product/MatMul";
    for (form, model, linear, columns) in [
        ("split", by_split, product, last),
        ("slice", by_slice, product, last),
        ("gpt2", gpt2, "/qkv_rows/Gemm", last),
        ("bloom", bloom, product, per_head),
    ] {
        let proof = prove(&model, batch(&[2, 3, C], 1), true);
        assert_eq!(
            proof.site("y"),
            format!("/y.product/MatMul <- {linear} z, s [{columns}]"),
            "{form}"
        );
        // The affine of the norm reaches all columns, so these are compared without it: x is what the norm leaves.
        let (w, bias) = constants(&model, linear);
        let alone = alone(&model, "y");
        let (w_alone, bias_alone) = constants(&alone, linear);
        for (column, label) in columns.split(' ').enumerate() {
            let same =
                w.column(column) == w_alone.column(column) && bias[column] == bias_alone[column];
            assert_eq!(same, label == "-", "{form}, column {column}");
        }
        assert_ne!(proof.migrated, alone);
    }
}

/// `model` with the site of one Linear migrated.
fn alone(model: &Model, linear: &str) -> Model {
    let view = View::new(model);
    let found = recognise(&view);
    let wanted = wanted_shapes(&view, &found);
    let shapes = shapes(&TractEngine, model, &batch(&[2, 3, C], 1), &wanted).unwrap();
    let sites = find_sites(&view, &found, &shapes, true);
    let prefix = format!("/{linear}");
    let affines = affines(&found, &sites, &mut numbers(77));
    let migrations: Vec<_> = sites
        .iter()
        .zip(affines)
        .filter(|(s, _)| found.linears[s.linears[0]].name.starts_with(&prefix))
        .collect();
    assert_eq!(migrations.len(), 1);
    let patches = migrate(&view, &found, &migrations, &mut Names::new(model)).unwrap();
    let mut migrated = model.clone();
    graph::apply(&mut migrated, patches).unwrap();
    migrated
}

#[test]
fn a_gated_product_is_scaled_through_the_linear_factor() {
    for up_first in [true, false] {
        let proof = prove_graph(|b| gated(b, 3, up_first));
        assert_eq!(proof.site("y"), "/y/MatMul <- /up.product/MatMul s [0 1 2]");
    }
}

/// x → Linear u: [.., 4] → what `between` puts between u and v → Linear y.
fn between(k: usize, between: impl FnOnce(&mut Builder)) -> String {
    let proof = prove_graph(|b| {
        b.linear("x", "u", C, 4);
        between(b);
        b.linear("v", "y", k, C);
        b.output("y", C);
    });
    let site = proof.site("y");
    site.strip_prefix("/y.product/MatMul <- ")
        .unwrap()
        .to_owned()
}

#[test]
fn relu_lets_a_scale_pass() {
    let sites = between(4, |b| {
        b.node("Relu", &["u"], "v");
    });
    assert_eq!(sites, "/u.product/MatMul s [0 1 2 3]");
}

#[test]
fn constants_that_are_added_take_the_shift_and_what_they_are_added_to_the_scale() {
    for (op, inputs) in [
        ("Add", ["u", "c"]),
        ("Add", ["c", "u"]),
        ("Sub", ["u", "c"]),
        ("Sub", ["c", "u"]),
    ] {
        for shape in [vec![4], vec![1, 1, 4], vec![3, 4]] {
            let sites = between(4, |b| {
                b.weight("c", &shape);
                b.node(op, &inputs, "v");
            });
            let rows = shape.iter().product::<usize>() / 4;
            let labels = ["0 1 2 3"].repeat(rows).join(" ");
            let expected = format!("c z, s [{labels}]; /u.product/MatMul s [0 1 2 3]");
            assert_eq!(sites, expected, "{op} {inputs:?} {shape:?}");
        }
    }
}

#[test]
fn factors() {
    for (op, inputs, shape, expected) in [
        ("Mul", ["u", "c"], vec![4], "c s [0 1 2 3]"),
        ("Mul", ["c", "u"], vec![1, 4], "c s [0 1 2 3]"),
        ("Mul", ["u", "c"], vec![], "/u.product/MatMul s [0 1 2 3]"),
        ("Mul", ["c", "u"], vec![1], "/u.product/MatMul s [0 1 2 3]"),
        ("Div", ["u", "c"], vec![], "/u.product/MatMul s [0 1 2 3]"),
        ("Div", ["u", "c"], vec![4], "/u.product/MatMul s [0 1 2 3]"),
    ] {
        let sites = between(4, |b| {
            let data: Vec<f32> = (0..shape.iter().product())
                .map(|i| 0.7 + i as f32)
                .collect();
            b.constant("c", &shape, &data);
            b.node(op, &inputs, "v");
        });
        assert_eq!(sites, expected, "{op} {inputs:?} {shape:?}");
    }
}

#[test]
fn channels_are_relabelled() {
    let plain = "/u.product/MatMul z, s [0 1 2 3]";
    let axes = |b: &mut Builder, axis: i64| ints(b, "axes", &[axis]);
    let unsqueezed = between(4, |b| {
        axes(b, 1);
        b.node("Unsqueeze", &["u", "axes"], "more");
        b.node("Squeeze", &["more", "axes"], "v");
    });
    assert_eq!(unsqueezed, plain);
    let passed = between(4, |b| {
        b.node("Identity", &["u"], "same");
        b.node("Dropout", &["same"], "dropped");
        b.node_with("Cast", &["dropped"], "v", vec![int_attr("to", 1)]);
    });
    assert_eq!(passed, plain);
    let concat = between(7, |b| {
        b.linear("x", "w", C, 3);
        b.node_with("Concat", &["w", "u"], "v", vec![int_attr("axis", -1)]);
    });
    assert_eq!(
        concat,
        "/w.product/MatMul z, s [0 1 2]; /u.product/MatMul z, s [3 4 5 6]"
    );
    let reversed = between(4, |b| {
        reshape(b, "u", "apart", &[0, 0, 2, 2]);
        transpose(b, "apart", "turned", &[0, 1, 3, 2]);
        reshape(b, "turned", "v", &[0, 0, 4]);
    });
    assert_eq!(reversed, "/u.product/MatMul z, s [0 2 1 3]");
    let normed = between(2, |b| {
        b.size.c = 4;
        b.layer_norm("u", "norm");
        b.size.c = C;
        ints(b, "from", &[2]);
        ints(b, "to", &[4]);
        axes(b, 2);
        b.node("Slice", &["norm", "from", "to", "axes"], "v");
    });
    assert_eq!(normed, "/norm/LayerNormalization z, s [- - 0 1]");
    let without_beta = between(2, |b| {
        b.weight("gamma", &[4]);
        b.fused_norm(&["u", "gamma"], "norm");
        ints(b, "from", &[-4]);
        ints(b, "to", &[-2]);
        axes(b, 2);
        b.node("Slice", &["norm", "from", "to", "axes"], "v");
    });
    assert_eq!(without_beta, "/norm/LayerNormalization s [0 1 - -]");
}

#[test]
fn flattened_tokens_tie_their_channels() {
    let proof = prove_graph(|b| {
        b.linear("x", "u", C, 2);
        b.node_with("Flatten", &["u"], "v", vec![int_attr("axis", 1)]);
        b.linear("v", "y", 6, C);
        b.size.rank = 2;
        b.output("y", C);
        b.size.rank = 3;
    });
    assert_eq!(
        proof.site("y"),
        "/y.product/MatMul <- /u.product/MatMul z, s [0 1]; ties [0 1 0 1 0 1]"
    );
}

/// GELU by Erf between two Linears; the activation is read by a residual as well if `shared`.
fn gelu(b: &mut Builder, shared: bool) {
    let c = b.size.c;
    b.linear("x", "up", c, c);
    b.constant("root", &[], &[std::f32::consts::SQRT_2]);
    b.constant("one", &[], &[1.0]);
    b.constant("half", &[], &[0.5]);
    b.node("Div", &["up", "root"], "divided");
    b.node("Erf", &["divided"], "erf");
    b.node("Add", &["erf", "one"], "more");
    b.node("Mul", &["up", "more"], "product");
    b.node("Mul", &["product", "half"], "act");
    b.linear("act", "down", c, c);
    let last = if shared { "act" } else { "x" };
    b.node("Add", &["down", last], "y");
    b.output("y", c);
}

#[test]
fn behind_gelu_one_mul_on_the_way_to_the_linear() {
    let reason = "it is computed by Erf `/erf/Erf`; `up` is also read by Div `/divided/Div`";
    for (shared, reason) in [
        (false, reason),
        (true, "`act` is also read by Add `/y/Add`"),
    ] {
        let model = graph(3, C, 1, |b| gelu(b, shared));
        let proof = prove(&model, batch(&[2, 3, C], 1), true);
        let expected = format!("/down.product/MatMul <- explicit: {reason}");
        assert_eq!(proof.site("down"), expected);
        let view = View::new(&proof.migrated);
        let down = view
            .nodes()
            .find(|(n, _)| view.node_name(*n) == "/down.product/MatMul");
        let input = view.input(down.unwrap().0, 0).unwrap();
        let mul = view.producer_is(input, "Mul").unwrap();
        assert_eq!(view.name(view.input(mul, 0).unwrap()), "act");
        assert_eq!(view.uses(input).len(), 1);
        let without = prove(&model, batch(&[2, 3, C], 1), false);
        let expected = format!("/down.product/MatMul <- none: {reason}");
        assert_eq!(without.site("down"), expected);
        assert_eq!(without.migrated, model);
    }
}

/// One head over x: the value `v` through the context `p v` to the Linear y.
fn one_head(b: &mut Builder, p: impl FnOnce(&mut Builder)) {
    for y in ["q", "k", "v"] {
        b.linear("x", y, C, 4);
    }
    transpose(b, "k", "k_t", &[0, 2, 1]);
    b.node("MatMul", &["q", "k_t"], "scores");
    p(b);
    b.node("MatMul", &["p", "v"], "context");
    b.linear("context", "y", 4, C);
    b.output("y", C);
}

/// The sink of the Linear y.
fn sink(proof: &Proof) -> &str {
    let site = proof.site("y.product");
    site.strip_prefix("/y.product/MatMul <- ").unwrap()
}

#[test]
fn rows_that_need_not_sum_to_one_let_the_scale_pass_alone() {
    let left = |p: fn(&mut Builder)| {
        let proof = prove_graph(|b| one_head(b, p));
        sink(&proof).to_owned()
    };
    let shifted = "/v.product/MatMul z, s [0 1 2 3]";
    let scaled = "/v.product/MatMul s [0 1 2 3]";
    assert_eq!(left(|b| softmax(b, "scores", "p")), shifted);
    let axis = |b: &mut Builder, axis: i64| {
        b.node_with("Softmax", &["scores"], "p", vec![int_attr("axis", axis)]);
    };
    let default_axis = left(|b| {
        b.node("Softmax", &["scores"], "p");
    });
    assert_eq!(default_axis, shifted);
    let dropped = left(|b| {
        softmax(b, "scores", "all");
        b.node("Dropout", &["all"], "p");
    });
    assert_eq!(dropped, shifted);
    for (number, expected) in [(2, shifted), (1, scaled), (-2, scaled)] {
        let proof = prove_graph(|b| one_head(b, |b| axis(b, number)));
        assert_eq!(sink(&proof), expected, "axis {number}");
    }
    let sigmoid = left(|b| {
        b.node("Sigmoid", &["scores"], "p");
    });
    assert_eq!(sigmoid, scaled);
    let masked = left(|b| {
        softmax(b, "scores", "all");
        b.constant("half", &[], &[0.5]);
        b.node("Mul", &["all", "half"], "p");
    });
    assert_eq!(masked, scaled);
}

#[test]
fn a_value_with_other_readers_is_a_wall() {
    let wall = |more: fn(&mut Builder)| {
        let proof = prove_graph(|b| {
            one_head(b, |b| softmax(b, "scores", "p"));
            more(b);
        });
        sink(&proof).to_owned()
    };
    let present = wall(|b| b.output("v", 4));
    assert_eq!(
        present,
        "explicit: `v` is also read by the caller (it is a graph output)"
    );
    let read = wall(|b| {
        b.node("Neg", &["v"], "negated");
        b.output("negated", 4);
    });
    assert_eq!(read, "explicit: `v` is also read by Neg `/negated/Neg`");
    let residual = wall(|b| {
        b.node("Add", &["context", "v"], "sum");
        b.output("sum", 4);
    });
    assert_eq!(
        residual,
        "explicit: `context` is also read by Add `/sum/Add`"
    );
    let captured = wall(|b| {
        let branch = |name: &str, op: &str| {
            let output = format!("{name}_out");
            let free = [Err("batch"), Err("tokens"), Ok(4)];
            GraphProto {
                name: Some(name.to_owned()),
                node: vec![make_node(op, "", &["v"], &[&output], vec![])],
                output: vec![ValueInfoProto {
                    name: Some(output),
                    ..info("", DataType::Float, &free)
                }],
                ..GraphProto::default()
            }
        };
        let branches = vec![
            graph_attr("then_branch", branch("then", "Relu")),
            graph_attr("else_branch", branch("else", "Neg")),
        ];
        let mut condition = tensor::from_u8("condition", &[], &[1]);
        condition.data_type = Some(DataType::Bool as i32);
        let value = vec![tensor_attr("value", condition)];
        b.node_with("Constant", &[], "condition", value);
        b.node_with("If", &["condition"], "chosen", branches);
        b.output("chosen", 4);
    });
    assert_eq!(
        captured,
        "explicit: `v` is also read by a subgraph of `/chosen/If`"
    );
    // Its shape can be read: that stays.
    let shape = wall(|b| {
        b.node("Shape", &["v"], "v_shape");
        b.node("ConstantOfShape", &["v_shape"], "zeros");
        b.node("Add", &["zeros", "x"], "unused");
    });
    assert_eq!(shape, "/v.product/MatMul z, s [0 1 2 3]");
}

#[test]
fn walls() {
    for (op, inputs, expected) in [
        (
            "Add",
            vec!["u", "w"],
            "explicit: Add `/v/Add` adds two computed values",
        ),
        (
            "Mul",
            vec!["u", "u"],
            "explicit: `u` is also read by Mul `/v/Mul`",
        ),
        (
            "MatMul",
            vec!["x4", "fixed"],
            "explicit: `fixed` is a constant",
        ),
        (
            "Tanh",
            vec!["u"],
            "explicit: it is computed by Tanh `/v/Tanh`",
        ),
        (
            "Mul",
            vec!["u", "rows"],
            "explicit: all its channels share one constant",
        ),
        (
            "Add",
            vec!["u", "number"],
            "explicit: all its channels share one constant",
        ),
    ] {
        let proof = prove_graph(|b| {
            b.linear("x", "u", C, 4);
            b.linear("x", "w", C, 4);
            b.linear("x", "x4", C, 3);
            b.weight("fixed", &[1, 3, 4]);
            b.weight("rows", &[3, 1]);
            b.weight("number", &[1]);
            b.node(op, &inputs, "v");
            b.linear("v", "y", 4, C);
            b.output("y", C);
        });
        assert_eq!(sink(&proof), expected, "{op} {inputs:?}");
    }
}

#[test]
fn a_split_by_sizes_that_are_not_constant_is_a_wall() {
    let sizes = |b: &mut Builder, computed: bool| {
        b.linear("x", "u", C, 5);
        ints(b, "one", &[1]);
        ints(b, "four", &[4]);
        ints(b, "sizes", &[1, 4]);
        let name = if computed { "computed" } else { "sizes" };
        b.node_with(
            "Concat",
            &["one", "four"],
            "computed",
            vec![int_attr("axis", 0)],
        );
        let axis = vec![int_attr("axis", 2)];
        let node = make_node("Split", "split", &["u", name], &["rest", "v"], axis);
        b.graph.node.push(node);
        b.linear("v", "y", 4, C);
        b.output("y", C);
    };
    let constant = prove_graph(|b| sizes(b, false));
    assert_eq!(sink(&constant), "/u.product/MatMul z, s [- 0 1 2 3]");
    let computed = prove_graph(|b| sizes(b, true));
    assert_eq!(
        sink(&computed),
        "explicit: the sizes of Split `split` are not constant"
    );
}

#[test]
fn two_sites_share_constants() {
    let proof = prove_graph(|b| {
        b.linear("x", "u", C, 5);
        b.weight("c", &[5]);
        b.node("Sub", &["c", "u"], "added");
        ints(b, "sizes", &[2, 3]);
        let axis = vec![int_attr("axis", -1)];
        let node = make_node("Split", "split", &["added", "sizes"], &["v", "w"], axis);
        b.graph.node.push(node);
        b.linear("v", "y", 2, C);
        b.linear("w", "z", 3, C);
        b.node("Add", &["y", "z"], "sum");
        b.output("sum", C);
    });
    assert_eq!(
        proof.sites[1..],
        [
            "/y.product/MatMul <- c z, s [0 1 - - -]; /u.product/MatMul s [0 1 - - -]",
            "/z.product/MatMul <- c z, s [- - 0 1 2]; /u.product/MatMul s [- - 0 1 2]",
        ]
    );
}

#[test]
fn constants_that_others_read_are_copied() {
    let proof = prove_graph(|b| {
        b.weight("weight", &[C, C]);
        b.weight("bias", &[C]);
        b.weight("c", &[C]);
        let mut from = "x".to_owned();
        for layer in 0..2 {
            let [product, u, v, y] = ["product", "u", "v", "y"].map(|s| format!("{s}{layer}"));
            b.node("MatMul", &[&from, "weight"], &product);
            b.node("Add", &[&product, "bias"], &u);
            b.node("Add", &[&u, "c"], &v);
            b.node("MatMul", &[&v, "weight"], &y);
            from = y;
        }
        b.output("y1", C);
    });
    let traced = |layer: usize| {
        format!("/y{layer}/MatMul <- c z, s [0 1 2 3 4]; /product{layer}/MatMul s [0 1 2 3 4]")
    };
    assert_eq!(proof.site("y0"), traced(0));
    assert_eq!(proof.site("y1"), traced(1));
    assert_eq!(
        proof.site("product1"),
        "/product1/MatMul <- /y0/MatMul z, s [0 1 2 3 4]"
    );
}

#[test]
fn gemms_take_the_affine_of_their_output() {
    let through = |bias: &[usize], rank_2: &str| {
        let model = graph(2, C, 1, |b| {
            b.weight("weight", &[4, C]);
            b.weight("bias", bias);
            b.linear("x", "computed", C, 4);
            let attributes = vec![
                float_attr("alpha", 0.5),
                float_attr("beta", 2.0),
                int_attr("transB", 1),
            ];
            b.node_with("Gemm", &["x", "weight", rank_2], "u", attributes);
            b.linear("u", "y", 4, C);
            b.output("y", C);
        });
        sink(&prove(&model, batch(&[3, C], 1), true)).to_owned()
    };
    for bias in [vec![4], vec![1, 4], vec![], vec![1]] {
        assert_eq!(through(&bias, "bias"), "/u/Gemm z, s [0 1 2 3]", "{bias:?}");
    }
    assert_eq!(through(&[4], ""), "/u/Gemm z, s [0 1 2 3]");
    assert_eq!(
        through(&[4], "computed"),
        "explicit: the bias of `/u/Gemm` is no constant per column"
    );
}

#[test]
fn a_split_without_sizes_has_equal_parts_but_for_the_last() {
    for (opset, n, outputs, expected) in [
        (17, 6, ["a", "v", "b"].as_slice(), "- - 0 1 - -"),
        (18, 6, &["a", "v", "b"], "- - 0 1 - -"),
        (18, 5, &["a", "v"], "- - - 0 1"),
    ] {
        let build = |b: &mut Builder| {
            b.linear("x", "u", C, n);
            let mut attributes = vec![int_attr("axis", -1)];
            if opset == 18 {
                attributes.push(int_attr("num_outputs", outputs.len() as i64));
            }
            let node = make_node("Split", "split", &["u"], outputs, attributes);
            b.graph.node.push(node);
            b.linear("v", "y", 2, C);
            b.output("y", C);
        };
        let Model { mut proto } = graph(3, C, 1, build);
        proto.opset_import[0].version = Some(opset);
        let proof = prove(&Model { proto }, batch(&[2, 3, C], 1), true);
        let expected = format!("/u.product/MatMul z, s [{expected}]");
        assert_eq!(sink(&proof), expected, "{opset}");
    }
}

#[test]
fn linears_that_read_one_value_share_one_explicit_mul() {
    let proof = prove_graph(|b| {
        b.layer_norm("x", "norm");
        b.output("norm", C);
        b.linear("norm", "q", C, 3);
        b.linear("norm", "k", C, 3);
        b.node("Mul", &["q", "k"], "y");
        b.output("y", 3);
    });
    assert_eq!(
        proof.sites,
        ["/q.product/MatMul, /k.product/MatMul <- explicit: \
          `norm` is a graph output, which must stay as it is"]
    );
    let view = View::new(&proof.migrated);
    let muls: Vec<_> = view.nodes().filter(|(n, _)| view.op(*n) == "Mul").collect();
    assert_eq!(muls.len(), 2);
    assert_eq!(view.uses(view.output(muls[0].0, 0).unwrap()).len(), 2);
}

/// Channels of which the others are cut off later: a number for all of them has no place for the affine of some.
#[test]
fn a_constant_that_spans_more_than_the_channels_is_a_wall() {
    for (op, expected) in [
        (
            "Add",
            "explicit: a constant that is added spans more than the channels",
        ),
        ("Mul", "/u.product/MatMul s [0 1 - -]"),
    ] {
        let sites = between(2, |b| {
            b.constant("number", &[1], &[0.5]);
            b.node(op, &["u", "number"], "w");
            ints(b, "from", &[0]);
            ints(b, "to", &[2]);
            ints(b, "axes", &[2]);
            b.node("Slice", &["w", "from", "to", "axes"], "v");
        });
        assert_eq!(sites, expected);
    }
}

/// Tokens that become channels: what looks like a head split is none without a Transpose.
#[test]
fn channels_that_tokens_are_mixed_with_are_tied() {
    let reinterpreted = |tokens: usize| {
        let model = graph(3, C, 1, |b| {
            b.linear("x", "u", C, 4);
            reshape(b, "u", "apart", &[0, 2, -1, 2]);
            transpose(b, "apart", "turned", &[0, 2, 1, 3]);
            reshape(b, "turned", "v", &[0, -1, 4]);
            b.linear("v", "y", 4, C);
            b.output("y", C);
        });
        sink(&prove(&model, batch(&[2, tokens, C], 1), true)).to_owned()
    };
    assert_eq!(
        reinterpreted(3),
        "/u.product/MatMul z, s [0 1 0 1]; ties [0 1 0 1]"
    );
    // Two tokens put each head's channels on two columns of one token.
    assert_eq!(
        reinterpreted(2),
        "/u.product/MatMul z, s [0 1 0 1]; ties [0 1 0 1]"
    );
}

/// The text before and after, with every element; constants are round, so that it can be checked by eye.
fn story(build: impl FnOnce(&mut Builder)) -> String {
    let mut state = 0;
    let mut next = || {
        state = (state + 5) % 13;
        (state as f32 - 6.0) / 4.0
    };
    let mut builder = Builder::new(
        Size {
            c: 4,
            n: 4,
            rank: 3,
        },
        &mut next,
    );
    builder.input("x");
    build(&mut builder);
    let model = builder.model();
    let view = View::new(&model);
    let found = recognise(&view);
    let wanted = wanted_shapes(&view, &found);
    let shapes = shapes(&TractEngine, &model, &batch(&[2, 3, 4], 1), &wanted).unwrap();
    let sites = find_sites(&view, &found, &shapes, true);
    let affine = |site: &Site| Affine {
        shift: site.allow_shift.then(|| vec![1.0, 0.0, -2.0, 0.5]),
        scale: Some(vec![2.0, 1.0, 0.5, 4.0]),
    };
    // The graph input is left as it is.
    let migrations: Vec<_> = sites
        .iter()
        .filter(|s| view.name(s.value) != "x")
        .map(|s| (s, affine(s)))
        .collect();
    let patches = migrate(&view, &found, &migrations, &mut Names::new(&model)).unwrap();
    let mut migrated = model.clone();
    graph::apply(&mut migrated, patches).unwrap();
    let sites: Vec<_> = sites.iter().map(|s| describe(&view, &found, s)).collect();
    format!(
        "# before\n{}\n# sites\n{}\n\n# migrated\n{}",
        text(&model, TextOptions::FULL),
        sites.join("\n"),
        text(&migrated, TextOptions::FULL)
    )
}

#[test]
fn snapshots() {
    let attention = story(|b| attention(b, "x", (2, 2), true));
    insta::assert_snapshot!("attention", attention);
    insta::assert_snapshot!("gelu", story(|b| gelu(b, false)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_size_of_block(
        (kv, repeat, d) in (1..4_usize, 1..4_usize, 1..5_usize),
        (rows, tokens, c) in (1..4_usize, 1..5_usize, 2..9_usize),
        (seed, bias) in any::<(u64, bool)>(),
    ) {
        let prove = |build: &dyn Fn(&mut Builder)| {
            let model = graph(3, c, seed, build);
            // The sites are found by one row of one token, and hold for any number.
            let first = batch(&[1, 1, c], seed);
            prove_beyond(&model, &first, batch(&[rows, tokens, c], seed), true)
        };
        let n = kv * repeat * d;
        let heads = prove(&|b| {
            b.layer_norm("x", "norm");
            attention(b, "norm", (kv * repeat, d), bias);
        });
        let value = if bias { "/value.product" } else { "/value" };
        let expected = format!("<- {value}/MatMul z, s");
        prop_assert!(heads.site("y").contains(&expected), "{:?}", heads.sites);
        let grouped = prove(&|b| grouped_attention(b, kv, repeat, d));
        let free = grouped.site("y").contains("<- /value.product/MatMul z, s");
        prop_assert_eq!(free, kv * d > 1 || repeat == 1, "{:?}", grouped.sites);
        let gated = prove(&|b| gated(b, n, seed % 2 == 0));
        prop_assert!(gated.site("y").contains("<- /up.product/MatMul s"), "{:?}", gated.sites);
    }
}
