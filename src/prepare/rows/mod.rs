//! Text in files: a line each, or in columns of a table.

mod columns;
mod parquet;

use std::path::Path;

use serde_json::Value;

use super::config::bytes;
use super::error::{PrepareError, guarded};
use super::sampling::extension;
use columns::{Column, choose};

/// One text, or a pair of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// The text, or the first of a pair.
    pub(super) first: String,
    /// The second of a pair.
    pub(super) second: Option<String>,
}

/// The rows of a file, and what is to be said of them.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Those with text in every column.
    pub(super) rows: Vec<Row>,
    /// Which row of the file each of them is.
    pub(super) numbers: Vec<usize>,
    /// Rows of the file, those without text included.
    pub(super) all: usize,
    /// Which columns were taken, and how many rows had no text.
    pub(super) notes: Vec<String>,
}

/// A table in memory: values of some columns, row by row. A value that is no text is `None`.
struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Option<String>>>,
}

/// Reads the rows of `path`: of the columns `wanted`, or those that a table most likely means. `pairs` says whether the
/// model compares two texts.
///
/// # Errors
/// A file that is not what its name says; columns that are not there, or not told.
pub(super) fn read(path: &Path, wanted: &[String], pairs: bool) -> Result<Rows, PrepareError> {
    let format = extension(path);
    if format == "txt" {
        return lines(path, wanted);
    }
    if format == "parquet" {
        let columns = guarded(path, || parquet::columns(path))?;
        let chosen = choose(path, &columns, wanted, pairs)?;
        let rows = guarded(path, || parquet::rows(path, &columns, &chosen, false))?;
        let all: Vec<usize> = (0..chosen.len()).collect();
        return Ok(rows_of(&columns, &chosen, rows, &all, wanted));
    }
    let table = table(path, &format, false)?;
    let chosen = choose(path, &table.columns, wanted, pairs)?;
    Ok(rows_of(
        &table.columns,
        &chosen,
        table.rows,
        &chosen,
        wanted,
    ))
}

/// A table in a file of text; of JSON with its numbers, if they are wanted.
fn table(path: &Path, format: &str, numbers: bool) -> Result<Table, PrepareError> {
    match format {
        "tsv" => separated(path, b'\t'),
        "csv" => separated(path, b','),
        _ => json(path, format == "json", numbers),
    }
}

/// The values of a column that holds labels, row by row; `None` where there is none.
///
/// # Errors
/// A file that is not what its name says; a column that is not there, or not told.
pub(super) fn labels(
    path: &Path,
    wanted: Option<&str>,
) -> Result<Vec<Option<String>>, PrepareError> {
    let format = extension(path);
    let filled = |value: Option<String>| value.filter(|v| !v.trim().is_empty());
    if format == "txt" {
        let wanted: Vec<String> = wanted.map(str::to_owned).into_iter().collect();
        let rows = lines(path, &wanted)?.rows.into_iter();
        return Ok(rows.map(|row| Some(row.first)).collect());
    }
    if format == "parquet" {
        let columns = guarded(path, || parquet::columns(path))?;
        let chosen = columns::choose_label(path, &columns, wanted)?;
        let rows = guarded(path, || parquet::rows(path, &columns, &[chosen], true))?;
        return Ok(rows
            .into_iter()
            .map(|mut row| filled(row.swap_remove(0)))
            .collect());
    }
    let table = table(path, &format, true)?;
    let chosen = columns::choose_label(path, &table.columns, wanted)?;
    let value = |mut row: Vec<Option<String>>| filled(row.get_mut(chosen)?.take());
    Ok(table.rows.into_iter().map(value).collect())
}

/// Picks the values at `at` of every row.
fn rows_of(
    columns: &[Column],
    chosen: &[usize],
    table: Vec<Vec<Option<String>>>,
    at: &[usize],
    wanted: &[String],
) -> Rows {
    let mut rows = Rows {
        all: table.len(),
        ..Rows::default()
    };
    let mut empty = 0;
    for (number, mut row) in table.into_iter().enumerate() {
        let mut take = |at: usize| row.get_mut(at)?.take().filter(|t| !t.trim().is_empty());
        let first = at.first().and_then(|&at| take(at));
        let second = at.get(1).map(|&at| take(at));
        let row = match (first, second) {
            (Some(first), None) => Row {
                first,
                second: None,
            },
            (Some(first), Some(Some(second))) => Row {
                first,
                second: Some(second),
            },
            _ => {
                empty += 1;
                continue;
            }
        };
        rows.rows.push(row);
        rows.numbers.push(number);
    }
    let names: Vec<String> = chosen
        .iter()
        .map(|&at| format!("`{}`", columns[at].name))
        .collect();
    if wanted.is_empty() && columns.len() > 1 {
        rows.notes
            .push(format!("text is taken from {}", names.join(" and ")));
    }
    if empty > 0 {
        let what = if empty == 1 { "row has" } else { "rows have" };
        rows.notes.push(format!(
            "{empty} {what} no text in {} and is not used",
            names.join(" or ")
        ));
    }
    rows
}

/// Text without a byte order mark.
fn utf8<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, PrepareError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()]
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        PrepareError::file(path, format!("line {line} is not UTF-8; save it as UTF-8"))
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// A `.txt`: every line that is not blank is a text.
fn lines(path: &Path, wanted: &[String]) -> Result<Rows, PrepareError> {
    if let Some(name) = wanted.first() {
        return Err(PrepareError::file(
            path,
            format!(
                "has no column `{name}`: a .txt is a text per line; a .tsv, .csv or .jsonl has columns"
            ),
        ));
    }
    let bytes = bytes(path)?;
    let lines = utf8(path, &bytes)?.lines().filter(|l| !l.trim().is_empty());
    let row = |line: &str| Row {
        first: line.to_owned(),
        second: None,
    };
    let rows: Vec<Row> = lines.map(row).collect();
    Ok(Rows {
        numbers: (0..rows.len()).collect(),
        all: rows.len(),
        rows,
        notes: Vec::new(),
    })
}

/// A `.csv` or `.tsv`, whose first line names the columns.
fn separated(path: &Path, delimiter: u8) -> Result<Table, PrepareError> {
    let bytes = bytes(path)?;
    let text = utf8(path, &bytes)?;
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .flexible(true)
        // In a .tsv a quotation mark is usually part of the text.
        .quoting(delimiter == b',')
        .from_reader(text.as_bytes());
    let wrong = |e: csv::Error| PrepareError::file(path, format!("cannot be read: {e}"));
    let header = reader.headers().map_err(wrong)?.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(wrong)?;
        rows.push(record.iter().map(|value| Some(value.to_owned())).collect());
    }
    let columns = header.iter().enumerate().map(|(at, name)| {
        let texts = rows
            .iter()
            .filter_map(|row: &Vec<Option<String>>| row.get(at)?.as_deref());
        let is_number = |text: &str| text.trim().is_empty() || text.trim().parse::<f64>().is_ok();
        Column {
            name: name.to_owned(),
            is_text: !texts.take(1000).all(is_number),
        }
    });
    Ok(Table {
        columns: columns.collect(),
        rows,
    })
}

/// A `.jsonl`: an object, a text or a list of texts per line. `whole` is a `.json` with a list of them.
fn json(path: &Path, whole: bool, numbers: bool) -> Result<Table, PrepareError> {
    let bytes = bytes(path)?;
    let text = utf8(path, &bytes)?;
    let values: Vec<Value> = match whole {
        true => {
            let value = serde_json::from_str(text)
                .map_err(|e| PrepareError::file(path, format!("is no JSON: {e}")))?;
            list(path, value)?
        }
        false => {
            let lines = text
                .lines()
                .enumerate()
                .filter(|(_, l)| !l.trim().is_empty());
            let values = lines.map(|(number, line)| {
                serde_json::from_str(line).map_err(|e| {
                    PrepareError::file(path, format!("line {} is no JSON: {e}", number + 1))
                })
            });
            values.collect::<Result<_, _>>()?
        }
    };
    let mut table = Table {
        columns: Vec::new(),
        rows: Vec::new(),
    };
    for value in values {
        table.add(value, numbers);
    }
    Ok(table)
}

/// The list in a `.json`: the whole, or the one under a key.
fn list(path: &Path, value: Value) -> Result<Vec<Value>, PrepareError> {
    let wrong = || {
        PrepareError::file(
            path,
            "holds no list of texts or objects; write one, or a .jsonl with a JSON object per line",
        )
    };
    match value {
        Value::Array(values) => Ok(values),
        Value::Object(object) => {
            let mut lists = object.into_iter().filter_map(|(_, value)| match value {
                Value::Array(values) => Some(values),
                _ => None,
            });
            match (lists.next(), lists.next()) {
                (Some(values), None) => Ok(values),
                _ => Err(wrong()),
            }
        }
        _ => Err(wrong()),
    }
}

impl Table {
    /// Adds a row; its fields are columns by name, those of a list by number. Text counts, and `numbers` if they are wanted.
    fn add(&mut self, value: Value, numbers: bool) {
        let fields: Vec<(String, Value)> = match value {
            Value::Object(object) => object.into_iter().collect(),
            Value::Array(values) => {
                let numbered = values.into_iter().enumerate();
                numbered.map(|(at, v)| (at.to_string(), v)).collect()
            }
            other => vec![("text".to_owned(), other)],
        };
        let mut row = vec![None; self.columns.len()];
        for (name, value) in fields {
            let at = self.columns.iter().position(|column| column.name == name);
            let at = at.unwrap_or_else(|| {
                self.columns.push(Column {
                    name,
                    is_text: false,
                });
                row.push(None);
                self.columns.len() - 1
            });
            match value {
                Value::String(text) => {
                    self.columns[at].is_text = true;
                    row[at] = Some(text);
                }
                Value::Number(_) | Value::Bool(_) if numbers => row[at] = Some(value.to_string()),
                _ => {}
            }
        }
        self.rows.push(row);
    }
}
