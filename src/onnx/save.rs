//! Writes an ONNX file.
//!
//! ```text
//! Model ─ (move large tensors out) ─ encode, piece by piece ─▶ temporary file beside the target ─ rename ─▶ target
//! ```
//!
//! The encoding is never in memory as a whole: small fields go through a buffer of 64 KiB, tensor data goes straight
//! from the (memory-mapped) source to the file. The target appears complete or not at all ([`super::output`]), and the
//! tensors in another file say what that file hashes to.

use super::Model;
use super::digest::Checksum;
use super::output::{Target, Temporary, commit};
use super::proto::tensor_proto::DataLocation;
use super::proto::{ModelProto, StringStringEntryProto};
use super::{tensor, visit};
use bytes::Bytes;
use prost::Message;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use stream::Stream;

pub use error::SaveError;

pub(super) mod error;
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
    /// A file with the name of the external data that was there before and is not needed, because everything is in the
    /// model file now. It is left alone: another model may use it.
    pub left_over: Option<PathBuf>,
}

/// Saves a model to `path`, in canonical protobuf encoding.
///
/// External data is used when `options` ask for it or the file would pass 2 GB: every tensor with `raw_data` of 1 KiB
/// or more goes to one file, named like the target with `.data` added and in the same folder, in the order of the
/// model, aligned to 4096 bytes (64 for tensors below 4 KiB). They carry that file's SHA-1 as their `checksum`, which
/// [`load`](super::load()) checks: a model beside the data of another is refused. A target that is a symbolic link is
/// replaced, not followed; devices and pipes are never replaced. A file that is replaced keeps its permissions, a new one
/// gets those of any new file (0666 less the umask).
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
    prepare(model, path, options)?.commit()
}

/// Writes everything that [`save`] writes to temporary files, and gives them no name yet.
///
/// Between this and [`Prepared::commit`] is the last moment to find out that the model must not be written, such as that
/// the [files it came from](super::SourceFiles::check_unchanged) have changed.
///
/// # Errors
/// See [`SaveError`].
pub fn prepare(
    model: &Model,
    path: impl AsRef<Path>,
    options: &SaveOptions,
) -> Result<Prepared, SaveError> {
    prepare_within(model, path.as_ref(), options, LARGEST_MESSAGE)
}

/// Whether [`save`] would put tensors into a file of their own.
pub fn needs_external_data(model: &Model, options: &SaveOptions) -> bool {
    options.external_data || model.proto.encoded_len() > LARGEST_MESSAGE
}

/// The name of the file of external data beside the model file `path`: its own with `.data` added.
pub fn external_data_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".data");
    path.with_file_name(name)
}

/// A model that is on the disk, without a name. It goes away when dropped.
#[derive(Debug)]
pub struct Prepared {
    model: (Target, Temporary),
    data: Option<(Target, Temporary)>,
    summary: SaveSummary,
}

impl Prepared {
    /// Gives the files their names: the data first, then the model, so that a model is never beside data of another.
    /// Where both are there already, they are moved out of the way before, and back if this fails.
    ///
    /// # Errors
    /// See [`SaveError`]. What was there before is still there then.
    pub fn commit(self) -> Result<SaveSummary, SaveError> {
        let model = (&self.model.0, &self.model.1);
        let data = self.data.as_ref().map(|(target, file)| (target, file));
        let files: Vec<_> = data.into_iter().chain([model]).collect();
        commit(&files)?;
        Ok(self.summary)
    }
}

/// `prepare`, with the limit above which data goes out.
fn prepare_within(
    model: &Model,
    path: &Path,
    options: &SaveOptions,
    limit: usize,
) -> Result<Prepared, SaveError> {
    let target = Target::new(path.to_owned(), options.overwrite)?;
    if !options.external_data && model.proto.encoded_len() <= limit {
        return inline(&model.proto, target);
    }

    let data_path = external_data_path(path);
    let location = data_path.file_name().and_then(|name| name.to_str());
    let location = location.ok_or_else(|| SaveError::DataName {
        path: data_path.clone(),
    })?;
    // Strings, nodes and typed data are copied, tensors are shared.
    let mut outer = model.proto.clone();
    let moved = move_out(&mut outer, location);
    let bytes = outer.encoded_len();
    if bytes > limit {
        return Err(SaveError::TooLarge { bytes });
    }
    if moved.is_empty() {
        return inline(&model.proto, target);
    }
    let data_target = Target::new(data_path.clone(), options.overwrite)?;
    let mut checksum = Checksum::default();
    let (data_file, external_bytes) = data_target.write(|out| {
        let mut out = Hashing(out, &mut checksum);
        write_data(&moved, &mut out)
    })?;
    set_checksum(&mut outer, &checksum.text());
    let (file, bytes) = target.write(|out| encode(&outer, out))?;
    let summary = SaveSummary {
        path: target.path.clone(),
        bytes,
        external_path: Some(data_path),
        external_bytes,
        left_over: None,
    };
    Ok(Prepared {
        model: (target, file),
        data: Some((data_target, data_file)),
        summary,
    })
}

/// A model in one file.
fn inline(model: &ModelProto, target: Target) -> Result<Prepared, SaveError> {
    let (file, bytes) = target.write(|out| encode(model, out))?;
    let left_over = external_data_path(&target.path);
    let summary = SaveSummary {
        path: target.path.clone(),
        bytes,
        external_path: None,
        external_bytes: 0,
        left_over: left_over.is_file().then_some(left_over),
    };
    Ok(Prepared {
        model: (target, file),
        data: None,
        summary,
    })
}

/// A writer that hashes what goes through it.
struct Hashing<'a, W>(W, &'a mut Checksum);

impl<W: Write> Write for Hashing<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.0.write(data)?;
        self.1.update(&data[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// As many digits as there will be, so that the size of the model is known before its data is written.
const NO_CHECKSUM: &str = "0000000000000000000000000000000000000000";

/// Tells what the file of external data hashes to in every tensor that is there.
fn set_checksum(model: &mut ModelProto, checksum: &str) {
    let walked: Result<(), std::convert::Infallible> = visit::tensors(model, &mut |_, tensor| {
        let entries = tensor.external_data.iter_mut();
        for entry in entries.filter(|entry| entry.key() == "checksum") {
            entry.value = Some(checksum.to_owned());
        }
        Ok(())
    });
    match walked {
        Ok(()) => (),
    }
}

/// Takes the large tensors out of a model, in its order, and leaves references to their place in the file `location`.
fn move_out(model: &mut ModelProto, location: &str) -> Vec<(u64, Bytes)> {
    let mut moved = Vec::new();
    let mut end = 0u64;
    let walked: Result<(), std::convert::Infallible> = visit::tensors(model, &mut |_, tensor| {
        // What has another length than its shape says stays, as wrong as it was: outside it could not be read at all.
        let expected = tensor::byte_len(tensor).unwrap_or(0);
        let Some(data) = tensor
            .raw_data
            .take_if(|data| data.len() >= SMALLEST_EXTERNAL && data.len() == expected)
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
            entry("checksum", NO_CHECKSUM.to_owned()),
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

#[cfg(test)]
mod tests;
