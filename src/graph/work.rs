//! Multiplications: how many each product of a graph takes at the shapes of one run.

use crate::graph::infer::{Fact, Facts};
use crate::onnx::node::attr_s;
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

/// A node that multiplies and adds.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// Its operator.
    pub op: String,
    /// Its first output.
    pub output: String,
    /// Multiplications in one run.
    pub multiplications: f64,
    /// Whether one of its factors comes from no input: a weight.
    pub weight: bool,
}

/// Every product among the nodes; `is_constant` tells a weight.
///
/// # Errors
/// The names of what such nodes read and write whose shapes are not known: a part of the products says nothing of all.
pub fn products<'n>(
    nodes: impl Iterator<Item = &'n NodeProto>,
    facts: &Facts,
    is_constant: impl Fn(&str) -> bool,
) -> Result<Vec<Product>, Vec<String>> {
    let mut unknown = Vec::new();
    let mut product = |node: &NodeProto| {
        if !is_product(node) {
            return None;
        }
        let Some(multiplications) = multiplications(node, facts) else {
            let values = node.input.iter().chain(node.output.first());
            let shapeless = values.filter(|name| {
                let shape = facts.get(name).and_then(Fact::shape);
                !name.is_empty() && shape.is_none() && !is_constant(name)
            });
            unknown.extend(shapeless.cloned());
            return None;
        };
        let factors = node.input.iter().take(if node.op_type() == op::Einsum {
            node.input.len()
        } else {
            2
        });
        Some(Product {
            op: node.op_type().to_owned(),
            output: node.output.first()?.clone(),
            multiplications,
            weight: factors.into_iter().any(|name| is_constant(name)),
        })
    };
    let found = nodes.filter_map(&mut product).collect();
    unknown.sort_unstable();
    unknown.dedup();
    match unknown.is_empty() {
        true => Ok(found),
        false => Err(unknown),
    }
}

/// Whether a node is counted by [`products`].
pub(super) fn is_product(node: &NodeProto) -> bool {
    MULTIPLY.contains(&node.op_type())
}

/// The operators that [`multiplications`] knows.
const MULTIPLY: [&str; 9] = [
    op::MatMul,
    op::MatMulInteger,
    op::Gemm,
    op::Conv,
    op::ConvTranspose,
    op::Einsum,
    op::LSTM,
    op::GRU,
    op::RNN,
];

/// Multiplications of one node; `None` if it is no product, or a shape is not known.
fn multiplications(node: &NodeProto, facts: &Facts) -> Option<f64> {
    let shape = |name: &String| facts.get(name)?.shape();
    let input = |slot: usize| shape(node.input.get(slot)?);
    let count = |shape: &[usize]| shape.iter().map(|&n| n as f64).product::<f64>();
    let output = || shape(node.output.first()?).map(|s| count(&s));
    match node.op_type() {
        op::MatMul | op::MatMulInteger => Some(output()? * *input(0)?.last()? as f64),
        op::Gemm => {
            let (a, b) = (count(&input(0)?), count(&input(1)?));
            // M K · K N · M N = (M K N)²
            Some((a * b * output()?).sqrt())
        }
        op::Conv => {
            let weight = input(1)?;
            Some(output()? * count(weight.get(1..)?))
        }
        op::ConvTranspose => {
            let weight = input(1)?;
            Some(count(&input(0)?) * count(weight.get(1..)?))
        }
        op::Einsum => {
            let equation = attr_s(node, "equation")?.replace(' ', "");
            let terms = equation.split("->").next()?;
            let mut letters: Vec<(char, usize)> = Vec::new();
            for (slot, term) in terms.split(',').enumerate() {
                for (letter, n) in term.chars().zip(input(slot)?) {
                    if !letters.iter().any(|(l, _)| *l == letter) {
                        letters.push((letter, n));
                    }
                }
            }
            Some(letters.iter().map(|(_, n)| *n as f64).product())
        }
        op::LSTM | op::GRU | op::RNN => {
            // [steps, batch, channels] by [directions, gates, channels] and [directions, gates, hidden].
            let steps = count(input(0)?.get(..2)?);
            Some(steps * (count(&input(1)?) + count(&input(2)?)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::infer::Limits;
    use crate::onnx::DataType;
    use crate::onnx::node::make_node;

    fn count(op: &str, inputs: &[&[usize]], output: &[usize]) -> Option<f64> {
        let mut facts = Facts::new(Limits::SIZES);
        let names: Vec<String> = (0..inputs.len()).map(|i| format!("i{i}")).collect();
        for (name, shape) in names.iter().zip(inputs) {
            facts.know(name, Fact::of_shape(Some(DataType::Float), shape));
        }
        facts.know("y", Fact::of_shape(Some(DataType::Float), output));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let node = make_node(op, "n", &names, &["y"], vec![]);
        multiplications(&node, &facts)
    }

    #[test]
    fn every_product_is_counted() {
        assert_eq!(
            count("MatMul", &[&[2, 5, 8], &[8, 3]], &[2, 5, 3]),
            Some(240.0)
        );
        assert_eq!(
            count("MatMul", &[&[2, 4, 5, 8], &[2, 4, 8, 5]], &[2, 4, 5, 5]),
            Some(1600.0)
        );
        assert_eq!(count("Gemm", &[&[5, 8], &[3, 8]], &[5, 3]), Some(120.0));
        // 16 channels of 3 × 3 over 4 × 4 in two groups of 4.
        assert_eq!(
            count("Conv", &[&[1, 8, 4, 4], &[16, 4, 3, 3]], &[1, 16, 4, 4]),
            Some(9216.0)
        );
        assert_eq!(count("Add", &[&[2], &[2]], &[2]), None);
    }
}
