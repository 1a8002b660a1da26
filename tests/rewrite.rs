//! The rewriting as a whole, on small graphs in every form: snapshots of the text before and after, and the same
//! function for random numbers.

use std::collections::BTreeMap;

use crate::common::graphs::{FORMS, Form, Size, form_named};
use ndarray::ArrayD;
use onnx_osplus::calibrate::{Batch, InputTensor, TractEngine, Values, compare};
use onnx_osplus::graph::{self, Names, View};
use onnx_osplus::onnx::node::attr_i;
use onnx_osplus::onnx::proto::type_proto::Value;
use onnx_osplus::onnx::{DataType, Model, TextOptions, tensor, text};
use onnx_osplus::progress::NoProgress;
use onnx_osplus::recognise::{LinearForm, recognise};
use onnx_osplus::rewrite::{
    Activation, Affine, Precision, QuantizePlan, Rotated, WeightStorage, migrate_in, quantize,
};
use onnx_osplus::site::{Site, find_sites};
use onnx_osplus::solve::{ActivationSpec, Rotation, WeightSpec};
use onnx_osplus::target::Target;
use proptest::prelude::*;

/// What rotates the sites of a model: nothing, or a rotation for x of this rank.
type Turns = Option<usize>;

/// Migrates every site that has a sink; shift and scale are `numbers()` for each channel.
fn migrated(model: &Model, numbers: &mut dyn FnMut() -> (f32, f32)) -> Model {
    migrated_in(Precision::OfFile, model, numbers)
}

fn migrated_in(
    precision: Precision,
    model: &Model,
    numbers: &mut dyn FnMut() -> (f32, f32),
) -> Model {
    rotated_in(precision, None, model, numbers)
}

/// [`migrated_in`], with a rotation at every site that can have one.
fn rotated_in(
    precision: Precision,
    turns: Turns,
    model: &Model,
    numbers: &mut dyn FnMut() -> (f32, f32),
) -> Model {
    let view = View::new(model);
    let found = recognise(&view);
    let mut names = Names::new(model);
    let sites = find_sites(&view, &found, &Default::default(), false);
    let affine = |site| {
        let site: &Site = site;
        let channels = found.linears[site.linears[0]].k;
        let (shift, scale): (Vec<f32>, Vec<f32>) = (0..channels).map(|_| numbers()).unzip();
        let rotated = |rank| {
            let rotation = Rotation::of(channels, channels as u64)?;
            Some(Rotated { rotation, rank })
        };
        let affine = Affine {
            shift: site.allow_shift.then_some(shift),
            scale: Some(scale),
            rotation: turns.and_then(rotated),
        };
        (site, affine)
    };
    let migrations: Vec<_> = sites.iter().filter(|s| s.has_sink()).map(affine).collect();
    let patches = migrate_in(
        precision,
        &Default::default(),
        &view,
        &found,
        &migrations,
        &mut names,
    )
    .unwrap();
    let mut migrated = model.clone();
    graph::apply(&mut migrated, patches).unwrap();
    migrated
}

/// Quantizes every Linear, all inputs by the same range.
fn quantized(model: &Model, rank: usize, target: Target, bits: u8) -> Model {
    quantized_with(model, rank, target, bits, WeightStorage::Integers)
}

fn quantized_with(
    model: &Model,
    rank: usize,
    target: Target,
    bits: u8,
    storage: WeightStorage,
) -> Model {
    let view = View::new(model);
    let found = recognise(&view);
    let profile = target.profile();
    let spec = ActivationSpec::per_tensor(bits, profile.symmetric);
    let params = spec.params(-3.0, 5.0);
    let plan = QuantizePlan {
        activations: oxc_index::index_vec![Some(Activation { params, per_token: None, rank }); found.linears.len()],
        weight: WeightSpec::per_channel(bits),
        raised: Default::default(),
        storage,
        rounded: Default::default(),
        profile,
    };
    let patches = quantize(&view, &found, &plan, &mut Names::new(model)).unwrap();
    let mut quantized = model.clone();
    graph::apply(&mut quantized, patches).unwrap();
    quantized
}

/// The same model in another float type.
fn in_type(mut model: Model, dtype: DataType) -> Model {
    let graph = model.graph_mut();
    for constant in &mut graph.initializer {
        if let Ok(array) = tensor::float_array(constant) {
            let data: Vec<f32> = array.iter().copied().collect();
            *constant = tensor::from_f32(constant.name(), array.shape(), &data, dtype);
        }
    }
    for info in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(Value::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut())
            && t.elem_type() == DataType::Float as i32
        {
            t.elem_type = Some(dtype as i32);
        }
    }
    model
}

/// The same model in operator set 21, the first with INT4.
fn in_opset_21(mut model: Model) -> Model {
    model.proto.opset_import[0].version = Some(21);
    model.proto.ir_version = Some(10);
    model
}

/// Round numbers, so that what has been folded can be checked by eye.
fn small_model(form: &Form, rank: usize) -> Model {
    let mut state = 0;
    let mut next = || {
        state = (state + 5) % 13;
        (state as f32 - 6.0) / 4.0
    };
    form.model(Size { c: 4, n: 2, rank }, &mut next)
}

fn small_affine() -> impl FnMut() -> (f32, f32) {
    let mut all = [(1.0, 2.0), (0.0, 1.0), (-2.0, 0.5), (0.5, 4.0)]
        .into_iter()
        .cycle();
    move || all.next().unwrap()
}

/// The text before and after each step, with every element: tests/python/test_snapshots.py runs it.
fn story(form: &Form, rank: usize, bits: u8) -> String {
    story_of(small_model(form, rank), rank, bits)
}

fn story_of(before: Model, rank: usize, bits: u8) -> String {
    let migrated = migrated(&before, &mut small_affine());
    let mut chapters = vec![("before".to_owned(), text(&before, TextOptions::FULL))];
    let after = if migrated == before {
        "(the same)\n".to_owned()
    } else {
        text(&migrated, TextOptions::FULL)
    };
    chapters.push(("migrated".to_owned(), after));
    let mut written: Vec<(&str, String)> = Vec::new();
    for target in Target::ALL {
        let name = target.profile().name;
        let model = text(&quantized(&migrated, rank, target, bits), TextOptions::FULL);
        let shown = match written.iter().find(|(_, other)| *other == model) {
            Some((other, _)) => format!("(as for {other})\n"),
            None => model.clone(),
        };
        chapters.push((format!("quantized for {name}"), shown));
        written.push((name, model));
    }
    let chapters = chapters
        .iter()
        .map(|(title, text)| format!("# {title}\n{text}"));
    chapters.collect::<Vec<_>>().join("\n")
}

#[test]
fn snapshots() {
    for form in FORMS {
        for &rank in form.ranks {
            insta::assert_snapshot!(format!("{}_rank_{rank}", form.name), story(form, rank, 8));
        }
    }
    for (name, rank) in [("pre_ln", 3), ("gemm", 2)] {
        let story = story(form_named(name), rank, 6);
        insta::assert_snapshot!(format!("{name}_rank_{rank}_6_bits"), story);
        let model = in_opset_21(small_model(form_named(name), rank));
        let story = story_of(model, rank, 4);
        insta::assert_snapshot!(format!("{name}_rank_{rank}_4_bits"), story);
    }
    for (name, rank) in [("pre_ln", 3), ("gemm", 2)] {
        let model = small_model(form_named(name), rank);
        let storage = WeightStorage::FloatQdq;
        let model = quantized_with(&model, rank, Target::Tensorrt, 8, storage);
        let text = text(&model, TextOptions::FULL);
        insta::assert_snapshot!(format!("{name}_rank_{rank}_float_weights"), text);
    }
    for (name, rank) in [
        ("post_ln", 3),
        ("pre_ln", 2),
        ("gemm", 2),
        ("gemm_computed_bias", 2),
    ] {
        let model = in_type(small_model(form_named(name), rank), DataType::Float16);
        let story = story_of(model, rank, 8);
        insta::assert_snapshot!(format!("{name}_rank_{rank}_float16"), story);
    }
}

/// Scales are between 1/S and S.
const S: f32 = 100.0;

/// Any size, and a seed for everything else.
fn cases() -> impl Strategy<Value = (usize, usize, u64)> {
    (3..20_usize, 1..9_usize, any::<u64>())
}

/// Numbers in [-1, 1], uniform, from a seed (a linear congruential generator, upper bits).
fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// A batch of tokens, some with outliers as the norms of transformers see them.
fn batch(size: Size, next: &mut dyn FnMut() -> f32) -> Batch {
    let shape = match size.rank {
        2 => vec![6, size.c],
        _ => vec![2, 3, size.c],
    };
    let rows = (0..shape[0] as u64).collect();
    let elements = (0..shape.iter().product::<usize>()).map(|i| {
        let outlier = if i % size.c == 1 { 20.0 } else { 1.0 };
        next() * 3.0 * outlier
    });
    let array = ArrayD::from_shape_vec(shape, elements.collect()).unwrap();
    let input = InputTensor::from_values(Values::F32(array));
    Batch::new(BTreeMap::from([("x".to_owned(), input)]), rows)
}

/// The integer weight of each Linear, and how far it may be from the float one.
fn check_weights(float: &Model, quantized: &Model) {
    let (float, quantized) = (View::new(float), View::new(quantized));
    let linears = recognise(&float).linears;
    assert!(!linears.is_empty());
    for linear in linears {
        let w = linear.load_weight(&float).unwrap();
        let (node, _) = quantized
            .nodes()
            .find(|(id, _)| quantized.node_name(*id) == linear.name)
            .unwrap();
        let dequantized = quantized.input(node, 1).unwrap();
        let dequantize = quantized
            .producer_is(dequantized, "DequantizeLinear")
            .unwrap();
        let [q, scale, zero] = [0, 1, 2].map(|slot| {
            let value = quantized.input(dequantize, slot).unwrap();
            quantized.initializer(value).unwrap()
        });
        assert!(tensor::int_array(zero).unwrap().iter().all(|&z| z == 0));
        let q = tensor::int_array(q).unwrap();
        let scale = tensor::float_array(scale).unwrap();
        let axis = attr_i(quantized.node(dequantize), "axis").unwrap() as usize;
        let transposed = linear.form != LinearForm::MatMul && axis == 0;
        for ((k, n), &w) in w.indexed_iter() {
            let at = if transposed { [n, k] } else { [k, n] };
            let (q, step) = (q[at.as_slice()], scale[[n].as_slice()]);
            let error = (q as f32 * step - w).abs();
            assert!(
                error <= 0.5001 * step,
                "{error} at {at:?} of {}, a step is {step}",
                linear.name
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn migration_keeps_the_function((c, n, seed) in cases()) {
        for form in FORMS {
            for &rank in form.ranks {
                let size = Size { c, n, rank };
                let mut next = numbers(seed);
                let original = form.model(size, &mut || 2.0 * next());
                let migrated = migrated(&original, &mut || (50.0 * next(), S.powf(next())));
                prop_assert_eq!(migrated == original, form.sinks == 0, "{}", form.name);
                let batches = [batch(size, &mut next)];
                let engine = TractEngine;
                let compared = compare(&engine, &original, &[&migrated], &batches, 1, &NoProgress).unwrap();
                for output in &compared[0] {
                    prop_assert!(
                        output.max_relative_error < 1e-4,
                        "{} at rank {rank}: {output:?}", form.name
                    );
                }
            }
        }
    }

    #[test]
    fn a_rotation_keeps_the_function_and_is_quantized_behind_it(c in 16..36_usize, n in 1..9_usize, seed in any::<u64>()) {
        for form in FORMS {
            for &rank in form.ranks {
                let size = Size { c, n, rank };
                let mut next = numbers(seed);
                let original = form.model(size, &mut || 2.0 * next());
                // A rotation adds up channels: scales that are far apart would cost digits.
                let numbers = &mut || (3.0 * next(), 4_f32.powf(next()));
                let rotated = rotated_in(Precision::OfFile, Some(rank), &original, numbers);
                let batches = [batch(size, &mut next)];
                let engine = TractEngine;
                let compared = compare(&engine, &original, &[&rotated], &batches, 1, &NoProgress).unwrap();
                for output in &compared[0] {
                    prop_assert!(
                        output.max_relative_error < 1e-4,
                        "{} at rank {rank}: {output:?}", form.name
                    );
                }
                let quantized = quantized(&rotated, rank, Target::Ort, 8);
                check_weights(&rotated, &quantized);
                compare(&engine, &original, &[&quantized], &batches, 1, &NoProgress).unwrap();
            }
        }
    }

    #[test]
    fn a_quantized_model_runs_and_its_weights_are_half_a_step_away((c, n, seed) in cases(), bits in 2..=8_u8) {
        for form in FORMS {
            for &rank in form.ranks {
                let size = Size { c, n, rank };
                let mut next = numbers(seed);
                let original = form.model(size, &mut || 2.0 * next());
                let migrated = migrated(&original, &mut || (50.0 * next(), S.powf(next())));
                for target in Target::ALL {
                    let quantized = quantized(&migrated, rank, target, bits);
                    check_weights(&migrated, &quantized);
                    // The fixed range of the inputs fits nothing; what is checked here is that it runs, and the shapes.
                    let batches = [batch(size, &mut next)];
                    let engine = TractEngine;
                    compare(&engine, &original, &[&quantized], &batches, 1, &NoProgress).unwrap();
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Folding is as exact in a 16-bit file as in one of float32; the file's constants are those, rounded once.
    #[test]
    fn constants_of_16_bits_are_rounded_once((c, n, seed) in cases(), half in prop_oneof![Just(DataType::Float16), Just(DataType::Bfloat16)]) {
        for form in FORMS {
            for &rank in form.ranks {
                let size = Size { c, n, rank };
                let mut next = numbers(seed);
                let original = in_type(form.model(size, &mut || 2.0 * next()), half);
                let numbers: Vec<_> = (0..c * 16).map(|_| (5.0 * next(), 10_f32.powf(next()))).collect();
                let migrated = |precision| {
                    let mut numbers = numbers.iter().copied().cycle();
                    migrated_in(precision, &original, &mut || numbers.next().unwrap())
                };
                let (wide, narrow) = (migrated(Precision::Float32), migrated(Precision::OfFile));
                let batches = [batch(size, &mut next)];
                let compared = compare(&TractEngine, &original, &[&wide], &batches, 1, &NoProgress).unwrap();
                for output in &compared[0] {
                    prop_assert!(output.max_relative_error < 1e-4, "{} at rank {rank}: {output:?}", form.name);
                }
                prop_assert_eq!(wide.graph().initializer.len(), narrow.graph().initializer.len());
                for (wide, narrow) in wide.graph().initializer.iter().zip(&narrow.graph().initializer) {
                    prop_assert_eq!(wide.name(), narrow.name());
                    let Ok(exact) = tensor::float_array(wide) else { continue };
                    prop_assert_eq!(narrow.data_type(), half as i32, "{}", narrow.name());
                    let exact: Vec<f32> = exact.iter().copied().collect();
                    let shape = tensor::shape(narrow).unwrap();
                    prop_assert_eq!(narrow, &tensor::from_f32(narrow.name(), &shape, &exact, half));
                }
            }
        }
    }
}

/// What QuantizeLinear makes of a float weight: q = round(w / s) within int8.
fn integers_of_float_weights(model: &Model) -> BTreeMap<String, Vec<i64>> {
    let view = View::new(model);
    let mut all = BTreeMap::new();
    for (id, node) in view.nodes() {
        if node.op_type() != "QuantizeLinear" {
            continue;
        }
        let constant = |slot| view.input(id, slot).and_then(|v| view.initializer(v));
        let Some(w) = constant(0) else { continue };
        let w = tensor::float_array(w).unwrap();
        let scale = tensor::float_array(constant(1).unwrap()).unwrap();
        let axis = attr_i(node, "axis").unwrap() as usize;
        let steps = w.indexed_iter().map(|(at, w)| w / scale[[at[axis]]]);
        let q = steps.map(|v| v.round_ties_even().clamp(-128.0, 127.0) as i64);
        all.insert(node.output[0].clone(), q.collect());
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// A float weight before Q/DQ gives the integers that are stored otherwise, bit for bit, at any width and size of weights.
    #[test]
    fn float_weights_give_the_same_integers((c, n, seed) in cases(), bits in 2..=8_u8, size in -30..30_i32) {
        for form in FORMS {
            for &rank in form.ranks {
                let size_of = Size { c, n, rank };
                let mut next = numbers(seed);
                let original = form.model(size_of, &mut || 2.0_f32.powi(size) * next());
                let mut next = numbers(seed);
                let batches = [batch(size_of, &mut next)];
                for target in Target::ALL {
                    let [stored, float] = [WeightStorage::Integers, WeightStorage::FloatQdq]
                        .map(|storage| quantized_with(&original, rank, target, bits, storage));
                    let integers = integers_of_float_weights(&float);
                    prop_assert!(!integers.is_empty());
                    for (name, q) in &integers {
                        let initializers = &stored.graph().initializer;
                        let stored = initializers.iter().find(|t| t.name() == name);
                        let stored = tensor::int_array(stored.unwrap()).unwrap();
                        prop_assert!(stored.iter().eq(q), "{}: `{name}` for {target:?}", form.name);
                    }
                    let compared = compare(&TractEngine, &stored, &[&float], &batches, 1, &NoProgress).unwrap();
                    prop_assert!(compared[0].iter().all(|output| output.max_relative_error == 0.0));
                }
            }
        }
    }
}

#[test]
fn every_form_has_its_sinks() {
    for form in FORMS {
        let model = small_model(form, form.ranks[0]);
        let view = View::new(&model);
        let sites = find_sites(&view, &recognise(&view), &Default::default(), false);
        let sinks = sites.iter().filter(|s| s.has_sink()).count();
        assert_eq!(sinks, form.sinks, "{}", form.name);
    }
}
