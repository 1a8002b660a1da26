//! `onnx-osplus inspect`: what the tool sees in a model.

use onnx_osplus::onnx::op;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, value_parser};
use onnx_osplus::Options;
use onnx_osplus::calibrate::Dataset;
use onnx_osplus::onnx;
use onnx_osplus::progress::Progress;
use onnx_osplus::review::{Anatomy, PROVENANCE, SiteFacts};
use onnx_osplus::target::Target;

use super::arguments::{parse_batch, parse_threads, source, targets};
use super::data::DataArguments;
use super::engine::EngineArguments;
use super::figures::{counted, token_row};
use super::files::Files;
use super::form::{long_form, short_form};
use super::progress::Terminal;
use super::shown::Lines;
use super::table;

/// Rows of a table without -v.
const SHOWN: usize = 10;

/// From so many times the median token on a token sticks out.
const OUTLIER_TOKEN: f32 = 2.0;

/// Show what this tool sees in a model: architecture, Linears, sites, near misses, what is quantized already
///
/// With calibration data also which channels and tokens of each site stick out, and what plain min-max quantization of the site would
/// do to the outputs of its Linears, worst first.
#[derive(Debug, Args)]
#[command(after_help = "Example: onnx-osplus inspect model.onnx --calib data.npz")]
pub(crate) struct Arguments {
    /// The model to look at
    #[arg(value_name = "MODEL")]
    model: PathBuf,

    /// Calibration data, as for the main job; without it, zeros of the stated shapes are run, which shows sites but not
    /// outliers [example: --calib data.npz] [example: --calib input_ids=ids.npy]
    #[arg(long, value_name = "[NAME=]PATH")]
    calib: Vec<OsString>,

    #[command(flatten)]
    data: DataArguments,

    #[command(flatten)]
    engine: EngineArguments,

    /// The runtime whose way of quantizing the damage is computed for [example: --target portable]
    #[arg(long, value_name = "TARGET", default_value = Target::Ort.profile().name, value_parser = targets())]
    target: Target,

    /// Bits of the weights for the damage, 2 to 8 [example: --weight-bits 6]
    #[arg(long, value_name = "BITS", default_value_t = 8, value_parser = value_parser!(u8).range(2..=8))]
    weight_bits: u8,

    /// Bits of the activations for the damage, 2 to 8 [example: --activation-bits 6]
    #[arg(long, value_name = "BITS", default_value_t = 8, value_parser = value_parser!(u8).range(2..=8))]
    activation_bits: u8,

    /// Also write everything as JSON, to a file or with - to the standard output in place of the text
    /// [example: --json model.json]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Overwrite the file of --json if it exists [example: --force]
    #[arg(long)]
    force: bool,

    /// Rows of calibration data to run at a time [example: --batch 1]
    #[arg(long, value_name = "ROWS", default_value_t = 8, value_parser = parse_batch)]
    batch: usize,

    /// Batches to run in parallel; 0 means one per core [example: --threads 1]
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_threads)]
    threads: usize,

    /// Print every site, Linear and near miss [example: -v]
    #[arg(short, long)]
    verbose: bool,
}

/// Looks at the model and prints what there is.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let anatomy = look(arguments, &Terminal::new(false))?;
    if !super::write_json(arguments.json.as_deref(), arguments.force, &anatomy)? {
        let (model, width) = (&arguments.model, table::width());
        super::print(&text(&anatomy, model, arguments.verbose, width));
    }
    Ok(ExitCode::SUCCESS)
}

/// What is seen in the model.
pub(crate) fn look(arguments: &Arguments, progress: &dyn Progress) -> Result<Anatomy> {
    let sources: Vec<_> = arguments.calib.iter().map(|text| source(text)).collect();
    let mut files = Files::default();
    files.reads_model("MODEL", &arguments.model);
    let settings = arguments.data.settings(&arguments.model);
    files.reads_data(&sources, &settings);
    super::begin(&mut files, arguments.json.as_deref(), arguments.force)?;
    let (model, source) = onnx::load_with_source(&arguments.model)?;
    let open = || Dataset::open_with(&model, &sources, arguments.batch, &settings);
    let data = (!sources.is_empty()).then(open).transpose()?;
    let digest = data.as_ref().map(Dataset::digest);
    let options = Options {
        target: arguments.target,
        weight_bits: arguments.weight_bits,
        activation_bits: arguments.activation_bits,
        threads: arguments.threads,
        ..Options::default()
    };
    let engine = arguments.engine.engine()?;
    let anatomy = onnx_osplus::anatomy(&model, data.as_ref(), engine.as_ref(), &options, progress)?;
    if let (Some(data), Some(digest)) = (&data, &digest) {
        super::check_data(data, digest, &sources)?;
    }
    source.check_unchanged()?;
    Ok(anatomy)
}

fn text(anatomy: &Anatomy, path: &Path, verbose: bool, width: Option<usize>) -> String {
    let mut page = Page {
        out: Lines::default(),
        width,
        shown: if verbose { usize::MAX } else { SHOWN },
    };
    page.model(anatomy, path);
    page.architecture(anatomy);
    page.quantized(anatomy, verbose);
    page.rotations(anatomy, verbose);
    page.sites(anatomy, verbose);
    page.linears(anatomy, verbose);
    page.work(anatomy);
    page.near_misses(anatomy);
    page.out.text()
}

struct Page {
    out: Lines,
    width: Option<usize>,
    shown: usize,
}

impl Page {
    /// A line `what       text`, wrapped.
    fn item(&mut self, what: &str, text: &str) {
        let line = format!("{what:<11}{text}");
        // Writing to a String cannot fail.
        let _ = self.out.wrapped(&line, 11, self.width);
    }

    /// A line that ends with a name, shortened.
    fn named(&mut self, before: &str, name: &str, after: &str) {
        let _ = self.out.named(before, name, after, self.width);
    }

    fn more(&mut self, all: usize) {
        if all > self.shown {
            let _ = writeln!(self.out, "  {} more; -v shows all", all - self.shown);
        }
    }

    fn model(&mut self, anatomy: &Anatomy, path: &Path) {
        let model = &anatomy.model;
        let opsets = model
            .opsets
            .iter()
            .map(|(domain, version)| match domain.as_str() {
                "" | "ai.onnx" => format!("opset {version}"),
                domain => format!("{domain} {version}"),
            });
        let opsets: Vec<String> = opsets.collect();
        let size = std::fs::metadata(path).map_or(0, |m| m.len());
        let file = format!(
            "{}, {:.1} MB, IR {}, {}{}",
            path.display(),
            size as f64 / 1e6,
            model.ir_version,
            opsets.join(", "),
            match model.producer.as_str() {
                "" => String::new(),
                producer => format!(", by {producer}"),
            }
        );
        self.item("model", &file);
        for input in &model.inputs {
            self.item("  input", input);
        }
        for output in &model.outputs {
            self.item("  output", output);
        }
        let types = model
            .weight_bytes
            .iter()
            .filter(|(_, bytes)| *bytes > 0)
            .take(4);
        let types: Vec<String> = types
            .map(|(dtype, bytes)| format!("{:.1} MB {dtype}", *bytes as f64 / 1e6))
            .collect();
        self.item(
            "weights",
            &format!(
                "{} elements: {}",
                counted(model.parameters),
                types.join(", ")
            ),
        );
        let operators = model
            .operators
            .iter()
            .take(8)
            .map(|(op, n)| format!("{op} {n}"));
        let operators = operators.collect::<Vec<_>>().join(", ");
        self.item("nodes", &format!("{}: {operators}", model.nodes));
        for (key, value) in &anatomy.provenance {
            let key = key.strip_prefix(PROVENANCE).unwrap_or(key);
            self.item("made by", &format!("onnx-osplus, {key}: {value}"));
        }
        for note in &anatomy.notes {
            self.item("note", note);
        }
    }

    fn architecture(&mut self, anatomy: &Anatomy) {
        let seen = &anatomy.architecture;
        let mut parts: Vec<String> = Vec::new();
        let blocks = seen.blocks.iter();
        parts.extend(blocks.map(|b| format!("{} × {} ({} Linears)", b.count, b.name, b.linears)));
        parts.extend(seen.norms.iter().map(|(kind, n)| format!("{n} {kind}")));
        if seen.attentions > 0 {
            parts.push(format!("{} attentions", seen.attentions));
        }
        parts.extend(seen.hidden.map(|n| format!("hidden {n}")));
        parts.extend(seen.heads.map(|n| format!("heads {n}")));
        if !parts.is_empty() {
            self.item("blocks", &parts.join(", "));
        }
    }

    fn quantized(&mut self, anatomy: &Anatomy, verbose: bool) {
        let found = &anatomy.quantized;
        let counts = [
            (op::QuantizeLinear, found.quantize_linear),
            (op::DequantizeLinear, found.dequantize_linear),
            (op::DynamicQuantizeLinear, found.dynamic_quantize_linear),
        ];
        if found.linears.is_empty() && counts.iter().all(|(_, n)| *n == 0) {
            return;
        }
        let counts = counts
            .iter()
            .filter(|(_, n)| *n > 0)
            .map(|(op, n)| format!("{n} {op}"));
        let mut parts: Vec<String> = counts.collect();
        parts.insert(0, format!("{} Linears", found.linears.len()));
        match found.embeddings.len() {
            0 => {}
            1 => parts.push("1 embedding table".to_owned()),
            n => parts.push(format!("{n} embedding tables")),
        }
        self.item("quantized", &parts.join(", "));
        let mut forms: BTreeMap<String, usize> = BTreeMap::new();
        for linear in &found.linears {
            *forms.entry(long_form(linear)).or_default() += 1;
        }
        for (form, n) in forms {
            self.item("", &format!("{n} × {form}"));
        }
        for linear in found.linears.iter().filter(|_| verbose) {
            self.named(&format!("  {:<12} ", short_form(linear)), &linear.name, "");
        }
    }

    /// `rotated    2 values by 24 x 16`.
    fn rotations(&mut self, anatomy: &Anatomy, verbose: bool) {
        let mut sizes: BTreeMap<(bool, (usize, usize)), usize> = BTreeMap::new();
        for rotation in &anatomy.rotations {
            *sizes
                .entry((rotation.blocks, rotation.factors))
                .or_default() += 1;
        }
        let sizes = sizes.iter();
        let sizes: Vec<String> = sizes
            .map(|((blocks, (a, b)), n)| match blocks {
                true => format!("{n} in {a} blocks of {b}"),
                false => format!("{n} by {a} x {b}"),
            })
            .collect();
        if !sizes.is_empty() {
            self.item("rotations", &sizes.join(", "));
        }
        for rotation in anatomy.rotations.iter().filter(|_| verbose) {
            self.named("  ", &rotation.name, "");
        }
    }

    /// What quantizing the Linears is worth.
    fn work(&mut self, anatomy: &Anatomy) {
        let Some(work) = &anatomy.work else {
            return;
        };
        self.item(
            "work",
            &format!("with every Linear quantized {}", work.words()),
        );
        if work.int8 > 0.0 {
            self.item("", &work.speed());
        }
    }

    fn sites(&mut self, anatomy: &Anatomy, verbose: bool) {
        if anatomy.sites.is_empty() {
            return;
        }
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for site in &anatomy.sites {
            *kinds.entry(kind(site)).or_default() += 1;
        }
        let kinds: Vec<String> = kinds
            .iter()
            .map(|(kind, n)| format!("{n} {kind}"))
            .collect();
        self.item(
            "sites",
            &format!("{}: {}", anatomy.sites.len(), kinds.join(", ")),
        );
        let sites = anatomy.worst_sites();
        if anatomy.rows > 0 {
            let (a, w) = anatomy.bits;
            let what = format!(
                "under plain min-max at {a} bits (weights {w}), on {} rows, worst first",
                anatomy.rows
            );
            self.item("damage", &what);
            self.item("", "SQNR of the site's Linears; magnitude of the largest channel, of the median one, their ratio; asymmetry");
            let _ = writeln!(
                self.out,
                "  SQNR dB  largest   median  ratio  asym.  channels       site"
            );
        }
        for site in sites.iter().take(self.shown) {
            match &site.outliers {
                Some(_) => self.named(&measured(site), &site.value, ""),
                None => {
                    let count = format!("  {} Linears", site.linears.len());
                    self.named(&format!("  {:<9} ", kind(site)), &site.value, &count);
                }
            }
            if verbose {
                self.site_details(site);
            }
        }
        self.more(sites.len());
        if anatomy.rows > 0 {
            self.tokens(&sites);
        }
    }

    /// Sites whose largest token sticks out, with that token.
    fn tokens(&mut self, sites: &[&SiteFacts]) {
        let ratio = |site: &SiteFacts| site.outliers.as_ref().and_then(|o| o.token_ratio);
        let outlier = |site: &&&SiteFacts| ratio(site).is_some_and(|r| r >= OUTLIER_TOKEN);
        let mut sites: Vec<&SiteFacts> = sites.iter().filter(outlier).copied().collect();
        if sites.is_empty() {
            let what = format!("none is {OUTLIER_TOKEN} times as large as the median one");
            return self.item("tokens", &what);
        }
        sites.sort_by(|a, b| ratio(b).unwrap_or(0.0).total_cmp(&ratio(a).unwrap_or(0.0)));
        self.item(
            "tokens",
            "that stick out: largest element of a site's largest token over that of the median one; where it is",
        );
        let _ = writeln!(
            self.out,
            "    ratio  largest     row  position      id  channel  site"
        );
        for site in sites.iter().take(self.shown) {
            let tokens = site.outliers.iter().flat_map(|o| &o.tokens);
            let shown = if self.shown == SHOWN { 1 } else { usize::MAX };
            for token in tokens.take(shown) {
                self.named(&token_row(token), &site.value, "");
            }
        }
        self.more(sites.len());
    }

    fn site_details(&mut self, site: &SiteFacts) {
        let sink = match (&site.sink, &site.reason) {
            (Some(sink), Some(reason)) => format!("into {sink}, because {reason}"),
            (Some(sink), None) => format!("into {sink}"),
            (None, reason) => format!("stays: {}", reason.as_deref().unwrap_or("no sink")),
        };
        let what = match (site.sink.is_some(), site.shift) {
            (false, _) => "",
            (true, true) => "shift and scale ",
            (true, false) => "scale ",
        };
        let restore = if site.restore {
            "; others read it too, and get the inverse"
        } else {
            ""
        };
        let text = format!("             {what}{sink}{restore}");
        let _ = self.out.wrapped(&text, 15, self.width);
        for linear in &site.linears {
            self.named("             read by ", linear, "");
        }
    }

    fn linears(&mut self, anatomy: &Anatomy, verbose: bool) {
        let linears = &anatomy.linears;
        let mut sizes: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for linear in linears {
            *sizes.entry((linear.k, linear.n)).or_default() += 1;
        }
        let mut sizes: Vec<_> = sizes.into_iter().collect();
        sizes.sort_by_key(|&((k, n), count)| std::cmp::Reverse((count, k * n)));
        let more = sizes.len().saturating_sub(6);
        let shown = sizes.iter().take(6);
        let mut parts: Vec<String> = shown
            .map(|((k, n), count)| format!("{count} of {k} x {n}"))
            .collect();
        if more > 0 {
            parts.push(format!("{more} more sizes"));
        }
        let parts = parts.join(", ");
        let colon = if parts.is_empty() { "" } else { ": " };
        self.item(
            "Linears",
            &format!("{} in float{colon}{parts}", linears.len()),
        );
        for linear in linears.iter().filter(|_| verbose) {
            let bias = if linear.bias { "" } else { ", no bias" };
            let after = format!("  [{} x {}] {}{bias}", linear.k, linear.n, linear.op);
            self.named("  ", &linear.name, &after);
        }
    }

    fn near_misses(&mut self, anatomy: &Anatomy) {
        let misses = &anatomy.near_misses;
        if misses.is_empty() {
            return;
        }
        self.item(
            "near miss",
            &format!("{} nodes almost matched", misses.len()),
        );
        for miss in misses.iter().take(self.shown) {
            let line = format!("  {} ({}): {}", miss.name, miss.kind, miss.reason);
            let _ = self.out.wrapped(&line, 4, self.width);
        }
        self.more(misses.len());
    }
}

/// What kind of sink, in the words of the README.
fn kind(site: &SiteFacts) -> &'static str {
    match site.kind.as_str() {
        op::LayerNormalization | op::RMSNormalization => "norm",
        "commuted" => "commuted",
        "explicit" => "by a Mul",
        _ => "no sink",
    }
}

/// The row of one site in the table of outliers.
fn measured(site: &SiteFacts) -> String {
    let Some(o) = &site.outliers else {
        return String::new();
    };
    let db = match site.damage.map(|d| d.sqnr_db()) {
        Some(db) if db.is_finite() => format!("{db:.1}"),
        Some(_) => "exact".to_owned(),
        None => "–".to_owned(),
    };
    let ratio = o.ratio.map_or("–".to_owned(), |r| format!("{r:.1}"));
    let channels: Vec<String> = o.channels.iter().map(|c| c.channel.to_string()).collect();
    format!(
        "  {db:>7}  {:>7.2}  {:>7.2}  {ratio:>5}  {:>5.2}  {:<14} ",
        o.largest,
        o.median,
        o.asymmetry,
        channels.join(",")
    )
}
