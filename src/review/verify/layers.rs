//! The error of every Linear.
//!
//! *Accumulated*: its output in the quantized model against the float model's, with everything that went wrong before it.
//! *Fed*: what its quantized form makes of the float model's values: its own error alone.
//!
//! A few sequences go through both models in waves, each from what the one before has kept ([`Walk`]): no node is run twice, and
//! memory does not grow with the model.
//! The relation of the values that have one name in both is told by the quantized model without the rounding of its
//! activations ([`without_activation_rounding`](super::prepare::without_activation_rounding)): a migrated value shows there
//! most clearly.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::ArrayD;

use super::alike::{Relation, relation};
use super::cut::{cut, model_with_batch};
use super::prepare::{vectors_differ, without_activation_rounding};
use super::{Energy, LayerError};
use crate::calibrate::{Batch, Captured, Engine, EngineError, Kept, Values, Walk, Wanted, shapes};
use crate::graph::{Cut, Source, ValueId, View};
use crate::onnx::Model;
use crate::onnx::op;
use crate::progress::Progress;
use crate::recognise::{Linear, recognise};
use crate::review::quantized::quantized_linears;

/// Bytes of values of one model that are kept at a time.
const WAVE: usize = 48 << 20;

/// A Linear of the float model, and where its output is in the quantized one.
struct Pair {
    error: LayerError,
    /// Names of the output, in the float and in the quantized model; `None` if there is no such pair.
    outputs: Option<(String, String)>,
    /// The float model's name of the product: what is no input of the layer, although both models may have it.
    product: String,
}

/// Every Linear of `float` with its errors in `quantized`, in graph order. Both models are as
/// [`prepare`](super::prepare) makes them.
pub(super) fn layers(
    engine: &dyn Engine,
    (float, quantized): (&Model, &Model),
    batch: &Batch,
    progress: &dyn Progress,
) -> Result<Vec<LayerError>, EngineError> {
    let (f, q) = (View::new(float), View::new(quantized));
    let mut pairs: Vec<Pair> = recognise(&f)
        .linears
        .iter()
        .map(|l| pair(&f, &q, l))
        .collect();
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let shared = Shared::find(engine, (float, quantized), (&f, &q), &pairs, batch)?;
    progress.begin("layers", (shared.names.len() + pairs.len()) as u64);
    let done = (|| {
        let relations =
            shared.relations(engine, (float, quantized), batch, progress, &mut pairs)?;
        fed(
            engine,
            float,
            (&q, &relations, &shared.shapes),
            batch,
            progress,
            &mut pairs,
        )
    })();
    progress.end();
    done?;
    Ok(pairs.into_iter().map(|p| p.error).collect())
}

/// Matches a Linear: by the name of its output, of its product, or of its node.
fn pair(f: &View, q: &View, linear: &Linear) -> Pair {
    let computed = |name: &str| {
        let value = q.value(name)?;
        matches!(q.source(value), Source::Node { .. }).then(|| name.to_owned())
    };
    let product = f.output(linear.node, 0).map_or("", |v| f.name(v));
    let output = linear.output(f).map_or("", |v| f.name(v));
    let of_node = || {
        let same = |(_, n): &(_, &crate::onnx::proto::NodeProto)| n.name() == linear.name;
        let (node, _) = q.nodes().find(same)?;
        let multiplies = matches!(q.op(node), op::MatMul | op::Gemm | op::MatMulNBits);
        let value = q.output(node, 0).filter(|_| multiplies)?;
        Some((product.to_owned(), q.name(value).to_owned()))
    };
    let by_name = [output, product]
        .into_iter()
        .find_map(|name| Some((name.to_owned(), computed(name)?)));
    let outputs = by_name.or_else(of_node);
    let reason = "the quantized model has neither its output nor a node of its name";
    Pair {
        error: LayerError {
            name: linear.name.clone(),
            value: outputs.as_ref().map(|(name, _)| name.clone()),
            k: linear.k,
            n: linear.n,
            quantized: None,
            fed: None,
            accumulated: None,
            migrated: false,
            reason: outputs.is_none().then(|| reason.to_owned()),
        },
        outputs,
        product: product.to_owned(),
    }
}

/// Values that both models have.
struct Shared {
    /// Float values of one name, or a Linear's output under its two names; in the order of the float model's graph.
    names: Vec<(String, String)>,
    /// By the name in the float model.
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Shared {
    fn find(
        engine: &dyn Engine,
        (float, quantized): (&Model, &Model),
        (f, q): (&View, &View),
        pairs: &[Pair],
        batch: &Batch,
    ) -> Result<Shared, EngineError> {
        let computed = |view: &View, name: &str| {
            let node = view.value(name).and_then(|v| view.producer(v));
            node.filter(|(node, _)| !matches!(view.op(*node), op::Constant | op::Shape | op::Size))
                .is_some()
        };
        let both: BTreeSet<(String, String)> = f
            .nodes()
            .flat_map(|(_, node)| &node.output)
            .filter(|name| computed(f, name) && computed(q, name))
            .map(|name| (name.clone(), name.clone()))
            .chain(pairs.iter().filter_map(|p| p.outputs.clone()))
            .collect();
        let list = |pick: fn(&(String, String)) -> &String| {
            let names: BTreeSet<&String> = both.iter().map(pick).collect();
            names.into_iter().cloned().collect::<Vec<String>>()
        };
        let of_float = shapes(engine, float, batch, &list(|n| &n.0))?;
        let of_quantized = shapes(engine, quantized, batch, &list(|n| &n.1))?;
        // Beyond three axes channels are told apart by more than the last axis.
        let alike = |(a, b): &(String, String)| {
            let (a, b) = (of_float.get(a), of_quantized.get(b));
            a.is_some_and(|a| (2..=3).contains(&a.len()) && Some(a) == b)
        };
        let mut names: Vec<(String, String)> = both.iter().filter(|n| alike(n)).cloned().collect();
        names.sort_by_key(|(name, _)| f.value(name).and_then(|v| f.producer(v)));
        Ok(Shared {
            names,
            shapes: of_float,
        })
    }

    /// How the values are related, by their names in the quantized model. Books the accumulated errors of `pairs`.
    fn relations(
        &self,
        engine: &dyn Engine,
        (float, quantized): (&Model, &Model),
        batch: &Batch,
        progress: &dyn Progress,
        pairs: &mut [Pair],
    ) -> Result<BTreeMap<String, Relation>, EngineError> {
        let unrounded = without_activation_rounding(quantized);
        let changed = vectors_differ(float, quantized);
        let mut relations = BTreeMap::new();
        let sizes = self.names.iter().map(|n| (n, bytes(&self.shapes[&n.0])));
        let waves = waves(sizes.collect());
        let walk = |model, pick: fn(&(String, String)) -> &String| {
            let names = waves.iter().map(|w| w.iter().map(|n| pick(n).clone()));
            Walk::new(engine, model, batch, names.map(Iterator::collect).collect())
        };
        let mut float = walk(float, |n| &n.0)?;
        let exact = unrounded.as_ref().map(|model| walk(model, |n| &n.1));
        let mut exact = exact.transpose()?;
        let mut quantized = walk(quantized, |n| &n.1)?;
        for wave in &waves {
            let (r, o) = (float.wave()?, quantized.wave()?);
            let u = exact.as_mut().map(Walk::wave).transpose()?;
            for name in wave {
                let (Some(r), Some(o)) = (r.get(&name.0), o.get(&name.1)) else {
                    continue;
                };
                let u = u.as_ref().and_then(|u| u.get(&name.1)).unwrap_or(o);
                let related = relation(r, &u.value, changed);
                for pair in pairs
                    .iter_mut()
                    .filter(|p| p.outputs.as_ref() == Some(*name))
                {
                    pair.error.migrated = related != Relation::Same;
                    pair.error.accumulated = energy(r, &related.back(&o.value));
                }
                relations.insert(name.1.clone(), related);
                progress.advance(1);
            }
        }
        Ok(relations)
    }
}

/// Books the fed errors.
fn fed(
    engine: &dyn Engine,
    float: &Model,
    (q, relations, shapes): (
        &View,
        &BTreeMap<String, Relation>,
        &BTreeMap<String, Vec<usize>>,
    ),
    batch: &Batch,
    progress: &dyn Progress,
    pairs: &mut [Pair],
) -> Result<(), EngineError> {
    let forms = quantized_linears(q);
    let mut jobs: Vec<(usize, Cut)> = Vec::new();
    for (i, pair) in pairs.iter_mut().enumerate() {
        let Some((name, value)) = &pair.outputs else {
            continue;
        };
        if pair.error.accumulated.is_none() {
            pair.error.reason = Some(
                "its output is not a float value of two or three axes in both models".to_owned(),
            );
            continue;
        }
        let tokens = |name: &str| {
            let shape = shapes.get(name)?;
            Some(shape[..shape.len() - 1].iter().product::<usize>())
        };
        let count = tokens(name);
        let Some(output) = q.value(value) else {
            continue;
        };
        let product = pair.product.clone();
        let stops = |same_only: bool| {
            let product = product.clone();
            move |v: ValueId| {
                let name = q.name(v);
                let known = match relations.get(name) {
                    Some(Relation::Same) => true,
                    Some(_) => !same_only,
                    None => false,
                };
                known && name != product && tokens(name) == count && tokens(name).is_some()
            }
        };
        // Values that mean the same in both models are exact; those that do not are good to a fit.
        match cut(q, output, stops(true)).or_else(|_| cut(q, output, stops(false))) {
            Ok(cut) => {
                let form = forms.iter().find(|(node, _)| cut.nodes.contains(node));
                pair.error.quantized = form.map(|(_, form)| form.clone());
                jobs.push((i, cut));
            }
            Err(reason) => pair.error.reason = Some(reason),
        }
    }
    let size = |(i, cut): &(usize, Cut)| {
        let fed = cut.fed.iter().map(|v| q.name(*v));
        let output = pairs[*i].outputs.iter().map(|(name, _)| name.as_str());
        let shapes = fed.chain(output).filter_map(|name| shapes.get(name));
        shapes.map(|s| bytes(s)).sum::<usize>()
    };
    let sized: Vec<(&(usize, Cut), usize)> = jobs.iter().map(|job| (job, size(job))).collect();
    progress.advance((pairs.len() - sized.len()) as u64);
    let waves = waves(sized);
    let read = |wave: &[&(usize, Cut)]| -> BTreeSet<String> {
        let fed = wave.iter().flat_map(|(_, cut)| &cut.fed);
        let fed = fed.map(|v| q.name(*v).to_owned());
        let outputs = wave.iter().flat_map(|(i, _)| &pairs[*i].outputs);
        fed.chain(outputs.map(|(name, _)| name.clone())).collect()
    };
    let read = waves.iter().map(|wave| read(wave).into_iter().collect());
    let mut walk = Walk::new(engine, float, batch, read.collect())?;
    for wave in waves {
        let kept = walk.wave()?;
        for (i, cut) in wave {
            let pair = &mut pairs[*i];
            match one(engine, (q, relations), cut, pair, batch, &kept) {
                Ok(energy) => pair.error.fed = Some(energy),
                Err(reason) => pair.error.reason = Some(reason),
            }
            progress.advance(1);
        }
    }
    Ok(())
}

/// Runs one cut on the values of the float model.
fn one(
    engine: &dyn Engine,
    (q, relations): (&View, &BTreeMap<String, Relation>),
    cut: &Cut,
    pair: &Pair,
    batch: &Batch,
    kept: &Kept,
) -> Result<Energy, String> {
    let missing = || "the engine does not give what it reads".to_owned();
    let mut values = BTreeMap::new();
    for &value in &cut.fed {
        let name = q.name(value);
        let float = kept.get(name).ok_or_else(missing)?;
        let fed = relations.get(name).map(|r| r.forth(&float.value));
        let fed = fed.unwrap_or_else(|| float.value.clone());
        values.insert(name.to_owned(), Values::F32(fed));
    }
    let (model, fed) = model_with_batch(cut, q, batch, values).ok_or_else(missing)?;
    let wanted = Wanted {
        taps: &[],
        outputs: true,
    };
    let text = |e: EngineError| format!("its part of the model cannot be run alone: {e}");
    let plan = engine.plan(&model, &fed, &wanted).map_err(text)?;
    let outputs = plan.run(&fed, None).map_err(text)?;
    let (name, value) = pair.outputs.as_ref().ok_or_else(missing)?;
    let float = kept.get(name).ok_or_else(missing)?;
    let computed = outputs.get(value).ok_or_else(missing)?;
    let back = relations.get(value).map(|r| r.back(computed));
    energy(float, back.as_ref().unwrap_or(computed)).ok_or_else(missing)
}

/// Energies over the real tokens; `None` if the shapes differ or a value is not finite.
fn energy(float: &Captured, other: &ArrayD<f32>) -> Option<Energy> {
    if float.value.shape() != other.shape() {
        return None;
    }
    let mut energy = Energy::default();
    let vectors = float.value.rows().into_iter().zip(other.rows());
    for ((r, o), _) in vectors
        .zip(&float.halves)
        .filter(|(_, half)| half.is_some())
    {
        for (&r, &o) in r.iter().zip(o) {
            let (r, o) = (f64::from(r), f64::from(o));
            energy.signal += r * r;
            energy.error += (r - o) * (r - o);
        }
    }
    (energy.signal.is_finite() && energy.error.is_finite()).then_some(energy)
}

fn bytes(shape: &[usize]) -> usize {
    shape.iter().product::<usize>() * size_of::<f32>()
}

/// Groups of about [`WAVE`] bytes, in order.
fn waves<T>(sized: Vec<(T, usize)>) -> Vec<Vec<T>> {
    let mut waves: Vec<Vec<T>> = Vec::new();
    let mut filled = usize::MAX;
    for (item, bytes) in sized {
        filled = filled.saturating_add(bytes);
        match waves.last_mut() {
            Some(wave) if filled <= WAVE => wave.push(item),
            _ => {
                waves.push(vec![item]);
                filled = bytes;
            }
        }
    }
    waves
}
