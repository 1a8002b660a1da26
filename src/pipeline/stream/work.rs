//! The work folder: finished parts, and what an interrupted run goes on with.
//!
//! ```text
//! key.json        model, data, settings, version: what the parts are of
//! part-003/       ours.onnx(.data), plain.onnx(.data)   what takes the place of the part
//!                 float-0-0.f32, ours-…, plain-…        the values behind it, by stream, value and table
//!                 done.json                             written last
//! ```

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::saved::SavedComparison;
use crate::calibrate::{OutputComparison, StoredValues};
use crate::error::Error;
use crate::onnx::{self, Model, SaveOptions, output};
use crate::review::Report;

/// A folder with the finished parts of one run.
#[derive(Debug)]
pub struct WorkFolder {
    path: PathBuf,
}

/// The name of the file that says what the parts are of.
const KEY: &str = "key.json";

impl WorkFolder {
    /// The folder at `path` for the run that `key` names: everything that its result depends on. It is made if it is not there;
    /// if it is, its parts are gone on with, if that was asked for.
    ///
    /// # Errors
    /// [`Error::Work`]: it is there and `resume` is false, it is of another run, or the system refuses.
    pub fn open(path: &Path, key: &str, resume: bool) -> Result<WorkFolder, Error> {
        let fail = |problem: String| Error::Work {
            path: path.to_owned(),
            problem,
        };
        let folder = WorkFolder {
            path: path.to_owned(),
        };
        let known = path.join(KEY);
        if path.exists() {
            if !resume {
                return Err(fail(
                    "is what an interrupted run has left: resume that run, or remove the folder"
                        .to_owned(),
                ));
            }
            let found = std::fs::read_to_string(&known).unwrap_or_default();
            if found.trim_end() != key {
                return Err(fail(
                    "is of a run with another model, other data, other settings or another version: remove it, or run with what it \
                     was made with"
                        .to_owned(),
                ));
            }
            return Ok(folder);
        }
        std::fs::create_dir(path).map_err(|e| fail(format!("cannot be made: {e}")))?;
        output::write(&known, false, |file| writeln!(file, "{key}"))?;
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, with all that is in it.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(self) -> std::io::Result<()> {
        std::fs::remove_dir_all(&self.path)
    }

    fn folder(&self, at: usize) -> PathBuf {
        self.path.join(format!("part-{at:03}"))
    }

    fn error(&self, path: &Path, error: impl std::fmt::Display) -> Error {
        Error::Work {
            path: path.to_owned(),
            problem: format!(
                "cannot be used: {error}; free space, or remove {}",
                self.path.display()
            ),
        }
    }

    /// An empty folder for the part that begins with block `at`.
    pub(super) fn begin(&self, at: usize) -> Result<PathBuf, Error> {
        let folder = self.folder(at);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(|e| self.error(&folder, e))?;
        }
        std::fs::create_dir(&folder).map_err(|e| self.error(&folder, e))?;
        Ok(folder)
    }

    /// The part that begins with block `at`, if it is done.
    pub(super) fn finished(&self, at: usize) -> Result<Option<Done>, Error> {
        let path = self.folder(at).join("done.json");
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&path).map_err(|e| self.error(&path, e))?;
        let saved: Saved = serde_json::from_slice(&text).map_err(|e| self.error(&path, e))?;
        Ok(Some(saved.into()))
    }

    /// What was stored for the next part, under names from the work folder on.
    pub(super) fn stored(&self, folder: &Path, mut values: StoredValues) -> StoredValues {
        let prefix = folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        for stored in values.values_mut().flatten().flatten() {
            stored.file = format!("{prefix}/{}", stored.file);
        }
        values
    }

    /// Writes down that a part is done, and removes the values before it, which no one reads any more.
    pub(super) fn finish(&self, done: Done, kept: Kept, before: &Boundary) -> Result<Done, Error> {
        let folder = self.folder(done.at);
        for (name, model) in [("ours.onnx", kept.ours), ("plain.onnx", kept.plain)] {
            if let Some(model) = model {
                let options = SaveOptions {
                    external_data: true,
                    overwrite: true,
                };
                onnx::save(model, folder.join(name), &options)?;
            }
        }
        let saved = Saved::from(&done);
        let path = folder.join("done.json");
        let text = serde_json::to_vec(&saved).map_err(|e| self.error(&path, e))?;
        output::write(&path, true, |file| file.write_all(&text))?;
        let values = [&before.float, &before.ours, &before.plain];
        for stored in values
            .into_iter()
            .flat_map(|v| v.values())
            .flatten()
            .flatten()
        {
            // One that stays is removed with the folder.
            let _ = std::fs::remove_file(self.path.join(&stored.file));
        }
        Ok(done)
    }

    /// The model that takes the place of a part: ours, or plain min-max quantization. `None` where the part stays as it is.
    pub(super) fn result(&self, done: &Done, plain: bool) -> Result<Option<Model>, Error> {
        if done.report.is_none() {
            return Ok(None);
        }
        let name = if plain && done.has_plain {
            "plain.onnx"
        } else {
            "ours.onnx"
        };
        Ok(Some(onnx::load(self.folder(done.at).join(name))?))
    }
}

/// The values between two parts, as each stream has them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Boundary {
    pub float: StoredValues,
    /// Held-out rows only, as in `plain`.
    pub ours: StoredValues,
    pub plain: StoredValues,
}

/// What is kept of a part, if something was done to it.
pub(super) struct Kept<'a> {
    pub ours: Option<&'a Model>,
    pub plain: Option<&'a Model>,
}

/// A part that is done.
pub(super) struct Done {
    /// Its first block, and the first of the next part.
    pub at: usize,
    pub next: usize,
    /// The nodes of the whole model that it has.
    pub nodes: Vec<usize>,
    /// Those of the part behind it that it was judged with.
    pub borrowed: Vec<usize>,
    /// `None` if nothing of it could be quantized.
    pub report: Option<Report>,
    pub has_plain: bool,
    /// The values behind it.
    pub boundary: Boundary,
    /// How the quantized stream differs from the float one at its outputs, and how the plain one does.
    pub outputs: Vec<Vec<OutputComparison>>,
}

/// [`Done`] as it is written down.
#[derive(Serialize, Deserialize)]
struct Saved {
    at: usize,
    next: usize,
    nodes: Vec<usize>,
    borrowed: Vec<usize>,
    report: Option<Report>,
    has_plain: bool,
    boundary: Boundary,
    outputs: Vec<Vec<SavedComparison>>,
}

impl From<&Done> for Saved {
    fn from(done: &Done) -> Saved {
        let outputs = done.outputs.iter();
        Saved {
            at: done.at,
            next: done.next,
            nodes: done.nodes.clone(),
            borrowed: done.borrowed.clone(),
            report: done.report.clone(),
            has_plain: done.has_plain,
            boundary: done.boundary.clone(),
            outputs: outputs
                .map(|o| o.iter().map(SavedComparison::from).collect())
                .collect(),
        }
    }
}

impl From<Saved> for Done {
    fn from(saved: Saved) -> Done {
        let outputs = saved.outputs.into_iter();
        Done {
            at: saved.at,
            next: saved.next,
            nodes: saved.nodes,
            borrowed: saved.borrowed,
            report: saved.report,
            has_plain: saved.has_plain,
            boundary: saved.boundary,
            outputs: outputs
                .map(|o| o.into_iter().map(Into::into).collect())
                .collect(),
        }
    }
}
