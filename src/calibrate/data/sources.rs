//! From the paths a user names to tables of arrays: which file feeds which input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::calibrate::data::array::{Element, FileArray};
use crate::calibrate::data::error::CalibError;
use crate::calibrate::data::files::{read_npy, read_npz, read_pb, refuse_special};
use crate::calibrate::data::fill::rule;
use crate::calibrate::data::input::NamedArray;
use crate::calibrate::data::signature::{Dim, ModelInput, list};
use crate::onnx::tensor::is_float;
use crate::prepare::{self, Kind, Settings};

/// A path with calibration data, possibly for one named input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalibSource {
    /// The model input that the file feeds; `None` where the arrays are named, or the model has one such input.
    pub name: Option<String>,
    /// A `.npy` or `.npz` file, a folder of such files, or a folder of ONNX test data; text in a `.txt`, `.jsonl`, `.csv`,
    /// `.tsv`, `.json` or `.parquet`; an image, a recording (`.wav`); or a folder of such files.
    pub path: PathBuf,
}

type Arrays = BTreeMap<String, Arc<NamedArray>>;

/// Which rows of what a user has the rows of a table are.
pub(super) struct Origin {
    /// The number of each row in the files that were prepared together.
    pub(super) rows: Vec<usize>,
    /// How many rows those files have.
    pub(super) of: usize,
    /// Whether it is the first table made of them.
    pub(super) first: bool,
}

/// What the sources hold.
#[derive(Default)]
pub(super) struct Read {
    /// Arrays that belong together.
    pub(super) tables: Vec<Arrays>,
    /// Where the rows of tables were before they were prepared, by the table's number; of others they are as they were.
    pub(super) origins: BTreeMap<usize, Origin>,
    /// What was found and decided on the way.
    pub(super) notes: Vec<String>,
    /// Whether any of it was text.
    prepared: bool,
}

/// Reads all sources, in order. Named sources combine into one table until a name repeats, which starts the next.
pub(super) fn read_tables(
    inputs: &[ModelInput],
    sources: &[CalibSource],
    settings: &Settings,
) -> Result<Read, CalibError> {
    let mut read = Read::default();
    // Index of the table that named sources are being added to.
    let mut open: Option<usize> = None;
    let mut rest = sources;
    while let [source, others @ ..] = rest {
        rest = others;
        refuse_special(&source.path)?;
        let Some(name) = &source.name else {
            if let Some(kind) = file_kind(source).filter(|kind| *kind != Kind::Text) {
                // Images that are named one by one are one set of rows.
                let more = others
                    .iter()
                    .take_while(|other| file_kind(other) == Some(kind))
                    .count();
                rest = &others[more..];
                let paths = std::iter::once(source).chain(&others[..more]);
                let paths: Vec<PathBuf> = paths.map(|source| source.path.clone()).collect();
                read.prepare(inputs, &paths, kind, settings)?;
                continue;
            }
            read.unnamed(inputs, &source.path, settings)?;
            continue;
        };
        if !inputs.iter().any(|input| input.name == *name) {
            return Err(unknown(inputs, &source.path, name));
        }
        if extension(&source.path) != "npy" || source.path.is_dir() {
            return Err(CalibError::Source {
                file: source.path.clone(),
                problem: format!("data for one input ({name}) is a .npy file"),
            });
        }
        let array = named(name, &source.path, None, read_npy(&source.path)?);
        let tables = &mut read.tables;
        let table = match open.filter(|i| !tables[*i].contains_key(name)) {
            Some(i) => i,
            None => {
                tables.push(Arrays::new());
                tables.len() - 1
            }
        };
        open = Some(table);
        tables[table].insert(name.clone(), array);
    }
    match sources.first() {
        Some(source) if !read.prepared && settings.asks_to_prepare() => Err(CalibError::Source {
            file: source.path.clone(),
            problem: "holds arrays, which are taken as they are; a tokenizer, a preprocessor, columns, a length and a number of \
                      samples are for text, images and recordings"
                .into(),
        }),
        _ => Ok(read),
    }
}

pub(super) fn named(
    input: &str,
    file: &Path,
    array: Option<&str>,
    data: FileArray,
) -> Arc<NamedArray> {
    Arc::new(NamedArray {
        file: file.to_owned(),
        array: array.map(str::to_owned),
        input: input.to_owned(),
        data,
    })
}

pub(super) fn unknown(inputs: &[ModelInput], file: &Path, name: &str) -> CalibError {
    CalibError::UnknownInput {
        file: file.to_owned(),
        name: name.to_owned(),
        inputs: list(inputs),
    }
}

impl Read {
    fn unnamed(
        &mut self,
        inputs: &[ModelInput],
        path: &Path,
        settings: &Settings,
    ) -> Result<(), CalibError> {
        if !path.is_dir() {
            match prepare::kind(path).filter(|_| path.exists()) {
                Some(kind) => self.prepare(inputs, &[path.to_owned()], kind, settings)?,
                None => self.tables.push(read_file(inputs, path)?),
            }
            return Ok(());
        }
        let before = self.tables.len();
        if is_test_data(path)? {
            self.tables.push(read_test_data(inputs, path)?);
            return Ok(());
        }
        let entries = entries(path)?;
        for entry in &entries {
            if entry.is_dir() {
                if is_test_data(entry)? {
                    self.tables.push(read_test_data(inputs, entry)?);
                }
            } else if matches!(extension(entry).as_str(), "npy" | "npz") {
                self.tables.push(read_file(inputs, entry)?);
            }
        }
        if self.tables.len() > before {
            return Ok(());
        }
        // What lies beside arrays is no data; without them it is. Images may be in a folder for each class.
        let mut by_kind: BTreeMap<Kind, Vec<PathBuf>> = BTreeMap::new();
        for entry in &entries {
            let inside = match entry.is_dir() {
                true => self::entries(entry)?,
                false => vec![entry.clone()],
            };
            for path in inside.into_iter().filter(|path| path.is_file()) {
                if let Some(kind) = prepare::kind(&path) {
                    by_kind.entry(kind).or_default().push(path);
                }
            }
        }
        // A list of labels beside images is not what the model is fed with.
        let kind = [Kind::Image, Kind::Audio, Kind::Text]
            .into_iter()
            .find(|kind| by_kind.contains_key(kind));
        if let Some((kind, paths)) = kind.and_then(|kind| by_kind.remove_entry(&kind)) {
            self.prepare(inputs, &paths, kind, settings)?;
        }
        if self.tables.len() == before {
            return Err(CalibError::Source {
                file: path.to_owned(),
                problem: "holds no .npy or .npz file, no ONNX test data (input_0.pb), no text (.txt, .jsonl, .csv, .tsv, .json, \
                          .parquet), no images (.png, .jpg, .webp, .bmp) and no recordings (.wav)"
                    .into(),
            });
        }
        Ok(())
    }

    /// Makes arrays of what is none.
    fn prepare(
        &mut self,
        inputs: &[ModelInput],
        paths: &[PathBuf],
        kind: Kind,
        settings: &Settings,
    ) -> Result<(), CalibError> {
        let path = paths.first().map_or(Path::new(""), PathBuf::as_path);
        let wanted: Vec<prepare::Wanted> = inputs.iter().map(wanted).collect();
        let prepared = prepare::prepare(paths, kind, &wanted, settings)?;
        self.prepared = true;
        for note in prepared.notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        let of = prepared.rows;
        for (at, (arrays, rows)) in prepared
            .tables
            .into_iter()
            .zip(prepared.origins)
            .enumerate()
        {
            let first = at == 0;
            let origin = Origin { rows, of, first };
            self.origins.insert(self.tables.len(), origin);
            let array = |(name, array): (String, prepare::Array)| {
                let (element, bytes): (_, Vec<u8>) = match &array.elements {
                    prepare::Elements::Ints(v) => (
                        Element::Int(8),
                        v.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    ),
                    prepare::Elements::Floats(v) => (
                        Element::Float(4),
                        v.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    ),
                };
                let data = FileArray::new(element, array.shape, bytes.into())?;
                Some((name.clone(), named(&name, path, None, data)))
            };
            self.tables
                .push(arrays.into_iter().filter_map(array).collect());
        }
        Ok(())
    }
}

/// The kind of data in the file of a source, if it is one that is prepared.
fn file_kind(source: &CalibSource) -> Option<Kind> {
    let path = &source.path;
    prepare::kind(path).filter(|_| source.name.is_none() && path.is_file())
}

/// What has to be known of an input to prepare data for it.
fn wanted(input: &ModelInput) -> prepare::Wanted {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => Some(*size),
        _ => None,
    };
    prepare::Wanted {
        name: input.name.clone(),
        shape: input
            .shape
            .as_ref()
            .map(|dims| dims.iter().map(size).collect()),
        is_float: is_float(input.dtype),
    }
}

/// The entries of a folder, sorted by name.
fn entries(path: &Path) -> Result<Vec<PathBuf>, CalibError> {
    let read = |source| CalibError::Read {
        file: path.to_owned(),
        source,
    };
    let mut entries = std::fs::read_dir(path)
        .map_err(read)?
        .map(|entry| entry.map(|e| e.path()).map_err(read))
        .collect::<Result<Vec<_>, _>>()?;
    entries.sort();
    Ok(entries)
}

fn read_file(inputs: &[ModelInput], path: &Path) -> Result<Arrays, CalibError> {
    match extension(path).as_str() {
        "npy" => {
            let needed: Vec<_> = inputs.iter().filter(|i| rule(&i.name).is_none()).collect();
            let [input] = needed.as_slice() else {
                return Err(CalibError::Ambiguous {
                    file: path.to_owned(),
                    count: needed.len(),
                    inputs: list(inputs),
                });
            };
            let array = named(&input.name, path, None, read_npy(path)?);
            Ok(Arrays::from([(input.name.clone(), array)]))
        }
        "npz" => {
            let mut arrays = Arrays::new();
            let known = |name: &str| match inputs.iter().any(|input| input.name == name) {
                true => Ok(()),
                false => Err(unknown(inputs, path, name)),
            };
            for (name, data) in read_npz(path, &known)? {
                let array = named(&name, path, Some(&name), data);
                arrays.insert(name, array);
            }
            if arrays.is_empty() {
                return Err(CalibError::Source {
                    file: path.to_owned(),
                    problem: "holds no array".into(),
                });
            }
            Ok(arrays)
        }
        _ => Err(CalibError::Source {
            file: path.to_owned(),
            problem: if path.exists() {
                "calibration data is a .npy or .npz file, a folder of them, text (.txt, .jsonl, .csv, .tsv, .json, \
                 .parquet), images (.png, .jpg, .webp, .bmp) or recordings (.wav)"
                    .into()
            } else {
                "there is no such file or folder".into()
            },
        }),
    }
}

/// True for a folder such as `test_data_set_0`, which holds `input_0.pb`.
fn is_test_data(path: &Path) -> Result<bool, CalibError> {
    Ok(path.join("input_0.pb").is_file())
}

/// Reads `input_0.pb`, `input_1.pb`, … for the model's inputs in graph order.
fn read_test_data(inputs: &[ModelInput], path: &Path) -> Result<Arrays, CalibError> {
    let mut arrays = Arrays::new();
    for i in 0.. {
        let file = path.join(format!("input_{i}.pb"));
        if !file.is_file() {
            break;
        }
        let (name, data) = read_pb(&file)?;
        // The tensor's own name decides if it is an input's; otherwise the file's number is the input's position.
        let input = inputs
            .iter()
            .find(|input| input.name == name)
            .or_else(|| inputs.get(i))
            .ok_or_else(|| CalibError::Source {
                file: file.clone(),
                problem: format!("the model has only {} inputs", inputs.len()),
            })?;
        let array = named(&input.name, &file, None, data);
        arrays.insert(input.name.clone(), array);
    }
    Ok(arrays)
}

/// The extension of `path` in lower case.
fn extension(path: &Path) -> String {
    path.extension()
        .map(|e| e.to_string_lossy().to_lowercase())
        .unwrap_or_default()
}
