//! What can go wrong between what people have and arrays.

use std::path::{Path, PathBuf};

/// What a [`PrepareError::Needs`] asks for: a field of [`Settings`](crate::prepare::Settings).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// `Settings::tokenizer`
    Tokenizer,
    /// `Settings::preprocessor`
    Preprocessor,
    /// [`Settings::columns`](crate::prepare::Settings::columns)
    Columns,
    /// [`Settings::max_length`](crate::prepare::Settings::max_length)
    MaxLength,
    /// The column with the labels.
    Labels,
}

/// Data that cannot be made into inputs.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The file cannot be opened.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The path.
        file: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what its name says, or holds nothing of use.
    #[error("{}: {problem}", file.display())]
    File {
        /// The path.
        file: PathBuf,
        /// What is wrong, and what is expected.
        problem: String,
    },
    /// The file can be used if more is said.
    #[error("{}: {problem}", file.display())]
    Needs {
        /// The path.
        file: PathBuf,
        /// What is missing, as the rest of the sentence.
        problem: String,
        /// What would say it.
        setting: Setting,
    },
}

/// Runs `work` on what `file` holds. Crates that read damaged files panic on some of them, which is an error like any other.
pub(super) fn guarded<T>(
    file: &Path,
    work: impl FnOnce() -> Result<T, PrepareError>,
) -> Result<T, PrepareError> {
    // Nothing that `work` changes is seen again after a panic.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|what| {
        let text = what.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| what.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("for a reason that is not told");
        Err(PrepareError::file(
            file,
            format!("is damaged, and cannot be read: {text}"),
        ))
    })
}

impl PrepareError {
    pub(super) fn file(file: &Path, problem: impl Into<String>) -> PrepareError {
        PrepareError::File {
            file: file.to_owned(),
            problem: problem.into(),
        }
    }

    pub(super) fn needs(file: &Path, setting: Setting, problem: impl Into<String>) -> PrepareError {
        PrepareError::Needs {
            file: file.to_owned(),
            problem: problem.into(),
            setting,
        }
    }
}
