//! `.wav` files.

use std::io::Cursor;
use std::path::Path;

use hound::{SampleFormat, WavReader};

use crate::prepare::config::bytes;
use crate::prepare::error::PrepareError;

/// The samples of a recording, from −1 to 1, the mean of its channels.
///
/// # Errors
/// It cannot be read, is empty, or has another sampling rate than `rate`.
pub(super) fn read(path: &Path, rate: usize) -> Result<Vec<f32>, PrepareError> {
    let wrong =
        |e: hound::Error| PrepareError::file(path, format!("is no .wav that can be read: {e}"));
    let data = bytes(path)?;
    let mut reader = WavReader::new(Cursor::new(&data)).map_err(wrong)?;
    let spec = reader.spec();
    if spec.sample_rate as usize != rate {
        let problem = format!(
            "has {} samples a second, and the model takes {rate}: convert it, as with ffmpeg -i IN -ar {rate} OUT.wav",
            spec.sample_rate
        );
        return Err(PrepareError::file(path, problem));
    }
    let samples: Vec<f32> = match spec.sample_format {
        SampleFormat::Float => reader
            .samples::<f32>()
            .collect::<Result<_, _>>()
            .map_err(wrong)?,
        SampleFormat::Int => {
            let one = 2f64.powi(i32::from(spec.bits_per_sample) - 1);
            let sample = |v: Result<i32, hound::Error>| v.map(|v| (f64::from(v) / one) as f32);
            reader
                .samples::<i32>()
                .map(sample)
                .collect::<Result<_, _>>()
                .map_err(wrong)?
        }
    };
    let channels = usize::from(spec.channels.max(1));
    let mono: Vec<f32> = match channels {
        1 => samples,
        _ => samples
            .chunks_exact(channels)
            .map(|of| of.iter().sum::<f32>() / channels as f32)
            .collect(),
    };
    match mono.iter().all(|v| v.is_finite()) {
        _ if mono.is_empty() => Err(PrepareError::file(path, "holds no samples")),
        false => Err(PrepareError::file(path, "holds a sample that is no number")),
        true => Ok(mono),
    }
}
