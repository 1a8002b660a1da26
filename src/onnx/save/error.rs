//! Why a file cannot be written.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a model could not be saved. No half-written file is left behind in any of these cases.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SaveError {
    /// The target is there already.
    #[error("{path} exists already; overwriting it must be asked for")]
    Exists {
        /// The model file or its external data file.
        path: PathBuf,
    },
    /// The target is not the path of a file.
    #[error("{path} is not a file name to write to")]
    NotAFile {
        /// As given.
        path: PathBuf,
    },
    /// The target is there, and nothing that can be replaced.
    #[error("{path} is {kind}, which is not replaced by a file; write to another name")]
    Special {
        /// The model file or its external data file.
        path: PathBuf,
        /// A device, a pipe, a socket.
        kind: &'static str,
    },
    /// ONNX stores the name of the external data as text.
    #[error(
        "the file of external data would be {path}, whose name is no UTF-8 text; choose another name for the model"
    )]
    DataName {
        /// The external data file.
        path: PathBuf,
    },
    /// The system could not write.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The model file or its external data file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Above 2 GB even with external data, because of what cannot be moved out.
    #[error(
        "the model needs {bytes} bytes beside its external data, more than the 2^31 - 1 that protobuf allows: \
         only tensors stored as raw_data can be moved out"
    )]
    TooLarge {
        /// Of the model file.
        bytes: usize,
    },
}
