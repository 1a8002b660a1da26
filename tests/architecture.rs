//! Holds the source to `ARCHITECTURE.md`: which module imports which, who may talk to the world, how long a file gets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use regex::Regex;

/// Modules that put the others together.
const FREE: [&str; 4] = ["error", "pipeline", "quantizer", "lib"];
/// The trait that every step reports its progress to.
const FOR_ALL: &str = "progress";
/// The command line: a program of its own that uses the library.
const PROGRAM: [&str; 2] = ["cli", "main"];
const MAX_LINES: usize = 500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

struct Source {
    path: PathBuf,
    /// `onnx` for `src/onnx/…` and `src/onnx.rs`.
    module: String,
    /// How many modules this one is in: 1 for `src/onnx/mod.rs`, 2 for `src/onnx/load.rs`.
    depth: usize,
    /// Without comments and tests.
    code: String,
    lines: usize,
}

impl Source {
    fn is_test(&self) -> bool {
        let path = self.path.to_str().unwrap();
        path.contains("/tests/") || path.ends_with("/tests.rs")
    }
}

/// Every Rust file under `src`.
fn sources() -> Vec<Source> {
    let mut folders = vec![root().join("src")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(source(&path));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 40, "only {} files", found.len());
    found
}

fn source(path: &Path) -> Source {
    let relative = path.strip_prefix(root().join("src")).unwrap();
    let mut parts: Vec<String> = relative
        .with_extension("")
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    parts.retain(|part| part != "mod");
    let text = std::fs::read_to_string(path).unwrap();
    let comment = Regex::new(r"//[^\n]*").unwrap();
    // Tests at the end of a file may build graphs and run them.
    let end = text.find("#[cfg(test)]\nmod tests {");
    let text = &text[..end.unwrap_or(text.len())];
    Source {
        path: path.to_owned(),
        module: parts[0].clone(),
        depth: parts.len(),
        code: comment.replace_all(text, "").into_owned(),
        lines: text.lines().count(),
    }
}

/// The modules at the crate's root that a file names.
fn imports(source: &Source) -> BTreeSet<String> {
    let path = Regex::new(r"\b(crate|(?:super::)*super)::(\{[^;]*\}|\w+)").unwrap();
    // `{a, b::{c, d}, e}` names a, b and e.
    let inner = Regex::new(r"::(\{[^{}]*\}|\w+|\*)").unwrap();
    let name = Regex::new(r"\w+").unwrap();
    let mut found = BTreeSet::new();
    for hit in path.captures_iter(&source.code) {
        let ups = hit[1].matches("super").count();
        if &hit[1] != "crate" && ups < source.depth {
            continue;
        }
        let mut names = hit[2].to_owned();
        if names.starts_with('{') {
            let end = names.len();
            names = names[1..end - 1].to_owned();
            while inner.is_match(&names) {
                names = inner.replace_all(&names, "").into_owned();
            }
        }
        let lower = |n: &&str| n.starts_with(|c: char| c.is_ascii_lowercase());
        found.extend(
            name.find_iter(&names)
                .map(|n| n.as_str())
                .filter(lower)
                .map(str::to_owned),
        );
    }
    found.remove(&source.module);
    found
}

/// The table between the markers of `ARCHITECTURE.md`.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, rest) = text.split_once("<!-- imports -->").unwrap();
    let (table, _) = rest.split_once("<!-- /imports -->").unwrap();
    let cell = |cell: &str| cell.trim().trim_matches('`').to_owned();
    table
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells: Vec<&str> = line.split('|').collect();
            let imports = cells[2].split(',').map(cell);
            (cell(cells[1]), imports.filter(|i| i != "–").collect())
        })
        .collect()
}

#[test]
fn modules_import_what_the_table_allows() {
    let table = table();
    let modules: BTreeSet<String> = sources().into_iter().map(|s| s.module).collect();
    let mut wrong = Vec::new();
    for source in sources() {
        let module = source.module.as_str();
        if FREE.contains(&module) || PROGRAM.contains(&module) || source.is_test() {
            continue;
        }
        let Some(allowed) = table.get(module) else {
            panic!("{module} has no row in ARCHITECTURE.md");
        };
        let of_crate = imports(&source).into_iter().filter(|i| modules.contains(i));
        for import in of_crate.filter(|import| import != FOR_ALL && !allowed.contains(import)) {
            wrong.push(format!("{} imports {import}", source.path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let unknown: Vec<_> = table.keys().filter(|m| !modules.contains(*m)).collect();
    assert!(unknown.is_empty(), "no such module: {unknown:?}");
}

#[test]
fn the_table_has_no_cycle() {
    let mut table = table();
    while !table.is_empty() {
        let free = table
            .iter()
            .find(|(_, imports)| imports.iter().all(|i| !table.contains_key(i)));
        let free = free.map(|(module, _)| module.clone());
        let free = free.unwrap_or_else(|| panic!("a cycle among {:?}", table.keys()));
        table.remove(&free);
    }
}

/// The files whose code matches `pattern`, other than those `allowed`.
fn offenders(pattern: &str, allowed: impl Fn(&Source) -> bool) -> Vec<String> {
    let pattern = Regex::new(pattern).unwrap();
    let hit = |source: &Source| {
        let hit = pattern.find(&source.code)?;
        Some(format!("{}: {}", source.path.display(), hit.as_str()))
    };
    let sources = sources();
    let checked = sources.iter().filter(|s| !allowed(s));
    checked.filter_map(hit).collect()
}

#[test]
fn only_calibrate_knows_the_inference_engine() {
    let found = offenders(r"\btract_\w+::", |s| s.module == "calibrate");
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn the_library_never_prints_or_exits_or_reads_the_environment() {
    let pattern =
        r"\b(e?print(ln)?|dbg)!|\bstd::env\b|\bprocess::(exit|abort)|\bstd::\{[^}]*\benv\b";
    let found = offenders(pattern, |s| {
        PROGRAM.contains(&s.module.as_str()) || s.is_test()
    });
    assert_eq!(found, Vec::<String>::new());
}

/// A name in a string could be misspelt; a constant of `onnx::op` cannot.
#[test]
fn operators_are_named_by_constants() {
    let list = std::fs::read_to_string(root().join("proto/operators.txt")).unwrap();
    let named = list
        .lines()
        .filter(|l| l.starts_with(|c: char| c.is_ascii_uppercase()));
    let names: Vec<&str> = named.collect();
    assert!(names.len() > 200, "{}", names.len());
    let pattern = format!(r#""({})""#, names.join("|"));
    let found = offenders(&pattern, Source::is_test);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn no_file_is_longer_than_500_lines() {
    let long: Vec<_> = sources()
        .into_iter()
        .filter(|s| !s.is_test() && s.lines > MAX_LINES)
        .map(|s| format!("{}: {}", s.path.display(), s.lines))
        .collect();
    assert_eq!(long, Vec::<String>::new());
}

#[test]
fn imports_are_found_in_every_spelling() {
    let find = |depth: usize, code: &str| {
        let source = Source {
            path: PathBuf::from("src/graph/view.rs"),
            module: "graph".to_owned(),
            depth,
            code: code.to_owned(),
            lines: 1,
        };
        imports(&source).into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(find(2, "use crate::onnx::Model;"), "onnx");
    assert_eq!(
        find(2, "use crate::{Error, onnx::{node, Model}, site};"),
        "onnx site"
    );
    assert_eq!(find(2, "let x = crate::solve::f();"), "solve");
    assert_eq!(find(2, "use super::super::rewrite::Affine;"), "rewrite");
    assert_eq!(find(1, "use super::review;"), "review");
    assert_eq!(find(2, "use super::patch; use crate::graph::View;"), "");
}
