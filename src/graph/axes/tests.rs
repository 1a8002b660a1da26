use super::*;
use crate::graph::infer::{Fact, Limits};
use crate::onnx::node::{int_attr, ints_attr, make_node};
use crate::onnx::proto::AttributeProto;
use crate::onnx::{DataType, tensor};

/// A graph that is followed node by node.
struct Graph {
    axes: Axes,
    facts: Facts,
}

impl Graph {
    fn new(inputs: &[(&str, &[usize])]) -> Graph {
        let (mut axes, mut facts) = (Axes::new(), Facts::new(Limits::SIZES));
        for (name, shape) in inputs {
            axes.input(name, shape, true);
            facts.know(name, Fact::of_shape(Some(DataType::Float), shape));
        }
        Graph { axes, facts }
    }

    fn constant(&mut self, name: &str, ints: &[i64]) {
        let tensor = tensor::from_i64(name, &[ints.len()], ints);
        self.facts.know(name, self.facts.tensor(&tensor));
        self.axes.constant(name);
    }

    fn weight(&mut self, name: &str, shape: &[usize]) {
        self.facts
            .know(name, Fact::of_shape(Some(DataType::Float), shape));
        self.axes.constant(name);
    }

    fn node(&mut self, op: &str, inputs: &[&str], output: &str, attrs: Vec<AttributeProto>) {
        let node = make_node(op, op, inputs, &[output], attrs);
        self.facts.follow([&node].into_iter());
        self.axes.follow([&node].into_iter(), &self.facts);
    }

    fn reshape(&mut self, input: &str, output: &str, shape: &[i64]) {
        let name = format!("{output}.shape");
        self.constant(&name, shape);
        self.node("Reshape", &[input, &name], output, vec![]);
    }

    fn transpose(&mut self, input: &str, output: &str, perm: &[i64]) {
        self.node("Transpose", &[input], output, vec![ints_attr("perm", perm)]);
    }

    /// Per axis the name of the input and the axis, start and step, of its first factor.
    fn text(&self, value: &str) -> String {
        let Some(axes) = self.axes.of(value) else {
            return "unknown".to_owned();
        };
        let name = |symbol: Symbol| {
            let of = |(name, symbols): (&str, &[Symbol])| {
                let at = symbols.iter().position(|s| *s == symbol)?;
                Some(format!("{name}{at}"))
            };
            match self.axes.rows() == Some(symbol) {
                true => "B".to_owned(),
                false => self.axes.inputs().find_map(of).unwrap_or("new".to_owned()),
            }
        };
        let factor = |f: &Factor| match f.origin {
            Some((s, 0, 1)) => format!("{}:{}", name(s), f.size),
            Some((s, start, step)) => format!("{}[{start}::{step}]:{}", name(s), f.size),
            None => f.size.to_string(),
        };
        let axis = |a: &Axis| a.iter().map(factor).collect::<Vec<_>>().join("*");
        axes.iter().map(axis).collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn heads_and_batches_are_split_and_joined() {
    let mut g = Graph::new(&[("x", &[2, 6, 8])]);
    g.weight("w", &[8, 12]);
    g.node("MatMul", &["x", "w"], "q", vec![]);
    assert_eq!(g.text("q"), "B:2 x1:6 12");
    g.reshape("q", "heads", &[2, 6, 3, 4]);
    g.transpose("heads", "t", &[0, 2, 1, 3]);
    assert_eq!(g.text("t"), "B:2 3 x1:6 4");
    g.reshape("t", "flat", &[-1, 6, 4]);
    assert_eq!(g.text("flat"), "B:2*3 x1:6 4");
    g.reshape("q", "tokens", &[12, 12]);
    assert_eq!(g.text("tokens"), "B:2*x1:6 12");
}

#[test]
fn windows_know_their_rows_and_tokens() {
    // Two images of 4 × 4 patches in windows of 2 × 2.
    let mut g = Graph::new(&[("x", &[2, 4, 4, 8])]);
    g.reshape("x", "cut", &[2, 2, 2, 2, 2, 8]);
    g.transpose("cut", "t", &[0, 1, 3, 2, 4, 5]);
    g.reshape("t", "windows", &[-1, 4, 8]);
    assert_eq!(
        g.text("windows"),
        "B:2*x1[0::2]:2*x2[0::2]:2 x1:2*x2:2 x3:8"
    );
    g.reshape("windows", "back", &[2, 2, 2, 2, 2, 8]);
    g.transpose("back", "b", &[0, 1, 3, 2, 4, 5]);
    g.reshape("b", "whole", &[2, 4, 4, 8]);
    assert_eq!(g.text("whole"), "B:2 x1:4 x2:4 x3:8");
}

#[test]
fn sequence_first_is_followed() {
    let mut g = Graph::new(&[("x", &[2, 6, 8])]);
    g.transpose("x", "t", &[1, 0, 2]);
    assert_eq!(g.text("t"), "x1:6 B:2 x2:8");
    g.reshape("t", "flat", &[12, 8]);
    assert_eq!(g.text("flat"), "x1:6*B:2 x2:8");
}

#[test]
fn a_mask_is_of_the_sequence_that_it_is_laid_over() {
    // Cross attention of two sequences of one length.
    let mut g = Graph::new(&[
        ("own", &[2, 5, 4]),
        ("other", &[2, 5, 4]),
        ("mask", &[2, 5]),
    ]);
    g.transpose("other", "k", &[0, 2, 1]);
    g.node("MatMul", &["own", "k"], "scores", vec![]);
    g.constant("axes", &[1]);
    g.node("Unsqueeze", &["mask", "axes"], "bias", vec![]);
    g.node("Add", &["scores", "bias"], "masked", vec![]);
    let symbol = |name: &str| g.axes.of_input(name).unwrap()[1];
    assert_eq!(g.axes.offset(symbol("mask"), symbol("other")), Some(0));
    assert_eq!(g.axes.offset(symbol("mask"), symbol("own")), None);
}

#[test]
fn parts_know_where_they_are() {
    let mut g = Graph::new(&[
        ("past", &[2, 3, 4]),
        ("x", &[2, 5, 4]),
        ("mask", &[2, 8, 1]),
    ]);
    g.node("Concat", &["past", "x"], "all", vec![int_attr("axis", 1)]);
    g.node("Mul", &["all", "mask"], "masked", vec![]);
    let symbol = |g: &Graph, name: &str| g.axes.of_input(name).unwrap()[1];
    assert_eq!(g.axes.offset(symbol(&g, "x"), symbol(&g, "mask")), Some(3));
    assert_eq!(
        g.axes.offset(symbol(&g, "past"), symbol(&g, "mask")),
        Some(0)
    );
    for (name, ints) in [("one", 1), ("five", 5), ("two", 2)] {
        g.constant(name, &[ints]);
    }
    g.node("Slice", &["x", "one", "five", "one", "two"], "odd", vec![]);
    assert_eq!(g.text("odd"), "B:2 x1[1::2]:2 x2:4");
}

#[test]
fn what_no_rule_knows_is_unknown() {
    let mut g = Graph::new(&[("x", &[2, 6, 8])]);
    g.node("NonZero", &["x"], "y", vec![]);
    g.node("Relu", &["y"], "z", vec![]);
    assert_eq!(g.text("z"), "unknown");
    // A reshape that cuts a factor in parts that do not divide it.
    g.reshape("x", "odd", &[4, 4, 6]);
    assert_eq!(g.text("odd"), "unknown");
}
