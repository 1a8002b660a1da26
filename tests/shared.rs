//! Linears that share a weight: one decision, so that the weight stays one, and a range for each.

use crate::recognise::text;
use ndarray::Array3;
use ndarray_npy::write_npy;
use onnx_osplus::calibrate::{CalibSource, Dataset, TractEngine};
use onnx_osplus::onnx::{DataType, Model};
use onnx_osplus::progress::NoProgress;
use onnx_osplus::review::{Decision, Report, SiteReport};
use onnx_osplus::solve::Method;
use onnx_osplus::{Format, Options, run};

/// Uneven numbers in ±1, one channel ten times as large.
fn activations() -> Array3<f32> {
    Array3::from_shape_fn((16, 6, 8), |(r, t, c)| {
        let uneven = ((131 * r + 37 * t + 11 * c * c + 5 * r * t * c) % 101) as f32;
        (uneven / 50.0 - 1.0) * if c == 3 { 10.0 } else { 1.0 }
    })
}

fn quantize(model: Model, options: Options) -> (Model, Report) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    write_npy(&path, &activations()).unwrap();
    let data = Dataset::open(&model, &[CalibSource { name: None, path }], 4).unwrap();
    run(&model, &data, &TractEngine, &options, &NoProgress).unwrap()
}

/// Three layers of the same weight, bias and norm. The first reads a graph input, which has no sink; `weight` is how
/// a layer comes by its weight `w{}` from `w`.
fn layers(weight: &str) -> String {
    let mut graph = "
        in x0[b, 6, 8]
        const w[8, 8]
        const bias[8]
        const gamma[8]
        const beta[8]
    "
    .to_owned();
    for i in 0..3 {
        let next = i + 1;
        graph += &format!(
            "w{i} = {weight}
             p{i} = MatMul(x{i}, w{i})
             y{i} = Add(p{i}, bias)
             r{i} = Relu(y{i})
             s{i} = Add(r{i}, x{i})
             x{next} = LayerNormalization{{axis = -1}}(s{i}, gamma, beta)
            "
        );
    }
    graph + "out x3"
}

const WAYS: [&str; 3] = ["Identity(w)", "Transpose{perm = [1, 0]}(w)", "w"];

fn graph(way: &str) -> Model {
    let text = match way {
        "w" => layers("Identity(w)")
            .lines()
            .filter(|line| !line.contains("Identity"))
            .map(|line| {
                let reads = line.contains("MatMul");
                let digit = |c: char| c.is_ascii_digit();
                match line.rsplit_once(", w").filter(|_| reads) {
                    Some((head, tail)) => format!("{head}, w{}\n", tail.trim_start_matches(digit)),
                    None => format!("{line}\n"),
                }
            })
            .collect(),
        way => layers(way),
    };
    text::model(&text)
}

/// Names of the stored matrices of a type.
fn matrices(model: &Model, dtype: DataType) -> usize {
    let stored = model.graph().initializer.iter();
    stored
        .filter(|t| t.data_type == Some(dtype as i32) && t.dims == [8, 8])
        .count()
}

type Affines<'a> = (&'a Option<Vec<f32>>, &'a Option<Vec<f32>>);

fn decisions(sites: &[SiteReport]) -> Vec<Affines<'_>> {
    sites.iter().map(|s| (&s.shift, &s.scale)).collect()
}

#[test]
fn one_weight_used_three_times_is_one_int8_weight() {
    for way in WAYS {
        let (model, report) = quantize(graph(way), Options::default());
        assert_eq!(report.decision, Decision::Migrated, "{way}");
        assert_eq!(report.sites.len(), 3);
        let first = &report.sites[0];
        assert!(first.scale.is_some(), "{way}: nothing was migrated");
        assert_eq!(
            decisions(&report.sites),
            vec![(&first.shift, &first.scale); 3]
        );
        assert_eq!(first.kind, "explicit");
        assert_eq!(report.sites[1].kind, "LayerNormalization");
        assert_eq!(matrices(&model, DataType::Int8), 1, "{way}");
        assert_eq!(matrices(&model, DataType::Float), 0, "{way}");
        // The values are not alike, so neither are their ranges.
        assert_ne!(first.range_after, report.sites[1].range_after);
        assert!(report.float_check.as_ref().unwrap().max_relative_error <= 1e-4);
    }
}

#[test]
fn the_migrated_float_model_has_the_weight_once() {
    for way in WAYS {
        let options = Options {
            format: Format::Float,
            ..Options::default()
        };
        let (model, report) = quantize(graph(way), options);
        assert!(report.sites.iter().all(|s| s.scale.is_some()), "{way}");
        let error = report.float_check.as_ref().unwrap().max_relative_error;
        assert!(error > 0.0 && error <= 1e-4, "{way}: {error}");
        assert_eq!(matrices(&model, DataType::Float), 1, "{way}");
    }
}

#[test]
fn a_member_without_a_sink_keeps_the_weight_as_it_was() {
    let options = Options {
        extra_nodes: false,
        method: Method::SmoothQuant { alpha: 0.5 },
        format: Format::Float,
        ..Options::default()
    };
    let (model, report) = quantize(graph("w"), options);
    assert!(report.sites[0].scale.is_none());
    assert!(report.sites[1].scale.is_some());
    assert_eq!(report.sites[1].scale, report.sites[2].scale);
    assert_eq!(matrices(&model, DataType::Float), 2);
}

#[test]
fn plain_quantization_shares_as_well() {
    for way in WAYS {
        let options = Options {
            method: Method::None,
            ..Options::default()
        };
        let (model, _) = quantize(graph(way), options);
        assert_eq!(matrices(&model, DataType::Int8), 1, "{way}");
    }
}

#[test]
fn equal_weights_under_two_names_are_free() {
    let mut model = graph("w");
    let proto = model.proto.graph.as_mut().unwrap();
    let stored = proto.initializer.iter().find(|t| t.name() == "w");
    let mut copy = stored.unwrap().clone();
    copy.name = Some("v".to_owned());
    proto.initializer.push(copy);
    let last = proto.node.iter_mut().find(|n| n.output == ["p2"]);
    last.unwrap().input[1] = "v".to_owned();
    let (_, report) = quantize(model, Options::default());
    assert_ne!(report.sites[1].scale, report.sites[2].scale);
    assert_eq!(report.sites[0].scale, report.sites[1].scale);
}
