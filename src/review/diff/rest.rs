//! Fields that need no understanding: every message is compared field by field, so that nothing goes unseen.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use prost::Message;

use super::change::{Change, Kind, Sign, name, word};
use super::compare::keyed;
use crate::onnx::fields;
use crate::onnx::proto::{GraphProto, OperatorSetIdProto, ValueInfoProto};
use crate::onnx::text::type_text;

/// Each field that differs: `PREFIXdoc_string: "a" → "b"`. `kind` is the type of the messages in the schema.
pub(super) fn field_changes<M: Message>(a: &M, b: &M, kind: &str, prefix: &str) -> Vec<Change> {
    let (ours, theirs) = (fields(a, kind), fields(b, kind));
    if ours == theirs {
        return Vec::new();
    }
    let new: HashMap<&str, &str> = theirs.iter().map(|f| (&*f.path, &*f.value)).collect();
    let old: HashSet<&str> = ours.iter().map(|f| &*f.path).collect();
    let change = |sign, path: &str, before: Option<&str>, after: Option<&str>| {
        let text = |value: Option<&str>| value.unwrap_or("–").to_owned();
        let line = vec![
            word(format!(
                "{prefix}{}: ",
                path.strip_suffix(".value").unwrap_or(path)
            )),
            name(text(before)),
            word(" → "),
            name(text(after)),
        ];
        Change::new(sign, Kind::Model, &format!("{prefix}{path}"), line)
    };
    let mut found = Vec::new();
    for field in &ours {
        match new.get(&*field.path) {
            Some(after) if *after == field.value => {}
            after => {
                let sign = match after {
                    Some(_) => Sign::Changed,
                    None => Sign::Removed,
                };
                found.push(change(
                    sign,
                    &field.path,
                    Some(&field.value),
                    after.copied(),
                ));
            }
        }
    }
    for field in theirs.iter().filter(|f| !old.contains(&*f.path)) {
        found.push(change(Sign::Added, &field.path, None, Some(&field.value)));
    }
    // The key of an entry is in the path already; that it came or went says its value.
    let values: HashSet<String> = found.iter().map(|c| c.name.clone()).collect();
    found.retain(|c| match c.name.strip_suffix("].key") {
        Some(entry) => !values.contains(&format!("{entry}].value")),
        None => true,
    });
    if found.is_empty() {
        let line = vec![word(format!("{prefix}fields are stored in another order"))];
        found.push(Change::new(Sign::Changed, Kind::Order, prefix, line));
    }
    found
}

/// `opset ai.onnx: 14 → 17`, for each domain whose version differs.
pub(super) fn operator_sets(a: &[OperatorSetIdProto], b: &[OperatorSetIdProto]) -> Vec<Change> {
    let versions = |sets: &[OperatorSetIdProto]| -> BTreeMap<String, i64> {
        let domain = |set: &OperatorSetIdProto| match set.domain() {
            "" => "ai.onnx".to_owned(),
            domain => domain.to_owned(),
        };
        sets.iter()
            .map(|set| (domain(set), set.version()))
            .collect()
    };
    let (old, new) = (versions(a), versions(b));
    let domains: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let mut found = Vec::new();
    for domain in domains {
        let (before, after) = (old.get(domain), new.get(domain));
        if before == after {
            continue;
        }
        let sign = match (before, after) {
            (None, _) => Sign::Added,
            (_, None) => Sign::Removed,
            _ => Sign::Changed,
        };
        let show = |version: Option<&i64>| version.map_or("–".to_owned(), i64::to_string);
        let line = vec![word(format!(
            "opset {domain}: {} → {}",
            show(before),
            show(after)
        ))];
        found.push(Change::new(
            sign,
            Kind::Model,
            &format!("opset_import {domain}"),
            line,
        ));
    }
    found
}

/// A text that may be absent, which differs from an empty one.
pub(super) fn with_default(text: &Option<String>) -> String {
    match text.as_deref() {
        None => "–".to_owned(),
        Some("") => "\"\"".to_owned(),
        Some(text) => text.to_owned(),
    }
}

/// Inputs, outputs and stated types of values inside.
pub(super) fn value_infos(a: &GraphProto, b: &GraphProto) -> Vec<Change> {
    let lists = [
        (Kind::Input, "input", &a.input, &b.input),
        (Kind::Output, "output", &a.output, &b.output),
        (Kind::ValueInfo, "value_info", &a.value_info, &b.value_info),
    ];
    let mut found = Vec::new();
    for (kind, what, ours, theirs) in lists {
        let start = found.len();
        let (ours, theirs) = (keyed(ours), keyed(theirs));
        let new: HashMap<_, _> = theirs.iter().map(|(k, v)| (k, *v)).collect();
        let old: HashSet<_> = ours.iter().map(|(k, _)| k).collect();
        for (key, x) in &ours {
            match new.get(key) {
                None => found.push(whole(Sign::Removed, kind, what, x)),
                Some(y) => {
                    let changes = field_changes(*x, *y, "ValueInfoProto", "");
                    let (before, after) = (type_of(x), type_of(y));
                    if !changes.is_empty() && before != after {
                        let mut line = vec![word(format!("{what} ")), name(key.0.as_str())];
                        line.extend([word(format!(": {before} → {after}"))]);
                        found.push(Change::new(Sign::Changed, kind, &key.0, line));
                    } else {
                        found.extend(changes.into_iter().map(|change| {
                            let mut line = vec![word(format!("{what} ")), name(key.0.as_str())];
                            line.push(word("  "));
                            line.extend(change.line);
                            Change::new(change.sign, kind, &key.0, line)
                        }));
                    }
                }
            }
        }
        let added = theirs.iter().filter(|(k, _)| !old.contains(k));
        found.extend(added.map(|(_, y)| whole(Sign::Added, kind, what, y)));
        let order = |list: &[((String, usize), &ValueInfoProto)]| -> Vec<(String, usize)> {
            list.iter().map(|(k, _)| k.clone()).collect()
        };
        if found.len() == start && order(&ours) != order(&theirs) {
            let line = vec![word(format!("{what}s are stored in another order"))];
            found.push(Change::new(Sign::Changed, Kind::Order, what, line));
        }
        for change in &mut found[start..] {
            change.minor = kind == Kind::ValueInfo;
        }
    }
    found
}

fn type_of(info: &ValueInfoProto) -> String {
    let text = info.r#type.as_ref().and_then(type_text);
    text.unwrap_or_else(|| "no type".to_owned())
}

fn whole(sign: Sign, kind: Kind, what: &str, info: &ValueInfoProto) -> Change {
    let line = vec![
        word(format!("{what} ")),
        name(info.name()),
        word(format!(": {}", type_of(info))),
    ];
    Change::new(sign, kind, info.name(), line)
}
