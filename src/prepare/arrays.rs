//! What a model is fed with, and what it wants to be fed with.

use std::collections::BTreeMap;

/// A model input, as far as its data depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its name.
    pub(crate) name: String,
    /// Its axes, `None` for a size that the model leaves open; `None` for all where it does not even state their number.
    pub(crate) shape: Option<Vec<Option<usize>>>,
    /// Whether its elements are floats.
    pub(crate) is_float: bool,
}

/// The elements of an array, in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Elements {
    /// For inputs of integers and booleans.
    Ints(Vec<i64>),
    /// For inputs of floats.
    Floats(Vec<f32>),
}

/// What one input is fed with: rows along axis 0.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Array {
    /// Sizes of the axes.
    pub(crate) shape: Vec<usize>,
    /// As many as the shape holds.
    pub(crate) elements: Elements,
}

/// Arrays by the input that each feeds, all with equally many rows.
pub(crate) type Arrays = BTreeMap<String, Array>;

/// Data for a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Prepared {
    /// Rows of one shape each.
    pub(crate) tables: Vec<Arrays>,
    /// Of every table, which row of the files each of its rows is, all files counted as one. What belongs to a row of the data,
    /// as a label, is found by it.
    pub(crate) origins: Vec<Vec<usize>>,
    /// Rows of the files, those that are not used included.
    pub(crate) rows: usize,
    /// What was found and decided that the user did not ask for.
    pub(crate) notes: Vec<String>,
}
