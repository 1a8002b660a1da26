//! What was done, and how good it is.

mod report;

pub use report::{
    Decision, FloatCheck, LinearReport, NearMissReport, OutputReport, Report, Settings, SiteReport,
};
