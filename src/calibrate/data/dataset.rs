//! Calibration data as a whole: from the paths a user names to batches.
//!
//! Sources become *tables*: one array per given model input, all with equally many rows (axis 0). Every table is checked
//! against the model when it is opened — names, element types, shapes, every value — so a run does not fail half way.
//! [`Dataset::split`] then cuts the tables into [`Batch`]es.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::calibrate::data::array::FileArray;
use crate::calibrate::data::axes::{ArrayShapes, BatchAxes, batch_axes, fixed_size};
use crate::calibrate::data::error::CalibError;
use crate::calibrate::data::fill::{FillRule, Filled, MASKS, Sizes, rule};
use crate::calibrate::data::input::{Batch, InputTensor, NamedArray, PaddingMask, check_shape};
use crate::calibrate::data::masks::{self, Reading};
use crate::calibrate::data::origins::Origins;
use crate::calibrate::data::signature::{ModelInput, list, model_inputs};
use crate::calibrate::data::sources::{CalibSource, Origin, Read, read_tables};
use crate::calibrate::data::table::{Table, equal_parts};
use crate::graph::branches::FlatModel;
use crate::graph::size_inputs;
use crate::onnx::{Digest, Model};
use crate::prepare::Settings;

/// Of every `HOLD_OUT` rows the last is held out for verification.
const HOLD_OUT: usize = 8;

/// Tokens, about, that are run at a time: the values between two operators then fit the caches of a core. Much longer
/// batches take a quarter more time, most of it for pages of memory that are mapped and cleared again and again.
pub(crate) const TOKENS: usize = 512;

/// Checked calibration data.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub(super) inputs: Vec<ModelInput>,
    /// Where this is the data of a part of a model, the inputs of the whole one: their sizes tell those of what is filled in.
    pub(super) whole: Vec<ModelInput>,
    pub(super) tables: Vec<Table>,
    pub(super) batch: usize,
    pub(super) fixed_batch: Option<usize>,
    pub(super) filled: Vec<Filled>,
    pub(super) notes: Vec<String>,
    /// The inputs from whose values sizes inside the model are computed.
    pub(super) sizes: BTreeSet<String>,
    /// How masks are read, by input.
    pub(super) masks: BTreeMap<String, Reading>,
    /// Which rows of the user's files the rows are.
    pub(super) origins: Origins,
}

/// Batches for computing statistics and batches for judging the result.
#[derive(Debug, Clone)]
pub struct Split {
    /// Rows for the statistics.
    pub calibration: Vec<Batch>,
    /// Rows for verification.
    pub held_out: Vec<Batch>,
    /// False if there are too few rows to hold any out: then both lists hold all rows.
    pub held_out_used: bool,
}

impl Dataset {
    /// Opens and checks all `sources` for `model`. At most `batch` rows are run at a time, of long sequences fewer, unless
    /// the model fixes its batch size.
    ///
    /// # Errors
    /// Every way in which the data does not suit the model, naming file, array, what was expected and what was found.
    pub fn open(
        model: &Model,
        sources: &[CalibSource],
        batch: usize,
    ) -> Result<Dataset, CalibError> {
        Dataset::open_with(model, sources, batch, &Settings::default())
    }

    /// [`Dataset::open`], with what is said of how text becomes inputs.
    ///
    /// # Errors
    /// Those of [`Dataset::open`]; text that cannot be made into inputs.
    pub fn open_with(
        model: &Model,
        sources: &[CalibSource],
        batch: usize,
        settings: &Settings,
    ) -> Result<Dataset, CalibError> {
        let mut dataset = Dataset::without_rows(model, model_inputs(model)?, batch.max(1));
        let Read {
            tables,
            notes,
            origins,
            ..
        } = read_tables(&dataset.inputs, sources, settings)?;
        dataset.notes = notes;
        dataset.add_tables(model, tables, &origins)?;
        Ok(dataset)
    }

    /// Checks tables against the model, and adds them.
    ///
    /// # Errors
    /// Those of [`Dataset::open`].
    pub(super) fn add_tables(
        &mut self,
        model: &Model,
        tables: Vec<BTreeMap<String, Arc<NamedArray>>>,
        origins: &BTreeMap<usize, Origin>,
    ) -> Result<(), CalibError> {
        let mut first_row = 0;
        let axes = self.batch_axes(&tables);
        for (number, arrays) in tables.into_iter().enumerate() {
            let table = self.table(arrays, &axes, first_row)?;
            first_row += table.rows as u64;
            self.origins.add(table.rows, origins.get(&number));
            self.tables.push(table);
        }
        if self.tables.is_empty() {
            return Err(CalibError::NoSource);
        }
        self.read_masks(model);
        Ok(())
    }

    /// Of no table yet.
    pub(super) fn without_rows(model: &Model, inputs: Vec<ModelInput>, batch: usize) -> Dataset {
        Dataset {
            fixed_batch: None,
            tables: vec![],
            batch,
            filled: vec![],
            notes: vec![],
            sizes: size_inputs(&FlatModel::of(model.clone()).view()),
            masks: BTreeMap::new(),
            inputs,
            whole: vec![],
            origins: Origins::default(),
        }
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.tables.iter().map(|table| table.rows).sum()
    }

    /// Which row of the user's files, all counted as one, the row `row` of the data is: not the same where rows were left out or
    /// put into another order.
    pub fn origin(&self, row: u64) -> usize {
        self.origins.of(row)
    }

    /// Rows of the user's files, those that are not used included.
    pub fn origins(&self) -> usize {
        self.origins.all()
    }

    /// The number of tokens of all rows, about; of data that do not tell, as images, the number of rows at least.
    pub fn tokens(&self) -> u64 {
        let tokens = |table: &Table| table.rows as u64 * table.length().unwrap_or(1) as u64;
        self.tables.iter().map(tokens).sum()
    }

    /// SHA-256 of what the model is fed with: names, types, shapes and elements of every array, in the order of the files.
    /// The same data in other files, or compressed, has the same digest.
    pub fn digest(&self) -> String {
        let mut digest = Digest::default();
        for table in &self.tables {
            for (name, (array, _)) in &table.arrays {
                let FileArray { element, shape, .. } = &array.data;
                digest.update(format!("{name}\0{element}\0{shape:?}\0").as_bytes());
                digest.update(array.data.bytes());
            }
        }
        digest.text()
    }

    /// The inputs that were filled in because no file gives them, in graph order.
    pub fn filled(&self) -> &[Filled] {
        &self.filled
    }

    /// Remarks a user should see, e.g. that a mask of unusual shape excludes no padding.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Cuts the data into batches; every 8th row (every 8th group of rows where the model fixes the batch size) is held
    /// out for verification if there are at least 8. Of fewer the last is, if the others have some hundred tokens.
    pub fn split(&self) -> Split {
        let unit = self.fixed_batch.unwrap_or(1);
        let units = self.rows() / unit;
        // Few long rows have tokens enough to do without one.
        let first = |table: &Table| table.rows * table.tokens();
        let tokens: usize = self.tables.iter().map(first).sum();
        let few = units > 1 && tokens / units * (units - 1) >= TOKENS;
        let every = HOLD_OUT.min(units.max(1));
        let held_out_used = units >= HOLD_OUT || few;
        let mut split = Split {
            calibration: vec![],
            held_out: vec![],
            held_out_used,
        };
        for table in &self.tables {
            let held = |row: &usize| {
                let number = (table.first_row as usize + row) / unit;
                held_out_used && number % every == every - 1
            };
            let (held, kept): (Vec<usize>, Vec<usize>) = (0..table.rows).partition(held);
            let size = self.rows_of_batch(table);
            split.calibration.extend(self.batches(table, &kept, size));
            let size = equal_parts(held.len(), size.min(held.len()).div_ceil(2));
            split.held_out.extend(self.batches(table, &held, size));
        }
        if !held_out_used {
            split.held_out = split.calibration.clone();
        }
        split
    }

    /// All rows, in their order.
    pub fn all(&self) -> Vec<Batch> {
        let mut batches = Vec::new();
        for table in &self.tables {
            let rows: Vec<usize> = (0..table.rows).collect();
            batches.extend(self.batches(table, &rows, self.rows_of_batch(table)));
        }
        batches
    }

    /// The first rows of the first table, whole, as one batch of about `tokens` tokens; at least one unit of rows.
    pub fn few(&self, tokens: usize) -> Option<Batch> {
        self.sequences(tokens)
            .or_else(|| self.all().into_iter().next())
    }

    /// Small batches to learn shapes from, one for every setting of the switches: two rows, so that the batch is an
    /// axis like any other, or as many as the model fixes.
    pub fn small_batches(&self) -> Vec<Batch> {
        let mut small: Vec<Batch> = Vec::new();
        for table in &self.tables {
            let rows: Vec<usize> = (0..self.fixed_batch.unwrap_or(table.rows.min(2))).collect();
            let batch = self.batch(table, &rows);
            if !small.iter().any(|b| b.switches() == batch.switches()) {
                small.push(batch);
            }
        }
        small
    }

    /// The first calibration rows of the first table, whole, as one batch of about `tokens` tokens: for what is kept of a
    /// few sequences. At least two rows, or a long one where the model takes no more at a time; `None` if there are no others.
    pub fn sequences(&self, tokens: usize) -> Option<Batch> {
        let calibration = self.split().calibration;
        let first = calibration.first()?;
        let in_table = |t: &&Table| first.rows.iter().all(|row| t.holds(row));
        let table = self.tables.iter().find(in_table)?;
        // Images and sounds do not tell how many tokens they make.
        let length = table.length().unwrap_or(tokens / 4);
        let count = self.fixed_batch.unwrap_or((tokens / length).max(2));
        let rows = calibration.iter().flat_map(|b| b.rows.iter());
        let rows = rows.filter(|row| table.holds(row)).take(count);
        let rows: Vec<usize> = rows.map(|r| (r - table.first_row) as usize).collect();
        // One long row is enough to run on, if others set the ranges.
        let long = table.tokens() >= TOKENS / 4 && calibration.len() > 1;
        (rows.len() > 1 || long && rows.len() == count).then(|| self.batch(table, &rows))
    }

    /// How many rows are run at a time.
    fn rows_of_batch(&self, table: &Table) -> usize {
        let most = table.length().map_or(self.batch, |n| TOKENS / n);
        most.clamp(1, self.batch)
    }

    /// `rows` in batches of `size`, unless the model fixes it.
    fn batches(&self, table: &Table, rows: &[usize], size: usize) -> Vec<Batch> {
        let batches = rows.chunks(self.fixed_batch.unwrap_or(size));
        batches.map(|rows| self.batch(table, rows)).collect()
    }

    pub(super) fn batch(&self, table: &Table, rows: &[usize]) -> Batch {
        let sizes = self.sizes(table, rows.len());
        let mut inputs = BTreeMap::new();
        for input in &self.inputs {
            let tensor = match table.arrays.get(&input.name) {
                Some((array, axis)) => InputTensor::from_file(
                    array.clone(),
                    axis.map(|axis| (axis, rows.to_vec())),
                    input.dtype,
                ),
                None => {
                    // `table` refused every table whose missing inputs have no rule or no known shape.
                    let Some((rule, shape)) = fill(&sizes, input) else {
                        continue;
                    };
                    InputTensor::filled(rule, shape, input.dtype)
                }
            };
            let tells = self.sizes.contains(&input.name);
            inputs.insert(input.name.clone(), tensor.telling_sizes(tells));
        }
        // A part of a model need not read the mask that says which of its tokens are padding.
        let of_whole = |name: &String| {
            let input = self.whole.iter().find(|input| input.name == *name)?;
            let (array, axis) = table.arrays.get(name)?;
            let rows = axis.map(|axis| (axis, rows.to_vec()));
            Some(InputTensor::from_file(array.clone(), rows, input.dtype))
        };
        let mask = |(name, reading): (&String, &Reading)| {
            let tensor = inputs.get(name).cloned().or_else(|| of_whole(name))?;
            let real = tensor.as_mask(&reading.padding)?;
            (real.nrows() == rows.len()).then(|| PaddingMask {
                numbers: reading.numbers.clone(),
                ..PaddingMask::new(name, real)
            })
        };
        Batch {
            rows: rows.iter().map(|r| table.first_row + *r as u64).collect(),
            masks: self.masks.iter().filter_map(mask).collect(),
            inputs,
        }
    }

    fn sizes(&self, table: &Table, rows: usize) -> Sizes {
        let given = table
            .arrays
            .iter()
            .map(|(name, (array, axis))| {
                let mut shape = array.data.shape.clone();
                if let Some(size) = axis.and_then(|axis| shape.get_mut(axis)) {
                    *size = rows;
                }
                (name.clone(), shape)
            })
            .collect();
        Sizes::new(self.inputs.iter().chain(&self.whole), given, rows)
    }

    /// The batch axes of the inputs that the tables give; none where every table is a run of its own, which a note says.
    pub(super) fn batch_axes(&mut self, tables: &[BTreeMap<String, Arc<NamedArray>>]) -> BatchAxes {
        let shapes = tables.iter().map(|table| {
            let shape = |(name, array): (&String, &Arc<NamedArray>)| {
                (name.clone(), array.data.shape.clone())
            };
            table.iter().map(shape).collect()
        });
        let shapes: Vec<ArrayShapes> = shapes.collect();
        batch_axes(&self.inputs, &shapes).unwrap_or_else(|| {
            self.notes.push(
                "the inputs share no axis, so every calibration file is one run of the model"
                    .to_owned(),
            );
            BatchAxes::new()
        })
    }

    /// Checks one table against the model.
    pub(super) fn table(
        &mut self,
        arrays: BTreeMap<String, Arc<NamedArray>>,
        axes: &BatchAxes,
        first_row: u64,
    ) -> Result<Table, CalibError> {
        let mut rows: Option<(&NamedArray, usize)> = None;
        let mut checked = BTreeMap::new();
        let given: Vec<&ModelInput> = self
            .inputs
            .iter()
            .filter(|input| arrays.contains_key(&input.name))
            .collect();
        let fixed = fixed_size(&self.inputs, axes);
        for input in &given {
            let array = &arrays[&input.name];
            let axis = axes.get(&input.name).copied();
            let axis = axis.filter(|&axis| axis < array.data.shape.len());
            check_shape(input, array, axis)?;
            array.check(input.dtype)?;
            if let Some(axis) = axis {
                let found = array.data.shape[axis];
                match rows {
                    None => rows = Some((array, found)),
                    Some((first, n)) if n != found => {
                        return Err(CalibError::Rows {
                            first: first.input.clone(),
                            first_rows: n,
                            second: input.name.clone(),
                            second_rows: found,
                        });
                    }
                    Some(_) => {}
                }
            }
            checked.insert(input.name.clone(), (array.clone(), axis));
        }
        // Every table comes from at least one array; without a batch axis it is a single run.
        let Some(any) = arrays.values().next() else {
            return Err(CalibError::NoSource);
        };
        let rows = rows.map_or(1, |(_, n)| n);
        if rows == 0 {
            return Err(CalibError::Source {
                file: any.file.clone(),
                problem: format!("has no rows for input {}", any.input),
            });
        }
        if let Some(batch) = fixed {
            if !rows.is_multiple_of(batch) {
                return Err(CalibError::FixedBatch {
                    file: any.file.clone(),
                    rows,
                    batch,
                });
            }
            self.fixed_batch = Some(batch);
        }
        let table = Table {
            arrays: checked,
            rows,
            first_row,
        };
        let sizes = self.sizes(&table, fixed.unwrap_or(1));
        for input in &self.inputs {
            if table.arrays.contains_key(&input.name) {
                continue;
            }
            let Some((rule, _)) = fill(&sizes, input) else {
                return Err(CalibError::Missing {
                    file: any.file.clone(),
                    missing: input.name.clone(),
                    inputs: list(&self.inputs),
                });
            };
            let filled = Filled {
                input: input.name.clone(),
                rule,
            };
            if !self.filled.contains(&filled) {
                self.filled.push(filled);
            }
        }
        Ok(table)
    }

    /// Finds the masks, and says how they are read and which cannot be used to tell padding.
    fn read_masks(&mut self, model: &Model) {
        for input in &self.inputs {
            let name = &input.name;
            let given = self.tables.iter().filter_map(|t| t.arrays.get(name));
            let given: Vec<&NamedArray> = given.map(|(array, _)| array.as_ref()).collect();
            let Some(first) = given.first() else {
                // A mask that is filled in has no padding, and tells how many tokens there are.
                if MASKS.contains(&name.as_str()) {
                    let reading = Reading {
                        numbers: vec![1.0],
                        padding: vec![],
                        note: String::new(),
                    };
                    self.masks.insert(name.clone(), reading);
                }
                continue;
            };
            let rank = first.data.shape.len();
            if MASKS.contains(&name.as_str())
                && first.data.shape.iter().skip(1).filter(|n| **n != 1).count() > 1
            {
                self.notes.push(format!(
                    "{name} has {rank} axes; only a mask [batch, sequence] tells padding, so every position counts"
                ));
                continue;
            }
            let numbers = if rank < 2 {
                None
            } else {
                masks::few_numbers(&given)
            };
            if let Some(reading) = numbers.and_then(|n| masks::reading(model, name, &n)) {
                self.notes.push(reading.note.clone());
                self.masks.insert(name.clone(), reading);
            }
        }
    }
}

fn fill(sizes: &Sizes, input: &ModelInput) -> Option<(FillRule, Vec<usize>)> {
    let rule = match rule(&input.name)? {
        FillRule::False if sizes.has_past() => FillRule::True,
        rule => rule,
    };
    Some((rule, sizes.shape(input, rule)?))
}
