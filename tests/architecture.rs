//! Holds the source to `ARCHITECTURE.md`: which module imports which, who knows the engine, how long a file gets. What the
//! compiler can say, it says: `[lints]` in Cargo.toml, clippy.toml.

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

/// The path of a module in the crate.
type Module = Vec<String>;

struct Source {
    path: PathBuf,
    /// `onnx` for `src/onnx/…` and `src/onnx.rs`.
    module: String,
    /// `["onnx", "load"]` for `src/onnx/load.rs`, `["onnx"]` for `src/onnx/mod.rs`.
    path_in_crate: Module,
    /// Without comments and tests.
    code: String,
    lines: usize,
}

impl Source {
    fn is_test(&self) -> bool {
        self.path_in_crate.iter().any(|part| part == "tests")
    }
}

/// Every Rust file in the folder `top` and below it.
fn rust_files(top: &str) -> Vec<PathBuf> {
    let mut folders = vec![root().join(top)];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Every Rust file under `src`.
fn sources() -> Vec<Source> {
    let found: Vec<Source> = rust_files("src").iter().map(|path| source(path)).collect();
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
        path_in_crate: parts,
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
        if &hit[1] != "crate" && ups < source.path_in_crate.len() {
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

/// The table between the markers `name` of `ARCHITECTURE.md`.
fn table(name: &str) -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, rest) = text.split_once(&format!("<!-- {name} -->")).unwrap();
    let (table, _) = rest.split_once(&format!("<!-- /{name} -->")).unwrap();
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
    let table = table("imports");
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
fn the_tables_have_no_cycle() {
    for name in ["imports", "folders"] {
        has_no_cycle(table(name));
    }
}

fn has_no_cycle(mut table: BTreeMap<String, BTreeSet<String>>) {
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
fn only_the_folder_of_the_engine_knows_tract() {
    let found = offenders(r"\btract_(core|data|hir|linalg|nnef|onnx)\b", |s| {
        s.is_test()
            || s.path_in_crate
                .starts_with(&["calibrate", "engine"].map(str::to_owned))
    });
    assert_eq!(found, Vec::<String>::new());
}

/// A second pool, or a thread beside it, would be one more than was asked for.
#[test]
fn threads_are_made_in_one_place() {
    let pattern = r"\bThreadPoolBuilder\b|\bthread::(spawn|scope|Builder)\b|\brayon::spawn";
    let found = offenders(pattern, |s| {
        // The program's thread for signals only waits, and ends it.
        let places = [
            &["calibrate", "measure", "parallel"][..],
            &["cli", "system"],
        ];
        s.is_test() || places.iter().any(|place| s.path_in_crate == *place)
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
    // The page of the report has headings for people; one is called Attention.
    let page = ["review", "html"].map(str::to_owned);
    let found = offenders(&pattern, |s| {
        s.is_test() || s.path_in_crate.starts_with(&page)
    });
    assert_eq!(found, Vec::<String>::new());
}

/// A file that no `mod` names is not compiled, and its tests do not run; the compiler does not say so.
#[test]
fn every_file_is_a_module_of_the_one_above_it() {
    let roots = ["lib.rs", "main.rs"];
    let mut forgotten = Vec::new();
    for top in ["src", "tests"] {
        for file in rust_files(top) {
            let folder = file.parent().unwrap();
            let name = file.file_name().unwrap().to_str().unwrap();
            let (above, module) = match name {
                _ if folder == root().join(top) && roots.contains(&name) => continue,
                "mod.rs" => (folder.parent().unwrap(), folder.file_name().unwrap()),
                _ => (folder, file.file_stem().unwrap()),
            };
            let module = module.to_str().unwrap();
            let named = Regex::new(&format!(r"(?m)^\s*(pub(\(\w+\))? )?mod {module};")).unwrap();
            let parents = ["lib.rs", "main.rs", "mod.rs"].map(|parent| above.join(parent));
            let beside = above.with_extension("rs");
            let texts = parents
                .iter()
                .chain([&beside])
                .filter_map(|parent| std::fs::read_to_string(parent).ok());
            if !texts.into_iter().any(|text| named.is_match(&text)) {
                forgotten.push(file);
            }
        }
    }
    assert_eq!(forgotten, Vec::<PathBuf>::new());
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
            path_in_crate: vec!["graph".to_owned(); depth],
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

/// Files that may import each other in a circle for now, and why: `a/b, c` inside `m/` are m/a/b and m/c. A circle that is
/// opened must go from here.
#[rustfmt::skip]
const CIRCLES: &[(&str, &str, &str)] = &[
    ("cli/", "arguments, decoders, dequantize, diff, evaluation, folder, inspect, lint, pages, parse, report, stats, streaming, summary, text, verify, .", "the root starts the commands and has what they share"),
    ("graph/axes/", "layout, pick, rules, .", "the rules are methods of what the root defines"),
    ("graph/opset/", "convert, convert/later, table, .", "the table names the conversions, which take the types of the root"),
    ("recognise/", "contrib, linear", "a Linear may be inside an operator of ONNX Runtime's"),
    ("recognise/", "decomposed, moments, norm", "the forms of a norm take its types"),
    ("review/diff/", "change, compare, rest, .", "the parts take the types of the root"),
    ("review/verify/", "layers, .", "the parts take the types of the root"),
    ("rewrite/quantize/", "weight, .", "the parts take the types of the root"),
    ("site/", "compound, contrib, rules, sizes, trace", "the rules take the types of the trace that has their table"),
    ("target/", "profile, table, .", "the table is made of the types of the profile"),
    ("target/lint/", "onnxruntime, onnxruntime/blocks, onnxruntime/products, openvino, tensorrt, tensorrt/parser, .", "the rules take the types of the root"),
];

/// What the `use`s and paths of a file name.
#[derive(Default)]
struct Names {
    /// Full paths of what the file itself uses.
    used: Vec<Module>,
    /// Names that a path through this module can take, with the full path that each stands for.
    known: BTreeMap<String, Module>,
}

/// The full path of `path`, which stands in `module`; `None` if it leads out of the crate.
fn full(path: &[String], module: &Module, modules: &BTreeMap<Module, Source>) -> Option<Module> {
    let ups = path.iter().take_while(|s| *s == "super" || *s == "self");
    let (ups, supers) = (ups.clone().count(), ups.filter(|s| *s == "super").count());
    let start = match path.first()?.as_str() {
        "crate" => return Some(path[1..].to_vec()),
        "super" | "self" => module[..module.len().checked_sub(supers)?].to_vec(),
        child => {
            let child = [module.as_slice(), &[child.to_owned()]].concat();
            modules.get(&child).map(|_| module.clone())?
        }
    };
    Some([start.as_slice(), &path[ups..]].concat())
}

/// The paths of a `use`: `a::{self, b::{c, d}}` is a, a::b::c and a::b::d.
fn spread(tree: &str, before: &[String], paths: &mut Vec<Module>) {
    let (head, inner) = tree.trim().split_once('{').unwrap_or((tree, ""));
    let parts = head.split("::").map(|part| part.trim().to_owned());
    let parts = parts.filter(|p| !p.is_empty() && (p != "self" || before.is_empty()));
    let path: Module = before.iter().cloned().chain(parts).collect();
    let Some(inner) = inner.strip_suffix('}') else {
        paths.push(path);
        return;
    };
    let (mut depth, mut from) = (0, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !inner[from..at].trim().is_empty() {
                    spread(&inner[from..at], &path, paths);
                }
                from = at + 1;
            }
            _ => {}
        }
    }
}

fn names(module: &Module, modules: &BTreeMap<Module, Source>) -> Names {
    let seen_by = Regex::new(r"pub\([^)]*\)").unwrap();
    let code = seen_by.replace_all(&modules[module].code, "pub");
    let uses = Regex::new(r"(?m)^\s*(pub\s+)?use\s+([^;]+);").unwrap();
    let paths = Regex::new(r"\b(?:[a-z_]\w*::)+\w+").unwrap();
    let mut names = Names::default();
    for found in uses.captures_iter(&code) {
        let mut spelt = Vec::new();
        spread(&found[2], &[], &mut spelt);
        for mut path in spelt {
            // Every path has a last part.
            let last = path.pop().unwrap();
            let (last, name) = last.split_once(" as ").unwrap_or((&last, &last));
            path.push(last.to_owned());
            let Some(path) = full(&path, module, modules) else {
                continue;
            };
            // A module that only hands a name on does not use it.
            if found.get(1).is_none() {
                names.used.push(path.clone());
            }
            names.known.insert(name.trim().to_owned(), path);
        }
    }
    for found in paths.find_iter(&uses.replace_all(&code, "")) {
        let path: Module = found.as_str().split("::").map(str::to_owned).collect();
        names.used.extend(full(&path, module, modules));
    }
    names
}

/// The module in which the end of a path is defined, past all that only hand it on.
fn home(path: &Module, names: &BTreeMap<Module, Names>, steps: usize) -> Module {
    let at = (0..=path.len())
        .rev()
        .find(|n| names.contains_key(&path[..*n]));
    let (module, rest) = path.split_at(at.unwrap_or(0));
    let next = rest.first().and_then(|name| names[module].known.get(name));
    match next.filter(|_| steps > 0) {
        Some(next) => home(&[next.as_slice(), &rest[1..]].concat(), names, steps - 1),
        None => module.to_vec(),
    }
}

/// Which file imports which. Tests and the roots of library and program are left out.
fn arrows() -> BTreeMap<Module, BTreeSet<Module>> {
    let mut modules = BTreeMap::new();
    for source in sources().into_iter().filter(|s| !s.is_test()) {
        let path = match source.module.as_str() {
            "main" => continue,
            "lib" => Module::new(),
            _ => source.path_in_crate.clone(),
        };
        modules.insert(path, source);
    }
    let names = modules.keys().map(|m| (m.clone(), names(m, &modules)));
    let names: BTreeMap<Module, Names> = names.collect();
    let imports = |module: &Module| {
        let homes = names[module].used.iter().map(|path| home(path, &names, 9));
        let others = homes.filter(|home| home != module && !home.is_empty());
        (module.clone(), others.collect())
    };
    let files = names.keys().filter(|module| !module.is_empty());
    files.map(imports).collect()
}

/// All that a file imports, directly and by way of others.
fn behind(module: &Module, arrows: &BTreeMap<Module, BTreeSet<Module>>) -> BTreeSet<Module> {
    let mut found = BTreeSet::new();
    let mut next = vec![module];
    while let Some(module) = next.pop() {
        next.extend(arrows[module].iter().filter(|m| found.insert((*m).clone())));
    }
    found
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let arrows = arrows();
    let behind: BTreeMap<&Module, _> = arrows.keys().map(|m| (m, behind(m, &arrows))).collect();
    let circles: BTreeSet<BTreeSet<String>> = behind
        .iter()
        .filter(|(module, all)| all.contains(**module))
        .map(|(module, all)| {
            let circle = all.iter().filter(|other| behind[other].contains(*module));
            circle.map(|m| m.join("/")).collect()
        })
        .collect();
    let excepted = CIRCLES
        .iter()
        .map(|(folder, files, _)| -> BTreeSet<String> {
            let path = |file: &str| format!("{folder}{file}").replace("/.", "");
            files.split(", ").map(path).collect()
        });
    let mut excepted: Vec<(BTreeSet<String>, bool)> =
        excepted.map(|files| (files, false)).collect();
    for circle in circles {
        // What was opened in part is still excepted.
        let found = excepted
            .iter_mut()
            .find(|(files, _)| circle.is_subset(files));
        match found {
            Some((_, seen)) => *seen = true,
            None => panic!("a circle of imports: {circle:#?}"),
        }
    }
    let opened: Vec<_> = excepted.iter().filter(|(_, seen)| !seen).collect();
    assert!(opened.is_empty(), "no longer circles: {opened:#?}");
}

#[test]
fn folders_inside_a_module_import_what_the_table_allows() {
    let table = table("folders");
    let folder = |module: &Module| module[..module.len().min(2)].join("/");
    let mut wrong = Vec::new();
    for (file, imports) in arrows() {
        let Some(allowed) = table.get(&folder(&file)) else {
            continue;
        };
        let inside = imports.iter().filter(|import| import[0] == file[0]);
        for import in inside.filter(|i| folder(i) != folder(&file) && !allowed.contains(&folder(i)))
        {
            wrong.push(format!("{} imports {}", file.join("/"), import.join("/")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let exists = |folder: &&String| root().join("src").join(folder).is_dir();
    assert!(
        table.keys().all(|folder| exists(&folder)),
        "{:?}",
        table.keys()
    );
}

#[test]
fn every_name_of_a_use_is_found() {
    let mut paths = Vec::new();
    spread("crate::{a, b::{self, c::d, e as f},}", &[], &mut paths);
    let paths: Vec<String> = paths.iter().map(|path| path.join("::")).collect();
    assert_eq!(
        paths.join(" "),
        "crate::a crate::b crate::b::c::d crate::b::e as f"
    );
    let arrows = arrows();
    let imports = |file: &str, other: &str| {
        let path = |file: &str| file.split('/').map(str::to_owned).collect::<Module>();
        arrows[&path(file)].contains(&path(other))
    };
    // By way of `calibrate`, which hands the name on; of a module in the same folder; of the own folder's root.
    assert!(imports("review/verify/layers", "calibrate/engine/plan"));
    assert!(!imports("review/verify/layers", "calibrate"));
    assert!(imports(
        "calibrate/engine/decompose/contrib",
        "calibrate/engine/decompose/build"
    ));
    assert!(imports("review/verify", "review/verify/layers"));
}
