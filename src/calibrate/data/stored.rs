//! The rows of calibration data as bytes: what a file of statistics keeps of them, so that it does without the files they came from.
//!
//! ```text
//! length of the head (8 bytes, little endian) │ head: JSON │ elements of every array, in the order of the head
//! ```

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::calibrate::data::array::{Element, FileArray};
use crate::calibrate::data::dataset::Dataset;
use crate::calibrate::data::error::CalibError;
use crate::calibrate::data::input::NamedArray;
use crate::calibrate::data::origins::Origins;
use crate::calibrate::data::signature::model_inputs;
use crate::calibrate::data::sources::{named, unknown};
use crate::calibrate::data::table::Table;
use crate::onnx::Model;

#[derive(Serialize, Deserialize)]
struct Head {
    tables: Vec<Vec<Array>>,
    origins: Origins,
    notes: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Array {
    input: String,
    element: String,
    shape: Vec<usize>,
}

impl Array {
    /// Its elements, which are taken from the beginning of `rest`; `None` if they are not there.
    fn elements(&self, rest: &mut Bytes) -> Option<FileArray> {
        let element = Element::from_name(&self.element)?;
        let mut sizes = self.shape.iter();
        let length = sizes.try_fold(element.size(), |n, size| n.checked_mul(*size))?;
        let bytes = (length <= rest.len()).then(|| rest.split_to(length))?;
        FileArray::new(element, self.shape.clone(), bytes)
    }
}

/// The longest head that is read.
const MOST: usize = 64 << 20;

impl Dataset {
    /// Writes all rows: what [`Dataset::of_stored`] reads.
    ///
    /// # Errors
    /// What the system says.
    pub fn store(&self, out: &mut impl Write) -> io::Result<()> {
        let arrays = |table: &Table| {
            let arrays = table.arrays.iter();
            let array = |(input, (array, _)): (&String, &(Arc<NamedArray>, _))| Array {
                input: input.clone(),
                element: array.data.element.to_string(),
                shape: array.data.shape.clone(),
            };
            arrays.map(array).collect()
        };
        let head = Head {
            tables: self.tables.iter().map(arrays).collect(),
            origins: self.origins.clone(),
            notes: self.notes.clone(),
        };
        let text = serde_json::to_vec(&head)?;
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(&text)?;
        for table in &self.tables {
            for (array, _) in table.arrays.values() {
                out.write_all(array.data.bytes())?;
            }
        }
        Ok(())
    }

    /// The data whose rows [`Dataset::store`] wrote: with the same digest, and cut in the same way. `file` is named in errors.
    ///
    /// # Errors
    /// Bytes that it did not write, or not for a model with such inputs.
    pub fn of_stored(
        model: &Model,
        stored: &Bytes,
        batch: usize,
        file: &Path,
    ) -> Result<Dataset, CalibError> {
        let inputs = model_inputs(model)?;
        let damaged = || CalibError::Source {
            file: file.to_owned(),
            problem: "holds rows that are damaged: take the statistics again".to_owned(),
        };
        let (head, mut rest) = head(stored).ok_or_else(damaged)?;
        let mut tables = Vec::with_capacity(head.tables.len());
        for stated in head.tables {
            let mut table = BTreeMap::new();
            for array in stated {
                if !inputs.iter().any(|known| known.name == array.input) {
                    return Err(unknown(&inputs, file, &array.input));
                }
                let data = array.elements(&mut rest).ok_or_else(damaged)?;
                let made = named(&array.input, file, Some(&array.input), data);
                table.insert(array.input, made);
            }
            tables.push(table);
        }
        let mut dataset = Dataset::without_rows(model, inputs, batch.max(1));
        dataset.add_tables(model, tables, &BTreeMap::new())?;
        if head.origins.rows() != dataset.rows() {
            return Err(damaged());
        }
        dataset.origins = head.origins;
        // Among them are those that the model and the arrays give, and how the user's files were read.
        dataset.notes = head.notes;
        Ok(dataset)
    }
}

/// The head, and what follows it.
fn head(stored: &Bytes) -> Option<(Head, Bytes)> {
    let length = u64::from_le_bytes(*stored.first_chunk()?);
    let length = usize::try_from(length).ok().filter(|n| *n <= MOST)?;
    let text = stored.get(8..)?.get(..length)?;
    Some((
        serde_json::from_slice(text).ok()?,
        stored.slice(8 + length..),
    ))
}
