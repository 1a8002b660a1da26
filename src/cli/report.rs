//! `--report`: what only the command line knows is added to the account of a run, and it is written.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

use anyhow::{Result, anyhow};
use onnx_osplus::Options;
use onnx_osplus::calibrate::{Dataset, Engine};
use onnx_osplus::onnx::{self, Model, output};
use onnx_osplus::progress::Progress;
use onnx_osplus::review::{
    Files, LAYER_TOKENS, Provenance, Report, VerifyOptions, VerifyRows, html, verify,
};

use super::Arguments;

/// The command that this program was started with, as a shell would read it.
pub(super) fn command(words: &[OsString]) -> String {
    let words = words.iter().map(|word| quoted(&word.to_string_lossy()));
    words.collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./=:,%+@-".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// The names of IN and OUT, and their bytes.
pub(super) fn files(arguments: &Arguments, (input_bytes, output_bytes): (u64, u64)) -> Files {
    let name = |path: &Path| path.display().to_string();
    let mut files = Files::default();
    files.input = name(&arguments.input);
    files.output = name(&arguments.output);
    (files.input_bytes, files.output_bytes) = (input_bytes, output_bytes);
    files
}

/// The digests among the entries of the metadata, and that of the file that was written.
pub(super) fn digests(provenance: Provenance, output: &Path) -> Result<BTreeMap<String, String>> {
    let (written, data) = onnx::digest_model(output)?;
    let mut digests: BTreeMap<_, _> = provenance.entries.into_iter().collect();
    digests.retain(|_, value| value.contains("sha256:"));
    digests.insert("output".to_owned(), written);
    for (location, digest) in data {
        digests.insert(format!("output data {location}"), digest);
    }
    Ok(digests)
}

/// Adds the error of every Linear of `quantized`. Where it cannot be had, a note says why.
pub(super) fn layers(
    report: &mut Report,
    (float, quantized): (&Model, &Model),
    (data, engine): (&Dataset, &dyn Engine),
    options: &Options,
    progress: &dyn Progress,
) {
    let few = data.few(LAYER_TOKENS);
    let rows = VerifyRows {
        all: &[],
        few: few.as_ref(),
    };
    let only_layers = VerifyOptions {
        threads: options.threads,
        outputs: false,
        layers: true,
    };
    match verify(float, quantized, &rows, engine, &only_layers, progress) {
        Ok(verification) => {
            report.layers = verification.layers;
            report.notes.extend(verification.notes);
        }
        Err(error) => {
            let note = format!("the errors of the Linears could not be measured: {error}");
            report.notes.push(note);
        }
    }
}

/// Writes the report: a page if the name of the file ends in .html or .htm, JSON otherwise.
pub(super) fn write(path: &Path, force: bool, report: &Report) -> Result<()> {
    let extension = path.extension().map(|e| e.to_ascii_lowercase());
    let page = extension.is_some_and(|e| e == "html" || e == "htm");
    let text = match page {
        true => html(report),
        false => serde_json::to_string_pretty(report)? + "\n",
    };
    let written = output::write(path, force, |file| file.write_all(text.as_bytes()));
    written.map_err(|error| anyhow!("the report: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_command_as_it_was() {
        let words = [
            "onnx-osplus",
            "--keep-float=20%",
            "a b",
            "it's",
            "",
            "l[0-5]",
            "$x",
        ];
        let quoted = words.map(quoted);
        assert_eq!(
            quoted,
            [
                "onnx-osplus",
                "--keep-float=20%",
                "'a b'",
                r"'it'\''s'",
                "''",
                "'l[0-5]'",
                "'$x'"
            ]
        );
    }
}
