//! Integers and biases that are better than rounding to the nearest, where tokens of the other half confirm it.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{Array2, Axis, concatenate, s};
use rayon::prelude::*;

use super::super::plan::{Plan, Rounding, SitePlan};
use super::super::sites::{SiteId, SiteRow};
use super::known::RoundedFrom;
use super::source::{Source, recognised};
use crate::graph::View;
use crate::graph::branches::FlatModel;
use crate::options::Symmetry;
use crate::recognise::{Linear, LinearId, Recognised};
use crate::rewrite::Rounded;
use crate::solve::correction::{Means, correction, means};
use crate::solve::feedback::{Feedback, output_error};
use crate::solve::{QuantizedWeight, WeightSpec, quantize_weight};

/// Tokens, about, on which error feedback must be better.
const CONFIRMED_BY: usize = 128;

/// What the error without zero points may be of that with them: 0.2 dB. They take room and time.
const WORTH_ZERO_POINTS: f64 = 1.047;

/// Output columns up to which weights are rounded with error feedback: beyond is the Linear of a vocabulary.
pub(crate) const WIDEST: usize = 16384;

/// What makes the quantization of a migrated model better than rounding to the nearest.
#[derive(Default)]
pub(crate) struct Refinement {
    /// Weights in integers; those that are missing are rounded to the nearest.
    pub rounded: Rounded,
    /// What is added to biases, so that quantization keeps the mean of the outputs.
    pub corrections: Vec<(LinearId, Vec<f32>)>,
}

/// What the weights of one model are rounded by.
struct Refine<'a> {
    source: Source<'a>,
    plan: &'a Plan,
    /// Of the migrated model.
    view: View<'a>,
    found: &'a Recognised,
}

impl Refinement {
    /// That of a migrated model; nothing for a plan that rounds to the nearest.
    pub(crate) fn of(source: Source, migrated: &FlatModel, plan: &Plan) -> Refinement {
        if plan.rounding == Rounding::Nearest {
            return Refinement::default();
        }
        let refine = Refine {
            source,
            plan,
            view: migrated.view(),
            found: &recognised(migrated, source.calibrated),
        };
        let rounded = refine.weights();
        Refinement {
            corrections: refine.corrections(&rounded),
            rounded,
        }
    }
}

impl Refine<'_> {
    /// The sites of the plan.
    fn sites(&self) -> impl Iterator<Item = (SiteId, &SiteRow, &SitePlan)> {
        let rows = self.source.calibrated.prepared.sites.iter();
        let planned = rows.zip(&self.plan.sites);
        planned.filter_map(|((id, row), plan)| Some((id, row, plan.as_ref()?)))
    }

    /// The weights rounded with error feedback, where that is better on tokens of the other half.
    fn weights(&self) -> Rounded {
        // Linears that share a weight share its integers: the first decides.
        let key = |l: &Linear| (self.view.derivation(l.weight), format!("{:?}", l.form));
        let mut first: BTreeMap<_, LinearId> = BTreeMap::new();
        for (l, linear) in self.found.linears.iter_enumerated() {
            first.entry(key(linear)).or_insert(l);
        }
        let decides = |l: LinearId| first.get(&key(&self.found.linears[l])) == Some(&l);
        let sites: Vec<_> = self.sites().collect();
        let in_groups = self.source.options.group().is_some();
        let round = |&(id, row, plan): &(SiteId, &SiteRow, &SitePlan)| {
            let linears = row.linears.iter().copied();
            let linears: Vec<LinearId> = linears
                .filter(|&l| decides(l) && (in_groups || self.found.linears[l].n <= WIDEST))
                .collect();
            self.weights_of_site(id, plan, &linears).unwrap_or_default()
        };
        let rounded: Vec<Vec<_>> = sites.par_iter().map(round).collect();
        let mut rounded: Rounded = rounded.into_iter().flatten().collect();
        for (l, linear) in self.found.linears.iter_enumerated() {
            if let Some(shared) = rounded.get(&first[&key(linear)]).cloned() {
                rounded.insert(l, shared);
            }
        }
        rounded
    }

    /// Those of some Linears of one site; `None` if there are no tokens to round by.
    fn weights_of_site(
        &self,
        id: SiteId,
        plan: &SitePlan,
        linears: &[LinearId],
    ) -> Option<Vec<(LinearId, Arc<QuantizedWeight>)>> {
        let known = self.source.known;
        let weight = |&l: &LinearId| {
            let w = self.found.linears[l].load_weight(&self.view)?;
            let spec = self.source.weight(self.plan, l, w.nrows());
            let from = RoundedFrom::of(&w, &plan.transform, spec);
            Some((l, w, from))
        };
        let mut weights: Vec<_> = linears.iter().filter_map(weight).collect();
        let in_sequence = |(l, _, from): &(LinearId, Array2<f32>, RoundedFrom)| {
            let made = self.plan.sequential.get(l)?;
            Some((*l, made.of(from.weight, &from.spec)?.clone()))
        };
        let done: Vec<_> = weights.iter().filter_map(in_sequence).collect();
        weights.retain(|(l, ..)| done.iter().all(|(known, _)| known != l));
        if weights.is_empty() {
            return Some(done);
        }
        let before = weights
            .iter()
            .map(|(l, _, from)| Some((*l, known.get(*l, from)?)));
        if let Some(all) = before.collect::<Option<Vec<_>>>() {
            return Some(all.into_iter().chain(done).collect());
        }
        // What is shared is rounded for the tokens of all.
        let stats = self.source.calibrated.prepared.sites.joint_statistics(id)?;
        // Those that read one value have the same bits.
        let first = *linears.first()?;
        let spec = self
            .source
            .weight(self.plan, first, self.found.linears[first].k);
        let biases = linears.iter().map(|&l| self.found.linears[l].bias);
        let centred = biases.into_iter().all(|bias| bias.is_some());
        let tokens = |i: usize| {
            let mut x = plan.transform.tokens(&stats.folds[i].sample, centred);
            if let Some(weights) = &stats.folds[i].weights {
                let roots: Vec<f32> = weights.iter().map(|w| w.sqrt()).collect();
                x *= &ndarray::aview1(&roots).insert_axis(Axis(1));
            }
            x
        };
        let (fit, other) = (tokens(0), tokens(1));
        let feedback = Feedback::new(&fit, &spec).filter(|_| other.nrows() > 0)?;
        // With few bits every token more is worth it: what was confirmed on the other half is done with both.
        let all = spec.group().and_then(|_| {
            let both = concatenate(Axis(0), &[fit.view(), other.view()]).ok()?;
            Feedback::new(&both, &spec)
        });
        // It is better by 1 dB and more, or not: some tokens tell.
        let every = (other.nrows() / CONFIRMED_BY).max(1);
        let other: Array2<f32> = other
            .slice_move(s![..;every, ..])
            .as_standard_layout()
            .into_owned();
        let round = |(l, w, from): (LinearId, Array2<f32>, RoundedFrom)| {
            let zero_points = self.source.options.zero_points();
            let judge = Confirmed {
                feedback: &feedback,
                all: all.as_ref(),
                other: &other,
            };
            let rounded = Arc::new(judge.rounded(&w, &spec, zero_points));
            known.keep(l, from, rounded.clone());
            (l, rounded)
        };
        Some(weights.into_iter().map(round).chain(done).collect())
    }

    /// What to add to the biases of Linears, so that quantization keeps the mean of their outputs.
    fn corrections(&self, rounded: &Rounded) -> Vec<(LinearId, Vec<f32>)> {
        let mut jobs = Vec::new();
        for (_, row, plan) in self.sites() {
            let Some(stats) = &row.statistics else {
                continue;
            };
            let (low, high) = plan.range;
            let channels = stats.folds[0].min.len();
            let activation = plan.activation(self.source.options, channels);
            let quantizer = activation.quantizer(low, high);
            let means = [0, 1].map(|i| means(&stats.folds[i].sample, &plan.transform, &quantizer));
            let linears = row.linears.iter();
            let with_bias = linears.filter(|&&l| self.found.linears[l].bias.is_some());
            jobs.extend(with_bias.map(|&l| (l, means.clone())));
        }
        let correct = |(l, means): &(LinearId, [Means; 2])| {
            let made = self.plan.sequential.get(l);
            if let Some(made) = made.filter(|made| rounded.get(l).is_some_and(|w| made.is(w))) {
                return Some((*l, made.correction()?.to_vec()));
            }
            let w = self.found.linears[*l].load_weight(&self.view)?;
            let weight = self.source.weight(self.plan, *l, w.nrows());
            let nearest = || Arc::new(quantize_weight(w.view(), &weight));
            let quantized = rounded.get(l).cloned().unwrap_or_else(nearest);
            Some((*l, correction(w.view(), &quantized, means)?))
        };
        jobs.par_iter().filter_map(correct).collect()
    }
}

/// Error feedback by the tokens of one half, of which those of the other say whether it is better.
struct Confirmed<'a> {
    feedback: &'a Feedback,
    /// By the tokens of both halves.
    all: Option<&'a Feedback>,
    /// Tokens of the other half.
    other: &'a Array2<f32>,
}

impl Confirmed<'_> {
    /// A weight rounded as is best on the other tokens; without zero points where those are not clearly better, if it may be.
    fn rounded(
        &self,
        w: &Array2<f32>,
        spec: &WeightSpec,
        zero_points: Symmetry,
    ) -> QuantizedWeight {
        let (mut best, mut spec) = (self.better(w, spec), *spec);
        if zero_points == Symmetry::Auto {
            let symmetric = WeightSpec {
                symmetric: true,
                ..spec
            };
            let other = self.better(w, &symmetric);
            if other.error <= best.error * WORTH_ZERO_POINTS {
                (best, spec) = (other, symmetric);
            }
        }
        match self.all.filter(|_| best.with_feedback) {
            Some(all) => all.quantize(w.view(), &spec),
            None => best.weight,
        }
    }

    /// A weight rounded with error feedback if that is better on the other tokens than to the nearest.
    fn better(&self, w: &Array2<f32>, spec: &WeightSpec) -> Better {
        let of = |weight: QuantizedWeight, with_feedback| Better {
            error: output_error(self.other, w.view(), &weight),
            weight,
            with_feedback,
        };
        let nearest = of(quantize_weight(w.view(), spec), false);
        let better = of(self.feedback.quantize(w.view(), spec), true);
        if better.error < nearest.error {
            better
        } else {
            nearest
        }
    }
}

/// The better of two roundings.
struct Better {
    weight: QuantizedWeight,
    with_feedback: bool,
    /// Of the outputs on the other tokens.
    error: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens in which every channel is nearly the one before it times `sign`.
    fn tokens(sign: f32) -> Array2<f32> {
        let noise = |t: usize, c: usize| ((t * 37 + c * 101) % 23) as f32 / 46.0 - 0.25;
        Array2::from_shape_fn((64, 8), |(t, c)| {
            let common = ((t * 13) % 29) as f32 / 14.5 - 1.0;
            common * if c % 2 == 1 { sign } else { 1.0 } + 0.05 * noise(t, c)
        })
    }

    #[test]
    fn feedback_is_taken_where_other_tokens_confirm_it() {
        let spec = WeightSpec::per_channel(4);
        let w = Array2::from_shape_fn((8, 16), |(c, n)| {
            ((c * 29 + n * 17) % 31) as f32 / 15.5 - 1.0
        });
        let feedback = Feedback::new(&tokens(1.0), &spec).unwrap();
        let with = feedback.quantize(w.view(), &spec);
        let nearest = quantize_weight(w.view(), &spec);
        assert_ne!(with.q, nearest.q);
        // Tokens alike confirm it; where what made up for an error adds to it, it is not taken.
        let chosen = |other| {
            let judge = Confirmed {
                feedback: &feedback,
                all: None,
                other: &tokens(other),
            };
            judge.rounded(&w, &spec, Symmetry::Symmetric).q
        };
        assert_eq!(chosen(1.0), with.q);
        assert_eq!(chosen(-1.0), nearest.q);
    }
}
