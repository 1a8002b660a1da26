//! What was done, and how good it is.

mod account;
mod inspect;
mod provenance;
mod quantized;
mod report;
mod verify;

pub use account::{linear_report, output_reports, site_report};
pub use inspect::{
    ANATOMY_SCHEMA, Anatomy, Architecture, BlockFacts, ChannelFacts, LinearFacts, ModelFacts,
    Outliers, PROVENANCE, Quantized, SiteFacts, Subject, anatomy, outliers,
};
pub use provenance::Provenance;
pub use quantized::{QuantizedLinear, quantized_linears};
pub use report::{
    AttentionCost, AttentionReport, Decision, FLOAT_LIMIT, FloatCheck, InlinedReport, KeptFloat,
    KeptLinear, LinearReport, NearMissReport, OutputReport, ROUNDING_LIMIT, Report, RoundedCheck,
    Settings, SiteReport,
};
pub use verify::{
    Energy, LAYER_TOKENS, LayerError, OutputError, VERIFICATION_SCHEMA, Verification, VerifyError,
    VerifyOptions, VerifyRows, verify,
};
