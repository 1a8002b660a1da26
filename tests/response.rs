//! The loss at the response of a block: where the block is found, and that running it agrees with the model.
//!
//! A site whose block was cut out wrongly, or could not be run, falls back to its Linears' outputs, so the loss that
//! the report names says that the cut gave what the whole model gives.

use crate::recognise::text;
use ndarray::{Array2, Array3, ArrayView2};
use ndarray_npy::write_npy;
use onnx_osplus::calibrate::{CalibSource, Dataset, TractEngine};
use onnx_osplus::graph::View;
use onnx_osplus::progress::NoProgress;
use onnx_osplus::recognise::recognise;
use onnx_osplus::site::response;
use onnx_osplus::solve::{
    ActivationSpec, Fold, Method, Response, SiteProblem, SolveSettings, WeightSpec, solve_block,
    solve_site,
};
use onnx_osplus::{Options, run};

const ROWS: usize = 16;
const LENGTH: usize = 6;
const C: usize = 8;

/// Uneven numbers in ±1, channel 3 ten times as large.
fn activations(seed: usize) -> Array3<f32> {
    Array3::from_shape_fn((ROWS, LENGTH, C), |(r, t, c)| {
        let uneven = ((seed + 131 * r + 37 * t + 11 * c * c + 5 * r * t * c) % 101) as f32;
        (uneven / 50.0 - 1.0) * if c == 3 { 10.0 } else { 1.0 }
    })
}

/// "value: loss" of every site after a whole run on the inputs `x` (and `m`) of `[b, 6, 8]`.
fn losses(graph: &str) -> Vec<String> {
    let model = text::model(graph);
    let folder = tempfile::tempdir().unwrap();
    let inputs = model.graph().input.iter().map(|i| i.name().to_owned());
    let sources = inputs.enumerate().map(|(i, name)| {
        let path = folder.path().join(format!("{name}.npy"));
        write_npy(&path, &activations(i)).unwrap();
        let name = Some(name);
        CalibSource { name, path }
    });
    let sources: Vec<_> = sources.collect();
    let data = Dataset::open(&model, &sources, 4).unwrap();
    let options = Options::default();
    let (_, report) = run(&model, &data, &TractEngine, &options, &NoProgress).unwrap();
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    let sites = report.sites.iter();
    sites.map(|s| format!("{}: {}", s.value, s.loss)).collect()
}

/// Attention of the values q, k and v, `[b, 6, 8]` (two heads), into the Linear `o`.
const ATTENTION: &str = "
    ints heads = [0, 0, 2, 4]
    ints merged = [0, 0, 8]
    const root[] = 20
    qh = Reshape(q, heads)
    qt = Transpose{perm = [0, 2, 1, 3]}(qh)
    kh = Reshape(k, heads)
    kt = Transpose{perm = [0, 2, 3, 1]}(kh)
    vh = Reshape(v, heads)
    vt = Transpose{perm = [0, 2, 1, 3]}(vh)
    qk = MatMul(qt, kt)
    scores = Div(qk, root)
    p = Softmax{axis = -1}(scores)
    pv = MatMul(p, vt)
    back = Transpose{perm = [0, 2, 1, 3]}(pv)
    a = Reshape(back, merged)
    const wo[8, 8]
    o = MatMul(a, wo)
    out o
";

const THREE: &str = "
    in x[b, 6, 8]
    const wq[8, 8]
    const bq[8]
    const wk[8, 8]
    const wv[8, 8]
    pq = MatMul(x, wq)
    q = Add(pq, bq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
";

#[test]
fn queries_keys_and_values_are_scored_at_the_output_of_attention() {
    let graph = format!("{THREE}{ATTENTION}");
    assert_eq!(losses(&graph), ["x: attention output", "a: linear outputs"]);
    let model = text::model(&graph);
    let (view, found) = (View::new(&model), recognise(&View::new(&model)));
    let response = response(&view, &found, &[0usize, 1, 2].map(Into::into)).unwrap();
    let names = |values: &[_]| values.iter().map(|v| view.name(*v)).collect::<Vec<_>>();
    // From the products to the next Linear's input: the bias is inside, no Linear is.
    assert_eq!(names(&response.cuts), ["pq", "k", "v"]);
    assert_eq!(names(&response.outputs), ["a"]);
    assert!(response.sides.is_empty() && response.inputs.is_empty());
    assert!(response.nodes.iter().any(|n| view.node(*n).output == ["q"]));
    assert!(
        response
            .nodes
            .iter()
            .all(|n| found.linears.iter().all(|l| l.node != *n))
    );
}

#[test]
fn a_fused_qkv_is_seen_through_its_split() {
    let graph = format!(
        "in x[b, 6, 8]
         const w[8, 24]
         qkv = MatMul(x, w)
         ints parts = [8, 8, 8]
         q, k, v = Split{{axis = -1}}(qkv, parts)
         {ATTENTION}"
    );
    assert_eq!(losses(&graph), ["x: attention output", "a: linear outputs"]);
}

#[test]
fn grouped_heads_and_positions_are_run_as_they_are() {
    // One head of keys and values for two of queries; x also says how long the sequence is.
    let graph = "
        in x[b, 6, 8]
        const wq[8, 8]
        const wk[8, 4]
        const wv[8, 4]
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        dims = Shape(x)
        ints zero = [0]
        ints two = [2]
        shape = Slice(dims, zero, two, zero)
        ints rest = [2, 4]
        ints one = [1, 4]
        heads = Concat{axis = 0}(shape, rest)
        single = Concat{axis = 0}(shape, one)
        const root[] = 20
        const rotary[1, 6, 1, 4]
        qh = Reshape(q, heads)
        qr = Mul(qh, rotary)
        qt = Transpose{perm = [0, 2, 1, 3]}(qr)
        kh = Reshape(k, single)
        kr = Mul(kh, rotary)
        kt = Transpose{perm = [0, 2, 3, 1]}(kr)
        vh = Reshape(v, single)
        vt = Transpose{perm = [0, 2, 1, 3]}(vh)
        qk = MatMul(qt, kt)
        scores = Div(qk, root)
        p = Softmax{axis = -1}(scores)
        pv = MatMul(p, vt)
        back = Transpose{perm = [0, 2, 1, 3]}(pv)
        ints merged = [0, 0, 8]
        a = Reshape(back, merged)
        const wo[8, 8]
        o = MatMul(a, wo)
        out o";
    assert_eq!(losses(graph), ["x: attention output", "a: linear outputs"]);
}

#[test]
fn in_cross_attention_queries_alone_have_a_response_and_so_have_keys_and_values() {
    let graph = format!(
        "in x[b, 6, 8]
         in m[b, 6, 8]
         const wq[8, 8]
         const wk[8, 8]
         const wv[8, 8]
         q = MatMul(x, wq)
         k = MatMul(m, wk)
         v = MatMul(m, wv)
         {ATTENTION}"
    );
    let expected = [
        "x: attention output",
        "m: attention output",
        "a: linear outputs",
    ];
    assert_eq!(losses(&graph), expected);
    let model = text::model(&graph);
    let (view, found) = (View::new(&model), recognise(&View::new(&model)));
    let queries = response(&view, &found, &[0usize.into()]).unwrap();
    let sides: Vec<_> = queries.sides.iter().map(|v| view.name(*v)).collect();
    assert_eq!(sides, ["k", "v"]);
}

#[test]
fn an_ffn_beside_attention_joins_it() {
    let graph = format!(
        "{THREE}{ATTENTION}
         const w1[8, 12]
         h = MatMul(x, w1)
         r = Relu(h)
         const w2[12, 8]
         y = MatMul(r, w2)
         out y"
    );
    let expected = [
        "x: attention output",
        "a: linear outputs",
        "r: linear outputs",
    ];
    assert_eq!(losses(&graph), expected);
}

#[test]
fn a_gated_ffn_is_scored_at_the_input_of_its_down_projection() {
    let two = "
        in x[b, 6, 8]
        const wg[8, 12]
        const wu[8, 12]
        gate = MatMul(x, wg)
        up = MatMul(x, wu)";
    let fused = "
        in x[b, 6, 8]
        const w[8, 24]
        both = MatMul(x, w)
        ints halves = [12, 12]
        gate, up = Split{axis = -1}(both, halves)";
    let sliced = "
        in x[b, 6, 8]
        const w[8, 24]
        both = MatMul(x, w)
        ints zero = [0]
        ints half = [12]
        ints all = [24]
        ints last = [2]
        gate = Slice(both, zero, half, last)
        up = Slice(both, half, all, last)";
    for start in [two, fused, sliced] {
        for (order, shared) in [("s, up", "gate"), ("up, s", "gate"), ("s, gate", "up")] {
            let graph = format!(
                "{start}
                 act = Sigmoid({shared})
                 s = Mul({shared}, act)
                 h = Mul({order})
                 const wd[12, 8]
                 y = MatMul(h, wd)
                 out y"
            );
            assert_eq!(
                losses(&graph),
                ["x: gated FFN", "h: linear outputs"],
                "{graph}"
            );
        }
    }
}

#[test]
fn an_activation_that_multiplies_by_itself_is_no_gate() {
    let graph = "
        in x[b, 6, 8]
        const w[8, 12]
        h = MatMul(x, w)
        const root[] = 1.414
        const one[] = 1
        d = Div(h, root)
        e = Erf(d)
        f = Add(e, one)
        g = Mul(h, f)
        const w2[12, 8]
        y = MatMul(g, w2)
        out y";
    assert_eq!(losses(graph), ["x: linear outputs", "g: linear outputs"]);
}

#[test]
fn without_a_linear_behind_it_there_is_no_response() {
    let cases = [
        (
            "p = Softmax{axis = -1}(h)\n out p",
            "not all of its Linears feed another Linear",
        ),
        (
            "const w2[12, 8]\n y = MatMul(h, w2)\n out y",
            "what follows is neither attention nor a gated FFN",
        ),
        (
            "s = Shape(h)\n z = ConstantOfShape(s)\n const w2[12, 8]\n y = MatMul(z, w2)\n out y",
            "not all of its Linears feed another Linear",
        ),
    ];
    for (end, reason) in cases {
        let text = format!("in x[b, 6, 8]\n const w[8, 12]\n h = MatMul(x, w)\n {end}");
        let model = text::model(&text);
        let (view, found) = (View::new(&model), recognise(&View::new(&model)));
        assert_eq!(
            response(&view, &found, &[0usize.into()]),
            Err(reason.to_owned()),
            "{end}"
        );
    }
}

/// A block made of one function.
struct Mock<F> {
    x: Array2<f32>,
    halves: Vec<Option<usize>>,
    loss: F,
}

impl<F: Fn(&[Array2<f32>]) -> Option<f64> + Sync> Response for Mock<F> {
    fn energy(&self) -> f64 {
        1.0
    }

    fn x(&self) -> ArrayView2<'_, f32> {
        self.x.view()
    }

    fn halves(&self) -> &[Option<usize>] {
        &self.halves
    }

    fn loss(&self, products: Vec<Array2<f32>>) -> Option<f64> {
        (self.loss)(&products)
    }
}

#[test]
fn the_solver_believes_the_response_and_does_without_one_that_fails() {
    let tokens = ROWS * LENGTH;
    let x = activations(0).into_shape_with_order((tokens, C)).unwrap();
    let w = Array2::from_shape_fn((C, 4), |(c, n)| ((3 * c + 5 * n) % 7) as f32 / 7.0 - 0.4);
    let half = |h: usize| {
        let rows: Vec<usize> = (0..tokens).filter(|t| t % 2 == h).collect();
        x.select(ndarray::Axis(0), &rows)
    };
    let samples = [half(0), half(1)];
    let extreme = |s: &Array2<f32>, f: fn(f32, f32) -> f32| -> Vec<f32> {
        let columns = s.columns().into_iter();
        columns
            .map(|c| c.iter().copied().reduce(f).unwrap())
            .collect()
    };
    let ends: Vec<_> = samples
        .iter()
        .map(|s| (extreme(s, f32::min), extreme(s, f32::max)))
        .collect();
    let fold = |i: usize| Fold {
        min: &ends[i].0,
        max: &ends[i].1,
        sample: samples[i].view(),
        weights: None,
    };
    let problem = SiteProblem {
        folds: [fold(0), fold(1)],
        weights: vec![w.view()],
        allow_shift: true,
        allow_scale: true,
        correct_bias: false,
        ties: None,
    };
    let settings = SolveSettings {
        activation: ActivationSpec::per_tensor(8, false),
        weight: WeightSpec::per_channel(8),
        method: Method::OsPlus,
    };
    // The last token is padding, and huge: it stays as the float model has it.
    let mut tokens_of_block = x.clone();
    tokens_of_block.row_mut(tokens - 1).fill(1e6);
    let mut halves: Vec<_> = (0..tokens).map(|t| Some(t % 2)).collect();
    halves[tokens - 1] = None;
    let float = tokens_of_block.dot(&w);
    let error = |products: &[Array2<f32>]| -> f64 {
        let e = &products[0] - &float;
        assert_eq!(e.row(tokens - 1).iter().map(|e| e.abs()).sum::<f32>(), 0.0);
        e.iter().map(|&e| f64::from(e) * f64::from(e)).sum()
    };
    fn solved<F: Fn(&[Array2<f32>]) -> Option<f64> + Sync>(
        (problem, settings): (&SiteProblem, &SolveSettings),
        (x, halves): (&Array2<f32>, &[Option<usize>]),
        loss: F,
    ) -> onnx_osplus::solve::Solution {
        let mock = Mock {
            x: x.clone(),
            halves: halves.to_vec(),
            loss,
        };
        solve_block(problem, settings, Some(&mock))
    }
    let (what, on) = ((&problem, &settings), (&tokens_of_block, halves.as_slice()));

    let plain = solve_site(&problem, &settings);
    let same = solved(what, on, |p| Some(error(p)));
    assert!(same.at_response && !plain.at_response);
    assert!(
        same.scale.is_some() && same.validated_gain_db > 3.0,
        "{}",
        same.validated_gain_db
    );
    // A response to which nothing matters: doing nothing wins.
    let deaf = solved(what, on, |_| Some(1.0));
    assert_eq!((deaf.scale, deaf.shift, deaf.margin), (None, None, 1.0));
    // One that gets worse with everything but doing nothing.
    let plain_error = std::sync::OnceLock::new();
    let wary = solved(what, on, |p| {
        Some(if *plain_error.get_or_init(|| error(p)) == error(p) {
            1.0
        } else {
            2.0
        })
    });
    assert_eq!((wary.scale, wary.shift), (None, None));
    assert_eq!(solved(what, on, |_| None), plain);
    assert_eq!(solved(what, on, |_| Some(f64::NAN)), plain);
}
