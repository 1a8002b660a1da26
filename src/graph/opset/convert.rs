//! One conversion per incompatible change of an operator.
//!
//! A conversion gets a copy of the node in the form of the version before and leaves it in the form of the new one,
//! with what it needs around it: constants, nodes before and after. It either keeps the meaning exactly or says why it
//! cannot. The conversion that changes an operator's type writes the form of version 13 at once. Those of versions after
//! 13 are in `later`.

mod later;

use std::collections::HashSet;

use super::Edit;
use super::facts::Facts;
use crate::graph::Names;
use crate::onnx::node::{
    attr, attr_f, attr_floats, attr_i, attr_ints, attr_s, int_attr, make_node, string_attr,
};
use crate::onnx::op;
use crate::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use crate::onnx::{DataType, tensor};
pub(super) use later::*;

/// Rewrites a node for one new version, or says why that cannot be done.
pub(super) type Conversion = fn(&mut Rewrite) -> Result<(), String>;

/// A node on its way to another version.
pub struct Rewrite<'a> {
    /// The node and what comes with it, so far.
    pub(super) edit: Edit,
    pub(super) facts: &'a Facts,
    pub(super) names: &'a mut Names,
    /// Every name that something reads.
    pub(super) read: &'a HashSet<String>,
}

impl Rewrite<'_> {
    fn input(&self, slot: usize) -> &str {
        self.edit.node.input.get(slot).map_or("", |n| n.as_str())
    }

    /// A new name that says to which node it belongs.
    fn derive(&mut self, suffix: &str) -> String {
        let base = match self.edit.node.name.as_deref() {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => self
                .edit
                .node
                .output
                .iter()
                .find(|o| !o.is_empty())
                .cloned()
                .unwrap_or_default(),
        };
        self.names.derive(&base, suffix)
    }

    /// Makes input number `slot` a new constant; inputs left out before it stay left out.
    fn set_constant(&mut self, slot: usize, suffix: &str, make: impl FnOnce(&str) -> TensorProto) {
        let name = self.derive(suffix);
        self.edit.constants.push(make(&name));
        if self.edit.node.input.len() <= slot {
            self.edit.node.input.resize(slot + 1, String::new());
        }
        self.edit.node.input[slot] = name;
    }

    fn set_ints(&mut self, slot: usize, suffix: &str, values: &[i64]) {
        self.set_constant(slot, suffix, |name| {
            tensor::from_i64(name, &[values.len()], values)
        });
    }

    /// A scalar of the type of the node's first input.
    fn set_scalar(&mut self, slot: usize, suffix: &str, value: f32) -> Result<(), String> {
        let dtype = match self.facts.dtype(self.input(0)) {
            Some(
                dtype @ (DataType::Float
                | DataType::Float16
                | DataType::Double
                | DataType::Bfloat16),
            ) => dtype,
            Some(other) => return Err(format!("`{suffix}` of type {}", other.as_str_name())),
            None => {
                return Err(format!(
                    "`{suffix}` becomes an input of the type of `{}`, which the file does not say (shape inference would)",
                    self.input(0)
                ));
            }
        };
        self.set_constant(slot, suffix, |name| {
            tensor::from_f32(name, &[], &[value], dtype)
        });
        Ok(())
    }

    fn remove(&mut self, name: &str) {
        self.edit.node.attribute.retain(|a| a.name() != name);
    }

    /// Replaces an attribute in its place, or appends it.
    fn set_attribute(&mut self, attribute: AttributeProto) {
        match self
            .edit
            .node
            .attribute
            .iter_mut()
            .find(|a| a.name() == attribute.name())
        {
            Some(old) => *old = attribute,
            None => self.edit.node.attribute.push(attribute),
        }
    }

    /// Reads an attribute with `read`; one that is there and cannot be read is an error.
    fn get<T>(
        &self,
        name: &str,
        read: impl FnOnce(&NodeProto, &str) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let value = read(&self.edit.node, name);
        match attr(&self.edit.node, name) {
            Some(a) if value.is_none() && !a.ref_attr_name().is_empty() => {
                Err(format!("attribute `{name}` is a parameter of the function"))
            }
            Some(_) if value.is_none() => Err(format!(
                "attribute `{name}` has another type than it must have"
            )),
            _ => Ok(value),
        }
    }

    fn read_ints(&self, name: &str) -> Result<Option<Vec<i64>>, String> {
        self.get(name, |node, name| {
            attr_ints(node, name).map(<[i64]>::to_vec)
        })
    }

    fn require_ints(&self, name: &str) -> Result<Vec<i64>, String> {
        self.read_ints(name)?
            .ok_or_else(|| format!("the required attribute `{name}` is missing"))
    }
}

/// BatchNormalization 9 has no `spatial`; 1 was the default and is what remains.
pub(super) fn batch_normalization(r: &mut Rewrite) -> Result<(), String> {
    if r.get("spatial", attr_i)?.unwrap_or(1) != 1 {
        return Err("`spatial = 0`, one mean per feature and position, was removed".to_owned());
    }
    r.remove("spatial");
    Ok(())
}

/// Clip 11: `min` and `max` are inputs. Left out, they are the type's lowest and largest number before and after.
pub(super) fn clip(r: &mut Rewrite) -> Result<(), String> {
    for (slot, name) in [(1, "min"), (2, "max")] {
        if let Some(value) = r.get(name, attr_f)? {
            r.set_scalar(slot, name, value)?;
            r.remove(name);
        }
    }
    Ok(())
}

/// ConvTranspose 11 puts the odd element of an automatic padding at the other end.
pub(super) fn conv_transpose(r: &mut Rewrite) -> Result<(), String> {
    let auto = r.get("auto_pad", |n, a| attr_s(n, a).map(str::to_owned))?;
    let automatic = auto.is_some_and(|a| a.starts_with("SAME"));
    if automatic || attr(&r.edit.node, "output_shape").is_some() {
        return Err("automatic padding moved its odd element to the other end".to_owned());
    }
    Ok(())
}

/// Dropout 10: the mask is a bool tensor. In inference it was never given a meaning, so it must be unread.
pub(super) fn dropout_mask(r: &mut Rewrite) -> Result<(), String> {
    if let Some(mask) = r.edit.node.output.get(1).filter(|m| !m.is_empty()).cloned() {
        if r.read.contains(&mask) {
            return Err(format!(
                "its mask `{mask}` is read, and has another type from version 10 on"
            ));
        }
        r.edit.node.output.truncate(1);
        r.edit.dropped.push(mask);
    }
    Ok(())
}

/// Dropout 12: `ratio` is an input. Without `training_mode` both versions copy the input.
pub(super) fn dropout(r: &mut Rewrite) -> Result<(), String> {
    if let Some(mask) = r.edit.node.output.get(1).filter(|m| r.read.contains(*m)) {
        return Err(format!(
            "its mask `{mask}` is read, and is all ones in inference only from version 12 on"
        ));
    }
    if let Some(ratio) = r.get("ratio", attr_f)? {
        r.set_constant(1, "ratio", |name| {
            tensor::from_f32(name, &[], &[ratio], DataType::Float)
        });
        r.remove("ratio");
    }
    Ok(())
}

/// Erf 13 takes floats only.
pub(super) fn erf(r: &mut Rewrite) -> Result<(), String> {
    match r.facts.dtype(r.input(0)) {
        Some(dtype) if !tensor::is_float(dtype) => Err(format!(
            "it takes {}, and from version 13 on floats only",
            dtype.as_str_name()
        )),
        // No runtime ever had an integer Erf, so an unknown type is a float.
        _ => Ok(()),
    }
}

/// Pad 11: `pads` and `value` are inputs; `value` counts in constant mode only, where 0 is its default.
pub(super) fn pad(r: &mut Rewrite) -> Result<(), String> {
    let pads = r.require_ints("pads")?;
    let value = r.get("value", attr_f)?.unwrap_or(0.0);
    let mode = r.get("mode", |n, a| attr_s(n, a).map(str::to_owned))?;
    r.set_ints(1, "pads", &pads);
    // −0 is not the default.
    if mode.is_none_or(|m| m == "constant") && value.to_bits() != 0 {
        r.set_scalar(2, "value", value)?;
    }
    r.remove("pads");
    r.remove("value");
    Ok(())
}

/// ReduceSum 13 and the other reductions 18: `axes` is an input. No axes and an empty list both mean all.
pub(super) fn reduce(r: &mut Rewrite) -> Result<(), String> {
    if let Some(axes) = r.read_ints("axes")?.filter(|a| !a.is_empty()) {
        r.set_ints(1, "axes", &axes);
    }
    r.remove("axes");
    Ok(())
}

/// Resize 11: coordinates and rounding are attributes, and version 10's are not the defaults. Version 10 divides the
/// position by the scale and, in nearest mode, takes the element below when enlarging, above when shrinking.
pub(super) fn resize(r: &mut Rewrite) -> Result<(), String> {
    let mode = r.get("mode", |n, a| attr_s(n, a).map(str::to_owned))?;
    let nearest = match mode.as_deref() {
        None | Some("nearest") => Some(nearest_mode(r)?),
        Some("linear") => None,
        Some(other) => return Err(format!("unknown mode `{other}`")),
    };
    let scales = r.input(1).to_owned();
    write_resize(r, &scales, nearest);
    Ok(())
}

fn nearest_mode(r: &Rewrite) -> Result<&'static str, String> {
    let name = r.input(1);
    let Some(scales) = r.facts.floats(name) else {
        return Err(format!(
            "its rounding depends on the scales `{name}`, which are not constant"
        ));
    };
    match (
        scales.iter().any(|&s| s < 1.0),
        scales.iter().any(|&s| s > 1.0),
    ) {
        (true, true) => {
            Err("it enlarges one axis and shrinks another, which round differently".to_owned())
        }
        (true, false) => Ok("ceil"),
        (false, _) => Ok("floor"),
    }
}

fn write_resize(r: &mut Rewrite, scales: &str, nearest_mode: Option<&str>) {
    let data = r.input(0).to_owned();
    r.edit.node.input = vec![data, String::new(), scales.to_owned()];
    r.set_attribute(string_attr("coordinate_transformation_mode", "asymmetric"));
    if let Some(rounding) = nearest_mode {
        r.set_attribute(string_attr("nearest_mode", rounding));
    }
}

/// Resize 13 takes scales or sizes and not both, where version 11 wanted empty scales beside sizes, and has lost one
/// coordinate transformation.
pub(super) fn resize_inputs(r: &mut Rewrite) -> Result<(), String> {
    let mode = r.get("coordinate_transformation_mode", |n, a| {
        attr_s(n, a).map(str::to_owned)
    })?;
    if mode.as_deref() == Some("tf_half_pixel_for_nn") {
        return Err("`tf_half_pixel_for_nn` was removed".to_owned());
    }
    if !r.input(3).is_empty() {
        r.edit.node.input[2].clear();
    }
    Ok(())
}

/// Scatter is called ScatterElements from version 11 on.
pub(super) fn scatter(r: &mut Rewrite) -> Result<(), String> {
    r.edit.node.op_type = Some(op::ScatterElements.to_owned());
    Ok(())
}

/// Slice 10: `starts`, `ends` and `axes` are inputs.
pub(super) fn slice(r: &mut Rewrite) -> Result<(), String> {
    let (starts, ends) = (r.require_ints("starts")?, r.require_ints("ends")?);
    let axes = r.read_ints("axes")?;
    r.set_ints(1, "starts", &starts);
    r.set_ints(2, "ends", &ends);
    // Without axes the first ones are meant; from version 10 on they must then be all.
    let axes = axes.unwrap_or_else(|| (0..).take(starts.len()).collect());
    r.set_ints(3, "axes", &axes);
    for name in ["starts", "ends", "axes"] {
        r.remove(name);
    }
    Ok(())
}

/// Softmax, LogSoftmax and Hardmax 13 work along one axis; before, along all axes from `axis` on, taken together:
///
/// `softmax_11(x, axis) = reshape(softmax_13(flatten(x, axis), −1), shape(x))`
///
/// The two are one where `axis` is the last. (A Reshape to a shape with a zero beyond its second axis fails in some
/// runtimes; only an empty tensor can have one.)
pub(super) fn softmax(r: &mut Rewrite) -> Result<(), String> {
    let axis = r.get("axis", attr_i)?.unwrap_or(1);
    let rank = r
        .facts
        .rank(r.input(0))
        .and_then(|rank| i64::try_from(rank).ok());
    if let Some(rank) = rank
        && !(-rank..rank).contains(&axis)
    {
        return Err(format!(
            "its axis is {axis} and the rank of its input {rank}"
        ));
    }
    if axis == -1 || rank.is_some_and(|rank| axis == rank - 1) {
        r.set_attribute(int_attr("axis", axis));
        return Ok(());
    }
    let (x, y) = (
        r.input(0).to_owned(),
        r.edit.node.output.first().cloned().unwrap_or_default(),
    );
    let [shape, flat, result] = ["shape", "flat", "result"].map(|s| r.derive(s));
    let [shape_node, flatten_node, reshape_node] =
        [op::Shape, op::Flatten, op::Reshape].map(|s| r.derive(s));
    r.edit
        .before
        .push(make_node(op::Shape, &shape_node, &[&x], &[&shape], vec![]));
    r.edit.before.push(make_node(
        op::Flatten,
        &flatten_node,
        &[&x],
        &[&flat],
        vec![int_attr("axis", axis)],
    ));
    r.edit.after.push(make_node(
        op::Reshape,
        &reshape_node,
        &[&result, &shape],
        &[&y],
        vec![],
    ));
    r.edit.node.input = vec![flat];
    r.edit.node.output = vec![result];
    r.set_attribute(int_attr("axis", -1));
    Ok(())
}

/// Split 13: `split` is an input. Left out, the parts are equal before and after.
pub(super) fn split(r: &mut Rewrite) -> Result<(), String> {
    if let Some(lengths) = r.read_ints("split")?.filter(|s| !s.is_empty()) {
        r.set_ints(1, "split", &lengths);
    }
    r.remove("split");
    Ok(())
}

/// Squeeze 13: `axes` is an input. Left out, all axes of length 1 go before and after.
pub(super) fn squeeze(r: &mut Rewrite) -> Result<(), String> {
    match r.read_ints("axes")? {
        Some(axes) if axes.is_empty() => {
            return Err(
                "its `axes` are an empty list, which never had a defined meaning".to_owned(),
            );
        }
        Some(axes) => r.set_ints(1, "axes", &axes),
        None => {}
    }
    r.remove("axes");
    Ok(())
}

/// Unsqueeze 13: `axes` is an input.
pub(super) fn unsqueeze(r: &mut Rewrite) -> Result<(), String> {
    let axes = r.require_ints("axes")?;
    r.set_ints(1, "axes", &axes);
    r.remove("axes");
    Ok(())
}

/// TopK 10: `k` is an input. Version 11 adds `largest` and `sorted`, both on unless said otherwise.
pub(super) fn top_k(r: &mut Rewrite) -> Result<(), String> {
    let k = r
        .get("k", attr_i)?
        .ok_or("the required attribute `k` is missing")?;
    r.set_ints(1, "k", &[k]);
    r.remove("k");
    Ok(())
}

/// Upsample 9: `scales` is an input.
pub(super) fn upsample_scales(r: &mut Rewrite) -> Result<(), String> {
    let scales = r.get("scales", |n, a| attr_floats(n, a).map(<[f32]>::to_vec))?;
    let scales = scales.ok_or("the required attribute `scales` is missing")?;
    r.set_constant(1, "scales", |name| {
        tensor::from_f32(name, &[scales.len()], &scales, DataType::Float)
    });
    r.remove("scales");
    Ok(())
}

/// Upsample is called Resize from version 10 on; its scales are at least 1, so the nearest element is the one below.
pub(super) fn upsample(r: &mut Rewrite) -> Result<(), String> {
    let mode = r.get("mode", |n, a| attr_s(n, a).map(str::to_owned))?;
    let nearest = match mode.as_deref() {
        None | Some("nearest") => Some("floor"),
        Some("linear") => None,
        Some(other) => return Err(format!("unknown mode `{other}`")),
    };
    r.edit.node.op_type = Some(op::Resize.to_owned());
    let scales = r.input(1).to_owned();
    write_resize(r, &scales, nearest);
    Ok(())
}
