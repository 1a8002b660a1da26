//! The Python package: the command line and its jobs as functions. `onnx_osplus/*.py` make files of what Python has, and objects of
//! what comes back.

// The same source as the program's, so that a wheel holds one copy of everything.
#[path = "../../src/cli/mod.rs"]
mod cli;
mod job;
mod metric;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use onnx_osplus::calibrate::{
    Batch, CalibError, CalibSource, Dataset, Dim, InputTensor, Metric, MinMetric, Values,
    model_inputs, type_name,
};
use onnx_osplus::prepare::Settings;
use onnx_osplus::review::diff::{Style, diff as compare};
use onnx_osplus::target::Target;
use onnx_osplus::target::lint::lint as findings;
use onnx_osplus::{graph, onnx, review};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use cli::Command;
use job::{Error, run};
use metric::Callback;

#[global_allocator]
static ALLOC: cli::Alloc = cli::Alloc;

/// The program. The words are those of the command line; what comes back is the exit status.
#[pyfunction]
fn main(py: Python<'_>, words: Vec<OsString>) -> u8 {
    let status = py.detach(|| cli::main(words));
    // A status does not tell its number, but it can be compared.
    (0..=u8::MAX)
        .find(|&n| ExitCode::from(n) == status)
        .unwrap_or(1)
}

/// The main job. Gives the report as JSON and as a page, and as text what the command line prints. `metric` is a function of the path
/// of a model and a folder for such, and `least` what it must give at least.
#[pyfunction]
#[pyo3(signature = (words, progress, metric=None, least=None))]
fn quantize(
    py: Python<'_>,
    words: Vec<OsString>,
    progress: Option<Py<PyAny>>,
    metric: Option<(Py<PyAny>, PathBuf)>,
    least: Option<f64>,
) -> PyResult<(String, String, String)> {
    let callback = metric.map(|(function, folder)| Callback::new(function, folder));
    let done = run(py, progress, |progress| {
        let Command::Quantize(mut arguments) = parse(&words)? else {
            return Err(Error::usage("IN, OUT and calibration data are needed"));
        };
        if let Some(least) = least {
            // Which may be below 0, where the command line has a fall.
            arguments.judging.min_metric = Some(MinMetric::Value(least));
        }
        let given = cli::Given {
            metric: callback.as_ref().map(|c| c as &dyn Metric),
            ..cli::Given::default()
        };
        let done = cli::quantize_with(&arguments, &words, given, progress)?;
        let json = serde_json::to_string(&done.report).map_err(anyhow::Error::from)?;
        Ok((json, review::html(&done.report), done.text(false)))
    });
    // What the caller's function has raised tells more than that it failed.
    match callback.and_then(Callback::into_error) {
        Some(error) => Err(error),
        None => done,
    }
}

/// The statistics of calibration rows, written to a file: the command `stats`.
#[pyfunction]
fn stats(py: Python<'_>, words: Vec<OsString>, progress: Option<Py<PyAny>>) -> PyResult<()> {
    run(py, progress, move |progress| {
        let Command::Stats(arguments) = parse(&words)? else {
            return Err(Error::usage(
                "a model, calibration data and a file to write are needed",
            ));
        };
        Ok(cli::stats::run(&arguments, progress)?)
    })
}

/// How far one model is from another, as JSON.
#[pyfunction]
fn verify(py: Python<'_>, words: Vec<OsString>, progress: Option<Py<PyAny>>) -> PyResult<String> {
    run(py, progress, move |progress| {
        let Command::Verify(arguments) = parse(&words)? else {
            return Err(Error::usage("two models and data are needed"));
        };
        let result = cli::verify::compare(&arguments, progress)?;
        Ok(serde_json::to_string(&result).map_err(anyhow::Error::from)?)
    })
}

/// What is seen in a model, as JSON.
#[pyfunction]
fn inspect(py: Python<'_>, words: Vec<OsString>, progress: Option<Py<PyAny>>) -> PyResult<String> {
    run(py, progress, move |progress| {
        let Command::Inspect(arguments) = parse(&words)? else {
            return Err(Error::usage("a model is needed"));
        };
        let anatomy = cli::inspect::look(&arguments, progress)?;
        Ok(serde_json::to_string(&anatomy).map_err(anyhow::Error::from)?)
    })
}

/// What a runtime would make of a file, as JSON.
#[pyfunction]
fn lint(py: Python<'_>, model: PathBuf, target: &str) -> PyResult<String> {
    let names = Target::ALL.map(|target| target.profile().name);
    let target = Target::named(target).ok_or_else(|| {
        PyValueError::new_err(format!(
            "no target `{target}`; there are {}",
            names.join(", ")
        ))
    })?;
    run(py, None, move |_| {
        let model = onnx::load(&model).map_err(anyhow::Error::from)?;
        graph::check(&model).map_err(|e| anyhow::Error::from(onnx_osplus::Error::from(e)))?;
        Ok(serde_json::to_string(&findings(&model, target)).map_err(anyhow::Error::from)?)
    })
}

/// What differs between two models: as JSON, as text, and counted.
#[pyfunction]
fn diff(
    py: Python<'_>,
    before: PathBuf,
    after: PathBuf,
) -> PyResult<(bool, String, String, String)> {
    run(py, None, move |_| {
        let before = onnx::load(&before).map_err(anyhow::Error::from)?;
        let after = onnx::load(&after).map_err(anyhow::Error::from)?;
        let found = compare(&before, &after);
        let style = Style {
            full: false,
            color: false,
            ask_for_all: None,
            width: None,
        };
        Ok((
            found.is_empty(),
            found.json().to_string(),
            found.text(style),
            found.stat(style),
        ))
    })
}

/// An array: name, type, shape, and its elements in row-major order.
type Array<'py> = (String, &'static str, Vec<usize>, Bound<'py, PyBytes>);

/// What a model is fed with, batch by batch.
#[pyfunction]
#[pyo3(signature = (model, sources, tokenizer=None, preprocessor=None, column=Vec::new(), max_length=None, samples=None))]
#[expect(
    clippy::too_many_arguments,
    reason = "the keywords of a Python function"
)]
fn data<'py>(
    py: Python<'py>,
    model: PathBuf,
    sources: Vec<(Option<String>, PathBuf)>,
    tokenizer: Option<PathBuf>,
    preprocessor: Option<PathBuf>,
    column: Vec<String>,
    max_length: Option<usize>,
    samples: Option<usize>,
) -> PyResult<(Vec<Vec<Array<'py>>>, Vec<String>)> {
    let mut settings = Settings::default();
    settings.tokenizer = tokenizer;
    settings.preprocessor = preprocessor;
    settings.columns = column;
    settings.max_length = max_length;
    settings.samples = samples;
    settings.model = Some(model.clone());
    let (batches, notes) = run(py, None, move |_| {
        let model = onnx::load(&model).map_err(anyhow::Error::from)?;
        let source = |(name, path)| CalibSource { name, path };
        let sources: Vec<CalibSource> = sources.into_iter().map(source).collect();
        let data = Dataset::open_with(&model, &sources, usize::MAX, &settings)
            .map_err(anyhow::Error::from)?;
        let batch = |batch: Batch| {
            let array = |(name, tensor): (String, InputTensor)| Ok((name, tensor.values()?));
            batch
                .inputs
                .into_iter()
                .map(array)
                .collect::<Result<Vec<_>, CalibError>>()
        };
        let batches = data
            .all()
            .into_iter()
            .map(batch)
            .collect::<Result<Vec<_>, CalibError>>();
        Ok((batches.map_err(anyhow::Error::from)?, data.notes().to_vec()))
    })?;
    let array = |(name, values): (String, Values)| {
        let (kind, shape, bytes) = elements(&values);
        (name, kind, shape, PyBytes::new(py, &bytes))
    };
    let batch = |batch: Vec<(String, Values)>| batch.into_iter().map(array).collect();
    Ok((batches.into_iter().map(batch).collect(), notes))
}

/// NumPy's name of the type, shape, and the elements as they lie in memory.
fn elements(values: &Values) -> (&'static str, Vec<usize>, Vec<u8>) {
    macro_rules! of {
        ($name:literal, $array:expr) => {
            (
                $name,
                $array.shape().to_vec(),
                $array.iter().flat_map(|v| v.to_ne_bytes()).collect(),
            )
        };
    }
    match values {
        Values::F32(a) => of!("float32", a),
        Values::I8(a) => of!("int8", a),
        Values::I16(a) => of!("int16", a),
        Values::I32(a) => of!("int32", a),
        Values::I64(a) => of!("int64", a),
        Values::U8(a) => of!("uint8", a),
        Values::U16(a) => of!("uint16", a),
        Values::U32(a) => of!("uint32", a),
        Values::U64(a) => of!("uint64", a),
        Values::Bool(a) => (
            "bool",
            a.shape().to_vec(),
            a.iter().map(|v| u8::from(*v)).collect(),
        ),
    }
}

/// Name, type and shape of an input; a size is a number, a name, or nothing.
type Input = (String, String, Option<Vec<Option<Size>>>);

#[derive(IntoPyObject)]
enum Size {
    Fixed(usize),
    Named(String),
}

/// The inputs of a model.
#[pyfunction]
fn inputs(py: Python<'_>, model: PathBuf) -> PyResult<Vec<Input>> {
    run(py, None, move |_| {
        let model = onnx::load(&model).map_err(anyhow::Error::from)?;
        let inputs = model_inputs(&model).map_err(anyhow::Error::from)?;
        let size = |dim: Dim| match dim {
            Dim::Fixed(size) => Some(Size::Fixed(size)),
            Dim::Named(name) => Some(Size::Named(name)),
            Dim::Any => None,
        };
        let input = inputs.into_iter().map(|input| {
            let shape = input.shape.map(|dims| dims.into_iter().map(size).collect());
            (input.name, type_name(input.dtype), shape)
        });
        Ok(input.collect())
    })
}

fn parse(words: &[OsString]) -> Result<Command, Error> {
    cli::parse(words).map_err(|error| {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        // What follows is how the command line is used.
        Error::usage(text.split("\n\nUsage:").next().unwrap_or(text).trim_end())
    })
}

/// What the Python files of the package import.
#[pymodule]
fn _onnx_osplus(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("OsplusError", module.py().get_type::<job::OsplusError>())?;
    module.add("UsageError", module.py().get_type::<job::UsageError>())?;
    module.add(
        "NothingToQuantize",
        module.py().get_type::<job::NothingToQuantize>(),
    )?;
    module.add(
        "MinMetricError",
        module.py().get_type::<job::MinMetricError>(),
    )?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    module.add_function(wrap_pyfunction!(stats, module)?)?;
    module.add_function(wrap_pyfunction!(quantize, module)?)?;
    module.add_function(wrap_pyfunction!(verify, module)?)?;
    module.add_function(wrap_pyfunction!(inspect, module)?)?;
    module.add_function(wrap_pyfunction!(data, module)?)?;
    module.add_function(wrap_pyfunction!(lint, module)?)?;
    module.add_function(wrap_pyfunction!(diff, module)?)?;
    module.add_function(wrap_pyfunction!(inputs, module)?)
}
