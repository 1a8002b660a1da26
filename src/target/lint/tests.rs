//! The rules themselves are proved on the runtimes by `tests/python/test_lint_rules.py`; here is what needs no runtime.

use std::collections::BTreeSet;

use super::*;

#[test]
fn ids_are_unique_and_every_rule_says_everything() {
    let mut ids = BTreeSet::new();
    for rule in rules(Target::Portable) {
        assert!(ids.insert(rule.id), "{} twice", rule.id);
        for text in [rule.title, rule.source, rule.mend] {
            assert!(text.len() > 10, "{}: {text}", rule.id);
        }
        // A continued line of source keeps no run of spaces.
        assert!(!rule.mend.contains("  ") && !rule.source.contains("  "), "{}", rule.id);
    }
    assert!(ids.len() > 40, "{}", ids.len());
}
