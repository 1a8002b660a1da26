//! Operators on integers that know their scales, each as the operator on floats that it stands for.

use ndarray::{ArrayD, IxDyn};

use super::values::Grid;
use super::writer::{Writer, plain};
use crate::graph::{NodeId, ValueId};
use crate::onnx::node::{attr_f, attr_i, float_attr};
use crate::onnx::proto::{AttributeProto, NodeProto};
use crate::onnx::{DataType, op, tensor};

/// The float operator of one that reads one quantized input and gives one: x, s, z, s_y, z_y.
const OF_ONE: [(&str, &str); 6] = [
    (op::QLinearAveragePool, op::AveragePool),
    (op::QLinearGlobalAveragePool, op::GlobalAveragePool),
    (op::QLinearLeakyRelu, op::LeakyRelu),
    (op::QLinearReduceMean, op::ReduceMean),
    (op::QLinearSigmoid, op::Sigmoid),
    (op::QLinearSoftmax, op::Softmax),
];

/// The float operator of one that reads two: a, s_a, z_a, b, s_b, z_b, s_y, z_y.
const OF_TWO: [(&str, &str); 3] = [
    (op::QLinearAdd, op::Add),
    (op::QLinearMatMul, op::MatMul),
    (op::QLinearMul, op::Mul),
];

impl Writer<'_, '_> {
    /// Writes a float operator for one of the table; nothing happens to another.
    pub(super) fn operator(&mut self, node: NodeId) {
        let op = self.view.node(node).op_type();
        let named = |table: &[(&str, &'static str)]| {
            table
                .iter()
                .find(|(q, _)| *q == op)
                .map(|&(_, float)| float)
        };
        // Nothing but what was written counts.
        let _ = match op {
            op::QLinearConv => self.conv(node),
            op::QGemm => self.gemm(node),
            op::QLinearConcat => self.concat(node),
            op::QLinearWhere => self.choice(node),
            op::MatMulIntegerToFloat => self.integer_to_float(node),
            op::DynamicQuantizeMatMul => self.dynamic(node),
            op::QAttention => self.attention(node),
            op::MatMulNBits => self.product_of_blocks(node),
            op::GatherBlockQuantized => self.rows_of_blocks(node),
            _ => match (named(&OF_ONE), named(&OF_TWO)) {
                (Some(float), _) => self.of_one(node, float),
                (_, Some(float)) => self.of_two(node, float),
                _ => None,
            },
        };
    }

    /// Scale and zero point in two slots.
    fn grid(&self, node: NodeId, scale: usize) -> Grid {
        [scale, scale + 1].map(|slot| self.view.input(node, slot))
    }

    /// The numbers of the quantized input in `slot`, whose scale and zero point follow.
    fn operand(&mut self, node: NodeId, slot: usize, axis: i64) -> Option<String> {
        let (value, grid) = (self.view.input(node, slot)?, self.grid(node, slot + 1));
        self.numbers_of(node, value, grid, axis)
    }

    fn numbers_of(&mut self, at: NodeId, value: ValueId, grid: Grid, axis: i64) -> Option<String> {
        if let Some(float) = self.stored_float(value, grid, axis, 0) {
            return Some(float);
        }
        self.float_of(at, value, grid, None)
    }

    /// Puts the operator before the one that it stands for; its output is rounded to a grid.
    fn rounds(
        &mut self,
        node: NodeId,
        op: &str,
        inputs: Vec<String>,
        attributes: Vec<AttributeProto>,
        grid: Grid,
    ) -> Option<()> {
        let q = self.view.output(node, 0)?;
        let float = NodeProto {
            op_type: Some(op.to_owned()),
            domain: None,
            input: inputs,
            attribute: attributes,
            ..self.view.node(node).clone()
        };
        let mut value = self.insert(node, float, self.view.name(q));
        if [op::Add, op::Conv, op::Gemm, op::MatMul, op::Mul].contains(&op) {
            value = self.not_below_zero(node, None, value, grid);
        }
        self.real.insert(q, value);
        self.scales.extend(grid[0].map(|scale| (q, scale)));
        self.done.operators += 1;
        Some(())
    }

    /// Puts the operator in the place of one that gives floats.
    pub(super) fn replaces(
        &mut self,
        node: NodeId,
        (domain, op): (Option<&str>, &str),
        inputs: Vec<String>,
        attributes: Vec<AttributeProto>,
    ) -> Option<()> {
        let proto = self.view.node(node);
        let float = NodeProto {
            op_type: Some(op.to_owned()),
            domain: domain.map(str::to_owned),
            name: Some(self.names.unique(plain(proto.name()))),
            input: inputs,
            attribute: attributes,
            ..proto.clone()
        };
        self.patch.replace(node, float);
        self.done.operators += 1;
        Some(())
    }

    /// The attributes of a node but for some.
    fn attributes(&self, node: NodeId, without: &[&str]) -> Vec<AttributeProto> {
        let all = self.view.node(node).attribute.iter();
        all.filter(|a| !without.contains(&a.name()))
            .cloned()
            .collect()
    }

    fn of_one(&mut self, node: NodeId, float: &str) -> Option<()> {
        let proto = self.view.node(node);
        (attr_i(proto, "channels_last").unwrap_or(0) == 0).then_some(())?;
        let x = self.operand(node, 0, 1)?;
        let attributes = self.attributes(node, &["channels_last", "opset"]);
        self.rounds(node, float, vec![x], attributes, self.grid(node, 3))
    }

    fn of_two(&mut self, node: NodeId, float: &str) -> Option<()> {
        let (a, b) = (self.operand(node, 0, -2)?, self.operand(node, 3, -1)?);
        self.rounds(node, float, vec![a, b], vec![], self.grid(node, 6))
    }

    fn conv(&mut self, node: NodeId) -> Option<()> {
        let view = self.view;
        let mut inputs = vec![self.operand(node, 0, 1)?, self.operand(node, 3, 0)?];
        if let Some(bias) = view.input(node, 8) {
            inputs.push(self.bias(bias, [view.input(node, 1)?, view.input(node, 4)?], 1.0)?);
        }
        let attributes = self.attributes(node, &["channels_last"]);
        self.rounds(node, op::Conv, inputs, attributes, self.grid(node, 6))
    }

    fn gemm(&mut self, node: NodeId) -> Option<()> {
        let view = self.view;
        let proto = view.node(node);
        let axis = 1 - attr_i(proto, "transB").unwrap_or(0);
        let mut inputs = vec![self.operand(node, 0, 1)?, self.operand(node, 3, axis)?];
        if let Some(bias) = view.input(node, 6) {
            // QGemm multiplies the bias by alpha, too.
            let alpha = attr_f(proto, "alpha").unwrap_or(1.0);
            inputs.push(self.bias(bias, [view.input(node, 1)?, view.input(node, 4)?], alpha)?);
        }
        let mut attributes = self.attributes(node, &["beta"]);
        attributes.push(float_attr("beta", 1.0));
        match view.input(node, 7) {
            Some(_) => self.rounds(node, op::Gemm, inputs, attributes, self.grid(node, 7)),
            None => self.replaces(node, (None, op::Gemm), inputs, attributes),
        }
    }

    /// c s_x s_w α of a bias in int32, [N].
    fn bias(&mut self, bias: ValueId, scales: [ValueId; 2], alpha: f32) -> Option<String> {
        let view = self.view;
        let crate::graph::Constant::Int(c) = view.constant(bias)? else {
            return None;
        };
        let x = view.scalar(scales[0])?;
        let (w, _) = view.constant(scales[1])?.into_float()?;
        let w: Vec<f32> = w.iter().copied().collect();
        (w.len() == 1 || w.len() == c.len()).then_some(())?;
        let of = |(i, c): (usize, &i64)| *c as f32 * (x * w[i % w.len()]) * alpha;
        let data: Vec<f32> = c.iter().enumerate().map(of).collect();
        let floats = ArrayD::from_shape_vec(IxDyn(c.shape()), data).ok()?;
        let key = format!("bias {} {} {} {alpha}", bias.0, scales[0].0, scales[1].0);
        let data: Vec<f32> = floats.iter().copied().collect();
        Some(self.constant(key, view.name(bias), |name| {
            tensor::from_f32(name, floats.shape(), &data, DataType::Float)
        }))
    }

    /// s_y, z_y, then x, s, z of each.
    fn concat(&mut self, node: NodeId) -> Option<()> {
        let count = (self.view.node(node).input.len() - 2) / 3;
        let inputs: Option<Vec<String>> = (0..count)
            .map(|i| self.operand(node, 2 + 3 * i, 1))
            .collect();
        let attributes = self.attributes(node, &[]);
        self.rounds(node, op::Concat, inputs?, attributes, self.grid(node, 0))
    }

    fn choice(&mut self, node: NodeId) -> Option<()> {
        let condition = self.float_input(node, 0)?;
        let (x, y) = (self.operand(node, 1, 1)?, self.operand(node, 4, 1)?);
        self.rounds(
            node,
            op::Where,
            vec![condition, x, y],
            vec![],
            self.grid(node, 7),
        )
    }

    /// A, B, s_a, s_b, z_a, z_b, bias
    fn integer_to_float(&mut self, node: NodeId) -> Option<()> {
        let view = self.view;
        let slot = |slot: usize| view.input(node, slot);
        let x = self.numbers_of(node, slot(0)?, [slot(2), slot(4)], -2)?;
        let w = self.numbers_of(node, slot(1)?, [slot(3), slot(5)], -1)?;
        self.product(node, x, w, slot(6))
    }

    /// x, B, s_b, z_b, bias
    fn dynamic(&mut self, node: NodeId) -> Option<()> {
        let view = self.view;
        let x = self.float_input(node, 0)?;
        let w = self.numbers_of(node, view.input(node, 1)?, self.grid(node, 2), -1)?;
        self.product(node, x, w, view.input(node, 4))
    }

    /// x W, with the bias in an Add.
    pub(super) fn product(
        &mut self,
        node: NodeId,
        x: String,
        w: String,
        bias: Option<ValueId>,
    ) -> Option<()> {
        let Some(bias) = bias else {
            return self.replaces(node, (None, op::MatMul), vec![x, w], vec![]);
        };
        let view = self.view;
        let matmul = NodeProto {
            op_type: Some(op::MatMul.to_owned()),
            domain: None,
            input: vec![x, w],
            attribute: vec![],
            ..view.node(node).clone()
        };
        let base = format!("{}_product", view.name(view.output(node, 0)?));
        let product = self.insert(node, matmul, &base);
        let bias = self.float_value(bias);
        self.replaces(node, (None, op::Add), vec![product, bias], vec![])
    }

    /// x, W, b, s_x, s_w, mask, z_x, z_w, past
    fn attention(&mut self, node: NodeId) -> Option<()> {
        let view = self.view;
        let slot = |slot: usize| view.input(node, slot);
        let x = self.numbers_of(node, slot(0)?, [slot(3), slot(6)], -2)?;
        let w = self.numbers_of(node, slot(1)?, [slot(4), slot(7)], -1)?;
        let other =
            |value: Option<ValueId>| value.map_or_else(String::new, |v| self.float_value(v));
        let mut inputs = vec![x, w, other(slot(2)), other(slot(5)), other(slot(8))];
        while inputs.last().is_some_and(String::is_empty) {
            inputs.pop();
        }
        let attributes = self.attributes(node, &[]);
        self.replaces(
            node,
            (Some("com.microsoft"), op::Attention),
            inputs,
            attributes,
        )
    }
}
