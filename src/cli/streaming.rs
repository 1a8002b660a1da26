//! The choice between a run over the whole model and one block by block, and the work folder of the latter.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use clap::ValueEnum;
use onnx_osplus::calibrate::{Dataset, Engine};
use onnx_osplus::onnx::{Model, SourceFiles};
use onnx_osplus::progress::Progress;
use onnx_osplus::review::{Report, Settings};
use onnx_osplus::{
    Evaluation, Options, Streaming, WorkFolder, cannot_stream, run_evaluated, run_streaming,
    whole_model_bytes,
};
use serde_json::json;

use super::arguments::Arguments;
use super::shown::{self, say};
use super::system;

/// Whether a model is worked on block by block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum StreamingName {
    /// If the whole model needs more memory than there is.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// What a run has made, and the folder that its parts are in until they are saved.
pub(super) struct Outcome {
    pub model: Model,
    pub report: Report,
    pub work: Option<WorkFolder>,
}

/// Of the memory that is available, the part that a run over the whole model may take.
const USABLE: f64 = 0.8;

/// Does the job, in the way that was asked for or that the memory allows.
pub(super) fn run(
    arguments: &Arguments,
    (original, source): (&Model, &SourceFiles),
    (data, digest): (&Dataset, &str),
    (options, engine): (&Options, &dyn Engine),
    evaluation: Option<Evaluation>,
    progress: &dyn Progress,
) -> Result<Outcome> {
    let taken_with = (arguments.batch, arguments.seed, arguments.engine.name());
    let known = super::stats::load(&arguments.stats, source, digest, taken_with)?;
    let path = work_path(&arguments.output);
    let (streams, note) = choose(arguments, original, &path, evaluation.is_some())?;
    if !streams {
        let (model, mut report) = run_evaluated(
            original,
            (data, known.as_ref()),
            evaluation,
            engine,
            options,
            progress,
        )?;
        report.notes.extend(note);
        return Ok(Outcome {
            model,
            report,
            work: None,
        });
    }
    if arguments.force && !arguments.resume && path.join("key.json").is_file() {
        std::fs::remove_dir_all(&path)
            .map_err(|error| anyhow!("cannot remove {}: {error}", shown::path(&path)))?;
    }
    let work = WorkFolder::open(
        &path,
        &key(arguments, source, digest, options)?,
        arguments.resume,
    )?;
    let streaming = Streaming {
        work: &work,
        memory: arguments.memory,
        known: known.as_ref(),
    };
    match run_streaming(original, data, engine, options, streaming, progress) {
        Ok((model, report)) => Ok(Outcome {
            model,
            report,
            work: Some(work),
        }),
        Err(error) => {
            if path.join("part-000").join("done.json").is_file() {
                say(&format!(
                    "note: the parts that are done are in {}: --resume goes on with them, --force starts anew",
                    shown::path(&path)
                ));
            } else {
                // Nothing to go on with; what cannot be removed stays.
                let _ = work.remove();
            }
            Err(error.into())
        }
    }
}

/// The folder beside OUT.
fn work_path(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".work");
    out.with_file_name(name)
}

/// Whether to stream, and what the user should know about it.
fn choose(
    arguments: &Arguments,
    original: &Model,
    work: &Path,
    judged: bool,
) -> Result<(bool, Option<String>)> {
    let resumes = arguments.resume && work.exists();
    match arguments.streaming {
        StreamingName::Off if arguments.resume => {
            bail!("--resume goes on with a run block by block, which --streaming off forbids")
        }
        StreamingName::Off => return Ok((false, None)),
        StreamingName::On if judged => {
            bail!(
                "a metric judges the model as a whole: leave --streaming on out, or what is said of labels"
            )
        }
        StreamingName::On => return Ok((true, None)),
        StreamingName::Auto if judged => return Ok((false, None)),
        StreamingName::Auto if resumes => return Ok((true, None)),
        StreamingName::Auto => {}
    }
    let needed = whole_model_bytes(original);
    let Some(memory) = arguments.memory.or_else(system::available_bytes) else {
        return Ok((false, None));
    };
    if needed as f64 <= memory as f64 * USABLE {
        return Ok((false, None));
    }
    let gb = |bytes: u64| bytes as f64 / 1e9;
    match cannot_stream(original) {
        None => Ok((true, None)),
        Some(reason) => Ok((
            false,
            Some(format!(
                "the model needs about {:.1} GB of memory, {:.1} GB may be used; it was run as a whole all the same, because {reason}",
                gb(needed),
                gb(memory)
            )),
        )),
    }
}

/// Everything that the parts depend on.
fn key(
    arguments: &Arguments,
    source: &SourceFiles,
    data: &str,
    options: &Options,
) -> Result<String> {
    let (model, external) = source.digests();
    let key = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": model,
        "external_data": external,
        "calibration": data,
        "batch": arguments.batch,
        "engine": arguments.engine.name(),
        "memory": arguments.memory,
        "settings": Settings::from(options),
    });
    Ok(serde_json::to_string(&key)?)
}

/// A number of bytes, such as `16GB`, `900MB` or `8GiB`.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no amount of memory such as 16GB, 900MB or 8GiB");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "gb" | "g" => 1e9,
        "mb" | "m" => 1e6,
        "gib" => f64::from(1u32 << 30),
        "mib" => f64::from(1u32 << 20),
        _ => return Err(wrong()),
    };
    match digits.trim().parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok((number * unit) as u64),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory() {
        assert_eq!(parse_bytes("16GB"), Ok(16_000_000_000));
        assert_eq!(parse_bytes("0.5 GiB"), Ok(1 << 29));
        assert_eq!(parse_bytes("900mb"), Ok(900_000_000));
        for wrong in ["", "16", "GB", "-1GB", "16TBB", "nanGB", "0GB", "1e400GB"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
