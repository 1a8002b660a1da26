//! The real numbers that integers mean: of constants, of values that were rounded, of what is picked from either.

use ndarray::{ArrayD, IxDyn};

use super::writer::{Writer, plain};
use crate::graph::{Constant, NodeId, ValueId};
use crate::onnx::node::{attr_i, make_node};
use crate::onnx::{DataType, op, tensor};

/// Scale and zero point; the latter may be left out.
pub(super) type Grid = [Option<ValueId>; 2];

/// Operators that pick, repeat and rearrange elements of their first input.
const PASSING: [&str; 18] = [
    op::DepthToSpace,
    op::Expand,
    op::Flatten,
    op::Gather,
    op::GatherElements,
    op::GatherND,
    op::Identity,
    op::MaxPool,
    op::Pad,
    op::Reshape,
    op::Resize,
    op::Slice,
    op::SpaceToDepth,
    op::Split,
    op::Squeeze,
    op::Tile,
    op::Transpose,
    op::Unsqueeze,
];

/// More steps back than exporters leave between a value and what makes it so.
const STEPS: usize = 8;

impl Writer<'_, '_> {
    /// The float value that the integers `q` stand for, made before `at` if it is not there. `by` is the node that dequantizes
    /// them, with the axis of its scales.
    pub(super) fn float_of(
        &mut self,
        at: NodeId,
        q: ValueId,
        grid: Grid,
        by: Option<NodeId>,
    ) -> Option<String> {
        if let Some(float) = self.real.get(&q) {
            return Some(float.clone());
        }
        let proto = by.map(|node| self.view.node(node));
        let attribute = |name: &str| proto.and_then(|node| attr_i(node, name));
        let axis = attribute("axis").unwrap_or(1);
        if let Some(stored) = self.stored_float(q, grid, axis, attribute("block_size").unwrap_or(0))
        {
            return Some(stored);
        }
        self.picked(at, q, grid)
    }

    /// What an operator that picks elements makes of the numbers that its input stands for.
    fn picked(&mut self, at: NodeId, q: ValueId, grid: Grid) -> Option<String> {
        let view = self.view;
        let (node, output) = view.producer(q)?;
        let proto = view.node(node);
        let concat = view.op(node) == op::Concat;
        if !concat
            && (!PASSING.contains(&view.op(node)) || output != 0 && view.op(node) != op::Split)
        {
            return None;
        }
        // One scale for all: whatever moves keeps it.
        let one = |value: Option<ValueId>| {
            let constant = value.and_then(|v| view.constant(v));
            constant.is_none_or(|c| length(&c) == 1)
        };
        if !one(grid[0]) || !one(grid[1]) {
            return None;
        }
        let mut float = proto.clone();
        let data = if concat { proto.input.len() } else { 1 };
        for slot in 0..data {
            let input = view.input(node, slot)?;
            float.input[slot] = self.float_of(at, input, grid, None)?;
        }
        for (slot, name) in float.input.iter_mut().enumerate().skip(data) {
            let value = view.input(node, slot);
            *name = value.map_or_else(String::new, |v| self.float_value(v));
        }
        // What a Pad adds is the zero point, if anything.
        if view.op(node) == op::Pad && float.input.len() > 2 {
            float.input[2] = String::new();
        }
        if view.op(node) != op::Split {
            let name = self.insert(at, float, view.name(q));
            self.real.insert(q, name.clone());
            return Some(name);
        }
        let outputs: Vec<ValueId> = (0..proto.output.len())
            .filter_map(|i| view.output(node, i))
            .collect();
        let new: Vec<String> = outputs
            .iter()
            .map(|&o| self.names.unique(plain(view.name(o))))
            .collect();
        float.output = new.clone();
        float.name = Some(self.names.unique(plain(proto.name())));
        self.patch.insert_before(at, float);
        self.real.extend(outputs.into_iter().zip(new));
        self.real.get(&q).cloned()
    }

    /// (q − z) s of a constant, or of one that is rounded to q, stored.
    pub(super) fn stored_float(
        &mut self,
        q: ValueId,
        grid: Grid,
        axis: i64,
        block: i64,
    ) -> Option<String> {
        let view = self.view;
        let (scale, dtype) = view.constant(grid[0]?)?.into_float()?;
        let zero = match grid[1] {
            Some(zero) => Some(view.constant(zero)?),
            None => None,
        };
        let (base, integers) = match view.constant(q) {
            Some(Constant::Int(q_values)) => (q, q_values.mapv(|v| v as f32)),
            Some(Constant::Float { .. }) => return None,
            None => {
                let quantize = view.producer_is(q, op::QuantizeLinear)?;
                let x = view.input(quantize, 0)?;
                let (x_values, _) = view.constant(x)?.into_float()?;
                let limits = self.limits(grid[1]);
                (x, rounded(&x_values, &scale, zero.as_ref(), axis, limits)?)
            }
        };
        let floats = numbers(&integers, &scale, zero.as_ref(), axis, block)?;
        let id = |v: Option<ValueId>| v.map_or(usize::MAX, |v| v.0);
        let key = format!("{} {} {} {axis} {block}", q.0, id(grid[0]), id(grid[1]));
        let data: Vec<f32> = floats.iter().copied().collect();
        let name = view.name(view.origin(base));
        Some(self.constant(key, name, |name| {
            tensor::from_f32(name, floats.shape(), &data, dtype)
        }))
    }

    /// The smallest and the largest integer of the type of a zero point.
    fn limits(&self, zero: Option<ValueId>) -> (f32, f32) {
        match zero.and_then(|zero| self.view.elem_type(zero)) {
            Some(t) if t == DataType::Int8 as i32 => (-128.0, 127.0),
            Some(t) if t == DataType::Int16 as i32 => (-32768.0, 32767.0),
            Some(t) if t == DataType::Uint16 as i32 => (0.0, 65535.0),
            _ => (0.0, 255.0),
        }
    }

    /// A float value that is rounded to a range from 0 up: behind what may be negative a Relu, or a Clip where the range ends at
    /// 6. Where the range has another end it is the value itself. `x` is that value in the quantized model, if it has one.
    pub(super) fn not_below_zero(
        &mut self,
        at: NodeId,
        x: Option<ValueId>,
        float: String,
        grid: Grid,
    ) -> String {
        let view = self.view;
        let zero = grid[1].map(|zero| view.constant(zero).and_then(Constant::into_ints));
        let zero = match zero {
            None => 0.0,
            Some(Some(ints)) if ints.len() == 1 => ints[0] as f32,
            Some(_) => return float,
        };
        let (low, high) = self.limits(grid[1]);
        // With one of signed integers around 0 nothing ends there.
        if zero != low || x.is_some_and(|x| !self.may_be_cut(x)) {
            return float;
        }
        let scale = grid[0].and_then(|scale| view.scalar(scale)).unwrap_or(0.0);
        let six = (scale * (high - low) - 6.0).abs() < 1e-5;
        let base = format!("{float}_positive");
        let node = match six {
            true => {
                let ends = [("clip_min", 0.0), ("clip_max", 6.0)].map(|(name, end)| {
                    let made = |name: &str| tensor::from_f32(name, &[], &[end], DataType::Float);
                    self.constant(name.to_owned(), name, made)
                });
                make_node(op::Clip, &base, &[&float, &ends[0], &ends[1]], &[], vec![])
            }
            false => make_node(op::Relu, &base, &[&float], &[], vec![]),
        };
        self.insert(at, node, &base)
    }

    /// Whether a value may be negative and is computed by what quantizers leave out a Relu behind.
    fn may_be_cut(&self, mut value: ValueId) -> bool {
        for _ in 0..STEPS {
            let Some((node, _)) = self.view.producer(value) else {
                return false;
            };
            match self.view.op(node) {
                op::Add
                | op::BatchNormalization
                | op::Conv
                | op::Gemm
                | op::MatMul
                | op::Mul
                | op::Sub => {
                    return true;
                }
                op if PASSING.contains(&op) => match self.view.input(node, 0) {
                    Some(input) => value = input,
                    None => return false,
                },
                _ => return false,
            }
        }
        false
    }
}

fn length(constant: &Constant) -> usize {
    match constant {
        Constant::Float { array, .. } => array.len(),
        Constant::Int(array) => array.len(),
    }
}

/// The element of a scale or zero point that belongs to each element of an array.
struct Spread {
    /// Elements behind the axis, on it, and elements of it that share one.
    inner: usize,
    axis: usize,
    share: usize,
    /// How many there are: 1 for all, or those of the axis, or with blocks as many as the array has blocks.
    count: usize,
    blocked: bool,
}

impl Spread {
    fn new(shape: &[usize], count: usize, axis: i64, block: i64) -> Option<Spread> {
        let rank = shape.len() as i64;
        let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()?;
        let size = shape.get(axis).copied().unwrap_or(1);
        let inner = shape.iter().skip(axis + 1).product();
        let share = usize::try_from(block).ok()?.max(1);
        let blocks = shape.iter().take(axis).product::<usize>() * size.div_ceil(share) * inner;
        let expected = if block > 0 { blocks } else { size };
        (count == 1 || count == expected).then_some(Spread {
            inner,
            axis: size,
            share,
            count,
            blocked: block > 0,
        })
    }

    fn at(&self, element: usize) -> usize {
        if self.count == 1 {
            return 0;
        }
        let (row, column) = (element / self.inner, element % self.inner);
        let (outer, on_axis) = (row / self.axis, row % self.axis);
        match self.blocked {
            true => {
                (outer * self.axis.div_ceil(self.share) + on_axis / self.share) * self.inner
                    + column
            }
            false => on_axis,
        }
    }
}

fn zeros(zero: Option<&Constant>) -> Option<Vec<f32>> {
    Some(match zero {
        Some(Constant::Int(zero)) => zero.iter().map(|&z| z as f32).collect(),
        Some(Constant::Float { .. }) => return None,
        None => vec![0.0],
    })
}

/// (q − z) s
pub(super) fn numbers(
    q: &ArrayD<f32>,
    scale: &ArrayD<f32>,
    zero: Option<&Constant>,
    axis: i64,
    block: i64,
) -> Option<ArrayD<f32>> {
    let (zero, scale) = (zeros(zero)?, scale.iter().copied().collect::<Vec<f32>>());
    let by_scale = Spread::new(q.shape(), scale.len(), axis, block)?;
    let by_zero = Spread::new(q.shape(), zero.len(), axis, block)?;
    let elements = q.iter().enumerate();
    let floats = elements.map(|(i, q)| (q - zero[by_zero.at(i)]) * scale[by_scale.at(i)]);
    ArrayD::from_shape_vec(IxDyn(q.shape()), floats.collect()).ok()
}

/// clamp(round(x / s) + z), ties to even
fn rounded(
    x: &ArrayD<f32>,
    scale: &ArrayD<f32>,
    zero: Option<&Constant>,
    axis: i64,
    (low, high): (f32, f32),
) -> Option<ArrayD<f32>> {
    let (zero, scale) = (zeros(zero)?, scale.iter().copied().collect::<Vec<f32>>());
    let by_scale = Spread::new(x.shape(), scale.len(), axis, 0)?;
    let by_zero = Spread::new(x.shape(), zero.len(), axis, 0)?;
    let elements = x.iter().enumerate();
    let integers = elements.map(|(i, x)| {
        let level = (x / scale[by_scale.at(i)]).round_ties_even() + zero[by_zero.at(i)];
        level.clamp(low, high)
    });
    ArrayD::from_shape_vec(IxDyn(x.shape()), integers.collect()).ok()
}
