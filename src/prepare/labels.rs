//! Labels beside the data: a column of a table, or a line for each row.

use std::path::Path;

use super::config::Config;
use super::error::{PrepareError, guarded};
use super::rows;
use super::settings::{CONFIG, Settings};

/// How a sentence transformer makes one vector of those of all tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// Their mean, without padding.
    #[default]
    Mean,
    /// That of the first token.
    First,
    /// That of the last token that is no padding.
    Last,
}

/// Reads the label of every row of `path`: a number each, of a class or of anything else. `None` where a row has none.
///
/// Labels that are words are classes by the `label2id` of the model's configuration.
///
/// # Errors
/// A file that is not what its name says, a column that is not there or not told, words that are no classes.
pub(crate) fn read(
    path: &Path,
    column: Option<&str>,
    settings: &Settings,
) -> Result<Vec<Option<f64>>, PrepareError> {
    let texts = guarded(path, || rows::labels(path, column))?;
    if let Some(numbers) = numbers(&texts) {
        return Ok(numbers);
    }
    let classes = classes(settings)?;
    let number = |text: &Option<String>| {
        let Some(text) = text.as_deref().map(str::trim) else {
            return Ok(None);
        };
        let known = classes.iter().find(|(name, _)| name == text);
        let known = known.or_else(|| {
            let same = |name: &str| name.eq_ignore_ascii_case(text);
            classes.iter().find(|(name, _)| same(name))
        });
        known.map(|(_, number)| Some(*number)).ok_or_else(|| {
            let told = match classes.is_empty() {
                true => "there is no config.json with a label2id beside the model".to_owned(),
                false => {
                    let names: Vec<String> =
                        classes.iter().map(|(n, _)| format!("`{n}`")).collect();
                    format!("the config.json beside the model knows {}", names.join(", "))
                }
            };
            PrepareError::file(
                path,
                format!("the label `{text}` is no number and no class of the model: {told}; write the number of the class"),
            )
        })
    };
    texts.iter().map(number).collect()
}

/// The labels, if all are numbers or truth values.
fn numbers(texts: &[Option<String>]) -> Option<Vec<Option<f64>>> {
    let number = |text: &Option<String>| match text.as_deref().map(str::trim) {
        None => Some(None),
        Some("true" | "True") => Some(Some(1.0)),
        Some("false" | "False") => Some(Some(0.0)),
        Some(text) => text.parse().ok().map(Some),
    };
    texts.iter().map(number).collect()
}

/// The classes of the model by name, as its configuration has them, in the order of their numbers.
fn classes(settings: &Settings) -> Result<Vec<(String, f64)>, PrepareError> {
    let config = Config::of(&settings.beside()?, CONFIG)?;
    let by_name = config.inside("label2id").unwrap_or_default();
    let by_number = config.inside("id2label").unwrap_or_default();
    let named = by_name
        .keys()
        .filter_map(|name| Some((name.to_owned(), by_name.number(name)?)));
    let numbered = by_number
        .keys()
        .filter_map(|n| Some((by_number.text(n)?.to_owned(), n.parse().ok()?)));
    let mut classes: Vec<(String, f64)> = named.chain(numbered).collect();
    classes.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    classes.dedup();
    Ok(classes)
}

/// How a model of sentences makes one vector of those of all tokens: what `1_Pooling/config.json` beside it says, and whether
/// there is one.
///
/// # Errors
/// It cannot be read, or says something that is not known here.
pub(crate) fn pooling(settings: &Settings) -> Result<(Pooling, bool), PrepareError> {
    let files = settings.beside()?;
    let mut files = files
        .into_iter()
        .map(|folder| folder.join("1_Pooling").join(CONFIG));
    let Some(file) = files.find(|file| file.is_file()) else {
        return Ok((Pooling::default(), false));
    };
    let config = Config::read(&file)?;
    let known = [
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_cls_token", Pooling::First),
        ("pooling_mode_lasttoken", Pooling::Last),
    ];
    let is_on = |key: &str| config.flag(key) == Some(true);
    let asked = config.keys().filter(|key| key.starts_with("pooling_mode_"));
    let asked: Vec<&str> = asked.filter(|key| is_on(key)).collect();
    match (&asked[..], known.iter().find(|(key, _)| is_on(key))) {
        ([_], Some((_, pooling))) => Ok((*pooling, true)),
        ([], _) => Ok((Pooling::default(), true)),
        _ => Err(PrepareError::file(
            &file,
            format!(
                "pools by {}, which is not known here: give a model with an output of one vector per row",
                asked.join(" and ")
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str, text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn labels_are_found_in_every_kind_of_table() {
        let all = [
            ("a.txt", "1\n0\n\n2.5\n", None, vec![1.0, 0.0, 2.5]),
            ("a.csv", "text,label\na,1\nb,0\n", None, vec![1.0, 0.0]),
            ("a.tsv", "y\tx\n3\ta\n4\tb\n", None, vec![3.0, 4.0]),
            ("a.csv", "a,b\n1,2\n3,4\n", Some("b"), vec![2.0, 4.0]),
            (
                "a.jsonl",
                "{\"text\": \"a\", \"score\": 4.5}\n{\"text\": \"b\", \"score\": 1}\n",
                None,
                vec![4.5, 1.0],
            ),
            (
                "a.json",
                "[{\"t\": \"a\", \"ok\": true}]",
                Some("ok"),
                vec![1.0],
            ),
        ];
        for (name, text, column, expected) in all {
            let (_dir, path) = written(name, text);
            let found = read(&path, column, &Settings::default()).unwrap();
            let expected: Vec<Option<f64>> = expected.into_iter().map(Some).collect();
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn a_row_without_a_label_has_none() {
        let (_dir, path) = written("a.csv", "text,label\na,1\nb,\nc,0\n");
        let found = read(&path, None, &Settings::default()).unwrap();
        assert_eq!(found, [Some(1.0), None, Some(0.0)]);
    }

    #[test]
    fn words_are_classes_of_the_configuration() {
        let (dir, path) = written("a.csv", "text,label\na,negative\nb,POSITIVE\n");
        let settings = Settings {
            model: Some(dir.path().join("model.onnx")),
            ..Settings::default()
        };
        let told = read(&path, None, &settings).unwrap_err().to_string();
        assert!(
            told.contains("`negative`") && told.contains("no config.json"),
            "{told}"
        );
        let config = "{\"id2label\": {\"0\": \"NEGATIVE\", \"1\": \"POSITIVE\"}}";
        std::fs::write(dir.path().join(CONFIG), config).unwrap();
        assert_eq!(
            read(&path, None, &settings).unwrap(),
            [Some(0.0), Some(1.0)]
        );
        std::fs::write(&path, "text,label\na,neutral\n").unwrap();
        let told = read(&path, None, &settings).unwrap_err().to_string();
        assert!(told.contains("`NEGATIVE`, `POSITIVE`"), "{told}");
    }

    #[test]
    fn a_column_that_is_not_told_is_asked_for() {
        let (_dir, path) = written("a.csv", "a,b\n1,2\n");
        let told = read(&path, None, &Settings::default())
            .unwrap_err()
            .to_string();
        assert!(told.contains("`a`, `b`"), "{told}");
        let told = read(&path, Some("c"), &Settings::default())
            .unwrap_err()
            .to_string();
        assert!(told.contains("no column `c`"), "{told}");
    }

    #[test]
    fn pooling_is_what_the_model_says() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            model: Some(dir.path().join("model.onnx")),
            ..Settings::default()
        };
        assert_eq!(pooling(&settings).unwrap(), (Pooling::Mean, false));
        let folder = dir.path().join("1_Pooling");
        std::fs::create_dir(&folder).unwrap();
        let write = |text: &str| std::fs::write(folder.join(CONFIG), text).unwrap();
        write("{\"pooling_mode_cls_token\": true, \"pooling_mode_mean_tokens\": false}");
        assert_eq!(pooling(&settings).unwrap(), (Pooling::First, true));
        write("{\"pooling_mode_max_tokens\": true}");
        let told = pooling(&settings).unwrap_err().to_string();
        assert!(told.contains("pooling_mode_max_tokens"), "{told}");
    }
}
