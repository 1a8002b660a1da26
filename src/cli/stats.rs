//! `onnx-osplus stats`: the calibration alone, of a shard of the rows, and the files that it is kept in.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use onnx_osplus::Options;
use onnx_osplus::calibrate::{
    Dataset, GatheredStatistics, Statistics, finish_statistics, merge_statistics, read_statistics,
    write_statistics,
};
use onnx_osplus::onnx::{self, InputFile, Model, SourceFiles, output};
use onnx_osplus::progress::Progress;
use onnx_osplus::target::Target;
use serde::{Deserialize, Serialize};

use super::arguments::{parse_batch, parse_threads, source, targets};
use super::data::DataArguments;
use super::engine::EngineArguments;
use super::files::Files;
use super::granularity::Granularities;
use super::shown::{self, print};

/// Takes the statistics of a model's activations and keeps them in a file, for --stats
///
/// Several machines can share the work: each is given all the data and a shard I/N of it, and the files of all shards together give the
/// very result of one run over all rows. Another set of options needs no second calibration.
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 done, 1 failed, 2 wrong usage.\n\n\
                  Example: onnx-osplus stats in.onnx --calib data.npz --shard 2/7 -o part2.stats")]
pub(crate) struct Arguments {
    /// The float model to read
    #[arg(value_name = "IN")]
    input: PathBuf,

    /// Calibration data, all of it, as for the main job [example: --calib data.npz]
    #[arg(long, value_name = "[NAME=]PATH", required = true)]
    calib: Vec<OsString>,

    #[command(flatten)]
    data: DataArguments,

    /// The file to write [example: -o part.stats]
    #[arg(short, long, value_name = "FILE", required = true)]
    output: PathBuf,

    /// Only the I-th of N parts of the rows, from 1 on [example: --shard 2/7]
    #[arg(long, value_name = "I/N", default_value = "1/1", value_parser = parse_shard)]
    shard: (usize, usize),

    /// The runtime that the result will be for [example: --target portable]
    #[arg(long, value_name = "TARGET", default_value = Target::Ort.profile().name, value_parser = targets())]
    target: Target,

    #[command(flatten)]
    granularities: Granularities,

    /// Most rows to run at a time, as it will be for the result [example: --batch 1]
    #[arg(long, value_name = "ROWS", default_value_t = 8, value_parser = parse_batch)]
    batch: usize,

    /// Batches to run in parallel; 0 means one per core [example: --threads 1]
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_threads)]
    threads: usize,

    /// Seed of the choice of calibration tokens, as it will be for the result [example: --seed 7]
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    #[command(flatten)]
    engine: EngineArguments,

    /// Keep the rows in FILE too: --stats then does without --calib; of several shards one is enough [example: --with-data]
    #[arg(long)]
    with_data: bool,

    /// Overwrite FILE if it exists [example: --force]
    #[arg(long)]
    force: bool,

    /// Print nothing but errors [example: -q]
    #[arg(short, long)]
    pub(super) quiet: bool,
}

fn parse_shard(text: &str) -> Result<(usize, usize), String> {
    let wrong = || format!("`{text}` is no shard such as 2/7, the second of seven");
    let (number, of) = text.split_once('/').ok_or_else(wrong)?;
    match (number.trim().parse(), of.trim().parse()) {
        (Ok(number), Ok(of)) if 0 < number && number <= of => Ok((number, of)),
        _ => Err(wrong()),
    }
}

/// What a file of statistics begins with.
const MAGIC: &[u8; 16] = b"onnx-osplus\0stat";

/// What is told of a file that does not.
const NOT_OURS: &str = "is no file that `onnx-osplus stats` has written";

/// What a file that keeps the rows ends with, behind the number of the byte that they begin at.
const ROWS: &[u8; 16] = b"onnx-osplus\0rows";

/// What the statistics are of: all shards of one run have the same, but for `shard`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Head {
    version: String,
    model: String,
    external_data: Vec<(String, String)>,
    calibration: String,
    batch: usize,
    seed: u64,
    engine: String,
    /// The number of the shard, from 1 on, and of how many.
    shard: (usize, usize),
}

/// Does the job.
pub(crate) fn run(arguments: &Arguments, progress: &dyn Progress) -> Result<()> {
    let start = Instant::now();
    let base = Options {
        target: arguments.target,
        threads: arguments.threads,
        seed: arguments.seed,
        ..Options::default()
    };
    let options = arguments.granularities.over(base, arguments.target);
    options.validate().map_err(onnx_osplus::Error::from)?;
    let mut files = Files::default();
    files.reads_model("IN", &arguments.input);
    let sources: Vec<_> = arguments.calib.iter().map(|text| source(text)).collect();
    let settings = arguments.data.settings(&arguments.input);
    files.reads_data(&sources, &settings);
    files.writes("-o", &arguments.output, arguments.force)?;
    let (model, model_files) = onnx::load_with_source(&arguments.input)?;
    onnx_osplus::check_quantizable(&model)?;
    let data = Dataset::open_with(&model, &sources, arguments.batch, &settings)?;
    let engine = arguments.engine.engine()?;
    let (number, of) = arguments.shard;
    let shard = (number - 1, of);
    let found = onnx_osplus::stats(&model, &data, shard, engine.as_ref(), &options, progress)?;
    model_files.check_unchanged()?;
    let (digest, external_data) = model_files.digests();
    let head = Head {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model: digest,
        external_data,
        calibration: data.digest(),
        batch: arguments.batch,
        seed: arguments.seed,
        engine: arguments.engine.name().to_owned(),
        shard: arguments.shard,
    };
    let text = serde_json::to_vec(&head)?;
    output::write(&arguments.output, arguments.force, |file| {
        let mut file = BufWriter::new(file);
        file.write_all(MAGIC)?;
        file.write_all(&(text.len() as u64).to_le_bytes())?;
        file.write_all(&text)?;
        write_statistics(&found, &mut file)?;
        if arguments.with_data {
            let at = file.stream_position()?;
            data.store(&mut file)?;
            file.write_all(&at.to_le_bytes())?;
            file.write_all(ROWS)?;
        }
        file.flush()
    })?;
    if !arguments.quiet {
        print(&format!(
            "statistics of {} values, shard {number} of {of}, in {:.1} s\nwrote {}\n",
            found.len(),
            start.elapsed().as_secs_f64(),
            shown::path(&arguments.output)
        ));
    }
    Ok(())
}

fn read(path: &Path) -> Result<(Head, GatheredStatistics)> {
    let fail = |what: &str| anyhow!("{} {what}", shown::path(path));
    let file = std::fs::File::open(path).map_err(|e| fail(&format!("cannot be read: {e}")))?;
    let mut file = BufReader::new(file);
    let mut begin = [0; 24];
    file.read_exact(&mut begin).map_err(|_| fail(NOT_OURS))?;
    if &begin[..16] != MAGIC {
        return Err(fail(NOT_OURS));
    }
    let damaged = |e: &dyn std::fmt::Display| fail(&format!("is damaged: {e}; write it again"));
    let length = begin[16..]
        .iter()
        .rev()
        .fold(0u64, |n, &b| n << 8 | u64::from(b));
    let mut text = Vec::new();
    file.by_ref()
        .take(length.min(1 << 20))
        .read_to_end(&mut text)?;
    let head = serde_json::from_slice(&text).map_err(|e| damaged(&e))?;
    let found = read_statistics(&mut file).map_err(|e| damaged(&e))?;
    Ok((head, found))
}

/// The rows that one of the files in `paths` keeps beside its statistics.
///
/// # Errors
/// A file that is none of statistics; rows that are damaged or do not suit the model; no rows at all.
pub(super) fn rows(paths: &[PathBuf], model: &Model, batch: usize) -> Result<Dataset> {
    for path in paths {
        let file = InputFile::open(path)
            .map_err(|e| anyhow!("{} cannot be read: {e}", shown::path(path)))?;
        if !file.bytes.starts_with(MAGIC) {
            bail!("{} {NOT_OURS}", shown::path(path));
        }
        if let Some(range) = kept_rows(&file.bytes) {
            let stored = file.bytes.slice(range);
            return Ok(Dataset::of_stored(model, &stored, batch, path)?);
        }
    }
    bail!(
        "no file of --stats keeps the rows that it was taken of: give them with --calib, or take the statistics --with-data"
    )
}

/// Where in a file of statistics is what [`Dataset::store`] wrote.
fn kept_rows(file: &[u8]) -> Option<Range<usize>> {
    let end = file.strip_suffix(ROWS)?;
    let (rows, at) = end.split_last_chunk::<8>()?;
    let at = usize::try_from(u64::from_le_bytes(*at)).ok()?;
    (at <= rows.len()).then_some(at..rows.len())
}

/// The statistics of all shards in `paths`, which must be of this very model and data.
///
/// # Errors
/// A file that is none, of another run, or of a shard that another has too; a shard that is missing.
pub(super) fn load(
    paths: &[PathBuf],
    files: &SourceFiles,
    calibration: &str,
    (batch, seed, engine): (usize, u64, &str),
) -> Result<Option<Statistics>> {
    if paths.is_empty() {
        return Ok(None);
    }
    let (model, external_data) = files.digests();
    let mut all = GatheredStatistics::new();
    // By numbers, as files say them: how many there are said to be is not to be trusted.
    let (mut shards, mut seen) = (None, BTreeMap::<usize, &Path>::new());
    for path in paths {
        let (head, found) = read(path)?;
        let name = shown::path(path);
        let differs = |what: &str| {
            anyhow!("{name} is of {what}: take the statistics again with what is given here")
        };
        if head.model != model || head.external_data != external_data {
            return Err(differs("another model"));
        }
        if head.calibration != calibration {
            return Err(differs("other calibration data"));
        }
        if head.version != env!("CARGO_PKG_VERSION")
            || (head.batch, head.seed, &head.engine[..]) != (batch, seed, engine)
        {
            return Err(differs("another version, --batch, --seed or --engine"));
        }
        let (number, of) = head.shard;
        if *shards.get_or_insert(of) != of {
            bail!(
                "{name} is one of {of} shards, another file one of {}",
                shards.unwrap_or(of)
            );
        }
        if number == 0 || number > of {
            bail!("{name} is damaged: shard {number} of {of}");
        }
        if let Some(other) = seen.insert(number, path) {
            bail!(
                "{} and {name} are both shard {number} of {of}",
                shown::path(other)
            );
        }
        merge_statistics(&mut all, found).map_err(onnx_osplus::Error::from)?;
    }
    let of = shards.unwrap_or(0);
    if let Some(missing) = (1..=of).find(|number| !seen.contains_key(number)) {
        bail!("--stats lacks shard {missing} of {of}");
    }
    Ok(Some(
        finish_statistics(all).map_err(onnx_osplus::Error::from)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_counted_from_one() {
        assert_eq!(parse_shard("2/7"), Ok((2, 7)));
        assert_eq!(parse_shard("1/1"), Ok((1, 1)));
        for wrong in ["", "2", "0/3", "4/3", "-1/3", "a/b", "1/0", "1/2/3"] {
            assert!(parse_shard(wrong).is_err(), "{wrong}");
        }
    }
}
