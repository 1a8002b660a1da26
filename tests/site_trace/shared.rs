//! Constants, Linears and values that several sites or readers share.

use super::prove::*;
use super::sinks::between;
use super::walls::sink;

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

/// Some channels of a value that others read in part too: a number for all of them has no place for the affine of some.
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
            ints(b, "end", &[4]);
            b.node("Slice", &["w", "to", "end", "axes"], "others");
            b.output("others", 2);
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
