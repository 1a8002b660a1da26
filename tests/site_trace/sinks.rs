//! Every rule of the table in `site/trace.rs`, proved by running both models.

use super::prove::*;

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

/// Opset-23 Attention over x, with heads as an axis or as parts of the last one.
fn operator(q: usize, kv: usize, by_axis: bool, change: impl Fn(&mut Builder)) -> Model {
    let mut model = graph(3, C, 1, |b| {
        for (y, heads) in [("query", q), ("key", kv), ("value", kv)] {
            project(b, "x", y, (C, heads * 2), true);
            if by_axis {
                split_heads(b, y, &format!("{y}_h"), heads, 2);
            }
        }
        if by_axis {
            b.node("Attention", &["query_h", "key_h", "value_h"], "context");
            transpose(b, "context", "context_t", &[0, 2, 1, 3]);
            reshape(b, "context_t", "merged", &[0, 0, (q * 2) as i64]);
        } else {
            let heads = [("q_num_heads", q), ("kv_num_heads", kv)];
            let heads = heads.map(|(name, n)| int_attr(name, n as i64)).to_vec();
            b.node_with("Attention", &["query", "key", "value"], "merged", heads);
        }
        project(b, "merged", "y", (q * 2, C), true);
        b.output("y", C);
        change(b);
    });
    model.proto.opset_import[0].version = Some(23);
    model
}

#[test]
fn the_attention_operator_hands_the_affine_to_its_values() {
    let batch = || batch(&[2, 3, C], 1);
    for by_axis in [true, false] {
        let proof = prove(&operator(2, 2, by_axis, |_| {}), batch(), true);
        let sink = "/y.product/MatMul <- /value.product/MatMul z, s [0 1 2 3]";
        assert_eq!(proof.site("y"), sink);
        let shared = prove(&operator(4, 2, by_axis, |_| {}), batch(), true);
        let sink =
            "/y.product/MatMul <- /value.product/MatMul z, s [0 1 4 5]; ties [0 1 0 1 4 5 4 5]";
        assert_eq!(shared.site("y"), sink);
    }
    let kept = operator(2, 2, false, |b| {
        let attention = b.graph.node.iter_mut().find(|n| n.op_type() == "Attention");
        attention
            .unwrap()
            .output
            .extend(["".into(), "values".into()]);
        b.graph.output.push(info("values", DataType::Float, &[]));
        b.graph.output.last_mut().unwrap().r#type = None;
    });
    let proof = prove(&kept, batch(), true);
    let wall = "explicit: the values of Attention `/merged/Attention` are kept for later";
    assert!(proof.site("y").ends_with(wall), "{}", proof.site("y"));
}

#[test]
fn a_part_of_a_sequence_is_a_part_of_its_tensor() {
    let heads = |b: &mut Builder, other: i64| {
        project(b, "x", "both", (C, 8), true);
        for (name, at) in [("size", 4), ("first", 0), ("second", other)] {
            b.graph.initializer.push(tensor::from_i64(name, &[], &[at]));
        }
        let axis = vec![int_attr("axis", 2)];
        b.node_with("SplitToSequence", &["both", "size"], "parts", axis);
        b.node("SequenceAt", &["parts", "first"], "u");
        b.node("SequenceAt", &["parts", "second"], "v");
        b.node("Tanh", &["u"], "t");
        b.node("Add", &["t", "t"], "w");
        project(b, "v", "y", (4, C), true);
        project(b, "w", "z", (4, C), true);
        b.output("y", C);
        b.output("z", C);
    };
    let proof = prove_graph(|b| heads(b, -1));
    let sink = "/y.product/MatMul <- /both.product/MatMul z, s [- - - - 0 1 2 3]";
    assert_eq!(proof.site("y"), sink);
    let proof = prove_graph(|b| heads(b, 0));
    let wall = "explicit: `parts` has other readers";
    assert!(proof.site("y").ends_with(wall), "{}", proof.site("y"));
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
    // x.chunk(3, -1) of TorchScript: the bounds are computed from the shape.
    let by_chunk = graph(3, C, 1, |b| {
        b.layer_norm("x", "norm");
        b.linear("norm", "qkv", C, 3 * n);
        for (name, value) in [("axes", -1), ("zero", 0), ("two", 2), ("three", 3)] {
            ints(b, name, &[value]);
        }
        b.node("Shape", &["qkv"], "shape");
        b.node("Gather", &["shape", "axes"], "length");
        b.node("Add", &["length", "two"], "rounded");
        b.node("Div", &["rounded", "three"], "third");
        b.node("Mul", &["third", "two"], "thirds");
        let bounds = ["zero", "third", "thirds", "length"];
        for (y, between) in ["query", "key", "value"].into_iter().zip(bounds.windows(2)) {
            b.node("Slice", &["qkv", between[0], between[1], "axes"], y);
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
        ("chunk", by_chunk, product, last),
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

/// A pooler reads the first token alone, and nothing reads the others.
#[test]
fn what_is_behind_one_token_folds_where_nothing_reads_the_others() {
    let pooled = |also_read: bool| {
        prove_graph(|b| {
            b.layer_norm("x", "norm");
            b.graph
                .initializer
                .push(tensor::from_i64("first", &[], &[0]));
            let axis = vec![int_attr("axis", 1)];
            b.node_with("Gather", &["norm", "first"], "token", axis);
            b.linear("token", "y", C, C);
            b.output("y", C);
            if also_read {
                b.node("Relu", &["norm"], "z");
                b.output("z", C);
            }
        })
    };
    let alone = pooled(false);
    assert_eq!(
        alone.site("y"),
        "/y.product/MatMul <- /norm/LayerNormalization z, s [0 1 2 3 4]"
    );
    assert_eq!(
        pooled(true).site("y"),
        "/y.product/MatMul <- explicit: `norm` is also read by Relu `/z/Relu`"
    );
}

/// Falcon: all query heads share one key and one value, the last heads of the fused Linear, each picked by a list of
/// one index.
#[test]
fn a_head_that_is_picked_by_a_list_of_indices_takes_the_affine() {
    let (heads, d) = (2, 2);
    let proof = prove_graph(|b| {
        b.layer_norm("x", "norm");
        b.linear("norm", "qkv", C, (heads + 2) * d);
        reshape(b, "qkv", "fused", &[0, 0, heads as i64 + 2, d as i64]);
        for (y, picked) in [("query", &[0, 1][..]), ("key", &[-2]), ("value", &[-1])] {
            let [indices, apart, y_h] = ["indices", "apart", "h"].map(|s| format!("{y}_{s}"));
            ints(b, &indices, picked);
            let axis = vec![int_attr("axis", 2)];
            b.node_with("Gather", &["fused", &indices], &apart, axis);
            transpose(b, &apart, &y_h, &[0, 2, 1, 3]);
        }
        attend(b, ["query_h", "key_h", "value_h"], (heads, d), true);
    });
    assert_eq!(
        proof.site("y"),
        "/y.product/MatMul <- /qkv.product/MatMul z, s [- - - - - - 0 1]; ties [0 1 0 1]"
    );
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
pub fn between(k: usize, between: impl FnOnce(&mut Builder)) -> String {
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
pub fn gelu(b: &mut Builder, shared: bool) {
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
