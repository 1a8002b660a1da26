//! What the engine runs and what it refuses.

use std::collections::BTreeMap;

use ndarray::array;

use super::*;
use crate::calibrate::PaddingMask;
use crate::calibrate::judged;
use crate::calibrate::measure::compare::{Reference, compare_few, compare_with, compare_within};
use crate::calibrate::{
    EngineError, OutputComparison, RowError, StatOptions, TractEngine, compare, outputs, statistics,
};
use crate::onnx::node::{float_attr, graph_attr, int_attr, make_node, tensor_attr};
use crate::onnx::op;
use crate::onnx::tensor;
use crate::progress::NoProgress;

pub(super) fn run(
    model: &Model,
    batch: Batch,
) -> Result<BTreeMap<String, ArrayD<f32>>, EngineError> {
    let outputs = outputs(&TractEngine, model, &[batch], 1, &NoProgress)?;
    Ok(outputs.batches.into_iter().next().unwrap())
}

fn error<T: std::fmt::Debug>(result: Result<T, EngineError>) -> String {
    result.unwrap_err().to_string()
}

pub(super) fn ids_batch(ids: ndarray::Array2<i64>) -> Batch {
    let rows = (0..ids.nrows() as u64).collect();
    let tensor = InputTensor::from_values(Values::I64(ids.into_dyn()));
    Batch::new([("ids".to_owned(), tensor)].into(), rows)
}

fn tap(model: &Model, batch: Batch, name: &str) -> Result<(), EngineError> {
    let options = StatOptions {
        channels_first: Default::default(),
        extremes_only: Default::default(),
        sizes_only: Default::default(),
        sample_tokens: 4,
        seed: 0,
        threads: 1,
    };
    statistics(
        &TractEngine,
        model,
        &[batch],
        &[name.into()],
        &options,
        &NoProgress,
    )
    .map(|_| ())
}

pub(super) fn embedding() -> Model {
    model(
        17,
        vec![info("ids", DataType::Int64, &["b", "s"])],
        vec![
            make_node(op::Cast, "cast", &["ids"], &["i"], vec![int_attr("to", 6)]),
            make_node(op::Gather, "gather", &["table", "i"], &["y"], vec![]),
        ],
        vec![tensor::from_f32(
            "table",
            &[3, 2],
            &[0., 1., 2., 3., 4., 5.],
            DataType::Float,
        )],
        &["y"],
    )
}

#[test]
fn an_id_outside_the_vocabulary_is_named() {
    let y = run(&embedding(), ids_batch(array![[2, 0]])).unwrap();
    assert_eq!(y["y"], array![[[4., 5.], [0., 1.]]].into_dyn());
    insta::assert_snapshot!(error(run(&embedding(), ids_batch(array![[0, 1], [1, 3]]))), @"ids holds 3 at row 1, but table (node gather) has only 3 rows: is the calibration data made for another vocabulary or length?");
}

#[test]
fn int64_cumsum_runs() {
    let model = model(
        17,
        vec![info("ids", DataType::Int64, &["b", "s"])],
        vec![
            make_node(op::CumSum, "sum", &["ids", "axis"], &["c"], vec![]),
            make_node(op::Sub, "sub", &["c", "one"], &["d"], vec![]),
            make_node(op::Gather, "gather", &["table", "d"], &["y"], vec![]),
        ],
        vec![
            tensor::from_i64("axis", &[], &[1]),
            tensor::from_i64("one", &[], &[1]),
            tensor::from_f32("table", &[3, 1], &[10., 20., 30.], DataType::Float),
        ],
        &["y"],
    );
    let y = run(&model, ids_batch(array![[1, 1, 1], [1, 0, 1]])).unwrap();
    assert_eq!(
        y["y"],
        array![[[10.], [20.], [30.]], [[10.], [10.], [20.]]].into_dyn()
    );
}

/// A query sees the keys whose mask is true: with a causal mask the first one sees itself alone.
#[test]
fn attention_with_a_boolean_mask() {
    let causal = tensor::from_f32("visible", &[2, 2], &[1., 0., 1., 1.], DataType::Float);
    let bool_type = vec![int_attr("to", DataType::Bool as i64)];
    let nodes = vec![
        make_node(op::Cast, "cast", &["visible"], &["m"], bool_type),
        make_node(op::Identity, "pass", &["m"], &["mask"], vec![]),
        make_node(
            op::Attention,
            "masked",
            &["x", "x", "x", "mask"],
            &["y"],
            vec![],
        ),
        make_node(op::Attention, "free", &["x", "x", "x"], &["z"], vec![]),
    ];
    let x = info("x", DataType::Float, &["b", "1", "2", "4"]);
    let model = model(23, vec![x], nodes, vec![causal], &["y", "z"]);
    let x = wave(&[3, 1, 2, 4]);
    let out = run(&model, f32_batch("x", x.clone(), 0)).unwrap();
    let position = |a: &ArrayD<f32>, s: usize| a.index_axis(ndarray::Axis(2), s).to_owned();
    assert_eq!(position(&out["y"], 0), position(&x, 0));
    assert_ne!(position(&out["z"], 0), position(&x, 0));
    let difference = position(&out["y"], 1) - position(&out["z"], 1);
    assert!(difference.iter().all(|d| d.abs() < 1e-6), "{difference}");
}

#[test]
fn dropout_in_training_mode_is_the_identity() {
    let mut with_dropout = model(
        17,
        vec![info("x", DataType::Float, &["b", "2"])],
        vec![make_node(
            op::Dropout,
            "drop",
            &["x", "ratio", "training"],
            &["d", "mask"],
            vec![],
        )],
        vec![
            tensor::from_f32("ratio", &[], &[0.5], DataType::Float),
            TensorProto {
                name: Some("training".into()),
                data_type: Some(DataType::Bool as i32),
                int32_data: vec![1],
                ..Default::default()
            },
        ],
        &["d"],
    );
    let x = wave(&[2, 2]);
    let y = run(&with_dropout, f32_batch("x", x.clone(), 0)).unwrap();
    assert_eq!(y["d"], x);

    let graph = with_dropout.graph_mut();
    let cast = make_node(op::Cast, "cast", &["mask"], &["m"], vec![int_attr("to", 1)]);
    graph.node.push(cast);
    graph.output.push(info("m", DataType::Float, &[]));
    insta::assert_snapshot!(error(run(&with_dropout, f32_batch("x", x, 0))), @"calibration cannot run node drop (Dropout): its mask output is used");
}

#[test]
fn operators_of_another_domain_are_refused_by_name() {
    let mut attention = make_node(op::Attention, "att", &["x", "w"], &["a"], vec![]);
    attention.domain = Some("org.example".into());
    let mut second = attention.clone();
    second.output = vec!["a2".into()];
    let inner = GraphProto {
        node: vec![make_node("FusedThing", "", &["x"], &["i"], vec![])],
        output: vec![info("i", DataType::Float, &[])],
        ..Default::default()
    };
    let model = model(
        17,
        vec![
            info("x", DataType::Float, &["b", "2"]),
            info("c", DataType::Bool, &["1"]),
        ],
        vec![
            attention,
            second,
            make_node(
                op::If,
                "if",
                &["c"],
                &["y"],
                vec![
                    graph_attr("then_branch", inner.clone()),
                    graph_attr("else_branch", inner),
                ],
            ),
        ],
        vec![tensor::from_f32("w", &[2], &[1., 1.], DataType::Float)],
        &["y"],
    );
    let mut batch = f32_batch("x", wave(&[1, 2]), 0);
    let condition = InputTensor::from_values(Values::Bool(array![true].into_dyn()));
    batch.inputs.insert("c".into(), condition);
    insta::assert_snapshot!(error(run(&model, batch)), @"calibration cannot run some operators of this model: FusedThing (node i), org.example.Attention (node att)");
}

#[test]
fn nodes_may_share_a_name() {
    let node = |op: &str, x: &str, y: &str| make_node(op, "n", &[x], &[y], vec![]);
    let model = model(
        17,
        vec![info("x", DataType::Float, &["b", "2"])],
        vec![
            node(op::Neg, "x", "a"),
            node(op::Relu, "a", "b"),
            node(op::Neg, "b", "y"),
        ],
        vec![],
        &["y"],
    );
    let y = run(&model, f32_batch("x", array![[-1f32, 2.]].into_dyn(), 0)).unwrap();
    assert_eq!(y["y"], array![[-1f32, 0.]].into_dyn());
}

#[test]
fn a_norm_of_one_number_is_refused() {
    let float = |name: &str, shape: &[usize]| {
        tensor::from_f32(name, shape, &[1.0, 1.0][..shape.len() + 1], DataType::Float)
    };
    let norm = make_node(op::LayerNormalization, "norm", &["c", "g"], &["n"], vec![]);
    let model = model(
        17,
        vec![info("x", DataType::Float, &["b", "2"])],
        vec![norm, make_node(op::Add, "add", &["x", "n"], &["y"], vec![])],
        vec![float("c", &[]), float("g", &[2])],
        &["y"],
    );
    let error = error(run(&model, f32_batch("x", wave(&[1, 2]), 0)));
    assert!(
        error.contains("norm") && error.contains("without an axis"),
        "{error}"
    );
}

#[test]
fn operators_of_many_inputs_are_those_of_few() {
    let x = wave(&[2, 3]);
    let cases = [
        (op::Sum, x.mapv(|v| 37.0 * v)),
        (op::Max, x.mapv(f32::abs)),
        (op::Min, x.mapv(|v| -v.abs())),
    ];
    for (op, expected) in cases {
        let inputs = [vec!["x"; 40], vec!["n"; 3]].concat();
        let nodes = vec![
            make_node(op::Neg, "neg", &["x"], &["n"], vec![]),
            make_node(op, "many", &inputs, &["y"], vec![]),
        ];
        let input = info("x", DataType::Float, &["B", "3"]);
        let model = model(17, vec![input], nodes, vec![], &["y"]);
        let found = run(&model, f32_batch("x", x.clone(), 0)).unwrap();
        let worst = (&found["y"] - &expected).mapv(f32::abs);
        assert!(worst.iter().all(|v| *v < 1e-4), "{op}: {worst}");
    }
}

#[test]
fn scales_that_do_not_fit_their_input_are_refused() {
    let refused = |count: usize| {
        let scales = tensor::from_f32("s", &[count], &vec![1.0; count], DataType::Float);
        let nodes = vec![
            make_node(op::QuantizeLinear, "quant", &["x", "s"], &["q"], vec![]),
            make_node(op::DequantizeLinear, "dequant", &["q", "s"], &["y"], vec![]),
        ];
        let input = info("x", DataType::Float, &["B", "3"]);
        let model = model(17, vec![input], nodes, vec![scales], &["y"]);
        run(&model, f32_batch("x", wave(&[2, 3]), 0)).err()
    };
    let told = |count| refused(count).map_or(String::new(), |error| error.to_string());
    assert!(told(0).contains("quant (QuantizeLinear): its scale has the shape [0]"));
    assert!(told(2).contains("quant (QuantizeLinear): it has 2 scales along axis 1"));
    assert_eq!([told(1), told(3)], ["", ""]);
}

#[test]
fn nodes_may_be_called_as_values_that_they_do_not_make() {
    let constant = tensor::from_f32("", &[2], &[3., 4.], DataType::Float);
    let model = model(
        17,
        vec![info("x", DataType::Float, &["b", "2"])],
        vec![
            make_node(
                op::Constant,
                "w",
                &[],
                &["k"],
                vec![tensor_attr("value", constant)],
            ),
            make_node(op::Mul, "x", &["x", "w"], &["a"], vec![]),
            make_node(op::Add, "w", &["a", "k"], &["b"], vec![]),
            make_node(op::Relu, "", &["b"], &["r"], vec![]),
            make_node(op::Neg, "r", &["r"], &["n"], vec![]),
            make_node(op::Neg, "k", &["n"], &["y"], vec![]),
        ],
        vec![tensor::from_f32("w", &[2], &[2., 3.], DataType::Float)],
        &["y"],
    );
    let y = run(&model, f32_batch("x", array![[-2f32, 2.]].into_dyn(), 0)).unwrap();
    assert_eq!(y["y"], array![[0f32, 10.]].into_dyn());
}

#[test]
fn float16_models_run_in_float32() {
    let half = |name: &str, shape: &[usize], data: &[f32]| {
        tensor::from_f32(name, shape, data, DataType::Float16)
    };
    let model = model(
        17,
        vec![info("x", DataType::Float16, &["b", "2"])],
        vec![
            make_node(op::MatMul, "mm", &["x", "w"], &["h"], vec![]),
            make_node(
                op::Constant,
                "k",
                &[],
                &["two"],
                vec![tensor_attr("value", half("", &[], &[2.]))],
            ),
            make_node(op::Mul, "mul", &["h", "two"], &["m"], vec![]),
            make_node(
                op::Cast,
                "down",
                &["m"],
                &["d"],
                vec![int_attr("to", DataType::Double as i64)],
            ),
            make_node(
                op::Cast,
                "up",
                &["d"],
                &["y"],
                vec![int_attr("to", DataType::Bfloat16 as i64)],
            ),
        ],
        vec![half("w", &[2, 2], &[1., 2., 3., 4.])],
        &["y"],
    );
    let y = run(&model, f32_batch("x", array![[1f32, 10.]].into_dyn(), 0)).unwrap();
    assert_eq!(y["y"], array![[62f32, 84.]].into_dyn());
}

#[test]
fn subgraphs_read_constants_of_the_main_graph() {
    let branch = |op: &str| GraphProto {
        node: vec![make_node(op, op, &["x", "w"], &["z"], vec![])],
        output: vec![info("z", DataType::Float, &[])],
        ..Default::default()
    };
    let model = model(
        17,
        vec![
            info("x", DataType::Float, &["b", "2"]),
            info("use_cache_branch", DataType::Bool, &["1"]),
        ],
        vec![make_node(
            op::If,
            "if",
            &["use_cache_branch"],
            &["y"],
            vec![
                graph_attr("then_branch", branch(op::Add)),
                graph_attr("else_branch", branch(op::Mul)),
            ],
        )],
        vec![tensor::from_f32("w", &[2], &[10., 100.], DataType::Float)],
        &["y"],
    );
    let mut batch = f32_batch("x", array![[2f32, 3.]].into_dyn(), 0);
    let condition = InputTensor::from_values(Values::Bool(array![false].into_dyn()));
    batch.inputs.insert("use_cache_branch".into(), condition);
    let y = run(&model, batch).unwrap();
    assert_eq!(y["y"], array![[20f32, 300.]].into_dyn());
}

/// x: [b, 3] → Q/DQ of `zero` type → MatMul with an int8 weight behind DequantizeLinear on axis 1.
pub(super) fn qdq(opset: i64, zero: TensorProto) -> Model {
    model(
        opset,
        vec![info("x", DataType::Float, &["b", "3"])],
        vec![
            make_node(op::QuantizeLinear, "q", &["x", "s", "z"], &["xq"], vec![]),
            make_node(
                op::DequantizeLinear,
                "dq",
                &["xq", "s", "z"],
                &["xd"],
                vec![],
            ),
            make_node(
                op::DequantizeLinear,
                "wdq",
                &["w", "ws", "wz"],
                &["wd"],
                vec![int_attr("axis", 1)],
            ),
            make_node(op::MatMul, "mm", &["xd", "wd"], &["m"], vec![]),
            make_node(op::Add, "add", &["m", "bias"], &["y"], vec![]),
        ],
        vec![
            tensor::from_f32("s", &[], &[0.5], DataType::Float),
            zero,
            tensor::from_i8("w", &[3, 2], &[1, -2, 3, -4, 5, -128]),
            tensor::from_f32("ws", &[2], &[0.5, 2.0], DataType::Float),
            tensor::from_i8("wz", &[2], &[0, 0]),
            tensor::from_f32("bias", &[1, 2], &[1., -1.], DataType::Float),
        ],
        &["y"],
    )
}

#[test]
fn quantized_graphs_run_exactly() {
    let x = array![[0.74f32, -0.75, 1.25], [100., -100., 0.25]];
    let w = array![[0.5f32, -4.], [1.5, -8.], [2.5, -256.]];
    let bias = array![[1f32, -1.]];
    // round half to even, then saturate: 0.75 / 0.5 = 1.5 → 2, 1.25 / 0.5 = 2.5 → 2, 0.25 / 0.5 = 0.5 → 0
    let cases = [
        (
            tensor::from_i8("z", &[], &[0]),
            array![[0.5f32, -1., 1.], [63.5, -64., 0.]],
        ),
        (
            tensor::from_u8("z", &[], &[100]),
            array![[0.5f32, -1., 1.], [77.5, -50., 0.]],
        ),
    ];
    for opset in [13, 19, 21] {
        for (zero, rounded) in &cases {
            let model = qdq(opset, zero.clone());
            let y = run(&model, f32_batch("x", x.clone().into_dyn(), 0)).unwrap();
            let expected = rounded.dot(&w) + &bias;
            assert_eq!(y["y"], expected.into_dyn(), "opset {opset}");
        }
    }
}

#[test]
fn taps_need_a_float_value_that_exists() {
    let batch = || ids_batch(array![[0, 1]]);
    insta::assert_snapshot!(error(tap(&embedding(), batch(), "nothing")), @"the model has no value named nothing");
    insta::assert_snapshot!(error(tap(&embedding(), batch(), "ids")), @"value ids is int64; statistics need float32");
    insta::assert_snapshot!(error(tap(&embedding(), batch(), "i")), @"value i is int32; statistics need float32");
}

#[test]
fn data_that_the_plan_cannot_take_are_errors() {
    let model = qdq(13, tensor::from_i8("z", &[], &[0]));
    insta::assert_snapshot!(error(run(&model, ids_batch(array![[1]]))), @"the batch gives no data for model input x");
    let wrong = f32_batch("x", wave(&[2, 4]), 0);
    let text = error(run(&model, wrong));
    assert!(
        text.starts_with("the engine cannot prepare the model for inputs x [2, 4]: "),
        "{text}"
    );
    assert!(text.contains("mm"), "names the node: {text}");
}

#[test]
fn a_node_without_a_type_is_an_error_and_not_a_panic() {
    let mut broken = qdq(13, tensor::from_i8("z", &[], &[0]));
    broken.graph_mut().node[3].input[1] = "missing".into();
    insta::assert_snapshot!(error(run(&broken, f32_batch("x", wave(&[1, 3]), 0))), @"the model has no value named missing");
}

/// x + bias, with two more outputs: an integer one and a constant one.
pub(super) fn shifted(bias: f32) -> Model {
    shifted_tokens(bias, "2")
}

fn shifted_tokens(bias: f32, channels: &str) -> Model {
    model(
        17,
        vec![info("x", DataType::Float, &["b", "s", channels])],
        vec![
            make_node(op::Add, "add", &["x", "bias"], &["y"], vec![]),
            make_node(op::Shape, "shape", &["x"], &["n"], vec![]),
        ],
        vec![tensor::from_f32("bias", &[], &[bias], DataType::Float)],
        &["y", "n"],
    )
}

#[test]
fn integer_outputs_are_skipped_and_listed() {
    let x = f32_batch("x", wave(&[1, 2, 2]), 0);
    let outputs = outputs(&TractEngine, &shifted(0.), &[x], 1, &NoProgress).unwrap();
    assert_eq!(outputs.skipped, ["n"]);
    assert_eq!(outputs.batches[0].len(), 1);
}

#[test]
fn comparison_measures_real_tokens_only() {
    // Two batches of different length; the padded token would change every number.
    let first = array![[[1f32, 2.], [3., 4.]], [[5., 6.], [900., 900.]]];
    let mut a = f32_batch("x", first.into_dyn(), 0);
    a.masks = vec![PaddingMask::new(
        "mask",
        array![[true, true], [true, false]],
    )];
    let b = f32_batch("x", array![[[-1f32, 0.]]].into_dyn(), 2);
    let same = shifted(0.);
    let other = shifted(0.5);
    let all = compare(
        &TractEngine,
        &same,
        &[&same, &other],
        &[a, b],
        2,
        &NoProgress,
    )
    .unwrap();
    // The shape is an integer output: the same in both, and nothing to judge by beside a float one.
    let shape = &all[1][1];
    assert_eq!((&shape.name[..], shape.agreement), ("n", Some((6, 6))));
    let result: Vec<_> = all.into_iter().map(judged).collect();
    assert_eq!(
        result[0],
        [OutputComparison {
            name: "y".into(),
            sqnr_db: f64::INFINITY,
            cosine: 1.0,
            max_abs_error: 0.0,
            max_relative_error: 0.0,
            range: (-1., 6.),
            elements: 8,
            filled: 0,
            agreement: None,
            top1: (4, 4),
            token_sqnr_db: None,
            rows: vec![
                RowError {
                    row: 0,
                    reference: 30.0,
                    error: 0.0,
                    tokens: (0, 0.0),
                },
                RowError {
                    row: 1,
                    reference: 61.0,
                    error: 0.0,
                    tokens: (0, 0.0),
                },
                RowError {
                    row: 2,
                    reference: 1.0,
                    error: 0.0,
                    tokens: (0, 0.0),
                },
            ],
            logarithms: None,
        }]
    );
    // Σ r² = 92, Σ r = 20, 8 elements, error 0.5 each.
    let found = &result[1][0];
    assert!((found.sqnr_db - 10. * (92f64 / 2.).log10()).abs() < 1e-12);
    assert!((found.cosine - (92. + 10.) / (92f64 * (92. + 20. + 2.)).sqrt()).abs() < 1e-12);
    assert_eq!(found.max_abs_error, 0.5);
    assert!((found.max_relative_error - 0.5 / 7.).abs() < 1e-12);
}

/// x and x + 0.5 over tokens of eight channels: 100 in one of them, 1 in the others.
#[test]
fn tokens_have_an_sqnr_of_their_own() {
    let mut x = ndarray::Array3::<f32>::ones((2, 3, 8));
    x.slice_mut(ndarray::s![0, 1, ..]).fill(100.0);
    x.slice_mut(ndarray::s![1, 2, ..]).fill(0.0);
    let batch = f32_batch("x", x.into_dyn(), 0);
    let [same, other] = [0.0, 0.5].map(|bias| shifted_tokens(bias, "8"));
    let compared = |models: &[&Model]| {
        compare(
            &TractEngine,
            &same,
            models,
            std::slice::from_ref(&batch),
            1,
            &NoProgress,
        )
        .unwrap()
    };
    let found = &compared(&[&same, &other])[..];
    // The token that is 0 in both is none: five of six, and no difference counts as 60 dB.
    assert_eq!(found[0][0].token_sqnr_db, Some(60.0));
    let db = |ratio: f64| 20.0 * ratio.log10();
    // 0 against 0.5 is - 60 dB.
    let mean = (4.0 * db(2.0) + db(200.0) - 60.0) / 6.0;
    let own = found[1][0].token_sqnr_db.unwrap();
    assert!((own - mean).abs() < 1e-9, "{own} {mean}");
    assert_eq!(found[1][0].rows[0].tokens.0, 3);
    // Most tokens have 6 dB, whatever the one large token makes of the whole.
    assert!(found[1][0].sqnr_db > 32.0);
}

#[test]
fn comparison_does_not_depend_on_threads_or_on_the_memory_allowed() {
    let batches: Vec<Batch> = (0..7)
        .map(|i| f32_batch("x", wave(&[2, 3 + i / 4, 2]) + i as f32 * 0.1, 2 * i as u64))
        .collect();
    let (same, other) = (shifted(0.), shifted(0.3));
    let run = |budget, threads| {
        let models = [&same, &other];
        compare_within(
            (budget, usize::MAX),
            &TractEngine,
            &mut Reference::new(&same, &batches),
            &models,
            threads,
            &NoProgress,
        )
    };
    let result = run(usize::MAX, 1).unwrap();
    assert_eq!(result[1][0].elements, 7 * 2 * 2 * 3 + 3 * 2 * 2);
    for (budget, threads) in [(0, 1), (100, 1), (0, 2), (usize::MAX, 2)] {
        assert_eq!(run(budget, threads).unwrap(), result);
    }
}

/// The first batch of each of the two shapes, whatever the memory allowed; the reference's other outputs are remembered.
#[test]
fn few_batches_are_one_of_every_shape() {
    let batches: Vec<Batch> = (0..7)
        .map(|i| f32_batch("x", wave(&[2, 3 + i / 4, 2]) + i as f32 * 0.1, 2 * i as u64))
        .collect();
    let (same, other) = (shifted(0.), shifted(0.3));
    let mut reference = Reference::new(&same, &batches);
    let mut few = |threads| {
        compare_few(
            &TractEngine,
            &mut reference,
            &[&other],
            threads,
            &NoProgress,
        )
        .unwrap()
    };
    let first = few(1);
    let rows: Vec<u64> = first[0][0].rows.iter().map(|r| r.row).collect();
    assert_eq!(rows, [0, 1, 8, 9]);
    assert_eq!(few(2), first);
    let all = compare_with(&TractEngine, &mut reference, &[&other], 2, &NoProgress).unwrap();
    assert_eq!(all[0][0].rows.len(), 14);
    assert!((all[0][0].max_abs_error - first[0][0].max_abs_error).abs() < 1e-6);
}

#[test]
fn an_empty_past_runs() {
    let model = model(
        17,
        vec![
            info("x", DataType::Float, &["b", "1", "s", "2"]),
            info(
                "past_key_values.0.key",
                DataType::Float,
                &["b", "1", "p", "2"],
            ),
        ],
        vec![make_node(
            op::Concat,
            "cat",
            &["past_key_values.0.key", "x"],
            &["present"],
            vec![int_attr("axis", 2)],
        )],
        vec![],
        &["present"],
    );
    let x = wave(&[2, 1, 3, 2]);
    let mut batch = f32_batch("x", x.clone(), 0);
    let past = InputTensor::from_values(Values::F32(wave(&[2, 1, 0, 2])));
    batch.inputs.insert("past_key_values.0.key".into(), past);
    assert_eq!(run(&model, batch).unwrap()["present"], x);
}

#[test]
fn models_with_different_outputs_cannot_be_compared() {
    let x = || [f32_batch("x", wave(&[1, 2, 2]), 0)];
    let reference = shifted(0.);
    let mut renamed = shifted(0.);
    renamed.graph_mut().node[0].output[0] = "z".into();
    renamed.graph_mut().output[0].name = Some("z".into());
    let compared = |other: &Model| {
        error(compare(
            &TractEngine,
            &reference,
            &[other],
            &x(),
            1,
            &NoProgress,
        ))
    };
    insta::assert_snapshot!(compared(&renamed), @"output z is missing in one of the models");
    let infinite = shifted(f32::INFINITY);
    insta::assert_snapshot!(compared(&infinite), @"output y is inf at row 0, where the other model gives -0.26");
    let mut flat = shifted(0.);
    flat.graph_mut().node[0] = make_node(op::Flatten, "f", &["x"], &["y"], vec![]);
    insta::assert_snapshot!(compared(&flat), @"output y has shape [1, 2, 2] in one model and [1, 4] in the other");
}

#[test]
fn layer_norm_and_gelu_of_new_opsets_run() {
    let model = model(
        20,
        vec![info("x", DataType::Float, &["b", "2"])],
        vec![
            make_node(
                op::LayerNormalization,
                "ln",
                &["x", "g", "b0"],
                &["n"],
                vec![float_attr("epsilon", 0.0), int_attr("axis", -1)],
            ),
            make_node(op::Gelu, "gelu", &["n"], &["y"], vec![]),
        ],
        vec![
            tensor::from_f32("g", &[2], &[1., 1.], DataType::Float),
            tensor::from_f32("b0", &[2], &[0., 0.], DataType::Float),
        ],
        &["y"],
    );
    let y = run(&model, f32_batch("x", array![[1f32, 3.]].into_dyn(), 0)).unwrap();
    // LayerNorm gives −1 and 1; GELU(1) = Φ(1) = 0.841345, GELU(−1) = −Φ(−1) = −0.158655.
    let difference = &y["y"] - &array![[-0.158_655f32, 0.841_345]].into_dyn();
    assert!(difference.iter().all(|d| d.abs() < 1e-5), "{:?}", y["y"]);
}

/// `y = Where(m, x, −1e4)` and `z = x + (1 − m) · −1e4`.
fn filling(bias: f32) -> Model {
    let attr = |to: DataType| vec![int_attr("to", to as i64)];
    model(
        17,
        vec![
            info("x", DataType::Float, &["b", "2"]),
            info("m", DataType::Bool, &["b", "2"]),
        ],
        vec![
            make_node("Add", "a", &["x", "bias"], &["shifted"], vec![]),
            make_node("Where", "w", &["m", "shifted", "low"], &["y"], vec![]),
            make_node("Cast", "c", &["m"], &["real"], attr(DataType::Float)),
            make_node("Sub", "s", &["one", "real"], &["gone"], vec![]),
            make_node("Mul", "p", &["gone", "low"], &["term"], vec![]),
            make_node("Add", "z", &["shifted", "term"], &["z"], vec![]),
        ],
        vec![
            tensor::from_f32("bias", &[], &[bias], DataType::Float),
            tensor::from_f32("low", &[], &[-1e4], DataType::Float),
            tensor::from_f32("one", &[], &[1.0], DataType::Float),
        ],
        &["y", "z"],
    )
}

#[test]
fn what_a_model_fills_in_is_counted_and_measured_nowhere() {
    let mut x = f32_batch("x", array![[3f32, 4.], [5., 12.]].into_dyn(), 0);
    let real = array![[true, false], [true, false]];
    let m = InputTensor::from_values(Values::Bool(real.into_dyn()));
    x.inputs.insert("m".into(), m);
    let (same, other) = (filling(0.0), filling(0.5));
    let compared = |other: &Model| {
        let batches = [x.clone()];
        let all = compare(&TractEngine, &same, &[other], &batches, 1, &NoProgress);
        all.unwrap().remove(0)
    };
    for output in compared(&other) {
        assert_eq!((output.elements, output.filled), (2, 2), "{}", output.name);
        assert_eq!(output.range, (3.0, 5.0));
        // 3² + 5² over 2 · 0.5².
        assert!((output.sqnr_db - 10.0 * (34f64 / 0.5).log10()).abs() < 1e-3);
    }
    // What only one of them fills in is an error.
    let mut unmasked = filling(0.5);
    unmasked.graph_mut().node[1].input[1] = "low".into();
    let y = &compared(&unmasked)[0];
    assert_eq!((y.elements, y.filled), (2, 2));
    assert!(y.sqnr_db < 0.0);
}
