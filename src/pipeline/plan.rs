//! A plan: every decision of a run, as data. Nothing else says what is written.
//!
//! A strategy makes another plan from one; [`super::build`] makes a model of a plan, and no decision of its own.

use std::collections::BTreeMap;

use oxc_index::IndexVec;
use serde::{Deserialize, Serialize};

use super::rounded::Sequential;
use super::sites::{SiteId, SiteTable};
use crate::options::{Format, Options};
use crate::recognise::LinearId;
use crate::rewrite::EmbeddingForm;
use crate::site::{ResponseKind, Site};
use crate::solve::{ActivationSpec, Migration, Solution};

/// A plan in JSON, read and written again; `None` if it is none. For `fuzz/`: programs have no use for plans.
pub fn plan_round_trip(json: &[u8]) -> Option<Vec<u8>> {
    let value: serde_json::Value = serde_json::from_slice(json).ok()?;
    let plan: Plan = fits_f32(&value).then(|| Plan::deserialize(&value).ok())??;
    serde_json::to_vec(&plan).ok()
}

/// Whether all numbers are finite as f32: what is larger would be read as infinite, which JSON cannot say.
fn fits_f32(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Number(number) => number.as_f64().is_none_or(|x| (x as f32).is_finite()),
        Value::Array(values) => values.iter().all(fits_f32),
        Value::Object(members) => members.values().all(fits_f32),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

/// Every decision of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// What is written.
    pub format: Format,
    /// Per site; `None` where nothing is known of the value, or no Linear is to be quantized.
    pub sites: IndexVec<SiteId, Option<SitePlan>>,
    /// Per Linear.
    pub linears: IndexVec<LinearId, Precision>,
    /// How weights become integers, and whether biases take up the mean errors.
    pub rounding: Rounding,
    /// Weights that are rounded for what the quantized Linears before them give, with what is added to their biases.
    pub sequential: BTreeMap<LinearId, Sequential>,
    /// Per attention, in graph order; empty until it has been decided: then all are in float.
    pub attention: Vec<AttentionPlan>,
    /// The form of embedding tables of few bits; `None`: they stay in float.
    pub embeddings: Option<EmbeddingForm>,
    /// What a reader should know of how the plan came about.
    pub notes: Vec<String>,
}

/// The decision for one site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SitePlan {
    /// What the search found, used or not.
    pub found: Solution,
    /// Better solutions with a rotation before the Linears, which costs run time: the cheapest first, each better than those
    /// before it. None if the search was not asked for them.
    pub rotated: Vec<Solution>,
    /// What the rotation of `found` costs, if it has one that stands before the Linears.
    pub bought: Option<Bought>,
    /// The block whose response the loss was measured at, if it was.
    pub response: Option<ResponseKind>,
    /// x' = (x − z) / s.
    pub transform: Migration,
    /// What x' is quantized with: its smallest and largest value.
    pub range: (f32, f32),
    /// Where every token has a scale: how many integers are below 0, if not half of them.
    pub levels_below: Option<i32>,
    /// The factor by which `range` is wider than what calibration saw of x'.
    pub margin: f32,
    /// Why `found` is not what is done.
    pub dropped: Option<Dropped>,
}

/// What was paid for a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bought {
    /// Percent of the run time, by the estimate of [`super::strategy::offers`].
    pub percent: f64,
}

/// Why plain min-max is written for a site although the search had decided otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Dropped {
    /// The outputs on held-out rows are better without it.
    Validation(String),
    /// Plain min-max is better for the whole model.
    PlainIsBetter,
    /// All of its Linears are left in float.
    InFloat,
}

impl Dropped {
    /// The reason in words.
    pub(super) fn reason(&self) -> &str {
        match self {
            Dropped::Validation(reason) => reason,
            Dropped::PlainIsBetter => "plain min-max was better for the whole model",
            Dropped::InFloat => "all of its Linears are left in float",
        }
    }
}

/// How one Linear is computed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Precision {
    /// With integers of the bits that the options say.
    Integer,
    /// With integers, those of the weight of 8 bits although the options say fewer.
    Raised,
    /// In float, for this reason.
    Float(String),
}

impl Precision {
    /// Whether it is computed with integers.
    pub(super) fn is_integer(&self) -> bool {
        matches!(self, Precision::Integer | Precision::Raised)
    }
}

/// How the weights of a plan are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Rounding {
    /// To the nearest integer, nothing else: plain min-max quantization and the comparison methods.
    Nearest,
    /// With error feedback where tokens of the other half confirm it, and the mean errors taken off the biases.
    Refined,
}

/// The decision for one attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct AttentionPlan {
    /// The name of its Softmax, or of the operator that computes it as a whole.
    pub softmax: String,
    /// The names of the MatMuls of Q Kᵀ and P V; none where they were not found.
    pub products: Vec<String>,
    /// Int8, or float for a reason.
    pub precision: Precision,
    /// What Q, Kᵀ and V were measured to be, if they were.
    pub ranges: Option<AttentionRanges>,
    /// Whether the guard `Where(IsNaN(P), 0, P)` goes; `None` if there is none, or it is in float.
    pub guard: Option<Guard>,
    /// The type that Q/DQ is written in.
    pub dtype: AttentionType,
}

/// Ranges of Q, Kᵀ and V as their products read them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct AttentionRanges {
    pub query: (f32, f32),
    pub key: (f32, f32),
    pub value: (f32, f32),
    /// Whether no row was without keys, padding included: then a guard against NaN did nothing.
    pub no_nan: bool,
}

/// What becomes of a guard against NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Guard {
    /// It stays.
    Kept,
    /// It is left out: the target is stopped by it, and no calibration row needs it.
    Dropped,
}

/// The type of the scales of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AttentionType {
    /// float32, between Casts where the model has another type.
    Float32,
    /// float16, because the target's fused kernel wants all of it in that.
    Float16,
}

impl SitePlan {
    /// What the search found, to be done.
    pub(super) fn of(found: Solution, response: Option<ResponseKind>) -> SitePlan {
        SitePlan {
            response: response.filter(|_| found.at_response),
            transform: transform(&found),
            rotated: Vec::new(),
            bought: None,
            range: found.range,
            levels_below: found.levels_below,
            margin: found.margin,
            dropped: None,
            found,
        }
    }

    /// The same with better solutions at hand that have a rotation.
    pub(super) fn with_rotated(self, rotated: Vec<Solution>) -> SitePlan {
        SitePlan { rotated, ..self }
    }

    /// The solution with rotation number `choice` in the place of what is done.
    pub(super) fn rotate(&mut self, choice: usize, bought: Bought) {
        if let Some(found) = self.rotated.get(choice) {
            *self = SitePlan {
                bought: Some(bought),
                ..SitePlan::of(found.clone(), self.response)
            };
        }
    }

    /// How x', with so many channels, is quantized.
    pub(super) fn activation(&self, options: &Options, channels: usize) -> ActivationSpec {
        ActivationSpec {
            levels_below: self.levels_below,
            ..options.activation_of(channels)
        }
    }

    /// Plain min-max in its place.
    pub(super) fn drop(&mut self, why: Dropped) {
        self.transform = Migration::default();
        self.range = self.found.range_before;
        self.levels_below = None;
        self.margin = 1.0;
        self.dropped = Some(why);
    }

    /// Whether anything is folded.
    pub(super) fn migrates(&self) -> bool {
        self.transform != Migration::default()
    }

    /// Whether this is plain min-max quantization.
    pub(super) fn is_plain(&self) -> bool {
        !self.migrates() && self.range == self.found.range_before
    }
}

impl Plan {
    /// What was paid for the rotations that are written.
    pub(super) fn bought(&self) -> impl Iterator<Item = Bought> {
        let sites = self.sites.iter().flatten();
        let rotated = sites.filter(|s| s.transform.rotation.is_some());
        rotated.filter_map(|s| s.bought)
    }

    /// The Linears that are computed with integers.
    pub(super) fn quantizes(&self, linear: LinearId) -> bool {
        self.format.quantizes() && self.linears[linear].is_integer()
    }

    /// Plain min-max quantization of the same Linears: what every other plan competes with.
    pub(super) fn plain(&self, sites: &SiteTable) -> Plan {
        let mut plain = Plan {
            rounding: Rounding::Nearest,
            sequential: BTreeMap::new(),
            attention: Vec::new(),
            ..self.clone()
        };
        for (id, site) in plain.sites.iter_mut_enumerated() {
            if let Some(site) = site {
                site.drop(Dropped::PlainIsBetter);
                site.range = sites.row(id).min_max().unwrap_or(site.range);
            }
        }
        plain
    }

    /// Whether this is [`Plan::plain`], because that was better.
    pub(super) fn is_all_plain(&self) -> bool {
        let plain = |site: &SitePlan| site.dropped == Some(Dropped::PlainIsBetter);
        self.rounding == Rounding::Nearest && self.sites.iter().flatten().any(plain)
    }

    /// How many sites are migrated; `sites` are those of the plan.
    pub(super) fn migrated<'a>(&self, sites: impl Iterator<Item = &'a Site>) -> usize {
        let planned = self.sites.iter().zip(sites);
        let migrates = |(plan, site): &(&Option<SitePlan>, &Site)| {
            site.has_sink() && plan.as_ref().is_some_and(SitePlan::migrates)
        };
        planned.filter(migrates).count()
    }

    /// Whether the float model of both is the same, constants included.
    pub(super) fn folds_like(&self, other: &Plan) -> bool {
        let transform = |site: &Option<SitePlan>| site.as_ref().map(|s| s.transform.clone());
        let sites = self.sites.iter().zip(&other.sites);
        self.format.quantizes() == other.format.quantizes()
            && self.linears == other.linears
            && sites
                .into_iter()
                .all(|(a, b)| transform(a).unwrap_or_default() == transform(b).unwrap_or_default())
    }

    /// The plan with all attention in float.
    pub(super) fn without_attention(&self) -> Plan {
        Plan {
            attention: Vec::new(),
            ..self.clone()
        }
    }
}

/// What a solution does to the float model.
fn transform(found: &Solution) -> Migration {
    Migration {
        shift: found.shift.clone(),
        scale: found.scale.clone(),
        rotation: found.rotation.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solve::ShiftKind;
    use oxc_index::index_vec;

    fn found() -> Solution {
        Solution {
            shift: Some(vec![0.5]),
            scale: Some(vec![2.0]),
            rotation: None,
            levels_below: None,
            range: (-1.1, 1.1),
            range_before: (-4.0, 8.0),
            range_after: (-1.0, 1.0),
            threshold: Some(1.0),
            margin: 1.1,
            shift_kind: ShiftKind::MidRange,
            loss_before: 2.0,
            loss_after: 1.0,
            validated_gain_db: 3.0,
            curve: Vec::new(),
            at_response: true,
            loss_without: None,
            energy: 1.0,
            share: None,
        }
    }

    fn plan() -> Plan {
        Plan {
            format: Format::Qdq,
            sites: index_vec![Some(SitePlan::of(found(), Some(ResponseKind::Gated))), None],
            linears: index_vec![Precision::Integer; 2],
            rounding: Rounding::Refined,
            sequential: BTreeMap::new(),
            attention: Vec::new(),
            embeddings: None,
            notes: Vec::new(),
        }
    }

    #[test]
    fn what_was_found_is_done_until_it_is_dropped() {
        let mut site = SitePlan::of(found(), Some(ResponseKind::Gated));
        assert!(site.migrates() && !site.is_plain());
        assert_eq!((site.range, site.margin), ((-1.1, 1.1), 1.1));
        assert_eq!(site.response, Some(ResponseKind::Gated));
        site.drop(Dropped::InFloat);
        assert!(!site.migrates() && site.is_plain());
        assert_eq!((site.range, site.margin), ((-4.0, 8.0), 1.0));
        assert_eq!(site.dropped, Some(Dropped::InFloat));
        assert_eq!(site.found, found());
        // A loss at the outputs of Linears was measured at no block.
        let elsewhere = Solution {
            at_response: false,
            loss_without: None,
            energy: 1.0,
            share: None,
            ..found()
        };
        let site = SitePlan::of(elsewhere, Some(ResponseKind::Gated));
        assert_eq!(site.response, None);
    }

    #[test]
    fn integers_are_for_formats_that_have_them() {
        let mut plan = plan();
        plan.linears[LinearId::from(1usize)] = Precision::Float("why".to_owned());
        let quantized = |plan: &Plan| [0usize, 1].map(|l| plan.quantizes(l.into()));
        assert_eq!(quantized(&plan), [true, false]);
        plan.format = Format::Float;
        assert_eq!(quantized(&plan), [false, false]);
    }

    #[test]
    fn what_changes_the_float_model() {
        let base = plan();
        let changed = |change: &dyn Fn(&mut Plan)| {
            let mut other = plan();
            change(&mut other);
            !base.folds_like(&other)
        };
        let site = |plan: &mut Plan, f: &dyn Fn(&mut SitePlan)| {
            f(plan.sites[SiteId::from(0usize)].as_mut().unwrap());
        };
        assert!(changed(&|p| site(p, &|s| s.transform.shift = None)));
        assert!(changed(&|p| site(p, &|s| s.transform.scale = None)));
        assert!(changed(
            &|p| p.linears[LinearId::from(0usize)] = Precision::Float(String::new())
        ));
        assert!(changed(&|p| p.format = Format::Float));
        assert!(!changed(&|p| p.format = Format::QOperator));
        assert!(!changed(&|p| site(p, &|s| s.range = (-9.0, 9.0))));
        assert!(!changed(&|p| p.rounding = Rounding::Nearest));
        assert!(!changed(&|p| p.notes.push("a note".to_owned())));
        // A site of which nothing is known is like one at which nothing is done.
        assert!(!changed(&|p| {
            let mut plain = SitePlan::of(found(), None);
            plain.drop(Dropped::InFloat);
            p.sites[SiteId::from(1usize)] = Some(plain);
        }));
    }
}
