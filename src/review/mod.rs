//! What was done, and how good it is.

mod account;
mod choices;
pub mod diff;
mod html;
mod inspect;
mod json;
mod metric;
mod provenance;
mod quantized;
mod report;
mod settings;
mod sure;
mod verify;
mod work;

pub use account::{SiteDecision, agreement_reports, linear_report, output_reports, site_report};
pub use choices::{EmbeddingsReport, RotationReport, RotationsReport, TableReport};
pub use html::html;
pub use inspect::{
    ANATOMY_SCHEMA, Anatomy, Architecture, BlockFacts, ChannelFacts, LinearFacts, ModelFacts,
    Outliers, PROVENANCE, Quantized, RotationFacts, SiteFacts, Subject, TokenFacts, Tokens,
    anatomy, outliers,
};
pub use metric::MetricReport;
pub use provenance::Provenance;
pub use quantized::{QuantizedLinear, quantized_embeddings, quantized_linears};
pub use report::{
    AgreementReport, AttentionCost, AttentionReport, BelowPlain, CHANNEL_LINES, ChannelRange,
    CurveReport, Decision, FLOAT_LIMIT, Files, FloatCheck, InlinedReport, KeptFloat, KeptLinear,
    LinearReport, NearMissReport, OutputReport, REPORT_SCHEMA, ROUNDING_LIMIT, Report,
    RoundedCheck, SiteReport,
};
pub use settings::Settings;
pub use sure::{SURE_DB, are_few, known_to_db, too_few};
pub use verify::{
    Energy, LAYER_TOKENS, LayerError, OutputError, VERIFICATION_SCHEMA, Verification, VerifyError,
    VerifyOptions, VerifyRows, verify,
};
pub use work::{FloatWork, INT8_RATE, WorkReport};
