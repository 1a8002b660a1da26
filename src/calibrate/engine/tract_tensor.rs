//! Constants of a model and values of a batch as tensors of tract.
//!
//! A plan packs weights its own way, but an embedding table stays what it is, and in a small model it is most of the
//! bytes. [`Tables`] hands the same tensor to plan after plan: of one model for other shapes, of models with one origin.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use ndarray::ArrayD;
use tract_onnx::tract_hir::internal::*;

use crate::calibrate::data::array::Values;
use crate::calibrate::engine::error::EngineError;
use crate::graph::Blocked;
use crate::onnx::proto::TensorProto;
use crate::onnx::{DataType, tensor};

/// The bytes of a constant (where they lie and how many they are), its element type and shape.
type Key = (usize, usize, Option<i32>, Vec<i64>);

/// Tensors of constants that a plan uses as they are.
#[derive(Default)]
pub(super) struct Tables {
    /// With the bytes they were made from: while these are held, nothing else can lie where they do.
    known: Mutex<BTreeMap<Key, (Bytes, Arc<Tensor>)>>,
}

impl Tables {
    /// The tensor of a constant, made now or, if it is a table, before.
    pub(super) fn tensor(
        &self,
        constant: &TensorProto,
        is_table: bool,
    ) -> Result<Arc<Tensor>, EngineError> {
        let Some(raw) = constant.raw_data.as_ref().filter(|_| is_table) else {
            return Ok(constant_tensor(constant)?.into_arc_tensor());
        };
        let place = (raw.as_ptr() as usize, raw.len());
        let key = (place.0, place.1, constant.data_type, constant.dims.clone());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, tensor)) = known.get(&key) {
            return Ok(tensor.clone());
        }
        let tensor = constant_tensor(constant)?.into_arc_tensor();
        known.insert(key, (raw.clone(), tensor.clone()));
        Ok(tensor)
    }

    /// Drops what no plan holds.
    pub(super) fn forget_unused(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, tensor)| Arc::strong_count(tensor) > 1);
    }
}

/// Copies a constant into a tensor of the engine; every float type becomes float32.
pub(super) fn constant_tensor(constant: &TensorProto) -> Result<Tensor, EngineError> {
    let fail = |reason: String| EngineError::Constant {
        name: constant.name().to_owned(),
        reason,
    };
    let tract = |e: TractError| fail(e.to_string());
    let dtype = tensor::dtype(constant).ok_or_else(|| fail("unknown element type".into()))?;
    let shape = tensor::shape(constant).map_err(|e| fail(e.to_string()))?;
    let plain = match dtype {
        DataType::Float => Some(f32::datum_type()),
        DataType::Int8 => Some(i8::datum_type()),
        DataType::Int16 => Some(i16::datum_type()),
        DataType::Int32 => Some(i32::datum_type()),
        DataType::Int64 => Some(i64::datum_type()),
        DataType::Uint8 => Some(u8::datum_type()),
        DataType::Uint16 => Some(u16::datum_type()),
        DataType::Uint32 => Some(u32::datum_type()),
        DataType::Uint64 => Some(u64::datum_type()),
        _ => None,
    };
    if let (Some(datum), Some(raw)) = (plain, &constant.raw_data) {
        let mut sizes = shape.iter().copied();
        let bytes = sizes.try_fold(datum.size_of(), usize::checked_mul);
        if bytes != Some(raw.len()) {
            return Err(fail(format!(
                "{} bytes do not fit shape {shape:?}",
                raw.len()
            )));
        }
        // ONNX data are little endian, as is every computer this engine runs on.
        // SAFETY: these are numbers, of which every pattern of bits is one. (A tensor of zeros to be overwritten would
        // be safe, and cost a third of the time a plan takes.)
        return unsafe { Tensor::from_raw_dt(datum, &shape, raw) }.map_err(tract);
    }
    if tensor::is_float(dtype) {
        let array = tensor::float_array(constant).map_err(|e| fail(e.to_string()))?;
        return Ok(array.into_tensor());
    }
    let array = tensor::int_array(constant).map_err(|e| fail(e.to_string()))?;
    let wide = array.into_tensor();
    let datum = match (plain, dtype) {
        (Some(datum), _) => datum,
        (None, DataType::Bool) => bool::datum_type(),
        // What is packed into a byte in the file has one of its own here.
        (None, DataType::Int4 | DataType::Int2) => i8::datum_type(),
        (None, DataType::Uint4 | DataType::Uint2) => u8::datum_type(),
        _ => {
            return Err(fail(format!(
                "type {} is not supported",
                dtype.as_str_name()
            )));
        }
    };
    Ok(wide.cast_to_dt(datum).map_err(tract)?.into_owned())
}

/// A weight in blocks as floats.
pub(super) fn blocked_tensor(weight: &Blocked<'_>) -> Result<Tensor, EngineError> {
    let fail = |reason: &str| EngineError::Constant {
        name: weight.name().to_owned(),
        reason: reason.to_owned(),
    };
    let floats = weight.floats();
    let floats = floats.ok_or_else(|| fail("its bytes or its g_idx do not fit its shape"))?;
    let array = ArrayD::from_shape_vec(weight.shape.clone(), floats);
    Ok(array.map_err(|e| fail(&e.to_string()))?.into_tensor())
}

/// A batch's values as a tensor.
pub(super) fn values_tensor(values: Values) -> Tensor {
    match values {
        Values::F32(a) => a.into_tensor(),
        Values::I8(a) => a.into_tensor(),
        Values::I16(a) => a.into_tensor(),
        Values::I32(a) => a.into_tensor(),
        Values::I64(a) => a.into_tensor(),
        Values::U8(a) => a.into_tensor(),
        Values::U16(a) => a.into_tensor(),
        Values::U32(a) => a.into_tensor(),
        Values::U64(a) => a.into_tensor(),
        Values::Bool(a) => a.into_tensor(),
    }
}

/// The name of an element type as users of NumPy write it.
pub(super) fn datum_name(datum: DatumType) -> String {
    // Integers that may be sizes are symbolic in tract.
    if datum == TDim::datum_type() {
        return "int64".into();
    }
    let text = format!("{datum:?}").to_lowercase();
    for (short, long) in [("i", "int"), ("u", "uint"), ("f", "float")] {
        if let Some(bits) = text.strip_prefix(short) {
            return format!("{long}{bits}");
        }
    }
    text
}
