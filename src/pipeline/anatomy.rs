//! [`anatomy`]: what is recognised in a model, and what data shows of it, without changing anything.

use std::collections::{BTreeMap, BTreeSet};

use super::inspect::{Inspection, inspect};
use super::token_ids::token_ids;
use super::work;
use crate::calibrate::{
    Dataset, Engine, StatOptions, Statistics, shapes, statistics_and_tokens, with_threads,
};
use crate::error::Error;
use crate::graph::branches::FlatModel;
use crate::graph::{self, inline};
use crate::onnx::Model;
use crate::onnx::op;
use crate::options::Options;
use crate::progress::Progress;
use crate::recognise::recognise;
use crate::review::{self, Anatomy, Subject, Tokens};
use crate::site::find_sites;

/// What is seen in a model: its architecture, sites with their sinks, near misses, what is quantized already; with `data`,
/// which channels stick out and what plain quantization would do, too. Without data, zeros of the stated shapes are run.
///
/// ```
/// use onnx_osplus::calibrate::TractEngine;
/// use onnx_osplus::progress::NoProgress;
/// use onnx_osplus::{Options, anatomy, onnx};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = onnx::load("models/tiny/model.onnx")?;
/// let seen = anatomy(&model, None, &TractEngine, &Options::default(), &NoProgress)?;
/// assert_eq!(seen.architecture.norms["LayerNormalization"], 5);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Whatever the engine refuses when it runs `data`. A model that cannot be run at all is inspected as far as the graph
/// tells, and a note says so.
pub fn anatomy(
    original: &Model,
    data: Option<&Dataset>,
    engine: &dyn Engine,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Anatomy, Error> {
    with_threads(options.threads, || {
        dissect(original, data, engine, options, progress)
    })?
}

fn dissect(
    original: &Model,
    data: Option<&Dataset>,
    engine: &dyn Engine,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Anatomy, Error> {
    options.validate()?;
    // What follows walks through the graph, also where it cannot be run.
    graph::check(original)?;
    let mut notes = Vec::new();
    let synthetic = match data {
        Some(_) => None,
        None => Dataset::synthetic(original)
            .map_err(|e| notes.push(without_shapes(&e)))
            .ok(),
    };
    let rows = data.or(synthetic.as_ref());
    let inspected = rows.map(|rows| inspect(original, rows, engine, options, progress));
    let ran = matches!(inspected, Some(Ok(_)));
    let seen = match inspected {
        Some(Ok(inspection)) => inspection,
        // That there is no float Linear is no failure here; the near misses say why.
        Some(Err(Error::NothingToQuantize(_))) => without_running(original, options),
        Some(Err(error)) => {
            notes.push(without_shapes(&error));
            without_running(original, options)
        }
        None => without_running(original, options),
    };
    let view = seen.model.view();
    let softmaxes: Vec<String> = view
        .nodes()
        .filter(|(_, n)| n.op_type() == op::Softmax)
        .filter_map(|(_, n)| n.output.first().cloned())
        .collect();
    let small = rows.map(|rows| rows.small_batches()).unwrap_or_default();
    let mut attention_shapes = BTreeMap::new();
    for batch in small.iter().filter(|_| !softmaxes.is_empty()) {
        // Only the number of heads is lost without them.
        attention_shapes
            .extend(shapes(engine, seen.model.as_model(), batch, &softmaxes).unwrap_or_default());
    }
    let (statistics, tokens) = match data.filter(|_| ran) {
        Some(data) => measured(&seen, data, engine, options, progress)?,
        None => Default::default(),
    };
    let mut anatomy = review::anatomy(&Subject {
        original,
        opened: seen.model.as_model(),
        found: &seen.found,
        sites: &seen.sites,
        attention_shapes: &attention_shapes,
        statistics: &statistics,
        tokens: &tokens,
        bits: (options.activation(), options.weight()),
    });
    let batch = small.first().filter(|_| ran);
    anatomy.work = batch.and_then(|batch| {
        let longest = data.and_then(|data| data.all().into_iter().next());
        let batch = longest.as_ref().unwrap_or(batch);
        work::work_of_model(engine, seen.model.as_model(), &seen.found, batch)
    });
    anatomy.rows = data.filter(|_| ran).map_or(0, Dataset::rows);
    anatomy.near_misses = seen.closed;
    let misses = seen.found.near_misses.into_iter();
    // What is quantized is no near miss here, but listed as what it is.
    let quantized = anatomy.quantized.linears.iter().map(|l| &l.name);
    let quantized: BTreeSet<&String> = quantized.collect();
    let misses = misses.filter(|m| !quantized.contains(&m.name));
    anatomy.near_misses.extend(misses.map(Into::into));
    notes.extend(graph::loop_note(original.graph()));
    anatomy.notes = notes;
    Ok(anatomy)
}

/// Tokens that are told of each value.
const LARGEST_TOKENS: usize = 3;

/// Statistics of the value of every site, over all rows, and its largest tokens.
fn measured(
    seen: &Inspection,
    data: &Dataset,
    engine: &dyn Engine,
    options: &Options,
    progress: &dyn Progress,
) -> Result<(Statistics, Tokens), Error> {
    let view = seen.model.view();
    let name = |site: &crate::site::Site| view.name(site.value).to_owned();
    let values: Vec<String> = seen.sites.iter().map(name).collect();
    let transposed = seen.sites.iter().filter(|site| {
        let mut linears = site.linears.iter().map(|&l| &seen.found.linears[l]);
        linears.any(|l| !l.channels_last())
    });
    let options = StatOptions {
        sample_tokens: options.sample_tokens,
        sizes_only: Default::default(),
        seed: options.seed,
        threads: options.threads,
        channels_first: transposed.map(name).collect(),
        extremes_only: Default::default(),
    };
    let batches = data.all();
    let (model, count) = (seen.model.as_model(), LARGEST_TOKENS);
    let (statistics, largest) =
        statistics_and_tokens(engine, model, &batches, &values, &options, count, progress)?;
    let all = largest.values().flatten();
    let places = all
        .filter_map(|token| Some((token.row, token.place?)))
        .collect();
    let ids = token_ids(&view, &batches, &places)?;
    Ok((statistics, Tokens { largest, ids }))
}

fn without_shapes(error: &dyn std::fmt::Display) -> String {
    // What follows its first line is a table for those who give data.
    let error = error.to_string();
    let error = error.lines().next().unwrap_or_default();
    format!("the model was not run, so that sinks behind reshapes are not found: {error}")
}

/// What can be recognised in the graph alone.
fn without_running(original: &Model, options: &Options) -> Inspection {
    let mut model = FlatModel::of(original.clone());
    if model.edit(|m| inline(m, &|_| true)).is_err() {
        model = FlatModel::of(original.clone());
    }
    let view = model.view();
    let found = recognise(&view);
    let sites = find_sites(&view, &found, &BTreeMap::new(), options.extra_nodes);
    drop(view);
    Inspection {
        model,
        found,
        sites,
        closed: Vec::new(),
    }
}
