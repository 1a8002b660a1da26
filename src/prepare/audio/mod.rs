//! Recordings to what speech models are fed with, as the feature extractors of Whisper and wav2vec2 in `transformers` make it.

mod mel;
mod wave;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::arrays::{Array, Arrays, Elements, Prepared, Wanted};
use super::config::Config;
use super::error::{PrepareError, guarded};
use super::sampling::{sampled, spread};
use super::settings::Settings;
use mel::LogMel;

/// Recordings that are used where nobody says how many: each is a thousand tokens and more.
const SAMPLES: usize = 32;

/// Seconds of a recording at most, for models that do not say.
const LONGEST: usize = 30;

/// The extensions of recordings that are read.
pub(super) const EXTENSIONS: [&str; 1] = ["wav"];

/// What a model of speech is fed with.
enum Extractor {
    /// The logarithms of energies over time, always of as many seconds.
    Whisper(LogMel, usize),
    /// The waveform.
    Wav2Vec2 { masks: bool },
}

/// Makes what the model's input of speech is fed with from recordings.
///
/// # Errors
/// No configuration, one that is not understood, a recording that cannot be read or has another sampling rate.
pub(super) fn prepare(
    paths: &[PathBuf],
    inputs: &[Wanted],
    settings: &Settings,
) -> Result<Prepared, PrepareError> {
    let first = paths.first().map_or(Path::new(""), PathBuf::as_path);
    let (file, config) = settings.preprocessor(first, "is a recording", "feature_extractor")?;
    let rate = config
        .size("sampling_rate")
        .filter(|n| *n > 0)
        .unwrap_or(16_000);
    let extractor = Extractor::of(&file, &config, rate, inputs)?;
    let mut notes = Vec::new();
    if settings.preprocessor.is_none() {
        notes.push(format!("recordings are prepared by {}", file.display()));
    }
    let count = settings.count(SAMPLES);
    if settings.samples.is_none() && count < paths.len() {
        let folder = first.parent().unwrap_or(first);
        notes.push(sampled(folder, count, paths.len(), "recordings"));
    }
    let mut waves = Vec::new();
    for at in spread(paths.len(), count) {
        let path = &paths[at];
        waves.push(guarded(path, || wave::read(path, rate))?);
    }
    let input = input(first, inputs, &extractor)?;
    let normalizes = config.flag("do_normalize");
    let numbers: Vec<usize> = spread(paths.len(), count).collect();
    let (tables, origins) = match &extractor {
        Extractor::Whisper(log_mel, samples) => {
            let normalizes = normalizes == Some(true);
            cut(&mut waves, *samples, &mut notes);
            let mut features = Vec::new();
            for wave in &waves {
                let mut wave = match normalizes {
                    true => normalized(wave),
                    false => wave.clone(),
                };
                wave.resize(*samples, 0.0);
                features.extend(log_mel.of(&wave));
            }
            let shape = vec![waves.len(), log_mel.bands(), log_mel.frames(*samples)];
            let array = Array {
                shape,
                elements: Elements::Floats(features),
            };
            let table = Arrays::from([(input.name.clone(), array)]);
            (vec![table], vec![numbers])
        }
        Extractor::Wav2Vec2 { masks } => {
            let fixed = input
                .shape
                .as_ref()
                .and_then(|shape| shape.get(1).copied().flatten());
            cut(&mut waves, fixed.unwrap_or(LONGEST * rate), &mut notes);
            if normalizes != Some(false) {
                waves = waves.iter().map(|wave| normalized(wave)).collect();
            }
            waveforms((&waves, &numbers), input, inputs, fixed, *masks)
        }
    };
    Ok(Prepared {
        tables,
        origins,
        rows: paths.len(),
        notes,
    })
}

impl Extractor {
    fn of(
        file: &Path,
        config: &Config,
        rate: usize,
        inputs: &[Wanted],
    ) -> Result<Extractor, PrepareError> {
        let wrong = |problem: String| PrepareError::file(file, problem);
        let size =
            |key: &str, standard: usize| config.size(key).filter(|n| *n > 0).unwrap_or(standard);
        match config.text("feature_extractor_type") {
            Some("WhisperFeatureExtractor") => {
                let (n_fft, hop) = (size("n_fft", 400), size("hop_length", 160));
                let samples = size("chunk_length", 30).saturating_mul(rate);
                let bands = size("feature_size", 80);
                if samples > 100_000_000
                    || n_fft > 1 << 16
                    || bands > 1 << 12
                    || samples <= n_fft
                    || n_fft < 4
                {
                    return Err(wrong(format!(
                        "a recording of {samples} samples and windows of {n_fft} make no features"
                    )));
                }
                Ok(Extractor::Whisper(
                    LogMel::new(n_fft, hop, bands, rate),
                    samples,
                ))
            }
            Some("Wav2Vec2FeatureExtractor") => Ok(Extractor::Wav2Vec2 {
                masks: inputs.iter().any(|input| input.name == "attention_mask"),
            }),
            other => Err(wrong(format!(
                "{} is not known here; WhisperFeatureExtractor and Wav2Vec2FeatureExtractor are: give arrays",
                other.unwrap_or("a feature extractor without a name")
            ))),
        }
    }
}

/// The input of speech.
fn input<'a>(
    path: &Path,
    inputs: &'a [Wanted],
    extractor: &Extractor,
) -> Result<&'a Wanted, PrepareError> {
    let (name, rank) = match extractor {
        Extractor::Whisper(..) => ("input_features", 3),
        Extractor::Wav2Vec2 { .. } => ("input_values", 2),
    };
    let usual = inputs.iter().find(|input| input.name == name);
    let fits = |i: &&Wanted| i.is_float && i.shape.as_ref().is_none_or(|s| s.len() == rank);
    let mut others = inputs.iter().filter(fits);
    let only = match (others.next(), others.next()) {
        (Some(input), None) => Some(input),
        _ => None,
    };
    usual.or(only).ok_or_else(|| {
        let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
        let names = names.join(", ");
        PrepareError::file(
            path,
            format!("is a recording, and the model has no input {name}; its inputs are {names}"),
        )
    })
}

/// Cuts recordings that are too long.
fn cut(waves: &mut [Vec<f32>], samples: usize, notes: &mut Vec<String>) {
    let longer = waves.iter().filter(|wave| wave.len() > samples).count();
    if longer > 0 {
        notes.push(format!(
            "{longer} of {} recordings were cut to {samples} samples",
            waves.len()
        ));
    }
    for wave in waves {
        wave.truncate(samples);
    }
}

/// A waveform with mean 0 and variance 1.
fn normalized(wave: &[f32]) -> Vec<f32> {
    let count = wave.len().max(1) as f64;
    let mean = wave.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
    let variance = wave
        .iter()
        .map(|v| (f64::from(*v) - mean).powi(2))
        .sum::<f64>()
        / count;
    let scale = (variance + 1e-7).sqrt();
    wave.iter()
        .map(|v| ((f64::from(*v) - mean) / scale) as f32)
        .collect()
}

/// Waveforms as tables: padded to the longest and masked, or of one length each for models without a mask.
fn waveforms(
    (waves, numbers): (&[Vec<f32>], &[usize]),
    input: &Wanted,
    inputs: &[Wanted],
    fixed: Option<usize>,
    masks: bool,
) -> (Vec<Arrays>, Vec<Vec<usize>>) {
    let longest = waves.iter().map(Vec::len).max().unwrap_or(0);
    let mut by_length: BTreeMap<usize, (Vec<&Vec<f32>>, Vec<usize>)> = BTreeMap::new();
    for (wave, number) in waves.iter().zip(numbers) {
        let own = match masks {
            true => longest,
            false => wave.len(),
        };
        let (waves, numbers) = by_length.entry(fixed.unwrap_or(own)).or_default();
        waves.push(wave);
        numbers.push(*number);
    }
    let table = |(length, (waves, numbers)): (usize, (Vec<&Vec<f32>>, Vec<usize>))| {
        let shape = vec![waves.len(), length];
        let padded = waves.iter().flat_map(|wave| {
            let silence = std::iter::repeat_n(0.0, length - wave.len());
            wave.iter().copied().chain(silence)
        });
        let values = Array {
            shape: shape.clone(),
            elements: Elements::Floats(padded.collect()),
        };
        let mut arrays = Arrays::from([(input.name.clone(), values)]);
        if let Some(mask) = inputs
            .iter()
            .find(|input| masks && input.name == "attention_mask")
        {
            let real = waves
                .iter()
                .flat_map(|wave| (0..length).map(|at| i64::from(at < wave.len())));
            let elements = Elements::Ints(real.collect());
            arrays.insert(mask.name.clone(), Array { shape, elements });
        }
        (arrays, numbers)
    };
    by_length.into_iter().map(table).unzip()
}
