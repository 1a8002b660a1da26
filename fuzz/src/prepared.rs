//! What people have, and what says how it is prepared: tables, tokenizers, images, recordings and their configuration.

use std::path::{Path, PathBuf};

use onnx_osplus::calibrate::{CalibSource, Dataset};
use onnx_osplus::onnx::{self, Model};
use onnx_osplus::prepare::Settings;

use super::root;

/// Below `fuzz/corpus/`: what is not changed while the other half is.
fn seed(name: &str) -> PathBuf {
    root().join("fuzz/corpus").join(name)
}

/// Rows of one file for a committed model; whether there are any.
fn rows(model: &Model, path: PathBuf, settings: Settings) -> bool {
    let source = CalibSource { name: None, path };
    let Ok(data) = Dataset::open_with(model, &[source], 8, &settings) else {
        return false;
    };
    let _ = (data.digest(), data.notes());
    for batch in data.all().iter().take(4) {
        for input in batch.inputs.values() {
            let _ = input.values();
        }
    }
    data.rows() > 0
}

/// Declares a model that is loaded once a thread.
macro_rules! with_model {
    ($path:literal, $function:expr) => {{
        thread_local! {
            static MODEL: Model = onnx::load(root().join($path)).expect("a committed model can be loaded");
        }
        MODEL.with($function)
    }};
}

fn written(data: &[u8], folder: &Path, name: &str) -> Option<PathBuf> {
    let path = folder.join(name);
    std::fs::write(&path, data).ok()?;
    Some(path)
}

/// What a table of these bytes would be called.
fn table_name(data: &[u8]) -> &'static str {
    let line = data.split(|&byte| byte == b'\n').next().unwrap_or(data);
    match data.first() {
        _ if data.starts_with(b"PAR1") || data.ends_with(b"PAR1") => "data.parquet",
        Some(b'{') => "data.jsonl",
        Some(b'[') => "data.json",
        _ if line.contains(&b'\t') => "data.tsv",
        _ if line.contains(&b',') => "data.csv",
        _ => "data.txt",
    }
}

fn text(table: PathBuf, tokenizer: PathBuf) -> bool {
    let mut settings = Settings::default();
    settings.tokenizer = Some(tokenizer);
    settings.max_length = Some(16);
    with_model!("models/tiny/model.onnx", |model| rows(
        model, table, settings
    ))
}

/// A table of text, by a tokenizer that is as it should be.
pub(super) fn table(data: &[u8], folder: &Path) -> bool {
    let table = written(data, folder, table_name(data));
    table.is_some_and(|table| text(table, seed("tokenizer/words.json")))
}

/// A tokenizer, on lines that are as they should be.
pub(super) fn tokenizer(data: &[u8], folder: &Path) -> bool {
    let tokenizer = written(data, folder, "tokenizer.json");
    tokenizer.is_some_and(|tokenizer| text(seed("table/lines.txt"), tokenizer))
}

/// An image, as a model asks for it.
pub(super) fn image(data: &[u8], folder: &Path) -> bool {
    let name = match data.get(..2) {
        Some(b"BM") => "image.bmp",
        Some(b"RI") => "image.webp",
        Some([0xff, 0xd8]) => "image.jpg",
        _ => "image.png",
    };
    let image = written(data, folder, name);
    image.is_some_and(|image| pixels(image, seed("preprocessor/vit.json")))
}

fn pixels(image: PathBuf, preprocessor: PathBuf) -> bool {
    let mut settings = Settings::default();
    settings.preprocessor = Some(preprocessor);
    with_model!("models/architectures/vit-script17-sdpa.onnx", |model| rows(
        model, image, settings
    ))
}

fn features(sound: PathBuf, preprocessor: PathBuf) -> bool {
    let mut settings = Settings::default();
    settings.preprocessor = Some(preprocessor);
    with_model!(
        "models/architectures/whisper_encoder-script13-eager.onnx",
        |model| rows(model, sound, settings)
    )
}

/// What says how images and recordings are prepared.
pub(super) fn preprocessor(data: &[u8], folder: &Path) -> bool {
    let Some(file) = written(data, folder, "preprocessor_config.json") else {
        return false;
    };
    let pixels = pixels(seed("image/small.png"), file.clone());
    features(seed("sound/short.wav"), file) || pixels
}

/// A recording.
pub(super) fn sound(data: &[u8], folder: &Path) -> bool {
    let sound = written(data, folder, "sound.wav");
    sound.is_some_and(|sound| features(sound, seed("preprocessor/whisper.json")))
}
