//! A metric that is a Python function.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use onnx_osplus::calibrate::{Engine, Metric, MetricError, Score};
use onnx_osplus::onnx::{self, Model, SaveOptions};
use onnx_osplus::progress::Progress;
use pyo3::prelude::*;

/// Calls a function with the path of a model.
pub(crate) struct Callback {
    function: Py<PyAny>,
    /// Where models are written that are only to be judged.
    folder: PathBuf,
    /// What the function has raised.
    raised: Mutex<Option<PyErr>>,
}

impl Callback {
    pub(crate) fn new(function: Py<PyAny>, folder: PathBuf) -> Callback {
        Callback {
            function,
            folder,
            raised: Mutex::new(None),
        }
    }

    /// What the function has raised, if it has.
    pub(crate) fn into_error(self) -> Option<PyErr> {
        self.raised
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Metric for Callback {
    fn name(&self) -> String {
        "metric".to_owned()
    }

    fn score(
        &self,
        model: &Model,
        _engine: &dyn Engine,
        _threads: usize,
        progress: &dyn Progress,
    ) -> Result<Score, MetricError> {
        // Also where an interrupted job ends.
        progress.begin("metric", 1);
        let other = |error: &dyn std::fmt::Display| MetricError::Other(error.to_string());
        let path = self.folder.join("judged.onnx");
        let options = SaveOptions {
            overwrite: true,
            ..SaveOptions::default()
        };
        let saved = onnx::save(model, &path, &options).map_err(|e| other(&e))?;
        if saved.external_bytes > 0 {
            return Err(MetricError::Other(
                "a metric judges models whose weights are in the same file, of less than 2 GB"
                    .to_owned(),
            ));
        }
        let called = Python::attach(|py| {
            let value = self.function.call1(py, (path.as_path(),))?;
            value.extract::<f64>(py)
        });
        progress.advance(1);
        progress.end();
        match called {
            Ok(value) => Ok(Score::value("metric", value)),
            Err(error) => {
                let text = error.to_string();
                let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
                raised.get_or_insert(error);
                Err(MetricError::Other(text))
            }
        }
    }
}
