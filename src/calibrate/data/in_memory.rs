//! Data that are in memory already.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use crate::calibrate::data::array::{Element, FileArray, Values};
use crate::calibrate::data::dataset::Dataset;
use crate::calibrate::data::error::CalibError;
use crate::calibrate::data::signature::model_inputs;
use crate::calibrate::data::sources::{named, unknown};
use crate::onnx::Model;

impl Dataset {
    /// Arrays by input, in tables of rows of one shape each; `from` says in errors where they come from. At most `batch` rows are run
    /// at a time.
    ///
    /// # Errors
    /// Every way in which the data do not suit the model, as with files.
    pub fn of_arrays(
        model: &Model,
        tables: Vec<BTreeMap<String, Values>>,
        batch: usize,
        from: &Path,
    ) -> Result<Dataset, CalibError> {
        let inputs = model_inputs(model)?;
        let mut made = Vec::with_capacity(tables.len());
        for table in tables {
            let mut arrays = BTreeMap::new();
            for (name, values) in table {
                if !inputs.iter().any(|input| input.name == name) {
                    return Err(unknown(&inputs, from, &name));
                }
                let (element, shape, bytes) = raw(&values);
                if let Some(data) = FileArray::new(element, shape, bytes) {
                    arrays.insert(name.clone(), named(&name, from, Some(&name), data));
                }
            }
            made.push(arrays);
        }
        let mut dataset = Dataset::without_rows(model, inputs, batch.max(1));
        dataset.add_tables(model, made, &BTreeMap::new())?;
        Ok(dataset)
    }
}

/// The elements as a file would hold them.
fn raw(values: &Values) -> (Element, Vec<usize>, Bytes) {
    macro_rules! of {
        ($element:expr, $array:expr) => {{
            let bytes: Vec<u8> = $array.iter().flat_map(|v| v.to_le_bytes()).collect();
            ($element, $array.shape().to_vec(), bytes.into())
        }};
    }
    match values {
        Values::F32(a) => of!(Element::Float(4), a),
        Values::I8(a) => of!(Element::Int(1), a),
        Values::I16(a) => of!(Element::Int(2), a),
        Values::I32(a) => of!(Element::Int(4), a),
        Values::I64(a) => of!(Element::Int(8), a),
        Values::U8(a) => of!(Element::Uint(1), a),
        Values::U16(a) => of!(Element::Uint(2), a),
        Values::U32(a) => of!(Element::Uint(4), a),
        Values::U64(a) => of!(Element::Uint(8), a),
        Values::Bool(a) => {
            let bytes: Vec<u8> = a.iter().map(|v| u8::from(*v)).collect();
            (Element::Bool, a.shape().to_vec(), bytes.into())
        }
    }
}
