//! ONNX Runtime's own operators: attention lets the affine through to V, norms and biases inside of fusions take it.

use super::prove::*;
use super::walls::sink;

const MS: &str = "com.microsoft";

fn contrib(b: &mut Builder, op: &str, inputs: &[&str], outputs: &[&str], ints: &[(&str, i64)]) {
    let attributes = ints.iter().map(|(name, value)| int_attr(name, *value));
    let node = b.node_with(op, inputs, outputs[0], attributes.collect());
    node.domain = Some(MS.to_owned());
    node.output = outputs.iter().map(|o| o.to_string()).collect();
}

/// q, k and v of x, their attention `a`, and the Linear y that reads it.
fn attention(
    op: &'static str,
    widths: [usize; 3],
    more: &[&str],
    outputs: &[&str],
    ints: &[(&str, i64)],
) -> Proof {
    prove_graph(|b| {
        let [q, k, v] = widths;
        for (name, width) in [("q", q), ("k", k), ("v", v)] {
            b.linear("x", name, C, width);
        }
        b.weight("b", &[q + k + v]);
        b.weight("past", &[2, 2, 3, 2]);
        b.graph
            .initializer
            .push(tensor::from_i32("lengths", &[2], &[3, 3]));
        b.graph
            .initializer
            .push(tensor::from_i32("total", &[1], &[4]));
        contrib(b, op, &[&["q", "k", "v"], more].concat(), outputs, ints);
        b.linear("a", "y", q, C);
        b.output("y", C);
    })
}

fn multi_head(more: &[&str], outputs: &[&str]) -> Proof {
    attention(
        "MultiHeadAttention",
        [4; 3],
        more,
        outputs,
        &[("num_heads", 2)],
    )
}

const GROUPED: [(&str, i64); 2] = [("num_heads", 4), ("kv_num_heads", 2)];

#[test]
fn through_multi_head_attention() {
    assert_eq!(
        sink(&multi_head(&[], &["a"])),
        "/v.product/MatMul z, s [0 1 2 3]"
    );
    // Its own bias takes the shift, the Linear the scale.
    let with_bias = multi_head(&["b"], &["a"]);
    assert_eq!(
        sink(&with_bias),
        "b z, s [- - - - - - - - 0 1 2 3]; /v.product/MatMul s [0 1 2 3]"
    );
}

#[test]
fn through_grouped_queries() {
    let inputs = ["", "", "lengths", "total"];
    let proof = attention("GroupQueryAttention", [8, 4, 4], &inputs, &["a"], &GROUPED);
    let shared = "/v.product/MatMul z, s [0 1 4 5]; ties [0 1 0 1 4 5 4 5]";
    assert_eq!(sink(&proof), shared);
    let smooth = [GROUPED.as_slice(), &[("smooth_softmax", 1)]].concat();
    let proof = attention("GroupQueryAttention", [8, 4, 4], &inputs, &["a"], &smooth);
    assert_eq!(sink(&proof), shared.replace(" z,", ""));
    let packed = prove_graph(|b| {
        b.linear("x", "qkv", C, 16);
        b.graph
            .initializer
            .push(tensor::from_i32("lengths", &[2], &[3, 3]));
        b.graph
            .initializer
            .push(tensor::from_i32("total", &[1], &[4]));
        let inputs = ["qkv", "", "", "", "", "lengths", "total"];
        contrib(b, "GroupQueryAttention", &inputs, &["a"], &GROUPED);
        b.linear("a", "y", 8, C);
        b.output("y", C);
    });
    assert_eq!(
        sink(&packed),
        "/qkv.product/MatMul z, s [- - - - - - - - - - - - 0 1 4 5]; ties [0 1 0 1 4 5 4 5]"
    );
}

#[test]
fn values_of_other_tokens_are_walls() {
    let handed_on = prove_graph(|b| {
        for y in ["q", "k", "v"] {
            b.linear("x", y, C, 4);
        }
        let outputs = ["a", "", "present"];
        contrib(
            b,
            "MultiHeadAttention",
            &["q", "k", "v"],
            &outputs,
            &[("num_heads", 2)],
        );
        b.linear("a", "y", 4, C);
        b.output("y", C);
        let dims = [Err("batch"), Ok(2), Err("tokens"), Ok(2)];
        b.graph.output.push(info("present", DataType::Float, &dims));
    });
    assert_eq!(
        sink(&handed_on),
        "explicit: MultiHeadAttention `/a/MultiHeadAttention` hands V on to later tokens, as `present`"
    );
    let joined = multi_head(&["", "", "", "past", "past"], &["a"]);
    assert_eq!(
        sink(&joined),
        "explicit: MultiHeadAttention `/a/MultiHeadAttention` joins V with the values of former tokens, `past`"
    );
}

/// A block as ONNX Runtime's optimizer leaves it: the biases of its Linears are inside of what follows them.
#[test]
fn an_optimized_block() {
    let proof = prove_graph(|b| {
        for name in ["gamma", "beta", "c", "gamma2", "c2"] {
            b.weight(name, &[C]);
        }
        let inputs = ["x", "x", "gamma", "beta"];
        contrib(b, "SkipLayerNormalization", &inputs, &["n"], &[]);
        b.weight("up.weight", &[C, C]);
        b.node("MatMul", &["n", "up.weight"], "up");
        contrib(b, "BiasGelu", &["up", "c"], &["act"], &[]);
        b.weight("down.weight", &[C, C]);
        b.node("MatMul", &["act", "down.weight"], "down");
        // Without a β, which the second Linear's shift needs, and with the bias of the first.
        let inputs = ["down", "n", "gamma2", "", "c2"];
        contrib(
            b,
            "SkipLayerNormalization",
            &inputs,
            &["n2", "", "", "sum"],
            &[],
        );
        b.linear("n2", "y", C, C);
        b.output("y", C);
        b.output("sum", C);
    });
    let node = |name: &str| {
        let graph = proof.migrated.graph();
        graph.node.iter().find(|n| n.name() == name).unwrap()
    };
    // The biases stay where they are, and no Add is written after the products.
    assert_eq!(node("/act/BiasGelu").input[0], "up");
    assert_eq!(node("/n2/SkipLayerNormalization").input[0], "down");
    assert_eq!(node("/n2/SkipLayerNormalization").input[4], "c2");
    assert_eq!(
        node("/n2/SkipLayerNormalization").input[3],
        "/n2/SkipLayerNormalization_beta"
    );
    assert_eq!(
        proof.site("up"),
        "/up/MatMul <- norm /n/SkipLayerNormalization"
    );
    assert_eq!(
        proof.site("down"),
        "/down/MatMul <- explicit: it is computed by BiasGelu"
    );
}
