//! The table of targets: what the documents say of it, and what options make of it.

use onnx_osplus::Options;
use onnx_osplus::target::{MIN_OPSET, Target, markdown};

#[test]
fn the_table_in_the_documents_is_the_table_in_the_code() {
    let text = std::fs::read_to_string("ARCHITECTURE.md").unwrap();
    let (_, rest) = text
        .split_once("<!-- targets -->\n")
        .expect("the start of the table");
    let (table, _) = rest
        .split_once("<!-- /targets -->")
        .expect("the end of the table");
    assert_eq!(
        table,
        markdown(),
        "ARCHITECTURE.md differs from src/target/table.rs"
    );
}

#[test]
fn every_profile_says_what_it_rests_on() {
    for target in Target::ALL {
        let profile = target.profile();
        assert_eq!(profile.target, target);
        assert_eq!(Target::named(profile.name), Some(target));
        assert!(profile.newest_opset >= MIN_OPSET);
        assert!(!profile.sources.is_empty(), "{}", profile.name);
        for source in profile.sources {
            let there = source.document.starts_with("https://")
                || std::path::Path::new(source.document).exists();
            assert!(there, "{} is no document", source.document);
        }
    }
    assert_eq!(Target::named("tensorflow"), None);
}

/// Two products of a uint8 and a weight, the most that is added in 16 bits before VNNI.
#[test]
fn weights_of_reduced_range_cannot_saturate() {
    let sum = |options: &Options| 2 * 255 * options.weight().qmax();
    let reduced = |weight_bits| Options {
        reduce_range: true,
        weight_bits,
        ..Options::default()
    };
    assert!(sum(&Options::default()) > i32::from(i16::MAX));
    assert_eq!(reduced(8).weight().qmax(), 63);
    assert!(sum(&reduced(8)) <= i32::from(i16::MAX));
    assert_eq!(reduced(4).weight().qmax(), 7, "fewer bits stay as they are");
}
