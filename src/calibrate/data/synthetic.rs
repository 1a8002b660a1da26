//! Data made up for a model that has none: enough to learn shapes from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use crate::calibrate::data::array::{Element, FileArray};
use crate::calibrate::data::dataset::Dataset;
use crate::calibrate::data::error::CalibError;
use crate::calibrate::data::fill::rule;
use crate::calibrate::data::input::NamedArray;
use crate::calibrate::data::signature::{Dim, ModelInput, list, model_inputs};
use crate::onnx::Model;
use crate::onnx::proto::tensor_proto::DataType;

/// Bytes of inputs that are made up, at most.
const MOST_ZEROS: usize = 256 << 20;

/// Samples of a recording: one second of 16 kHz. Convolutions of speech models span hundreds of them.
const SAMPLES: usize = 16_000;

/// Whether an input is a recording of any length: floats of two axes.
fn is_recording(input: &ModelInput) -> bool {
    let free = |dims: &Vec<Dim>| matches!(dims.as_slice(), [_, Dim::Named(_) | Dim::Any]);
    let float = [DataType::Float, DataType::Float16, DataType::Bfloat16].contains(&input.dtype);
    float && input.shape.as_ref().is_some_and(free)
}

impl Dataset {
    /// Two rows of zeros for every input that no rule fills, of 8 tokens where the model does not say how many (224 × 224
    /// pixels, 3 of them a colour, for inputs of four axes; a second of sound for floats of two axes): enough to learn
    /// shapes from, and for nothing else.
    ///
    /// # Errors
    /// An input whose number of axes is not stated, or that cannot be filled.
    pub fn synthetic(model: &Model) -> Result<Dataset, CalibError> {
        let inputs = model_inputs(model)?;
        let file = PathBuf::from("(zeros)");
        let mut arrays = BTreeMap::new();
        let mut left = Some(MOST_ZEROS);
        let recordings = inputs.iter().filter(|input| is_recording(input));
        let lengths = recordings.flat_map(|input| input.shape.iter().flatten().skip(1));
        let samples: BTreeSet<&str> = lengths.filter_map(Dim::name).collect();
        for input in inputs.iter().filter(|input| rule(&input.name).is_none()) {
            let size = |(axis, dim): (usize, &Dim), rank: usize| match (dim, axis, rank) {
                (Dim::Fixed(n), _, _) => *n,
                (_, 0, _) => 2,
                (_, 1, 4) => 3,
                (_, _, 4) => 224,
                (dim, 1, _)
                    if is_recording(input) || dim.name().is_some_and(|n| samples.contains(n)) =>
                {
                    SAMPLES
                }
                _ => 8,
            };
            let shape = input.shape.as_ref().map(|dims| {
                let sizes = dims.iter().enumerate().map(|dim| size(dim, dims.len()));
                sizes.collect::<Vec<usize>>()
            });
            let element = Element::from_onnx(input.dtype);
            let zeros = shape.zip(element).map(|(shape, element)| {
                let size = element.size();
                let bytes = shape.iter().try_fold(size, |n, &d| n.checked_mul(d));
                left = bytes.and_then(|bytes| left?.checked_sub(bytes));
                match (left, bytes) {
                    (Some(_), Some(bytes)) => Ok(FileArray::new(element, shape, vec![0; bytes].into())),
                    _ => Err(CalibError::Source {
                        file: file.clone(),
                        problem: format!(
                            "input {} of shape {shape:?} would take the inputs above {} MB of zeros; give data",
                            input.name,
                            MOST_ZEROS >> 20
                        ),
                    }),
                }
            });
            let zeros = zeros.transpose()?.flatten();
            let data = zeros.ok_or_else(|| CalibError::Missing {
                file: file.clone(),
                missing: input.name.clone(),
                inputs: list(&inputs),
            })?;
            let array = NamedArray {
                file: file.clone(),
                array: None,
                input: input.name.clone(),
                data,
            };
            arrays.insert(input.name.clone(), Arc::new(array));
        }
        let mut dataset = Dataset::without_rows(model, inputs, 2);
        let axes = dataset.batch_axes(std::slice::from_ref(&arrays));
        let table = dataset.table(arrays, &axes, 0)?;
        dataset.tables.push(table);
        Ok(dataset)
    }
}
