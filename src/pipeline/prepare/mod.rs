//! The first value of a run: the model in the form that is recognised, and what was found in it.

mod changes;
mod inline;
mod products;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use oxc_index::IndexVec;

use super::job::Job;
use super::judge::rows::Rows;
use super::sites::{SiteId, SiteTable};
use crate::calibrate::{Batch, Dataset, EngineError, shapes};
use crate::error::Error;
use crate::graph::branches::FlatModel;
use crate::graph::opset::OpsetError;
use crate::graph::{self, Names, NodeId, Use, ValueId, View, opset};
use crate::onnx::Model;
use crate::options::{Format, Options};
use crate::recognise::{Linear, LinearId, Recognised, recognise};
use crate::rewrite;
use crate::site::{Sink, find_sites, wanted_shapes};
use crate::target::MIN_OPSET;
use crate::target::pool::Pools;
pub(super) use changes::Changes;
pub(super) use products::{any_candidate, restore};

/// Why a Linear is left in float that no input of the model reaches, as one over an embedding of relative positions.
const COMPUTED_ONCE: &str =
    "its input is the same in every run, so runtimes compute it once, when they load the model";

/// What a run works on.
pub(crate) struct Prepared {
    /// Raised to [`MIN_OPSET`], or what blocks need, functions and operators that hold Linears opened, branches in the list.
    pub model: FlatModel,
    /// Norms, Linears and near misses of `model`.
    pub found: Recognised,
    /// The values that Linears read.
    pub sites: SiteTable,
    /// Why a Linear cannot be quantized; `None` if it can.
    pub skipped: IndexVec<LinearId, Option<String>>,
    /// What was done to the graph to get here, and what could not be.
    pub changes: Changes,
}

impl Prepared {
    /// The model ready to be recognised and what is found in it: norms, Linears and sites, and which Linears are to be
    /// quantized. `small` are two rows of the data, by whose shapes sinks are traced.
    ///
    /// # Errors
    /// Options that do not go together; an operator set that cannot be raised; no Linear to quantize; NaN or infinity in a
    /// constant of one that is, or of the norm before it; what the engine refuses.
    pub(super) fn new(job: &Job, small: &[Batch]) -> Result<Prepared, Error> {
        job.options.validate()?;
        graph::check(job.original)?;
        let mut changes = Changes::default();
        let model = clean(job, &mut changes)?;
        let model = fold_sizes(job, model, &mut changes)?;
        let model = raise_opset(job, model, &mut changes)?;
        let model = take_apart(job, model, &mut changes)?;
        let model = products::store_weights(job, model, &mut changes)?;
        let model = products::to_matmul(job, model, small, &mut changes)?;
        let prepared = recognise_all(job, model, small, changes)?;
        job.clock.finish("recognise");
        Ok(prepared)
    }

    /// The same with the rows that the model runs: `data`, or if it fails on two rows at once, these one by one.
    ///
    /// # Errors
    /// As [`Prepared::new`], of the first try.
    pub(super) fn with_rows<'a>(
        job: &Job,
        data: &'a Dataset,
    ) -> Result<(Prepared, Rows, Cow<'a, Dataset>), Error> {
        let rows = Rows::of(data, job.options);
        let error = match Prepared::new(job, &rows.small) {
            Ok(prepared) => return Ok((prepared, rows, Cow::Borrowed(data))),
            Err(error) => error,
        };
        let engine = matches!(
            error,
            Error::Engine(EngineError::Plan { .. } | EngineError::Run { .. })
        );
        let Some(single) = data.one_by_one().filter(|_| engine) else {
            return Err(error);
        };
        let rows = Rows::of(&single, job.options);
        let prepared = Prepared::new(job, &rows.small).map_err(|_| error)?;
        Ok((prepared, rows, Cow::Owned(single)))
    }

    /// For each site the graph outputs, by their numbers, that depend on its Linears.
    pub(super) fn reaches(&self) -> IndexVec<SiteId, BTreeSet<usize>> {
        let view = self.model.view();
        let reach = |(_, row): (SiteId, &super::sites::SiteRow)| {
            let linears = row.site.linears.iter();
            reachable(&view, linears.map(|&l| self.found.linears[l].node))
        };
        self.sites.iter().map(reach).collect()
    }

    /// Refuses to go on without a Linear to quantize.
    pub(super) fn check_any(&self) -> Result<(), Error> {
        if self.skipped.iter().all(Option::is_some) {
            return Err(Error::NothingToQuantize(self.nothing_because()));
        }
        Ok(())
    }

    /// NaN and infinity are looked for here, before the model is run: there they would appear somewhere downstream,
    /// under the name of a value that no one can trace.
    fn check_constants(&self) -> Result<(), Error> {
        let view = &self.model.view();
        for (_, row) in self.sites.iter().filter(|(_, row)| !row.linears.is_empty()) {
            if let Sink::Norm(norm) = row.site.sink {
                let norm = &self.found.norms[norm];
                check_finite(view, norm.gamma.value)?;
                norm.beta.map_or(Ok(()), |b| check_finite(view, b.value))?;
            }
            for linear in row.selected(&self.found) {
                check_finite(view, linear.weight)?;
                let bias = linear.bias;
                bias.map_or(Ok(()), |b| check_finite(view, b.value))?;
            }
        }
        Ok(())
    }

    fn nothing_because(&self) -> String {
        let skipped = self.found.linears.iter().zip(&self.skipped);
        let skipped = skipped.filter_map(|(l, r)| Some(format!("{}: {}", l.name, r.as_ref()?)));
        nothing_because(skipped, &self.found)
    }
}

/// Why there is no Linear to quantize, in words.
pub(super) fn nothing_because(skipped: impl Iterator<Item = String>, found: &Recognised) -> String {
    let misses = found.near_misses.iter();
    let misses = misses.map(|m| format!("{}: {}", m.name, m.reason));
    let reasons: Vec<String> = skipped.chain(misses).collect();
    match reasons.len() {
        0 => "the graph has no MatMul or Gemm with a constant weight".to_owned(),
        n if n > 3 => format!("{} (and {} more)", reasons[..3].join("; "), n - 3),
        _ => reasons.join("; "),
    }
}

/// The numbers of the graph outputs that depend on some nodes.
fn reachable(view: &View, nodes: impl Iterator<Item = NodeId>) -> BTreeSet<usize> {
    let mut outputs = BTreeSet::new();
    let mut stack: Vec<NodeId> = nodes.collect();
    let mut seen: BTreeSet<NodeId> = stack.iter().copied().collect();
    while let Some(node) = stack.pop() {
        let values = (0..view.node(node).output.len()).filter_map(|slot| view.output(node, slot));
        for reader in values.flat_map(|value| view.uses(value)) {
            match *reader {
                Use::GraphOutput(output) => _ = outputs.insert(output),
                Use::Node { node, .. } | Use::Captured { node } => {
                    if seen.insert(node) {
                        stack.push(node);
                    }
                }
            }
        }
    }
    outputs
}

/// Removes what exporters leave behind and a runtime rejects, if that was asked for.
pub(super) fn clean(job: &Job, changes: &mut Changes) -> Result<Model, Error> {
    let mut model = job.original.clone();
    if !job.options.clean {
        return Ok(model);
    }
    let view = View::new(job.original);
    let patches = rewrite::clean(&view, &mut Names::new(job.original));
    let reasons = patches.iter().map(|p| p.reason().to_owned());
    changes.cleaned = reasons.collect();
    graph::apply(&mut model, patches).map_err(rewrite::RewriteError::from)?;
    Ok(model)
}

/// Stores the sizes that let runtimes compute something once, unless that was refused.
pub(super) fn fold_sizes(
    job: &Job,
    mut model: Model,
    changes: &mut Changes,
) -> Result<Model, Error> {
    if !job.options.fold_sizes {
        return Ok(model);
    }
    let view = View::new(&model);
    let patches = rewrite::fold_sizes(&view, &mut Names::new(&model));
    let reasons = patches.iter().map(|p| p.reason().to_owned());
    changes.stored_sizes = reasons.collect();
    graph::apply(&mut model, patches).map_err(rewrite::RewriteError::from)?;
    Ok(model)
}

/// The operator set, and the IR version, that what will be written needs: per-axis DequantizeLinear or one with blocks.
fn needed(options: &Options) -> (i64, i64) {
    let blocks = options.group().is_some() && options.format == Format::Qdq;
    if blocks {
        rewrite::BLOCKS_OPSET
    } else {
        (MIN_OPSET, 0)
    }
}

/// The model at an operator set that has what will be written ([`needed`]), with every Linear and norm in the main graph: not in
/// a function, nor (in the flat form of the graph) in the branch of an If.
pub(super) fn raise_opset(
    job: &Job,
    model: Model,
    changes: &mut Changes,
) -> Result<FlatModel, Error> {
    let mut model = FlatModel::of(model);
    let hidden = inline::inline(&mut model, changes)?;
    let (opset, ir) = needed(job.options);
    let raised = model.edit(|m| {
        let raised = opset::raise(m, opset)?;
        graph::raise_ir(m, ir);
        Ok(raised)
    });
    let raised = raised.map_err(|error| cannot_be_raised(job, &model, error))?;
    if hidden && !raised.functions.is_empty() {
        // What stood in the way may have been the functions' older operator set.
        inline::inline(&mut model, changes)?;
    }
    changes.closed.extend(inline::undecided(&model.view()));
    let (before, opset) = (job.original.opset(), model.as_model().opset());
    changes.raised_from = (opset != before).then_some(before);
    let target = job.options.profile();
    if opset > target.newest_opset && job.options.format != Format::Float {
        changes.notes.push(format!(
            "opset {opset} is newer than {}, the newest with which this form was tried on {}: see that it loads",
            target.newest_opset, target.runtimes
        ));
    }
    Ok(model)
}

/// What is told of a model that cannot be raised, and whether another form of the weights would do.
fn cannot_be_raised(job: &Job, model: &FlatModel, error: OpsetError) -> Error {
    if opset::raise(&mut model.as_model().clone(), MIN_OPSET).is_err() {
        return Error::Opset(error);
    }
    Error::BlocksOpset {
        error,
        has_matmulnbits: job.options.profile().no_matmulnbits.is_none(),
    }
}

/// Frees the Linears that are inside of other operators, unless the user excludes these.
fn take_apart(job: &Job, mut model: FlatModel, changes: &mut Changes) -> Result<FlatModel, Error> {
    let wanted = |name: &str| job.options.refuses(name).is_none();
    let mut names = Names::new(model.as_model());
    let patches = rewrite::take_apart(&model.view(), &mut names, wanted)?;
    if !patches.is_empty() {
        changes.notes.push(format!(
            "{} operators of ONNX Runtime were taken apart, because a Linear inside of them cannot be quantized",
            patches.len()
        ));
    }
    model.apply(patches).map_err(rewrite::RewriteError::from)?;
    Ok(model)
}

/// Finds norms, Linears and sites, and which Linears are to be quantized.
fn recognise_all(
    job: &Job,
    model: FlatModel,
    small: &[Batch],
    changes: Changes,
) -> Result<Prepared, Error> {
    let view = model.view();
    let found = recognise(&view);
    let values = wanted_shapes(&view, &found);
    let mut shapes_of = BTreeMap::new();
    for batch in small.iter().filter(|_| !values.is_empty()) {
        let mut more = shapes(job.engine, model.as_model(), batch, &values)?;
        // The first batch that gives a shape decides.
        more.append(&mut shapes_of);
        shapes_of = more;
    }
    let mut sites = find_sites(&view, &found, &shapes_of, job.options.extra_nodes);
    let fixed = view.fixed_values();
    let pools = (!job.options.profile().pools_keep_channels).then(|| Pools::new(&view));
    let pools = pools.as_ref().filter(|_| job.options.format.quantizes());
    let reason = |linear: &Linear| match job.options.refuses(&linear.name) {
        None if fixed.contains(&linear.input) => Some(COMPUTED_ONCE.to_owned()),
        None if job.options.group().is_some() && job.options.group_of(linear.k).is_none() => {
            Some(no_group(linear.k))
        }
        None => scaled_pool(&view, pools?, linear),
        refused => refused.map(str::to_owned),
    };
    let mut skipped: IndexVec<LinearId, Option<String>> =
        found.linears.iter().map(reason).collect();
    for site in sites
        .iter_mut()
        .filter(|s| matches!(s.sink, Sink::Explicit(_)))
    {
        if let Some(pool) = pools.and_then(|pools| pools.behind(&view, site.value)) {
            let name = view.node_name(pool.node);
            site.sink = Sink::None(format!(
                "the target computes a Mul behind `{name}`, which keeps no axes, wrongly"
            ));
        }
    }
    let sites = SiteTable::new(&view, sites, &mut skipped);
    drop(view);
    let mut changes = changes;
    changes.notes.extend(smaller_groups(job, &found, &skipped));
    changes
        .notes
        .extend(graph::random_note(job.original.graph()));
    changes.notes.extend(graph::loop_note(job.original.graph()));
    let prepared = Prepared {
        model,
        found,
        sites,
        skipped,
        changes,
    };
    prepared.check_any()?;
    prepared.check_constants()?;
    Ok(prepared)
}

/// Which Linears have smaller groups than were asked for, one note a size.
fn smaller_groups(
    job: &Job,
    found: &Recognised,
    skipped: &IndexVec<LinearId, Option<String>>,
) -> Vec<String> {
    let Some(wanted) = job.options.group() else {
        return Vec::new();
    };
    let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
    for (linear, _) in found
        .linears
        .iter()
        .zip(skipped)
        .filter(|(_, s)| s.is_none())
    {
        if let Some(size) = job
            .options
            .group_of(linear.k)
            .filter(|size| *size != wanted)
        {
            *sizes.entry(size).or_default() += 1;
        }
    }
    let note = |(size, count): (&usize, &usize)| {
        format!(
            "{count} Linears have weights in groups of {size}: {wanted} does not divide their input channels"
        )
    };
    sizes.iter().map(note).collect()
}

/// Why a Linear stays in float whose input channels fall into no groups.
fn no_group(k: usize) -> String {
    format!(
        "its {k} input channels are no multiple of 16, and the target needs groups of equal size"
    )
}

/// Why a Linear behind a pool stays in float where the target would compute it wrongly.
fn scaled_pool(view: &View, pools: &Pools, linear: &Linear) -> Option<String> {
    let pool = pools.behind(view, linear.input)?;
    let scaled = pool.scaled?;
    Some(format!(
        "in integers the target computes it wrongly, because `{}` scales every channel at `{}`, which keeps no axes (lint rule \
         O6-pool)",
        view.node_name(scaled),
        view.node_name(pool.node)
    ))
}

fn check_finite(view: &View, value: ValueId) -> Result<(), Error> {
    let constant = view.constant(value).and_then(|c| c.into_float());
    let Some((array, _)) = constant else {
        return Ok(());
    };
    // Without a way out in the middle this is vectorised; few models are damaged.
    let finite = |numbers: &[f32]| numbers.iter().fold(true, |all, x| all & x.is_finite());
    if array.as_slice_memory_order().is_some_and(finite) {
        return Ok(());
    }
    let bad = array.iter().position(|x| !x.is_finite());
    bad.map_or(Ok(()), |at| {
        Err(Error::NotFinite {
            constant: view.name(value).to_owned(),
            at,
            value: array.iter().nth(at).copied().unwrap_or(f32::NAN),
        })
    })
}
