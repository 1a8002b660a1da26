//! What the inputs of text models are called.

/// What an input of a text model is fed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Ids,
    Mask,
    Types,
    Positions,
}

/// The names that exporters give such inputs.
pub(super) fn role(name: &str) -> Option<Role> {
    Some(match name {
        "input_ids" | "input_word_ids" | "token_ids" | "tokens" | "ids" => Role::Ids,
        "attention_mask" | "input_mask" | "mask" => Role::Mask,
        "token_type_ids" | "segment_ids" | "input_type_ids" | "type_ids" => Role::Types,
        "position_ids" => Role::Positions,
        _ => return None,
    })
}
