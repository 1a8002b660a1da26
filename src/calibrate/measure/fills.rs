//! What a model fills in, as −inf or −10⁴ where a mask says so, tells nothing of a value: it sets no range.

use std::collections::BTreeMap;

use super::sums::is_filled;
use crate::calibrate::data::input::Batch;
use crate::calibrate::data::numbers;
use crate::onnx::Model;

/// The constants that are filled into values, by their names; most are not among them.
pub(super) fn fills<'v>(
    model: &Model,
    batches: &[Batch],
    values: impl Iterator<Item = &'v str>,
) -> BTreeMap<String, Vec<f32>> {
    let masks = batches.iter().flat_map(|batch| &batch.masks);
    let masks = masks
        .map(|mask| (&mask.input[..], &mask.numbers[..]))
        .collect();
    numbers::fills(model, &masks, values)
}

/// Tokens of `channels` elements with 0 for what is filled in, and which of them are nothing else.
pub(super) fn without(data: &[f32], channels: usize, fills: &[f32]) -> (Vec<f32>, Vec<bool>) {
    let ordinary = |&v: &f32| if is_filled(v, fills) { 0.0 } else { v };
    let tokens = data.chunks_exact(channels.max(1));
    let alone = |token: &[f32]| token.iter().all(|v| is_filled(*v, fills));
    (
        data.iter().map(ordinary).collect(),
        tokens.map(alone).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_nothing_else_are_told_apart() {
        let data = [1.0, -1e4, -1e4, -1e4, 2.0, 3.0, f32::NEG_INFINITY, -1e4];
        let (values, alone) = without(&data, 2, &[-1e4]);
        assert_eq!(values, [1.0, 0.0, 0.0, 0.0, 2.0, 3.0, 0.0, 0.0]);
        assert_eq!(alone, [false, true, false, true]);
    }
}
