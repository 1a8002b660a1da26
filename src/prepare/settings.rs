//! What can be said of how data become inputs.

use std::path::{Path, PathBuf};

use super::config::Config;
use super::error::{PrepareError, Setting};

/// How text, images and recordings become inputs of a model. Everything has a default: what the files beside the model say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// The tokenizer of text: a `tokenizer.json`, or the folder that holds one with the model's other configuration.
    pub tokenizer: Option<PathBuf>,
    /// How images and recordings are prepared: a `preprocessor_config.json`, or the folder that holds one.
    pub preprocessor: Option<PathBuf>,
    /// The columns of a table that hold the text: one, or two for a model of pairs.
    pub columns: Vec<String>,
    /// Tokens of a row at most, in place of what the configuration says.
    pub max_length: Option<usize>,
    /// Rows of a file at most, evenly spread over it.
    pub samples: Option<usize>,
    /// Whether the rows have labels that judge a model: many are used where nobody says how many, and a model that compares no
    /// texts itself is given the two of a pair as rows of their own.
    pub judges: bool,
    /// The file that the model came from: a tokenizer and configuration are looked for in its folder and the one above.
    pub model: Option<PathBuf>,
}

/// The files that say how text becomes tokens.
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const SENTENCE_BERT: &str = "sentence_bert_config.json";
pub(super) const CONFIG: &str = "config.json";

/// Rows that judge a model by their labels where nobody says how many: accuracy is then known to two or three points.
const JUDGING: usize = 1000;

/// The files that say how images and recordings are prepared; the second has the first inside.
const PREPROCESSOR: &str = "preprocessor_config.json";
const PROCESSOR: &str = "processor_config.json";

impl Settings {
    /// The folder of the model's file and the one above, in this order.
    pub(super) fn folders(&self) -> Vec<PathBuf> {
        let Some(model) = &self.model else {
            return Vec::new();
        };
        let folder = folder_of(model);
        // Not `folder/..`: a name is easier to read, and links are followed by the system all the same.
        let above = match folder.parent() {
            Some(above) if !above.as_os_str().is_empty() => above.to_owned(),
            Some(_) if folder != Path::new(".") => PathBuf::from("."),
            _ if folder.is_absolute() => return vec![folder.to_owned()],
            _ => folder.join(".."),
        };
        vec![folder.to_owned(), above]
    }

    /// The tokenizer that was named, or the one beside the model; `None` if there is neither.
    ///
    /// # Errors
    /// A folder was named that holds no `tokenizer.json`.
    pub(super) fn tokenizer(&self) -> Result<Option<PathBuf>, PrepareError> {
        let Some(named) = &self.tokenizer else {
            let files = self
                .folders()
                .into_iter()
                .map(|folder| folder.join(TOKENIZER));
            return Ok(files.into_iter().find(|file| file.is_file()));
        };
        if !named.is_dir() {
            return Ok(Some(named.clone()));
        }
        let file = named.join(TOKENIZER);
        match file.is_file() {
            true => Ok(Some(file)),
            false => Err(PrepareError::file(
                named,
                "holds no tokenizer.json; AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers writes one",
            )),
        }
    }

    /// The file that says how images or recordings are prepared, and what it says. `inside` is its name in a file for several
    /// kinds of data, `is` what `data` is.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub(super) fn preprocessor(
        &self,
        data: &Path,
        is: &str,
        inside: &str,
    ) -> Result<(PathBuf, Config), PrepareError> {
        let file = self.preprocessor_file().ok_or_else(|| match &self.preprocessor {
            Some(named) => PrepareError::file(named, format!("holds no {PREPROCESSOR}")),
            None => {
                let problem = format!("{is}, and there is no {PREPROCESSOR} beside the model: name the one that belongs to it");
                PrepareError::needs(data, Setting::Preprocessor, problem)
            }
        })?;
        let config = Config::read(&file)?;
        let config = config.inside(inside).unwrap_or(config);
        Ok((file, config))
    }

    fn preprocessor_file(&self) -> Option<PathBuf> {
        let folders = match &self.preprocessor {
            Some(named) if named.is_dir() => vec![named.clone()],
            Some(named) => return Some(named.clone()),
            None => self.folders(),
        };
        let files = folders
            .iter()
            .flat_map(|folder| [PREPROCESSOR, PROCESSOR].map(|name| folder.join(name)));
        files.into_iter().find(|file| file.is_file())
    }

    /// The folders with the model's configuration, the tokenizer's first if there is one.
    ///
    /// # Errors
    /// Those of [`Settings::tokenizer`].
    pub(super) fn beside(&self) -> Result<Vec<PathBuf>, PrepareError> {
        Ok(match self.tokenizer()? {
            Some(tokenizer) => self.all_folders(&tokenizer),
            None => self.folders(),
        })
    }

    /// The folders with configuration: that of the tokenizer, then those of the model.
    pub(super) fn all_folders(&self, tokenizer: &Path) -> Vec<PathBuf> {
        let first = folder_of(tokenizer).to_owned();
        let others = self.folders().into_iter().filter(|folder| *folder != first);
        std::iter::once(first.clone()).chain(others).collect()
    }

    /// The files of configuration that data are prepared by, as far as they exist.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.preprocessor_file().into_iter().collect();
        if let Ok(Some(tokenizer)) = self.tokenizer() {
            let folders = self.all_folders(&tokenizer);
            let beside = folders.iter().flat_map(|folder| {
                [TOKENIZER_CONFIG, SENTENCE_BERT, CONFIG].map(|name| folder.join(name))
            });
            files.extend(beside.filter(|file| file.is_file()));
            files.push(tokenizer);
        }
        files
    }

    /// Rows to use at most, where `usual` are used to calibrate.
    pub(super) fn count(&self, usual: usize) -> usize {
        let standard = match self.judges {
            true => JUDGING.max(usual),
            false => usual,
        };
        self.samples.unwrap_or(standard)
    }

    /// Whether anything is asked for that arrays do not need.
    pub(crate) fn asks_to_prepare(&self) -> bool {
        self.tokenizer.is_some()
            || self.preprocessor.is_some()
            || !self.columns.is_empty()
            || self.max_length.is_some()
            || self.samples.is_some()
    }
}

/// The folder that a file is in.
fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_the_model_comes_before_the_one_above() {
        let of = |model: &str| {
            let model = Some(PathBuf::from(model));
            let folders = Settings {
                model,
                ..Settings::default()
            }
            .folders();
            folders
                .into_iter()
                .map(|f| f.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(of("hub/onnx/model.onnx"), ["hub/onnx", "hub"]);
        assert_eq!(of("onnx/model.onnx"), ["onnx", "."]);
        assert_eq!(of("model.onnx"), [".", "./.."]);
        assert_eq!(of("/model.onnx"), ["/"]);
        assert!(Settings::default().folders().is_empty());
    }
}
