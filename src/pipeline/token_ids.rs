//! Token ids: what an input that looks up embeddings holds at a place of a row.

use std::collections::{BTreeMap, BTreeSet};

use crate::calibrate::{Batch, CalibError, InputTensor, Values};
use crate::graph::{Source, ValueId, View};
use crate::onnx::op;

/// A row over all data, and a place in a sequence of that length.
pub(super) type TokenPlace = (u64, (usize, usize));

/// The ids at the places where there are some.
///
/// # Errors
/// A file that cannot be read any more.
pub(super) fn token_ids(
    view: &View,
    batches: &[Batch],
    places: &BTreeSet<TokenPlace>,
) -> Result<BTreeMap<TokenPlace, i64>, CalibError> {
    let inputs = inputs_of_ids(view);
    let mut ids = BTreeMap::new();
    for batch in batches {
        let own = |(at, row): (usize, &u64)| {
            let first = (*row, (0, 0));
            let own = places.range(first..).take_while(|p| p.0 == *row);
            own.map(|p| (at, *p)).collect::<Vec<_>>()
        };
        let wanted: Vec<(usize, TokenPlace)> =
            batch.rows.iter().enumerate().flat_map(own).collect();
        for name in inputs.iter().filter(|_| !wanted.is_empty()) {
            let Some(input) = batch.inputs.get(*name) else {
                continue;
            };
            let fits = |(_, (_, (_, length))): &&(usize, TokenPlace)| {
                input.shape() == [batch.rows.len(), *length]
            };
            let fitting: Vec<_> = wanted.iter().filter(fits).collect();
            if fitting.is_empty() {
                continue;
            }
            let values = InputTensor::values(input)?;
            for (at, place) in fitting {
                if let Some(id) = integer(&values, [*at, place.1.0]) {
                    ids.entry(*place).or_insert(id);
                }
            }
        }
    }
    Ok(ids)
}

fn integer(values: &Values, at: [usize; 2]) -> Option<i64> {
    match values {
        Values::I64(array) => array.get(&at[..]).copied(),
        Values::I32(array) => array.get(&at[..]).map(|&id| i64::from(id)),
        _ => None,
    }
}

/// Inputs of the graph that choose rows of a constant table, those of the longest table first: words have more rows than
/// positions and types.
fn inputs_of_ids<'m>(view: &View<'m>) -> Vec<&'m str> {
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for (node, proto) in view.nodes() {
        let (table, ids) = match proto.op_type() {
            op::Gather => (0, 1),
            op::EmbedLayerNormalization => (2, 0),
            _ => continue,
        };
        let length = || {
            let table = view.input(node, table).filter(|&t| view.is_constant(t))?;
            view.shape(view.origin(table))?.first().copied()?
        };
        let name = || Some(view.name(input_behind(view, view.input(node, ids)?)?));
        if let (Some(length), Some(name)) = (length(), name()) {
            let longest = found.entry(name).or_default();
            *longest = length.max(*longest);
        }
    }
    let mut found: Vec<(&str, usize)> = found.into_iter().collect();
    found.sort_by_key(|&(name, length)| (std::cmp::Reverse(length), name));
    found.into_iter().map(|(name, _)| name).collect()
}

/// The input of the graph that a value is, in another type or shape.
fn input_behind(view: &View, mut value: ValueId) -> Option<ValueId> {
    loop {
        match view.source(value) {
            Source::Input(_) => return Some(value),
            Source::Node { node, .. }
                if [op::Cast, op::Identity, op::Reshape].contains(&view.op(node)) =>
            {
                value = view.input(node, 0)?;
            }
            _ => return None,
        }
    }
}
