//! Attention in every form that exporters write, what is left in float with the reason, and how its products are
//! quantized.

use onnx_osplus::graph::{Names, View, apply};
use onnx_osplus::onnx::{DataType, Model, TextOptions, text};
use onnx_osplus::recognise::{Attention, Attentions, attentions};
use onnx_osplus::rewrite::{AttentionParams, quantize_attention};
use onnx_osplus::solve::ActivationSpec;

use super::form::run;
use super::text::model;

/// Q: [2, 3, s, 4] and Kᵀ, V from Linears of x.
const OPERANDS: &str = "in x[2, 3, s, 8]\n const wq[8, 4]\n const wk[8, 4]\n const wv[8, 4]\n const eighth[] = 0.125\n \
    q = MatMul(x, wq)\n k0 = MatMul(x, wk)\n v = MatMul(x, wv)\n k = Transpose{perm = [0, 1, 3, 2]}(k0)\n out o\n";

fn found(lines: &str) -> (Model, Attentions) {
    let model = model(&format!("{OPERANDS}{}", lines.replace("; ", "\n")));
    let found = attentions(&View::new(&model));
    (model, found)
}

fn names(model: &Model, a: &Attention) -> String {
    let view = View::new(model);
    let operands = [a.scores.operands, a.context.operands].concat();
    let names: Vec<&str> = operands.iter().map(|v| view.name(*v)).collect();
    names.join(" ")
}

#[test]
fn the_forms_of_exporters() {
    let forms = [
        // eager
        (
            "s = MatMul(q, k); c = Mul(s, eighth); p = Softmax(c); o = MatMul(p, v)",
            "q k p v",
        ),
        // scaled dot product attention: half of the scale on either side, a guard behind
        (
            "q2 = Mul(q, eighth); k2 = Mul(k, eighth); s = MatMul(q2, k2); p0 = Softmax(s); n = IsNaN(p0); \
             const zero[] = 0; p = Where(n, zero, p0); o = MatMul(p, v)",
            "q2 k2 p v",
        ),
        // a mask that is added, and one that is chosen; probabilities in another type and shape
        (
            "in m[2, 1, s, s]; s = MatMul(q, k); c = Add(m, s); p0 = Softmax(c); p1 = Cast{to = 1}(p0); \
             p = Dropout(p1); o = MatMul(p, v)",
            "q k p v",
        ),
        (
            "in m[2, 1, s, s]; b = Cast{to = 9}(m); const low[] = -9; s = MatMul(q, k); c = Where(b, s, low); \
             r = Max(c, low); p = Softmax(r); o = MatMul(p, v)",
            "q k p v",
        ),
        // a soft cap, an attention sink
        (
            "s = MatMul(q, k); t = Tanh(s); c = Mul(t, eighth); p = Softmax(c); o = MatMul(p, v)",
            "q k p v",
        ),
        (
            "in sink[2, 3, s, 1]; s = MatMul(q, k); c = Concat{axis = -1}(s, sink); p0 = Softmax(c); ints a = [0]; \
             ints z = [-1]; ints ax = [3]; p = Slice(p0, a, z, ax); o = MatMul(p, v)",
            "q k p v",
        ),
        // a cache, keys shared by several heads, attention weights that are an output
        (
            "in past[2, 3, t, 4]; kv = Concat{axis = -2}(past, k0); kt = Transpose{perm = [0, 1, 3, 2]}(kv); \
             s = MatMul(q, kt); p = Softmax(s); out p; o = MatMul(p, kv)",
            "q kt p kv",
        ),
        // all of it transposed
        (
            "qt = Transpose{perm = [0, 1, 3, 2]}(q); vt = Transpose{perm = [0, 1, 3, 2]}(v); s = MatMul(k0, qt); \
             p = Softmax{axis = -2}(s); o = MatMul(vt, p)",
            "k0 qt vt p",
        ),
    ];
    for (lines, expected) in forms {
        let (model, found) = found(lines);
        assert_eq!(found.near_misses, vec![], "{lines}");
        let all: Vec<String> = found.found.iter().map(|a| names(&model, a)).collect();
        assert_eq!(all, [expected], "{lines}");
        let a = &found.found[0];
        let dtypes = (a.scores.dtype, a.context.dtype);
        assert_eq!(dtypes, (DataType::Float, DataType::Float), "{lines}");
        let probabilities = names(&model, a)
            .split(' ')
            .nth(2 + a.probabilities)
            .map(str::to_owned);
        assert_eq!(probabilities.as_deref(), Some("p"), "{lines}");
    }
}

#[test]
fn near_misses_say_why() {
    let misses = [
        (
            "s1 = MatMul(q, k); s2 = MatMul(x, xt); xt = Transpose{perm = [0, 1, 3, 2]}(x); s = Add(s1, s2); \
             p = Softmax(s); o = MatMul(p, v)",
            "its scores come from 2 products: MatMul `s1_node`, MatMul `s2_node`",
        ),
        (
            "s = com.microsoft:FusedMatMul{transB = 1}(q, k0); p = Softmax(s); o = MatMul(p, v)",
            "its scores come from FusedMatMul `s_node`; a MatMul of two computed values is expected",
        ),
        (
            "s = MatMul(q, k); p = Softmax(s); h = Mul(p, eighth); o = MatMul(h, v)",
            "its probabilities are read by Mul `h_node`; a MatMul with another computed value is expected",
        ),
        (
            "s = MatMul(q, k); p = Softmax(s); const two[] = 2; n = IsNaN(p); w = Where(n, two, p); o = MatMul(w, v)",
            "its probabilities are read by Where `w_node`; a MatMul with another computed value is expected",
        ),
        (
            "s = MatMul(q, k); o = Softmax(s)",
            "no MatMul reads its probabilities",
        ),
        (
            "s = MatMul(q, k); p = Softmax(s); a = MatMul(p, v); b = MatMul(p, k0); o = Add(a, b)",
            "its probabilities are read by 2 products: MatMul `a_node`, MatMul `b_node`",
        ),
        (
            "i8 z[]; qq = QuantizeLinear(q, eighth, z); qd = DequantizeLinear(qq, eighth, z); s = MatMul(qd, k); \
             p = Softmax(s); o = MatMul(p, v)",
            "MatMul `s_node` reads quantized values already",
        ),
        (
            "o = Attention(q, k0, v)",
            "Attention computes attention as a whole; its products stay in float",
        ),
        (
            "o = com.microsoft:GroupQueryAttention{num_heads = 1}(q, k0, v)",
            "GroupQueryAttention computes attention as a whole; its products stay in float",
        ),
    ];
    for (lines, reason) in misses {
        let (_, found) = found(lines);
        assert_eq!(found.found, vec![], "{lines}");
        let reasons: Vec<&str> = found
            .near_misses
            .iter()
            .map(|m| m.reason.as_str())
            .collect();
        assert_eq!(reasons, [reason], "{lines}");
    }
}

#[test]
fn a_softmax_of_a_linear_is_no_attention() {
    let (_, router) = found("p = Softmax(q); o = Mul(p, eighth)");
    assert_eq!(router, Attentions::default());
    // Nor is what mixes the outputs of experts.
    let (_, experts) = found("p = Softmax(q); o = MatMul(p, k)");
    assert_eq!(experts, Attentions::default());
}

/// A Softmax behind a Linear is none in integers either, nor is one that tells classes apart.
#[test]
fn softmaxes_of_classifiers_and_quantized_linears_are_no_attention() {
    let (_, quantized) = found(
        "i8 z[]; i8 w[4, 4]; qq = QuantizeLinear(q, eighth, z); qd = DequantizeLinear(qq, eighth, z); \
         wd = DequantizeLinear(w, eighth, z); s = MatMul(qd, wd); p = Softmax(s); o = MatMul(p, k)",
    );
    assert_eq!(quantized, Attentions::default());
    let (_, classifier) = found("s = MatMul(q, k); o = Softmax(s)");
    assert_eq!(classifier.unmatched().count(), 0);
    let (_, whole) = found("o = Attention(q, k0, v)");
    assert_eq!(whole.unmatched().count(), 1);
}

fn quantized(model: &Model, bits: u8, symmetric: bool, drop_guard: bool) -> Model {
    let view = View::new(model);
    let mut names = Names::new(model);
    let spec = ActivationSpec::per_tensor(bits, symmetric);
    let wide = spec.params(-12.0, 12.0);
    let all = attentions(&view);
    let patches = all.found.iter().map(|a| {
        let mut context = [spec.params(0.0, 1.0), wide];
        if a.probabilities == 1 {
            context.reverse();
        }
        let scores = [wide, wide];
        let params = AttentionParams {
            scores,
            context,
            drop_guard,
            in_float16: false,
        };
        quantize_attention(&view, a, &params, symmetric, &mut names)
    });
    let patches: Vec<_> = patches.collect();
    let mut quantized = model.clone();
    apply(&mut quantized, patches).unwrap();
    quantized
}

const GUARDED: &str = "in m[2, 1, s, s]; s = MatMul(q, k); c = Add(s, m); p0 = Softmax(c); n = IsNaN(p0); \
    const zero[] = 0; p = Where(n, zero, p0); o = MatMul(p, v)";

#[test]
fn what_is_written() {
    let (model, _) = found(GUARDED);
    for (name, bits, symmetric, drop_guard) in [
        ("int8", 8, true, false),
        ("uint8", 8, false, false),
        ("int8_without_guard", 8, true, true),
        ("int8_of_6_bits", 6, true, false),
    ] {
        let written = quantized(&model, bits, symmetric, drop_guard);
        insta::assert_snapshot!(name, text(&written, TextOptions::SHORT));
    }
}

/// 8 bits of these small operands are near enough; a wrong operand, scale or zero point is not.
#[test]
fn the_quantized_products_are_nearly_the_float_ones() {
    let transposed = "qt = Transpose{perm = [0, 1, 3, 2]}(q); vt = Transpose{perm = [0, 1, 3, 2]}(v); \
        s = MatMul(k0, qt); p = Softmax{axis = -2}(s); o = MatMul(vt, p)";
    for lines in [
        &GUARDED.replace("in m[2, 1, s, s]", "const m[1, 1, 3, 3]"),
        transposed,
    ] {
        let (model, _) = found(lines);
        let float = run(&model);
        for (symmetric, drop_guard) in [(true, false), (false, false), (true, true)] {
            let int8 = run(&quantized(&model, 8, symmetric, drop_guard));
            let (a, b) = (&float["o"], &int8["o"]);
            let signal: f32 = a.iter().map(|a| a * a).sum();
            let error: f32 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
            assert!(
                error > 0.0 && error < signal * 3e-3,
                "{symmetric} {error} {signal}"
            );
        }
    }
}

#[test]
fn half_precision_is_multiplied_between_casts() {
    let lines = "in y[2, 3, s, 4]; h = Cast{to = 10}(y); qh = Cast{to = 10}(q); kh = Cast{to = 10}(k); \
        s = MatMul(qh, kh); p = Softmax(s); o = MatMul(p, h); c = Cast{to = 1}(o); out c";
    let (model, all) = found(lines);
    assert_eq!(all.found[0].scores.dtype, DataType::Float16);
    assert_eq!(all.found[0].context.dtype, DataType::Float16);
    let written = quantized(&model, 8, true, false);
    let graph = written.graph();
    for name in ["s_node", "o_node"] {
        let node = graph.node.iter().find(|n| n.name() == name).unwrap();
        for input in &node.input {
            let dq = graph
                .node
                .iter()
                .find(|n| n.output.contains(input))
                .unwrap();
            assert_eq!(dq.op_type(), "DequantizeLinear");
            let scale = graph
                .initializer
                .iter()
                .find(|t| t.name() == dq.input[1])
                .unwrap();
            assert_eq!(scale.data_type, Some(DataType::Float as i32));
        }
        let reader = graph
            .node
            .iter()
            .find(|n| n.input.contains(&node.output[0]))
            .unwrap();
        assert_eq!(reader.op_type(), "Cast");
    }
}
