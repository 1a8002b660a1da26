//! Norms: every form matches, with the right γ, β and output, and folding into it is exact.

use onnx_osplus::graph::View;
use onnx_osplus::recognise::NormKind::{self, Layer, Rms};

use super::form::{check_fold, found};
use super::text::model;

/// x, γ = g, β = b and what follows a norm: a Linear, and another reader of y.
pub const AROUND: &str = "
    in x[2, s, 8]
    const g[8]
    const b[8]
    const e[] = 1e-5
    const two[] = 2
    const half[] = 0.5
    const minus_half[] = -0.5
    const one[] = 1
    ints last = [-1]
    ints int_two = [2]
    const w[8, 4]
    z = MatMul(y, w)
    r = Mul(y, x)
    out z
    out r
";

/// Moves the readers of y behind the lines that compute it.
pub fn with_norm(lines: &str) -> String {
    let (before, after) = AROUND.split_once("    z = MatMul").unwrap();
    format!("{before}{lines}\n    z = MatMul{after}")
}

const CENTRED: &str = "
    m = ReduceMean{axes = [-1]}(x)
    d = Sub(x, m)";

const VARIANCE: &str = "
    m = ReduceMean{axes = [-1]}(x)
    d = Sub(x, m)
    q = Pow(d, two)
    v = ReduceMean{axes = [-1]}(q)
    ve = Add(v, e)
    s = Sqrt(ve)";

/// Matches one norm with γ from `gamma` and β from `beta`, and nothing else; folding into it is exact.
fn check(kind: NormKind, gamma: &str, beta: Option<&str>, lines: &str) {
    let model = model(&with_norm(lines));
    let view = View::new(&model);
    let found = found(&model);
    assert_eq!(found.near_misses, vec![], "{lines}");
    assert_eq!(found.norms.len(), 1, "{lines}");
    let norm = &found.norms.raw[0];
    assert_eq!(norm.kind, kind, "{lines}");
    assert_eq!(view.name(norm.output), "y", "{lines}");
    assert_eq!(view.name(norm.gamma.value), gamma, "{lines}");
    assert_eq!(norm.beta.map(|b| view.name(b.value)), beta, "{lines}");
    assert_eq!(norm.channels, 8, "{lines}");
    assert_eq!(check_fold(&model, lines), 1, "{lines}");
}

fn layer(lines: &str) {
    check(Layer, "g", Some("b"), lines);
}

#[test]
fn fused() {
    layer("y = LayerNormalization{axis = -1; epsilon = 0.001}(x, g, b)");
    layer("y = LayerNormalization{axis = 2}(x, g, b)");
    layer("y = LayerNormalization(x, g, b)");
    check(Layer, "g", None, "y = LayerNormalization(x, g)");
}

#[test]
fn fused_with_a_sum() {
    layer("y = com.microsoft:SkipLayerNormalization{epsilon = 0.001}(x, x, g, b)");
    layer(
        "const c[8]\n y, , , sum = com.microsoft:SkipLayerNormalization(x, x, g, b, c)\n out sum",
    );
    check(
        Layer,
        "g",
        None,
        "y = com.microsoft:SkipLayerNormalization(x, x, g)",
    );
    let rms = |lines: &str| check(Rms, "g", None, lines);
    rms("y = com.microsoft:SkipSimplifiedLayerNormalization{epsilon = 0.001}(x, x, g)");
    // The fourth input is a bias of the sum and no β.
    rms("y, , , sum = com.microsoft:SkipSimplifiedLayerNormalization(x, x, g, b)\n out sum");
}

/// Not run: the engine follows the newest operator set that it knows them in.
#[test]
fn fused_rms() {
    let simplified = "SimplifiedLayerNormalization{axis = -1; epsilon = 0.001}(x, g)";
    let contrib = "com.microsoft:SimplifiedLayerNormalization(x, g)";
    for call in [simplified, contrib, "RMSNormalization{axis = -1}(x, g)"] {
        let model = model(&with_norm(&format!("y = {call}")));
        let found = found(&model);
        assert_eq!(found.norms.len(), 1, "{call}");
        assert_eq!(
            (found.norms.raw[0].kind, found.norms.raw[0].beta),
            (Rms, None)
        );
        let (folded, sites) = super::form::fold(&model);
        assert_eq!(sites, 1, "{call}");
        assert_ne!(folded, model);
    }
}

#[test]
fn squares_and_means() {
    for square in ["Pow(d, two)", "Pow(d, int_two)", "Mul(d, d)"] {
        for mean in [
            "ReduceMean{axes = [-1]}",
            "ReduceMean{axes = [2]}",
            "ReduceMean{axes = [2]; keepdims = 1}",
        ] {
            layer(&format!(
                "m = {mean}(x)
                 d = Sub(x, m)
                 q = {square}
                 v = {mean}(q)
                 ve = Add(v, e)
                 s = Sqrt(ve)
                 n = Div(d, s)
                 ng = Mul(n, g)
                 y = Add(ng, b)"
            ));
        }
    }
    // tf2onnx, for rank 3.
    layer(
        "m = GlobalAveragePool(x)
         d = Sub(x, m)
         q = Mul(d, d)
         v = GlobalAveragePool(q)
         ve = Add(v, e)
         s = Sqrt(ve)
         n = Div(d, s)
         ng = Mul(n, g)
         y = Add(ng, b)",
    );
    // Axes as an input, from operator set 18 on.
    layer(
        "m = ReduceMean(x, last)
         d = Sub(x, m)
         q = Mul(d, d)
         v = ReduceMean(q, last)
         ve = Add(e, v)
         s = Sqrt(ve)
         n = Div(d, s)
         ng = Mul(g, n)
         y = Add(b, ng)",
    );
}

#[test]
fn roots_and_divisions() {
    let variance = "q = Pow(d, two)
        v = ReduceMean{axes = [-1]}(q)
        ve = Add(v, e)";
    for root in [
        "s = Sqrt(ve)
         n = Div(d, s)",
        "s = Sqrt(ve)
         i = Reciprocal(s)
         n = Mul(d, i)",
        "s = Sqrt(ve)
         i = Reciprocal(s)
         n = Mul(i, d)",
        "s = Sqrt(ve)
         i = Div(one, s)
         n = Mul(d, i)",
        "i = Pow(ve, minus_half)
         n = Mul(d, i)",
        "s = Pow(ve, half)
         n = Div(d, s)",
    ] {
        layer(&format!(
            "{CENTRED}
             {variance}
             {root}
             ng = Mul(n, g)
             y = Add(ng, b)"
        ));
    }
}

#[test]
fn epsilon_anywhere() {
    for root in [
        "ve = Add(v, e)
         s = Sqrt(ve)",
        "ve = Add(e, v)
         s = Sqrt(ve)",
        "ve = Max(v, e)
         s = Sqrt(ve)",
        "ve = Clip(v, e)
         s = Sqrt(ve)",
        "sr = Sqrt(v)
         s = Add(sr, e)",
        "sr = Sqrt(v)
         s = Add(e, sr)",
        "sr = Sqrt(v)
         s = Max(sr, e)",
        "s = Sqrt(v)",
        "node c[1] = 1e-6
         ve = Add(v, c)
         s = Sqrt(ve)",
        "vp = Max(v, e)
         ve = Add(vp, e)
         s = Sqrt(ve)",
        "el = CastLike(e, x)
         ve = Add(v, el)
         s = Sqrt(ve)",
    ] {
        layer(&format!(
            "{CENTRED}
             q = Pow(d, two)
             v = ReduceMean{{axes = [-1]}}(q)
             {root}
             n = Div(d, s)
             ng = Mul(n, g)
             y = Add(ng, b)"
        ));
    }
}

#[test]
fn bias_and_factors_on_either_side() {
    for end in [
        "ng = Mul(n, g)
         y = Add(ng, b)",
        "ng = Mul(g, n)
         y = Add(b, ng)",
    ] {
        layer(&format!("{VARIANCE}\n n = Div(d, s)\n {end}"));
    }
    let no_bias = format!("{VARIANCE}\n n = Div(d, s)\n y = Mul(g, n)");
    check(Layer, "g", None, &no_bias);
    // γ before the division, on either factor of it.
    layer(&format!(
        "{VARIANCE}\n dg = Mul(g, d)\n ng = Div(dg, s)\n y = Add(ng, b)"
    ));
    layer(&format!(
        "{VARIANCE}\n i = Reciprocal(s)\n ig = Mul(i, g)\n ng = Mul(d, ig)\n y = Add(ng, b)"
    ));
    layer(&format!(
        "{VARIANCE}\n ig = Div(g, s)\n ng = Mul(d, ig)\n y = Add(ng, b)"
    ));
    // A number for all channels on the way.
    layer(&format!(
        "{VARIANCE}\n n = Div(d, s)\n n2 = Mul(n, two)\n ng = Mul(n2, g)\n y = Add(ng, b)"
    ));
}

#[test]
fn computed_twice() {
    layer(
        "m = ReduceMean{axes = [-1]}(x)
         d = Sub(x, m)
         m2 = ReduceMean{axes = [-1]}(x)
         d2 = Sub(x, m2)
         q = Pow(d2, two)
         v = ReduceMean{axes = [-1]}(q)
         ve = Add(v, e)
         s = Sqrt(ve)
         n = Div(d, s)
         ng = Mul(n, g)
         y = Add(ng, b)",
    );
    layer(
        "m = ReduceMean{axes = [-1]}(x)
         d = Sub(x, m)
         d2 = Sub(x, m)
         q = Mul(d, d2)
         v = ReduceMean{axes = [-1]}(q)
         ve = Add(v, e)
         s = Sqrt(ve)
         n = Div(d2, s)
         ng = Mul(n, g)
         y = Add(ng, b)",
    );
}

/// Keras: x · (γ / r) + (β − mean · (γ / r)).
#[test]
fn batch_norm_form() {
    let inverse = format!("{VARIANCE}\n i = Reciprocal(s)\n ig = Mul(i, g)");
    for end in [
        "a = Mul(x, ig)
         t = Mul(m, ig)
         bt = Sub(b, t)
         y = Add(a, bt)",
        "t = Mul(ig, m)
         bt = Sub(b, t)
         a = Mul(ig, x)
         y = Add(bt, a)",
        "a = Mul(x, ig)
         nm = Neg(m)
         t = Mul(nm, ig)
         bt = Add(t, b)
         y = Add(a, bt)",
        "a = Mul(x, ig)
         t = Mul(m, ig)
         nt = Neg(t)
         bt = Add(b, nt)
         y = Add(a, bt)",
        "a = Mul(x, ig)
         t = Mul(m, ig)
         dg = Sub(a, t)
         y = Add(dg, b)",
    ] {
        layer(&format!("{inverse}\n {end}"));
    }
    let no_bias = format!("{inverse}\n a = Mul(x, ig)\n t = Mul(m, ig)\n y = Sub(a, t)");
    check(Layer, "g", None, &no_bias);
    // Variance as mean(x²) − mean(x)².
    layer(
        "m = ReduceMean{axes = [-1]}(x)
         q = Mul(x, x)
         mq = ReduceMean{axes = [-1]}(q)
         qm = Mul(m, m)
         v = Sub(mq, qm)
         ve = Add(v, e)
         s = Sqrt(ve)
         i = Reciprocal(s)
         ig = Mul(i, g)
         a = Mul(x, ig)
         t = Mul(m, ig)
         bt = Sub(b, t)
         y = Add(a, bt)",
    );
}

#[test]
fn root_mean_square() {
    let mean = "q = Pow(x, two)
        v = ReduceMean{axes = [-1]}(q)
        ve = Add(v, e)";
    for end in [
        "s = Sqrt(ve)
         n = Div(x, s)
         y = Mul(g, n)",
        "s = Sqrt(ve)
         i = Reciprocal(s)
         n = Mul(x, i)
         y = Mul(n, g)",
        "s = Sqrt(ve)
         i = Div(one, s)
         n = Mul(x, i)
         y = Mul(g, n)",
        "i = Pow(ve, minus_half)
         n = Mul(x, i)
         y = Mul(n, g)",
        "s = Sqrt(ve)
         i = Reciprocal(s)
         ig = Mul(i, g)
         y = Mul(x, ig)",
        "s = Sqrt(ve)
         xg = Mul(x, g)
         y = Div(xg, s)",
    ] {
        check(Rms, "g", None, &format!("{mean}\n {end}"));
    }
    check(
        Rms,
        "g",
        Some("b"),
        &format!("{mean}\n s = Sqrt(ve)\n n = Div(x, s)\n ng = Mul(n, g)\n y = Add(ng, b)"),
    );
}

/// Gemma multiplies by 1 + γ; what is folded is the sum.
#[test]
fn gamma_computed_from_constants() {
    let mean = "q = Pow(x, two)
        v = ReduceMean{axes = [-1]}(q)
        ve = Add(v, e)
        s = Sqrt(ve)
        n = Div(x, s)";
    check(
        Rms,
        "g1",
        None,
        &format!("g1 = Add(g, one)\n {mean}\n y = Mul(n, g1)"),
    );
    check(
        Rms,
        "g1",
        None,
        &format!("g1 = Identity(g)\n {mean}\n y = Mul(g1, n)"),
    );
    check(
        Layer,
        "g1",
        Some("b1"),
        "g1 = Add(one, g)
         b1 = Identity(b)
         y = LayerNormalization(x, g1, b1)",
    );
}

/// One γ for two norms: each gets its own.
#[test]
fn shared_parameters() {
    let model = model(
        "in x[2, s, 8]
         const g[8]
         const b[8]
         const w[8, 4]
         y = LayerNormalization(x, g, b)
         y2 = LayerNormalization(y, g, b)
         z = MatMul(y2, w)
         out z
         z2 = MatMul(y, w)
         out z2",
    );
    assert_eq!(found(&model).norms.len(), 2);
    assert_eq!(check_fold(&model, "shared γ, β and W"), 2);
}

#[test]
fn parameters_of_higher_rank() {
    let lines = VARIANCE.to_owned()
        + "
        const g3[1, 1, 8]
        const b2[1, 8]
        n = Div(d, s)
        ng = Mul(n, g3)
        y = Add(ng, b2)";
    check(Layer, "g3", Some("b2"), &lines);
}
