//! How the library says how far it is, without printing anything itself.
//!
//! Every long task calls [`Progress::begin`], then [`Progress::advance`] (possibly from several threads),
//! then [`Progress::end`]. The command line draws a bar or lines; tests and quiet runs pass [`NoProgress`].

/// A listener for the progress of one task at a time.
pub trait Progress: Sync {
    /// A task named `what` starts; it has `total` steps.
    fn begin(&self, what: &str, total: u64);
    /// `by` more steps are done. May be called from any thread.
    fn advance(&self, by: u64);
    /// The task is over, successfully or not.
    fn end(&self);
}

/// A listener that ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn begin(&self, _what: &str, _total: u64) {}
    fn advance(&self, _by: u64) {}
    fn end(&self) {}
}
