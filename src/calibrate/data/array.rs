//! Arrays as they lie in a calibration file, and their exact conversion to what a model's input wants.
//!
//! A [`FileArray`] is bytes (usually a memory map) with an element type and a shape, always little endian and in
//! row-major order. [`FileArray::read`] turns some of its rows into [`Values`] of the type the engine is fed with:
//! integers and booleans keep the model's type, every float becomes float32. A conversion that would change a value is
//! an error that names the element.

use bytes::Bytes;
use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn};

use crate::onnx::proto::tensor_proto::DataType;

/// The type of one element in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    /// One byte, 0 or not 0.
    Bool,
    /// Signed integer of 1, 2, 4 or 8 bytes.
    Int(u8),
    /// Unsigned integer of 1, 2, 4 or 8 bytes.
    Uint(u8),
    /// IEEE float of 2, 4 or 8 bytes.
    Float(u8),
    /// The upper half of a float32.
    Bfloat16,
}

impl Element {
    /// Bytes of one element.
    pub(crate) fn size(self) -> usize {
        match self {
            Element::Bool => 1,
            Element::Int(n) | Element::Uint(n) | Element::Float(n) => n as usize,
            Element::Bfloat16 => 2,
        }
    }

    /// The element type of an ONNX tensor; `None` for strings, complex numbers and sub-byte types.
    pub(crate) fn from_onnx(dtype: DataType) -> Option<Element> {
        Some(match dtype {
            DataType::Bool => Element::Bool,
            DataType::Int8 => Element::Int(1),
            DataType::Int16 => Element::Int(2),
            DataType::Int32 => Element::Int(4),
            DataType::Int64 => Element::Int(8),
            DataType::Uint8 => Element::Uint(1),
            DataType::Uint16 => Element::Uint(2),
            DataType::Uint32 => Element::Uint(4),
            DataType::Uint64 => Element::Uint(8),
            DataType::Float16 => Element::Float(2),
            DataType::Float => Element::Float(4),
            DataType::Double => Element::Float(8),
            DataType::Bfloat16 => Element::Bfloat16,
            _ => return None,
        })
    }

    /// The element type of a name as [`Display`](std::fmt::Display) writes it.
    pub(crate) fn from_name(name: &str) -> Option<Element> {
        let integers = [1, 2, 4, 8].into_iter();
        let integers = integers.flat_map(|n| [Element::Int(n), Element::Uint(n)]);
        let floats = [2, 4, 8].map(Element::Float);
        let mut all = integers
            .chain(floats)
            .chain([Element::Bool, Element::Bfloat16]);
        all.find(|element| element.to_string() == name)
    }

    /// The element type of a NumPy type string such as `<i8`, and whether its bytes are big endian.
    pub(crate) fn from_numpy(descr: &str) -> Option<(Element, bool)> {
        let big_endian = match descr.as_bytes().first()? {
            b'<' | b'|' => false,
            b'>' => true,
            _ => return None,
        };
        Some((
            match descr.get(1..)? {
                "b1" => Element::Bool,
                "i1" => Element::Int(1),
                "i2" => Element::Int(2),
                "i4" => Element::Int(4),
                "i8" => Element::Int(8),
                "u1" => Element::Uint(1),
                "u2" => Element::Uint(2),
                "u4" => Element::Uint(4),
                "u8" => Element::Uint(8),
                "f2" => Element::Float(2),
                "f4" => Element::Float(4),
                "f8" => Element::Float(8),
                _ => return None,
            },
            big_endian,
        ))
    }
}

impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Element::Bool => f.write_str("bool"),
            Element::Int(n) => write!(f, "int{}", 8 * n),
            Element::Uint(n) => write!(f, "uint{}", 8 * n),
            Element::Float(n) => write!(f, "float{}", 8 * n),
            Element::Bfloat16 => f.write_str("bfloat16"),
        }
    }
}

/// The name of an ONNX element type as users of NumPy write it, e.g. `float32`.
pub fn type_name(dtype: DataType) -> String {
    match Element::from_onnx(dtype) {
        Some(element) => element.to_string(),
        None => dtype.as_str_name().to_lowercase(),
    }
}

/// Input values in the type the engine is fed with: every float type of a model is float32 there.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Every float type of ONNX, in float32.
    F32(ArrayD<f32>),
    /// int8.
    I8(ArrayD<i8>),
    /// int16.
    I16(ArrayD<i16>),
    /// int32.
    I32(ArrayD<i32>),
    /// int64.
    I64(ArrayD<i64>),
    /// uint8.
    U8(ArrayD<u8>),
    /// uint16.
    U16(ArrayD<u16>),
    /// uint32.
    U32(ArrayD<u32>),
    /// uint64.
    U64(ArrayD<u64>),
    /// bool.
    Bool(ArrayD<bool>),
}

impl Values {
    /// The integers, or booleans as 0 and 1; `None` for floats, and for what int64 does not hold.
    pub(in crate::calibrate) fn to_i64(&self) -> Option<ArrayD<i64>> {
        Some(match self {
            Values::F32(_) => return None,
            Values::I8(a) => a.mapv(i64::from),
            Values::I16(a) => a.mapv(i64::from),
            Values::I32(a) => a.mapv(i64::from),
            Values::I64(a) => a.clone(),
            Values::U8(a) => a.mapv(i64::from),
            Values::U16(a) => a.mapv(i64::from),
            Values::U32(a) => a.mapv(i64::from),
            Values::U64(a) => {
                let all: Option<Vec<i64>> = a.iter().map(|&v| v.try_into().ok()).collect();
                ArrayD::from_shape_vec(a.raw_dim(), all?).ok()?
            }
            Values::Bool(a) => a.mapv(i64::from),
        })
    }
}

/// One number of a file; every integer type fits `i128`, every float type fits `f64` exactly.
#[derive(Debug, Clone, Copy)]
enum Number {
    Int(i128),
    Float(f64),
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Number::Int(v) => v.fmt(f),
            Number::Float(v) => v.fmt(f),
        }
    }
}

/// Why an element cannot be used.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum BadElement {
    /// NaN or infinity.
    NotFinite(String),
    /// The value is not representable in the wanted type.
    Inexact(String),
    /// No conversion exists between the two kinds of type.
    Kind,
}

/// An element that cannot be used, with its index.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BadValue {
    /// Index of the element in the whole array.
    pub index: Vec<usize>,
    /// What is wrong with it.
    pub why: BadElement,
}

/// An array in a file: little endian, row-major.
#[derive(Debug, Clone)]
pub(crate) struct FileArray {
    /// Type of the elements.
    pub element: Element,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    data: Bytes,
}

impl FileArray {
    /// Every element, little endian, in row-major order.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// Wraps `data`, which must hold exactly the elements of `shape`; `None` if its length differs.
    pub(crate) fn new(element: Element, shape: Vec<usize>, data: Bytes) -> Option<FileArray> {
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        (data.len() == count.checked_mul(element.size())?).then_some(FileArray {
            element,
            shape,
            data,
        })
    }

    /// Elements in one row, i.e. at one index of axis 0; the whole array when its rank is 0.
    fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Checks that every element converts to `dtype` exactly and is finite.
    pub(crate) fn check(&self, dtype: DataType) -> Result<(), BadValue> {
        let elements = self.data.len() / self.element.size();
        let whole = self.read_range(dtype, 0, elements, None);
        whole.map(|_| ())
    }

    /// Reads the rows (an axis, and indices on it), or the whole array for `None`, as values for an input of type `dtype`.
    pub(crate) fn read(
        &self,
        dtype: DataType,
        rows: Option<(usize, &[usize])>,
    ) -> Result<Values, BadValue> {
        let mut values = Buffer::new(dtype).ok_or_else(|| self.bad(0, BadElement::Kind))?;
        let shape = match rows {
            None => {
                let elements = self.data.len() / self.element.size();
                self.read_range(dtype, 0, elements, Some(&mut values))?;
                self.shape.clone()
            }
            Some((axis, rows)) => {
                // Of each index on the axes before, a run of elements for every row.
                let before: usize = self.shape.iter().take(axis).product();
                let size = self.shape.get(axis).copied().unwrap_or(1);
                let len: usize = self.shape.iter().skip(axis + 1).product();
                for outer in 0..before {
                    for row in rows {
                        let start = (outer * size + row) * len;
                        self.read_range(dtype, start, len, Some(&mut values))?;
                    }
                }
                let mut shape = self.shape.clone();
                if let Some(of_rows) = shape.get_mut(axis) {
                    *of_rows = rows.len();
                }
                shape
            }
        };
        Ok(values.into_values(&shape))
    }

    /// The elements of row `row`, as numbers.
    pub(crate) fn numbers(&self, row: usize) -> impl Iterator<Item = f64> {
        let size = self.element.size();
        let len = self.row_len();
        let bytes = &self.data[row * len * size..][..len * size];
        let element = self.element;
        bytes
            .chunks_exact(size)
            .map(move |b| match number(element, b) {
                Number::Int(v) => v as f64,
                Number::Float(v) => v,
            })
    }

    fn bad(&self, at: usize, why: BadElement) -> BadValue {
        let mut rest = at;
        let mut index = vec![0; self.shape.len()];
        for (i, size) in self.shape.iter().enumerate().rev() {
            let size = (*size).max(1);
            index[i] = rest % size;
            rest /= size;
        }
        BadValue { index, why }
    }

    /// Converts elements `start..start + len`; they are only checked when `out` is `None`.
    fn read_range(
        &self,
        dtype: DataType,
        start: usize,
        len: usize,
        mut out: Option<&mut Buffer>,
    ) -> Result<(), BadValue> {
        let mut only_check = Buffer::new(dtype).ok_or_else(|| self.bad(start, BadElement::Kind))?;
        let size = self.element.size();
        let bytes = &self.data[start * size..][..len * size];
        for (i, chunk) in bytes.chunks_exact(size).enumerate() {
            let value = number(self.element, chunk);
            let target = match out.as_deref_mut() {
                Some(buffer) => buffer,
                None => {
                    only_check.clear();
                    &mut only_check
                }
            };
            target
                .push(value, dtype)
                .map_err(|why| self.bad(start + i, why))?;
        }
        Ok(())
    }
}

/// Decodes one element; `b` has exactly `element.size()` bytes.
fn number(element: Element, b: &[u8]) -> Number {
    // Every element fits 8 bytes; missing upper bytes are filled with the sign by shifting down.
    let mut wide = [0u8; 8];
    wide[..b.len()].copy_from_slice(b);
    let raw = u64::from_le_bytes(wide);
    match element {
        Element::Bool => Number::Int((raw != 0) as i128),
        Element::Uint(_) => Number::Int(raw as i128),
        Element::Int(n) => {
            let shift = 64 - 8 * n as u32;
            Number::Int((((raw << shift) as i64) >> shift) as i128)
        }
        Element::Float(2) => Number::Float(f16::from_bits(raw as u16).to_f64()),
        Element::Float(4) => Number::Float(f32::from_bits(raw as u32) as f64),
        Element::Float(_) => Number::Float(f64::from_bits(raw)),
        Element::Bfloat16 => Number::Float(bf16::from_bits(raw as u16).to_f64()),
    }
}

/// A growing typed vector; one variant per type of [`Values`].
enum Buffer {
    F32(Vec<f32>),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    Bool(Vec<bool>),
}

impl Buffer {
    fn new(dtype: DataType) -> Option<Buffer> {
        Some(match dtype {
            DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16 => {
                Buffer::F32(vec![])
            }
            DataType::Int8 => Buffer::I8(vec![]),
            DataType::Int16 => Buffer::I16(vec![]),
            DataType::Int32 => Buffer::I32(vec![]),
            DataType::Int64 => Buffer::I64(vec![]),
            DataType::Uint8 => Buffer::U8(vec![]),
            DataType::Uint16 => Buffer::U16(vec![]),
            DataType::Uint32 => Buffer::U32(vec![]),
            DataType::Uint64 => Buffer::U64(vec![]),
            DataType::Bool => Buffer::Bool(vec![]),
            _ => return None,
        })
    }

    fn clear(&mut self) {
        match self {
            Buffer::F32(v) => v.clear(),
            Buffer::I8(v) => v.clear(),
            Buffer::I16(v) => v.clear(),
            Buffer::I32(v) => v.clear(),
            Buffer::I64(v) => v.clear(),
            Buffer::U8(v) => v.clear(),
            Buffer::U16(v) => v.clear(),
            Buffer::U32(v) => v.clear(),
            Buffer::U64(v) => v.clear(),
            Buffer::Bool(v) => v.clear(),
        }
    }

    fn push(&mut self, value: Number, dtype: DataType) -> Result<(), BadElement> {
        fn int<T: TryFrom<i128>>(out: &mut Vec<T>, value: Number) -> Result<(), BadElement> {
            let Number::Int(v) = value else {
                return Err(BadElement::Kind);
            };
            out.push(T::try_from(v).map_err(|_| BadElement::Inexact(value.to_string()))?);
            Ok(())
        }
        match self {
            Buffer::F32(out) => {
                let Number::Float(v) = value else {
                    return Err(BadElement::Kind);
                };
                out.push(float(v, dtype)?);
                Ok(())
            }
            Buffer::Bool(out) => match value {
                Number::Int(0) => {
                    out.push(false);
                    Ok(())
                }
                Number::Int(1) => {
                    out.push(true);
                    Ok(())
                }
                Number::Int(_) => Err(BadElement::Inexact(value.to_string())),
                Number::Float(_) => Err(BadElement::Kind),
            },
            Buffer::I8(out) => int(out, value),
            Buffer::I16(out) => int(out, value),
            Buffer::I32(out) => int(out, value),
            Buffer::I64(out) => int(out, value),
            Buffer::U8(out) => int(out, value),
            Buffer::U16(out) => int(out, value),
            Buffer::U32(out) => int(out, value),
            Buffer::U64(out) => int(out, value),
        }
    }

    fn into_values(self, shape: &[usize]) -> Values {
        fn array<T>(shape: &[usize], data: Vec<T>) -> ArrayD<T> {
            #[expect(
                clippy::expect_used,
                reason = "`FileArray::read` pushed one element for each index of `shape`"
            )]
            ArrayD::from_shape_vec(IxDyn(shape), data).expect("as many elements as the shape holds")
        }
        match self {
            Buffer::F32(v) => Values::F32(array(shape, v)),
            Buffer::I8(v) => Values::I8(array(shape, v)),
            Buffer::I16(v) => Values::I16(array(shape, v)),
            Buffer::I32(v) => Values::I32(array(shape, v)),
            Buffer::I64(v) => Values::I64(array(shape, v)),
            Buffer::U8(v) => Values::U8(array(shape, v)),
            Buffer::U16(v) => Values::U16(array(shape, v)),
            Buffer::U32(v) => Values::U32(array(shape, v)),
            Buffer::U64(v) => Values::U64(array(shape, v)),
            Buffer::Bool(v) => Values::Bool(array(shape, v)),
        }
    }
}

/// The float32 the engine gets for `v` on an input of type `dtype`. A 16-bit input rounds as any runtime would when
/// it is fed, as long as the value is in range; float32 and float64 inputs must hold the value exactly.
fn float(v: f64, dtype: DataType) -> Result<f32, BadElement> {
    if !v.is_finite() {
        return Err(BadElement::NotFinite(v.to_string()));
    }
    let converted = match dtype {
        DataType::Float16 => f16::from_f64(v).to_f32(),
        DataType::Bfloat16 => bf16::from_f64(v).to_f32(),
        // The engine computes a float64 model in float32, so its inputs are rounded there.
        DataType::Double => v as f32,
        _ => {
            let rounded = v as f32;
            if rounded as f64 != v {
                return Err(BadElement::Inexact(v.to_string()));
            }
            rounded
        }
    };
    if converted.is_finite() {
        Ok(converted)
    } else {
        Err(BadElement::Inexact(v.to_string()))
    }
}
