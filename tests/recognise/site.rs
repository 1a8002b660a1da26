//! Sites behind norms: which readers take the affine, which need the value as it was, and what is only passed on.

use onnx_osplus::graph::View;
use onnx_osplus::onnx::Model;
use onnx_osplus::site::{Site, find_sites};

use super::form::{check_fold, found};
use super::text::model;

fn sites(model: &Model) -> Vec<Site> {
    find_sites(&View::new(model), &found(model), &Default::default(), false)
}

fn after_norm(lines: &str) -> Model {
    model(&format!(
        "in x[2, 3, 8]\n const g[8]\n const b[8]\n const w[8, 4]\n const c[4]
         y = LayerNormalization(x, g, b)\n {lines}"
    ))
}

/// GPT-2: rows of all sequences in one Gemm, the target shape made from the value's own.
#[test]
fn reshape_before_a_gemm() {
    for target in [
        "ints to = [-1, 8]",
        "sh = Shape(y)\n ints at = [2]\n l = Gather(sh, at)\n ints m = [-1]\n to = Concat{axis = 0}(m, l)",
    ] {
        let model = after_norm(&format!(
            "{target}\n f = Reshape(y, to)\n z = Gemm(f, w, c)\n out z"
        ));
        let sites = sites(&model);
        assert_eq!(sites.len(), 1, "{target}");
        assert!(
            sites[0].has_sink() && sites[0].allow_shift && !sites[0].restore,
            "{target}"
        );
        assert_eq!(check_fold(&model, target), 1);
    }
    let model = after_norm("f = Flatten{axis = 2}(y)\n z = Gemm(f, w, c)\n out z");
    assert_eq!(sites(&model)[0].ranks, [Some(2)]);
    assert_eq!(check_fold(&model, "Flatten"), 1);
}

/// MatMul + Add is written in another form for rank 2, so the rank behind the Reshape must be known.
#[test]
fn rank_behind_a_reshape() {
    let end = "f = Reshape(y, to)\n p = MatMul(f, w)\n z = Add(p, c)\n out z";
    let unsqueezed = "sh = Shape(y)\n ints two = [2]\n ints zero = [0]\n l = Gather(sh, two)
        n = Squeeze(l, zero)\n u = Unsqueeze(n, zero)\n ints m = [-1]\n to = Concat{axis = 0}(m, u)";
    for (target, rank) in [
        ("ints to = [-1, 8]", 2),
        ("ints to = [3, 1, -1, 8]", 4),
        (unsqueezed, 2),
    ] {
        let model = after_norm(&format!("{target}\n {end}"));
        assert_eq!(sites(&model)[0].ranks, [Some(rank)], "{target}");
        assert_eq!(check_fold(&model, target), 1);
    }
    // Of unknown length: the Linear is left to its own site.
    let unknown = after_norm(&format!("sh = Shape(x)\n to = Neg(sh)\n {end}"));
    assert!(!sites(&unknown)[0].has_sink());
}

/// A Reshape that mixes channels and rows keeps its reader away from the norm.
#[test]
fn reshape_of_the_channels() {
    let model = after_norm(
        "ints to = [2, 3, 2, 4]\n f = Reshape(y, to)\n const v[4, 4]\n z = MatMul(f, v)\n out z",
    );
    let sites = sites(&model);
    assert_eq!(sites.len(), 1);
    assert!(!sites[0].has_sink());
}

/// Others read behind the Reshape too: its Linear cannot read x' through it.
#[test]
fn reshape_with_other_readers() {
    let model = after_norm(
        "ints to = [-1, 8]\n f = Reshape(y, to)\n z = Gemm(f, w, c)\n out z\n o = Neg(f)\n out o
         z2 = MatMul(y, w)\n out z2",
    );
    // The Linear behind the Reshape gets a copy of it, and Neg the exact inverse.
    let sites = sites(&model);
    assert_eq!(sites.len(), 1);
    assert!(sites[0].restore && sites[0].has_sink());
    assert_eq!(sites[0].linears.len(), 2);
    assert_eq!(check_fold(&model, "readers behind a Reshape"), 1);
}

/// Shape does not look at the numbers.
#[test]
fn shape_needs_no_restoring() {
    let model = after_norm(
        "sh = Shape(y)\n z = MatMul(y, w)\n zr = Reshape(z, to)\n ints to = [-1]\n out zr\n i = Identity(y)\n sh2 = Shape(i)\n shs = Add(sh, sh2)\n f = Cast{to = 1}(shs)\n out f",
    );
    let site = &sites(&model)[0];
    assert!(site.has_sink() && !site.restore);
    assert_eq!(check_fold(&model, "Shape"), 1);
}

/// A caller reads the norm's own output, which must stay as it is.
#[test]
fn graph_output_is_refused() {
    let model = after_norm("z = MatMul(y, w)\n out z\n out y");
    let sites = sites(&model);
    assert!(!sites[0].has_sink());
}
