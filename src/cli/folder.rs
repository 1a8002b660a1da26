//! `onnx-osplus DIR OUTDIR`: the models of a folder as a hub has it, quantized beside copies of what belongs to them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use onnx_osplus::onnx::{self, output};
use onnx_osplus::progress::Progress;

use super::arguments::Arguments;
use super::{Given, decoders, explain, print, print_summary, quantize_with, say, shown};

/// What is behind the name of a file that has the model beside it in integers.
const INTEGER_FORMS: [&str; 11] = [
    "quantized",
    "int8",
    "uint8",
    "int4",
    "uint4",
    "q4",
    "q4f16",
    "q8",
    "bnb4",
    "quint8",
    "qint8",
];

/// What is behind the name of a file that has it in another form of float; `O1` to `O4` are such, too.
const FLOAT_FORMS: [&str; 3] = ["fp16", "float16", "optimized"];

/// What a folder of ONNX Runtime GenAI says of its models: their names, beside it.
const GENAI: &str = "genai_config.json";

/// Names of files with weights; they are not copied.
const WEIGHTS: [&str; 13] = [
    "onnx",
    "onnx_data",
    "data",
    "safetensors",
    "bin",
    "pt",
    "pth",
    "h5",
    "msgpack",
    "gguf",
    "ot",
    "tflite",
    "npz",
];

/// A file of more bytes is no configuration.
const LARGEST_COPY: u64 = 64 << 20;

/// Folders inside of each other that are looked into for small files.
const DEEPEST: usize = 3;

/// Quantizes every model of the folder IN.
pub(super) fn run(
    arguments: &Arguments,
    words: &[OsString],
    progress: &dyn Progress,
) -> Result<()> {
    let (folder, out) = (&arguments.input, &arguments.output);
    let models = models(folder)?;
    let targets = match folder.join(GENAI).is_file() {
        true => named_by_genai(folder, &models, out, arguments.name.as_deref())?,
        false => targets(&models, out, arguments.name.as_deref())?,
    };
    if out.exists() && !out.is_dir() {
        bail!(
            "{} is no folder; for a folder IN, OUT is one too",
            shown::path(out)
        );
    }
    let here = same(folder, out);
    let copies = match here {
        true => Vec::new(),
        false => small_files(folder, out),
    };
    // Before any work.
    for (from, to) in &copies {
        if to.exists() && !arguments.force && std::fs::read(from).ok() != std::fs::read(to).ok() {
            bail!(
                "{} exists, and is another; use --force to overwrite it",
                shown::path(to)
            );
        }
    }
    for target in &targets {
        if target.exists() && !arguments.force {
            bail!(
                "{} exists; use --force to overwrite it",
                shown::path(target)
            );
        }
    }
    for target in &targets {
        make_folder(target.parent().unwrap_or(out))?;
    }
    let decoders = decoders::data(arguments, &models, progress);
    let mut failed = Vec::new();
    for (model, target) in models.iter().zip(&targets) {
        let mut one = arguments.clone();
        one.input.clone_from(model);
        one.output.clone_from(target);
        if models.len() > 1 {
            one.report = one
                .report
                .iter()
                .map(|path| of_model(path, model))
                .collect();
        }
        let given = Given {
            data: decoders.of(model)?,
            ..Given::default()
        };
        match quantize_with(&one, words, given, progress) {
            Ok(done) if !arguments.quiet => {
                if models.len() > 1 {
                    print(&format!("{}\n", shown::path(model)));
                }
                print_summary(&done.text(arguments.verbose), target, &done.saved);
            }
            Ok(_) => {}
            Err(error) if models.len() == 1 => return Err(error),
            Err(error) => failed.push((model, target, error)),
        }
    }
    if failed.len() == models.len() {
        // Each for its reason; the first stands for the exit status.
        for (model, _, error) in &failed[1..] {
            say(&format!(
                "error: {}: {}",
                shown::path(model),
                explain(error)
            ));
        }
        let (.., error) = failed.swap_remove(0);
        return Err(error);
    }
    for (model, target, error) in &failed {
        let what = match here {
            true => "stays",
            false => "is copied",
        };
        say(&format!(
            "note: {} {what} as it is: {}",
            shown::path(model),
            explain(error)
        ));
        if !here {
            for (from, to) in whole(model, target.parent().unwrap_or(out))? {
                copy(&from, &to, arguments.force)?;
            }
        }
    }
    for (from, to) in &copies {
        copy(from, to, true)?;
    }
    if !arguments.quiet && !here {
        print(&format!(
            "copied {} files of tokenizer and configuration to {}\n",
            copies.len(),
            shown::path(out)
        ));
    }
    Ok(())
}

/// The float models of a folder: of `onnx/` in it, or its own. A model in another form of float, such as optimum's
/// `model_optimized.onnx`, is one where there is no other.
///
/// # Errors
/// There are none.
fn models(folder: &Path) -> Result<Vec<PathBuf>> {
    for other_forms in [false, true] {
        for place in [folder.join("onnx"), folder.to_owned()] {
            let found = float_models(&files(&place), other_forms);
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }
    bail!(
        "{} holds no float model: neither onnx/model.onnx nor model.onnx, nor another .onnx",
        shown::path(folder)
    )
}

/// The files in a folder, sorted by name; hidden ones are not seen.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let hidden = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'))
    };
    let mut found: Vec<PathBuf> = paths.filter(|path| !hidden(path)).collect();
    found.sort();
    found
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Models that are no other form of one beside them; `other_forms` of float count. A merged decoder stands for the two that were
/// merged.
fn float_models(files: &[PathBuf], other_forms: bool) -> Vec<PathBuf> {
    let is_model =
        |path: &&PathBuf| path.extension().is_some_and(|e| e == "onnx") && path.is_file();
    let models: Vec<&PathBuf> = files.iter().filter(is_model).collect();
    let stems: Vec<String> = models.iter().map(|path| stem(path)).collect();
    let is_form = |of: &str| {
        let mut parts = of.split('_').skip(1);
        parts.any(|part| {
            let level = part
                .strip_prefix('O')
                .is_some_and(|n| n.len() == 1 && n.as_bytes()[0].is_ascii_digit());
            let float = level || FLOAT_FORMS.contains(&part);
            float && !other_forms || INTEGER_FORMS.contains(&part)
        })
    };
    let merged = stems.iter().any(|of| of == "decoder_model_merged");
    let is_part = |of: &str| merged && matches!(of, "decoder_model" | "decoder_with_past_model");
    let kept = models
        .iter()
        .zip(&stems)
        .filter(|(_, of)| !is_form(of) && !is_part(of));
    kept.map(|(path, _)| (*path).clone()).collect()
}

/// What each model is written to.
fn targets(models: &[PathBuf], out: &Path, name: Option<&str>) -> Result<Vec<PathBuf>> {
    let name = name.unwrap_or("quantized");
    if name.is_empty() || name.contains(['/', '\\']) {
        bail!("--name is part of the name of a file, and `{name}` is none");
    }
    let onnx = out.join("onnx");
    if name.ends_with(".onnx") {
        if models.len() > 1 {
            let found: Vec<String> = models.iter().map(|path| stem(path)).collect();
            bail!(
                "--name {name} is the name of one model, and there are {} ({}); without .onnx it follows the name of each",
                models.len(),
                found.join(", ")
            );
        }
        return Ok(vec![onnx.join(name)]);
    }
    Ok(models
        .iter()
        .map(|path| onnx.join(format!("{}_{name}.onnx", stem(path))))
        .collect())
}

/// What each model of a folder of ONNX Runtime GenAI is written to: the names that its configuration has for them.
fn named_by_genai(
    folder: &Path,
    models: &[PathBuf],
    out: &Path,
    name: Option<&str>,
) -> Result<Vec<PathBuf>> {
    if let Some(name) = name {
        bail!(
            "{GENAI} names its models, and the result has the same names; leave out --name {}",
            onnx::shown(name)
        );
    }
    if same(folder, out) {
        bail!(
            "{GENAI} names its models, and the result has the same names: OUT has to be another folder"
        );
    }
    let beside = |model: &PathBuf| out.join(model.strip_prefix(folder).unwrap_or(model));
    Ok(models.iter().map(beside).collect())
}

/// `report.json` of one of several models: `report-encoder_model.json`.
fn of_model(path: &Path, model: &Path) -> PathBuf {
    let extension = path
        .extension()
        .map(|e| format!(".{}", e.to_string_lossy()))
        .unwrap_or_default();
    path.with_file_name(format!("{}-{}{extension}", stem(path), stem(model)))
}

/// Small files of a folder and the folders in it, and where they go.
fn small_files(folder: &Path, out: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), out.to_owned(), 0)];
    while let Some((from, to, depth)) = folders.pop() {
        for path in files(&from) {
            let Some(name) = path.file_name() else {
                continue;
            };
            let target = to.join(name);
            if path.is_dir() {
                if depth + 1 < DEEPEST && !same(&path, out) {
                    folders.push((path, target, depth + 1));
                }
            } else if is_small(&path) {
                found.push((path, target));
            }
        }
    }
    found.sort();
    found
}

fn is_small(path: &Path) -> bool {
    let extension = path
        .extension()
        .map(|e| e.to_string_lossy().to_lowercase())
        .unwrap_or_default();
    // vocab.bin of some tokenizers is weights to this rule; its folder has a tokenizer.json all the same.
    let size = std::fs::metadata(path).map(|meta| meta.is_file().then_some(meta.len()));
    !WEIGHTS.contains(&extension.as_str()) && matches!(size, Ok(Some(0..=LARGEST_COPY)))
}

/// A model and its external data, and where they go.
fn whole(model: &Path, to: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let folder = model.parent().unwrap_or(Path::new(""));
    let mut names: Vec<PathBuf> = model.file_name().map(PathBuf::from).into_iter().collect();
    names.extend(
        onnx::external_locations(model)?
            .into_iter()
            .map(PathBuf::from),
    );
    Ok(names
        .iter()
        .map(|name| (folder.join(name), to.join(name)))
        .collect())
}

fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path)
        .with_context(|| format!("cannot make the folder {}", shown::path(path)))
}

fn copy(from: &Path, to: &Path, force: bool) -> Result<()> {
    if let Some(folder) = to.parent() {
        make_folder(folder)?;
    }
    let mut file =
        std::fs::File::open(from).with_context(|| format!("cannot read {}", shown::path(from)))?;
    output::write(to, force, |out| std::io::copy(&mut file, out).map(drop))?;
    Ok(())
}

/// Whether two names are of one folder.
fn same(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let models = models(folder.path()).unwrap();
        models
            .iter()
            .map(|path| {
                path.strip_prefix(folder.path())
                    .unwrap()
                    .display()
                    .to_string()
            })
            .collect()
    }

    #[test]
    fn the_float_models_of_a_folder_are_found() {
        assert_eq!(
            found(&["model.onnx", "onnx/model.onnx", "onnx/model_q4f16.onnx"]),
            ["onnx/model.onnx"]
        );
        assert_eq!(
            found(&[
                "model.onnx",
                "model_O2.onnx",
                "model_quint8_avx2.onnx",
                "model_qint8_arm64.onnx",
                ".x.onnx"
            ]),
            ["model.onnx"]
        );
        assert_eq!(
            found(&[
                "onnx/decoder_model.onnx",
                "onnx/decoder_model_merged.onnx",
                "onnx/encoder_model.onnx"
            ]),
            ["onnx/decoder_model_merged.onnx", "onnx/encoder_model.onnx"]
        );
        assert_eq!(
            found(&[
                "decoder_model.onnx",
                "decoder_with_past_model.onnx",
                "encoder_model_fp16.onnx"
            ]),
            ["decoder_model.onnx", "decoder_with_past_model.onnx"]
        );
    }

    #[test]
    fn another_form_of_float_is_a_model_where_there_is_no_other() {
        assert_eq!(
            found(&["model_optimized.onnx", "model_int8.onnx"]),
            ["model_optimized.onnx"]
        );
        assert_eq!(
            found(&["x/y.onnx", "onnx/model_fp16.onnx"]),
            ["onnx/model_fp16.onnx"]
        );
        assert_eq!(
            found(&["model_O4.onnx", "onnx/model.onnx"]),
            ["onnx/model.onnx"]
        );
    }

    #[test]
    fn a_configuration_of_genai_names_the_result() {
        let folder = tempfile::tempdir().unwrap();
        let models = [folder.path().join("model.onnx")];
        let named = |out, name| named_by_genai(folder.path(), &models, out, name);
        let targets = named(Path::new("out"), None).unwrap();
        assert_eq!(targets, [Path::new("out/model.onnx")]);
        assert!(named(Path::new("out"), Some("int8")).is_err());
        assert!(named(folder.path(), None).is_err());
    }

    #[test]
    fn every_model_gets_a_name_of_its_own() {
        let models = ["a/encoder.onnx", "a/decoder.onnx"].map(PathBuf::from);
        let named = |name| {
            let targets = targets(&models, Path::new("out"), name)?;
            Ok(targets
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>())
        };
        let ok = |targets: Result<Vec<String>>| targets.unwrap();
        assert_eq!(
            ok(named(None)),
            [
                "out/onnx/encoder_quantized.onnx",
                "out/onnx/decoder_quantized.onnx"
            ]
        );
        assert_eq!(
            ok(named(Some("int8"))),
            ["out/onnx/encoder_int8.onnx", "out/onnx/decoder_int8.onnx"]
        );
        assert!(
            named(Some("model.onnx"))
                .unwrap_err()
                .to_string()
                .contains("there are 2 (encoder, decoder)")
        );
        assert!(named(Some("../x")).is_err());
        assert_eq!(
            of_model(Path::new("r/report.json"), &models[0]),
            Path::new("r/report-encoder.json")
        );
    }
}
