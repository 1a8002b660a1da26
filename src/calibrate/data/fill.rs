//! Inputs that need not be given: masks, token types, positions, and an empty past.
//!
//! The names are those the exporters of Hugging Face models use. Nothing is guessed from the data: a filled attention
//! mask is all ones, whatever the token ids are.

use std::collections::BTreeMap;

use crate::calibrate::data::signature::{Dim, ModelInput};

/// A model input that was filled in because no file gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filled {
    /// The input's name.
    pub input: String,
    /// What it was filled with.
    pub rule: FillRule,
}

/// What a missing input is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FillRule {
    /// Ones: every position is a real token.
    Ones,
    /// Zeros.
    Zeros,
    /// 0, 1, 2, … along the last axis.
    Positions,
    /// A past of length zero.
    EmptyPast,
    /// False.
    False,
    /// True.
    True,
}

impl std::fmt::Display for FillRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FillRule::Ones => "ones",
            FillRule::Zeros => "zeros",
            FillRule::Positions => "0, 1, 2, … along the sequence",
            FillRule::EmptyPast => "zero length",
            FillRule::False => "false",
            FillRule::True => "true",
        })
    }
}

/// The inputs that are attention masks, in the order of their use for padding.
pub(super) const MASKS: [&str; 3] = [
    "attention_mask",
    "encoder_attention_mask",
    "decoder_attention_mask",
];

/// The rule for an input of this name; `None` if it must be given.
pub(super) fn rule(name: &str) -> Option<FillRule> {
    if MASKS.contains(&name) {
        return Some(FillRule::Ones);
    }
    let past_digits = |prefix: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    match name {
        "token_type_ids" => Some(FillRule::Zeros),
        "position_ids" | "decoder_position_ids" | "cache_position" => Some(FillRule::Positions),
        "use_cache_branch" => Some(FillRule::False),
        _ if name.starts_with("past_key_values")
            || name.starts_with("past_key")
            || name.starts_with("past_value")
            || past_digits("past_")
            || past_digits("past.") =>
        {
            Some(FillRule::EmptyPast)
        }
        _ => None,
    }
}

/// The sizes that the given arrays of one batch determine.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    /// Rows of the batch.
    pub batch: usize,
    /// Sizes by the model's axis names.
    pub named: BTreeMap<String, usize>,
    /// Shapes of the given inputs, axis 0 replaced by `batch` where it is the batch axis.
    pub given: BTreeMap<String, Vec<usize>>,
    /// Name of the batch axis, if the model gives it one.
    pub batch_name: Option<String>,
}

impl Sizes {
    /// Binds the axis names of `inputs` to the sizes in `given`.
    pub(super) fn new<'i>(
        inputs: impl Iterator<Item = &'i ModelInput>,
        given: BTreeMap<String, Vec<usize>>,
        batch: usize,
    ) -> Sizes {
        let mut named = BTreeMap::new();
        let mut batch_name = None;
        for input in inputs {
            let (Some(dims), Some(shape)) = (&input.shape, given.get(&input.name)) else {
                continue;
            };
            for (axis, (dim, size)) in dims.iter().zip(shape).enumerate() {
                if let Dim::Named(name) = dim {
                    named.entry(name.clone()).or_insert(*size);
                    if axis == 0 && *size == batch {
                        batch_name.get_or_insert_with(|| name.clone());
                    }
                }
            }
        }
        Sizes {
            batch,
            named,
            given,
            batch_name,
        }
    }

    /// Length of the token sequence that belongs to the input `name`.
    fn sequence(&self, name: &str) -> Option<usize> {
        let own: &[&str] = if name.starts_with("encoder_") {
            &["encoder_hidden_states"]
        } else if name.starts_with("decoder_") {
            &["decoder_input_ids", "decoder_inputs_embeds"]
        } else {
            &[]
        };
        let usual = [
            "input_ids",
            "inputs_embeds",
            "decoder_input_ids",
            "input_values",
            "hidden_states",
        ];
        let by_name = own
            .iter()
            .chain(&usual)
            .find_map(|n| self.given.get(*n)?.get(1).copied());
        by_name.or_else(|| self.given.values().find_map(|shape| shape.get(1).copied()))
    }

    /// Whether the data hold a past: a merged decoder is to use it then.
    pub(super) fn has_past(&self) -> bool {
        let mut given = self.given.iter();
        given.any(|(name, shape)| rule(name) == Some(FillRule::EmptyPast) && !shape.contains(&0))
    }

    /// The shape a missing input gets; `None` if it cannot be known.
    pub(super) fn shape(&self, input: &ModelInput, rule: FillRule) -> Option<Vec<usize>> {
        let Some(dims) = &input.shape else {
            return match rule {
                FillRule::Ones | FillRule::Zeros | FillRule::Positions => {
                    Some(vec![self.batch, self.sequence(&input.name)?])
                }
                FillRule::EmptyPast | FillRule::False | FillRule::True => None,
            };
        };
        if rule == FillRule::EmptyPast {
            return self.past_shape(dims);
        }
        let last = dims.len().wrapping_sub(1);
        dims.iter()
            .enumerate()
            .map(|(axis, dim)| match dim {
                Dim::Fixed(n) => Some(*n),
                Dim::Named(name) if self.named.contains_key(name) => self.named.get(name).copied(),
                _ if matches!(rule, FillRule::False | FillRule::True) => Some(1),
                _ if axis == 0 && dims.len() > 1 => Some(self.batch),
                _ if axis == last => self.sequence(&input.name),
                _ => None,
            })
            .collect()
    }

    /// Shape of an empty past, usually `[batch, heads, 0, head_size]`: the one free axis beside the batch is its length.
    fn past_shape(&self, dims: &[Dim]) -> Option<Vec<usize>> {
        let mut shape = Vec::with_capacity(dims.len());
        let mut lengths = 0;
        for (axis, dim) in dims.iter().enumerate() {
            shape.push(match dim {
                Dim::Fixed(n) => *n,
                Dim::Named(name) if axis == 0 => match self.named.get(name) {
                    Some(n) => *n,
                    // Another name than the batch's may be batch · heads: unknowable.
                    None if self.batch_name.is_some() => return None,
                    None => self.batch,
                },
                Dim::Any if axis == 0 => self.batch,
                _ => {
                    lengths += 1;
                    0
                }
            });
        }
        (lengths == 1).then_some(shape)
    }
}
