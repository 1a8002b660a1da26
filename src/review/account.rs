//! Turns what the steps found into the entries of a [`Report`](super::Report).

use std::collections::BTreeMap;

use super::sure::{few_rows, too_few};
use super::{
    AgreementReport, CHANNEL_LINES, ChannelRange, CurveReport, LinearReport, NearMissReport,
    OutputReport, RotationReport, SiteReport,
};
use crate::calibrate::{ChannelStats, OutputComparison};
use crate::recognise::{Linear, NearMiss, Recognised};
use crate::site::{Place, ResponseKind, Sink, Site, Trace};
use crate::solve::{Migration, Mixing, Rotation, Solution};

/// One entry per output, with the figure of plain min-max quantization beside it if there is one. `held_out` rows set no range.
pub fn output_reports(
    ours: &[OutputComparison],
    plain: Option<&[OutputComparison]>,
    held_out: usize,
) -> BTreeMap<String, OutputReport> {
    let finite = |db: f64| db.is_finite().then_some(db);
    let logarithms = |o: &OutputComparison| finite(o.logarithms.as_ref()?.sqnr_db);
    ours.iter()
        .filter(|o| o.agreement.is_none())
        .map(|o| {
            let plain = plain.and_then(|p| p.iter().find(|p| p.name == o.name));
            let report = OutputReport {
                sqnr_db: finite(o.sqnr_db),
                cosine: o.cosine,
                plain_sqnr_db: plain.and_then(|p| finite(p.sqnr_db)),
                token_sqnr_db: o.token_sqnr_db,
                plain_token_sqnr_db: plain.and_then(|p| p.token_sqnr_db),
                log_sqnr_db: logarithms(o),
                plain_log_sqnr_db: plain.and_then(logarithms),
                elements: o.elements,
                filled: o.filled,
                caution: too_few(o).or_else(|| few_rows(held_out)),
            };
            (o.name.clone(), report)
        })
        .collect()
}

/// The integer and boolean outputs, compared with those of plain min-max quantization if that was measured.
pub fn agreement_reports(
    ours: &[OutputComparison],
    plain: Option<&[OutputComparison]>,
) -> BTreeMap<String, AgreementReport> {
    let report = |o: &OutputComparison| {
        let (elements, agreeing) = o.agreement?;
        let plain = plain.and_then(|p| p.iter().find(|p| p.name == o.name)?.agreement);
        let report = AgreementReport {
            elements,
            agreeing,
            plain_agreeing: plain.map(|(_, agreeing)| agreeing),
            caution: too_few(o),
        };
        Some((o.name.clone(), report))
    };
    ours.iter().filter_map(report).collect()
}

/// One Linear; `quantizes` is false if the format keeps every Linear in float.
pub fn linear_report(
    linear: &Linear,
    skipped: Option<String>,
    quantizes: bool,
    weight_bits: u8,
) -> LinearReport {
    let quantized = skipped.is_none() && quantizes;
    let reason = skipped.unwrap_or_else(|| "format float quantizes nothing".to_owned());
    LinearReport {
        name: linear.name.clone(),
        k: linear.k,
        n: linear.n,
        status: if quantized { "quantized" } else { "skipped" }.to_owned(),
        reason: (!quantized).then_some(reason),
        weight_bits: quantized.then_some(weight_bits),
    }
}

/// The decision for one site.
#[derive(Clone, Copy, Debug)]
pub struct SiteDecision<'a> {
    /// Where the site was found.
    pub found: &'a Recognised,
    /// The site.
    pub site: &'a Site,
    /// Its value's name.
    pub value: &'a str,
    /// What the search found.
    pub solution: &'a Solution,
    /// The block whose response the loss was measured at, if it was.
    pub response: Option<ResponseKind>,
    /// What is done.
    pub transform: &'a Migration,
    /// What the rotation of `transform` costs, in percent of the run time.
    pub percent: f64,
    /// The factor by which the range that is written differs from that of the calibration.
    pub margin: f32,
    /// Why the solution was discarded for plain min-max quantization, if it was.
    pub discarded: Option<&'a str>,
    /// What calibration has seen.
    pub statistics: Option<&'a ChannelStats>,
}

/// The entry of one site.
pub fn site_report(decision: SiteDecision) -> SiteReport {
    let SiteDecision {
        found,
        site,
        solution,
        transform,
        discarded,
        ..
    } = decision;
    let ranges = decision
        .statistics
        .map(|stats| channel_ranges(stats, solution));
    let (channels_per_line, channels) = ranges.unwrap_or_default();
    let curve = solution.curve.iter().map(|point| CurveReport {
        threshold: point.threshold,
        loss: point.loss,
    });
    let curve = curve.collect();
    let (kind, sink, no_sink) = sink_of(found, site);
    let kept = discarded.is_none();
    let folded = *transform != Migration::default();
    let no_gain = "neither shift nor scale lowers the loss on tokens that did not set the ranges";
    let why_not = match (no_sink, discarded) {
        (Some(reason), Some(discarded)) => format!("{discarded}; {reason}"),
        (Some(reason), None) => reason,
        (None, reason) => reason.unwrap_or(no_gain).to_owned(),
    };
    SiteReport {
        value: decision.value.to_owned(),
        kind: kind.to_owned(),
        linears: site
            .linears
            .iter()
            .map(|&l| found.linears[l].name.clone())
            .collect(),
        sink: sink.filter(|_| folded),
        reason: (!folded).then_some(why_not),
        shift: transform.shift.clone(),
        scale: transform.scale.clone(),
        levels_below: solution.levels_below.filter(|_| kept),
        rotation: transform
            .rotation
            .as_ref()
            .map(|rotation| rotation_report(rotation, solution, decision.percent)),
        range_before: solution.range_before,
        range_after: if kept {
            solution.range_after
        } else {
            solution.range_before
        },
        channels,
        channels_per_line,
        threshold: solution.threshold.filter(|_| folded),
        curve,
        loss: match decision.response {
            Some(kind) => kind.loss(),
            None => "linear outputs",
        }
        .to_owned(),
        range_margin: decision.margin,
        validated_gain_db: if kept {
            solution.validated_gain_db
        } else {
            0.0
        },
    }
}

fn rotation_report(rotation: &Rotation, solution: &Solution, percent: f64) -> RotationReport {
    let channels = 0..rotation.channels();
    let form = match rotation.mixing() {
        Mixing::All => "kronecker",
        Mixing::Blocks => "blocks",
        Mixing::Heads => "heads",
    };
    let without = solution.loss_without.unwrap_or(solution.loss_after);
    RotationReport {
        form: form.to_owned(),
        factors: rotation.factors(),
        negative: channels.filter(|&j| rotation.sign(j) < 0.0).collect(),
        order: rotation.order().map(<[u32]>::to_vec),
        percent,
        gain_db: 10.0 * (without / solution.loss_after).log10(),
    }
}

/// The kind of a site's sink as reports name it, what takes the affine, and why nothing does.
pub(super) fn sink_of(
    found: &Recognised,
    site: &Site,
) -> (&'static str, Option<String>, Option<String>) {
    match &site.sink {
        Sink::Norm(i) => {
            let norm = &found.norms[*i];
            (norm.kind.op_type(), Some(norm.name.clone()), None)
        }
        Sink::Traced(trace) => ("commuted", Some(places(found, trace)), None),
        Sink::Explicit(_) => (
            "explicit",
            Some("a Mul before the Linears".to_owned()),
            None,
        ),
        Sink::None(reason) => ("plain", None, Some(reason.clone())),
    }
}

/// How many channels make one line, and the ranges of the lines.
fn channel_ranges(stats: &ChannelStats, solution: &Solution) -> (usize, Vec<ChannelRange>) {
    let [a, b] = &stats.folds;
    let one = |c: usize| {
        let before = (a.min[c].min(b.min[c]), a.max[c].max(b.max[c]));
        let of = |values: &Option<Vec<f32>>, default| values.as_ref().map_or(default, |v| v[c]);
        let (z, s) = (of(&solution.shift, 0.0), of(&solution.scale, 1.0));
        let after = ((before.0 - z) / s, (before.1 - z) / s);
        ChannelRange { before, after }
    };
    let channels: Vec<ChannelRange> = (0..a.min.len()).map(one).collect();
    let per_line = channels.len().div_ceil(CHANNEL_LINES).max(1);
    let join = |some: &[ChannelRange]| {
        let wider = |a: (f32, f32), b: (f32, f32)| (a.0.min(b.0), a.1.max(b.1));
        some[1..].iter().fold(some[0], |all, one| ChannelRange {
            before: wider(all.before, one.before),
            after: wider(all.after, one.after),
        })
    };
    (per_line, channels.chunks(per_line).map(join).collect())
}

/// The norms and Linears that took a commuted affine; constants on the way are not named.
fn places(found: &Recognised, trace: &Trace) -> String {
    let names = trace.folds.iter().filter_map(|fold| match fold.place {
        Place::Linear(l) => Some(found.linears[l].name.as_str()),
        Place::Norm(n) => Some(found.norms[n].name.as_str()),
        Place::Constant { .. } => None,
    });
    let names: Vec<&str> = names.collect();
    if names.is_empty() {
        "a constant factor".to_owned()
    } else {
        names.join(", ")
    }
}

impl From<NearMiss> for NearMissReport {
    fn from(miss: NearMiss) -> Self {
        NearMissReport {
            name: miss.name,
            kind: miss.kind.to_owned(),
            reason: miss.reason,
        }
    }
}
