//! Which axis of an input is the batch, and whether the arrays of a file have one at all.
//!
//! ```text
//! x: [N, 4, 32]        cache: [2, N, 32]             N is the batch: axis 0 of x, axis 1 of cache
//! x: [nodes, 16]       edges: [2, edges]             no axis is shared: a file is one run
//! tokens: [total]      lengths: [sequences]          the same
//! ids: [batch, seq]    positions: [seq]              positions belongs to every row
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::calibrate::data::signature::{Dim, ModelInput};

/// The shapes of the arrays of one file or set, by input.
pub(super) type ArrayShapes = BTreeMap<String, Vec<usize>>;

/// The batch axis of every input that has one.
pub(super) type BatchAxes = BTreeMap<String, usize>;

/// The batch axis of each of the given inputs, for all tables; `None` if their arrays share no axis, so that every table is a
/// run of its own.
pub(super) fn batch_axes(inputs: &[ModelInput], tables: &[ArrayShapes]) -> Option<BatchAxes> {
    let given = |input: &&ModelInput| tables.iter().any(|t| t.contains_key(&input.name));
    let given: Vec<&ModelInput> = inputs.iter().filter(given).collect();
    let name = batch_name(&given);
    let axes = match name {
        Some(name) => by_name(&given, name, tables)?,
        None => by_size(&given),
    };
    // Axes without names that have different sizes in every one of several files are no batch.
    let is_run = |table: &ArrayShapes| {
        let unnamed = given
            .iter()
            .filter(|input| dim(input, 0).is_none_or(|d| *d == Dim::Any));
        let sizes = unnamed.filter_map(|input| {
            let shape = table.get(&input.name)?;
            axes.get(&input.name).and_then(|&axis| shape.get(axis))
        });
        sizes.collect::<BTreeSet<_>>().len() > 1
    };
    (tables.len() < 2 || !tables.iter().all(is_run)).then_some(axes)
}

fn dim(input: &ModelInput, axis: usize) -> Option<&Dim> {
    input.shape.as_ref()?.get(axis)
}

fn names(input: &ModelInput) -> impl Iterator<Item = &str> {
    let dims = input.shape.iter().flatten();
    dims.filter_map(Dim::name)
}

/// The name of the batch: of those that first axes have one that says so, else the one that most inputs have.
fn batch_name<'a>(given: &[&'a ModelInput]) -> Option<&'a str> {
    let says_so = |name: &str| {
        let name = name.to_lowercase();
        name.contains("batch") || ["b", "n", "bs", "bsz"].contains(&name.as_str())
    };
    let mut best: Option<(&str, (bool, usize))> = None;
    for &input in given {
        let Some(Dim::Named(name)) = dim(input, 0) else {
            continue;
        };
        let count = given.iter().filter(|i| names(i).any(|n| n == name)).count();
        let weight = (says_so(name), count);
        // The first of equals.
        if best.is_none_or(|(_, other)| weight > other) {
            best = Some((name, weight));
        }
    }
    best.map(|(name, _)| name)
}

/// Where the batch has a name. `None` if an input shares no axis with those that have it.
fn by_name(given: &[&ModelInput], batch: &str, tables: &[ArrayShapes]) -> Option<BatchAxes> {
    let place = |input: &ModelInput| {
        let mut dims = input.shape.iter().flatten();
        dims.position(|dim| matches!(dim, Dim::Named(name) if name == batch))
    };
    let with_batch: Vec<&&ModelInput> = given.iter().filter(|i| place(i).is_some()).collect();
    let shared: BTreeSet<&str> = with_batch.iter().flat_map(|input| names(input)).collect();
    let mut axes = BatchAxes::new();
    for input in given {
        let axis = match (place(input), dim(input, 0)) {
            (Some(axis), _) => Some(axis),
            (None, Some(Dim::Any)) => Some(0),
            (None, None) if input.shape.is_none() => Some(0),
            // Another name for as many rows.
            (None, Some(Dim::Named(_))) if as_many_rows(input, &with_batch, batch, tables) => {
                Some(0)
            }
            (None, _) if names(input).next().is_none() => None,
            (None, _) if names(input).any(|name| shared.contains(name)) => None,
            (None, _) => return None,
        };
        axes.extend(axis.map(|axis| (input.name.clone(), axis)));
    }
    Some(axes)
}

/// Whether in every table the first axis of an input is as long as the batch.
fn as_many_rows(
    input: &ModelInput,
    with_batch: &[&&ModelInput],
    batch: &str,
    tables: &[ArrayShapes],
) -> bool {
    let rows = |table: &ArrayShapes| {
        with_batch.iter().find_map(|other| {
            let axis = other.shape.iter().flatten();
            let axis = axis
                .enumerate()
                .find(|(_, d)| matches!(d, Dim::Named(n) if n == batch))?
                .0;
            table.get(&other.name)?.get(axis).copied()
        })
    };
    tables.iter().all(|table| {
        let own = table.get(&input.name).and_then(|shape| shape.first());
        own.is_none() || own.copied() == rows(table)
    })
}

/// Where no first axis has a name: those of free size, or else all of the first fixed one. An input of fixed size beside
/// others whose batch size is free is one value for the whole run.
fn by_size(given: &[&ModelInput]) -> BatchAxes {
    let free = given.iter().any(|input| fixed_batch(input).is_none());
    let fixed = given.iter().find_map(|input| fixed_batch(input));
    let batched = given.iter().filter(|input| match fixed_batch(input) {
        None => true,
        Some(n) => !free && Some(n) == fixed && dim(input, 0).is_some(),
    });
    batched.map(|input| (input.name.clone(), 0)).collect()
}

/// The fixed size of an input's first axis. A scalar belongs to no batch; any fixed size says so.
fn fixed_batch(input: &ModelInput) -> Option<usize> {
    match input.shape.as_ref()?.first() {
        Some(Dim::Fixed(n)) => Some(*n),
        None => Some(1),
        _ => None,
    }
}

/// The batch size that the model fixes for the batch axes of the given inputs.
pub(super) fn fixed_size(inputs: &[ModelInput], axes: &BatchAxes) -> Option<usize> {
    let batched = inputs
        .iter()
        .filter_map(|input| dim(input, *axes.get(&input.name)?));
    let sizes: Vec<Option<usize>> = batched
        .map(|dim| match dim {
            Dim::Fixed(n) => Some(*n),
            _ => None,
        })
        .collect();
    sizes
        .iter()
        .all(Option::is_some)
        .then(|| sizes.first().copied().flatten())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::tensor_proto::DataType;

    /// `x N 4 32; cache 2 N 32`
    fn inputs(text: &str) -> Vec<ModelInput> {
        let input = |text: &str| {
            let mut words = text.split_whitespace();
            let name = words.next().unwrap().to_owned();
            let dim = |word: &str| match (word, word.parse()) {
                ("?", _) => Dim::Any,
                (_, Ok(n)) => Dim::Fixed(n),
                (name, _) => Dim::Named(name.to_owned()),
            };
            ModelInput {
                name,
                dtype: DataType::Float,
                shape: Some(words.map(dim).collect()),
            }
        };
        text.split(';').map(input).collect()
    }

    fn axes(text: &str, tables: &[&[(&str, &[usize])]]) -> Option<Vec<(String, usize)>> {
        let tables = tables.iter().map(|t| {
            let owned = t
                .iter()
                .map(|(name, shape)| ((*name).to_owned(), shape.to_vec()));
            owned.collect()
        });
        let tables: Vec<ArrayShapes> = tables.collect();
        Some(batch_axes(&inputs(text), &tables)?.into_iter().collect())
    }

    fn at(expected: &[(&str, usize)]) -> Option<Vec<(String, usize)>> {
        Some(
            expected
                .iter()
                .map(|(n, a)| ((*n).to_owned(), *a))
                .collect(),
        )
    }

    #[test]
    fn the_batch_is_where_its_name_is() {
        let found = axes(
            "cache 2 N 32; x N 4 32",
            &[&[("cache", &[2, 3, 32]), ("x", &[3, 4, 32])]],
        );
        assert_eq!(found, at(&[("cache", 1), ("x", 0)]));
        let found = axes(
            "x L batch 8; mask batch L",
            &[&[("x", &[5, 3, 8]), ("mask", &[3, 5])]],
        );
        assert_eq!(found, at(&[("mask", 0), ("x", 1)]));
        // A table for all rows, a length that they share, and the same rows under another name.
        let found = axes(
            "ids batch seq; table 7 4; cache_position seq; decoder rows",
            &[&[
                ("ids", &[3, 5]),
                ("table", &[7, 4]),
                ("cache_position", &[5]),
                ("decoder", &[3]),
            ]],
        );
        assert_eq!(found, at(&[("decoder", 0), ("ids", 0)]));
    }

    #[test]
    fn arrays_without_a_common_axis_are_a_run() {
        let graph: &[(&str, &[usize])] = &[("x", &[7, 16]), ("edges", &[2, 20]), ("e", &[20, 4])];
        assert_eq!(axes("x nodes 16; edges 2 edges; e edges 4", &[graph]), None);
        let packed: &[(&str, &[usize])] = &[("ids", &[50]), ("starts", &[4])];
        assert_eq!(axes("ids total; starts sequences", &[packed]), None);
        // Without names it takes several files to see it.
        let unnamed: &[(&str, &[usize])] = &[("x", &[7, 16]), ("e", &[20, 4])];
        assert!(axes("x ? 16; e ? 4", &[unnamed]).is_some());
        assert_eq!(axes("x ? 16; e ? 4", &[unnamed, unnamed]), None);
    }

    #[test]
    fn fixed_batches() {
        let of = |text: &str| {
            let inputs = inputs(text);
            let table = inputs.iter().map(|i| (i.name.clone(), vec![])).collect();
            let axes = batch_axes(&inputs, &[table]);
            fixed_size(&inputs, &axes.unwrap())
        };
        assert_eq!(of("x 4 8; y 4 3; z 1"), Some(4));
        assert_eq!(of("x ? 8; y 4 3"), None);
        assert_eq!(of("x N 8; y 2 N"), None);
    }
}
