//! Progress on long work: a bar on a terminal, a line per step otherwise, nothing with -q.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use onnx_osplus::progress::Progress;

/// Seconds between two lines of one step where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows progress on stderr.
pub(super) struct Terminal {
    quiet: bool,
    is_terminal: bool,
    step: Mutex<Option<Step>>,
}

struct Step {
    what: String,
    total: u64,
    done: u64,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Terminal {
    /// Chooses the form by what stderr is.
    pub(super) fn new(quiet: bool) -> Self {
        Terminal {
            quiet,
            is_terminal: std::io::stderr().is_terminal(),
            step: Mutex::new(None),
        }
    }

    fn with(&self, act: impl FnOnce(&mut Option<Step>)) {
        // A thread that panicked while it held the step left nothing half done that matters here.
        act(&mut self.step.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for Terminal {
    fn begin(&self, what: &str, total: u64) {
        if self.quiet {
            return;
        }
        let bar = self.is_terminal.then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            // The template is a constant; if indicatif refused it, its own default would do.
            let style = ProgressStyle::with_template("{msg:14} {bar:30} {pos}/{len} {elapsed}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(what.to_owned());
            bar
        });
        if bar.is_none() {
            super::say(&format!("{what} …"));
        }
        let last_line = Instant::now();
        self.with(|step| {
            *step = Some(Step {
                what: what.to_owned(),
                total,
                done: 0,
                last_line,
                bar,
            })
        });
    }

    fn advance(&self, by: u64) {
        self.with(|step| {
            let Some(step) = step else { return };
            step.done += by;
            match &step.bar {
                Some(bar) => bar.set_position(step.done),
                None if step.last_line.elapsed() >= LINE_INTERVAL => {
                    step.last_line = Instant::now();
                    super::say(&format!("{} {}/{}", step.what, step.done, step.total));
                }
                None => {}
            }
        });
    }

    fn end(&self) {
        self.with(|step| {
            if let Some(bar) = step.take().and_then(|s| s.bar) {
                bar.finish_and_clear();
            }
        });
    }
}
