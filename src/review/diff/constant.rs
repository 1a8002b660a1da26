//! Constants: type, shape, digest, range, and how far two of them are apart.
//!
//! Elements are read where they lie, in the memory map; nothing is copied but the rare types that have no fixed place.

use half::{bf16, f16};

use crate::onnx::proto::TensorProto;
use crate::onnx::text::{bytes, digest, tensor_type};
use crate::onnx::{DataType, tensor};

/// What is said of one constant.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Type and shape: `float[384, 1536]`.
    pub ty: String,
    /// 64-bit FNV-1a of the elements in little endian; the same that `onnx-osplus text` prints.
    pub digest: u64,
    /// Smallest and largest element; `None` for strings, complex numbers and empty tensors.
    pub range: Option<(f64, f64)>,
    /// Bytes of the elements.
    pub bytes: usize,
}

/// How far two constants are apart, element by element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distance {
    /// max |a − b|.
    pub largest: f64,
    /// The same over the largest |a| or |b|; `None` if that is zero.
    pub relative: Option<f64>,
}

/// Scale and zero point of a quantized constant: `(q − zero_point) · scale`.
#[derive(Clone, Debug)]
pub(super) struct Dequantize<'m> {
    pub scale: &'m TensorProto,
    pub zero_point: Option<&'m TensorProto>,
    /// Of a scale with one axis; one of more axes is as long as the constant, or shorter where elements share it.
    pub axis: i64,
}

/// The facts of one constant before and after; either may be missing.
pub(super) fn facts(tensors: [Option<&TensorProto>; 2]) -> [Option<Facts>; 2] {
    let data = tensors.map(|t| t.map(bytes));
    let text = [0, 1].map(|i| data[i].as_deref().unwrap_or_default());
    let (digests, ranges) = rayon::join(|| digests(text), || tensors.map(|t| t.and_then(range)));
    [0, 1].map(|i| {
        tensors[i].map(|t| Facts {
            ty: tensor_type(t),
            digest: digests[i],
            range: ranges[i],
            bytes: text[i].len(),
        })
    })
}

/// Both digests at once: each waits for its own last multiplication, so that two take hardly longer than one.
fn digests([a, b]: [&[u8]; 2]) -> [u64; 2] {
    if a.len() != b.len() {
        return [digest(a), digest(b)];
    }
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let start = digest(&[]);
    let pairs = a.iter().zip(b);
    let (a, b) = pairs.fold((start, start), |(x, y), (&a, &b)| (step(x, a), step(y, b)));
    [a, b]
}

/// Smallest and largest element; NaN is neither.
pub(super) fn range(tensor: &TensorProto) -> Option<(f64, f64)> {
    let elements = Elements::of(tensor)?;
    let (min, max) = match &elements {
        // What weights usually are, in a loop that vectorizes.
        Elements::F32(data) => {
            let start = (f32::INFINITY, f32::NEG_INFINITY);
            let (min, max) = data.iter().fold(start, |(min, max), &x| {
                let x = f32::from_le_bytes(x);
                (if x < min { x } else { min }, if x > max { x } else { max })
            });
            (f64::from(min), f64::from(max))
        }
        elements => {
            let start = (f64::INFINITY, f64::NEG_INFINITY);
            (0..elements.len()).fold(start, |(min, max), i| {
                let x = elements.at(i);
                (min.min(x), max.max(x))
            })
        }
    };
    (min <= max).then_some((min, max))
}

/// The same elements, in whatever field and however many axes of length 1.
pub(super) fn same_elements(a: &TensorProto, b: &TensorProto) -> bool {
    let raw = |t: &TensorProto| t.raw_data.clone().filter(|raw| !raw.is_empty());
    let same = match (raw(a), raw(b)) {
        (Some(a), Some(b)) => a == b,
        _ => bytes(a) == bytes(b),
    };
    same && a.data_type == b.data_type && a.string_data == b.string_data
}

/// Element by element, if they correspond; `quantized` says how those of A and B are to be read.
pub(super) fn distance(
    a: (&TensorProto, Option<&Dequantize>),
    b: (&TensorProto, Option<&Dequantize>),
) -> Option<Distance> {
    let squeezed =
        |t: &TensorProto| -> Vec<i64> { t.dims.iter().copied().filter(|&dim| dim != 1).collect() };
    if squeezed(a.0) != squeezed(b.0) {
        return None;
    }
    let (x, y) = (Reader::new(a)?, Reader::new(b)?);
    if x.elements.len() != y.elements.len() || x.elements.len() == 0 {
        return None;
    }
    if let (Elements::F32(x), Elements::F32(y), None, None) =
        (&x.elements, &y.elements, &x.scale, &y.scale)
        && let Some(distance) = float_distance(x, y)
    {
        return Some(distance);
    }
    let (mut largest, mut size) = (0.0f64, 0.0f64);
    for i in 0..x.elements.len() {
        let (x, y) = (x.at(i), y.at(i));
        size = size.max(x.abs()).max(y.abs());
        let apart = (x - y).abs();
        // Equal infinities are not apart; a NaN on one side is as far as can be.
        if x != y && !(x.is_nan() && y.is_nan()) {
            largest = largest.max(if apart.is_nan() { f64::INFINITY } else { apart });
        }
    }
    Some(Distance {
        largest,
        relative: (size > 0.0).then_some(largest / size),
    })
}

/// As [`distance`], in a loop that vectorizes; `None` if an element is infinite or no number.
fn float_distance(x: &[[u8; 4]], y: &[[u8; 4]]) -> Option<Distance> {
    let (mut largest, mut size, mut odd) = (0.0f32, 0.0f32, false);
    for (&x, &y) in x.iter().zip(y) {
        let (x, y) = (f32::from_le_bytes(x), f32::from_le_bytes(y));
        let apart = (x - y).abs();
        let far = if x.abs() > y.abs() { x.abs() } else { y.abs() };
        odd |= !apart.is_finite();
        largest = if apart > largest { apart } else { largest };
        size = if far > size { far } else { size };
    }
    (!odd).then_some(Distance {
        largest: f64::from(largest),
        relative: (size > 0.0).then_some(f64::from(largest) / f64::from(size)),
    })
}

struct Reader<'m> {
    elements: Elements<'m>,
    scale: Option<(Elements<'m>, Option<Elements<'m>>)>,
    axes: Vec<Axis>,
}

/// How a place on one axis of a constant counts in the place of its scale.
struct Axis {
    /// Elements from one place to the next.
    step: usize,
    length: usize,
    /// Places that share a scale.
    block: usize,
    scale_step: usize,
}

impl<'m> Reader<'m> {
    fn new((t, quantized): (&'m TensorProto, Option<&Dequantize<'m>>)) -> Option<Self> {
        let elements = Elements::of(t)?;
        let Some(q) = quantized else {
            return Some(Reader {
                elements,
                scale: None,
                axes: Vec::new(),
            });
        };
        let scale = Elements::of(q.scale)?;
        let zero_point = match q.zero_point {
            Some(zero_point) => Some(Elements::of(zero_point)?),
            None => None,
        };
        Some(Reader {
            axes: axes(
                &tensor::shape(t).ok()?,
                &tensor::shape(q.scale).ok()?,
                q.axis,
            )?,
            elements,
            scale: Some((scale, zero_point)),
        })
    }

    fn at(&self, i: usize) -> f64 {
        let Some((scale, zero_point)) = &self.scale else {
            return self.elements.at(i);
        };
        let along = |a: &Axis| i / a.step % a.length / a.block * a.scale_step;
        let at: usize = self.axes.iter().map(along).sum();
        let zero = zero_point.as_ref().map_or(0.0, |zero| match zero.len() {
            0 => 0.0,
            1 => zero.at(0),
            _ => zero.at(at),
        });
        (self.elements.at(i) - zero) * scale.at(at)
    }
}

/// The axes along which the scale changes; `None` if the shapes do not go together.
fn axes(shape: &[usize], scale: &[usize], axis: i64) -> Option<Vec<Axis>> {
    let rank = shape.len();
    let mut of_axis = vec![1; rank];
    match scale {
        [] => {}
        [length] if *length == 1 => {}
        [length] => {
            let axis = if axis < 0 { axis + rank as i64 } else { axis };
            *of_axis.get_mut(usize::try_from(axis).ok()?)? = *length;
        }
        lengths if lengths.len() <= rank => {
            of_axis[rank - lengths.len()..].copy_from_slice(lengths);
        }
        _ => return None,
    }
    let (mut step, mut scale_step, mut found) = (1, 1, Vec::new());
    for (&length, &scales) in shape.iter().zip(&of_axis).rev() {
        if scales > 1 {
            let block = length.div_ceil(scales).max(1);
            if length.div_ceil(block) != scales {
                return None;
            }
            found.push(Axis {
                step,
                length,
                block,
                scale_step,
            });
        }
        step *= length;
        scale_step *= scales;
    }
    // An empty scale has nothing to read.
    scale.iter().all(|&length| length > 0).then_some(found)
}

/// Elements of a tensor as numbers, read in place where the file has them as bytes.
enum Elements<'m> {
    F32(&'m [[u8; 4]]),
    F64(&'m [[u8; 8]]),
    F16(&'m [[u8; 2]]),
    Bf16(&'m [[u8; 2]]),
    I8(&'m [u8]),
    U8(&'m [u8]),
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

impl<'m> Elements<'m> {
    /// `None` for strings, complex numbers, 8-bit floats, and tensors that are malformed.
    fn of(t: &'m TensorProto) -> Option<Self> {
        use DataType as T;
        let raw = t.raw_data.as_ref().filter(|raw| !raw.is_empty());
        let dtype = tensor::dtype(t)?;
        if let Some(raw) = raw {
            match dtype {
                T::Float => return Some(Elements::F32(raw.as_chunks().0)),
                T::Double => return Some(Elements::F64(raw.as_chunks().0)),
                T::Float16 => return Some(Elements::F16(raw.as_chunks().0)),
                T::Bfloat16 => return Some(Elements::Bf16(raw.as_chunks().0)),
                T::Int8 => return Some(Elements::I8(raw)),
                T::Uint8 => return Some(Elements::U8(raw)),
                _ => {}
            }
        }
        if tensor::is_float(dtype) {
            let array = tensor::float_array(t).ok()?;
            return Some(Elements::Floats(array.into_iter().collect()));
        }
        let array = tensor::int_array(t).ok()?;
        Some(Elements::Integers(array.into_iter().collect()))
    }

    fn len(&self) -> usize {
        match self {
            Elements::F32(x) => x.len(),
            Elements::F64(x) => x.len(),
            Elements::F16(x) | Elements::Bf16(x) => x.len(),
            Elements::I8(x) | Elements::U8(x) => x.len(),
            Elements::Floats(x) => x.len(),
            Elements::Integers(x) => x.len(),
        }
    }

    fn at(&self, i: usize) -> f64 {
        match self {
            Elements::F32(x) => f64::from(f32::from_le_bytes(x[i])),
            Elements::F64(x) => f64::from_le_bytes(x[i]),
            Elements::F16(x) => f16::from_le_bytes(x[i]).to_f64(),
            Elements::Bf16(x) => bf16::from_le_bytes(x[i]).to_f64(),
            Elements::I8(x) => f64::from(x[i] as i8),
            Elements::U8(x) => f64::from(x[i]),
            Elements::Floats(x) => f64::from(x[i]),
            Elements::Integers(x) => x[i] as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::tensor::{from_f32, from_i64};

    #[test]
    fn two_digests_are_those_of_each() {
        let (a, b) = (b"one text of some length", b"two text of some length");
        assert_eq!(digests([a, b]), [digest(a), digest(b)]);
    }

    #[test]
    fn distances_with_infinities_and_nans() {
        let float = |data: &[f32]| from_f32("x", &[data.len()], data, DataType::Float);
        let apart = |a: &[f32], b: &[f32]| {
            let found = distance((&float(a), None), (&float(b), None)).unwrap();
            (found.largest, found.relative)
        };
        assert_eq!(apart(&[1.0, -4.0], &[1.5, -3.0]), (1.0, Some(0.25)));
        assert_eq!(apart(&[f32::INFINITY, 1.0], &[f32::INFINITY, 1.5]).0, 0.5);
        assert_eq!(apart(&[f32::NAN], &[1.0]).0, f64::INFINITY);
        assert_eq!(apart(&[f32::NAN], &[f32::NAN]).0, 0.0);
    }

    #[test]
    fn scales_by_channel_by_block_and_broadcast() {
        let q = from_i64("q", &[2, 4], &[1, 1, 1, 1, 1, 1, 1, 1]);
        let zero = from_f32("z", &[2, 4], &[0.0; 8], DataType::Float);
        let largest = |scale: TensorProto, axis: i64| {
            let q_of = Dequantize {
                scale: &scale,
                zero_point: None,
                axis,
            };
            let reader = Reader::new((&q, Some(&q_of))).unwrap();
            let values: Vec<f64> = (0..8).map(|i| reader.at(i)).collect();
            let found = distance((&q, Some(&q_of)), (&zero, None)).unwrap();
            assert_eq!(found.largest, values.iter().copied().fold(0.0, f64::max));
            values
        };
        let scale = |shape: &[usize], data: &[f32]| from_f32("s", shape, data, DataType::Float);
        let rows = [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0];
        assert_eq!(largest(scale(&[2], &[1.0, 2.0]), 0), rows);
        assert_eq!(largest(scale(&[2, 1], &[1.0, 2.0]), 1), rows);
        let columns = [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0];
        assert_eq!(largest(scale(&[4], &[1.0, 2.0, 3.0, 4.0]), -1), columns);
        let blocks = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0];
        assert_eq!(largest(scale(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), 1), blocks);
    }
}
