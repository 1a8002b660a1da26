//! Which columns of a table hold the text.

use std::path::Path;

use crate::prepare::error::{PrepareError, Setting};

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    /// Whether it holds text, and not numbers alone.
    pub(super) is_text: bool,
}

/// Names that columns of text usually have, the most telling first.
const TEXT: [&str; 11] = [
    "text", "sentence", "input", "inputs", "content", "prompt", "query", "question", "document",
    "passage", "review",
];

/// Names that the two columns of pairs usually have.
const PAIRS: [(&str, &str); 14] = [
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("sentence_A", "sentence_B"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("query", "passage"),
    ("query", "document"),
    ("query", "text"),
    ("query", "positive"),
    ("question", "context"),
    ("question", "answer"),
    ("question", "sentence"),
];

/// The numbers of the columns with the text: one, or two for pairs.
///
/// # Errors
/// A column that is not there; no column, or several, that may hold the text.
pub(super) fn choose(
    path: &Path,
    columns: &[Column],
    wanted: &[String],
    pairs: bool,
) -> Result<Vec<usize>, PrepareError> {
    let find = |name: &str| columns.iter().position(|column| column.name == name);
    let names = || {
        let names: Vec<String> = columns.iter().map(|c| format!("`{}`", c.name)).collect();
        names.join(", ")
    };
    if wanted.len() > 2 {
        return Err(PrepareError::needs(
            path,
            Setting::Columns,
            format!(
                "{} columns were asked for; a text has one, a pair two",
                wanted.len()
            ),
        ));
    }
    if !wanted.is_empty() {
        return wanted
            .iter()
            .map(|name| {
                find(name).ok_or_else(|| {
                    let problem = format!("has no column `{name}`; its columns are {}", names());
                    PrepareError::needs(path, Setting::Columns, problem)
                })
            })
            .collect();
    }
    let is_text = |at: &usize| columns[*at].is_text;
    let pair = PAIRS.iter().find_map(|(first, second)| {
        let pair = [find(first)?, find(second)?];
        pair.iter().all(is_text).then_some(pair.to_vec())
    });
    if let Some(pair) = pair.filter(|_| pairs) {
        return Ok(pair);
    }
    let usual = TEXT.iter().find_map(|name| find(name).filter(is_text));
    if let Some(usual) = usual {
        return Ok(vec![usual]);
    }
    let texts: Vec<usize> = (0..columns.len()).filter(is_text).collect();
    match texts[..] {
        [one] => Ok(vec![one]),
        // A list of two texts, as models of pairs are given them.
        [first, second] if pairs => Ok(vec![first, second]),
        [] => Err(PrepareError::file(
            path,
            format!("holds no column of text; its columns are {}", names()),
        )),
        _ => Err(PrepareError::needs(
            path,
            Setting::Columns,
            format!(
                "which column holds the text is not clear: say one of {}, or two for pairs",
                names()
            ),
        )),
    }
}

/// Names that columns of labels usually have, the most telling first.
const LABELS: [&str; 13] = [
    "label",
    "labels",
    "score",
    "target",
    "class",
    "similarity_score",
    "similarity",
    "relevance",
    "gold_label",
    "category",
    "rating",
    "stars",
    "sentiment",
];

/// The number of the column with the labels.
///
/// # Errors
/// A column that is not there; several that may hold the labels.
pub(super) fn choose_label(
    path: &Path,
    columns: &[Column],
    wanted: Option<&str>,
) -> Result<usize, PrepareError> {
    let find = |name: &str| columns.iter().position(|column| column.name == name);
    let needs = |problem: String| {
        let names: Vec<String> = columns.iter().map(|c| format!("`{}`", c.name)).collect();
        let problem = format!("{problem}; its columns are {}", names.join(", "));
        PrepareError::needs(path, Setting::Labels, problem)
    };
    if let Some(name) = wanted {
        return find(name).ok_or_else(|| needs(format!("has no column `{name}`")));
    }
    if let Some(usual) = LABELS.iter().find_map(|name| find(name)) {
        return Ok(usual);
    }
    let numbers: Vec<usize> = (0..columns.len())
        .filter(|at| !columns[*at].is_text)
        .collect();
    match (columns.len(), &numbers[..]) {
        (1, _) => Ok(0),
        (_, [one]) => Ok(*one),
        _ => Err(needs(
            "does not tell which column holds the labels".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(
        columns: &[(&str, bool)],
        wanted: &[&str],
        pairs: bool,
    ) -> Result<Vec<usize>, String> {
        let columns: Vec<Column> = columns
            .iter()
            .map(|(name, is_text)| Column {
                name: (*name).to_owned(),
                is_text: *is_text,
            })
            .collect();
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        choose(Path::new("a.csv"), &columns, &wanted, pairs).map_err(|e| e.to_string())
    }

    #[test]
    fn the_usual_names_win_then_the_only_text() {
        let table = [("id", false), ("title", true), ("sentence", true)];
        assert_eq!(chosen(&table, &[], false), Ok(vec![2]));
        assert_eq!(chosen(&table[..2], &[], false), Ok(vec![1]));
        assert_eq!(chosen(&table, &["title"], false), Ok(vec![1]));
    }

    #[test]
    fn pairs_are_taken_where_the_model_compares() {
        let table = [("label", false), ("premise", true), ("hypothesis", true)];
        assert_eq!(chosen(&table, &[], true), Ok(vec![1, 2]));
        let told = chosen(&table, &[], false).unwrap_err();
        assert!(told.contains("`label`, `premise`, `hypothesis`"), "{told}");
    }

    #[test]
    fn what_is_not_there_is_listed() {
        let told = chosen(&[("a", true), ("b", true)], &["c"], false).unwrap_err();
        assert_eq!(told, "a.csv: has no column `c`; its columns are `a`, `b`");
        let told = chosen(&[("text", false)], &[], false).unwrap_err();
        assert!(told.contains("no column of text"), "{told}");
    }
}
