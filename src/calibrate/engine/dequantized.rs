//! Weights behind a DequantizeLinear of constants.
//!
//! The engine would compute them itself: for each node that reads them, in one pass for every operator that it writes a
//! DequantizeLinear with, and with a tensor of the weight's size between two of them. So it is given the floats.
//!
//! ```text
//! W[…, n, …] = (q[…, n, …] − z[n]) s[n]        n on the axis, or one s and z for all
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::calibrate::engine::node::is_standard;
use crate::onnx::node::attr_i;
use crate::onnx::op;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, tensor};

/// A weight of 8-bit integers with one scale, or one for every place of an axis.
pub(in crate::calibrate) struct Weight<'m> {
    /// The bytes of its integers.
    q: &'m [u8],
    signed: bool,
    /// One, or as many as there are places on the axis.
    scale: Vec<f32>,
    /// As many as scales.
    zero: Vec<f32>,
    /// Elements behind the axis.
    inner: usize,
    /// The shape of integers and floats.
    pub shape: Vec<usize>,
}

impl<'m> Weight<'m> {
    /// That of a DequantizeLinear; `None` if it is another node, has blocks, its parts are computed, of other types, or do not go
    /// together: then the engine says what it thinks of it.
    fn of(node: &NodeProto, constants: &BTreeMap<&str, &'m TensorProto>) -> Option<Weight<'m>> {
        let meant = is_standard(node.domain()) || node.domain() == "com.microsoft";
        let plain = ["block_size", "output_dtype"]
            .iter()
            .all(|name| attr_i(node, name).unwrap_or(0) == 0);
        (node.op_type() == op::DequantizeLinear && meant && plain).then_some(())?;
        let constant = |slot: usize| {
            let name = node.input.get(slot).filter(|name| !name.is_empty())?;
            constants.get(name.as_str()).copied()
        };
        let q = constant(0)?;
        let dtype = tensor::dtype(q)?;
        let signed = match dtype {
            DataType::Int8 => true,
            DataType::Uint8 => false,
            _ => return None,
        };
        let shape = tensor::shape(q).ok()?;
        let bytes = q.raw_data.as_deref()?;
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        (bytes.len() == count && count > 0).then_some(())?;
        let scale = tensor::float_array(constant(1)?).ok()?;
        (scale.ndim() <= 1).then_some(())?;
        let scale: Vec<f32> = scale.into_iter().collect();
        let zero = match node.input.get(2).filter(|name| !name.is_empty()) {
            None => vec![0.0; scale.len()],
            Some(_) => {
                let zero = constant(2).filter(|z| tensor::dtype(z) == Some(dtype))?;
                let zero = tensor::int_array(zero).ok()?;
                zero.into_iter().map(|z| z as f32).collect()
            }
        };
        let inner = match scale.len() {
            1 => count,
            n => {
                let rank = shape.len() as i64;
                let axis = attr_i(node, "axis").unwrap_or(1);
                let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()?;
                (shape.get(axis) == Some(&n)).then_some(())?;
                shape[axis + 1..].iter().product()
            }
        };
        (zero.len() == scale.len()).then_some(Weight {
            q: bytes,
            signed,
            scale,
            zero,
            inner,
            shape,
        })
    }

    /// W, row-major.
    pub(super) fn floats(&self) -> Vec<f32> {
        match self.signed {
            true => self.by(|q| f32::from(q as i8)),
            false => self.by(f32::from),
        }
    }

    fn by(&self, value: impl Fn(u8) -> f32) -> Vec<f32> {
        let mut floats = Vec::with_capacity(self.q.len());
        let constants = || self.scale.iter().zip(&self.zero);
        if self.inner == 1 {
            for row in self.q.chunks_exact(self.scale.len()) {
                floats.extend(
                    row.iter()
                        .zip(constants())
                        .map(|(&q, (s, z))| (value(q) - z) * s),
                );
            }
            return floats;
        }
        let channels = self.q.chunks_exact(self.inner);
        for (channel, (s, z)) in channels.zip(constants().cycle()) {
            floats.extend(channel.iter().map(|&q| (value(q) - z) * s));
        }
        floats
    }
}

/// What becomes of a node that dequantizes constants.
pub(super) enum Stored<'m> {
    /// An earlier one gives the same: this is an Identity of it. The value keeps its name for subgraphs and taps; the engine
    /// drops it where nobody asks.
    Before(NodeProto),
    /// Floats of this name and shape are handed over in its place.
    Floats(&'m str, Vec<usize>),
}

/// The nodes of a graph that dequantize constants.
pub(super) struct Dequantized<'m> {
    /// The first of those that are the same.
    nodes: Vec<&'m NodeProto>,
    /// Output of a later node → output of the first that is the same.
    same: BTreeMap<&'m str, &'m str>,
    weights: BTreeMap<&'m str, Weight<'m>>,
    /// What the graph gives must come from a node.
    outputs: BTreeSet<&'m str>,
}

impl<'m> Dequantized<'m> {
    /// Those of a graph; none is known yet.
    pub(super) fn of(graph: &'m GraphProto) -> Self {
        Dequantized {
            nodes: Vec::new(),
            same: BTreeMap::new(),
            weights: BTreeMap::new(),
            outputs: graph.output.iter().map(|output| output.name()).collect(),
        }
    }

    /// What becomes of a node, if it is one of them.
    pub(super) fn known(
        &mut self,
        node: &'m NodeProto,
        constants: &BTreeMap<&str, &'m TensorProto>,
    ) -> Option<Stored<'m>> {
        let known = |input: &String| input.is_empty() || constants.contains_key(input.as_str());
        if node.op_type() != op::DequantizeLinear || !node.input.iter().all(known) {
            return None;
        }
        let [output] = node.output.as_slice() else {
            return None;
        };
        let alike = |first: &&&NodeProto| {
            let (a, b) = (*first, node);
            (&a.input, &a.attribute, a.domain()) == (&b.input, &b.attribute, b.domain())
        };
        if let Some(first) = self.nodes.iter().find(alike) {
            self.same.insert(output, &first.output[0]);
            return Some(Stored::Before(NodeProto {
                op_type: Some(op::Identity.into()),
                domain: None,
                input: vec![first.output[0].clone()],
                attribute: Vec::new(),
                ..node.clone()
            }));
        }
        self.nodes.push(node);
        let weight = Weight::of(node, constants);
        let weight = weight.filter(|_| !self.outputs.contains(output.as_str()))?;
        let shape = weight.shape.clone();
        self.weights.insert(output, weight);
        Some(Stored::Floats(output, shape))
    }

    /// Lets nodes of the main graph read the first of the same.
    pub(super) fn rename_inputs(&self, nodes: &mut [NodeProto]) {
        for input in nodes.iter_mut().flat_map(|node| &mut node.input) {
            if let Some(first) = self.same.get(input.as_str()) {
                *input = (*first).to_owned();
            }
        }
    }

    /// The weights that are handed over as floats, by the name of their value.
    pub(super) fn into_weights(self) -> BTreeMap<&'m str, Weight<'m>> {
        self.weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::node::{int_attr, make_node};
    use crate::onnx::proto::AttributeProto;

    /// The shape and floats of a DequantizeLinear over constants.
    fn floats(
        q: TensorProto,
        scale: TensorProto,
        zero: Option<TensorProto>,
        attributes: Vec<AttributeProto>,
    ) -> Option<(Vec<usize>, Vec<f32>)> {
        let mut constants = BTreeMap::from([("q", &q), ("s", &scale)]);
        let mut inputs = vec!["q", "s"];
        if let Some(zero) = &zero {
            constants.insert("z", zero);
            inputs.push("z");
        }
        let node = make_node(op::DequantizeLinear, "n", &inputs, &["w"], attributes);
        let weight = Weight::of(&node, &constants)?;
        Some((weight.shape.clone(), weight.floats()))
    }

    fn scale(values: &[f32]) -> TensorProto {
        tensor::from_f32("s", &[values.len()], values, DataType::Float)
    }

    #[test]
    fn one_scale_or_one_for_every_place_of_an_axis() {
        let q = || tensor::from_i8("q", &[2, 3], &[-128, 0, 127, 1, 2, 3]);
        let axis = |axis| vec![int_attr("axis", axis)];
        let one = tensor::from_f32("s", &[], &[0.5], DataType::Float);
        let found = floats(q(), one, None, vec![]).unwrap();
        assert_eq!(found, (vec![2, 3], vec![-64.0, 0.0, 63.5, 0.5, 1.0, 1.5]));
        let columns = [-256.0, 0.0, 1016.0, 2.0, 8.0, 24.0];
        for last in [vec![], axis(1), axis(-1)] {
            let (_, w) = floats(q(), scale(&[2.0, 4.0, 8.0]), None, last).unwrap();
            assert_eq!(w, columns);
        }
        let zero = tensor::from_i8("z", &[2], &[1, -1]);
        let (_, w) = floats(q(), scale(&[1.0, 10.0]), Some(zero), axis(0)).unwrap();
        assert_eq!(w, [-129.0, -1.0, 126.0, 20.0, 30.0, 40.0]);
        let unsigned = tensor::from_u8("q", &[3], &[0, 128, 255]);
        let zero = tensor::from_u8("z", &[], &[128]);
        let (_, w) = floats(unsigned, scale(&[1.0]), Some(zero), vec![]).unwrap();
        assert_eq!(w, [-128.0, 0.0, 127.0]);
    }

    /// The engine, or what writes operators with others, says what it makes of these.
    #[test]
    fn what_does_not_go_together_is_left() {
        let q = || tensor::from_i8("q", &[2, 3], &[1; 6]);
        let none = |q, s, z, attributes| assert_eq!(floats(q, s, z, attributes), None);
        none(q(), scale(&[1.0, 2.0]), None, vec![]);
        none(q(), scale(&[1.0; 3]), None, vec![int_attr("axis", 2)]);
        none(q(), scale(&[1.0; 3]), None, vec![int_attr("axis", -3)]);
        none(q(), scale(&[1.0; 3]), None, vec![int_attr("block_size", 1)]);
        let zero = tensor::from_u8("z", &[3], &[0; 3]);
        none(q(), scale(&[1.0; 3]), Some(zero), vec![]);
        let zero = tensor::from_i8("z", &[], &[0]);
        none(q(), scale(&[1.0; 3]), Some(zero), vec![]);
        let cut = tensor::from_i8("q", &[2, 2], &[1; 4]);
        let cut = TensorProto {
            dims: vec![2, 3],
            ..cut
        };
        none(cut, scale(&[1.0; 3]), None, vec![]);
        let wide = tensor::from_i32("q", &[2, 3], &[1; 6]);
        none(wide, scale(&[1.0; 3]), None, vec![]);
    }
}
