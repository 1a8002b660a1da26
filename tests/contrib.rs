//! ONNX Runtime's own operators give in the calibration engine what they give in ONNX Runtime: every case of
//! tests/data/contrib/contrib.npz (made by make.py beside it).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use ndarray::{ArrayD, Ix1, IxDyn, OwnedRepr};
use ndarray_npy::{NpzReader, ReadableElement};
use onnx_osplus::calibrate::{Batch, InputTensor, TractEngine, Values, outputs};
use onnx_osplus::onnx::load;
use onnx_osplus::progress::NoProgress;

/// |engine − ONNX Runtime| ≤ TOLERANCE · (1 + largest |ONNX Runtime|)
const TOLERANCE: f32 = 2e-5;

struct Cases {
    file: NpzReader<File>,
    names: Vec<String>,
}

impl Cases {
    fn open() -> Cases {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/contrib/contrib.npz");
        let mut file = NpzReader::new(File::open(path).unwrap()).unwrap();
        let names = file.names().unwrap();
        Cases { file, names }
    }

    fn read<T: ReadableElement>(&mut self, name: &str) -> Option<ArrayD<T>> {
        self.file.by_name::<OwnedRepr<T>, IxDyn>(name).ok()
    }

    fn input(&mut self, name: &str) -> Values {
        if let Some(array) = self.read(name) {
            return Values::F32(array);
        }
        match self.read(name) {
            Some(array) => Values::I32(array),
            None => Values::I64(self.read(name).unwrap()),
        }
    }

    fn below(&self, case: &str, kind: &str) -> Vec<(String, String)> {
        let prefix = format!("{case}|{kind}|");
        let entries = self.names.iter().filter_map(|entry| {
            let name = entry.strip_prefix(&prefix)?;
            Some((entry.clone(), name.to_owned()))
        });
        entries.collect()
    }

    /// What differs, if anything does.
    fn check(&mut self, case: &str) -> Result<(), String> {
        let bytes = self
            .file
            .by_name::<OwnedRepr<u8>, Ix1>(&format!("{case}|model"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, bytes.unwrap().as_slice().unwrap()).unwrap();
        let model = load(&path).unwrap();
        let inputs: BTreeMap<_, _> = self
            .below(case, "in")
            .into_iter()
            .map(|(entry, name)| (name, InputTensor::from_values(self.input(&entry))))
            .collect();
        let batch = Batch::new(inputs, vec![0, 1]);
        let got = outputs(&TractEngine, &model, &[batch], 1, &NoProgress)
            .map_err(|error| error.to_string())?;
        for (entry, name) in self.below(case, "out") {
            let expected: ArrayD<f32> = self.read(&entry).unwrap();
            let got = got.batches[0]
                .get(&name)
                .ok_or(format!("no output {name}"))?;
            if got.shape() != expected.shape() {
                return Err(format!(
                    "{name} has shape {:?}, not {:?}",
                    got.shape(),
                    expected.shape()
                ));
            }
            let largest = expected.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
            let error = (got - &expected)
                .iter()
                .fold(0.0, |m: f32, x| m.max(x.abs()));
            if error.is_nan() || error > TOLERANCE * (1.0 + largest) {
                return Err(format!("{name} differs by {error}, of {largest}"));
            }
        }
        Ok(())
    }
}

#[test]
fn the_engine_agrees_with_onnx_runtime() {
    let mut cases = Cases::open();
    let suffix = "|model";
    let names: Vec<String> = cases
        .names
        .iter()
        .filter_map(|n| n.strip_suffix(suffix).map(str::to_owned))
        .collect();
    assert!(names.len() > 100, "{} cases", names.len());
    let wrong: Vec<String> = names
        .iter()
        .filter_map(|case| Some(format!("{case}: {}", cases.check(case).err()?)))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        names.len(),
        wrong.join("\n")
    );
}
