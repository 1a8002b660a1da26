//! The command line's arguments.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use onnx_osplus::calibrate::{CalibSource, MAX_THREADS};
use onnx_osplus::prepare::Settings;
use onnx_osplus::rewrite::WeightStorage;
use onnx_osplus::solve::Method;
use onnx_osplus::target::Target;
use onnx_osplus::{AttentionMode, Embeddings, KeepFloat, Options};
use regex::Regex;

use super::data::DataArguments;
use super::engine::EngineArguments;
use super::granularity::Granularities;
use super::labels::LabelArguments;
use super::streaming::StreamingName;

/// Quantizes an ONNX transformer to int8 after moving its outlier channels into constants (Outlier Suppression+).
///
/// Reads IN, runs it on the calibration data, folds a per-channel shift and scale into the constants before every
/// Linear (norms, V, up projections), inserts QuantizeLinear/DequantizeLinear at every Linear, checks the
/// result against the original on data that was held out, and writes OUT.
#[derive(Debug, Parser)]
#[command(
    name = "onnx-osplus",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 no Linear could be quantized.\n\n\
                  Example: onnx-osplus in.onnx out.onnx --calib data.npz --report report.json"
)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    quantize: Option<Arguments>,
}

/// What the user wants.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The main job, which is asked for without the name of a command.
    #[command(skip)]
    Quantize(Box<Arguments>),
    /// The main job for every model of a file of settings.
    #[command(skip)]
    Several(Vec<Arguments>),
    /// The settings in full, as such a file.
    #[command(skip)]
    PrintConfig(String),
    Inspect(super::inspect::Arguments),
    Text(super::text::Arguments),
    Verify(super::verify::Arguments),
    Lint(super::lint::Arguments),
    Diff(super::diff::Arguments),
    Dequantize(super::dequantize::Arguments),
    Stats(super::stats::Arguments),
    Completions(super::pages::Completions),
    Man(super::pages::Manual),
}

/// The arguments of the main job.
#[derive(Clone, Debug, Args)]
pub(crate) struct Arguments {
    /// The float model to read; or a folder as a hub has it, with model.onnx or onnx/model.onnx, tokenizer and configuration
    #[arg(value_name = "IN")]
    pub input: PathBuf,

    /// The model to write; for a folder the folder, which gets onnx/model_quantized.onnx and copies of the small files
    #[arg(value_name = "OUT")]
    pub output: PathBuf,

    /// Calibration data: a .npy file for the one input that is not filled in by itself (or NAME=FILE.npy), a .npz
    /// file whose array names are input names, a folder of such files, or a folder of ONNX test data (input_0.pb); or text,
    /// a line or a row of a table each: .txt, .jsonl, .csv, .tsv, .json, .parquet; or images (.png, .jpg, .webp, .bmp) or recordings
    /// (.wav), one by one or in a folder.
    /// May be given several times [example: --calib sentences.txt] [example: --calib data.npz] [example: --calib
    /// input_ids=ids.npy]
    #[arg(long, value_name = "[NAME=]PATH", required_unless_present = "stats")]
    pub calib: Vec<OsString>,

    #[command(flatten)]
    pub data: DataArguments,

    /// Rows with labels that judge the result and set no range, as for --calib; else those of --calib that are held out do
    /// [example: --eval validation.csv]
    #[arg(long, value_name = "[NAME=]PATH")]
    pub eval: Vec<OsString>,

    /// Rows of text, images or recordings of --eval to use, evenly spread [default: 1000] [example: --eval-samples 5000]
    #[arg(long, value_name = "N", value_parser = super::data::parse_count)]
    pub eval_samples: Option<usize>,

    #[command(flatten)]
    pub(crate) judging: LabelArguments,

    /// The runtime that will load OUT: ONNX Runtime (uint8 activations), TensorRT or OpenVINO (int8 activations, symmetric),
    /// or a form that all of them run [example: --target portable]
    #[arg(long, value_name = "TARGET", default_value = Target::Ort.profile().name, value_parser = targets())]
    target: Target,

    #[command(flatten)]
    granularities: Granularities,

    /// How shift and scale are found; smoothquant and none (plain min-max) are for comparison [example: --method none]
    #[arg(long, value_enum, default_value_t = MethodName::Osplus)]
    method: MethodName,

    /// Weights of 7 bits (±63) for x86 CPUs before VNNI (AVX2, AVX512), whose sums of 8-bit products saturate otherwise;
    /// without them it costs about 2 dB (MiniLM) [example: --reduce-range]
    #[arg(long)]
    reduce_range: bool,

    /// Write each weight as float32 before a QuantizeLinear and a DequantizeLinear, which give the very same integers, for
    /// toolchains that want weights so; the file is as large as the float32 model [example: --weights-as-float-qdq]
    #[arg(long)]
    weights_as_float_qdq: bool,

    /// Whether the products of attention (queries by keys, probabilities by values) are quantized too: where the target
    /// gains by it and the outputs allow it, never, or wherever they are found [example: --attention int8]
    #[arg(long, value_enum, default_value_t = AttentionName::Auto)]
    attention: AttentionName,

    /// Store embedding tables in 8 or 4 bits, with a scale for each row or for 32 elements of one, for a smaller file: where the
    /// target gathers such rows and no output loses half a dB [example: --embeddings int8]
    #[arg(long, value_enum, default_value_t = EmbeddingsName::Float)]
    embeddings: EmbeddingsName,

    /// Quantize only Linears whose node name matches [example: --include 'layer\.[0-5]\.']
    #[arg(long, value_name = "REGEX")]
    include: Option<Regex>,

    /// Leave Linears in float whose node name matches [example: --exclude 'lm_head|classifier']
    #[arg(long, value_name = "REGEX")]
    exclude: Option<Regex>,

    /// Leave at most so many Linears in float, or Linears with at most this part of all multiplications: those whose
    /// quantization costs most, measured, for the work they save [example: --keep-float 6] [example: --keep-float 20%]
    #[arg(long, value_name = "N|PERCENT%", value_parser = parse_keep_float)]
    keep_float: Option<KeepFloat>,

    /// Leave as few Linears in float as every output needs for this SQNR on data that was held out; fail if it is not
    /// reached [example: --min-sqnr 25]
    #[arg(long, value_name = "DB")]
    min_sqnr: Option<f64>,

    /// Fold scales into existing constants only: insert no Mul where none can be reached (after GELU or SiLU)
    /// [example: --no-extra-nodes]
    #[arg(long)]
    no_extra_nodes: bool,

    /// How much slower the result may be for rotations before its Linears, about: they spread outlier tokens over all
    /// channels, and go where they gain most for their time; 0 means none [default: 15, or 0 with --no-extra-nodes and
    /// --format float] [example: --max-slowdown 50]
    #[arg(long, value_name = "PERCENT", value_parser = super::granularity::parse_percent)]
    max_slowdown: Option<f64>,

    /// Remove what exporters leave behind and TensorRT rejects: Dropout in training mode, outputs, nodes and constants
    /// that nothing reads, sequences that are a Split [example: --clean]
    #[arg(long)]
    clean: bool,

    /// Leave in the graph what follows from sizes that the file fixes, such as the resizing of a table of positions; else
    /// they are stored, and runtimes compute it once [example: --no-fold-sizes]
    #[arg(long)]
    no_fold_sizes: bool,

    /// Most rows of calibration data to run at a time; of long sequences it is fewer [example: --batch 1]
    #[arg(long, value_name = "ROWS", default_value_t = 8, value_parser = parse_batch)]
    pub batch: usize,

    /// Batches to run in parallel; 0 means one per core [example: --threads 1]
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_threads)]
    threads: usize,

    #[command(flatten)]
    pub(super) engine: EngineArguments,

    /// Statistics of the calibration rows that `onnx-osplus stats` has taken of the same model and data: the files of all shards.
    /// They need not be measured again; --calib has the rows that judge, unless a file was taken --with-data [example: --stats part1.stats part2.stats]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(super) stats: Vec<PathBuf>,

    /// Work on the model block by block, in the memory of a few blocks, with what is done in the folder OUT.work until the
    /// end; auto does so if the whole model needs more memory than there is, or than --memory says [example: --streaming on]
    #[arg(long, value_enum, default_value_t = StreamingName::Auto)]
    pub(super) streaming: StreamingName,

    /// Memory to stay below, about; blocks are worked on in smaller parts for it [example: --memory 16GB]
    #[arg(long, value_name = "SIZE", value_parser = super::streaming::parse_bytes)]
    pub(super) memory: Option<u64>,

    /// Go on with a run block by block that was interrupted, from the folder OUT.work that it has left [example: --resume]
    #[arg(long)]
    pub(super) resume: bool,

    /// Seed of the choice of calibration tokens for the search [example: --seed 7]
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,

    /// Also write everything that was found and done, with the error of every Linear: a page to read if FILE ends in
    /// .html, JSON otherwise; may be given several times [example: --report report.html] [example: --report report.json]
    #[arg(long, value_name = "FILE")]
    pub report: Vec<PathBuf>,

    /// Leave the error of every Linear out of the reports; to measure it takes about as long as all the rest
    /// [example: --no-layers]
    #[arg(long)]
    pub no_layers: bool,

    /// How the models of a folder are named: what follows the name they had, or a whole name that ends in .onnx
    /// [default: quantized] [example: --name int8] [example: --name model_int8.onnx]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Write the weights to OUT.data beside OUT, as is done by itself from 2 GB on [example: --external-data]
    #[arg(long)]
    pub external_data: bool,

    /// Leave out of OUT's metadata what it was made from and how: version, settings, digests of IN and of the data
    /// [example: --no-metadata]
    #[arg(long)]
    pub no_metadata: bool,

    /// Read options from a TOML file, under the same names, IN and OUT as input and output, a [[model]] table for each of
    /// several models; what the command line says wins [example: --config osplus.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print all options with their values as such a file, and do nothing else [example: --print-config]
    #[arg(long)]
    pub(super) print_config: bool,

    /// Every option with its values, from the command line, the file or by default.
    #[arg(skip)]
    pub effective: std::collections::BTreeMap<String, Vec<String>>,

    /// Overwrite OUT and the reports if they exist [example: --force]
    #[arg(long)]
    pub force: bool,

    /// Print nothing but errors [example: -q]
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Also print every site, every Linear and every near miss with its reason [example: -v]
    #[arg(short, long)]
    pub verbose: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AttentionName {
    Auto,
    Float,
    Int8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EmbeddingsName {
    Float,
    Int8,
    Int4,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MethodName {
    Osplus,
    Smoothquant,
    None,
}

/// The names in the table of targets.
pub(super) fn targets() -> impl TypedValueParser<Value = Target> {
    PossibleValuesParser::new(Target::ALL.map(|target| target.profile().name))
        .try_map(|name| Target::named(&name).ok_or("no target of that name"))
}

pub(super) fn parse_batch(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1 row".to_owned()),
        Ok(rows) => Ok(rows),
        Err(error) => Err(format!("{error}")),
    }
}

/// More threads than any machine has cores are a slip, and each takes address space.
pub(super) fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if threads > MAX_THREADS => Err(format!("at most {MAX_THREADS} threads")),
        Ok(threads) => Ok(threads),
        Err(error) => Err(format!("{error}")),
    }
}

fn parse_keep_float(text: &str) -> Result<KeepFloat, String> {
    let wrong =
        || format!("`{text}` is neither a number of Linears nor a part of the work such as 20%");
    match text.strip_suffix('%') {
        None => text.parse().map(KeepFloat::Linears).map_err(|_| wrong()),
        Some(percent) => match percent.trim().parse::<f64>() {
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(KeepFloat::Work(percent / 100.0)),
            _ => Err(wrong()),
        },
    }
}

/// The parser of the command line, which knows all its options.
pub(super) fn command() -> clap::Command {
    CommandLine::command()
}

/// The command that was named, if one was.
pub(super) fn named(matches: &ArgMatches) -> Option<Command> {
    CommandLine::from_arg_matches(matches).ok()?.command
}

impl Arguments {
    /// The calibration data, each with the input it is for, if named.
    pub(crate) fn sources(&self) -> Vec<CalibSource> {
        self.calib.iter().map(|text| source(text)).collect()
    }

    /// Where the rows are: the data of --calib, else the files of --stats.
    pub(super) fn row_sources(&self) -> Vec<CalibSource> {
        let statistics = self.stats.iter().map(|path| source(path.as_os_str()));
        match self.calib.is_empty() {
            true => statistics.collect(),
            false => self.sources(),
        }
    }

    /// Batches to run in parallel.
    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// The data of --eval.
    pub(super) fn eval_sources(&self) -> Vec<CalibSource> {
        self.eval.iter().map(|text| source(text)).collect()
    }

    /// How text among them becomes inputs.
    pub(super) fn eval_settings(&self) -> Settings {
        let mut settings = self.data.judging(&self.input);
        settings.samples = self.eval_samples;
        settings
    }

    /// How text among the data becomes inputs.
    pub(crate) fn settings(&self) -> Settings {
        self.data.settings(&self.input)
    }

    /// Of the bytes of IN, as many as the result will have at the very least.
    pub(super) fn least_bytes(&self) -> impl Fn(u64) -> u64 {
        // float32 weights become a quarter at 8 bits, an eighth at 4; --clean may take anything away.
        let part = match () {
            () if self.clean => 0,
            () if self.granularities.is_float() => 16,
            () if self.granularities.weight_bits() > 4 => 7,
            () => 3,
        };
        move |bytes| bytes / 32 * part
    }

    /// What the library is asked for.
    pub(crate) fn options(&self) -> Options {
        let base = Options {
            target: self.target,
            method: match self.method {
                MethodName::Osplus => Method::OsPlus,
                MethodName::Smoothquant => Method::SmoothQuant { alpha: 0.5 },
                MethodName::None => Method::None,
            },
            reduce_range: self.reduce_range,
            weight_storage: match self.weights_as_float_qdq {
                true => WeightStorage::FloatQdq,
                false => WeightStorage::Integers,
            },
            attention: match self.attention {
                AttentionName::Auto => AttentionMode::Auto,
                AttentionName::Float => AttentionMode::Float,
                AttentionName::Int8 => AttentionMode::Int8,
            },
            embeddings: match self.embeddings {
                EmbeddingsName::Float => Embeddings::Float,
                EmbeddingsName::Int8 => Embeddings::Int8,
                EmbeddingsName::Int4 => Embeddings::Int4,
            },
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            keep_float: self.keep_float,
            min_sqnr_db: self.min_sqnr,
            threads: self.threads,
            seed: self.seed,
            extra_nodes: !self.no_extra_nodes,
            max_slowdown: self.max_slowdown,
            clean: self.clean,
            fold_sizes: !self.no_fold_sizes,
            ..Options::default()
        };
        self.granularities.over(base, self.target)
    }
}

/// `NAME=PATH` or `PATH`; a file that is really called that wins over the `=` in its name. The name of an input is UTF-8, as
/// all text in ONNX; a path need not be.
pub(super) fn source(text: &OsStr) -> CalibSource {
    match split_at_equals(text) {
        Some((name, path)) if !PathBuf::from(text).exists() && !name.is_empty() => CalibSource {
            name: Some(name),
            path,
        },
        _ => CalibSource {
            name: None,
            path: PathBuf::from(text),
        },
    }
}

#[cfg(unix)]
fn split_at_equals(text: &OsStr) -> Option<(String, PathBuf)> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|&byte| byte == b'=')?;
    let name = std::str::from_utf8(&bytes[..at]).ok()?;
    Some((name.to_owned(), OsStr::from_bytes(&bytes[at + 1..]).into()))
}

#[cfg(not(unix))]
fn split_at_equals(text: &OsStr) -> Option<(String, PathBuf)> {
    let (name, path) = text.to_str()?.split_once('=')?;
    Some((name.to_owned(), path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn every_option_has_an_example() {
        let main = CommandLine::command();
        for command in std::iter::once(&main).chain(main.get_subcommands()) {
            for argument in command.get_arguments().filter(|a| !a.is_positional()) {
                let help = argument.get_help().map(ToString::to_string);
                let help = help.unwrap_or_default();
                let id = argument.get_id().as_str();
                let built_in = matches!(id, "help" | "version");
                let of = command.get_name();
                assert!(built_in || help.contains("[example: "), "{of} {id}: {help}");
            }
        }
    }

    #[test]
    fn budgets_are_numbers_or_parts() {
        assert_eq!(parse_keep_float("6"), Ok(KeepFloat::Linears(6)));
        assert_eq!(parse_keep_float("12.5%"), Ok(KeepFloat::Work(0.125)));
        for wrong in ["", "-1", "1.5", "101%", "-1%", "x%", "%"] {
            assert!(parse_keep_float(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn named_and_unnamed_sources() {
        let named = CalibSource {
            name: Some("input_ids".to_owned()),
            path: PathBuf::from("a.npy"),
        };
        assert_eq!(source(OsStr::new("input_ids=a.npy")), named);
        assert_eq!(
            source(OsStr::new("a.npy")),
            CalibSource {
                name: None,
                path: PathBuf::from("a.npy")
            }
        );
    }
}
