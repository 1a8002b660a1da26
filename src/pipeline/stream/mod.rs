//! Block by block: a model as large as the disk, in the memory of a few blocks.
//!
//! ```text
//! whole model ─ blocks ─▶ part 1 ─ run ─▶ part 1', plain 1 ─ save ─┐
//!                           │ x₁, x₁', x₁'' on the disk             ├─ assemble ─▶ whole model'
//!                         part 2 ─ run ─▶ part 2', plain 2 ─ save ─┘
//! ```
//!
//! The graph is cut where few values live ([`blocks`]). Every part is a model of its own ([`part`]), whose inputs are what the
//! part before it computed on all calibration rows, in float; [`super::run_job`] does with it what it does with any model, the
//! check of the float model and the comparison with plain min-max included, at the outputs of the part. Three streams of the
//! held-out rows go along, float, quantized and plain: the last part tells how the whole model does. Only one part is in memory;
//! what is done waits in a work folder ([`work`]), from which an interrupted run goes on.
//!
//! What a run over the whole model can and this cannot: it judges at the end of a part and not at the end of the model, decides
//! about each part by itself, and knows no metric of the whole before the end. So `--min-sqnr` is asked of the result, and a
//! budget for float is one for each part.

mod account;
mod assemble;
mod blocks;
mod part;
mod saved;
mod work;

use std::path::Path;

use super::job::Clock;
use super::prepare::Changes;
use super::{Job, Ran, run_job, verdict};
use crate::calibrate::{
    Batch, Dataset, Engine, OutputComparison, RowStore, Statistics, StoredValues, Stream, judged,
    run_streams, shapes, with_threads,
};
use crate::error::Error;
use crate::graph;
use crate::onnx::Model;
use crate::options::{Format, Options};
use crate::progress::{NoProgress, Progress};
use crate::review::Report;
use crate::solve::Method;

use account::{Account, Verdict};
use assemble::{Outcome, assemble};
use blocks::{Block, Sizes};
use part::{Part, Types};
pub use work::WorkFolder;
use work::{Boundary, Done, Kept};

/// Bytes of the weights of a part in float32, at most, if one block has not more and nothing else is asked for.
const PART_BYTES: u64 = 512 << 20;

/// How many times the bytes of its weights in float32 a part needs while it is worked on, about.
const TIMES: u64 = 8;

/// The sizes of parts that `memory` has room for.
fn part_sizes(memory: Option<u64>) -> Sizes {
    Sizes {
        most: memory.map_or(PART_BYTES, |bytes| bytes / TIMES),
        pairs: memory.is_none(),
    }
}

/// How a model is to be streamed.
#[derive(Clone, Copy, Debug)]
pub struct Streaming<'a> {
    /// Where finished parts wait.
    pub work: &'a WorkFolder,
    /// Bytes of memory that the run should stay below, about; parts are smaller for it. `None` for parts of the usual size.
    pub memory: Option<u64>,
    /// Statistics of the whole model, if there are any: see [`super::stats`].
    pub known: Option<&'a Statistics>,
}

/// Why a model cannot be streamed, in words; `None` if it can.
pub fn cannot_stream(original: &Model) -> Option<String> {
    blocks::find(original, part_sizes(None)).err()
}

/// What a run over the whole model would need in memory, in bytes, about: the weights in float32, and three copies of them.
pub fn whole_model_bytes(original: &Model) -> u64 {
    4 * blocks::weight_bytes(original)
}

/// What a run block by block stores in its work folder at the very least, in bytes, besides the parts of the result: the values
/// before and behind the part that it works on, on all rows, in float32.
pub fn stored_bytes(original: &Model, data: &Dataset) -> u64 {
    2 * size_of::<f32>() as u64 * data.tokens() * blocks::least_width(original)
}

/// [`run`](super::run), block by block.
///
/// The parts of the result are files in the work folder: save the model before the folder goes.
///
/// # Errors
/// Those of [`run`](super::run); [`Error::Streaming`] if the model cannot be cut.
pub fn run_streaming(
    original: &Model,
    data: &Dataset,
    engine: &dyn Engine,
    options: &Options,
    streaming: Streaming,
    progress: &dyn Progress,
) -> Result<(Model, Report), Error> {
    options.validate()?;
    graph::check(original)?;
    with_threads(options.threads, || {
        let clock = Clock::start();
        let (whole, changes) = prepared(&Job {
            original,
            engine,
            options,
            progress,
            clock: &clock,
            known: None,
            evaluation: None,
        })?;
        clock.finish("recognise");
        let sizes = part_sizes(streaming.memory);
        let blocks = blocks::find(&whole, sizes).map_err(|reason| Error::Streaming { reason })?;
        let run = Run {
            whole: &whole,
            types: Types::of(&whole),
            data,
            engine,
            options,
            progress,
            work: streaming.work,
            known: streaming.known,
        };
        let done = run.all(&blocks, &clock)?;
        if done.iter().all(|done| done.report.is_none()) {
            return Err(Error::NothingToQuantize(
                "no part of the model has a Linear that can be quantized".to_owned(),
            ));
        }
        let verdict = run.verdict(&done);
        verdict.check(options, &done)?;
        let model = assemble(&whole, run.results(&done, verdict.plain)?)?;
        clock.finish("assemble");
        let account = Account {
            engine,
            options,
            data,
            original,
            changes: &changes,
            done: &done,
            verdict: &verdict,
        };
        let report = account.report(&model, &clock)?;
        Ok((model, report))
    })?
}

/// The whole model as it is before it is cut: what was asked for by `clean` and `fold_sizes` done, functions that hold Linears
/// opened, at the operator set that the result needs.
fn prepared(job: &Job) -> Result<(Model, Changes), Error> {
    let mut changes = Changes::default();
    let model = super::prepare::clean(job, &mut changes)?;
    let model = super::prepare::fold_sizes(job, model, &mut changes)?;
    let model = super::prepare::raise_opset(job, model, &mut changes)?;
    Ok((model.unflatten(), changes))
}

/// What all steps are given.
struct Run<'a> {
    whole: &'a Model,
    types: Types,
    data: &'a Dataset,
    engine: &'a dyn Engine,
    options: &'a Options,
    progress: &'a dyn Progress,
    work: &'a WorkFolder,
    known: Option<&'a Statistics>,
}

impl Run<'_> {
    /// Works on every part that is not done, one after the other.
    fn all(&self, blocks: &[Block], clock: &Clock) -> Result<Vec<Done>, Error> {
        let mut done: Vec<Done> = Vec::new();
        let mut before = Boundary::default();
        let mut at = 0;
        while at < blocks.len() {
            let name = format!("part {} of {}", at + 1, blocks.len());
            self.progress.begin(&name, 1);
            let finished = match self.work.finished(at)? {
                Some(finished) => finished,
                None => self.part(blocks, at, &before)?,
            };
            self.progress.advance(1);
            self.progress.end();
            clock.finish("parts");
            before = finished.boundary.clone();
            at = finished.next;
            done.push(finished);
        }
        Ok(done)
    }

    /// One part: from `at` to the next cut that has rows on the first axis of every value.
    fn part(&self, blocks: &[Block], at: usize, before: &Boundary) -> Result<Done, Error> {
        let folder = self.work.begin(at)?;
        let (part, float, next) = self.cut(blocks, at, before)?;
        let ran = self.work_on(&part, &float)?;
        let (ours, plain) = match &ran {
            Some(Ran { model, plain, .. }) => (model, plain.as_ref().unwrap_or(model)),
            None => (&part.model, &part.model),
        };
        let models = [&part.model, ours, plain];
        let (boundary, outputs) = self.streams(models, &part, before, &float, &folder)?;
        let kept = Kept {
            ours: ran.as_ref().map(|ran| &ran.model),
            plain: ran.as_ref().and_then(|ran| ran.plain.as_ref()),
        };
        let done = Done {
            at,
            next,
            nodes: part.nodes,
            borrowed: part.borrowed,
            has_plain: kept.plain.is_some(),
            report: ran.as_ref().map(|ran| ran.report.clone()),
            boundary,
            outputs,
        };
        self.work.finish(done, kept, before)
    }

    /// Does with a part what is done with any model; `None` if nothing of it can be quantized: another part may have something.
    fn work_on(&self, part: &Part, float: &Dataset) -> Result<Option<Ran>, Error> {
        let options = Options {
            min_sqnr_db: None,
            clean: false,
            fold_sizes: false,
            threads: 0,
            ..self.options.clone()
        };
        // What plans share is in memory as long as the engine is.
        let engine = self.engine.sharing();
        let job = Job {
            original: &part.model,
            engine: engine.as_ref(),
            options: &options,
            progress: &NoProgress,
            clock: &Clock::start(),
            known: self.known,
            evaluation: None,
        };
        match run_job(&job, float) {
            Ok(ran) => Ok(Some(ran)),
            Err(Error::NothingToQuantize(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The part as a model. A cut whose values have no row per row of the data, as `[rows · tokens, C]`, is passed over.
    fn cut(
        &self,
        blocks: &[Block],
        at: usize,
        before: &Boundary,
    ) -> Result<(Part, Dataset, usize), Error> {
        let mut next = at + 1;
        loop {
            let part = Part::new(self.whole, &self.types, &blocks[at..next], &before.float)
                .map_err(|reason| Error::Streaming { reason })?;
            let data = self.part_data(&part.model, &before.float)?;
            if next == blocks.len() || self.has_rows(&part, &data)? {
                return Ok((part, data, next));
            }
            next += 1;
        }
    }

    fn has_rows(&self, part: &Part, data: &Dataset) -> Result<bool, Error> {
        let Some(small) = data.small_batches().into_iter().next() else {
            return Ok(false);
        };
        let found = shapes(self.engine, &part.model, &small, &part.next)?;
        let rows = |name: &String| {
            let shape = found.get(name)?;
            Some(shape.len() > 1 && shape[0] == small.rows.len())
        };
        Ok(part.next.iter().all(|name| rows(name) == Some(true)))
    }

    fn part_data(&self, part: &Model, fed: &StoredValues) -> Result<Dataset, Error> {
        Ok(self
            .data
            .of_part(part, self.work.path(), &self.types.renamed(fed))?)
    }

    /// Runs float, quantized and plain on what each has of the values before; what they make is stored for the next part. How
    /// the second and the third differ from the first, at every output of the part.
    fn streams(
        &self,
        models: [&Model; 3],
        part: &Part,
        before: &Boundary,
        float: &Dataset,
        folder: &Path,
    ) -> Result<(Boundary, Vec<Vec<OutputComparison>>), Error> {
        let split = self.data.split();
        let names = &part.next;
        let store = |stem| RowStore::new(self.data, folder, stem, names);
        let stores = [store("float"), store("ours"), store("plain")];
        let keep =
            |stream: usize, batch: &Batch, outputs: &_| stores[stream].put(&batch.rows, outputs);
        let engine = self.engine.sharing();
        if split.held_out_used && !names.is_empty() {
            let rest = float.batches_like(&split.calibration);
            let alone = [Stream {
                model: models[0],
                batches: &rest,
            }];
            run_streams(engine.as_ref(), &alone, &keep, 0, &NoProgress)?;
        }
        let ours = self.part_data(models[0], &before.ours)?;
        let plain = self.part_data(models[0], &before.plain)?;
        let batches = [float, &ours, &plain].map(|data| data.batches_like(&split.held_out));
        let streams = [0, 1, 2].map(|i| Stream {
            model: models[i],
            batches: &batches[i],
        });
        // Where nothing is compared with plain, that would be ours once more.
        let streams = &streams[..if self.compares() { 3 } else { 2 }];
        let outputs = run_streams(engine.as_ref(), streams, &keep, 0, &NoProgress)?;
        let [float, ours, plain] = stores.map(|store| self.work.stored(folder, store.finish()));
        Ok((Boundary { float, ours, plain }, outputs))
    }

    /// Whether the result is compared with plain min-max quantization.
    fn compares(&self) -> bool {
        self.options.method != Method::None && self.options.format != Format::Float
    }

    /// How the whole model does: at its outputs, whichever part computes them.
    fn verdict(&self, done: &[Done]) -> Verdict {
        let outputs = self.whole.graph().output.iter();
        let of = |stream: usize| -> Vec<OutputComparison> {
            let found = |name: &str| {
                let mut all = done.iter().filter_map(|done| done.outputs.get(stream));
                all.find_map(|outputs| outputs.iter().find(|o| o.name == name))
                    .cloned()
            };
            outputs
                .clone()
                .filter_map(|output| found(output.name()))
                .collect()
        };
        let (ours, plain) = (of(0), of(1));
        let compares = self.compares();
        let (a, b) = (judged(ours.clone()), judged(plain.clone()));
        let worse = compares && (verdict::is_below(&a, &b) || !verdict::losses(&a, &b).is_empty());
        Verdict {
            plain: worse,
            compares,
            ours,
            of_plain: plain,
        }
    }

    /// The models that take the place of the parts.
    fn results<'d>(&self, done: &'d [Done], plain: bool) -> Result<Vec<Outcome<'d>>, Error> {
        let outcome = |done: &'d Done| {
            let model = self.work.result(done, plain).transpose()?;
            Some(model.map(|model| Outcome {
                nodes: &done.nodes,
                borrowed: &done.borrowed,
                model,
            }))
        };
        done.iter().filter_map(outcome).collect()
    }
}
