//! Every file of the fuzz corpus, what was found among them, goes through the targets that take its kind. Files called
//! `found-…` each ended one of them once.

use std::fs;

#[path = "../fuzz/src/lib.rs"]
mod targets;

use targets::{TARGETS, root};

#[test]
fn the_corpus_goes_through_all_targets() {
    let folder = tempfile::tempdir().unwrap();
    for target in TARGETS {
        let corpus = root().join("fuzz/corpus").join(target.corpus);
        let mut paths: Vec<_> = fs::read_dir(&corpus)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        assert!(!paths.is_empty(), "{}", corpus.display());
        for path in paths {
            let data = fs::read(&path).unwrap();
            let run = std::panic::AssertUnwindSafe(|| (target.run)(&data, folder.path()));
            let done = std::panic::catch_unwind(run);
            assert!(done.is_ok(), "{} on {}", target.name, path.display());
        }
    }
}

/// Seeds that nothing accepts would test nothing but the first error.
#[test]
fn the_seeds_are_what_they_claim() {
    let read = |name: &str| fs::read(root().join("fuzz/corpus").join(name)).unwrap();
    assert!(onnx_osplus::plan_round_trip(&read("plan/tiny.json")).is_some());
    let report: onnx_osplus::review::Report =
        serde_json::from_slice(&read("report/tiny.json")).unwrap();
    assert!(!report.linears.is_empty());
    let models = fs::read_dir(root().join("fuzz/corpus/model")).unwrap();
    let loaded = models.filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        onnx_osplus::onnx::load(path).is_ok()
    });
    assert!(loaded.count() > 20);
    let folder = tempfile::tempdir().unwrap();
    for corpus in ["table", "tokenizer", "image", "preprocessor", "sound"] {
        let files = fs::read_dir(root().join("fuzz/corpus").join(corpus)).unwrap();
        let paths = files.map(|entry| entry.unwrap().path());
        for path in paths.filter(|path| !path.display().to_string().contains("found-")) {
            let data = fs::read(&path).unwrap();
            let good = targets::becomes_rows(corpus, &data, folder.path());
            assert!(good, "{}", path.display());
        }
    }
}
