//! Weights for what the quantized Linears before them give, one site after the other.
//!
//! ```text
//!             x₁ ── W₁ ──▶ y₁ ─ nodes ─▶ x₂ ── W₂ ──▶ y₂         the float model
//! inputs ─▶                                                      ─▶ …
//!             x̂₁ ── Q₁ ──▶ ŷ₁ ─ nodes ─▶ x̂₂ ── Q₂ ──▶ ŷ₂         with x̂ quantized, and Q₂ made from x₂, x̂₂ and W₂
//! ```
//!
//! What comes through a norm has the errors of all layers before, which other tokens have in other ways: there x̂ is half of the way
//! from x to what the quantized model gives ([`CARRIED`]).
//!
//! The nodes between the Linears are run by the engine ([`Steps`]), the Linears here, so that the whole costs about three runs of
//! the model on some calibration rows, whatever its depth. What is found is a part of the plan. What cannot be run in steps (a
//! Linear in one branch alone) is not rounded so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ndarray::{Array1, Array2, ArrayD, ArrayView2, Axis, Ix2, IxDyn, aview1, concatenate};
use rayon::prelude::*;

use super::build::{Folded, Refinement, Source, WIDEST, integers, recognised, weight_hash};
use super::job::Job;
use super::judge::rows::fewest;
use super::plan::Plan;
use super::rounded::Sequential;
use super::sites::SiteId;
use crate::calibrate::{Batch, StepError, Steps, Vectors, VectorsOf, vectors, weights_of};
use crate::error::Error;
use crate::graph::{ValueId, View};
use crate::onnx::Model;
use crate::recognise::{LinearId, Recognised};
use crate::site::{Sink, normed_stream};
use crate::solve::product::product;
use crate::solve::sequential::{SeenInputs, SequentialWeight};
use crate::solve::{ActivationQuantizer, QuantizedWeight, WeightSpec, quantize_weight};

/// Tokens that are run, about: MiniLM-L6 at W4A8 has 13.5 dB with 1500, 13.95 with 2048, 13.94 with 3000.
const TOKENS: usize = 2048;

/// The part of the error behind a norm that weights are rounded for. On unseen rows of MiniLM-L6, a BERT of hidden 256 and six layers of
/// SmolLM2, at W4A8, W4A6 and W6A6, all of it gives 0 to 0.7 dB less (0.3 in the mean), a quarter 0.1 less in the mean, and nothing
/// as well, but up to 0.7 dB more or less (docs/results.md).
const CARRIED: f32 = 0.5;

/// The plan with weights that are rounded for what comes in; `None` if none of them is better so, or the model cannot be run in
/// steps.
///
/// # Errors
/// A constant that cannot be read.
pub(super) fn sequential(
    job: &Job,
    source: Source,
    calibration: &[Batch],
    plan: &Plan,
) -> Result<Option<Plan>, Error> {
    let folded = Folded::new(source, plan, &integers(plan))?.model;
    let model = folded.as_model();
    let view = folded.view();
    let found = recognised(&folded, source.calibrated);
    let search = Search {
        source,
        plan,
        refinement: &Refinement::of(source, &folded, plan),
        view: &view,
        found: &found,
    };
    let waves = search.waves();
    let batches = fewest(calibration, &BTreeSet::new(), 0, TOKENS);
    let batches: Vec<Batch> = batches.iter().map(|&i| calibration[i].clone()).collect();
    job.progress
        .begin("sequential rounding", waves.len() as u64);
    let done = search.run(job, model, &batches, &waves);
    job.progress.end();
    job.clock.finish("sequential");
    let sequential = done.unwrap_or_default();
    Ok((!sequential.is_empty()).then(|| Plan {
        sequential,
        ..plan.clone()
    }))
}

/// Linears that read one value.
struct Wave {
    site: SiteId,
    value: ValueId,
    linears: Vec<LinearId>,
}

/// The weight of one of them.
struct Weight {
    id: LinearId,
    /// W'.
    w: Array2<f32>,
    spec: WeightSpec,
    /// As it is rounded without.
    before: Arc<QuantizedWeight>,
    /// Whether the Linear has a bias.
    bias: bool,
    /// Whether it may be rounded so: no other Linear has it, and it is no vocabulary.
    own: bool,
}

impl Weight {
    /// Whether the same tokens and factors round both.
    fn is_rounded_like(&self, other: &Weight) -> bool {
        (self.bias, self.spec) == (other.bias, other.spec)
    }
}

struct Search<'a> {
    source: Source<'a>,
    plan: &'a Plan,
    /// How the weights are rounded without.
    refinement: &'a Refinement,
    /// Of the migrated model.
    view: &'a View<'a>,
    found: &'a Recognised,
}

impl Search<'_> {
    /// The weights that are better so, wave by wave.
    fn run(
        &self,
        job: &Job,
        model: &Model,
        batches: &[Batch],
        waves: &[Wave],
    ) -> Result<BTreeMap<LinearId, Sequential>, StepError> {
        let outside = waves.iter().flat_map(|wave| self.outputs(wave)).collect();
        let streams = self.streams(waves);
        let name = |wave: &Wave| self.view.name(wave.value).to_owned();
        let mut wanted: BTreeSet<String> = streams.values().cloned().collect();
        wanted.extend(waves.iter().map(name));
        let wanted: Vec<String> = wanted.into_iter().collect();
        let mut known = vectors(job.engine, model, batches, &wanted)?;
        known.truncate(as_many(&known));
        let mut steps = Steps::new(job.engine, model, &batches[..known.len()], 2, outside);
        let later: Vec<ValueId> = waves.iter().map(|wave| wave.value).collect();
        let mut all = BTreeMap::new();
        for (at, wave) in waves.iter().enumerate() {
            let mut inputs = steps.value(wave.value, &later[at + 1..])?;
            if self.is_behind_norm(wave) {
                carry(&mut inputs);
            }
            let tokens = Tokens::of(&inputs, &known, &name(wave), streams.get(&wave.site));
            let other = || StepError::Order(format!("`{}` has other tokens", name(wave)));
            let tokens = tokens.ok_or_else(other)?;
            let found = self.round(wave, inputs, &tokens, &mut |output, values| {
                steps.put(output, values);
            });
            let unread = || StepError::Order(format!("a weight behind `{}`", name(wave)));
            all.extend(found.ok_or_else(unread)?);
            job.progress.advance(1);
        }
        Ok(all)
    }

    /// The quantized Linears by the values that they read, in the order of the graph. The others are run with the rest of it.
    fn waves(&self) -> Vec<Wave> {
        let mut waves: Vec<Wave> = Vec::new();
        for (site, row) in self.source.calibrated.prepared.sites.iter() {
            if self.plan.sites[site].is_none() {
                continue;
            }
            for &l in row.linears.iter().filter(|l| self.plan.quantizes(**l)) {
                let linear = &self.found.linears[l];
                let node = self.view.producer(linear.input);
                if node.is_none() || !linear.channels_last() || linear.odd_bias {
                    continue;
                }
                let own = |w: &&mut Wave| w.site == site && w.value == linear.input;
                match waves.iter_mut().find(own) {
                    Some(wave) => wave.linears.push(l),
                    None => waves.push(Wave {
                        site,
                        value: linear.input,
                        linears: vec![l],
                    }),
                }
            }
        }
        waves.sort_by_key(|wave| {
            wave.linears
                .iter()
                .map(|&l| self.found.linears[l].node)
                .min()
        });
        waves
    }

    /// Whether the Linears of a wave read what a norm gives.
    fn is_behind_norm(&self, wave: &Wave) -> bool {
        let row = self.source.calibrated.prepared.sites.row(wave.site);
        matches!(row.site.sink, Sink::Norm(_))
    }

    /// What the Linears of a wave compute.
    fn outputs(&self, wave: &Wave) -> impl Iterator<Item = ValueId> {
        let linears = wave.linears.iter();
        linears.filter_map(|&l| self.view.output(self.found.linears[l].node, 0))
    }

    /// The stream that a norm reads behind the Linears of a site, by its name.
    fn streams(&self, waves: &[Wave]) -> BTreeMap<SiteId, String> {
        let stream = |wave: &Wave| {
            let stream = normed_stream(self.view, self.found, &wave.linears)?;
            Some((wave.site, self.view.name(stream).to_owned()))
        };
        waves.iter().filter_map(stream).collect()
    }

    /// Rounds the weights of a wave for `inputs`, float in the first half of them and seen in the second, and computes what
    /// the Linears give with them; `None` if a weight cannot be read.
    fn round(
        &self,
        wave: &Wave,
        inputs: Vec<ArrayD<f32>>,
        tokens: &Tokens,
        put: &mut dyn FnMut(ValueId, Vec<ArrayD<f32>>),
    ) -> Option<Vec<(LinearId, Sequential)>> {
        let inputs = Inputs::new(inputs, &self.quantizer(wave)?)?;
        let weights = wave.linears.iter().map(|&l| self.weight(l));
        let weights: Vec<Weight> = weights.collect::<Option<_>>()?;
        let mut made = Vec::new();
        for alike in weights.chunk_by(Weight::is_rounded_like) {
            let own = alike.iter().any(|weight| weight.own);
            let seen = own.then(|| inputs.seen(tokens, alike[0].bias)).flatten();
            let rounding = seen.as_ref().and_then(|seen| seen.rounding(&alike[0].spec));
            for Weight {
                id,
                w,
                spec,
                before,
                own,
                ..
            } in alike
            {
                let linear = &self.found.linears[*id];
                let rounding = rounding.as_ref().filter(|_| *own);
                let found = rounding.and_then(|rounding| rounding.round(w.view(), before));
                let better = found.is_some();
                let used = found.unwrap_or_else(|| SequentialWeight {
                    weight: (**before).clone(),
                    correction: self.correction(*id),
                });
                put(
                    self.view.output(linear.node, 0)?,
                    inputs.products(w, &used, linear.inner_bias(self.view))?,
                );
                if better {
                    made.push((*id, Sequential::new(weight_hash(w), spec, used)));
                }
            }
        }
        Some(made)
    }

    /// The weight of a Linear, and how it is rounded without; `None` if it cannot be read.
    fn weight(&self, id: LinearId) -> Option<Weight> {
        let linear = &self.found.linears[id];
        let w = linear.load_weight(self.view)?;
        let spec = self.source.weight(self.plan, id, w.nrows());
        let nearest = || Arc::new(quantize_weight(w.view(), &spec));
        let before = self.refinement.rounded.get(&id).cloned();
        let before = before.unwrap_or_else(nearest);
        Some(Weight {
            id,
            bias: linear.bias.is_some(),
            own: linear.n <= WIDEST && !linear.weight_is_shared(self.view),
            // With zero points, or without, as it has been decided.
            spec: WeightSpec {
                symmetric: before.zero_point.is_empty(),
                ..spec
            },
            before,
            w,
        })
    }

    /// What is added to the bias of a Linear without.
    fn correction(&self, id: LinearId) -> Option<Vec<f32>> {
        let mut corrections = self.refinement.corrections.iter();
        corrections
            .find(|(of, _)| *of == id)
            .map(|(_, c)| c.clone())
    }

    /// How the value that a wave reads is quantized.
    fn quantizer(&self, wave: &Wave) -> Option<ActivationQuantizer> {
        let plan = self.plan.sites[wave.site].as_ref()?;
        let channels = self.found.linears[*wave.linears.first()?].k;
        let spec = plan.activation(self.source.options, channels);
        Some(spec.quantizer(plan.range.0, plan.range.1))
    }
}

/// Brings values that are seen, the second half, nearer to those of the float model: [`CARRIED`].
fn carry(both: &mut [ArrayD<f32>]) {
    let (float, seen) = both.split_at_mut(both.len() / 2);
    for (float, seen) in float.iter().zip(seen) {
        ndarray::Zip::from(seen)
            .and(float)
            .for_each(|seen, float| *seen = float + CARRIED * (*seen - float));
    }
}

/// What the Linears of a wave read, whole, per batch.
struct Inputs {
    /// The axes before the channels.
    leads: Vec<Vec<usize>>,
    /// `[T, C]`.
    float: Vec<Array2<f32>>,
    /// Quantized.
    seen: Vec<Array2<f32>>,
}

impl Inputs {
    fn new(both: Vec<ArrayD<f32>>, quantizer: &ActivationQuantizer) -> Option<Inputs> {
        let leads = both[..both.len() / 2].iter();
        let leads = leads.map(|x| x.shape().split_last().map(|(_, lead)| lead.to_vec()));
        let leads: Vec<Vec<usize>> = leads.collect::<Option<_>>()?;
        let mut float: Vec<Array2<f32>> = both.into_iter().map(flat).collect::<Option<_>>()?;
        let mut seen = float.split_off(leads.len());
        for x in &mut seen {
            let mut quantized = Array2::zeros(x.raw_dim());
            let columns = x.ncols();
            if let (Some(x), Some(out)) = (x.as_slice(), quantized.as_slice_mut()) {
                quantizer.apply(x, out, columns);
            }
            *x = quantized;
        }
        Some(Inputs { leads, float, seen })
    }

    /// The tokens that set and confirm weights.
    fn seen(&self, tokens: &Tokens, bias: bool) -> Option<SeenInputs> {
        let real = |all: &[Array2<f32>]| {
            let real = all.iter().zip(&tokens.real);
            let real: Vec<_> = real.map(|(x, real)| x.select(Axis(0), real)).collect();
            let views: Vec<_> = real.iter().map(|x| x.view()).collect();
            concatenate(Axis(0), &views).ok()
        };
        let weights = tokens.weights.as_deref();
        SeenInputs::new(&real(&self.float)?, &real(&self.seen)?, weights, bias)
    }

    /// What a Linear gives, in float and quantized.
    fn products(
        &self,
        w: &Array2<f32>,
        used: &SequentialWeight,
        bias: Option<Array1<f32>>,
    ) -> Option<Vec<ArrayD<f32>>> {
        let quantized = used.weight.dequantize();
        let of = |x: &Array2<f32>, w: ArrayView2<f32>, lead: &Vec<usize>, more: Option<&[f32]>| {
            let mut product = product(x, &w);
            if let Some(bias) = &bias {
                product += bias;
            }
            if let Some(more) = more {
                product += &aview1(more);
            }
            let shape: Vec<usize> = lead.iter().copied().chain([w.ncols()]).collect();
            product.into_shape_with_order(IxDyn(&shape)).ok()
        };
        let float = self.float.par_iter().zip(&self.leads);
        let float = float.map(|(x, lead)| of(x, w.view(), lead, None));
        let seen = self.seen.par_iter().zip(&self.leads);
        let correction = used.correction.as_deref();
        let seen = seen.map(|(x, lead)| of(x, quantized.view(), lead, correction));
        float.chain(seen).collect()
    }
}

/// `[…, C]` as `[T, C]`.
fn flat(x: ArrayD<f32>) -> Option<Array2<f32>> {
    let channels = *x.shape().last()?;
    let tokens = x.len().checked_div(channels)?;
    let x = x.as_standard_layout().into_owned();
    let x = x.into_shape_with_order(IxDyn(&[tokens, channels])).ok()?;
    x.into_dimensionality::<Ix2>().ok()
}

/// The tokens of a value that are no padding; evenly spread ones, if there are very many.
struct Tokens {
    /// Per batch.
    real: Vec<Vec<usize>>,
    /// What the squared error of each counts; `None` if all count the same.
    weights: Option<Vec<f32>>,
}

impl Tokens {
    /// `None` if a value has others than the model has run.
    fn of(
        values: &[ArrayD<f32>],
        known: &[VectorsOf],
        name: &str,
        stream: Option<&String>,
    ) -> Option<Tokens> {
        let own: Vec<&Vectors> = known.iter().map(|of| of.get(name)).collect::<Option<_>>()?;
        let count = |x: &ArrayD<f32>| x.len() / x.shape().last().copied().unwrap_or(1).max(1);
        let same = values.iter().zip(&own);
        let same = same.into_iter().all(|(x, own)| count(x) == own.real.len());
        let real = |own: &&Vectors| {
            let real = own.real.iter().enumerate();
            real.filter_map(|(t, real)| real.then_some(t)).collect()
        };
        let mut real: Vec<Vec<usize>> = own.iter().map(real).collect();
        let all: usize = real.iter().map(Vec::len).sum();
        let (every, mut at) = (all.div_ceil(2 * TOKENS).max(1), 0);
        let mut thin = |_: &usize| {
            at += 1;
            (at - 1) % every == 0
        };
        real.iter_mut().for_each(|real| real.retain(&mut thin));
        let sizes = stream.and_then(|stream| {
            let mut sizes = Vec::new();
            for ((of, own), real) in known.iter().zip(&own).zip(&real) {
                let stream = of.get(stream).filter(|s| s.real == own.real)?;
                sizes.extend(real.iter().map(|&t| stream.sizes[t]));
            }
            weights_of(&sizes)
        });
        same.then_some(Tokens {
            real,
            weights: sizes,
        })
    }
}

/// How many batches, from the first on, have [`TOKENS`]: images do not tell before they are run.
fn as_many(known: &[VectorsOf]) -> usize {
    let real = |v: &Vectors| v.real.iter().filter(|real| **real).count();
    let most = |of: &VectorsOf| of.values().map(real).max().unwrap_or(0);
    let mut sum = 0;
    let enough = known.iter().position(|of| {
        sum += most(of);
        sum >= TOKENS
    });
    enough.map_or(known.len(), |last| last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch whose value x has so many tokens, every fourth of them padding.
    fn known(tokens: usize) -> VectorsOf {
        let vectors = Vectors {
            real: (0..tokens).map(|t| t % 4 != 3).collect(),
            sizes: vec![1.0; tokens],
        };
        [("x".to_owned(), vectors)].into()
    }

    #[test]
    fn half_of_an_error_is_carried() {
        let value = |v: f32| ArrayD::from_elem(IxDyn(&[2, 3]), v);
        let mut both = [value(1.0), value(-4.0), value(3.0), value(-4.0)];
        carry(&mut both);
        assert_eq!(both, [value(1.0), value(-4.0), value(2.0), value(-4.0)]);
    }

    #[test]
    fn batches_are_run_until_there_are_enough_tokens() {
        let batches = [known(TOKENS), known(TOKENS), known(TOKENS)];
        assert_eq!(as_many(&batches), 2);
        assert_eq!(as_many(&batches[..1]), 1);
        assert_eq!(as_many(&[known(9 * TOKENS), known(4)]), 1);
    }

    #[test]
    fn of_very_many_tokens_evenly_spread_ones_set_weights() {
        let (tokens, channels) = (8 * TOKENS, 1);
        let value = ArrayD::zeros(IxDyn(&[8, TOKENS, channels]));
        let found = Tokens::of(&[value], &[known(tokens)], "x", None).unwrap();
        // Of six times as many that are real, every third.
        assert_eq!(found.real[0].len(), 2 * TOKENS);
        assert_eq!(found.real[0][..4], [0, 4, 8, 12]);
        let few = ArrayD::zeros(IxDyn(&[8, channels]));
        let found = Tokens::of(&[few], &[known(8)], "x", Some(&"x".to_owned())).unwrap();
        assert_eq!(found.real[0], [0, 1, 2, 4, 5, 6]);
        assert_eq!(found.weights, Some(vec![1.0; 6]));
        let other = ArrayD::zeros(IxDyn(&[9, channels]));
        assert!(Tokens::of(&[other], &[known(8)], "x", None).is_none());
    }
}
