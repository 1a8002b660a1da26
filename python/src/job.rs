//! A job on a thread of its own, while the caller's waits: without the interpreter lock, told of the progress, and ended by
//! Ctrl-C.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use onnx_osplus::progress::Progress;
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyMemoryError};
use pyo3::prelude::*;

use crate::cli;

create_exception!(
    onnx_osplus,
    OsplusError,
    PyException,
    "What stopped a job, in the words of the command line."
);
create_exception!(
    onnx_osplus,
    UsageError,
    OsplusError,
    "An option that does not exist, has a value it cannot have, or contradicts another."
);
create_exception!(
    onnx_osplus,
    NothingToQuantize,
    OsplusError,
    "No Linear could be quantized."
);

create_exception!(
    onnx_osplus,
    MinMetricError,
    OsplusError,
    "The metric falls too far: what it says of the float and of the best quantized model, and what was asked for."
);

/// How often the waiting thread looks for signals.
const LOOK: Duration = Duration::from_millis(100);

/// Time between two words of progress, at least.
const TELL: Duration = Duration::from_millis(50);

/// The main thread's usual size, which the program's jobs run on.
const STACK: usize = 16 << 20;

/// What stopped a job.
pub(crate) enum Error {
    Usage(String),
    Other(anyhow::Error),
}

impl Error {
    pub(crate) fn usage(text: &str) -> Error {
        Error::Usage(text.to_owned())
    }
}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Error {
        Error::Other(error)
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        let error = match error {
            Error::Usage(text) => return UsageError::new_err(text),
            Error::Other(error) => error,
        };
        let text = cli::explain(&error);
        if cli::is_usage(&error) {
            return UsageError::new_err(text);
        }
        match error.downcast_ref::<onnx_osplus::Error>() {
            Some(onnx_osplus::Error::Options(_)) => UsageError::new_err(text),
            Some(onnx_osplus::Error::NothingToQuantize(_)) => NothingToQuantize::new_err(text),
            Some(onnx_osplus::Error::MinMetric {
                float,
                best,
                wanted,
                ..
            }) => MinMetricError::new_err((*float, *best, *wanted)),
            _ => OsplusError::new_err(text),
        }
    }
}

/// What is being done, steps done, steps in all.
type Word = (String, u64, u64);

/// Tells the waiting thread how far the job is, and ends the job if that thread says so.
struct Told<'a> {
    to: Mutex<(Sender<Word>, Word, Instant)>,
    stop: &'a AtomicBool,
}

/// Ends the job's thread: nobody waits for what it would say.
struct Stopped;

impl Told<'_> {
    fn with(&self, change: impl FnOnce(&mut Word) -> bool) {
        if self.stop.load(Ordering::Relaxed) {
            // Past everything that has to be tidied up, without the words of a panic.
            std::panic::resume_unwind(Box::new(Stopped));
        }
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        let (sender, word, last) = &mut *to;
        if change(word) || last.elapsed() >= TELL {
            // The thread that waits for the job outlives it.
            let _ = sender.send(word.clone());
            *last = Instant::now();
        }
    }
}

impl Progress for Told<'_> {
    fn begin(&self, what: &str, total: u64) {
        self.with(|word| {
            *word = (what.to_owned(), 0, total);
            true
        });
    }

    fn advance(&self, by: u64) {
        self.with(|word| {
            word.1 += by;
            word.1 == word.2
        });
    }

    fn end(&self) {
        self.with(|_| false);
    }
}

/// Runs `work`, and tells `progress` (what, done, total) how far it is, on the thread of the caller.
pub(crate) fn run<T: Send>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&dyn Progress) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let stop = AtomicBool::new(false);
    let (sender, words) = channel();
    let words = Mutex::new(words);
    let told = Told {
        to: Mutex::new((sender, Word::default(), Instant::now())),
        stop: &stop,
    };
    std::thread::scope(|scope| {
        let job = move || {
            let told = told;
            // A panic of the library is an error like any other, an interruption goes on.
            cli::catch_panics(|| Ok(work(&told)))
        };
        let job = std::thread::Builder::new()
            .name("onnx-osplus".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, job)
            .map_err(|error| PyMemoryError::new_err(error.to_string()))?;
        let mut raised = None;
        loop {
            let word = py.detach(|| {
                let words = words.lock().unwrap_or_else(PoisonError::into_inner);
                words.recv_timeout(LOOK)
            });
            let seen = match (word, &progress) {
                (Err(RecvTimeoutError::Disconnected), _) => break,
                (Ok(word), Some(progress)) => progress.call1(py, word).map(drop),
                _ => Ok(()),
            };
            if let Err(error) = seen.and_then(|()| py.check_signals()) {
                stop.store(true, Ordering::Relaxed);
                raised.get_or_insert(error);
            }
        }
        let done = py.detach(|| job.join());
        match (raised, done) {
            (Some(error), _) => Err(error),
            (None, Ok(Ok(result))) => result.map_err(PyErr::from),
            (None, Ok(Err(error))) => Err(Error::from(error).into()),
            (None, Err(_)) => Err(OsplusError::new_err(
                "internal error: the job ended without a word",
            )),
        }
    })
}
