//! Text to token ids, masks, token types and positions, as far as a model has such inputs.

mod role;
mod tokenizer;

use std::collections::BTreeMap;
use std::path::Path;

use super::arrays::{Array, Arrays, Elements, Prepared, Wanted};
use super::error::{PrepareError, guarded};
use super::rows::{self, Row, Rows};
use super::sampling::{sampled, spread};
use super::settings::Settings;
use role::{Role, role};
use tokenizer::{Encoded, TextTokenizer};

/// Rows of a file that are used where nobody says how many: more of them change ranges little, and cost time.
const SAMPLES: usize = 128;

/// The inputs of a model that text feeds.
struct Roles<'a> {
    inputs: Vec<(&'a Wanted, Role)>,
}

impl<'a> Roles<'a> {
    /// # Errors
    /// No input takes token ids.
    fn of(path: &Path, inputs: &'a [Wanted]) -> Result<Roles<'a>, PrepareError> {
        let named = |input: &'a Wanted| Some((input, role(&input.name)?));
        let mut found: Vec<_> = inputs.iter().filter_map(named).collect();
        let has_ids = |found: &[(&Wanted, Role)]| found.iter().any(|(_, role)| *role == Role::Ids);
        if !has_ids(&found) {
            // Under another name: the only other input of integers that could be [rows, tokens].
            let fits = |input: &&Wanted| {
                !input.is_float
                    && role(&input.name).is_none()
                    && input.shape.as_ref().is_none_or(|shape| shape.len() == 2)
            };
            let mut others = inputs.iter().filter(fits);
            if let (Some(ids), None) = (others.next(), others.next()) {
                found.push((ids, Role::Ids));
            }
        }
        if !has_ids(&found) {
            let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
            return Err(PrepareError::file(
                path,
                format!(
                    "holds text, and the model has no input of token ids such as input_ids; its inputs are {}",
                    names.join(", ")
                ),
            ));
        }
        Ok(Roles { inputs: found })
    }

    fn has(&self, role: Role) -> bool {
        self.inputs.iter().any(|(_, of)| *of == role)
    }

    /// The size that the model fixes for an axis of one of the inputs.
    fn fixed(&self, axis: usize) -> Option<usize> {
        let sizes = self
            .inputs
            .iter()
            .map(|(input, _)| input.shape.as_ref()?.get(axis).copied()?);
        sizes.flatten().next()
    }
}

/// Makes what `inputs` are fed with from the text in `path`.
///
/// # Errors
/// No tokenizer, no column of text, a file that is not what its name says, a model without token ids.
pub(super) fn prepare(
    path: &Path,
    inputs: &[Wanted],
    settings: &Settings,
) -> Result<Prepared, PrepareError> {
    let roles = Roles::of(path, inputs)?;
    let named = settings.tokenizer()?;
    let named = named.as_deref().unwrap_or(path);
    let tokenizer = guarded(named, || {
        TextTokenizer::load(path, settings, roles.fixed(1))
    })?;
    let mut notes = tokenizer.notes.clone();
    let separate = settings.judges && tokenizer.embeds;
    let pairs = tokenizer.pairs || separate;
    let mut rows = rows::read(path, &settings.columns, pairs)?;
    notes.extend(std::mem::take(&mut rows.notes));
    if rows.rows.is_empty() {
        return Err(PrepareError::file(path, "holds no text"));
    }
    let all = rows.rows.len();
    let count = settings.count(SAMPLES);
    if settings.samples.is_none() && count < all {
        notes.push(sampled(path, count, all, "rows"));
    }
    let (chosen, numbers, of) = chosen(&rows, count, separate);
    let chosen: Vec<&Row> = chosen.iter().collect();
    let (encoded, cut) = guarded(named, || tokenizer.encode(path, &chosen))?;
    if cut > 0 {
        notes.push(tokenizer.cut_note(path, cut, encoded.len()));
    }
    let encoded = encoded.into_iter().zip(numbers).collect();
    let (tables, origins) = tables(path, encoded, &roles, &tokenizer, &mut notes)?;
    Ok(Prepared {
        tables,
        origins,
        rows: of,
        notes,
    })
}

/// The rows that are used, which rows of the file they are, and how many rows it has. The two texts of a pair are rows of their
/// own where they are `separate`: 2 n and 2 n + 1.
fn chosen(rows: &Rows, count: usize, separate: bool) -> (Vec<Row>, Vec<usize>, usize) {
    let mut chosen = Vec::new();
    let mut numbers = Vec::new();
    let has_pairs = separate && rows.rows.iter().any(|row| row.second.is_some());
    for at in spread(rows.rows.len(), count) {
        let (row, number) = (&rows.rows[at], rows.numbers[at]);
        match &row.second {
            Some(second) if has_pairs => {
                for (which, text) in [&row.first, second].into_iter().enumerate() {
                    chosen.push(Row {
                        first: text.clone(),
                        second: None,
                    });
                    numbers.push(2 * number + which);
                }
            }
            _ => {
                chosen.push(row.clone());
                numbers.push(number);
            }
        }
    }
    let all = if has_pairs { 2 * rows.all } else { rows.all };
    (chosen, numbers, all)
}

/// Arrays, and which rows of the file theirs are.
type Tables = (Vec<Arrays>, Vec<Vec<usize>>);

/// Rows as tables of one shape each: one as long as the longest row; or, for a model without a mask, one per length.
fn tables(
    path: &Path,
    rows: Vec<(Encoded, usize)>,
    roles: &Roles<'_>,
    tokenizer: &TextTokenizer,
    notes: &mut Vec<String>,
) -> Result<Tables, PrepareError> {
    let mut by_length: BTreeMap<usize, Vec<(Encoded, usize)>> = BTreeMap::new();
    let fixed = roles.fixed(1);
    if fixed.is_some() && !roles.has(Role::Mask) {
        let shorter = rows
            .iter()
            .filter(|(row, _)| Some(row.ids.len()) < fixed)
            .count();
        if shorter > 0 {
            notes.push(format!(
                "{shorter} of {} rows are padded, which the model cannot be told: it has no attention mask",
                rows.len()
            ));
        }
    }
    let longest = rows.iter().map(|(row, _)| row.ids.len());
    let longest = longest.max().unwrap_or(0);
    for row in rows {
        let length = match (fixed, roles.has(Role::Mask)) {
            (Some(fixed), _) => fixed,
            (None, true) => tokenizer.padded(longest),
            (None, false) => row.0.ids.len(),
        };
        by_length.entry(length).or_default().push(row);
    }
    let batch = roles.fixed(0).unwrap_or(1).max(1);
    let mut left = 0;
    let mut groups = Vec::new();
    for (length, mut rows) in by_length {
        let whole = rows.len() / batch * batch;
        left += rows.len() - whole;
        rows.truncate(whole);
        if !rows.is_empty() && length > 0 {
            groups.push((length, rows));
        }
    }
    if groups.is_empty() {
        return Err(PrepareError::file(
            path,
            format!("has too few rows of one length: the model takes {batch} at a time"),
        ));
    }
    if left > 0 {
        notes.push(format!(
            "{left} rows are not used: the model takes {batch} rows of one length at a time"
        ));
    }
    // What is kept of a few sequences is taken from the first table: that with most rows.
    groups.sort_by_key(|(length, rows)| (std::cmp::Reverse(rows.len()), *length));
    let table = |(length, rows): &(usize, Vec<(Encoded, usize)>)| {
        let array = |(input, role): &(&Wanted, Role)| {
            let values = rows
                .iter()
                .flat_map(|(row, _)| tokenizer.values(row, *role, *length));
            let array = Array {
                shape: vec![rows.len(), *length],
                elements: Elements::Ints(values.collect()),
            };
            (input.name.clone(), array)
        };
        roles.inputs.iter().map(array).collect()
    };
    let numbers =
        |(_, rows): &(usize, Vec<(Encoded, usize)>)| rows.iter().map(|(_, n)| *n).collect();
    let origins = groups.iter().map(numbers).collect();
    Ok((groups.iter().map(table).collect(), origins))
}
