//! Why a model cannot be loaded.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::onnx::tensor::TensorError;

/// Why a model could not be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The model file could not be opened or mapped.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The model file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The bytes are not a protobuf message of the ONNX schema.
    #[error("{path} is not an ONNX file, or is truncated: {reason}")]
    NotOnnx {
        /// The model file.
        path: PathBuf,
        /// The decoder's reason.
        reason: String,
    },
    /// A message without a graph: an ONNX file cut short, or another file that happens to decode.
    #[error("{path} holds no ONNX graph: expected a model, found {found}")]
    NoGraph {
        /// The model file.
        path: PathBuf,
        /// What there is instead.
        found: &'static str,
    },
    /// No operator set is named, although the IR version demands it; the file was probably cut short.
    #[error(
        "{path} names no operator set (opset_import), which IR version {ir_version} requires: is the file truncated?"
    )]
    NoOperatorSet {
        /// The model file.
        path: PathBuf,
        /// The model's IR version.
        ir_version: i64,
    },
    /// The file holds something that this program would lose on saving.
    #[error(
        "{path} holds {what}{at}; it would be lost on saving, so the file is refused. \
         Was it written by a newer version of ONNX (this is IR version 13)?"
    )]
    WouldLose {
        /// The model file.
        path: PathBuf,
        /// The field.
        what: String,
        /// Where it is, with a leading " in ", or empty for the model itself.
        at: String,
    },
    /// A file that was written to after it had been read.
    #[error(
        "{path} was changed by another program while it was in use: what was read of it is no longer what it holds; \
         nothing was written, run again"
    )]
    Changed {
        /// The model file, or one with its external data.
        path: PathBuf,
    },
    /// External data that is missing, out of place or too short.
    #[error("external data of tensor `{tensor}`: {source}")]
    External {
        /// The tensor, by name or by place.
        tensor: String,
        /// What is wrong.
        source: ExternalDataError,
    },
    /// A float tensor whose data does not fit its shape.
    #[error("{path}: {source}")]
    Tensor {
        /// The model file.
        path: PathBuf,
        /// What is wrong.
        source: TensorError,
    },
}

/// What is wrong with a tensor's external data.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExternalDataError {
    /// The entry `location` is missing or empty.
    #[error("no `location` is given")]
    NoLocation,
    /// `offset` or `length` is not a number.
    #[error("`{key}` is `{value}`, expected a number of bytes")]
    NotANumber {
        /// The entry.
        key: &'static str,
        /// Its text.
        value: String,
    },
    /// An absolute path, or one with `..`.
    #[error(
        "the location `{location}` is refused: it must be a relative path inside the model's folder, without `..`"
    )]
    NotInside {
        /// As written in the model.
        location: String,
    },
    /// A symbolic link that leads out of the model's folder.
    #[error(
        "the location `{location}` is refused: it leads to {real}, outside the model's folder {folder}"
    )]
    LeadsOut {
        /// As written in the model.
        location: String,
        /// Where it leads.
        real: PathBuf,
        /// Where it should have stayed.
        folder: PathBuf,
    },
    /// The file could not be opened or mapped.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The external data file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A folder, device or pipe.
    #[error("{path} is not an ordinary file")]
    NotAFile {
        /// The external data file.
        path: PathBuf,
    },
    /// The model says what its data hash to, and these are others.
    #[error(
        "{path} is not the file that the model was written with: its SHA-1 is {found}, the model's `checksum` {expected}; \
         bring the two files of one export together, or export again"
    )]
    Checksum {
        /// The external data file.
        path: PathBuf,
        /// By the model.
        expected: String,
        /// Of the file.
        found: String,
    },
    /// The file ends before the data does.
    #[error(
        "{path} is too short: expected {length} bytes from offset {offset}, the file has {size}"
    )]
    Short {
        /// The external data file.
        path: PathBuf,
        /// Start of the data.
        offset: u64,
        /// Length of the data.
        length: u64,
        /// Size of the file.
        size: u64,
    },
    /// The length given and the shape disagree.
    #[error("`length` is {found}, but shape and type need {expected} bytes")]
    WrongLength {
        /// By the tensor's shape and type.
        expected: u64,
        /// By the entry.
        found: u64,
    },
    /// The type cannot be stored outside, or the shape is wrong.
    #[error("its size cannot be found: {0}")]
    NoSize(TensorError),
}
