//! How a decoder begins, by the configuration beside the model.

use std::collections::BTreeMap;

use super::config::Config;
use super::error::PrepareError;
use super::settings::{CONFIG, Settings};

/// The file with what is said of generation alone.
const GENERATION_CONFIG: &str = "generation_config.json";

/// What the tokens of a decoder begin with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Generation {
    /// The first token.
    pub start: i64,
    /// The token that ends a text.
    pub end: Option<i64>,
    /// The token that stands where there is none.
    pub pad: i64,
    /// Tokens that are given, by their place: the language and the task of Whisper.
    pub forced: BTreeMap<usize, i64>,
    /// What was not told, and what was taken.
    pub notes: Vec<String>,
}

impl Generation {
    /// Reads `generation_config.json` and `config.json` beside the model.
    ///
    /// # Errors
    /// One of them is no JSON.
    pub fn read(settings: &Settings) -> Result<Generation, PrepareError> {
        let folders = settings.beside()?;
        let files = [
            Config::of(&folders, GENERATION_CONFIG)?,
            Config::of(&folders, CONFIG)?,
        ];
        // Several ends are a list of which any will do.
        let number = |key: &str| {
            files.iter().find_map(|file| {
                let value = file.get(key)?;
                value.as_i64().or_else(|| value.get(0)?.as_i64())
            })
        };
        let end = number("eos_token_id");
        let told = number("decoder_start_token_id").or_else(|| number("bos_token_id"));
        let start = told.or_else(|| number("pad_token_id"));
        let mut generation = Generation {
            start: start.unwrap_or(0),
            end,
            pad: number("pad_token_id").or(end).unwrap_or(0),
            ..Generation::default()
        };
        if told.is_none() {
            generation.notes.push(format!(
                "no configuration beside the model tells its decoder_start_token_id: the decoder begins with {}",
                generation.start
            ));
        }
        if let Some(first) = number("forced_bos_token_id") {
            generation.forced.insert(1, first);
        }
        let forced = files
            .iter()
            .find_map(|file| file.get("forced_decoder_ids")?.as_array());
        for pair in forced.into_iter().flatten() {
            let place = pair.get(0).and_then(|n| n.as_u64());
            if let (Some(place), Some(id)) = (place, pair.get(1).and_then(|n| n.as_i64())) {
                generation.forced.insert(place as usize, id);
            }
        }
        Ok(generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_generation_wins() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            model: Some(dir.path().join("model.onnx")),
            ..Settings::default()
        };
        let none = Generation::read(&settings).unwrap();
        assert_eq!((none.start, none.notes.len()), (0, 1));
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            CONFIG,
            "{\"decoder_start_token_id\": 3, \"eos_token_id\": 1, \"pad_token_id\": 0}",
        );
        let found = Generation::read(&settings).unwrap();
        assert_eq!((found.start, found.end, found.pad), (3, Some(1), 0));
        assert!(found.notes.is_empty());
        write(
            GENERATION_CONFIG,
            "{\"decoder_start_token_id\": 9, \"eos_token_id\": [7, 8], \"forced_decoder_ids\": [[1, null], [2, 5]]}",
        );
        let found = Generation::read(&settings).unwrap();
        assert_eq!((found.start, found.end), (9, Some(7)));
        assert_eq!(found.forced, BTreeMap::from([(2, 5)]));
    }
}
