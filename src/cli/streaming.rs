//! The choice between a run over the whole model and one block by block, and the work folder of the latter.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use clap::ValueEnum;
use onnx_osplus::calibrate::{Dataset, Engine};
use onnx_osplus::onnx::{Model, SourceFiles};
use onnx_osplus::progress::Progress;
use onnx_osplus::review::{Report, Settings};
use onnx_osplus::solve::Method;
use onnx_osplus::{
    Evaluation, Format, Options, Streaming, WorkFolder, cannot_stream, run_evaluated,
    run_streaming, stored_bytes, whole_model_bytes,
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
    let weights = whole_model_bytes(original) / 4;
    let least = Needed {
        result: arguments.least_bytes()(weights),
        compares: options.method != Method::None && options.format != Format::Float,
        values: stored_bytes(original, data),
        there: folder_bytes(&path),
    };
    has_room(&path, &least, system::free_bytes(&path))?;
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

/// Bytes that a run block by block needs on the disk of OUT at the very least.
struct Needed {
    /// Of the result.
    result: u64,
    /// Whether its parts are stored as plain min-max quantization makes them, too.
    compares: bool,
    /// Of the values between the parts.
    values: u64,
    /// What an interrupted run has stored already.
    there: u64,
}

impl Needed {
    /// The parts wait in the work folder until OUT is whole.
    fn bytes(&self) -> u64 {
        let parts = self.result * if self.compares { 2 } else { 1 };
        (parts + self.values).saturating_sub(self.there) + self.result
    }
}

/// Whether the disk that the work folder is on has room for all of the run, `free` bytes being left on it.
///
/// # Errors
/// It has not: hours later it would be full.
fn has_room(work: &Path, needed: &Needed, free: Option<u64>) -> Result<()> {
    let least = needed.bytes();
    match free {
        Some(free) if free < least => bail!(
            "{} cannot hold a run block by block: its disk has {:.1} MB left, and the parts, the values between them and OUT need \
             {:.1} MB or more; free some of it, or write OUT to another disk",
            shown::path(work),
            free as f64 / 1e6,
            least as f64 / 1e6
        ),
        _ => Ok(()),
    }
}

/// Bytes of the files in a folder and those in it; 0 of one that is not there.
fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => folder_bytes(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.map(bytes).sum()
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
    fn a_disk_that_is_too_small_for_the_work_folder_is_named() {
        let needed = Needed {
            result: 40_000_000,
            compares: true,
            values: 10_000_000,
            there: 0,
        };
        let path = Path::new("far/out.onnx.work");
        assert!(has_room(path, &needed, Some(130_000_000)).is_ok());
        assert!(has_room(path, &needed, None).is_ok(), "not known");
        let said = has_room(path, &needed, Some(129_000_000))
            .unwrap_err()
            .to_string();
        for part in ["far/out.onnx.work", "129.0 MB left", "130.0 MB or more"] {
            assert!(said.contains(part), "{said}");
        }
        // Nothing to compare with, and most of it done.
        let resumed = Needed {
            compares: false,
            there: 45_000_000,
            ..needed
        };
        assert!(has_room(path, &resumed, Some(45_000_000)).is_ok());
        assert!(has_room(path, &resumed, Some(44_000_000)).is_err());
    }

    #[test]
    fn what_is_in_a_folder_counts() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(folder_bytes(&folder.path().join("none")), 0);
        std::fs::create_dir(folder.path().join("part-000")).unwrap();
        std::fs::write(folder.path().join("key.json"), [0; 5]).unwrap();
        std::fs::write(folder.path().join("part-000/ours.onnx"), [0; 7]).unwrap();
        assert_eq!(folder_bytes(folder.path()), 12);
    }

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
