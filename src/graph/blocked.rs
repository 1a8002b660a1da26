//! Stored integers with a scale for every block: what they mean, in every form that ONNX and ONNX Runtime have.
//!
//! ```text
//! w[o, k, i] = (q[o, k, i] − z[o, g, i]) s[o, g, i]        g = ⌊k / block⌋, or g_idx[k]
//!
//! MatMulNBits            q: [N, G, block · bits / 8] bytes, s: [N, G];        w: [K, N], the last block cut short
//! GatherBlockQuantized   q: [V, D · bits / 8] bytes or 4-bit integers;        w: [V, D]
//! DequantizeLinear       q: integers of 2 bits and more, along any axis;      w: as q
//! ```
//!
//! Bytes hold the first integer in their lowest bits, and every row of q and z begins with a byte of its own. Zero points are
//! packed like q, or floats; without them MatMulNBits and bytes of GatherBlockQuantized have 2^(bits − 1), all others 0.

mod rows;

use rows::Rows;

use super::infer::axis_of;
use super::{NodeId, View};
use crate::onnx::node::attr_i;
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{DataType, tensor};

/// Finds the constant of a name.
pub type Constants<'c, 'm> = &'c dyn Fn(&str) -> Option<&'m TensorProto>;

/// A weight in blocks, not yet dequantized.
#[derive(Clone, Debug)]
pub struct Blocked<'m> {
    q: &'m TensorProto,
    scale: &'m TensorProto,
    zero: Option<&'m TensorProto>,
    /// The group of every place on the axis, where they do not follow each other.
    groups: Option<&'m TensorProto>,
    /// Bits of one integer.
    pub bits: u32,
    /// Whether the integers have a sign.
    signed: bool,
    /// Places of the axis that share a scale.
    pub block: usize,
    /// Elements before the axis, on it, and behind it.
    outer: usize,
    axis: usize,
    inner: usize,
    /// Integers are packed by rows that begin with a byte of their own; else they follow each other.
    by_rows: bool,
    /// What a missing zero point is.
    default_zero: f32,
    /// The shape of the floats.
    pub shape: Vec<usize>,
    /// Whether they are handed out as `[axis, outer]`.
    transposed: bool,
}

/// How the integers of a weight lie around zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symmetry {
    /// Every zero point is the middle of the range.
    Symmetric,
    /// Zero points are stored, and some are not the middle.
    Asymmetric,
    /// Zero points are floats.
    FloatZero,
}

fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// The constant in a slot: `Ok(None)` if the slot is empty, an error if what is there is computed.
fn slot<'m>(
    node: &NodeProto,
    at: usize,
    constants: Constants<'_, 'm>,
) -> Option<Option<&'m TensorProto>> {
    match node.input.get(at).filter(|name| !name.is_empty()) {
        None => Some(None),
        Some(name) => constants(name).map(Some),
    }
}

/// Bits and sign of an integer type.
fn integer(dtype: DataType) -> Option<(u32, bool)> {
    Some(match dtype {
        DataType::Int2 => (2, true),
        DataType::Uint2 => (2, false),
        DataType::Int4 => (4, true),
        DataType::Uint4 => (4, false),
        DataType::Int8 => (8, true),
        DataType::Uint8 => (8, false),
        DataType::Int16 => (16, true),
        DataType::Uint16 => (16, false),
        DataType::Int32 => (32, true),
        _ => return None,
    })
}

fn dtype(tensor: &TensorProto) -> Option<DataType> {
    tensor::dtype(tensor)
}

fn is_float(tensor: &TensorProto) -> bool {
    dtype(tensor).is_some_and(tensor::is_float)
}

impl<'m> Blocked<'m> {
    /// The weight of a node in one of the forms above; `None` if it is another node, one of its parts is computed, or they do not
    /// go together.
    pub fn of(node: &NodeProto, constants: Constants<'_, 'm>) -> Option<Blocked<'m>> {
        let standard = matches!(node.domain(), "" | "ai.onnx");
        let blocked = match node.op_type() {
            crate::onnx::op::MatMulNBits if !standard => Self::product(node, constants)?,
            crate::onnx::op::GatherBlockQuantized if !standard => Self::table(node, constants)?,
            crate::onnx::op::DequantizeLinear => Self::dequantized(node, constants)?,
            _ => return None,
        };
        blocked.fits().then_some(blocked)
    }

    /// The same for a node of a graph.
    pub fn in_view(view: &View<'m>, node: NodeId) -> Option<Blocked<'m>> {
        let constants = |name: &str| view.tensor(view.value(name)?);
        Self::of(view.node(node), &constants)
    }

    fn product(node: &NodeProto, constants: Constants<'_, 'm>) -> Option<Blocked<'m>> {
        let size = |name| usize::try_from(attr_i(node, name)?).ok();
        let (k, n, block) = (size("K")?, size("N")?, size("block_size")?);
        let bits = u32::try_from(attr_i(node, "bits").unwrap_or(4)).ok()?;
        (matches!(bits, 2 | 4 | 8) && block > 0).then_some(())?;
        Some(Blocked {
            q: slot(node, 1, constants)??,
            scale: slot(node, 2, constants)??,
            zero: slot(node, 3, constants)?,
            groups: slot(node, 4, constants)?,
            bits,
            signed: false,
            block,
            outer: n,
            axis: k,
            inner: 1,
            by_rows: true,
            default_zero: (1u32 << (bits - 1)) as f32,
            shape: vec![k, n],
            transposed: true,
        })
    }

    fn table(node: &NodeProto, constants: Constants<'_, 'm>) -> Option<Blocked<'m>> {
        let q = slot(node, 0, constants)??;
        let mut shape = tensor::shape(q).ok()?;
        let at = axis_of(shape.len(), attr_i(node, "quantize_axis").unwrap_or(1))?;
        let (mut bits, signed) = integer(dtype(q)?)?;
        let bytes = dtype(q)? == DataType::Uint8;
        if bytes {
            bits = u32::try_from(attr_i(node, "bits").unwrap_or(4)).ok()?;
            (matches!(bits, 2 | 4 | 8) && at + 1 == shape.len()).then_some(())?;
            let last = shape.last_mut()?;
            *last = last.checked_mul(8 / bits as usize)?;
        }
        let block = usize::try_from(attr_i(node, "block_size").unwrap_or(128)).ok()?;
        (block > 0).then_some(())?;
        Some(Blocked {
            q,
            scale: slot(node, 2, constants)??,
            zero: slot(node, 3, constants)?,
            groups: None,
            bits,
            signed,
            block,
            outer: count(shape.get(..at)?)?,
            axis: *shape.get(at)?,
            inner: count(shape.get(at + 1..)?)?,
            by_rows: bytes,
            default_zero: if bytes {
                (1u32 << (bits - 1)) as f32
            } else {
                0.0
            },
            shape,
            transposed: false,
        })
    }

    fn dequantized(node: &NodeProto, constants: Constants<'_, 'm>) -> Option<Blocked<'m>> {
        let block = attr_i(node, "block_size").filter(|&b| b > 0)?;
        let q = slot(node, 0, constants)??;
        let shape = tensor::shape(q).ok()?;
        let at = axis_of(shape.len(), attr_i(node, "axis").unwrap_or(1))?;
        let (bits, signed) = integer(dtype(q)?)?;
        Some(Blocked {
            q,
            scale: slot(node, 1, constants)??,
            zero: slot(node, 2, constants)?,
            groups: None,
            bits,
            signed,
            block: usize::try_from(block).ok()?,
            outer: count(shape.get(..at)?)?,
            axis: *shape.get(at)?,
            inner: count(shape.get(at + 1..)?)?,
            by_rows: false,
            default_zero: 0.0,
            shape,
            transposed: false,
        })
    }

    /// Integers of 8 bits behind a DequantizeLinear with one scale, or one for every place of an axis that is the first or last of
    /// those longer than 1: one block takes all of the other axes.
    pub fn whole(node: &NodeProto, constants: Constants<'_, 'm>) -> Option<Blocked<'m>> {
        let blocks = attr_i(node, "block_size").is_some_and(|b| b > 0);
        (node.op_type() == crate::onnx::op::DequantizeLinear && !blocks).then_some(())?;
        let q = slot(node, 0, constants)??;
        let scale = slot(node, 1, constants)??;
        let (bits, signed) = integer(dtype(q)?).filter(|(bits, _)| *bits == 8)?;
        let shape = tensor::shape(q).ok()?;
        let all = count(&shape).filter(|&all| all > 0)?;
        let (outer, axis, inner) = match tensor::shape(scale).ok()?.as_slice() {
            [] | [1] => (1, all, 1),
            _ => {
                let at = axis_of(shape.len(), attr_i(node, "axis").unwrap_or(1))?;
                match (count(&shape[..at])?, count(&shape[at + 1..])?) {
                    (1, behind) => (shape[at], behind, 1),
                    (before, 1) => (1, before, shape[at]),
                    _ => return None,
                }
            }
        };
        let whole = Blocked {
            q,
            scale,
            zero: slot(node, 2, constants)?,
            groups: None,
            bits,
            signed,
            block: axis,
            outer,
            axis,
            inner,
            by_rows: false,
            default_zero: 0.0,
            shape,
            transposed: false,
        };
        whole.fits().then_some(whole)
    }

    /// Blocks along the axis; the last may be cut short.
    pub fn blocks(&self) -> usize {
        self.axis.div_ceil(self.block)
    }

    /// Whether the last block is cut short.
    pub fn is_ragged(&self) -> bool {
        !self.axis.is_multiple_of(self.block)
    }

    /// Whether places of the axis name their groups (`g_idx`).
    pub fn is_permuted(&self) -> bool {
        self.groups.is_some()
    }

    /// The name of the stored integers.
    pub fn name(&self) -> &'m str {
        self.q.name()
    }

    /// The type that the floats have in the file: that of their scales.
    pub fn dtype(&self) -> DataType {
        dtype(self.scale).unwrap_or(DataType::Float)
    }

    /// The type of the stored integers.
    pub fn integers(&self) -> Option<DataType> {
        dtype(self.q)
    }

    /// The scales as they are stored.
    pub fn scales(&self) -> &'m TensorProto {
        self.scale
    }

    /// What the floats are made of, as a text: equal for weights that are equal.
    pub fn identity(&self) -> String {
        let place = |tensor: &TensorProto| (std::ptr::from_ref(tensor) as usize).to_string();
        let parts = [Some(self.q), Some(self.scale), self.zero, self.groups];
        let parts: Vec<String> = parts
            .iter()
            .map(|t| t.map_or(String::new(), place))
            .collect();
        let (bits, block, axis) = (self.bits, self.block, self.outer);
        format!("{} {bits} {block} {axis} {:?}", parts.join(" "), self.shape)
    }

    /// Whether ONNX Runtime's MatMulNBits of this weight rounds its activations to 8 bits, per row and block, at an
    /// `accuracy_level`: 4 asks for it, and there are kernels for 4 and 8 bits and, in blocks of 32 to 128, for 2; none for
    /// float zero points and `g_idx`.
    pub fn rounds_activations(&self, accuracy_level: i64) -> bool {
        let kernel = match self.bits {
            2 => matches!(self.block, 32 | 64 | 128),
            _ => matches!(self.block, 16 | 32 | 64 | 128 | 256),
        };
        accuracy_level == 4 && kernel && !self.is_permuted() && !self.has_float_zero_points()
    }

    /// The same weight without its zero points.
    pub fn without_zero_points(self) -> Blocked<'m> {
        Blocked { zero: None, ..self }
    }

    /// Whether zero points are stored as integers.
    pub fn has_integer_zero_points(&self) -> bool {
        self.zero.is_some_and(|zero| !is_float(zero))
    }

    /// Whether zero points are stored as floats.
    pub fn has_float_zero_points(&self) -> bool {
        self.zero.is_some_and(is_float)
    }

    /// How the integers lie around zero. Reads the zero points.
    pub fn symmetry(&self) -> Symmetry {
        if self.has_float_zero_points() {
            return Symmetry::FloatZero;
        }
        let middle = match self.signed {
            true => 0.0,
            false => (1u64 << (self.bits - 1)) as f32,
        };
        let zeros = self.zeros();
        let all = match &zeros {
            Some(zeros) => (0..self.outer).all(|row| {
                let rest = self.blocks() * self.inner;
                (0..rest).all(|i| zeros.get(row, i) == middle)
            }),
            None => self.default_zero == middle,
        };
        match all {
            true => Symmetry::Symmetric,
            false => Symmetry::Asymmetric,
        }
    }

    fn is_same(&self, tensor: &TensorProto, expected: usize) -> bool {
        tensor::shape(tensor).is_ok_and(|shape| count(&shape) == Some(expected))
    }

    /// Whether all parts have the sizes that they need.
    fn fits(&self) -> bool {
        let Some(groups) = self
            .outer
            .checked_mul(self.blocks())
            .and_then(|n| n.checked_mul(self.inner))
        else {
            return false;
        };
        let packed = |row: usize| {
            self.outer
                .checked_mul((row * self.bits as usize).div_ceil(8))
        };
        let of_row = match self.transposed {
            true => self.blocks().checked_mul(self.block),
            false => Some(self.axis),
        };
        let q = match (self.by_rows, of_row) {
            (_, None) => return false,
            (true, Some(row)) => packed(row),
            (false, _) => count(&self.shape),
        };
        let zero = |zero: &TensorProto| {
            let expected = match self.by_rows && !is_float(zero) {
                true => packed(self.blocks()),
                false => Some(groups),
            };
            expected.is_some_and(|n| self.is_same(zero, n))
        };
        q.is_some_and(|n| self.is_same(self.q, n))
            && is_float(self.scale)
            && self.is_same(self.scale, groups)
            && self.zero.is_none_or(zero)
            && self.groups.is_none_or(|g| self.is_same(g, self.axis))
    }

    fn zeros(&self) -> Option<Rows<'m>> {
        let per_row = self.blocks() * self.inner;
        let zero = self.zero?;
        Rows::new(zero, self.bits, self.signed, per_row, self.by_rows)
    }

    /// The floats, in the order of [`shape`](Self::shape). `None` if the bytes do not fit the shapes, or a group is out of range.
    pub fn floats(&self) -> Option<Vec<f32>> {
        let (blocks, inner) = (self.blocks(), self.inner);
        let per_row = match self.transposed {
            true => blocks * self.block,
            false => self.axis * inner,
        };
        let q = Rows::new(self.q, self.bits, self.signed, per_row, self.by_rows)?;
        let zeros = match self.zero {
            Some(_) => Some(self.zeros()?),
            None => None,
        };
        let scales = tensor::float_array(self.scale).ok()?;
        let scales = scales.as_slice()?;
        let group = self.groups()?;
        let mut floats = vec![0f32; count(&self.shape)?];
        let mut zero_row = vec![self.default_zero; blocks * inner];
        let plain = !self.transposed && group.is_none() && per_row > 0;
        for row in 0..self.outer {
            let scale_row = &scales[row * blocks * inner..][..blocks * inner];
            if let Some(zeros) = &zeros {
                for (i, zero) in zero_row.iter_mut().enumerate() {
                    *zero = zeros.get(row, i);
                }
            }
            let bytes = q.bytes_of_row(row).filter(|_| plain);
            if let Some(bytes) = bytes {
                let to = &mut floats[row * per_row..][..per_row];
                self.floats_of_bytes(bytes, (&zero_row, scale_row), to);
                continue;
            }
            for k in 0..self.axis {
                let g = group.as_ref().map_or(k / self.block, |group| group[k]);
                for i in 0..inner {
                    let at = g * inner + i;
                    let w = (q.get(row, k * inner + i) - zero_row[at]) * scale_row[at];
                    let to = match self.transposed {
                        true => k * self.outer + row,
                        false => (row * self.axis + k) * inner + i,
                    };
                    floats[to] = w;
                }
            }
        }
        Some(floats)
    }

    /// The floats of one row of bytes.
    fn floats_of_bytes(&self, bytes: &[u8], (zeros, scales): (&[f32], &[f32]), to: &mut [f32]) {
        let inner = self.inner;
        let number = |byte: u8| match self.signed {
            true => f32::from(byte as i8),
            false => f32::from(byte),
        };
        let places = to
            .chunks_mut(inner * self.block)
            .zip(bytes.chunks(inner * self.block));
        for (g, (to, bytes)) in places.enumerate() {
            let (zeros, scales) = (&zeros[g * inner..][..inner], &scales[g * inner..][..inner]);
            if let ([zero], [scale]) = (zeros, scales) {
                let numbers = to.iter_mut().zip(bytes);
                numbers.for_each(|(to, &q)| *to = (number(q) - zero) * scale);
                continue;
            }
            for (to, bytes) in to.chunks_mut(inner).zip(bytes.chunks(inner)) {
                let parts = zeros.iter().zip(scales);
                let numbers = to.iter_mut().zip(bytes).zip(parts);
                numbers.for_each(|((to, &q), (zero, scale))| *to = (number(q) - zero) * scale);
            }
        }
    }

    /// The group of every place, where they are named.
    #[expect(clippy::option_option, reason = "none named, or named wrongly")]
    fn groups(&self) -> Option<Option<Vec<usize>>> {
        let Some(groups) = self.groups else {
            return Some(None);
        };
        let all = tensor::int_array(groups).ok()?;
        let index = |&g: &i64| usize::try_from(g).ok().filter(|&g| g < self.blocks());
        all.iter().map(index).collect::<Option<Vec<_>>>().map(Some)
    }
}

#[cfg(test)]
mod tests;
