//! The second value of a run: what data shows of the model.

use std::collections::{BTreeMap, BTreeSet};

use super::job::Job;
use super::judge::rows::Rows;
use super::prepare::Prepared;
use super::responses::{Responses, Sequences};
use super::sites::SiteRow;
use crate::calibrate::{
    Batch, ChannelStats, EngineError, GatheredStatistics, Keep, Kept, StatOptions, Statistics,
    gather, statistics_and,
};
use crate::error::Error;
use crate::options::Format;
use crate::recognise::{LinearForm, LinearId};
use crate::site::normed_stream;
use crate::solve::Method;

/// Tokens of a value and fold where weights are in groups, at most, and the bytes of all samples. With 384 tokens in place of
/// 2048 six layers of SmolLM2 have 0.9 dB less at 4 bits in groups of 32, and MiniLM-L6 0.4.
const SAMPLE_IN_GROUPS: usize = 2048;
const SAMPLE_BYTES: usize = 512 << 20;

/// A prepared model with the statistics of its sites; nothing in it changes from here on.
pub(crate) struct Calibrated {
    /// The rows of its sites have statistics and groups.
    pub prepared: Prepared,
    /// Extremes of x W of the Linears whose output may have to be quantized, for `Format::QOperator`.
    pub products: BTreeMap<LinearId, ChannelStats>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl Calibrated {
    /// Runs the calibration rows.
    ///
    /// # Errors
    /// What the engine refuses; that no Linear to quantize is left.
    pub(super) fn new(
        job: &Job,
        mut prepared: Prepared,
        rows: &Rows,
    ) -> Result<(Calibrated, Sequences), Error> {
        let products = match job.options.format {
            Format::QOperator => product_names(&prepared),
            Format::Qdq | Format::MatMulNBits | Format::Float => BTreeMap::new(),
        };
        let mut notes = Vec::new();
        let run = Run {
            job,
            prepared: &prepared,
            rows: &rows.calibration,
            products: &products,
            streams: &streams(job, &prepared),
        };
        let (mut statistics, sequences) = run.statistics(rows.sequences.clone(), &mut notes)?;
        for (site, stream) in run.streams {
            if let Some(sizes) = statistics.get(stream).cloned()
                && let Some(site) = statistics.get_mut(site)
            {
                site.weigh(&sizes);
            }
        }
        let of_product = |(l, name): (LinearId, String)| Some((l, statistics.get(&name)?.clone()));
        let products = products.into_iter().filter_map(of_product).collect();
        prepared.sites.observe(statistics);
        let Prepared {
            model,
            found,
            sites,
            skipped,
            ..
        } = &mut prepared;
        let silent = sites.join_shared(&model.view(), found, job.options.extra_nodes);
        for branch in silent {
            let name = &branch.branch;
            let why = format!("no calibration data takes the {name}, and no other has its weight");
            for &l in &branch.left {
                skipped[l].get_or_insert(why.clone());
            }
            notes.push(format!(
                "no calibration data takes the {name}: {} of its Linears take the decisions of those with the same \
                 weights, {} stay in float",
                branch.taken,
                branch.left.len()
            ));
        }
        prepared.check_any()?;
        job.clock.finish("calibrate");
        let calibrated = Calibrated {
            prepared,
            products,
            notes,
        };
        Ok((calibrated, sequences))
    }
}

/// The names of x W of the Linears whose output may have to be quantized. (A Gemm's output stays in float.)
fn product_names(prepared: &Prepared) -> BTreeMap<LinearId, String> {
    let view = prepared.model.view();
    let selected = prepared.sites.iter().flat_map(|(_, row)| &row.linears);
    let name = |&l: &LinearId| {
        let linear = &prepared.found.linears[l];
        let product = view.output(linear.node, 0);
        product
            .filter(|_| linear.form == LinearForm::MatMul)
            .map(|p| (l, view.name(p).to_owned()))
    };
    selected.filter_map(name).collect()
}

/// The values whose Linears write a stream that a norm reads, with the stream; by their names. None for the methods that do
/// not search.
fn streams(job: &Job, prepared: &Prepared) -> BTreeMap<String, String> {
    if job.options.method != Method::OsPlus {
        return BTreeMap::new();
    }
    let view = prepared.model.view();
    let stream = |(_, row): (_, &SiteRow)| {
        let stream = normed_stream(&view, &prepared.found, &row.linears)?;
        Some((row.name.clone(), view.name(stream).to_owned()))
    };
    prepared.sites.iter().filter_map(stream).collect()
}

/// One calibration run.
struct Run<'a> {
    job: &'a Job<'a>,
    prepared: &'a Prepared,
    rows: &'a [Batch],
    products: &'a BTreeMap<LinearId, String>,
    /// See [`streams`].
    streams: &'a BTreeMap<String, String>,
}

/// What [`super::stats`] gathers: the statistics of a part of the calibration batches.
///
/// # Errors
/// What the engine refuses.
pub(super) fn gathered(
    job: &Job,
    prepared: &Prepared,
    rows: &Rows,
    (part, parts): (usize, usize),
) -> Result<GatheredStatistics, Error> {
    let run = Run {
        job,
        prepared,
        rows: &rows.calibration,
        products: &product_names(prepared),
        streams: &streams(job, prepared),
    };
    let (values, options) = run.wanted();
    let model = prepared.model.as_model();
    let batches = (run.rows, part, parts);
    Ok(gather(
        job.engine,
        model,
        batches,
        &values,
        &options,
        job.progress,
    )?)
}

impl Run<'_> {
    /// Statistics of every value whose Linears are to be quantized; what the blocks read and give is kept on the way.
    fn statistics(
        &self,
        sequences: Option<Batch>,
        notes: &mut Vec<String>,
    ) -> Result<(Statistics, Sequences), Error> {
        let (values, options) = self.wanted();
        let kept = match self.job.options.method {
            Method::OsPlus => Responses::wanted(self.prepared),
            Method::SmoothQuant { .. } | Method::None => Vec::new(),
        };
        let keep = sequences.as_ref();
        let keep = keep.map(|batch| Keep::among(batch, self.rows, &kept));
        let (known, missing) = self.known(&values, &options);
        if missing.len() < values.len() && !missing.is_empty() {
            notes.push(format!(
                "the statistics that were given are of {} of {} values; those of the others were measured",
                known.len(),
                values.len()
            ));
        }
        let run = |keep: Option<Keep>| -> Result<(Statistics, Kept), EngineError> {
            let (engine, model) = (self.job.engine, self.prepared.model.as_model());
            let progress = self.job.progress;
            if missing.is_empty() {
                let kept = keep.map_or(Ok(Kept::new()), |keep| keep.capture(engine, model))?;
                return Ok((known.clone(), kept));
            }
            let (mut all, kept) =
                statistics_and(engine, model, self.rows, &missing, &options, keep, progress)?;
            all.extend(known.clone());
            Ok((all, kept))
        };
        let (statistics, kept) = match run(keep) {
            Err(error) if !kept.is_empty() => {
                // What only the loss needs must not stop a run.
                let (statistics, _) = run(None)?;
                notes.push(format!(
                    "the loss is that of the Linears' outputs everywhere: {error}"
                ));
                (statistics, Kept::new())
            }
            result => result?,
        };
        let batch = sequences.filter(|_| !kept.is_empty());
        Ok((statistics, Sequences { batch, kept }))
    }

    /// Those of the values whose statistics were given, taken as they would be here, and those that are to be measured.
    fn known(&self, values: &[String], options: &StatOptions) -> (Statistics, Vec<String>) {
        let Some(given) = self.job.known else {
            return (Statistics::new(), values.to_vec());
        };
        let fits = |name: &String| {
            given
                .get(name)
                .filter(|stats| options.could_give(name, stats))
        };
        let (known, missing): (Vec<&String>, Vec<&String>) =
            values.iter().partition(|name| fits(name).is_some());
        let known = known
            .into_iter()
            .filter_map(|name| Some((name.clone(), fits(name)?.clone())));
        (known.collect(), missing.into_iter().cloned().collect())
    }

    /// Tokens of a value and fold. Weights of few bits are rounded the better the more tokens say how; all samples together have
    /// their limit.
    fn sample_tokens(&self) -> usize {
        let options = self.job.options;
        if options.group().is_none() {
            return options.sample_tokens;
        }
        let found = &self.prepared.found;
        let channels = self.prepared.sites.iter().filter_map(|(_, row)| {
            let mut linears = row.linears.iter();
            linears.next().map(|&l| found.linears[l].k)
        });
        let token = channels.sum::<usize>() * size_of::<f32>() * 2;
        let affordable = SAMPLE_BYTES / token.max(1);
        affordable.min(SAMPLE_IN_GROUPS).max(options.sample_tokens)
    }

    /// The values to be measured, and how.
    fn wanted(&self) -> (Vec<String>, StatOptions) {
        let sites = self.prepared.sites.iter();
        let sites = sites.filter(|(_, row)| !row.linears.is_empty());
        let mut values: Vec<String> = sites.clone().map(|(_, row)| row.name.clone()).collect();
        let products = self.products.values().filter(|v| !values.contains(v));
        let extremes_only: BTreeSet<String> = products.cloned().collect();
        values.extend(extremes_only.iter().cloned());
        let streams = self.streams.values().filter(|s| !values.contains(s));
        let sizes_only: BTreeSet<String> = streams.cloned().collect();
        values.extend(sizes_only.iter().cloned());
        let found = &self.prepared.found;
        let transposed = sites.filter(|(_, row)| row.selected(found).any(|l| !l.channels_last()));
        let options = self.job.options;
        let options = StatOptions {
            sample_tokens: self.sample_tokens(),
            seed: options.seed,
            threads: options.threads,
            channels_first: transposed.map(|(_, row)| row.name.clone()).collect(),
            extremes_only,
            sizes_only,
        };
        (values, options)
    }
}
