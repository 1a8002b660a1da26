//! Changes by block, and blocks that changed alike in one section.

use std::collections::{BTreeMap, HashMap};

use super::Diff;
use super::block::Blocks;
use super::change::{Change, Kind, Part, Sign, word};
use super::compare::Entry;

/// Plain nodes in a row that are shown one by one.
const RUN: usize = 6;
/// Unchanged nodes shown before and after a change.
const CONTEXT: usize = 2;
/// So many changes that say little are shown all the same.
const FEW: usize = 6;

/// What is shown of one place.
#[derive(Clone, Debug)]
pub(super) enum Row {
    Change(Box<Change>),
    /// An unchanged node: operator and name.
    Context(String, String),
    /// So many unchanged nodes.
    Skipped(usize),
}

/// A block, or several that changed alike.
#[derive(Clone, Debug)]
pub(super) struct Section {
    /// The first block, or the template with `*` for the number.
    pub title: String,
    /// The first block, to whose names the others' correspond.
    pub block: String,
    /// The numbers of the layers; empty for a block without one.
    pub layers: Vec<usize>,
    pub rows: Vec<Row>,
}

impl Section {
    /// How many blocks it stands for.
    pub(super) fn times(&self) -> usize {
        self.layers.len().max(1)
    }

    pub(super) fn changes(&self) -> impl Iterator<Item = &Change> {
        self.rows.iter().filter_map(|row| match row {
            Row::Change(change) => Some(&**change),
            _ => None,
        })
    }
}

/// The sections to be shown, and the changes that are left out, counted by kind.
pub(super) fn sections(diff: &Diff, full: bool) -> (Vec<Section>, BTreeMap<Kind, usize>) {
    let minor = diff.changes().filter(|c| c.minor).count();
    let show_minor = full || minor <= FEW || diff.changes().all(|c| c.minor) && minor <= 40;
    let mut hidden = BTreeMap::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut blocks: Vec<(&str, Vec<Entry>)> = Vec::new();
    for entry in &diff.entries {
        let block = match entry {
            Entry::Same { block, .. } => block,
            Entry::Change(change) => &change.block,
        };
        let at = *places.entry(block).or_insert(blocks.len());
        if at == blocks.len() {
            blocks.push((block, Vec::new()));
        }
        match entry {
            Entry::Change(change) if change.minor && (!show_minor || change.echo && !full) => {
                *hidden.entry(change.kind).or_default() += 1;
            }
            entry => blocks[at].1.push(entry.clone()),
        }
    }
    let mut found: Vec<(String, Section)> = Vec::new();
    for (block, mut entries) in blocks {
        if entries.iter().all(|e| matches!(e, Entry::Same { .. })) {
            continue;
        }
        if !full {
            entries = collapse(entries);
        }
        let (template, layer) = diff.blocks.template(block);
        let section = Section {
            title: block.to_owned(),
            block: block.to_owned(),
            layers: layer.into_iter().collect(),
            rows: rows(entries),
        };
        let key = signature(&section, &template, &diff.blocks);
        let same = found.iter_mut().find(|(k, _)| *k == key);
        match same.filter(|(_, s)| !full && layer.is_some() && !s.layers.is_empty()) {
            Some((_, first)) => {
                merge(first, &section);
                first.title.clone_from(&template);
            }
            None => found.push((key, section)),
        }
    }
    (
        found.into_iter().map(|(_, section)| section).collect(),
        hidden,
    )
}

/// Long runs of nodes that were just added or removed become one line with counts.
fn collapse(entries: Vec<Entry>) -> Vec<Entry> {
    let plain = |entry: &Entry| match entry {
        // Chains are few words already.
        Entry::Change(c) if c.kind == Kind::Node && c.nodes == 1 => Some(c.sign),
        _ => None,
    };
    let mut out = Vec::new();
    for sign in [Sign::Removed, Sign::Added] {
        let count = entries.iter().filter(|e| plain(e) == Some(sign)).count();
        if count <= RUN {
            continue;
        }
        let mut ops: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut nodes, mut first) = (0, None);
        for entry in entries.iter().filter(|e| plain(e) == Some(sign)) {
            if let Entry::Change(change) = entry {
                *ops.entry(&change.op).or_default() += 1;
                nodes += change.nodes;
                first.get_or_insert(change);
            }
        }
        let mut ops: Vec<(&str, usize)> = ops.into_iter().collect();
        ops.sort_by_key(|&(op, count)| (std::cmp::Reverse(count), op));
        let list: Vec<String> = ops.iter().map(|(op, n)| format!("{n} {op}")).collect();
        let line = vec![word(format!("{nodes} nodes: {}", list.join(", ")))];
        let mut change = Change::new(sign, Kind::Node, "", line);
        change.block = first.map(|c| c.block.clone()).unwrap_or_default();
        change.nodes = nodes;
        out.push((sign, Entry::Change(Box::new(change))));
    }
    let mut kept = Vec::new();
    for entry in entries {
        match plain(&entry).and_then(|sign| out.iter().position(|(s, _)| *s == sign)) {
            None if plain(&entry).is_some_and(|s| kept_whole(&kept, s)) => {}
            Some(at) => kept.push(out.remove(at).1),
            None => kept.push(entry),
        }
    }
    kept
}

/// Whether the line with the counts of a sign is already there.
fn kept_whole(kept: &[Entry], sign: Sign) -> bool {
    kept.iter().any(|entry| match entry {
        Entry::Change(c) => c.sign == sign && c.kind == Kind::Node && c.name.is_empty(),
        Entry::Same { .. } => false,
    })
}

/// Changes with their context.
fn rows(entries: Vec<Entry>) -> Vec<Row> {
    let changes: Vec<usize> = (0..entries.len())
        .filter(|&i| matches!(&entries[i], Entry::Change(c) if !c.op.is_empty() || c.job.is_some()))
        .collect();
    let near = |i: usize| {
        let at = changes.partition_point(|&c| c < i);
        let before = at.checked_sub(1).map(|k| i - changes[k]);
        let after = changes.get(at).map(|c| c - i);
        before.is_some_and(|d| d <= CONTEXT) || after.is_some_and(|d| d <= CONTEXT)
    };
    let mut rows: Vec<Row> = Vec::new();
    for (i, entry) in entries.into_iter().enumerate() {
        match entry {
            Entry::Change(change) => rows.push(Row::Change(change)),
            Entry::Same { op, name, .. } if near(i) => rows.push(Row::Context(op, name)),
            Entry::Same { .. } => match rows.last_mut() {
                Some(Row::Skipped(count)) => *count += 1,
                _ => rows.push(Row::Skipped(1)),
            },
        }
    }
    rows
}

/// Everything about a section that must be the same for another to be shown with it.
fn signature(section: &Section, template: &str, blocks: &Blocks) -> String {
    let own = section.layers.first().copied().unwrap_or(0);
    let part = |part: &Part| match part {
        Part::Word(text) => text.clone(),
        Part::Name(text) => blocks.relative(text, own),
        Part::Number(..) | Part::Range(..) => "0".to_owned(),
        Part::Digest(_) => "#".to_owned(),
    };
    let line = |parts: &Vec<Part>| -> String { parts.iter().map(part).collect() };
    let change = |c: &Change| {
        let renames = c.renames.iter().filter(|_| c.kind == Kind::Name);
        let details: Vec<String> = renames.chain(&c.details).map(line).collect();
        format!(
            "{:?}{:?}{}|{}",
            c.sign,
            c.kind,
            line(&c.line),
            details.join("|")
        )
    };
    let changes: Vec<String> = section.changes().map(change).collect();
    format!("{template}\n{}", changes.join("\n"))
}

/// Takes the numbers of another section into the first.
fn merge(first: &mut Section, other: &Section) {
    first.layers.extend(&other.layers);
    let ours = first.rows.iter_mut().filter_map(|row| match row {
        Row::Change(change) => Some(change),
        _ => None,
    });
    for (x, y) in ours.zip(other.changes()) {
        let lines = std::iter::once(&mut x.line).chain(&mut x.details);
        for (p, q) in lines.zip(std::iter::once(&y.line).chain(&y.details)) {
            for pair in p.iter_mut().zip(q) {
                match pair {
                    (Part::Number(a, b), Part::Number(c, d))
                    | (Part::Range(a, b), Part::Range(c, d)) => {
                        *a = a.min(*c);
                        *b = b.max(*d);
                    }
                    (Part::Digest(a), Part::Digest(b)) if a != b => *a = None,
                    _ => {}
                }
            }
        }
    }
}

/// `0–5, 7`.
pub(super) fn ranges(numbers: &[usize]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for number in sorted {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == number => *end = number,
            _ => runs.push((number, number)),
        }
    }
    let text = |(a, b): (usize, usize)| match a == b {
        true => a.to_string(),
        false => format!("{a}–{b}"),
    };
    runs.into_iter().map(text).collect::<Vec<_>>().join(", ")
}
