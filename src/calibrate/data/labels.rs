//! Labels: what a model should say of each row of the data.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::calibrate::data::dataset::Dataset;
use crate::calibrate::data::error::CalibError;
use crate::calibrate::data::files::read_npy;
use crate::prepare::{self, PrepareError, Settings};

/// Labels that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LabelError {
    /// They cannot be read.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// An array that cannot be read.
    #[error(transparent)]
    Array(#[from] CalibError),
    /// The file is no list of labels.
    #[error("{}: {problem}", file.display())]
    File {
        /// The path.
        file: PathBuf,
        /// What is wrong with it, and what is expected.
        problem: String,
    },
    /// There are more or fewer than rows.
    #[error(
        "there are {labels} labels and {rows} rows of data: a label belongs to each row, or to each pair of rows"
    )]
    Count {
        /// Labels.
        labels: usize,
        /// Rows of the data, those that are not used included.
        rows: usize,
    },
    /// None of the rows that judge has a label.
    #[error("none of the {0} rows that judge has a label")]
    None(usize),
    /// No row is left that sets no range.
    #[error(
        "the labels judge rows that set no range, and {rows} rows of calibration data are too few to hold any out: give labelled \
         rows of their own to judge by"
    )]
    NoneHeldOut {
        /// Rows of the data.
        rows: usize,
    },
    /// The two rows of a pair would be torn apart.
    #[error(
        "there is a label for each pair of rows, and the rows that set no range are every eighth: give pairs of their own to judge \
         by"
    )]
    PairsHeldOut,
}

/// The labels of the rows of a user's files, in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Labels {
    /// One or more for each row; none where a row has no label.
    rows: Vec<Vec<f64>>,
}

impl Labels {
    /// Reads labels from files: a `.npy` with a number, or a row of numbers, for each row; a `.txt` with a line for each; or a
    /// column of a `.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet`: the one called `column`, or the one that most likely is it.
    /// The labels of several files follow each other. Words are classes by the configuration beside the model (`settings`).
    ///
    /// # Errors
    /// A file that cannot be read or is none of these, a column that is not there or not told, words that are no classes.
    pub fn read(
        paths: &[PathBuf],
        column: Option<&str>,
        settings: &Settings,
    ) -> Result<Labels, LabelError> {
        let mut labels = Labels::default();
        for path in paths {
            let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
            match extension.as_deref() {
                Some("npy") => labels.rows.extend(array(path)?),
                _ if prepare::kind(path) == Some(prepare::Kind::Text) => {
                    let read = prepare::labels::read(path, column, settings)?;
                    let row = |label: Option<f64>| label.into_iter().collect();
                    labels.rows.extend(read.into_iter().map(row));
                }
                _ => {
                    let problem = "labels are a .npy, a line or a column each of a .txt, .csv, .tsv, .jsonl, .json or .parquet";
                    return Err(LabelError::File {
                        file: path.clone(),
                        problem: problem.to_owned(),
                    });
                }
            }
        }
        Ok(labels)
    }

    /// Labels that are in memory: one or more for each row.
    pub fn new(rows: Vec<Vec<f64>>) -> Labels {
        Labels { rows }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether there is one for each pair of rows of `data`.
    ///
    /// # Errors
    /// There is neither one for each row nor one for each pair.
    pub(in crate::calibrate) fn are_of_pairs(&self, data: &Dataset) -> Result<bool, LabelError> {
        let (labels, rows) = (self.len(), data.origins());
        match labels {
            _ if labels == rows => Ok(false),
            _ if 2 * labels == rows => Ok(true),
            _ => Err(LabelError::Count { labels, rows }),
        }
    }

    /// Those of a row of the user's files, or of a pair of rows.
    pub(in crate::calibrate) fn of(&self, row: usize) -> &[f64] {
        self.rows.get(row).map_or(&[], Vec::as_slice)
    }

    /// All numbers.
    pub(in crate::calibrate) fn all(&self) -> impl Iterator<Item = f64> {
        self.rows.iter().flatten().copied()
    }
}

/// The rows of a `.npy`.
fn array(path: &Path) -> Result<Vec<Vec<f64>>, LabelError> {
    let array = read_npy(path)?;
    let Some(&rows) = array.shape.first() else {
        return Err(LabelError::File {
            file: path.to_owned(),
            problem: "holds one number; labels are an array with one for each row".to_owned(),
        });
    };
    Ok((0..rows).map(|row| array.numbers(row).collect()).collect())
}
