//! Linears as integer operators: snapshots of small graphs in every form, which tests/python/test_qoperator.py runs, and
//! the same function as Q/DQ where nothing more is rounded.

use std::collections::BTreeMap;

use crate::common::graphs::{FORMS, Size, form_named};
use ndarray::ArrayD;
use onnx_osplus::calibrate::{Batch, InputTensor, TractEngine, Values, compare};
use onnx_osplus::graph::{self, Names, View};
use onnx_osplus::onnx::{DataType, Model, TextOptions, tensor, text};
use onnx_osplus::progress::NoProgress;
use onnx_osplus::recognise::recognise;
use onnx_osplus::rewrite::{
    Activation, IntegerProduct, IntegerProducts, QuantizePlan, quantize, quantize_as_operators,
};
use onnx_osplus::solve::output::OutputGrid;
use onnx_osplus::solve::{ActivationSpec, WeightSpec};
use onnx_osplus::target::Target;
use proptest::prelude::*;

const EIGHT: ActivationSpec = ActivationSpec::per_tensor(8, false);

/// How the weights are quantized, and whether the outputs have a step per column.
#[derive(Clone, Copy)]
struct Choice {
    bits: u8,
    per_channel: bool,
    columns: bool,
}

const USUAL: Choice = Choice {
    bits: 8,
    per_channel: true,
    columns: true,
};

/// Every Linear quantized, all inputs by one range and all outputs by another; as operators, or with Q/DQ.
fn quantized(model: &Model, rank: usize, choice: Choice, operators: bool) -> Model {
    let view = View::new(model);
    let found = recognise(&view);
    let spec = ActivationSpec {
        bits: choice.bits,
        ..EIGHT
    };
    let params = spec.params(-3.0, 5.0);
    let plan = QuantizePlan {
        activations: oxc_index::index_vec![Some(Activation { params, per_token: None, rank }); found.linears.len()],
        weight: WeightSpec::whole_or_columns(choice.bits, choice.per_channel),
        raised: Default::default(),
        rounded: Default::default(),
        storage: Default::default(),
        profile: Target::Ort.profile(),
    };
    let product = |n: usize| match rank {
        2 => IntegerProduct::Gemm,
        _ => IntegerProduct::MatMul(OutputGrid {
            params: EIGHT.params(-50.0, 40.0),
            factors: choice
                .columns
                .then(|| (1..=n).map(|i| 1.0 / i as f32).collect()),
        }),
    };
    let linears = found.linears.iter().enumerate();
    let products: IntegerProducts = linears
        .map(|(l, linear)| (l.into(), product(linear.n)))
        .collect();
    let mut names = Names::new(model);
    let patches = match operators {
        true => quantize_as_operators(&view, &found, &plan, &products, &mut names),
        false => quantize(&view, &found, &plan, &mut names),
    };
    let mut quantized = model.clone();
    graph::apply(&mut quantized, patches.unwrap()).unwrap();
    quantized
}

/// Round numbers, so that what is written can be checked by eye.
fn small_model(form: &str, rank: usize) -> Model {
    let mut state = 0;
    let mut next = || {
        state = (state + 5) % 13;
        (state as f32 - 6.0) / 4.0
    };
    form_named(form).model(Size { c: 4, n: 2, rank }, &mut next)
}

fn in_float16(mut model: Model) -> Model {
    use onnx_osplus::onnx::proto::type_proto::Value;
    let graph = model.graph_mut();
    for constant in &mut graph.initializer {
        if let Ok(array) = tensor::float_array(constant) {
            let data: Vec<f32> = array.iter().copied().collect();
            *constant = tensor::from_f32(constant.name(), array.shape(), &data, DataType::Float16);
        }
    }
    for info in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(Value::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut())
            && t.elem_type() == DataType::Float as i32
        {
            t.elem_type = Some(DataType::Float16 as i32);
        }
    }
    model
}

fn story(before: &Model, rank: usize, choice: Choice) -> String {
    let after = quantized(before, rank, choice, true);
    let [before, after] = [before, &after].map(|m| text(m, TextOptions::FULL));
    format!("# before\n{before}\n# quantized\n{after}")
}

#[test]
fn snapshots() {
    let forms = [
        ("pre_ln", 3),
        ("no_bias", 3),
        ("shared_weight", 3),
        ("graph_output", 3),
        ("pre_ln", 2),
        ("no_bias", 2),
        ("bias_of_rank_3", 2),
        ("gemm", 2),
        ("gemm_bias_forms", 2),
        ("gemm_computed_bias", 2),
    ];
    for (form, rank) in forms {
        let model = small_model(form, rank);
        insta::assert_snapshot!(format!("{form}_rank_{rank}"), story(&model, rank, USUAL));
    }
    let one = Choice {
        columns: false,
        per_channel: false,
        ..USUAL
    };
    insta::assert_snapshot!(
        "pre_ln_rank_3_per_tensor",
        story(&small_model("pre_ln", 3), 3, one)
    );
    for (form, rank) in [("pre_ln", 3), ("gemm_computed_bias", 2)] {
        let model = in_float16(small_model(form, rank));
        let name = format!("{form}_rank_{rank}_float16");
        insta::assert_snapshot!(name, story(&model, rank, USUAL));
    }
    for (form, rank) in [("pre_ln", 3), ("gemm", 2)] {
        let mut model = small_model(form, rank);
        model.proto.opset_import[0].version = Some(21);
        model.proto.ir_version = Some(10);
        let choice = Choice { bits: 4, ..USUAL };
        let name = format!("{form}_rank_{rank}_4_bits");
        insta::assert_snapshot!(name, story(&model, rank, choice));
    }
}

fn batch(size: Size, next: &mut dyn FnMut() -> f32) -> Batch {
    let shape = match size.rank {
        2 => vec![6, size.c],
        _ => vec![2, 3, size.c],
    };
    let rows = (0..shape[0] as u64).collect();
    let elements = (0..shape.iter().product::<usize>()).map(|_| next() * 3.0);
    let array = ArrayD::from_shape_vec(shape, elements.collect()).unwrap();
    let input = InputTensor::from_values(Values::F32(array));
    Batch::new(BTreeMap::from([("x".to_owned(), input)]), rows)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// QGemm rounds nothing that Q/DQ does not. QLinearMatMul does, and here with a range that fits nothing: that it runs,
    /// and gives what has the right shape, is all that can be asked.
    #[test]
    fn every_form_runs_and_matrices_give_what_qdq_gives(
        (c, n, seed) in (3..20_usize, 1..9_usize, any::<u64>()), bits in 2..=8_u8, columns: bool, per_channel: bool,
    ) {
        let choice = Choice { bits, per_channel, columns: columns && per_channel };
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        for form in FORMS {
            for &rank in form.ranks {
                let size = Size { c, n, rank };
                let model = form.model(size, &mut next);
                let [operators, qdq] = [true, false].map(|o| quantized(&model, rank, choice, o));
                let ops: Vec<&str> = operators.graph().node.iter().map(|n| n.op_type()).collect();
                prop_assert!(!ops.contains(&"MatMul") && !ops.contains(&"Gemm"), "{}: {ops:?}", form.name);
                let batches = [batch(size, &mut next)];
                let compared = compare(&TractEngine, &qdq, &[&operators], &batches, 1, &NoProgress).unwrap();
                // A bias is rounded to the accumulator's steps, but not where Q/DQ has to keep it apart: what a second Linear
                // reads can then end up a step away, and with few bits a step is much.
                for output in compared[0].iter().filter(|_| rank == 2 && bits == 8) {
                    prop_assert!(output.sqnr_db > 25.0, "{}: {output:?}", form.name);
                }
            }
        }
    }
}
