//! What preparing a model does to it, for the report.

use crate::review::{InlinedReport, NearMissReport};
use crate::rewrite::Rewritten;

/// What preparing a model did to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// What exporters had left behind and was removed, with the reasons.
    pub cleaned: Vec<String>,
    /// Sizes that were stored, with the reasons.
    pub stored_sizes: Vec<String>,
    /// Calls of functions that were replaced.
    pub inlined: Vec<InlinedReport>,
    /// Functions and branches that were left closed.
    pub closed: Vec<NearMissReport>,
    /// The operator set as it was, if it was raised.
    pub raised_from: Option<i64>,
    /// Linears that were written in another layout.
    pub rewritten: Vec<Rewritten>,
    /// What else a reader should know.
    pub notes: Vec<String>,
}
