//! Products that give sums of integers, scaled behind: MatMulInteger and ConvInteger, Cast, Mul.

use ndarray::{ArrayD, IxDyn};

use super::values::numbers;
use super::writer::{Sum, Writer, plain};
use crate::graph::{NodeId, ValueId};
use crate::onnx::proto::NodeProto;
use crate::onnx::{op, tensor};

impl Writer<'_, '_> {
    /// Keeps a product in mind until its scale is met.
    pub(super) fn integer_product(&mut self, node: NodeId) {
        let view = self.view;
        let (Some(x), Some(weight), Some(y)) = (
            view.input(node, 0),
            view.input(node, 1),
            view.output(node, 0),
        ) else {
            return;
        };
        if let (Some(float), Some(&scale)) = (self.real.get(&x), self.scales.get(&x)) {
            let sum = Sum {
                node,
                x: float.clone(),
                scale,
                weight,
                zero: view.input(node, 3),
            };
            self.sums.insert(y, sum);
        }
    }

    /// A Mul that applies all scales to a sum becomes the product of floats.
    pub(super) fn scaled_product(&mut self, node: NodeId) {
        let view = self.view;
        let inputs = [0, 1].map(|slot| view.input(node, slot));
        let sum = |value: Option<ValueId>| value.and_then(|v| self.sums.get(&v)).cloned();
        let (sum, factor) = match (sum(inputs[0]), sum(inputs[1])) {
            (Some(sum), None) => (sum, inputs[1]),
            (None, Some(sum)) => (sum, inputs[0]),
            _ => return,
        };
        let Some(mut scales) = factor.and_then(|f| self.scale_of_weight(f, &sum)) else {
            return;
        };
        let proto = view.node(sum.node);
        let conv = proto.op_type() == op::ConvInteger;
        if conv && scales.len() > 1 {
            // [1, N, 1, 1]
            let count = scales.len();
            match scales.into_shape_with_order(IxDyn(&[count])) {
                Ok(flat) => scales = flat,
                Err(_) => return,
            }
        }
        let axis = if conv { 0 } else { -1 };
        let Some(weight) = self.weight(&sum, &scales, axis) else {
            return;
        };
        let float = NodeProto {
            op_type: Some(if conv { op::Conv } else { op::MatMul }.to_owned()),
            name: Some(self.names.unique(plain(proto.name()))),
            input: vec![sum.x, weight],
            output: view.node(node).output.clone(),
            ..proto.clone()
        };
        self.patch.replace(node, float);
        self.done.operators += 1;
    }

    /// What a factor is but for the scale of the sum's input: the scale of its weight. `None` if it is something else.
    fn scale_of_weight(&self, factor: ValueId, sum: &Sum) -> Option<ArrayD<f32>> {
        let view = self.view;
        let mut pending = vec![factor];
        let mut product: Option<ArrayD<f32>> = None;
        let mut applied = false;
        while let Some(value) = pending.pop() {
            if value == sum.scale {
                applied = true;
            } else if let Some(constant) = view.constant(value) {
                let (array, _) = constant.into_float()?;
                product = Some(match product {
                    Some(product) => product * &array,
                    None => array,
                });
            } else {
                let (node, _) = view.producer(value)?;
                (view.op(node) == op::Mul).then_some(())?;
                pending.extend([view.input(node, 0)?, view.input(node, 1)?]);
            }
        }
        let one = || ArrayD::from_elem(IxDyn(&[]), 1.0);
        match applied {
            true => Some(product.unwrap_or_else(one)),
            // Both scales are constants, multiplied before.
            false => Some(product? / view.scalar(sum.scale)?),
        }
    }

    /// (W − z) s, stored.
    fn weight(&mut self, sum: &Sum, scales: &ArrayD<f32>, axis: i64) -> Option<String> {
        let view = self.view;
        let integers = view.constant(sum.weight)?;
        let crate::graph::Constant::Int(q) = integers else {
            return None;
        };
        let zero = match sum.zero {
            Some(zero) => Some(view.constant(zero)?),
            None => None,
        };
        let floats = numbers(&q.mapv(|v| v as f32), scales, zero.as_ref(), axis, 0)?;
        let data: Vec<f32> = floats.iter().copied().collect();
        let scale_bits: Vec<u32> = scales.iter().map(|s| s.to_bits()).collect();
        let key = format!("{} {axis} {scale_bits:?}", sum.weight.0);
        let base = view.name(view.origin(sum.weight));
        Some(self.constant(key, base, |name| {
            tensor::from_f32(name, floats.shape(), &data, crate::onnx::DataType::Float)
        }))
    }
}
