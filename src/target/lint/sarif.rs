//! Findings as SARIF 2.1.0, the form in which code scanning takes results of linters.
//!
//! ```text
//! run ── tool.driver: every rule of the target, with its level, what to do and where it comes from
//!     ── results: ruleId, level, message, file, node ── notifications: files that could not be checked
//! ```

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Cost, Finding, Rule, Target, rules};

/// What became of one file.
#[derive(Clone, Copy, Debug)]
pub struct Checked<'a> {
    /// Its path: relative to the root of a repository, if results are to be shown beside its files.
    pub path: &'a str,
    /// Its findings, or why it could not be checked.
    pub findings: Result<&'a [Finding], &'a str>,
}

/// The level that a cost has: what must not be used as it is is an error.
fn level(cost: Cost) -> &'static str {
    match cost {
        Cost::Rejected | Cost::Wrong => "error",
        Cost::Float | Cost::Slow => "warning",
        Cost::Inaccurate => "note",
    }
}

/// The log of one run over `files` for `target`, in the order of the files and of their findings.
///
/// Names of nodes stand whole in `logicalLocations`. Nodes have no lines: the region is the file's first line, because
/// some readers show no result without one. The fingerprint of a result is made of rule and node, not of the message: it
/// stays when a number in it changes.
///
/// ```
/// use onnx_osplus::target::{Target, lint::{Checked, sarif}};
///
/// let log = sarif(&[Checked { path: "a b.onnx", findings: Ok(&[]) }], Target::Ort);
/// assert_eq!(log["version"], "2.1.0");
/// assert_eq!(log["runs"][0]["artifacts"][0]["location"]["uri"], "a%20b.onnx");
/// ```
pub fn sarif(files: &[Checked], target: Target) -> Value {
    let rules = rules(target);
    let mut seen = BTreeMap::new();
    let mut results = Vec::new();
    let mut notifications = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let location = artifact(file.path, index);
        match file.findings {
            Ok(findings) => results.extend(
                findings
                    .iter()
                    .map(|finding| result(finding, file.path, &location, &rules, &mut seen)),
            ),
            Err(why) => notifications.push(json!({
                "level": "error",
                "message": {"text": plain(why)},
                "locations": [{"physicalLocation": {"artifactLocation": location}}],
            })),
        }
    }
    let artifacts = files
        .iter()
        .map(|f| json!({"location": {"uri": uri(f.path)}}));
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "onnx-osplus",
                "version": env!("CARGO_PKG_VERSION"),
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "informationUri": env!("CARGO_PKG_REPOSITORY"),
                "rules": rules.iter().map(|rule| descriptor(rule)).collect::<Vec<_>>(),
            }},
            "automationDetails": {"id": format!("onnx-osplus/{}/", target.profile().name)},
            "columnKind": "unicodeCodePoints",
            "artifacts": artifacts.collect::<Vec<_>>(),
            "invocations": [{
                "executionSuccessful": notifications.is_empty(),
                "toolExecutionNotifications": notifications,
            }],
            "results": results,
        }],
    })
}

/// A rule, with what to do about its findings.
fn descriptor(rule: &Rule) -> Value {
    let help = format!("{}. Source: {}", rule.mend, rule.source);
    json!({
        "id": rule.id,
        "shortDescription": {"text": plain(rule.title)},
        "fullDescription": {"text": plain(&format!("{}; otherwise: {}", rule.title, rule.cost))},
        "help": {"text": plain(&help)},
        "defaultConfiguration": {"level": level(rule.cost)},
        "properties": {"cost": rule.cost.name(), "tags": [subject(rule)]},
    })
}

fn subject(rule: &Rule) -> &'static str {
    match rule.subject {
        super::Subject::Quantization => "quantization",
        super::Subject::Graph => "graph",
    }
}

fn result(
    finding: &Finding,
    path: &str,
    location: &Value,
    rules: &[&Rule],
    seen: &mut BTreeMap<String, usize>,
) -> Value {
    let operator = match finding.operator.as_str() {
        "" => String::new(),
        operator => format!(" ({operator})"),
    };
    let node = match finding.node.as_str() {
        "" => String::new(),
        node => format!("{node}{operator}: "),
    };
    let text = format!("{node}{}; {}", finding.message, finding.mend);
    let mut place = json!({
        "physicalLocation": {"artifactLocation": location, "region": {"startLine": 1}},
    });
    if !finding.node.is_empty() {
        place["logicalLocations"] = json!([{
            "name": finding.node,
            "fullyQualifiedName": finding.node,
            "kind": "element",
        }]);
    }
    let mut result = json!({
        "ruleId": finding.rule,
        "level": level(finding.cost),
        "message": {"text": plain(&text)},
        "locations": [place],
        "partialFingerprints": {"primaryLocationLineHash": fingerprint(finding, path, seen)},
        "properties": {"cost": finding.cost.name(), "operator": finding.operator},
    });
    if let Some(index) = rules.iter().position(|rule| rule.id == finding.rule) {
        result["ruleIndex"] = json!(index);
    }
    result
}

/// What tells a finding from others, from one version of a file to the next: 16 hexadecimal digits and a count.
fn fingerprint(finding: &Finding, path: &str, seen: &mut BTreeMap<String, usize>) -> String {
    let mut hash = Sha256::new();
    for part in [path, &finding.rule, &finding.node, &finding.operator] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digits: String = hash.finalize()[..8]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let count = seen.entry(digits.clone()).or_default();
    *count += 1;
    format!("{digits}:{count}")
}

fn artifact(path: &str, index: usize) -> Value {
    json!({"uri": uri(path), "index": index})
}

/// A message in which nothing is a placeholder or a link (SARIF 2.1.0, 3.11.5 and 3.11.6), and nothing acts.
fn plain(text: &str) -> String {
    let text = crate::onnx::shown(text);
    let text = text.replace('{', "{{").replace('}', "}}");
    text.replace("](", "] (")
}

/// A path as a URI reference: slashes, and what is no plain character in hexadecimal. An absolute one gets the scheme.
fn uri(path: &str) -> String {
    let path = match cfg!(windows) {
        true => path.replace('\\', "/"),
        false => path.to_owned(),
    };
    let path = path.strip_prefix("./").unwrap_or(&path);
    let has_drive = cfg!(windows) && path.as_bytes().get(1) == Some(&b':');
    let mut out = match (has_drive, path.starts_with('/')) {
        (true, _) => "file:///".to_owned(),
        (false, true) => "file://".to_owned(),
        (false, false) => String::new(),
    };
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_references() {
        for (path, expected) in [
            ("model.onnx", "model.onnx"),
            ("./a/b c#1?.onnx", "a/b%20c%231%3F.onnx"),
            ("/tmp/ü.onnx", "file:///tmp/%C3%BC.onnx"),
            ("a:b%.onnx", "a%3Ab%25.onnx"),
        ] {
            assert_eq!(uri(path), expected);
        }
    }

    #[test]
    fn messages_have_no_placeholders_and_no_links() {
        assert_eq!(plain("{0} [a](1) \u{1b}[2J"), "{{0}} [a] (1) \\u{{1b}}[2J");
    }

    #[test]
    fn a_place_is_known_again_and_twins_are_told_apart() {
        let finding = Finding {
            rule: "T1".to_owned(),
            cost: Cost::Float,
            node: "n".to_owned(),
            operator: "MatMul".to_owned(),
            message: "its zero point is 127".to_owned(),
            mend: String::new(),
            source: String::new(),
            subject: super::super::Subject::Quantization,
        };
        let later = Finding {
            message: "its zero point is 128".to_owned(),
            ..finding.clone()
        };
        let first = fingerprint(&finding, "m", &mut BTreeMap::new());
        assert_eq!(first, fingerprint(&later, "m", &mut BTreeMap::new()));
        let mut seen = BTreeMap::new();
        let twins = [(); 2].map(|()| fingerprint(&finding, "m", &mut seen));
        assert_eq!(twins[0], first);
        assert!(twins[1].ends_with(":2"));
    }
}
