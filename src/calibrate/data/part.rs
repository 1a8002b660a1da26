//! Data of a part of a model: what the user gave, and values that other parts computed, which wait on the disk.
//!
//! ```text
//! whole model's inputs ──────────────┐
//! part before ─▶ RowStore ─▶ Stored ─┴─▶ Dataset::of_part ─▶ the same rows, in the same batches
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::ArrayD;
use serde::{Deserialize, Serialize};

use crate::calibrate::data::array::{Element, FileArray};
use crate::calibrate::data::dataset::Dataset;
use crate::calibrate::data::error::CalibError;
use crate::calibrate::data::input::{Batch, NamedArray};
use crate::calibrate::data::signature::model_inputs;
use crate::calibrate::data::table::Table;
use crate::graph::branches::FlatModel;
use crate::graph::size_inputs;
use crate::onnx::{InputFile, Model};

/// A value of one calibration table on the disk: float32, little endian, row-major, its rows on axis 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// Its name in the folder that it was written to.
    pub file: String,
    /// Sizes of its axes.
    pub shape: Vec<usize>,
}

/// Values by name; of each, one array per table of the data, `None` where no row of the table was run.
pub type StoredValues = BTreeMap<String, Vec<Option<Stored>>>;

/// Takes values of single batches, in any order, and writes their rows where they belong.
pub struct RowStore {
    folder: PathBuf,
    stem: String,
    /// First row and rows of every table.
    tables: Vec<(u64, usize)>,
    names: Vec<String>,
    files: Mutex<BTreeMap<(usize, usize), (File, Stored)>>,
}

impl RowStore {
    /// For the values `names` of the rows of `data`; the files are in `folder`, and their names begin with `stem`.
    pub fn new(data: &Dataset, folder: &Path, stem: &str, names: &[String]) -> RowStore {
        let tables = data.tables.iter().map(|t| (t.first_row, t.rows));
        RowStore {
            folder: folder.to_owned(),
            stem: stem.to_owned(),
            tables: tables.collect(),
            names: names.to_vec(),
            files: Mutex::default(),
        }
    }

    /// Writes the rows of a batch, for every name that is known.
    ///
    /// # Errors
    /// What the system says; an array that has no row for each of the batch.
    pub fn put(&self, rows: &[u64], outputs: &BTreeMap<String, ArrayD<f32>>) -> io::Result<()> {
        let named = self.names.iter().enumerate();
        for (number, array) in named.filter_map(|(i, name)| Some((i, outputs.get(name)?))) {
            self.put_one(rows, number, array)?;
        }
        Ok(())
    }

    fn put_one(&self, rows: &[u64], number: usize, array: &ArrayD<f32>) -> io::Result<()> {
        let wrong = || {
            io::Error::other(format!(
                "{} has no row for each row of the data",
                self.names[number]
            ))
        };
        let first = *rows.first().ok_or_else(wrong)?;
        let in_table =
            |(start, count): &(u64, usize)| (*start..start + *count as u64).contains(&first);
        let table = self.tables.iter().position(in_table).ok_or_else(wrong)?;
        let (start, count) = self.tables[table];
        if array.shape().first() != Some(&rows.len()) {
            return Err(wrong());
        }
        let mut shape = array.shape().to_vec();
        shape[0] = count;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, stored) = match files.entry((number, table)) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let name = format!("{}-{number}-{table}.f32", self.stem);
                let file = File::create(self.folder.join(&name))?;
                let elements: usize = shape.iter().product();
                file.set_len((elements * size_of::<f32>()) as u64)?;
                let shape = shape.clone();
                entry.insert((file, Stored { file: name, shape }))
            }
        };
        if stored.shape != shape {
            return Err(wrong());
        }
        let row_len: usize = shape[1..].iter().product();
        let standard = array.as_standard_layout();
        let values = standard.as_slice().ok_or_else(wrong)?;
        for (row, values) in rows.iter().zip(values.chunks_exact(row_len.max(1))) {
            let at = (row - start) as usize * row_len * size_of::<f32>();
            file.seek(SeekFrom::Start(at as u64))?;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            file.write_all(&bytes)?;
        }
        Ok(())
    }

    /// What was written.
    pub fn finish(self) -> StoredValues {
        let files = self
            .files
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let of = |number: usize| {
            let table = |table| {
                files
                    .get(&(number, table))
                    .map(|(_, stored)| stored.clone())
            };
            (0..self.tables.len()).map(table).collect()
        };
        let values = self.names.iter().enumerate();
        values.map(|(i, name)| (name.clone(), of(i))).collect()
    }
}

impl Dataset {
    /// The same rows for a part of the model. `fed` are inputs of `part` that are none of the whole model, on the disk in
    /// `folder`. Padding is where it is in the whole model; what is filled in has the sizes that it has there.
    ///
    /// # Errors
    /// A stored value that cannot be read.
    pub fn of_part(
        &self,
        part: &Model,
        folder: &Path,
        fed: &StoredValues,
    ) -> Result<Dataset, CalibError> {
        let whole = match self.whole.is_empty() {
            true => self.inputs.clone(),
            false => self.whole.clone(),
        };
        let mut data = Dataset {
            inputs: model_inputs(part)?,
            whole,
            sizes: size_inputs(&FlatModel::of(part.clone()).view()),
            notes: vec![],
            tables: vec![],
            ..self.clone()
        };
        for (number, table) in self.tables.iter().enumerate() {
            let mut arrays = table.arrays.clone();
            let mut whole = true;
            for (name, tables) in fed {
                match tables.get(number).and_then(Option::as_ref) {
                    Some(stored) => {
                        let array = Arc::new(read(folder, name, stored)?);
                        arrays.insert(name.clone(), (array, Some(0)));
                    }
                    None => whole = false,
                }
            }
            // Of a table without held-out rows, nothing judges.
            if whole {
                data.tables.push(Table {
                    arrays,
                    rows: table.rows,
                    first_row: table.first_row,
                });
            }
        }
        Ok(data)
    }

    /// Batches of the very rows of `batches`, which are of other data with the same rows.
    pub fn batches_like(&self, batches: &[Batch]) -> Vec<Batch> {
        let like = |batch: &Batch| {
            let first = batch.rows.first()?;
            let table = self.tables.iter().find(|table| table.holds(first))?;
            let rows = batch
                .rows
                .iter()
                .map(|row| (row - table.first_row) as usize);
            Some(self.batch(table, &rows.collect::<Vec<_>>()))
        };
        batches.iter().filter_map(like).collect()
    }
}

fn read(folder: &Path, name: &str, stored: &Stored) -> Result<NamedArray, CalibError> {
    let file = folder.join(&stored.file);
    let opened = InputFile::open(&file).map_err(|source| CalibError::Read {
        file: file.clone(),
        source,
    })?;
    let data = FileArray::new(Element::Float(4), stored.shape.clone(), opened.bytes);
    let data = data.ok_or_else(|| CalibError::Source {
        file: file.clone(),
        problem: "is not as long as it was written".to_owned(),
    })?;
    Ok(NamedArray {
        file,
        array: None,
        input: name.to_owned(),
        data,
    })
}
