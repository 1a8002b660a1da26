//! Reads an ONNX file.
//!
//! ```text
//! path ─ map ─▶ bytes ─ decode ─▶ ModelProto ─ look for losses ─ resolve external data ─ check sizes ─▶ Model
//! ```
//!
//! The file and its external data files are memory-mapped, and `raw_data` fields are slices of the maps: a weight is
//! read from the disk when somebody looks at it, not before. The maps stay open while any tensor refers to them.

use super::digest::{self, digest_file};
use super::input::{InputFile, SourceFiles};
use super::proto::tensor_proto::DataLocation;
use super::proto::{ModelProto, TensorProto};
use super::visit::{self, Place};
use super::{Model, TensorError, tensor, wire};
use bytes::Bytes;
pub use error::{ExternalDataError, LoadError};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};

pub(super) mod error;

/// Reads a model; see the module's text for what happens to its tensors.
///
/// After loading every tensor is inline: external data is resolved, and `external_data` and `data_location` of those
/// tensors are cleared. Nothing else is changed.
///
/// An external location must be a relative path that stays, symbolic links resolved, in the model's folder. Where the
/// model itself is a symbolic link, the folder in which it really lies is allowed too: download caches are built so.
///
/// Accepted: any valid encoding of the schema, also a non-canonical one (fields out of order, unpacked lists, long
/// varints), which [`save`](super::save()) will write in canonical form.
///
/// A `checksum` of external data, the SHA-1 of its file in ONNX's specification, must be right.
///
/// The files must not be changed while the model is in use: the model is a view of them. [`load_with_source`] gives what
/// tells a change. Replacing a file by renaming
/// another over it, as [`save`](super::save()) does, is harmless.
///
/// ```
/// use onnx_osplus::onnx::{self, LoadError};
///
/// let model = onnx::load("models/tiny/model.onnx")?;
/// assert_eq!((model.opset(), model.graph().node.len()), (17, 81));
/// # Ok::<(), LoadError>(())
/// ```
///
/// # Errors
/// See [`LoadError`]. Integer tensors are checked when they are used, float tensors here.
pub fn load(path: impl AsRef<Path>) -> Result<Model, LoadError> {
    Ok(read(path.as_ref())?.0)
}

/// [`load`], and the files that were read: what they hash to, and whether they are still the same.
///
/// # Errors
/// Those of [`load`].
pub fn load_with_source(path: impl AsRef<Path>) -> Result<(Model, SourceFiles), LoadError> {
    let (model, file, data) = read(path.as_ref())?;
    Ok((model, SourceFiles::new(file, data)?))
}

/// The model, its file, and the files with external data by their locations.
type Loaded = (Model, InputFile, Vec<(String, InputFile)>);

fn read(path: &Path) -> Result<Loaded, LoadError> {
    let failed = |source| LoadError::Read {
        path: path.to_owned(),
        source,
    };
    let file = InputFile::open(path).map_err(failed)?;
    let mut model = decode(file.bytes.clone(), path)?;
    let mut data = Vec::new();
    if has_external_data(&mut model) {
        let mut folder = Folder::of(path).map_err(failed)?;
        visit::tensors(&mut model, &mut |place, tensor| {
            folder
                .resolve(tensor)
                .map_err(|source| LoadError::External {
                    tensor: place.describe(tensor),
                    source,
                })
        })?;
        data.extend(folder.open);
    }
    visit::tensors(&mut model, &mut |place, tensor| {
        check_float(place, tensor).map_err(|source| LoadError::Tensor {
            path: path.to_owned(),
            source,
        })
    })?;
    Ok((Model { proto: model }, file, data))
}

/// Decodes and makes sure that nothing is missing or lost.
fn decode(data: Bytes, path: &Path) -> Result<ModelProto, LoadError> {
    let path = || path.to_owned();
    let found = match data.is_empty() {
        true => "an empty file",
        false => "a message without one",
    };
    let model = ModelProto::decode(data.clone()).map_err(|error| LoadError::NotOnnx {
        path: path(),
        reason: error.to_string(),
    })?;
    if let Some(loss) = wire::find_loss(&data) {
        let at = match loss.path.as_str() {
            "" => String::new(),
            inside => format!(" in {inside}"),
        };
        return Err(LoadError::WouldLose {
            path: path(),
            what: loss.what,
            at,
        });
    }
    if model.graph.is_none() {
        return Err(LoadError::NoGraph {
            path: path(),
            found,
        });
    }
    if model.opset_import.is_empty() && model.ir_version() >= 3 {
        return Err(LoadError::NoOperatorSet {
            path: path(),
            ir_version: model.ir_version(),
        });
    }
    Ok(model)
}

fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == Some(DataLocation::External as i32)
}

fn has_external_data(model: &mut ModelProto) -> bool {
    visit::tensors(model, &mut |_, tensor| match is_external(tensor) {
        true => Err(()),
        false => Ok(()),
    })
    .is_err()
}

/// The locations of the external data of the model in the file at `path`, as they are written there.
///
/// # Errors
/// Those of [`load`].
pub fn external_locations(path: &Path) -> Result<BTreeSet<String>, LoadError> {
    let file = InputFile::open(path).map_err(|source| LoadError::Read {
        path: path.to_owned(),
        source,
    })?;
    let data = file.bytes;
    let mut locations = BTreeSet::new();
    // The closure never fails, so the walk goes over every tensor.
    let Ok(()) = visit::tensors(&mut decode(data, path)?, &mut |_, tensor| {
        if is_external(tensor) {
            let entries = tensor.external_data.iter();
            let location = entries.filter(|entry| entry.key() == "location");
            locations.extend(location.map(|entry| entry.value().to_owned()));
        }
        Ok::<(), std::convert::Infallible>(())
    });
    Ok(locations)
}

/// The digests of a model's file and of the files beside it that hold its external data, by their locations.
///
/// # Errors
/// Those of [`load`](super::load()), or a data file that cannot be read.
pub fn digest_model(path: &Path) -> Result<(String, Vec<(String, String)>), LoadError> {
    let read = |path: &Path| {
        digest_file(path).map_err(|source| LoadError::Read {
            path: path.to_owned(),
            source,
        })
    };
    let locations: BTreeSet<String> = external_locations(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let data = locations.into_iter().map(|location| {
        let digest = read(&folder.join(&location))?;
        Ok((location, digest))
    });
    Ok((read(path)?, data.collect::<Result<_, LoadError>>()?))
}

fn check_float(place: Place<'_>, tensor: &TensorProto) -> Result<(), TensorError> {
    match tensor::dtype(tensor) {
        Some(dtype) if tensor::is_float(dtype) => {
            tensor::check(tensor).map_err(|error| error.named(place.describe(tensor)))
        }
        _ => Ok(()),
    }
}

/// The model's folder and the external data files opened so far.
struct Folder {
    /// Where locations start.
    path: PathBuf,
    /// Where they may lead, symbolic links resolved.
    allowed: Vec<PathBuf>,
    /// By location.
    open: BTreeMap<String, InputFile>,
    /// SHA-1 of those that had to be asked for it, by location.
    hashed: BTreeMap<String, String>,
}

impl Folder {
    fn of(model: &Path) -> io::Result<Self> {
        let parent = |path: &Path| match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let path = parent(model);
        let allowed = vec![path.canonicalize()?, parent(&model.canonicalize()?)];
        Ok(Self {
            path,
            allowed,
            open: BTreeMap::new(),
            hashed: BTreeMap::new(),
        })
    }

    /// Moves a tensor's external data inline; others stay as they are.
    fn resolve(&mut self, tensor: &mut TensorProto) -> Result<(), ExternalDataError> {
        if !is_external(tensor) {
            return Ok(());
        }
        let entry = |key: &str| {
            let entry = tensor.external_data.iter().find(|entry| entry.key() == key);
            entry.map(|entry| entry.value())
        };
        let number = |key: &'static str| match entry(key) {
            None => Ok(None),
            Some(text) => match text.trim().parse::<u64>() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(ExternalDataError::NotANumber {
                    key,
                    value: text.to_owned(),
                }),
            },
        };
        let location = entry("location").filter(|location| !location.is_empty());
        let location = location.ok_or(ExternalDataError::NoLocation)?;
        let offset = number("offset")?.unwrap_or(0);
        let expected = tensor::byte_len(tensor).map_err(ExternalDataError::NoSize)? as u64;
        let length = number("length")?.unwrap_or(expected);
        if length != expected {
            return Err(ExternalDataError::WrongLength {
                expected,
                found: length,
            });
        }
        let file = self.file(location)?;
        if let Some(expected) = entry("checksum").and_then(digest::sha1_of_entry) {
            let location = location.to_owned();
            let found = self
                .hashed
                .entry(location)
                .or_insert_with(|| digest::sha1(&file.bytes));
            if *found != expected {
                return Err(ExternalDataError::Checksum {
                    path: file.path,
                    expected,
                    found: found.clone(),
                });
            }
        }
        let (path, data) = (file.path, file.bytes);
        let size = data.len() as u64;
        match offset.checked_add(length) {
            Some(end) if end <= size => {
                // Both fit into usize, because the file's length does.
                tensor.raw_data = Some(data.slice(offset as usize..end as usize));
            }
            _ => {
                return Err(ExternalDataError::Short {
                    path,
                    offset,
                    length,
                    size,
                });
            }
        }
        tensor.external_data.clear();
        tensor.data_location = None;
        Ok(())
    }

    /// Opens the file at a location, once.
    fn file(&mut self, location: &str) -> Result<InputFile, ExternalDataError> {
        let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if !Path::new(location).components().all(inside) {
            return Err(ExternalDataError::NotInside {
                location: location.to_owned(),
            });
        }
        if let Some(file) = self.open.get(location) {
            return Ok(file.clone());
        }
        let path = self.path.join(location);
        let read = |source| ExternalDataError::Read {
            path: path.clone(),
            source,
        };
        let real = path.canonicalize().map_err(read)?;
        if !self.allowed.iter().any(|folder| real.starts_with(folder)) {
            return Err(ExternalDataError::LeadsOut {
                location: location.to_owned(),
                real,
                folder: self.allowed[0].clone(),
            });
        }
        // Asked before opening: to open a pipe would wait for ever.
        if !real.metadata().map_err(read)?.is_file() {
            return Err(ExternalDataError::NotAFile { path });
        }
        let mut file = InputFile::open(&real).map_err(read)?;
        file.path = path;
        self.open.insert(location.to_owned(), file.clone());
        Ok(file)
    }
}
