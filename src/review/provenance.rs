//! Where a written model comes from, in its own `metadata_props`.
//!
//! Every entry is the same for the same input, data and settings: no time, no path, no name of a machine.

use super::Report;
use crate::onnx::Model;
use crate::onnx::proto::StringStringEntryProto;

/// What the keys of all entries begin with.
pub(super) const PREFIX: &str = "onnx_osplus.";

/// The origin of a model, as entries of ONNX's `ModelProto.metadata_props`.
///
/// | key | value |
/// |---|---|
/// | `onnx_osplus.version` | the tool's version |
/// | `onnx_osplus.settings` | the settings of the report, as JSON |
/// | `onnx_osplus.decision` | what was written: the decision of the report |
/// | `onnx_osplus.source` | SHA-256 of the file that was read |
/// | `onnx_osplus.source_data` | of the files with its external data, each after its location; only if there are any |
/// | `onnx_osplus.calibration` | SHA-256 of the calibration data: names, types, shapes and elements |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// Keys, without their prefix, and values.
    pub entries: Vec<(String, String)>,
}

impl Provenance {
    /// The origin of the result of the run that `report` tells of.
    ///
    /// `source` is what [`SourceFiles::digests`](crate::onnx::SourceFiles::digests) says of the files that were read, `calibration` what
    /// [`Dataset::digest`](crate::calibrate::Dataset::digest) says of the data.
    pub fn new(
        report: &Report,
        (source, data): (String, Vec<(String, String)>),
        calibration: String,
    ) -> Self {
        // Both are plain structures of strings and numbers, for which JSON has a form.
        let settings = serde_json::to_string(&report.settings).unwrap_or_default();
        let decision = serde_json::to_value(report.decision).unwrap_or_default();
        let mut entries = vec![
            ("version", report.version.clone()),
            ("settings", settings),
            ("decision", decision.as_str().unwrap_or_default().to_owned()),
            ("source", source),
        ];
        if !data.is_empty() {
            let each = data
                .iter()
                .map(|(location, digest)| format!("{location} {digest}"));
            entries.push(("source_data", each.collect::<Vec<_>>().join("; ")));
        }
        entries.push(("calibration", calibration));
        let entries = entries
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value));
        Provenance {
            entries: entries.collect(),
        }
    }

    /// Writes the entries behind those of others; what an earlier run of this tool left is replaced.
    pub fn write(&self, model: &mut Model) {
        Provenance::remove(model);
        let props = &mut model.proto.metadata_props;
        props.extend(
            self.entries
                .iter()
                .map(|(key, value)| StringStringEntryProto {
                    key: Some(format!("{PREFIX}{key}")),
                    value: Some(value.clone()),
                }),
        );
    }

    /// Removes the entries of this tool, from a model that is no longer what they tell.
    pub fn remove(model: &mut Model) {
        let props = &mut model.proto.metadata_props;
        props.retain(|entry| !entry.key().starts_with(PREFIX));
    }

    /// The entries that a model has; `None` if this tool did not write it, or was told to leave them out.
    pub fn read(model: &Model) -> Option<Self> {
        let props = model.proto.metadata_props.iter();
        let ours = props.filter_map(|entry| {
            let key = entry.key().strip_prefix(PREFIX)?;
            Some((key.to_owned(), entry.value().to_owned()))
        });
        let entries: Vec<_> = ours.collect();
        (!entries.is_empty()).then_some(Provenance { entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::Decision;

    fn model(keys: &[&str]) -> Model {
        let entry = |key: &&str| StringStringEntryProto {
            key: Some((*key).to_owned()),
            value: Some("theirs".to_owned()),
        };
        let mut model = Model {
            proto: Default::default(),
        };
        model.proto.metadata_props = keys.iter().map(entry).collect();
        model
    }

    #[test]
    fn what_is_written_is_read_back_and_replaces_only_its_own() {
        let mut model = model(&["author", "onnx_osplus.version", "onnx_osplus"]);
        let report = Report {
            version: "1.2.3".to_owned(),
            decision: Decision::PlainWasBetter,
            ..Report::default()
        };
        let data = vec![("w.bin".to_owned(), "sha256:2".to_owned())];
        let source = ("sha256:1".to_owned(), data);
        let provenance = Provenance::new(&report, source, "sha256:3".to_owned());
        provenance.write(&mut model);
        assert_eq!(Provenance::read(&model).as_ref(), Some(&provenance));
        let keys: Vec<_> = model.proto.metadata_props.iter().map(|e| e.key()).collect();
        let ours = [
            "version",
            "settings",
            "decision",
            "source",
            "source_data",
            "calibration",
        ];
        assert_eq!(keys[..2], ["author", "onnx_osplus"]);
        assert_eq!(keys[2..], ours.map(|key| format!("onnx_osplus.{key}")));
        let value = |key: &str| &provenance.entries.iter().find(|e| e.0 == key).unwrap().1;
        assert_eq!(value("decision"), "plain_was_better");
        assert_eq!(value("source_data"), "w.bin sha256:2");
        let settings: serde_json::Value = serde_json::from_str(value("settings")).unwrap();
        assert_eq!(settings["weight_bits"], 0);
    }

    #[test]
    fn the_model_of_somebody_else_has_none() {
        assert_eq!(Provenance::read(&model(&["author", "onnx_osplus"])), None);
    }
}
