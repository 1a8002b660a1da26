//! The decoders of a folder get their data from its encoder.

use std::path::{Path, PathBuf};

use anyhow::Result;
use onnx_osplus::calibrate::{
    Dataset, DecoderData, decoder_data, is_decoder, starts_without_cache,
};
use onnx_osplus::onnx::{self, Model};
use onnx_osplus::prepare::Generation;
use onnx_osplus::progress::Progress;

use super::arguments::Arguments;
use super::{say, shown};

/// What the decoders of a folder are fed with.
pub(super) struct Decoders(Option<DecoderData>);

impl Decoders {
    /// The data for a model: `None` if it is no decoder, or there are none for it.
    ///
    /// # Errors
    /// The model cannot be read.
    pub(super) fn of(&self, model: &Path) -> Result<Option<&DecoderData>> {
        let Some(data) = &self.0 else {
            return Ok(None);
        };
        let decodes = is_decoder(&onnx::load(model)?).map_err(onnx_osplus::Error::from)?;
        Ok(decodes.then_some(data))
    }
}

/// Runs the encoder among `models`, and lets a decoder choose its tokens. Where that cannot be done, it is said why, and the decoders are
/// given what the user has, as any model.
pub(super) fn data(arguments: &Arguments, models: &[PathBuf], progress: &dyn Progress) -> Decoders {
    let made = made(arguments, models, progress);
    Decoders(made.unwrap_or_else(|error| {
        say(&format!(
            "note: the folder's encoder makes no data for its decoder: {}",
            super::explain(&error)
        ));
        None
    }))
}

fn made(
    arguments: &Arguments,
    models: &[PathBuf],
    progress: &dyn Progress,
) -> Result<Option<DecoderData>> {
    if models.len() < 2 {
        return Ok(None);
    }
    let (mut encoders, mut decoders): (Vec<(&PathBuf, Model)>, Vec<Model>) = (vec![], vec![]);
    for path in models {
        // One that cannot be read is told when its turn comes.
        let Ok(model) = onnx::load(path) else {
            continue;
        };
        match is_decoder(&model) {
            Ok(true) => decoders.push(model),
            Ok(false) => encoders.push((path, model)),
            Err(_) => {}
        }
    }
    let is_called_so = |path: &Path| shown::path(path).contains("encoder");
    let first = encoders.iter().find(|(path, _)| is_called_so(path));
    let starts = |model: &&Model| starts_without_cache(model).unwrap_or(false);
    let (Some((path, encoder)), Some(decoder)) =
        (first.or(encoders.first()), decoders.iter().find(starts))
    else {
        return Ok(None);
    };
    let settings = arguments.data.settings(path);
    let data = Dataset::open_with(encoder, &arguments.sources(), arguments.batch, &settings)?;
    let generation = Generation::read(&settings).map_err(anyhow::Error::from)?;
    let engine = arguments.engine.engine()?;
    let running = (arguments.threads(), progress);
    let made = decoder_data(
        (encoder, &data),
        decoder,
        &generation,
        engine.as_ref(),
        running,
    );
    Ok(Some(made.map_err(onnx_osplus::Error::from)?))
}
