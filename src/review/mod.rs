//! What was done, and how good it is.

mod account;
mod provenance;
mod report;

pub use account::{linear_report, output_reports, site_report};
pub use provenance::Provenance;
pub use report::{
    Decision, FLOAT_LIMIT, FloatCheck, InlinedReport, KeptFloat, KeptLinear, LinearReport,
    NearMissReport, OutputReport, ROUNDING_LIMIT, Report, RoundedCheck, Settings, SiteReport,
};
