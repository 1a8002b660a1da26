//! Every operator that the calibration copy decomposes, and those that exporters use, computes what ONNX defines:
//! `tests/data/operators.npz` (made by `make_operators.py` beside it, with the cases of `block_operators.py`) has models of one
//! operator or a few, inputs and expected outputs. `OPERATOR_CASES=FILE.npz` runs the cases of another file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use ndarray::ArrayD;
use ndarray_npy::NpzReader;
use onnx_osplus::calibrate::{Batch, Engine, InputTensor, TractEngine, Values, Wanted};
use onnx_osplus::onnx::Model;
use prost::Message;

/// Largest difference, relative to the largest magnitude of the expected output where that is above 1.
const TOLERANCE: f32 = 3e-5;

struct Case {
    model: Model,
    inputs: BTreeMap<String, ArrayD<f32>>,
    outputs: BTreeMap<String, ArrayD<f32>>,
}

fn cases() -> BTreeMap<String, Case> {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/operators.npz");
    #[expect(clippy::disallowed_methods, reason = "other cases for the same test")]
    let path = std::env::var("OPERATOR_CASES").unwrap_or_else(|_| committed.into());
    let mut file = NpzReader::new(File::open(path).unwrap()).unwrap();
    let mut cases: BTreeMap<String, Case> = BTreeMap::new();
    let mut names = file.names().unwrap();
    // The model of a case comes before its arrays.
    names.sort_by_key(|name| !name.contains("/model"));
    for entry in names {
        let name = entry.trim_end_matches(".npy");
        let (case, what) = name.split_once('/').unwrap();
        if what == "model" {
            let bytes: ndarray::Array1<u8> = file.by_name(&entry).unwrap();
            let proto = Message::decode(bytes.to_vec().as_slice()).unwrap();
            let empty = Case {
                model: Model { proto },
                inputs: BTreeMap::new(),
                outputs: BTreeMap::new(),
            };
            cases.insert(case.to_owned(), empty);
            continue;
        }
        let array: ArrayD<f32> = file.by_name(&entry).unwrap();
        let (side, value) = what.split_once('/').unwrap();
        let case = cases.get_mut(case).unwrap();
        let all = match side {
            "in" => &mut case.inputs,
            _ => &mut case.outputs,
        };
        all.insert(value.to_owned(), array);
    }
    cases
}

/// The largest difference of an output from what is expected, or why there is none.
fn run(case: &Case) -> Result<f32, String> {
    let input = |(name, array): (&String, &ArrayD<f32>)| {
        (
            name.clone(),
            InputTensor::from_values(Values::F32(array.clone())),
        )
    };
    let batch = Batch::new(case.inputs.iter().map(input).collect(), vec![0]);
    let wanted = Wanted {
        taps: &[],
        outputs: true,
    };
    let plan = TractEngine.plan(&case.model, &batch, &wanted);
    let found = plan
        .and_then(|plan| plan.run(&batch, None))
        .map_err(|e| e.to_string())?;
    let mut worst = 0f32;
    for (name, expected) in &case.outputs {
        let value = found.get(name).ok_or(format!("{name} is missing"))?;
        if value.shape() != expected.shape() {
            let (a, b) = (value.shape(), expected.shape());
            return Err(format!("{name} has shape {a:?}, expected {b:?}"));
        }
        let largest = expected.iter().fold(1f32, |m, v| m.max(v.abs()));
        for (value, expected) in value.iter().zip(expected) {
            let difference = (value - expected).abs() / largest;
            worst = if difference.is_nan() {
                f32::INFINITY
            } else {
                worst.max(difference)
            };
        }
    }
    Ok(worst)
}

#[test]
fn operators_compute_what_onnx_defines() {
    let cases = cases();
    assert!(cases.len() > 100, "only {} cases", cases.len());
    let mut operators = BTreeSet::new();
    let mut wrong = Vec::new();
    for (name, case) in &cases {
        let nodes = &case.model.graph().node;
        operators.extend(nodes.iter().map(|n| n.op_type().to_owned()));
        match run(case) {
            Ok(worst) if worst <= TOLERANCE => {}
            Ok(worst) => wrong.push(format!("{name}: differs by {worst:e}")),
            Err(reason) => wrong.push(format!("{name}: {reason}")),
        }
    }
    assert!(operators.contains("Attention"), "{operators:?}");
    let (count, all) = (wrong.len(), cases.len());
    assert!(count == 0, "{count} of {all}:\n{}", wrong.join("\n"));
}
