//! What one run of the model is fed with.
//!
//! A [`Batch`] names its inputs without holding their data: an [`InputTensor`] knows its shape and where its rows lie,
//! and [`InputTensor::values`] reads them when the batch is run, so a list of batches costs next to no memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use ndarray::{Array2, ArrayD, IxDyn};

use crate::calibrate::data::array::{BadElement, BadValue, FileArray, Values, type_name};
use crate::calibrate::data::error::{CalibError, place};
use crate::calibrate::data::fill::FillRule;
use crate::calibrate::data::signature::{Dim, ModelInput};
use crate::graph::infer::Limits;
use crate::onnx::proto::tensor_proto::DataType;

/// The shape of every input, by name.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// The inputs that are one boolean, by name.
pub type Switches = BTreeMap<String, bool>;

/// One run of the model: its inputs, the rows they are, and which positions are real tokens.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Every input of the model, by name.
    pub inputs: BTreeMap<String, InputTensor>,
    /// The number of every row over all files, in the order of axis 0.
    pub rows: Vec<u64>,
    /// Which tokens are padding, by the inputs that say so. An encoder–decoder model has a mask for each sequence.
    pub masks: Vec<PaddingMask>,
}

/// Which tokens of one sequence are padding.
#[derive(Debug, Clone, PartialEq)]
pub struct PaddingMask {
    /// The graph input that it was read from. Which sequence it is of follows from what the model does with that.
    pub input: String,
    /// `[B, S]`, true at real tokens, false at padding.
    pub real: Array2<bool>,
    /// The different numbers that the input holds.
    pub numbers: Vec<f64>,
}

impl PaddingMask {
    /// A mask `[B, S]`, true at real tokens, for the sequence that the graph input `input` masks. Where the model has no such
    /// input, it is that of its only sequence.
    pub fn new(input: &str, real: Array2<bool>) -> PaddingMask {
        PaddingMask {
            input: input.to_owned(),
            real,
            numbers: vec![0.0, 1.0],
        }
    }
}

impl Batch {
    /// A batch without padding, for data that is already in memory.
    pub fn new(inputs: BTreeMap<String, InputTensor>, rows: Vec<u64>) -> Batch {
        Batch {
            inputs,
            rows,
            masks: vec![],
        }
    }

    /// The first of the masks; `None` if there is none.
    pub fn mask(&self) -> Option<&Array2<bool>> {
        self.masks.first().map(|mask| &mask.real)
    }

    /// The inputs that have one row for every row of the data.
    pub(in crate::calibrate) fn by_row(&self) -> BTreeSet<&str> {
        let rows = self.rows.len();
        let by_row = |(_, input): &(&String, &InputTensor)| {
            let whole = matches!(input.source, Source::File { rows: None, .. });
            !whole && input.shape.first() == Some(&rows)
        };
        let inputs = self.inputs.iter().filter(by_row);
        inputs.map(|(name, _)| name.as_str()).collect()
    }

    /// The inputs that are one boolean: they may decide which branch of the model runs.
    pub fn switches(&self) -> Switches {
        let one = |t: &&InputTensor| t.dtype == DataType::Bool && t.shape.iter().all(|n| *n == 1);
        let value =
            |(name, tensor): (&String, &InputTensor)| match Some(tensor).filter(one)?.values() {
                Ok(Values::Bool(array)) => Some((name.clone(), *array.first()?)),
                _ => None,
            };
        self.inputs.iter().filter_map(value).collect()
    }

    /// Whether one plan serves this batch and `other`.
    pub(in crate::calibrate) fn runs_like(&self, other: &Batch) -> bool {
        self.shapes() == other.shapes() && self.decides_like(other)
    }

    /// Whether its first rows are those of `few`, and what else it is fed with is the same.
    pub(in crate::calibrate) fn begins_with(&self, few: &Batch) -> bool {
        let counts = (few.rows.len(), self.rows.len());
        let alike = |(name, input): (&String, &InputTensor)| {
            let own = self.inputs.get(name).map(InputTensor::shape);
            own.is_some_and(|own| match (input.shape(), own) {
                ([rows, rest @ ..], [all, others @ ..]) => {
                    rest == others && (rows == all || (*rows, *all) == counts)
                }
                ([], []) => true,
                _ => false,
            })
        };
        self.rows.starts_with(&few.rows)
            && self.inputs.len() == few.inputs.len()
            && few.inputs.iter().all(alike)
            && self.decides_like(few)
    }

    /// Whether inputs whose values a plan is made for have the same in both.
    fn decides_like(&self, other: &Batch) -> bool {
        self.switches() == other.switches() && self.sizes() == other.sizes()
    }

    /// The integers of the inputs from whose values sizes are computed, by name. A larger one than sizes are is no such.
    pub(in crate::calibrate) fn sizes(&self) -> BTreeMap<String, (DataType, ArrayD<i64>)> {
        let inputs = self.inputs.iter().filter(|(_, input)| {
            input.tells_sizes && input.shape.iter().product::<usize>() <= Limits::SIZES.ints
        });
        let integers = inputs.filter_map(|(name, input)| {
            let array = input.values().ok()?.to_i64()?;
            Some((name.clone(), (input.dtype, array)))
        });
        integers.collect()
    }

    /// The shape of every input: batches with equal shapes (and [`Batch::switches`]) share one plan.
    pub fn shapes(&self) -> Shapes {
        self.inputs
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.shape.clone()))
            .collect()
    }
}

/// The data of one input of one batch.
#[derive(Debug, Clone)]
pub struct InputTensor {
    dtype: DataType,
    shape: Vec<usize>,
    source: Source,
    /// Sizes inside the model are computed from its values.
    tells_sizes: bool,
}

#[derive(Debug, Clone)]
enum Source {
    Memory(Arc<Values>),
    File {
        array: Arc<NamedArray>,
        /// The batch axis and the rows on it; `None` for the whole array.
        rows: Option<(usize, Vec<usize>)>,
    },
    Fill(FillRule),
}

/// An array with the place it came from.
#[derive(Debug)]
pub(super) struct NamedArray {
    pub file: PathBuf,
    /// Its name inside the file, if the file holds several.
    pub array: Option<String>,
    /// The model input it feeds.
    pub input: String,
    pub data: FileArray,
}

impl NamedArray {
    /// Checks that every value suits an input of type `dtype`.
    pub(super) fn check(&self, dtype: DataType) -> Result<(), CalibError> {
        self.data.check(dtype).map_err(|bad| self.error(dtype, bad))
    }

    fn error(&self, dtype: DataType, bad: BadValue) -> CalibError {
        let place = self.place();
        let input = self.input.clone();
        let expected = type_name(dtype);
        match bad.why {
            BadElement::NotFinite(value) => CalibError::NotFinite {
                place,
                index: bad.index,
                value,
            },
            BadElement::Inexact(value) => CalibError::Inexact {
                place,
                input,
                expected,
                value: format!("{value} at index {:?}", bad.index),
                hint: if dtype == DataType::Float {
                    "; convert with array.astype('float32') if rounding is fine"
                } else {
                    ""
                },
            },
            BadElement::Kind => CalibError::Mismatch {
                place,
                input,
                found: self.data.element.to_string(),
                hint: format!("; convert with array.astype('{expected}')"),
                expected,
            },
        }
    }

    /// The file and, if it holds several, the array in it.
    pub(super) fn place(&self) -> String {
        place(&self.file, self.array.as_deref())
    }
}

impl InputTensor {
    /// An input whose values are in memory.
    pub fn from_values(values: Values) -> InputTensor {
        let (dtype, shape) = match &values {
            Values::F32(a) => (DataType::Float, a.shape()),
            Values::I8(a) => (DataType::Int8, a.shape()),
            Values::I16(a) => (DataType::Int16, a.shape()),
            Values::I32(a) => (DataType::Int32, a.shape()),
            Values::I64(a) => (DataType::Int64, a.shape()),
            Values::U8(a) => (DataType::Uint8, a.shape()),
            Values::U16(a) => (DataType::Uint16, a.shape()),
            Values::U32(a) => (DataType::Uint32, a.shape()),
            Values::U64(a) => (DataType::Uint64, a.shape()),
            Values::Bool(a) => (DataType::Bool, a.shape()),
        };
        InputTensor {
            dtype,
            shape: shape.to_vec(),
            source: Source::Memory(Arc::new(values)),
            tells_sizes: false,
        }
    }

    /// Rows of `array`, by their axis and indices on it, or all of it.
    pub(super) fn from_file(
        array: Arc<NamedArray>,
        rows: Option<(usize, Vec<usize>)>,
        dtype: DataType,
    ) -> InputTensor {
        let mut shape = array.data.shape.clone();
        if let Some((axis, rows)) = &rows
            && let Some(size) = shape.get_mut(*axis)
        {
            *size = rows.len();
        }
        InputTensor {
            dtype,
            shape,
            source: Source::File { array, rows },
            tells_sizes: false,
        }
    }

    /// A filled input.
    pub(super) fn filled(rule: FillRule, shape: Vec<usize>, dtype: DataType) -> InputTensor {
        InputTensor {
            dtype,
            shape,
            source: Source::Fill(rule),
            tells_sizes: false,
        }
    }

    /// The same input, from whose values sizes inside the model are computed if `tells` says so.
    pub(super) fn telling_sizes(self, tells: bool) -> InputTensor {
        InputTensor {
            tells_sizes: tells,
            ..self
        }
    }

    /// The model's element type for this input.
    pub fn dtype(&self) -> DataType {
        self.dtype
    }

    /// Sizes of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Reads the values, converted to the engine's type.
    pub fn values(&self) -> Result<Values, CalibError> {
        match &self.source {
            Source::Memory(values) => Ok((**values).clone()),
            Source::File { array, rows } => array
                .data
                .read(
                    self.dtype,
                    rows.as_ref().map(|(axis, rows)| (*axis, &rows[..])),
                )
                .map_err(|bad| array.error(self.dtype, bad)),
            Source::Fill(rule) => Ok(fill_values(*rule, &self.shape, self.dtype)),
        }
    }

    /// `[B, S]`, true where the element is none of `padding`; `None` unless one axis alone, behind the rows, has more than one
    /// element.
    pub(super) fn as_mask(&self, padding: &[f64]) -> Option<Array2<bool>> {
        let (&b, rest) = self.shape.split_first()?;
        let s = rest.iter().product();
        if rest.is_empty() || rest.iter().filter(|n| **n != 1).count() > 1 {
            return None;
        }
        match &self.source {
            Source::Fill(rule) => Some(Array2::from_elem((b, s), *rule == FillRule::Ones)),
            Source::File { array, rows } => {
                let mut mask = Vec::with_capacity(b * s);
                let mut add = |row| {
                    let numbers = array.data.numbers(row);
                    mask.extend(numbers.map(|v| !padding.contains(&v)));
                };
                match rows {
                    Some((0, rows)) => rows.iter().for_each(|row| add(*row)),
                    // [S, B]
                    Some(_) => return None,
                    None => (0..b).for_each(add),
                }
                Array2::from_shape_vec((b, s), mask).ok()
            }
            // Batches made in memory state their mask themselves.
            Source::Memory(_) => None,
        }
    }
}

fn fill_values(rule: FillRule, shape: &[usize], dtype: DataType) -> Values {
    let last = shape.last().copied().unwrap_or(1).max(1);
    let at = |i: usize| -> usize {
        match rule {
            FillRule::Ones | FillRule::True => 1,
            FillRule::Zeros | FillRule::EmptyPast | FillRule::False => 0,
            FillRule::Positions => i % last,
        }
    };
    macro_rules! array {
        ($variant:ident, $convert:expr) => {{
            let mut i = 0;
            Values::$variant(ArrayD::from_shape_simple_fn(IxDyn(shape), || {
                i += 1;
                #[allow(
                    clippy::redundant_closure_call,
                    reason = "the macro takes closures and paths"
                )]
                $convert(at(i - 1))
            }))
        }};
    }
    match dtype {
        DataType::Bool => array!(Bool, |v: usize| v != 0),
        DataType::Int8 => array!(I8, |v| v as i8),
        DataType::Int16 => array!(I16, |v| v as i16),
        DataType::Int32 => array!(I32, |v| v as i32),
        DataType::Int64 => array!(I64, |v| v as i64),
        DataType::Uint8 => array!(U8, |v| v as u8),
        DataType::Uint16 => array!(U16, |v| v as u16),
        DataType::Uint32 => array!(U32, |v| v as u32),
        DataType::Uint64 => array!(U64, |v| v as u64),
        _ => array!(F32, |v| v as f32),
    }
}

/// Compares an array's shape with what the model declares; the batch axis may differ.
pub(super) fn check_shape(
    input: &ModelInput,
    array: &NamedArray,
    batch_axis: Option<usize>,
) -> Result<(), CalibError> {
    let Some(dims) = &input.shape else {
        return Ok(());
    };
    let found = &array.data.shape;
    let fits = dims.len() == found.len()
        && dims.iter().zip(found).enumerate().all(|(axis, (dim, n))| {
            Some(axis) == batch_axis || !matches!(dim, Dim::Fixed(m) if m != n)
        });
    if fits {
        return Ok(());
    }
    let hint = if dims.len() == found.len() + 1 {
        "; axis 0 must be the batch"
    } else {
        ""
    };
    Err(CalibError::Mismatch {
        place: array.place(),
        input: input.name.clone(),
        expected: format!("{} {}", type_name(input.dtype), input.shape_text()),
        found: format!("{} {:?}", array.data.element, found),
        hint: hint.into(),
    })
}
