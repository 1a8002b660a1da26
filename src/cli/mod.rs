//! What only a command line needs: arguments, progress, the closing summary, exit status.

mod arguments;
mod dequantize;
mod diff;
mod form;
mod hint;
mod inspect;
mod lint;
mod progress;
mod report;
mod summary;
mod table;
mod text;
mod verify;

use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use onnx_osplus::calibrate::{Dataset, TractEngine};
use onnx_osplus::onnx::{self, SaveOptions, SaveSummary};
use onnx_osplus::review::Provenance;

use arguments::Arguments;
pub(crate) use arguments::{Command, parse};
use progress::Terminal;

/// Nothing could be quantized: not a failure of the tool, but nothing to deploy either.
const NOTHING_TO_QUANTIZE: u8 = 3;

/// Options that contradict each other, as for what the parser of the command line refuses.
const WRONG_USAGE: u8 = 2;

/// The exit status that goes with an error.
pub(crate) fn exit_status(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<onnx_osplus::Error>() {
        Some(onnx_osplus::Error::NothingToQuantize(_)) => ExitCode::from(NOTHING_TO_QUANTIZE),
        Some(onnx_osplus::Error::Options(_)) => ExitCode::from(WRONG_USAGE),
        _ => ExitCode::FAILURE,
    }
}

/// The text of an error, with the flags that help on a line of their own. It holds its causes already.
pub(crate) fn message(error: &anyhow::Error) -> String {
    let hint = error
        .downcast_ref::<onnx_osplus::Error>()
        .and_then(hint::hint);
    match hint {
        Some(hint) => format!("error: {error}\nhint: {hint}"),
        None => format!("error: {error}"),
    }
}

/// Runs `work`; a panic becomes an error that asks for a report.
///
/// The engine panics on some models, which the library catches and explains. The usual text of a panic would be
/// printed all the same, before that explanation, so it is kept back here and shown only if nothing else caught it.
pub(crate) fn catch_panics(work: impl FnOnce() -> Result<ExitCode>) -> Result<ExitCode> {
    static LAST: Mutex<String> = Mutex::new(String::new());
    std::panic::set_hook(Box::new(|info| {
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
    }));
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let what = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        bail!("internal error: {what}; please report this with the command and the model")
    })
}

/// Does what the user wants; the exit status says how it went.
pub(crate) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Quantize(arguments) => quantize(arguments).map(|()| ExitCode::SUCCESS),
        Command::Dequantize(arguments) => dequantize::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Diff(arguments) => diff::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Lint(arguments) => lint::run(arguments),
        Command::Text(arguments) => text::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Verify(arguments) => verify::run(arguments),
    }
}

/// Prints text for a reader who may close the pipe early: such a one wants no more, and no error either.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|e| anyhow!("cannot write to the standard output: {e}")),
    }
}

/// The main job: read IN, migrate and quantize it, write OUT, say what was done.
fn quantize(arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    let options = arguments.options();
    // What is wrong usage must not depend on what files there are.
    options.validate().map_err(onnx_osplus::Error::from)?;
    check_paths(
        &arguments.input,
        &arguments.output,
        arguments.force,
        &arguments.report,
    )?;
    let terminal = Terminal::new(arguments.quiet);

    let original = onnx::load(&arguments.input)?;
    let loaded = start.elapsed().as_secs_f64();
    onnx_osplus::check_quantizable(&original, &options)?;
    let data = Dataset::open(&original, &arguments.sources(), arguments.batch)?;
    let opened = start.elapsed().as_secs_f64();
    let (mut model, mut report) =
        onnx_osplus::run(&original, &data, &TractEngine, &options, &terminal)?;

    let saving = Instant::now();
    let source = onnx::digest_model(&arguments.input)?;
    let provenance = Provenance::new(&report, source, data.digest());
    if !arguments.no_metadata {
        provenance.write(&mut model);
    }
    let save = SaveOptions {
        external_data: arguments.external_data,
        overwrite: arguments.force,
    };
    let saved = onnx::save(&model, &arguments.output, &save)?;
    let mut book = |step: &str, seconds: f64| report.seconds.insert(step.to_owned(), seconds);
    book("load", loaded);
    book("open data", opened - loaded);
    book("save", saving.elapsed().as_secs_f64());
    book("total", start.elapsed().as_secs_f64());
    report.peak_memory_mb = peak_memory_mb();
    let sizes = (
        model_size(&arguments.input),
        saved.bytes + saved.external_bytes,
    );
    if !arguments.report.is_empty() {
        report.command = Some(report::command());
        report.files = Some(report::files(arguments, sizes));
        report.digests = report::digests(provenance, &arguments.output)?;
        if !arguments.no_layers {
            report::layers(&mut report, (&original, &model), &data, &options, &terminal);
        }
        for path in &arguments.report {
            report::write(path, &report)?;
        }
    }
    if !arguments.quiet {
        let text = summary::summary(&report, sizes, arguments.verbose);
        print_summary(&text, &arguments.output, &saved)?;
    }
    Ok(())
}

/// Refuses what would be lost work: IN as OUT, an OUT that exists, a folder that does not.
fn check_paths(
    input: &Path,
    output: &Path,
    force: bool,
    reports: &[std::path::PathBuf],
) -> Result<()> {
    if let (Ok(a), Ok(b)) = (input.canonicalize(), output.canonicalize())
        && a == b
    {
        bail!(
            "OUT is the same file as IN ({}); choose another OUT",
            input.display()
        );
    }
    if output.exists() && !force {
        bail!("{} exists; use --force to overwrite it", output.display());
    }
    for path in std::iter::once(output).chain(reports.iter().map(AsRef::as_ref)) {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if !folder.is_dir() {
            bail!(
                "the folder {} of {} does not exist",
                folder.display(),
                path.display()
            );
        }
    }
    Ok(())
}

/// Writes `value` where a `--json` says: to a file, or with `-` to the standard output. Whether it was the latter.
fn write_json(to: Option<&Path>, value: &impl serde::Serialize) -> Result<bool> {
    let Some(path) = to else {
        return Ok(false);
    };
    let fail = |e: &dyn std::fmt::Display| anyhow!("cannot write {}: {e}", path.display());
    let json = serde_json::to_string_pretty(value).map_err(|e| fail(&e))?;
    if path == Path::new("-") {
        print(&format!("{json}\n"))?;
        return Ok(true);
    }
    std::fs::write(path, json + "\n").map_err(|e| fail(&e))?;
    Ok(false)
}

fn print_summary(text: &str, output: &Path, saved: &SaveSummary) -> Result<()> {
    let external = match saved.external_bytes {
        0 => String::new(),
        bytes => format!(" and {:.1} MB of external data", bytes as f64 / 1e6),
    };
    print(&format!("{text}wrote {}{external}\n", output.display()))
}

/// Bytes of a model: the file and those with its external data.
fn model_size(path: &Path) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
    let folder = path.parent().unwrap_or(Path::new(""));
    let data = onnx::external_locations(path).unwrap_or_default();
    size(path) + data.iter().map(|d| size(&folder.join(d))).sum::<u64>()
}

/// The largest resident memory of this process so far, in MB; `None` where there is no /proc.
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}
