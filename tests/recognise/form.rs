//! What every matched form must stand: its site is folded with an uneven shift and scale, and original and folded
//! model are run on the same data.

use ndarray::ArrayD;
use onnx_osplus::calibrate::{Batch, InputTensor, TractEngine, Values, outputs};
use onnx_osplus::graph::{Names, View, apply};
use onnx_osplus::onnx::Model;
use onnx_osplus::onnx::proto::tensor_shape_proto::dimension::Value;
use onnx_osplus::onnx::proto::type_proto;
use onnx_osplus::progress::NoProgress;
use onnx_osplus::recognise::{Recognised, recognise};
use onnx_osplus::rewrite::{Affine, migrate};
use onnx_osplus::site::find_sites;
use std::collections::BTreeMap;

/// The only float input, filled: free lengths are 3.
fn batch(model: &Model) -> Batch {
    let mut inputs = BTreeMap::new();
    for input in &model.graph().input {
        let Some(type_proto::Value::TensorType(ty)) = &input.r#type.as_ref().unwrap().value else {
            panic!("a tensor");
        };
        let dims = &ty.shape.as_ref().unwrap().dim;
        let shape: Vec<usize> = dims
            .iter()
            .map(|d| match d.value {
                Some(Value::DimValue(n)) => n as usize,
                _ => 3,
            })
            .collect();
        let count: usize = shape.iter().product();
        let data = (0..count).map(|i| ((i * i + 5 * i) % 23) as f32 / 5.0 - 1.7);
        let array = ArrayD::from_shape_vec(shape, data.collect()).unwrap();
        let name = input.name.clone().unwrap();
        inputs.insert(name, InputTensor::from_values(Values::F32(array)));
    }
    Batch::new(inputs, (0..3).collect())
}

pub fn run(model: &Model) -> BTreeMap<String, ArrayD<f32>> {
    let batches = [batch(model)];
    let all = outputs(&TractEngine, model, &batches, 1, &NoProgress).unwrap();
    all.batches.into_iter().next().unwrap()
}

pub fn found(model: &Model) -> Recognised {
    recognise(&View::new(model))
}

/// The model with an uneven shift (where there is room for one) and scale folded at every site that has a sink,
/// and the number of those sites.
pub fn fold(model: &Model) -> (Model, usize) {
    let view = View::new(model);
    let found = recognise(&view);
    let mut names = Names::new(model);
    let (mut patches, mut sites) = (Vec::new(), 0);
    for site in find_sites(&view, &found, &Default::default(), false)
        .iter()
        .filter(|s| s.has_sink())
    {
        let k = found.linears[site.linears[0]].k;
        let affine = Affine {
            shift: site
                .allow_shift
                .then(|| (0..k).map(|c| 1.5 - 0.4 * c as f32).collect()),
            scale: Some((0..k).map(|c| 0.5 + 0.3 * (c % 5) as f32).collect()),
            ..Affine::default()
        };
        patches.extend(migrate(&view, &found, &[(site, affine)], &mut names).unwrap());
        sites += 1;
    }
    let mut folded = model.clone();
    apply(&mut folded, patches).unwrap();
    (folded, sites)
}

/// Folding changes constants and no output. Returns the number of folded sites.
pub fn check_fold(model: &Model, what: &str) -> usize {
    let (folded, sites) = fold(model);
    assert_ne!(&folded, model, "{what}: nothing changed");
    let (before, after) = (run(model), run(&folded));
    assert_eq!(before.len(), after.len());
    for (name, b) in &before {
        let range = b.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(range > 0.1, "{what}: output {name} is empty");
        for (x, y) in b.iter().zip(&after[name]) {
            assert!(
                (x - y).abs() <= 2e-5 * range,
                "{what}: output {name} {x} became {y}"
            );
        }
    }
    // What was recognised before is recognised in the folded model too: quantization looks for it there.
    let (a, b) = (found(model), found(&folded));
    let keys = |r: &Recognised| -> Vec<_> { r.linears.iter().map(|l| l.name.clone()).collect() };
    assert_eq!(keys(&a), keys(&b), "{what}");
    sites
}
