//! Linears: every form matches, with the effective weight and bias that the operator applies.

use ndarray::{Array2, Axis};
use onnx_osplus::graph::View;
use onnx_osplus::onnx::{DataType, Model};
use onnx_osplus::recognise::{Linear, LinearForm};

use super::form::{check_fold, found, run};
use super::text::model;

fn only(model: &Model, what: &str) -> Linear {
    let found = found(model);
    assert_eq!(found.near_misses, vec![], "{what}");
    assert_eq!(found.linears.len(), 1, "{what}");
    found.linears.raw[0].clone()
}

/// Matches one Linear whose x W + b, with W and b as loaded, is what the model computes from input x.
fn check(text: &str, bias: bool) -> Linear {
    let model = model(text);
    let view = View::new(&model);
    let linear = only(&model, text);
    assert_eq!((linear.k, linear.n), (8, 4), "{text}");
    assert_eq!(linear.bias.is_some(), bias, "{text}");
    let outputs = run(&model);
    // The product runs on the last two axes; the tests' x is the output named x.
    let x = &outputs["x"];
    let rows = x.len() / 8;
    let x = Array2::from_shape_vec((rows, 8), x.iter().copied().collect()).unwrap();
    let mut y = x.dot(&linear.load_weight(&view).unwrap());
    if let Some(b) = linear.load_bias(&view) {
        y = y + b.insert_axis(Axis(0));
    }
    let found = &outputs["y"];
    assert_eq!(found.len(), y.len(), "{text}");
    for (a, b) in found.iter().zip(&y) {
        assert!((a - b).abs() < 1e-4, "{text}: {a} and {b}");
    }
    linear
}

fn with(rank3: bool, lines: &str) -> String {
    let input = if rank3 { "in u[2, s, 8]" } else { "in u[3, 8]" };
    format!("{input}\n x = Neg(u)\n {lines}\n out x\n out y")
}

#[test]
fn matmul() {
    check(&with(true, "const w[8, 4]\n y = MatMul(x, w)"), false);
    check(&with(false, "const w[8, 4]\n y = MatMul(x, w)"), false);
    for bias in [
        "const b[4]",
        "const b[1, 4]",
        "const b[1, 1, 4]",
        "node b[4]",
    ] {
        for add in ["Add(p, b)", "Add(b, p)"] {
            check(
                &with(
                    true,
                    &format!("const w[8, 4]\n {bias}\n p = MatMul(x, w)\n y = {add}"),
                ),
                true,
            );
        }
    }
}

/// An Add that is no bias per column stays what it is.
#[test]
fn matmul_with_another_add() {
    for term in ["const b[]", "const b[3, 4]", "const b[2, 1, 1]"] {
        let text = with(
            true,
            &format!("const w[8, 4]\n {term}\n p = MatMul(x, w)\n y = Add(p, b)"),
        );
        let linear = only(&model(&text), &text);
        assert_eq!((linear.bias, linear.odd_bias), (None, false));
    }
    // The product is read elsewhere: the Add's constant is no bias of all its readers.
    let text = with(
        true,
        "const w[8, 4]\n const b[4]\n p = MatMul(x, w)\n y = Add(p, b)\n o = Neg(p)\n out o",
    );
    assert_eq!(only(&model(&text), &text).bias, None);
}

#[test]
fn gemm() {
    for (weight, trans_b) in [("const w[8, 4]", 0), ("const w[4, 8]", 1)] {
        for factors in [
            "",
            "; alpha = 0.5",
            "; beta = 2.5",
            "; alpha = 1.5; beta = 0.25",
        ] {
            let attributes = format!("{{transB = {trans_b}{factors}}}");
            let text = with(false, &format!("{weight}\n y = Gemm{attributes}(x, w)"));
            check(&text, false);
            for c in ["c[4]", "c[1, 4]", "c[1]", "c[]", "c[1, 1]"] {
                let text = format!("{weight}\n const {c}\n y = Gemm{attributes}(x, w, c)");
                let linear = check(&with(false, &text), true);
                assert!(!linear.odd_bias);
            }
        }
    }
}

#[test]
fn gemm_with_the_input_transposed() {
    let text = with(
        false,
        "const w[8, 4]\n t = Transpose{perm = [1, 0]}(x)\n y = Gemm{transA = 1}(t, w)",
    );
    let linear = check(&text, false);
    assert!(!linear.channels_last());
    let form = LinearForm::Gemm {
        trans_a: true,
        trans_b: false,
        alpha: 1.0,
        beta: 1.0,
    };
    assert_eq!(linear.form, form);
}

#[test]
fn gemm_with_an_odd_bias() {
    for c in ["const c[3, 4]", "const c[3, 1]", "c = Neg(x4)"] {
        let text = format!(
            "in u[3, 8]\n in x4[3, 4]\n x = Neg(u)\n const w[8, 4]\n {c}\n y = Gemm{{beta = 0.5}}(x, w, c)\n out x\n out y"
        );
        let linear = only(&model(&text), &text);
        assert_eq!((linear.bias, linear.odd_bias), (None, true), "{c}");
    }
}

/// γ, β, alpha and beta: folding puts the factors into the constants, and leaves beta to an odd bias.
#[test]
fn folding_into_a_gemm() {
    for gemm in [
        "Gemm{alpha = 0.5; beta = 2.0}(y, w, c)",
        "Gemm{beta = 2.0; transB = 1}(y, v, c)",
        "Gemm{alpha = 3.0; transB = 1}(y, v)",
        "Gemm{alpha = 3.0; beta = 0.5}(y, w, odd)",
        "Gemm{beta = 0.5}(y, w, one)",
    ] {
        let text = format!(
            "in x[3, 8]\n const g[8]\n const b[8]\n const w[8, 4]\n const v[4, 8]\n const c[4]
             const odd[3, 4]\n const one[] = 0.7
             y = LayerNormalization(x, g, b)\n z = {gemm}\n out z"
        );
        assert_eq!(check_fold(&model(&text), gemm), 1);
    }
}

#[test]
fn weights_behind_other_operators() {
    for weight in [
        "node w[8, 4]",
        "const v[4, 8]\n w = Transpose{perm = [1, 0]}(v)",
        "const v[4, 8]\n w = Transpose(v)",
        "const v[8, 4]\n w = Identity(v)",
        "const v[32]\n ints to = [8, -1]\n w = Reshape(v, to)",
        "const v[8, 4]\n w = Cast{to = 1}(v)",
        "const v[1, 8, 4]\n ints axes = [0]\n w = Squeeze(v, axes)",
        "const v[1, 8, 1, 4]\n w = Squeeze(v)",
        "const v[4, 8]\n i = Identity(v)\n t = Transpose{perm = [1, 0]}(i)\n w = Cast{to = 1}(t)",
        "const v[8, 4]\n const f[] = 0.25\n w = Mul(v, f)",
    ] {
        let linear = check(&with(true, &format!("{weight}\n y = MatMul(x, w)")), false);
        assert_eq!(linear.dtype, DataType::Float);
        let folded = format!(
            "in x[2, s, 8]\n const g[8]\n const b[8]\n {weight}
             y = LayerNormalization(x, g, b)\n z = MatMul(y, w)\n out z"
        );
        assert_eq!(check_fold(&model(&folded), weight), 1);
    }
}

/// A float16 weight behind a Cast multiplies as float32.
#[test]
fn stored_in_half_precision() {
    let text = with(
        true,
        "half v[8, 4]\n w = Cast{to = 1}(v)\n y = MatMul(x, w)",
    );
    assert_eq!(check(&text, false).dtype, DataType::Float);
    let text = "in u[3, 8]\n x = Cast{to = 10}(u)\n half w[8, 4]\n y = MatMul(x, w)\n out y";
    assert_eq!(only(&model(text), text).dtype, DataType::Float16);
}

#[test]
fn one_weight_in_several_places() {
    let text = "in x[2, s, 8]
        const g[8]\n const b[8]\n const w[8, 4]\n const c[4]\n const t[4, 8]
        y = LayerNormalization(x, g, b)
        p = MatMul(y, w)\n z = Add(p, c)\n out z
        p2 = MatMul(x, w)\n z2 = Add(p2, c)\n out z2
        s = ReduceSum(w)\n z3 = Mul(x, s)\n out z3
        wt = Transpose{perm = [1, 0]}(t)
        z4 = MatMul(y, wt)\n out z4
        z5 = MatMul(z4, t)\n out z5";
    let model = model(text);
    let found = found(&model);
    let view = View::new(&model);
    assert_eq!(found.linears.len(), 4);
    let shared: Vec<bool> = found
        .linears
        .iter()
        .map(|l| l.weight_is_shared(&view))
        .collect();
    assert_eq!(shared, [true, true, false, true]);
    assert_eq!(check_fold(&model, "shared weight"), 1);
}
