//! The conversions for versions 14 to 21.

use super::Rewrite;
use crate::onnx::node::{attr_i, attr_s, int_attr, make_node, string_attr};
use crate::onnx::proto::AttributeProto;
use crate::onnx::{op, tensor};

/// BatchNormalization 14 has one output unless it is told to train; before, it trained where it had more.
pub(in crate::graph::opset) fn batch_normalization_outputs(r: &mut Rewrite) -> Result<(), String> {
    let outputs = &mut r.edit.node.output;
    if let Some(more) = outputs.iter().skip(1).find(|name| !name.is_empty()) {
        return Err(format!(
            "with a second output (`{more}`) it trains, which is no part of inference"
        ));
    }
    outputs.truncate(1);
    Ok(())
}

/// RoiAlign 16 shifts coordinates by half a pixel unless it is told not to.
pub(in crate::graph::opset) fn roi_align(r: &mut Rewrite) -> Result<(), String> {
    let not_shifted = string_attr("coordinate_transformation_mode", "output_half_pixel");
    r.set_attribute(not_shifted);
    Ok(())
}

/// LayerNormalization 17 has one type; ONNX Runtime's of the same name, which models of older versions have, may have
/// another one for scale, bias and result.
pub(in crate::graph::opset) fn layer_normalization(r: &mut Rewrite) -> Result<(), String> {
    let types = [0, 1, 2].map(|slot| r.facts.dtype(r.input(slot)));
    let mut known = types.iter().flatten();
    let first = known.next();
    if let Some(other) = known.find(|dtype| Some(*dtype) != first) {
        return Err(format!(
            "ONNX Runtime's operator of that name takes an input of another type than its scale ({}), ONNX's does not",
            other.as_str_name()
        ));
    }
    Ok(())
}

/// Split 18 wants the number of parts where it is not told their sizes.
pub(in crate::graph::opset) fn split_outputs(r: &mut Rewrite) -> Result<(), String> {
    if r.input(1).is_empty() {
        let parts = i64::try_from(r.edit.node.output.len()).unwrap_or(i64::MAX);
        r.set_attribute(int_attr("num_outputs", parts));
    }
    Ok(())
}

/// GridSample 20 calls its modes `linear` and `cubic`.
pub(in crate::graph::opset) fn grid_sample(r: &mut Rewrite) -> Result<(), String> {
    let mode = r.get("mode", |n, a| attr_s(n, a).map(str::to_owned))?;
    let renamed = match mode.as_deref() {
        None | Some("nearest") => return Ok(()),
        Some("bilinear") => "linear",
        Some("bicubic") => "cubic",
        Some(other) => return Err(format!("unknown mode `{other}`")),
    };
    r.set_attribute(string_attr("mode", renamed));
    Ok(())
}

/// DFT 20: `axis` is an input, and where it is left out no more 1 but −2.
pub(in crate::graph::opset) fn dft(r: &mut Rewrite) -> Result<(), String> {
    let axis = r.get("axis", attr_i)?.unwrap_or(1);
    r.set_constant(2, "axis", |name| tensor::from_i64(name, &[], &[axis]));
    r.remove("axis");
    Ok(())
}

/// GroupNormalization 21 has scale and bias per channel; before, they were per group: each is repeated for the channels of
/// its group.
///
/// ```text
/// s: [G] ── Unsqueeze(1) ── Expand([C / G]) ── Reshape([−1]) ── [C]
/// ```
pub(in crate::graph::opset) fn group_normalization(r: &mut Rewrite) -> Result<(), String> {
    let size = channels_per_group(r);
    let [axis, flat] = [("axis", 1), ("flat", -1)].map(|(suffix, value)| ints(r, suffix, &[value]));
    for (slot, name) in [(1, "scale"), (2, "bias")] {
        let group = r.input(slot).to_owned();
        let column = before(
            r,
            op::Unsqueeze,
            &format!("{name}_column"),
            &[&group, &axis],
        );
        let table = before(r, op::Expand, &format!("{name}_table"), &[&column, &size]);
        let channel = before(r, op::Reshape, name, &[&table, &flat]);
        r.edit.node.input[slot] = channel;
    }
    Ok(())
}

/// The name of a list of one number: how many channels a group has. The sizes that a file states may be those of an example,
/// so it is computed; runtimes do that once, where the sizes are fixed.
fn channels_per_group(r: &mut Rewrite) -> String {
    let (x, scale) = (r.input(0).to_owned(), r.input(1).to_owned());
    let second = vec![int_attr("start", 1), int_attr("end", 2)];
    let channels = before_with(r, op::Shape, "channels", &[&x], second);
    let groups = before(r, op::Shape, "groups", &[&scale]);
    before(r, op::Div, "group", &[&channels, &groups])
}

/// A new constant that is no input of the node itself.
fn ints(r: &mut Rewrite, suffix: &str, values: &[i64]) -> String {
    let name = r.derive(suffix);
    let constant = tensor::from_i64(&name, &[values.len()], values);
    r.edit.constants.push(constant);
    name
}

/// A new node before the node; its output's name.
fn before(r: &mut Rewrite, op: &str, suffix: &str, inputs: &[&str]) -> String {
    before_with(r, op, suffix, inputs, Vec::new())
}

fn before_with(
    r: &mut Rewrite,
    op: &str,
    suffix: &str,
    inputs: &[&str],
    attributes: Vec<AttributeProto>,
) -> String {
    let output = r.derive(suffix);
    let name = r.derive(&format!("{suffix}_{op}"));
    r.edit
        .before
        .push(make_node(op, &name, inputs, &[&output], attributes));
    output
}
