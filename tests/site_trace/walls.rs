//! What stops an affine, and what lets only its scale pass.

use super::prove::*;
use crate::common::graphs::read_by_branches;

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
pub fn sink(proof: &Proof) -> &str {
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
        read_by_branches(b, "v", &[Err("batch"), Err("tokens"), Ok(4)]);
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
fn a_split_by_sizes_that_are_not_known_is_a_wall() {
    let sizes = |b: &mut Builder, sizes: &str| {
        b.linear("x", "u", C, 5);
        ints(b, "one", &[1]);
        ints(b, "four", &[4]);
        ints(b, "constant", &[1, 4]);
        let axis = vec![int_attr("axis", 0)];
        b.node_with("Concat", &["one", "four"], "computed", axis);
        // Nothing here adds up what came before.
        ints(b, "steps", &[1, 3]);
        ints(b, "first axis", &[0]);
        b.node("Squeeze", &["first axis"], "axis");
        b.node("CumSum", &["steps", "axis"], "unknown");
        let axis = vec![int_attr("axis", 2)];
        let node = make_node("Split", "split", &["u", sizes], &["rest", "v"], axis);
        b.graph.node.push(node);
        b.linear("v", "y", 4, C);
        b.output("y", C);
    };
    for known in ["constant", "computed"] {
        let proof = prove_graph(|b| sizes(b, known));
        assert_eq!(sink(&proof), "/u.product/MatMul z, s [- 0 1 2 3]");
    }
    let unknown = prove_graph(|b| sizes(b, "unknown"));
    assert_eq!(
        sink(&unknown),
        "explicit: the sizes of Split `split` are not known"
    );
}
