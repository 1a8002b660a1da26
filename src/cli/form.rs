//! Quantized Linears in a few words.

use onnx_osplus::review::QuantizedLinear;

/// As "u8 x i8/ch".
pub(super) fn short_form(linear: &QuantizedLinear) -> String {
    let short = |name: &str| match name {
        "UINT8" => "u8".to_owned(),
        "INT8" => "i8".to_owned(),
        "4 bits" => "4 bits".to_owned(),
        other => other
            .to_lowercase()
            .replace("uint", "u")
            .replace("int", "i"),
    };
    let activation = linear
        .activation
        .as_deref()
        .map_or("float".to_owned(), short);
    let dynamic = match linear.activation_granularity.as_deref() {
        Some("per-token") => "/tok*",
        Some("per-block") => "/bl*",
        _ if linear.dynamic => "*",
        _ => "",
    };
    let spread = match (linear.granularity.as_str(), linear.group) {
        ("per-channel", _) => "/ch".to_owned(),
        ("per-block", Some(group)) => format!("/{group}"),
        ("per-block", None) => "/bl".to_owned(),
        _ => String::new(),
    };
    format!("{activation}{dynamic} x {}{spread}", short(&linear.weight))
}

/// As "MatMul of UINT8 activations and INT8 weights, per-channel".
pub(super) fn long_form(linear: &QuantizedLinear) -> String {
    let activation = match (&linear.activation, linear.dynamic) {
        (None, _) => "float activations".to_owned(),
        (Some(dtype), true) => {
            let shared = match linear.activation_granularity.as_deref() {
                Some("per-token") => " per token",
                Some("per-block") => " per token and group",
                _ => "",
            };
            format!("{dtype} activations (scales found at run time{shared})")
        }
        (Some(dtype), false) => format!("{dtype} activations"),
    };
    let (op, weight) = (&linear.op, &linear.weight);
    let mut spread = match linear.group {
        Some(group) => format!("in groups of {group}"),
        None => linear.granularity.clone(),
    };
    match linear.symmetric {
        Some(true) => spread += ", symmetric",
        Some(false) => spread += ", asymmetric",
        None => {}
    }
    if !linear.notes.is_empty() {
        spread += &format!(", with {}", linear.notes.join(" and "));
    }
    format!("{op} of {activation} and {weight} weights, {spread}")
}
