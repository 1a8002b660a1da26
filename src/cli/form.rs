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
    let dynamic = if linear.dynamic { "*" } else { "" };
    let spread = match linear.granularity.as_str() {
        "per-channel" => "/ch",
        "per-block" => "/bl",
        _ => "",
    };
    format!("{activation}{dynamic} x {}{spread}", short(&linear.weight))
}

/// As "MatMul of UINT8 activations and INT8 weights per-channel".
pub(super) fn long_form(linear: &QuantizedLinear) -> String {
    let activation = match (&linear.activation, linear.dynamic) {
        (None, _) => "float activations".to_owned(),
        (Some(dtype), true) => format!("{dtype} activations (scales found at run time)"),
        (Some(dtype), false) => format!("{dtype} activations"),
    };
    let (op, weight, spread) = (&linear.op, &linear.weight, &linear.granularity);
    format!("{op} of {activation} and {weight} weights, {spread}")
}
