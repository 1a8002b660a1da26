//! The rewriting as a whole, on small graphs in every form: snapshots of the text before and after, and the same
//! function for random numbers.

mod common;

use common::graphs::{FORMS, Form, Size, form_named};
use onnx_osplus::graph::{self, Names, View};
use onnx_osplus::onnx::{Model, TextOptions, text};
use onnx_osplus::recognise::recognise;
use onnx_osplus::rewrite::{Activation, Affine, QuantizePlan, migrate, quantize};
use onnx_osplus::site::find_sites;
use onnx_osplus::solve::{ActivationSpec, WeightSpec};
use onnx_osplus::target::Target;

/// Migrates every site that has a sink; shift and scale are `numbers()` for each channel.
fn migrated(model: &Model, numbers: &mut dyn FnMut() -> (f32, f32)) -> Model {
    let view = View::new(model);
    let found = recognise(&view);
    let mut names = Names::new(model);
    let mut patches = Vec::new();
    for site in find_sites(&view, &found).iter().filter(|s| s.has_sink()) {
        let channels = found.linears[site.linears[0]].k;
        let (shift, scale): (Vec<f32>, Vec<f32>) = (0..channels).map(|_| numbers()).unzip();
        let affine = Affine {
            shift: site.allow_shift.then_some(shift),
            scale: Some(scale),
        };
        patches.push(migrate(&view, &found, site, &affine, &mut names).unwrap());
    }
    let mut migrated = model.clone();
    graph::apply(&mut migrated, patches).unwrap();
    migrated
}

/// Quantizes every Linear, all inputs by the same range.
fn quantized(model: &Model, rank: usize, target: Target, bits: u8) -> Model {
    let view = View::new(model);
    let found = recognise(&view);
    let profile = target.profile();
    let spec = ActivationSpec {
        bits,
        symmetric: profile.symmetric,
    };
    let params = spec.params(-3.0, 5.0);
    let plan = QuantizePlan {
        activations: vec![Some(Activation { params, rank }); found.linears.len()],
        weight: WeightSpec {
            bits,
            per_channel: true,
        },
        profile,
    };
    let patches = quantize(&view, &found, &plan, &mut Names::new(model)).unwrap();
    let mut quantized = model.clone();
    graph::apply(&mut quantized, patches).unwrap();
    quantized
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

/// The text before and after each step.
fn story(form: &Form, rank: usize, bits: u8) -> String {
    let before = small_model(form, rank);
    let migrated = migrated(&before, &mut small_affine());
    let mut chapters = vec![("before".to_owned(), text(&before, TextOptions::SHORT))];
    let after = if migrated == before {
        "(the same)\n".to_owned()
    } else {
        text(&migrated, TextOptions::SHORT)
    };
    chapters.push(("migrated".to_owned(), after));
    for target in Target::ALL {
        let model = quantized(&migrated, rank, target, bits);
        let title = format!("quantized for {}", target.profile().name);
        chapters.push((title, text(&model, TextOptions::SHORT)));
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
    }
}
