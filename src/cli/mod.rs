//! What only a command line needs: arguments, progress, the closing summary, exit status.

mod arguments;
mod config;
mod data;
mod decoders;
mod dequantize;
mod diff;
mod engine;
mod evaluation;
mod figures;
mod files;
mod folder;
mod form;
mod granularity;
mod hint;
pub(crate) mod inspect;
mod labels;
mod lint;
mod pages;
mod parse;
mod progress;
mod report;
mod shown;
pub(crate) mod stats;
mod streaming;
mod summary;
mod system;
mod table;
mod text;
mod usage;
pub(crate) mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use onnx_osplus::calibrate::{CalibError, CalibSource, Dataset, DecoderData, Metric};
use onnx_osplus::onnx::{self, Model, SaveOptions, SaveSummary, SourceFiles, output};
use onnx_osplus::review::Provenance;

use arguments::Arguments;
pub(crate) use arguments::Command;
use files::Files;
use onnx_osplus::progress::Progress;
use onnx_osplus::review::Report;
pub(crate) use parse::parse;
use progress::Terminal;
use shown::print;
use shown::say;
pub(crate) use system::Alloc;

/// The whole program. `words` are those of the command line; the first is the name of the program.
pub(crate) fn main(words: Vec<OsString>) -> ExitCode {
    system::return_freed_memory();
    system::install();
    let command = match parse(&words) {
        Ok(command) => command,
        // Prints help, version or what is wrong, and ends the program with the status that goes with it.
        Err(error) => error.exit(),
    };
    let done = catch_panics(|| run(&command, &words));
    system::end_if_signalled();
    match done {
        Ok(status) => status,
        Err(error) => {
            say(&message(&error));
            exit_status(&error)
        }
    }
}

/// Nothing could be quantized: not a failure of the tool, but nothing to deploy either.
const NOTHING_TO_QUANTIZE: u8 = 3;

/// Options that contradict each other, as for what the parser of the command line refuses.
const WRONG_USAGE: u8 = 2;

/// Whether an error is wrong usage.
pub(crate) fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<usage::Usage>()
}

/// The exit status that goes with an error.
fn exit_status(error: &anyhow::Error) -> ExitCode {
    if is_usage(error) {
        return ExitCode::from(WRONG_USAGE);
    }
    match error.downcast_ref::<onnx_osplus::Error>() {
        Some(onnx_osplus::Error::NothingToQuantize(_)) => ExitCode::from(NOTHING_TO_QUANTIZE),
        Some(onnx_osplus::Error::Options(_)) => ExitCode::from(WRONG_USAGE),
        _ => ExitCode::FAILURE,
    }
}

/// The text of an error as the command line says it.
fn message(error: &anyhow::Error) -> String {
    let mut text = format!("error: {}", explain(error));
    if system::is_written() {
        text += &format!("\n{}", system::OUT_IS_WRITTEN.trim_end());
    }
    text
}

/// The text of an error, with the flags that help on a line of their own. It holds its causes already.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let hint = error
        .downcast_ref::<onnx_osplus::Error>()
        .and_then(hint::hint)
        .or_else(|| hint::data(error.downcast_ref::<CalibError>()?));
    let mut text = error_text(error);
    if let Some(hint) = hint {
        text += &format!("\nhint: {}", onnx::shown(&hint));
    }
    text
}

/// The text of an error on one line, whatever names are in it; a list of the model's inputs has a line for each.
fn error_text(error: &anyhow::Error) -> String {
    let text = error.to_string();
    let inputs = match error.downcast_ref::<onnx_osplus::Error>() {
        Some(onnx_osplus::Error::Calibration(error)) => error.inputs(),
        _ => error
            .downcast_ref::<CalibError>()
            .and_then(CalibError::inputs),
    };
    match inputs.and_then(|inputs| Some((text.strip_suffix(inputs)?.strip_suffix('\n')?, inputs))) {
        Some((text, inputs)) => {
            format!("{}\n{}", onnx::shown(text), onnx::shown_lines(inputs))
        }
        None => onnx::shown(&text).into_owned(),
    }
}

/// Runs `work`; a panic becomes an error that asks for a report.
///
/// The engine panics on some models, which the library catches and explains. The usual text of a panic would be
/// printed all the same, before that explanation, so it is kept back here and shown only if nothing else caught it.
pub(crate) fn catch_panics<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    static LAST: Mutex<String> = Mutex::new(String::new());
    std::panic::set_hook(Box::new(|info| {
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
    }));
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let what = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        // Of a pool of threads, which says so by a panic.
        if what.contains("ThreadPoolBuildError") || what.contains("failed to spawn thread") {
            bail!(
                "out of memory: the system starts no more threads for this program; there is a limit (ulimit -v, \
                 ulimit -u, a container's)"
            );
        }
        bail!("internal error: {what}; please report this with the command and the model")
    })
}

/// Does what the user wants; the exit status says how it went.
fn run(command: &Command, words: &[OsString]) -> Result<ExitCode> {
    match command {
        Command::Quantize(arguments) => quantize(arguments, words).map(|()| ExitCode::SUCCESS),
        Command::Several(all) => several(all, words),
        Command::PrintConfig(text) => {
            print(text);
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions(arguments) => {
            pages::completions(arguments);
            Ok(ExitCode::SUCCESS)
        }
        Command::Man(arguments) => pages::manual(arguments).map(|()| ExitCode::SUCCESS),
        Command::Dequantize(arguments) => dequantize::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Diff(arguments) => diff::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Lint(arguments) => lint::run(arguments),
        Command::Stats(arguments) => {
            stats::run(arguments, &Terminal::new(arguments.quiet)).map(|()| ExitCode::SUCCESS)
        }
        Command::Text(arguments) => text::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
    }
}

/// Every model of a file of settings, one after the other. One that fails does not keep the others; its exit status, or
/// that of the first, is the program's.
fn several(all: &[Arguments], words: &[OsString]) -> Result<ExitCode> {
    let mut files = Files::default();
    for (index, arguments) in all.iter().enumerate() {
        let number = index + 1;
        files.writes(&format!("OUT of model {number}"), &arguments.output, true)?;
        for path in &arguments.report {
            files.writes(&format!("--report of model {number}"), path, true)?;
        }
    }
    let mut status = None;
    for (index, arguments) in all.iter().enumerate() {
        system::begin_another();
        let of = format!("model {} of {}", index + 1, all.len());
        if !arguments.quiet {
            print(&format!("== {of}: {}\n", shown::path(&arguments.input)));
        }
        if let Err(error) = quantize(arguments, words) {
            say(&format!("{of}: {}", message(&error)));
            status.get_or_insert(exit_status(&error));
        }
    }
    Ok(status.unwrap_or(ExitCode::SUCCESS))
}

/// Checks that a `--json` can be written.
fn begin(files: &mut Files, json: Option<&Path>, force: bool) -> Result<()> {
    if let Some(path) = json.filter(|path| *path != Path::new("-")) {
        files.writes("--json", path, force)?;
    }
    Ok(())
}

/// What the main job did.
pub(crate) struct Done {
    pub(crate) report: Report,
    pub(crate) saved: SaveSummary,
    /// Bytes of IN and OUT.
    sizes: (u64, u64),
}

impl Done {
    /// What is said of it.
    pub(crate) fn text(&self, verbose: bool) -> String {
        summary::summary(&self.report, self.sizes, verbose)
    }
}

/// The main job on the command line.
fn quantize(arguments: &Arguments, words: &[OsString]) -> Result<()> {
    let terminal = Terminal::new(arguments.quiet);
    if arguments.input.is_dir() {
        return folder::run(arguments, words, &terminal);
    }
    if arguments.name.is_some() {
        bail!(
            "--name names the models of a folder, and {} is none",
            shown::path(&arguments.input)
        );
    }
    let done = quantize_with(arguments, words, Given::default(), &terminal)?;
    if !arguments.quiet {
        let text = done.text(arguments.verbose);
        print_summary(&text, &arguments.output, &done.saved);
    }
    Ok(())
}

/// What a caller of the main job has besides its arguments.
#[derive(Clone, Copy, Default)]
pub(crate) struct Given<'a> {
    /// A metric.
    pub(crate) metric: Option<&'a dyn Metric>,
    /// Data in place of the files of --calib: of a decoder, whose encoder makes them.
    pub(crate) data: Option<&'a DecoderData>,
}

/// The main job: read IN, migrate and quantize it, write OUT and the reports. `words` are what asked for it.
pub(crate) fn quantize_with(
    arguments: &Arguments,
    words: &[OsString],
    given: Given,
    progress: &dyn Progress,
) -> Result<Done> {
    let start = Instant::now();
    let options = arguments.options();
    // What is wrong usage must not depend on what files there are.
    options.validate().map_err(onnx_osplus::Error::from)?;
    let own = given.metric;
    evaluation::check(arguments, own.is_some())?;
    let files = check_files(arguments)?;

    let engine = arguments.engine.engine()?;
    let (original, source) = onnx::load_with_source(&arguments.input)?;
    let loaded = start.elapsed().as_secs_f64();
    onnx_osplus::check_quantizable(&original)?;
    let data = match given.data {
        Some(data) => data
            .of(&original, arguments.batch)
            .map_err(onnx_osplus::Error::from)?,
        None if arguments.calib.is_empty() => {
            stats::rows(&arguments.stats, &original, arguments.batch)?
        }
        None => Dataset::open_with(
            &original,
            &arguments.sources(),
            arguments.batch,
            &arguments.settings(),
        )?,
    };
    let calibration = data.digest();
    let labelled = match (own, given.data) {
        (None, None) => evaluation::labelled(arguments, &original, &data)?,
        _ => None,
    };
    let opened = start.elapsed().as_secs_f64();
    let streaming::Outcome {
        mut model,
        mut report,
        work,
    } = streaming::run(
        arguments,
        (&original, &source),
        (&data, &calibration),
        (&options, engine.as_ref()),
        evaluation::asked(arguments, labelled.as_ref(), own),
        progress,
    )?;

    let saving = Instant::now();
    check_data(&data, &calibration, &arguments.row_sources())?;
    evaluation::check_unchanged(labelled.as_ref(), &arguments.eval_sources())?;
    let provenance = Provenance::new(&report, source.digests(), calibration);
    if !arguments.no_metadata {
        provenance.write(&mut model);
    }
    let save_options = SaveOptions {
        external_data: arguments.external_data,
        overwrite: arguments.force,
    };
    let saved = save(&arguments.output, save_options, &model, &source, files)?;
    let model = match work {
        Some(work) => {
            // Its weights are the parts, mapped, and Windows removes no file that is.
            drop(model);
            if let Err(problem) = work.remove() {
                report
                    .notes
                    .push(format!("the work folder could not be removed: {problem}"));
            }
            None
        }
        None => Some(model),
    };
    let mut book = |step: &str, seconds: f64| report.seconds.insert(step.to_owned(), seconds);
    book("load", loaded);
    book("open data", opened - loaded);
    book("save", saving.elapsed().as_secs_f64());
    book("total", start.elapsed().as_secs_f64());
    report.peak_memory_mb = peak_memory_mb();
    let sizes = (source.len(), saved.bytes + saved.external_bytes);
    report.notes.extend(left_over(&saved));
    report
        .notes
        .extend(evaluation::decoder_notes(arguments, given.data));
    if !arguments.report.is_empty() {
        report.command = Some(report::command(words));
        report.config = arguments
            .config
            .as_ref()
            .map(|path| path.display().to_string());
        report.arguments = arguments.effective.clone();
        report.files = Some(report::files(arguments, sizes));
        report.digests = report::digests(provenance, &arguments.output)?;
        match &model {
            None => report.notes.push("the error of every Linear was not measured: that takes the memory of the whole model".to_owned()),
            Some(model) if !arguments.no_layers => report::layers(
                &mut report,
                (&original, model),
                (&data, engine.as_ref()),
                &options,
                progress,
            ),
            Some(_) => {}
        }
        for path in &arguments.report {
            report::write(path, arguments.force, &report)?;
        }
    }
    Ok(Done {
        report,
        saved,
        sizes,
    })
}

/// Refuses what would be lost work or lost files.
fn check_files(arguments: &Arguments) -> Result<Files> {
    let mut files = Files::default();
    files.reads_model("IN", &arguments.input);
    files.reads_data(&arguments.sources(), &arguments.settings());
    files.reads_data(&arguments.eval_sources(), &arguments.eval_settings());
    for path in arguments.judging.files() {
        files.reads_labels(path);
    }
    files.writes("OUT", &arguments.output, arguments.force)?;
    if arguments.external_data {
        files.writes_data_of(&arguments.output, arguments.force)?;
    }
    arguments
        .stats
        .iter()
        .for_each(|path| files.reads_statistics(path));
    for path in &arguments.report {
        files.writes("--report", path, arguments.force)?;
    }
    files.has_room(&arguments.output, arguments.least_bytes())?;
    Ok(files)
}

/// Writes OUT, unless IN is no longer what was read.
fn save(
    output: &Path,
    options: SaveOptions,
    model: &Model,
    source: &SourceFiles,
    mut files: Files,
) -> Result<SaveSummary> {
    if !options.external_data && onnx::save::needs_external_data(model, &options) {
        // Only now is it known that there will be such a file.
        files.writes_data_of(output, options.overwrite)?;
    }
    let prepared = onnx::prepare(model, output, &options)?;
    source.check_unchanged()?;
    system::end_if_signalled();
    let mut saved = prepared.commit()?;
    system::wrote_out();
    saved.left_over = saved.left_over.filter(|path| !files.is_read(path));
    Ok(saved)
}

/// Whether calibration data still is what it was when it was opened.
fn check_data(data: &Dataset, digest: &str, sources: &[CalibSource]) -> Result<()> {
    if data.digest() != digest {
        let names: Vec<_> = sources.iter().map(|s| shown::path(&s.path)).collect();
        bail!(
            "the calibration data ({}) was changed by another program while it was in use; nothing was written, run again",
            names.join(", ")
        );
    }
    Ok(())
}

/// What is to be said of a file that looks like OUT's and is not.
fn left_over(saved: &SaveSummary) -> Option<String> {
    let path = saved.left_over.as_ref()?.display();
    Some(format!(
        "{path} was there before and is not part of OUT; it was left as it is"
    ))
}

/// Writes `value` where a `--json` says: to a file, or with `-` to the standard output. Whether it was the latter.
fn write_json(to: Option<&Path>, force: bool, value: &impl serde::Serialize) -> Result<bool> {
    let Some(path) = to else {
        return Ok(false);
    };
    let json = serde_json::to_string_pretty(value)
        .map_err(|error| anyhow!("cannot write {}: {error}", path.display()))?;
    if path == Path::new("-") {
        print(&format!("{json}\n"));
        return Ok(true);
    }
    output::write(path, force, |file| writeln!(file, "{json}"))?;
    Ok(false)
}

fn print_summary(text: &str, output: &Path, saved: &SaveSummary) {
    let external = match saved.external_bytes {
        0 => String::new(),
        bytes => format!(" and {:.1} MB of external data", bytes as f64 / 1e6),
    };
    print(&format!("{text}wrote {}{external}\n", shown::path(output)));
}

/// The largest resident memory of this process so far, in MB; `None` where there is no /proc.
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}
