//! The whole job for a program: [`Quantizer`] is [`run`] with what most callers would give it.

use std::path::Path;

use regex::Regex;

use crate::calibrate::{CalibSource, Dataset, Engine, TractEngine};
use crate::onnx::{self, Model, SaveOptions, SaveSummary, SourceFiles};
use crate::prepare::Settings;
use crate::progress::{NoProgress, Progress};
use crate::review::{Provenance, Report};
use crate::solve::Method;
use crate::target::Target;
use crate::{AttentionMode, Error, Format, KeepFloat, Options, run};

/// Rows that are run at a time, at most.
const BATCH: usize = 8;

/// What is to be done to a model. Every setting has a default; the calibration data has none, and comes last.
///
/// ```
/// use onnx_osplus::target::Target;
/// use onnx_osplus::{Quantizer, onnx};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let out = folder.path().join("out.onnx");
/// let model = onnx::load("models/tiny/model.onnx")?;
/// let quantized = Quantizer::new(&model)
///     .target(Target::Ort)
///     .calibrate("models/tiny/calib.npz")?
///     .run()?;
/// let output = &quantized.report.outputs["last_hidden_state"];
/// assert!(output.sqnr_db > output.plain_sqnr_db);
/// quantized.save(&out)?;
/// # Ok(())
/// # }
/// ```
///
/// It runs the model with [`TractEngine`] and says nothing of its progress, unless it is told otherwise.
#[derive(Clone)]
pub struct Quantizer<'a> {
    model: &'a Model,
    options: Options,
    engine: &'a dyn Engine,
    progress: &'a dyn Progress,
    source: Option<&'a SourceFiles>,
    prepare: Settings,
}

impl<'a> Quantizer<'a> {
    /// The default settings, for `model`.
    pub fn new(model: &'a Model) -> Self {
        Quantizer {
            model,
            options: Options::default(),
            engine: &TractEngine,
            progress: &NoProgress,
            source: None,
            prepare: Settings::default(),
        }
    }

    /// All settings at once, in place of those that were given before.
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// The runtime that will load the result: [`Options::target`].
    pub fn target(mut self, target: Target) -> Self {
        self.options.target = target;
        self
    }

    /// What is written: [`Options::format`].
    pub fn format(mut self, format: Format) -> Self {
        self.options.format = format;
        self
    }

    /// How shift and scale are found: [`Options::method`].
    pub fn method(mut self, method: Method) -> Self {
        self.options.method = method;
        self
    }

    /// Bits of the weights and of the activations, 2 to 8: [`Options::weight_bits`], [`Options::activation_bits`].
    pub fn bits(mut self, weights: u8, activations: u8) -> Self {
        (self.options.weight_bits, self.options.activation_bits) = (weights, activations);
        self
    }

    /// Whether the products of attention are quantized: [`Options::attention`].
    pub fn attention(mut self, attention: AttentionMode) -> Self {
        self.options.attention = attention;
        self
    }

    /// Quantizes only the Linears whose node name matches: [`Options::include`].
    pub fn include(mut self, names: Regex) -> Self {
        self.options.include = Some(names);
        self
    }

    /// Leaves the Linears in float whose node name matches: [`Options::exclude`].
    pub fn exclude(mut self, names: Regex) -> Self {
        self.options.exclude = Some(names);
        self
    }

    /// Leaves at most so much in float, where that helps most: [`Options::keep_float`].
    pub fn keep_float(mut self, most: KeepFloat) -> Self {
        self.options.keep_float = Some(most);
        self
    }

    /// The SQNR that every output must have on held-out data, in dB: [`Options::min_sqnr_db`].
    pub fn min_sqnr_db(mut self, db: f64) -> Self {
        self.options.min_sqnr_db = Some(db);
        self
    }

    /// Parallel batches; 0, the default, for one per core: [`Options::threads`].
    pub fn threads(mut self, threads: usize) -> Self {
        self.options.threads = threads;
        self
    }

    /// What runs the model, in place of [`TractEngine`].
    pub fn engine(mut self, engine: &'a dyn Engine) -> Self {
        self.engine = engine;
        self
    }

    /// Who is told how far the work is.
    pub fn progress(mut self, progress: &'a dyn Progress) -> Self {
        self.progress = progress;
        self
    }

    /// The files that the model was loaded from ([`onnx::load_with_source`]). Their digests, that of the data and the
    /// settings are then written to the metadata of the result ([`Provenance`]), as the command line does, and a file that
    /// was changed meanwhile is an error.
    pub fn source(mut self, files: &'a SourceFiles) -> Self {
        self.source = Some(files);
        self
    }

    /// How text becomes inputs: tokenizer, columns, length, number of rows.
    pub fn prepare(mut self, settings: Settings) -> Self {
        self.prepare = settings;
        self
    }

    /// Opens calibration data: a `.npz` file whose arrays have the names of the model's inputs, a `.npy` file for a model
    /// with one input, a folder of such files, or a folder of ONNX test data; or text ([`Quantizer::prepare`]).
    ///
    /// # Errors
    /// Settings that contradict each other; data that does not suit the model.
    pub fn calibrate(self, path: impl AsRef<Path>) -> Result<CalibratedQuantizer<'a>, Error> {
        let path = path.as_ref().to_owned();
        self.calibrate_from(&[CalibSource { name: None, path }])
    }

    /// Opens calibration data of several files, each for one input or for all.
    ///
    /// # Errors
    /// Those of [`Quantizer::calibrate`].
    pub fn calibrate_from(self, sources: &[CalibSource]) -> Result<CalibratedQuantizer<'a>, Error> {
        self.options.validate()?;
        let data = Dataset::open_with(self.model, sources, BATCH, &self.prepare)?;
        Ok(CalibratedQuantizer {
            job: self,
            data: Data::Owned(Box::new(data)),
        })
    }

    /// Takes calibration data that is open already.
    pub fn calibrate_on(self, data: &'a Dataset) -> CalibratedQuantizer<'a> {
        CalibratedQuantizer {
            job: self,
            data: Data::Borrowed(data),
        }
    }
}

/// A [`Quantizer`] that has its data.
pub struct CalibratedQuantizer<'a> {
    job: Quantizer<'a>,
    data: Data<'a>,
}

enum Data<'a> {
    Owned(Box<Dataset>),
    Borrowed(&'a Dataset),
}

impl CalibratedQuantizer<'_> {
    /// The data, for [`verify`](crate::review::verify) or [`anatomy`](crate::anatomy).
    pub fn data(&self) -> &Dataset {
        match &self.data {
            Data::Owned(data) => data,
            Data::Borrowed(data) => data,
        }
    }

    /// Does the job: see [`run`].
    ///
    /// # Errors
    /// Those of [`run`]; a [source](Quantizer::source) that was changed while it was in use.
    pub fn run(&self) -> Result<Quantized, Error> {
        let Quantizer {
            model,
            options,
            engine,
            progress,
            source,
            ..
        } = &self.job;
        let data = self.data();
        let (mut result, report) = run(model, data, *engine, options, *progress)?;
        if let Some(files) = source {
            files.check_unchanged()?;
            let provenance = Provenance::new(&report, files.digests(), data.digest());
            provenance.write(&mut result);
        }
        Ok(Quantized {
            model: result,
            report,
        })
    }
}

/// What a [`Quantizer`] made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Quantized {
    /// The new model.
    pub model: Model,
    /// What was done to it, and how good it is.
    pub report: Report,
}

impl Quantized {
    /// Writes the model to a file that does not exist yet. [`onnx::save()`] has the choice.
    ///
    /// # Errors
    /// See [`SaveError`](onnx::SaveError).
    pub fn save(&self, path: impl AsRef<Path>) -> Result<SaveSummary, Error> {
        Ok(onnx::save(&self.model, path, &SaveOptions::default())?)
    }
}
