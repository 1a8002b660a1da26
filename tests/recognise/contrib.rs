//! Linears inside of ONNX Runtime's operators: which are taken out, that nothing changes by it, and which stay, with the
//! reason. (tests/python/test_contrib.py checks the same in ONNX Runtime.)

use onnx_osplus::graph::{Names, View, apply};
use onnx_osplus::onnx::Model;
use onnx_osplus::rewrite::take_apart;

use super::form::{found, run};
use super::text::model;

fn apart(model: &Model, wanted: impl Fn(&str) -> bool) -> (Model, Vec<String>) {
    let patches = take_apart(&View::new(model), &mut Names::new(model), wanted).unwrap();
    let reasons = patches.iter().map(|p| p.reason().to_owned()).collect();
    let mut taken = model.clone();
    apply(&mut taken, patches).unwrap();
    (taken, reasons)
}

fn ops(model: &Model) -> Vec<&str> {
    model.graph().node.iter().map(|n| n.op_type()).collect()
}

/// The Linears and operators after `text` was taken apart, which changed no output.
fn taken(text: &str) -> (Vec<String>, Model) {
    let model = model(text);
    assert_eq!(found(&model).linears, vec![], "{text}");
    let (taken, reasons) = apart(&model, |_| true);
    assert_eq!(reasons.len(), 1, "{text}");
    let found = found(&taken);
    assert_eq!(found.near_misses, vec![], "{text}");
    let (before, after) = (run(&model), run(&taken));
    for (name, a) in &before {
        for (a, b) in a.iter().zip(&after[name]) {
            assert!((a - b).abs() < 1e-5, "{text}: {name} {a} became {b}");
        }
    }
    (found.linears.into_iter().map(|l| l.name).collect(), taken)
}

const ATTENTION: &str = "in x[2, s, 8]\n const w[8, 24]\n const b[24]";

#[test]
fn attention() {
    let call = "y = com.microsoft:Attention{num_heads = 2}(x, w, b)\n out y";
    let (linears, taken) = taken(&format!("{ATTENTION}\n {call}"));
    assert_eq!(linears, ["y_node_query", "y_node_key", "y_node_value"]);
    let found = found(&taken);
    assert!(
        found
            .linears
            .iter()
            .all(|l| l.bias.is_some() && (l.k, l.n) == (8, 8))
    );
    let last = taken.graph().node.last().unwrap();
    assert_eq!(
        (last.op_type(), last.name(), &*last.output[0]),
        ("MultiHeadAttention", "y_node", "y")
    );
    // The whole weight and bias have no reader left.
    assert!(
        taken
            .graph()
            .initializer
            .iter()
            .all(|t| t.name() != "w" && t.name() != "b")
    );
}

#[test]
fn attention_with_past_and_sizes() {
    let sizes = "qkv_hidden_sizes = [8, 8, 4]";
    let text = format!(
        "in x[2, s, 8]\n const w[8, 20]\n const b[20]\n
         y = com.microsoft:Attention{{num_heads = 2; {sizes}; unidirectional = 1; scale = 0.3}}(x, w, b)\n out y"
    );
    let (_, wide) = taken(&text);
    let widths: Vec<usize> = found(&wide).linears.iter().map(|l| l.n).collect();
    assert_eq!(widths, [8, 8, 4]);
    let call = "y, present = com.microsoft:Attention{num_heads = 2}(x, w, b, , past)";
    let past = "in past[2, 2, 2, 3, 4]";
    let (_, cached) = taken(&format!(
        "{ATTENTION}\n {past}\n {call}\n out y\n out present"
    ));
    assert_eq!(
        ops(&cached)[6..],
        [
            "Gather",
            "Gather",
            "MultiHeadAttention",
            "Unsqueeze",
            "Unsqueeze",
            "Concat"
        ]
    );
}

#[test]
fn products() {
    let matmul = |attributes: &str, w: &str| {
        let call = format!("y = com.microsoft:FusedMatMul{{{attributes}}}(x, w)");
        let (linears, taken) = taken(&format!("in x[2, s, 8]\n const w{w}\n {call}\n out y"));
        assert_eq!(linears, ["y_node"]);
        assert_eq!(ops(&taken), ["MatMul"]);
    };
    matmul("alpha = 1.0", "[8, 4]");
    matmul("alpha = 0.3", "[8, 4]");
    matmul("transB = 1; alpha = 0.5", "[4, 8]");
}

#[test]
fn excluded_operators_stay_whole() {
    let text =
        format!("{ATTENTION}\n y = com.microsoft:Attention{{num_heads = 2}}(x, w, b)\n out y");
    let model = model(&text);
    let (same, reasons) = apart(&model, |name| name != "y_node");
    assert_eq!((same, reasons.len()), (model.clone(), 0));
    let [miss] = &found(&model).near_misses[..] else {
        panic!("one near miss");
    };
    assert!(miss.reason.contains("from which they were not taken out"));
}

#[test]
fn what_stays_has_a_reason() {
    let attention = |attributes: &str, more: &str, lines: &str| {
        format!(
            "{ATTENTION}\n {lines}\n y = com.microsoft:Attention{{num_heads = 2{attributes}}}(x, w, b{more})\n out y"
        )
    };
    let with = |op: &str| format!("in x[2, s, 8]\n const w[8, 4]\n y = com.microsoft:{op}\n out y");
    for (text, words) in [
        (
            attention("", ", m", "in m[2, 1]"),
            "mask `m` has shape [2, 1]",
        ),
        (attention("", ", m", "in m[4]"), "mask `m` has shape [4]"),
        (
            attention("", ", m", "in m[2, 1, 16, 16]"),
            "has shape [2, 1, 16, 16]",
        ),
        (
            attention("", ", m", "in u[2, s]\n m = Neg(u)"),
            "the shape of its mask `m` is not known",
        ),
        (attention("; do_rotary = 1", "", ""), "do_rotary"),
        (
            attention("", ", , , , n", "ints n = [3]"),
            "past_sequence_length",
        ),
        (
            attention("; qkv_hidden_sizes = [8, 8, 4]", "", ""),
            "no query, key and value",
        ),
        (with("FusedMatMul{transA = 1}(x, w)"), "transA"),
        (with("GemmFastGelu(x, w)"), "no kernel on CPUs"),
        (with("QAttention(x, w)"), "already quantized"),
    ] {
        let model = model(&text);
        let [miss] = &found(&model).near_misses[..] else {
            panic!("one near miss is expected in {text}");
        };
        assert!(miss.reason.contains(words), "`{words}` in: {}", miss.reason);
        assert_eq!(apart(&model, |_| true), (model.clone(), vec![]), "{text}");
    }
}

#[test]
fn masks_that_carry_over() {
    for lines in [
        "in m[2, s]",
        "in m[2, s, s]",
        "in u[2, s]\n m = Cast{to = 6}(u)",
        "in u[2, s]\n ints one = [1]\n m = ReduceSum{keepdims = 0}(u, one)",
    ] {
        let call = "y = com.microsoft:Attention{num_heads = 2}(x, w, b, m)\n out y";
        let (_, reasons) = apart(&model(&format!("{ATTENTION}\n {lines}\n {call}")), |_| true);
        assert_eq!(reasons.len(), 1, "{lines}");
    }
}
