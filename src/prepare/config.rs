//! The JSON files beside a model.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::Value;

use super::error::PrepareError;
use crate::onnx::InputFile;

/// A JSON file, or nothing where there is none.
#[derive(Debug, Clone, Default)]
pub(super) struct Config {
    value: Value,
}

impl Config {
    /// Reads `path`.
    ///
    /// # Errors
    /// It cannot be read, or is no JSON.
    pub(super) fn read(path: &Path) -> Result<Config, PrepareError> {
        let value = serde_json::from_slice(&bytes(path)?);
        let value = value.map_err(|e| PrepareError::file(path, format!("is no JSON: {e}")))?;
        Ok(Config { value })
    }

    /// Reads the first `name` in `folders`; empty where none has it.
    ///
    /// # Errors
    /// Those of [`Config::read`].
    pub(super) fn of(folders: &[PathBuf], name: &str) -> Result<Config, PrepareError> {
        let mut files = folders.iter().map(|folder| folder.join(name));
        match files.find(|file| file.is_file()) {
            Some(file) => Config::read(&file),
            None => Ok(Config::default()),
        }
    }

    /// What stands under `key`; null counts as nothing.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// The object under `key`, if there is one.
    pub(super) fn inside(&self, key: &str) -> Option<Config> {
        let value = self.get(key)?.clone();
        value.is_object().then_some(Config { value })
    }

    /// The keys of the file.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.value
            .as_object()
            .into_iter()
            .flat_map(|o| o.keys().map(String::as_str))
    }

    /// A number.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    /// A switch.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    /// A size; numbers that no memory holds, as some tools write for "unbounded", count as nothing.
    pub(super) fn size(&self, key: &str) -> Option<usize> {
        let size = self.get(key)?;
        let size = size.as_u64().or_else(|| {
            let size = size.as_f64()?;
            (size.fract() == 0.0 && (0.0..1e9).contains(&size)).then_some(size as u64)
        })?;
        (size < 1_000_000_000).then_some(size as usize)
    }

    /// A text, or the `content` of a token that is written as an object.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        let value = self.get(key)?;
        value.as_str().or_else(|| value.get("content")?.as_str())
    }
}

/// Maps a file.
pub(super) fn bytes(path: &Path) -> Result<Bytes, PrepareError> {
    let file = InputFile::open(path).map_err(|source| PrepareError::Read {
        file: path.to_owned(),
        source,
    })?;
    Ok(file.bytes)
}
