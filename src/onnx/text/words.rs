//! The words of the textual syntax: identifiers, types, elements.

use std::borrow::Cow;
use std::fmt::Display;

use super::super::proto::attribute_proto::AttributeType;
use super::super::proto::tensor_shape_proto::{Dimension, dimension};
use super::super::proto::{
    AttributeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, type_proto,
};
use super::super::{DataType, tensor};

/// The type of an attribute; files older than IR version 2 do not say it.
pub(super) fn attribute_type(attribute: &AttributeProto) -> AttributeType {
    use AttributeType as Kind;
    let named = attribute.r#type();
    let guesses = [
        (named != Kind::Undefined, named),
        (attribute.f.is_some(), Kind::Float),
        (attribute.i.is_some(), Kind::Int),
        (attribute.s.is_some(), Kind::String),
        (attribute.t.is_some(), Kind::Tensor),
        (attribute.g.is_some(), Kind::Graph),
        (!attribute.floats.is_empty(), Kind::Floats),
        (!attribute.strings.is_empty(), Kind::Strings),
    ];
    let found = guesses.iter().find(|(holds, _)| *holds);
    found.map_or(Kind::Ints, |(_, kind)| *kind)
}

/// Whether the syntax has a form for an attribute's value.
pub(super) fn is_held(attribute: &AttributeProto) -> bool {
    use AttributeType as Kind;
    !attribute.ref_attr_name().is_empty()
        || match attribute_type(attribute) {
            Kind::Tensor => attribute.t.is_some(),
            Kind::Graph => attribute.g.is_some(),
            Kind::TypeProto => attribute.tp.as_ref().and_then(type_text).is_some(),
            kind => matches!(
                kind,
                Kind::Int | Kind::Float | Kind::String | Kind::Ints | Kind::Floats | Kind::Strings
            ),
        }
}

/// The elements as `raw_data` would hold them.
pub(crate) fn bytes(tensor: &TensorProto) -> Cow<'_, [u8]> {
    if let Some(raw) = tensor.raw_data.as_ref().filter(|raw| !raw.is_empty()) {
        return Cow::Borrowed(raw);
    }
    // The fields with 32 and 64 bits also hold smaller elements.
    let width = tensor::dtype(tensor)
        .and_then(tensor::bits)
        .map_or(4, |bits| bits.div_ceil(8));
    let narrow = |bytes: &[u8]| bytes[..width.min(bytes.len())].to_vec();
    let floats = tensor.float_data.iter().flat_map(|x| x.to_le_bytes());
    let doubles = tensor.double_data.iter().flat_map(|x| x.to_le_bytes());
    let small = tensor.int32_data.iter();
    let small = small.flat_map(|x| narrow(&x.to_le_bytes()));
    let large = tensor.int64_data.iter().flat_map(|x| x.to_le_bytes());
    let unsigned = tensor.uint64_data.iter();
    let unsigned = unsigned.flat_map(|x| narrow(&x.to_le_bytes()));
    floats
        .chain(doubles)
        .chain(small)
        .chain(large)
        .chain(unsigned)
        .collect()
}

/// Each element as the parser expects it: half floats and 8-bit floats as the number of their bits, packed elements
/// byte by byte.
pub(super) fn literals(tensor: &TensorProto, bytes: &[u8]) -> Vec<String> {
    use DataType as T;
    fn each<const N: usize, D: Display>(bytes: &[u8], f: fn([u8; N]) -> D) -> Vec<String> {
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| f(b).to_string())
            .collect()
    }
    match tensor::dtype(tensor).unwrap_or(T::Undefined) {
        T::Float | T::Complex64 => each(bytes, |b| format!("{:?}", f32::from_le_bytes(b))),
        T::Double | T::Complex128 => each(bytes, |b| format!("{:?}", f64::from_le_bytes(b))),
        T::Int8 => each(bytes, i8::from_le_bytes),
        T::Int16 => each(bytes, i16::from_le_bytes),
        T::Int32 => each(bytes, i32::from_le_bytes),
        T::Int64 => each(bytes, i64::from_le_bytes),
        T::Uint16 | T::Float16 | T::Bfloat16 => each(bytes, u16::from_le_bytes),
        T::Uint32 => each(bytes, u32::from_le_bytes),
        T::Uint64 => each(bytes, u64::from_le_bytes),
        _ => each(bytes, u8::from_le_bytes),
    }
}

/// 64-bit FNV-1a.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Smallest and largest element.
pub(super) fn range(tensor: &TensorProto) -> Option<(String, String)> {
    if let Ok(floats) = tensor::float_array(tensor) {
        let (min, max) = (floats.iter().copied(), floats.iter().copied());
        return min.reduce(f32::min).zip(max.reduce(f32::max)).map(show);
    }
    let integers = tensor::int_array(tensor).ok()?;
    integers.iter().min().zip(integers.iter().max()).map(show)
}

fn show<T: std::fmt::Debug>((min, max): (T, T)) -> (String, String) {
    (format!("{min:?}"), format!("{max:?}"))
}

fn type_name(dtype: i32) -> Option<String> {
    let dtype = DataType::try_from(dtype).ok()?;
    (dtype != DataType::Undefined).then(|| dtype.as_str_name().to_lowercase())
}

pub(crate) fn tensor_type(tensor: &TensorProto) -> String {
    let name = type_name(tensor.data_type()).unwrap_or_else(|| "undefined".to_owned());
    match tensor.dims.as_slice() {
        [] => name,
        dims => format!("{name}[{}]", join(dims.iter())),
    }
}

/// A type, `None` if the syntax has none for it.
pub(crate) fn type_text(ty: &TypeProto) -> Option<String> {
    use type_proto::Value;
    Some(match ty.value.as_ref()? {
        Value::TensorType(t) => type_name(t.elem_type())? + &shape_text(t.shape.as_ref()),
        Value::SparseTensorType(t) => {
            let element = type_name(t.elem_type())?;
            format!("sparse_tensor({element}{})", shape_text(t.shape.as_ref()))
        }
        Value::SequenceType(t) => format!("seq({})", type_text(t.elem_type.as_deref()?)?),
        Value::OptionalType(t) => format!("optional({})", type_text(t.elem_type.as_deref()?)?),
        Value::MapType(t) => {
            let value = type_text(t.value_type.as_deref()?)?;
            format!("map({}, {value})", type_name(t.key_type())?)
        }
        Value::OpaqueType(_) => return None,
    })
}

/// `[]` for an unknown rank, nothing for a scalar.
fn shape_text(shape: Option<&TensorShapeProto>) -> String {
    let Some(shape) = shape else {
        return "[]".to_owned();
    };
    let dim = |dim: &Dimension| match &dim.value {
        Some(dimension::Value::DimValue(length)) => length.to_string(),
        Some(dimension::Value::DimParam(symbol)) if is_word(symbol) => symbol.clone(),
        _ => "?".to_owned(),
    };
    match shape.dim.as_slice() {
        [] => String::new(),
        dims => format!("[{}]", join(dims.iter().map(dim))),
    }
}

/// The names of the symbolic lengths of a tensor type.
pub(super) fn symbols(ty: &TypeProto) -> impl Iterator<Item = &str> {
    let shape = match &ty.value {
        Some(type_proto::Value::TensorType(tensor)) => tensor.shape.as_ref(),
        _ => None,
    };
    let dims = shape.into_iter().flat_map(|shape| &shape.dim);
    dims.filter_map(|dim| match &dim.value {
        Some(dimension::Value::DimParam(symbol)) => Some(symbol.as_str()),
        _ => None,
    })
}

pub(super) fn opsets(sets: &[OperatorSetIdProto]) -> String {
    let set = |set: &OperatorSetIdProto| format!("{} : {}", quoted(set.domain()), set.version());
    format!("[{}]", join(sets.iter().map(set)))
}

pub(super) fn join(items: impl Iterator<Item = impl Display>) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    items.join(", ")
}

pub(super) fn ids(names: &[String]) -> String {
    join(names.iter().map(|name| id(name)))
}

/// A name, in quotes where it is no identifier or could be taken for a type.
pub(super) fn id(name: &str) -> String {
    if is_identifier(name) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

/// An identifier that cannot be taken for a type or a number.
pub(super) fn is_identifier(name: &str) -> bool {
    let reserved = ["seq", "map", "optional", "sparse_tensor", "inf", "nan"];
    let dtype = DataType::from_str_name(&name.to_uppercase());
    is_word(name)
        && !reserved.contains(&name.to_lowercase().as_str())
        && (dtype.is_none() || name.to_lowercase() != name)
}

/// Letters, digits and underscores, no digit first.
pub(super) fn is_word(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(letter) && name.chars().all(|c| letter(c) || c.is_ascii_digit())
}

/// In quotes; what acts on a terminal is escaped, so that a line of text is one line.
pub(super) fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", super::super::shown(&text))
}

pub(super) fn quoted_bytes(bytes: &[u8]) -> String {
    quoted(&String::from_utf8_lossy(bytes))
}
