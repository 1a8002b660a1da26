//! Near misses: nothing that looks like a block is dropped without the reason, and nothing else is reported.

use onnx_osplus::recognise::NearMiss;

use super::form::found;
use super::norm::with_norm;
use super::text::model;

/// One near miss of `kind` at `node`, whose reason holds every one of `words`; no norm besides.
fn norm(kind: &str, node: &str, words: &[&str], lines: &str) {
    let found = found(&model(&with_norm(lines)));
    assert_eq!(found.norms, vec![], "{lines}");
    check(&found.near_misses, kind, node, words, lines);
}

fn linear(node: &str, words: &[&str], text: &str) {
    let found = found(&model(text));
    assert_eq!(found.linears, vec![], "{text}");
    check(&found.near_misses, "Linear", node, words, text);
}

fn check(misses: &[NearMiss], kind: &str, node: &str, words: &[&str], text: &str) {
    let [miss] = misses else {
        panic!("one near miss is expected, {misses:?} were found in {text}");
    };
    assert_eq!((miss.kind, miss.name.as_str()), (kind, node), "{text}");
    for word in words {
        assert!(miss.reason.contains(word), "`{word}` in: {}", miss.reason);
    }
}

const LAYER: &str = "LayerNormalization";
const RMS: &str = "RMSNormalization";

/// A LayerNormalization with other lines in the place of some.
fn layer_with(changes: &[(&str, &str)]) -> String {
    let lines = [
        "m = ReduceMean{axes = [-1]}(x)",
        "d = Sub(x, m)",
        "q = Pow(d, two)",
        "v = ReduceMean{axes = [-1]}(q)",
        "ve = Add(v, e)",
        "s = Sqrt(ve)",
        "n = Div(d, s)",
        "ng = Mul(n, g)",
        "y = Add(ng, b)",
    ];
    let line = |line: &&str| {
        let output = line.split(' ').next().unwrap();
        let change = changes.iter().find(|(o, _)| *o == output);
        change.map_or((*line).to_owned(), |(_, with)| (*with).to_owned())
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn another_axis() {
    for axes in ["[1]", "[-2]", "[1, 2]", "[0]"] {
        let lines = layer_with(&[
            ("m", &format!("m = ReduceMean{{axes = {axes}}}(x)")),
            ("v", &format!("v = ReduceMean{{axes = {axes}}}(q)")),
        ]);
        norm(LAYER, "s_node", &[axes, "not over the last axis"], &lines);
    }
    let lines = layer_with(&[("v", "v = ReduceMean(q)")]);
    norm(LAYER, "s_node", &["over all axes"], &lines);
    let lines = layer_with(&[("v", "sh = Shape(x)\n v = ReduceMean(q, sh)")]);
    norm(LAYER, "s_node", &["`sh`", "not a constant"], &lines);
    norm(
        LAYER,
        "y_node",
        &["from axis 1", "rank 3"],
        "y = LayerNormalization{axis = 1}(x, g, b)",
    );
}

/// Over two axes: the normalization of an image's channels.
#[test]
fn pooled_image() {
    let found = found(&model(
        "in x[2, 8, 4, 4]
         const g[4]
         q = Mul(x, x)
         v = GlobalAveragePool(q)
         s = Sqrt(v)
         n = Div(x, s)
         y = Mul(n, g)
         out y",
    ));
    assert_eq!(found.norms, vec![]);
    let words = ["GlobalAveragePool of rank 4"];
    check(&found.near_misses, RMS, "s_node", &words, "rank 4");
}

#[test]
fn dropped_axis() {
    let lines = layer_with(&[(
        "v",
        "vd = ReduceMean{axes = [-1]; keepdims = 0}(q)\n v = Unsqueeze(vd, last)",
    )]);
    norm(LAYER, "s_node", &["`v_node` stands in between"], &lines);
    let lines = layer_with(&[("v", "v = ReduceMean{axes = [-1]; keepdims = 0}(q)")]);
    norm(
        LAYER,
        "s_node",
        &["keepdims = 0", "keepdims = 1 is expected"],
        &lines,
    );
}

#[test]
fn gamma() {
    let computed = layer_with(&[("ng", "gx = Neg(g0)\n ng = Mul(n, gx)")]);
    norm(
        LAYER,
        "s_node",
        &["γ `gx` is not a constant"],
        &format!("in g0[8]\n{computed}"),
    );
    let none = layer_with(&[("ng", ""), ("y", "y = Neg(n)")]);
    norm(LAYER, "s_node", &["no γ", "read by Neg `y_node`"], &none);
    let only_linear = layer_with(&[("ng", ""), ("y", "y = Identity(n)")]);
    norm(
        LAYER,
        "s_node",
        &["γ", "only reader", "MatMul `z_node`"],
        &only_linear,
    );
    let number = layer_with(&[("ng", "ng = Mul(n, two)")]);
    norm(LAYER, "s_node", &["no γ", "Add `y_node`"], &number);
    let rows = layer_with(&[("ng", "const g3[3, 1]\n ng = Mul(n, g3)")]);
    norm(
        LAYER,
        "s_node",
        &["γ `g3` has shape [3, 1]", "one element per channel"],
        &rows,
    );
    let twice = layer_with(&[("ng", "ng = Mul(n, g)\n o = Neg(n)\n out o")]);
    norm(
        LAYER,
        "s_node",
        &["only reader of `n`", "and 1 more"],
        &twice,
    );
    let inside = "q = Pow(x, two)
        v = ReduceMean{axes = [-1]}(q)
        s = Sqrt(v)
        i = Reciprocal(s)
        ig = Mul(i, g)
        o = Neg(ig)
        out o
        y = Mul(x, ig)";
    norm(
        RMS,
        "s_node",
        &["γ is in `ig`", "outside of the norm"],
        inside,
    );
    norm(LAYER, "y_node", &["no γ"], "y = LayerNormalization(x)");
    norm(
        LAYER,
        "y_node",
        &["γ `g4` has shape [2, 4]"],
        "const g4[2, 4]\n y = LayerNormalization(x, g4, b)",
    );
    norm(
        LAYER,
        "y_node",
        &["γ has 8 elements and β 4"],
        "const b4[4]\n y = LayerNormalization(x, g, b4)",
    );
    norm(
        LAYER,
        "y_node",
        &["β `x1` is not a constant"],
        "in x1[8]\n y = LayerNormalization(x, g, x1)",
    );
}

#[test]
fn another_value_is_divided() {
    let lines = layer_with(&[("n", "n = Div(x, s)")]);
    norm(LAYER, "s_node", &["divides `x`", "not `d`"], &lines);
    let lines = layer_with(&[("n", "n = Mul(d, s)")]);
    norm(
        LAYER,
        "s_node",
        &["expected to divide `d`", "read by Mul `n_node`"],
        &lines,
    );
    let lines = layer_with(&[("m", "m2 = Neg(x)\n m = ReduceMean{axes = [-1]}(m2)")]);
    // x − mean(−x) is not centred; what its root mean square divides is a norm all the same.
    assert_eq!(found(&model(&with_norm(&lines))).norms.len(), 1);
}

#[test]
fn something_between_mean_and_root() {
    // The unbiased deviation of torch.std, and a mean written as a sum.
    let lines = layer_with(&[("ve", "const f[] = 1.14\n ve = Mul(v, f)")]);
    norm(LAYER, "s_node", &["`ve_node` stands in between"], &lines);
    let lines = layer_with(&[(
        "v",
        "const eight[] = 8\n sum = ReduceSum(q, last)\n v = Div(sum, eight)",
    )]);
    norm(RMS, "s_node", &["`v_node` stands in between"], &lines);
}

#[test]
fn weights() {
    let with = |lines: &str| format!("in x[3, 8]\n {lines}\n out y");
    linear(
        "y_node",
        &["[8]", "rank 2"],
        &with("const w[8]\n y = MatMul(x, w)"),
    );
    linear(
        "y_node",
        &["[2, 8, 4]", "rank 2"],
        &with("const w[2, 8, 4]\n y = MatMul(x, w)"),
    );
    linear(
        "y_node",
        &["no elements"],
        &with("const w[8, 0]\n y = MatMul(x, w)"),
    );
    linear(
        "y_node",
        &["INT64", "not a float"],
        &with("ints v = [1, 2]\n ints a = [0]\n w = Unsqueeze(v, a)\n y = MatMul(x, w)"),
    );
    linear(
        "y_node",
        &["INT8", "not a float"],
        &with("i8 w[8, 4]\n y = MatMul(x, w)"),
    );
    linear(
        "y_node",
        &["`w`", "DequantizeLinear `w_node`", "already quantized"],
        &with("i8 q[8, 4]\n const s[] = 0.1\n w = DequantizeLinear(q, s)\n y = MatMul(x, w)"),
    );
    linear(
        "y_node",
        &["DequantizeLinear `d_node`", "already quantized"],
        &with(
            "i8 q[4, 8]\n const s[] = 0.1\n d = DequantizeLinear(q, s)\n w = Transpose(d)\n y = MatMul(x, w)",
        ),
    );
    linear(
        "y_node",
        &["constant `w` is on the left"],
        &with("const w[4, 3]\n y = MatMul(w, x)"),
    );
    linear(
        "y_node",
        &["both factors"],
        &with("const a[4, 3]\n const w[3, 2]\n y = MatMul(a, w)"),
    );
    linear(
        "y_node",
        &["8 channels", "takes 6"],
        &with("const w[6, 4]\n y = MatMul(x, w)"),
    );
    linear(
        "y_node",
        &["3 channels", "takes 8"],
        &with("const w[8, 4]\n y = Gemm{transA = 1}(x, w)"),
    );
    linear(
        "y_node",
        &["`w`", "by Slice", "does not evaluate"],
        &with(
            "const v[9, 4]\n ints from = [0]\n ints to = [8]\n w = Slice(v, from, to)\n y = MatMul(x, w)",
        ),
    );
    linear(
        "y_node",
        &["MatMulInteger", "already quantized"],
        &with("i8 w[8, 4]\n y = MatMulInteger(x, w)"),
    );
    linear(
        "y_node",
        &["`w` is also a graph input"],
        &with("in w[8, 4]\n const w[8, 4]\n y = MatMul(x, w)"),
    );
    linear(
        "y_node",
        &["`v` is also a graph input"],
        &with("in v[4, 8]\n const v[4, 8]\n w = Transpose(v)\n y = MatMul(x, w)"),
    );
}

/// Before IR version 4 every initializer had to be listed as an input; nobody could override it.
#[test]
fn listed_weights_of_old_files() {
    let text = "in x[3, 8]\n in w[8, 4]\n const w[8, 4]\n y = MatMul(x, w)\n out y";
    let mut old = model(text);
    old.proto.ir_version = Some(3);
    assert_eq!(
        (found(&old).linears.len(), found(&old).near_misses.len()),
        (1, 0)
    );
}

/// Square roots and products that are no part of a norm or Linear.
#[test]
fn attention_is_no_near_miss() {
    let model = model(
        "in q[2, 4, s, 8]
         in k[2, 4, 8, s]
         in v[2, 4, s, 8]
         const half[] = 0.5
         const eight[] = 8
         sh = Shape(q)
         ints last = [3]
         l = Gather(sh, last)
         lf = Cast{to = 1}(l)
         root = Sqrt(lf)
         root2 = Pow(lf, half)
         root3 = Sqrt(eight)
         qs = Div(q, root)
         ks = Div(k, root2)
         scores = MatMul(qs, ks)
         more = com.microsoft:FusedMatMul(qs, ks)
         scaled = Div(scores, root3)
         p = Softmax(scaled)
         o = MatMul(p, v)
         dist = Sub(q, v)
         sq = Mul(dist, dist)
         ints axis = [-1]
         sum = ReduceSum(sq, axis)
         length = Sqrt(sum)
         out o
         out more
         out length",
    );
    let found = found(&model);
    assert_eq!(found.near_misses, vec![]);
    assert_eq!((found.linears.len(), found.norms.len()), (0, 0));
}
