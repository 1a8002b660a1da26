//! Writes an ONNX file.
//!
//! ```text
//! Model ─ (move large tensors out) ─ encode, piece by piece ─▶ temporary file beside the target ─ rename ─▶ target
//! ```
//!
//! The encoding is never in memory as a whole: small fields go through a buffer of 64 KiB, tensor data goes straight
//! from the (memory-mapped) source to the file. The target appears complete or not at all.

use super::Model;
use super::proto::tensor_proto::DataLocation;
use super::proto::{ModelProto, StringStringEntryProto};
use super::visit;
use bytes::Bytes;
use prost::Message;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use stream::Stream;
use tempfile::NamedTempFile;
use thiserror::Error;

mod stream;

/// Protobuf readers refuse messages above 2^31 − 1 bytes.
const LARGEST_MESSAGE: usize = i32::MAX as usize;

/// Tensors below this many bytes stay in the model file: runtimes look into small ones (shapes, axes) while loading.
const SMALLEST_EXTERNAL: usize = 1024;

/// How to save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaveOptions {
    /// Put the tensors into a file of their own, `OUT.onnx.data`, also when the model is small enough without.
    pub external_data: bool,
    /// Replace files that exist.
    pub overwrite: bool,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveSummary {
    /// The model file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// The file of external data, if one was needed.
    pub external_path: Option<PathBuf>,
    /// Its size in bytes, or 0.
    pub external_bytes: u64,
}

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

/// Saves a model to `path`, in canonical protobuf encoding.
///
/// External data is used when `options` ask for it or the file would pass 2 GB: every tensor with `raw_data` of 1 KiB
/// or more goes to one file, named like the target with `.data` added and in the same folder, in the order of the
/// model, aligned to 4096 bytes (64 for tensors below 4 KiB). A target that is a symbolic link is replaced, not
/// followed. Files get the permissions of any new file (0666 less the umask).
///
/// ```
/// use onnx_osplus::onnx::{self, SaveOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let copy = folder.path().join("copy.onnx");
/// let model = onnx::load("models/tiny/model.onnx")?;
/// onnx::save(&model, &copy, &SaveOptions::default())?;
/// assert_eq!(std::fs::read(&copy)?, std::fs::read("models/tiny/model.onnx")?);
/// // What exists is not overwritten without being asked.
/// assert!(onnx::save(&model, &copy, &SaveOptions::default()).is_err());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// See [`SaveError`].
pub fn save(
    model: &Model,
    path: impl AsRef<Path>,
    options: &SaveOptions,
) -> Result<SaveSummary, SaveError> {
    save_within(model, path.as_ref(), options, LARGEST_MESSAGE)
}

/// `save`, with the limit above which data goes out.
fn save_within(
    model: &Model,
    path: &Path,
    options: &SaveOptions,
    limit: usize,
) -> Result<SaveSummary, SaveError> {
    let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
        return Err(SaveError::NotAFile {
            path: path.to_owned(),
        });
    };
    let target = Target::new(path.to_owned(), options.overwrite)?;
    if !options.external_data && model.proto.encoded_len() <= limit {
        let (file, bytes) = target.write(|out| encode(&model.proto, out))?;
        target.persist(file)?;
        return Ok(SaveSummary {
            path: target.path,
            bytes,
            external_path: None,
            external_bytes: 0,
        });
    }

    let mut data_name = name.to_owned();
    data_name.push(".data");
    let location = data_name.to_str().ok_or_else(|| SaveError::NotAFile {
        path: path.with_file_name(&data_name),
    })?;
    // Strings, nodes and typed data are copied, tensors are shared.
    let mut outer = model.proto.clone();
    let moved = move_out(&mut outer, location);
    let bytes = outer.encoded_len();
    if bytes > limit {
        return Err(SaveError::TooLarge { bytes });
    }
    if moved.is_empty() {
        let plain = SaveOptions {
            external_data: false,
            ..*options
        };
        return save_within(model, path, &plain, limit);
    }
    let data_target = Target::new(path.with_file_name(&data_name), options.overwrite)?;
    let (data_file, external_bytes) = data_target.write(|out| write_data(&moved, out))?;
    let (file, bytes) = target.write(|out| encode(&outer, out))?;
    let data_was_there = data_target.path.exists();
    data_target.persist(data_file)?;
    if let Err(error) = target.persist(file) {
        if !data_was_there {
            // The error that matters is the one above.
            let _ = fs::remove_file(&data_target.path);
        }
        return Err(error);
    }
    Ok(SaveSummary {
        path: target.path,
        bytes,
        external_path: Some(data_target.path),
        external_bytes,
    })
}

/// Takes the large tensors out of a model, in its order, and leaves references to their place in the file `location`.
fn move_out(model: &mut ModelProto, location: &str) -> Vec<(u64, Bytes)> {
    let mut moved = Vec::new();
    let mut end = 0u64;
    let walked: Result<(), std::convert::Infallible> = visit::tensors(model, &mut |_, tensor| {
        let Some(data) = tensor
            .raw_data
            .take_if(|data| data.len() >= SMALLEST_EXTERNAL)
        else {
            return Ok(());
        };
        let offset = end.next_multiple_of(if data.len() < 4096 { 64 } else { 4096 });
        end = offset + data.len() as u64;
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value),
        };
        tensor.external_data = vec![
            entry("location", location.to_owned()),
            entry("offset", offset.to_string()),
            entry("length", data.len().to_string()),
        ];
        tensor.data_location = Some(DataLocation::External as i32);
        moved.push((offset, data));
        Ok(())
    });
    match walked {
        Ok(()) => moved,
    }
}

/// Writes tensors at their offsets, with zeros between them. Returns the length.
fn write_data(moved: &[(u64, Bytes)], out: &mut impl Write) -> io::Result<u64> {
    let mut end = 0;
    for (offset, data) in moved {
        // Offsets are at most 4095 bytes past the end of the tensor before.
        out.write_all(&[0; 4096][..(offset - end) as usize])?;
        out.write_all(data)?;
        end = offset + data.len() as u64;
    }
    Ok(end)
}

/// Encodes a model to a writer, without a copy of its tensors. Returns the length.
fn encode(model: &ModelProto, out: &mut impl Write) -> io::Result<u64> {
    let mut stream = Stream::new(out);
    model
        .encode(&mut stream)
        .map_err(|error| io::Error::other(error.to_string()))?;
    stream.finish()
}

/// A file to be written through a temporary one.
struct Target {
    path: PathBuf,
    overwrite: bool,
}

impl Target {
    fn new(path: PathBuf, overwrite: bool) -> Result<Self, SaveError> {
        // Also true of a symbolic link that leads nowhere, which renaming would replace.
        if !overwrite && path.symlink_metadata().is_ok() {
            return Err(SaveError::Exists { path });
        }
        Ok(Self { path, overwrite })
    }

    fn error(&self, source: io::Error) -> SaveError {
        SaveError::Write {
            path: self.path.clone(),
            source,
        }
    }

    /// Fills a temporary file in the target's folder; it goes away when dropped.
    fn write(
        &self,
        fill: impl FnOnce(&mut File) -> io::Result<u64>,
    ) -> Result<(NamedTempFile, u64), SaveError> {
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".onnx-osplus-").suffix(".tmp");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // Temporary files are private unless told otherwise; the system takes the umask off this.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let mut file = builder
            .tempfile_in(folder)
            .map_err(|error| self.error(error))?;
        let bytes = fill(file.as_file_mut()).map_err(|error| self.error(error))?;
        Ok((file, bytes))
    }

    /// Gives the temporary file its name.
    fn persist(&self, file: NamedTempFile) -> Result<(), SaveError> {
        let done = match self.overwrite {
            true => file.persist(&self.path),
            // Somebody may have made the file in the meantime.
            false => file.persist_noclobber(&self.path),
        };
        match done {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                Err(SaveError::Exists {
                    path: self.path.clone(),
                })
            }
            Err(error) => Err(self.error(error.error)),
        }
    }
}

#[cfg(test)]
mod tests;
