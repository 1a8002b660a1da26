//! What the arguments of every command with data say of how text becomes inputs.

use std::path::{Path, PathBuf};

use clap::Args;
use onnx_osplus::prepare::Settings;

/// The flags for data that are no arrays.
#[derive(Clone, Debug, Args)]
pub(crate) struct DataArguments {
    /// The tokenizer of text: tokenizer.json, or the folder with it and the rest of the model's configuration [default: the
    /// one beside the model, or in the folder above] [example: --tokenizer all-MiniLM-L6-v2]
    #[arg(long, value_name = "DIR|FILE")]
    tokenizer: Option<PathBuf>,

    /// How images and recordings are prepared: preprocessor_config.json, or the folder with it [default: the one beside the
    /// model, or in the folder above] [example: --preprocessor whisper-tiny]
    #[arg(long, value_name = "DIR|FILE")]
    preprocessor: Option<PathBuf>,

    /// The column with the text; twice for models of pairs [default: text, sentence, …, or the only one with text]
    /// [example: --column review] [example: --column query --column passage]
    #[arg(long, value_name = "NAME")]
    column: Vec<String>,

    /// Tokens of a row at most [default: what the model's configuration says] [example: --max-length 128]
    #[arg(long, value_name = "TOKENS", value_parser = parse_count)]
    max_length: Option<usize>,

    /// Rows of text to use of each file, or images or recordings of all, evenly spread [default: 128, of recordings 32]
    /// [example: --samples 100]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    samples: Option<usize>,
}

impl DataArguments {
    /// What the library is told, for data of the model in `model`.
    pub(super) fn settings(&self, model: &Path) -> Settings {
        self.settings_for(model, false)
    }

    /// The same for rows that are to judge by their labels.
    pub(super) fn judging(&self, model: &Path) -> Settings {
        self.settings_for(model, true)
    }

    fn settings_for(&self, model: &Path, judges: bool) -> Settings {
        let mut settings = Settings::default();
        settings.tokenizer = self.tokenizer.clone();
        settings.preprocessor = self.preprocessor.clone();
        settings.columns = self.column.clone();
        settings.max_length = self.max_length;
        settings.samples = self.samples;
        settings.judges = judges;
        settings.model = Some(model.to_owned());
        settings
    }
}

pub(super) fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}")),
    }
}
