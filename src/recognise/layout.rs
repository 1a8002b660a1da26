//! Linears in another layout than x W with a matrix on the right: the same product once axes are permuted and merged.
//!
//! *Matches*, with W constant: MatMul(x, W) with W: [1, …, K, N]; MatMul(W, x); Einsum of x and W; Conv with a kernel of one
//! element, stride 1 and one group. All are
//!
//! ```text
//! y = split(merge(permute(x)) W' + b)      x: [rows…, channels…]      W': [K, N]
//! ```
//!
//! with the axes of y permuted again where they have another order ([`Layout`]). `rewrite::to_matmul` writes them so.
//!
//! *Not matched*, with the reason: a weight per head or group (an axis that x, W and y share), sums over an axis of x or W
//! alone, a diagonal; a product so small that permuting its values costs more than integers save.

use super::weight::weight_facts;
use crate::graph::{NodeId, ValueId, View};
use crate::onnx::node::{attr_i, attr_ints, attr_s};
use crate::onnx::op;
use crate::onnx::{DataType, tensor};

/// What one value moved to another order of axes costs, in multiplications of float32. Measured with 1×1 Conv in ONNX
/// Runtime 1.31 on one thread with VNNI: 64 → 64 channels gain 14 % behind two Transposes, 32 → 64 lose 20 %.
const COST_OF_MOVING: usize = 28;

/// How a product with a constant becomes x W.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// x.
    pub input: ValueId,
    /// The constant that holds W.
    pub weight: ValueId,
    /// Its float type in the file.
    pub dtype: DataType,
    /// The order in which the axes of x are read: rows first, then channels. Empty for the order that they have.
    pub input_order: Vec<usize>,
    /// How many axes of x, after that, are rows; `None` if it is all but one, however many there are.
    pub rows: Option<usize>,
    /// The sizes of the axes that are the channels: their product is K.
    pub channels: Vec<usize>,
    /// The order in which the axes of the stored W are read: those of the channels, then those of the columns.
    pub weight_order: Vec<usize>,
    /// The sizes of the axes that y has in place of the channels: their product is N.
    pub columns: Vec<usize>,
    /// The order of the axes of y, among rows and columns. Empty for that one.
    pub output_order: Vec<usize>,
    /// Axes of size 1 that y has before all others.
    pub unit_axes: usize,
    /// The input of the node that is added to each of N columns.
    pub bias: Option<ValueId>,
}

impl Layout {
    /// Input channels.
    pub fn k(&self) -> usize {
        self.channels.iter().product()
    }

    /// Output channels.
    pub fn n(&self) -> usize {
        self.columns.iter().product()
    }
}

/// The Linear in another layout at `node`; `None` if it is no product of that kind, `Err(reason)` if it is one that stays as
/// it is. `rank` tells how many axes a value has, as far as that is known.
pub fn other_layout(
    view: &View,
    node: NodeId,
    rank: &dyn Fn(ValueId) -> Option<usize>,
) -> Option<Result<Layout, String>> {
    match view.op(node) {
        op::MatMul => matmul(view, node, rank),
        op::Einsum => einsum(view, node, rank),
        op::Conv => conv(view, node),
        _ => None,
    }
}

/// The input of `node` whose number of axes [`other_layout`] asks for.
pub fn asks_rank(view: &View, node: NodeId) -> Option<ValueId> {
    let constant = |slot: usize| view.input(node, slot).filter(|&v| view.is_constant(v));
    let other = match view.op(node) {
        op::MatMul => constant(1)
            .filter(|&w| weight_facts(view, w).is_some_and(|(dims, _)| dims.len() > 2))
            .map(|_| 0)
            .or_else(|| constant(0).map(|_| 1)),
        op::Einsum if attr_s(view.node(node), "equation").is_some_and(|e| e.contains('.')) => {
            constant(1).map(|_| 0).or_else(|| constant(0).map(|_| 1))
        }
        _ => None,
    }?;
    view.input(node, other).filter(|&x| !view.is_constant(x))
}

/// Shape and float type of a constant.
fn float_weight(view: &View, weight: ValueId) -> Option<(Vec<usize>, DataType)> {
    let (dims, dtype) = weight_facts(view, weight)?;
    (tensor::is_float(dtype) && dims.iter().all(|&n| n > 0)).then_some((dims, dtype))
}

fn matmul(
    view: &View,
    node: NodeId,
    rank: &dyn Fn(ValueId) -> Option<usize>,
) -> Option<Result<Layout, String>> {
    let (a, b) = (view.input(node, 0)?, view.input(node, 1)?);
    let left = view.is_constant(a);
    if left == view.is_constant(b) {
        return None;
    }
    let (weight, input) = if left { (a, b) } else { (b, a) };
    let (dims, dtype) = float_weight(view, weight)?;
    let &[ref before @ .., first, second] = dims.as_slice() else {
        return None;
    };
    let (k, n) = if left {
        (second, first)
    } else {
        (first, second)
    };
    // An outer product, as of positions and frequencies, multiplies nothing with many channels.
    if k < 2 || (!left && before.is_empty()) {
        return None;
    }
    let name = view.name(weight);
    // A matrix for each head or group.
    if before.iter().any(|&size| size != 1) {
        return None;
    }
    let Some(rank) = rank(input).filter(|&rank| rank > 0) else {
        return Some(Err(format!(
            "its weight `{name}` has shape {dims:?}, and how many axes its input has is not known"
        )));
    };
    let axes = dims.len();
    let moved = left && rank > 1;
    let swap = |moved: bool| match moved {
        true => swapped(rank),
        false => Vec::new(),
    };
    let mut weight_order: Vec<usize> = vec![axes - 2, axes - 1];
    if left {
        weight_order.reverse();
    }
    let layout = Layout {
        input,
        weight,
        dtype,
        input_order: swap(moved),
        rows: None,
        channels: vec![k],
        weight_order,
        columns: vec![n],
        output_order: swap(moved),
        unit_axes: axes.saturating_sub(rank.max(2)),
        bias: None,
    };
    Some(worth(view, node, layout))
}

/// The order that exchanges the last two of `rank` axes.
fn swapped(rank: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rank).collect();
    order.swap(rank - 2, rank - 1);
    order
}

fn conv(view: &View, node: NodeId) -> Option<Result<Layout, String>> {
    let (proto, input, weight) = (view.node(node), view.input(node, 0)?, view.input(node, 1)?);
    if !view.is_constant(weight) || view.is_constant(input) {
        return None;
    }
    let (dims, dtype) = float_weight(view, weight)?;
    let &[n, k, ref kernel @ ..] = dims.as_slice() else {
        return None;
    };
    let ones = |name: &str, one: i64| {
        attr_ints(proto, name).is_none_or(|list| list.iter().all(|&v| v == one))
    };
    let is_linear = !kernel.is_empty() && kernel.iter().all(|&size| size == 1);
    if !is_linear || attr_i(proto, "group").unwrap_or(1) != 1 || k < 2 {
        return None;
    }
    if !ones("strides", 1) || !ones("pads", 0) {
        return Some(Err(
            "it is a 1×1 Conv that leaves values out or pads them; one with stride 1 and no padding is a Linear"
                .to_owned(),
        ));
    }
    let rank = dims.len();
    let input_order: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    let output_order: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    let layout = Layout {
        input,
        weight,
        dtype,
        input_order,
        rows: None,
        channels: vec![k],
        weight_order: [1, 0].into_iter().chain(2..rank).collect(),
        columns: vec![n],
        output_order,
        unit_axes: 0,
        bias: view.input(node, 2),
    };
    Some(worth(view, node, layout))
}

/// The letters of an equation for one operand each and the result, dots written as further letters.
struct Equation {
    x: Vec<char>,
    w: Vec<char>,
    y: Vec<char>,
}

impl Equation {
    /// `None` if it is malformed, has letters twice in one term, or dots where the number of axes is not known.
    fn of(equation: &str, x_first: bool, x_rank: Option<usize>) -> Option<Equation> {
        const DOTS: &str = "...";
        let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
        let (terms, y) = match equation.split_once("->") {
            Some((terms, y)) => (terms, y.to_owned()),
            None => (equation.as_str(), implicit(&equation)),
        };
        let (first, second) = terms.split_once(',')?;
        let (x, w) = match x_first {
            true => (first, second),
            false => (second, first),
        };
        let hidden = match x.contains(DOTS) {
            true => x_rank?.checked_sub(x.replace(DOTS, "").chars().count())?,
            false => 0,
        };
        // Capital and small letters are what equations are made of.
        let dots: String = (0..hidden)
            .filter_map(|i| char::from_digit(i as u32, 36))
            .collect();
        let letters = |term: &str| -> Option<Vec<char>> {
            let letters: Vec<char> = term.replace(DOTS, &dots).chars().collect();
            let twice = (1..letters.len()).any(|i| letters[..i].contains(&letters[i]));
            let known = letters.iter().all(char::is_ascii_alphanumeric);
            (!twice && known).then_some(letters)
        };
        // Dots of the weight are axes that it shares with x.
        (!w.contains(DOTS)).then_some(())?;
        Some(Equation {
            x: letters(x)?,
            w: letters(w)?,
            y: letters(&y)?,
        })
    }
}

/// The result of an equation that names none: the dots, then the letters that occur once, sorted.
fn implicit(terms: &str) -> String {
    let letters = terms.chars().filter(char::is_ascii_alphabetic);
    let mut once: Vec<char> = letters.filter(|&l| terms.matches(l).count() == 1).collect();
    once.sort_unstable();
    let dots = if terms.contains("...") { "..." } else { "" };
    dots.chars().chain(once).collect()
}

fn einsum(
    view: &View,
    node: NodeId,
    rank: &dyn Fn(ValueId) -> Option<usize>,
) -> Option<Result<Layout, String>> {
    let proto = view.node(node);
    let [a, b] = [0, 1].map(|slot| view.input(node, slot));
    let (a, b, None) = (a?, b?, view.input(node, 2)) else {
        return None;
    };
    let x_first = view.is_constant(b);
    if x_first == view.is_constant(a) {
        return None;
    }
    let (input, weight) = if x_first { (a, b) } else { (b, a) };
    let (dims, dtype) = float_weight(view, weight)?;
    let text = attr_s(proto, "equation")?;
    let refuse = |why: &str| Some(Err(format!("it is the Einsum `{text}`: {why}")));
    let Some(Equation { x, w, y }) = Equation::of(text, x_first, rank(input)) else {
        return refuse("not a product of rows and columns that this tool reads");
    };
    let in_all = |l: &&char| x.contains(l) && y.contains(l);
    if w.iter().any(|l| in_all(&l)) {
        return refuse("its weight has a matrix for each head or group, which stays in float");
    }
    let alone = |l: &char, other: &[char]| !other.contains(l) && !y.contains(l);
    if w.len() != dims.len() || x.iter().any(|l| alone(l, &w)) || w.iter().any(|l| alone(l, &x)) {
        return refuse("it sums over an axis of one factor alone");
    }
    let rows: Vec<char> = x.iter().copied().filter(|l| y.contains(l)).collect();
    let channels: Vec<char> = x.iter().copied().filter(|l| w.contains(l)).collect();
    let columns: Vec<char> = y.iter().copied().filter(|l| w.contains(l)).collect();
    let place = |list: &[char], l: &char| list.iter().position(|other| other == l);
    let places = |list: &[char], of: &mut dyn Iterator<Item = &char>| -> Option<Vec<usize>> {
        of.map(|l| place(list, l)).collect()
    };
    let sizes = |of: &[char]| -> Option<Vec<usize>> {
        of.iter().map(|l| Some(dims[place(&w, l)?])).collect()
    };
    let result: Vec<char> = rows.iter().chain(&columns).copied().collect();
    let layout = Layout {
        input,
        weight,
        dtype,
        input_order: if_moved(places(&x, &mut rows.iter().chain(&channels))?),
        rows: Some(rows.len()),
        channels: sizes(&channels)?,
        weight_order: places(&w, &mut channels.iter().chain(&columns))?,
        columns: sizes(&columns)?,
        output_order: if_moved(places(&result, &mut y.iter())?),
        unit_axes: 0,
        bias: None,
    };
    if rows.is_empty() || columns.is_empty() || layout.k() < 2 {
        return refuse("it has no rows, channels or columns");
    }
    Some(worth(view, node, layout))
}

/// An order, empty if it is the one that there is.
fn if_moved(order: Vec<usize>) -> Vec<usize> {
    match order.iter().enumerate().all(|(at, &axis)| at == axis) {
        true => Vec::new(),
        false => order,
    }
}

/// The layout if permuting what it reads and writes costs less than integers save.
fn worth(view: &View, node: NodeId, layout: Layout) -> Result<Layout, String> {
    let reads = !layout.input_order.is_empty() && unmoved(view, &layout).is_none();
    let writes = !layout.output_order.is_empty()
        && view
            .output(node, 0)
            .is_some_and(|y| moved_back(view, y, &layout.output_order).is_none());
    let (k, n) = (layout.k(), layout.n());
    let moved = usize::from(reads) * k + usize::from(writes) * n;
    if k * n > COST_OF_MOVING * moved {
        return Ok(layout);
    }
    let op = view.node(node).op_type();
    Err(format!(
        "it is a Linear of {k} to {n} channels as {op}: bringing its channels to the last axis costs more than integers save"
    ))
}

/// The value that a Transpose made the input of a layout from, if it is already in the order that the product wants.
pub fn unmoved(view: &View, layout: &Layout) -> Option<ValueId> {
    let transpose = view.producer_is(layout.input, op::Transpose)?;
    let order = transposition(view, transpose, layout.input_order.len())?;
    let together = layout.input_order.iter().map(|&axis| order[axis]);
    if_moved(together.collect()).is_empty().then_some(())?;
    view.input(transpose, 0)
}

/// The Transpose that alone reads `value`, a product whose axes were brought into `order`, and brings them back.
pub fn moved_back(view: &View, value: ValueId, order: &[usize]) -> Option<NodeId> {
    let (transpose, 0) = view.only_reader(value)? else {
        return None;
    };
    (view.op(transpose) == op::Transpose).then_some(())?;
    let next = transposition(view, transpose, order.len())?;
    let together = next.iter().map(|&axis| order[axis]);
    if_moved(together.collect()).is_empty().then_some(transpose)
}

/// The order of a Transpose of `rank` axes.
fn transposition(view: &View, transpose: NodeId, rank: usize) -> Option<Vec<usize>> {
    let order = match attr_ints(view.node(transpose), "perm") {
        Some(order) => order
            .iter()
            .map(|&axis| usize::try_from(axis).ok())
            .collect(),
        None => Some((0..rank).rev().collect()),
    };
    order.filter(|o: &Vec<usize>| o.len() == rank && o.iter().all(|&axis| axis < rank))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equations_with_dots_and_without_a_result() {
        let letters = |equation, first, rank| {
            let e = Equation::of(equation, first, rank)?;
            Some([e.x, e.w, e.y].map(|l| l.into_iter().collect::<String>()))
        };
        let as_strings = |e: [&str; 3]| Some(e.map(str::to_owned));
        assert_eq!(
            letters("bsd, dhk -> bshk", true, None),
            as_strings(["bsd", "dhk", "bshk"])
        );
        assert_eq!(
            letters("dn,...d->...n", false, Some(3)),
            as_strings(["01d", "dn", "01n"])
        );
        assert_eq!(
            letters("...d,dn", true, Some(2)),
            as_strings(["0d", "dn", "0n"])
        );
        assert_eq!(letters("bd,dn", true, None), as_strings(["bd", "dn", "bn"]));
        assert_eq!(letters("...d,dn->...n", true, None), None);
        assert_eq!(letters("dd,dn->n", true, None), None);
        assert_eq!(letters("bd->b", true, None), None);
    }
}
