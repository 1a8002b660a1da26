//! Reads calibration files: `.npy`, `.npz` and ONNX test data (`input_0.pb`).
//!
//! A `.npy` file is memory-mapped, so a large one costs address space and not memory. The arrays of a `.npz` are unpacked:
//! small ones into memory, large ones into an unnamed temporary file that is mapped in turn.

use std::io::{Cursor, Read, Seek, Write};
use std::path::Path;

use bytes::Bytes;
use ndarray_npy::npy::header::Header;
use prost::Message;

use crate::calibrate::data::array::{Element, FileArray};
use crate::calibrate::data::error::{CalibError, place};
use crate::onnx::proto::{TensorProto, tensor_proto};
use crate::onnx::{self, InputFile};

/// Arrays of a `.npz` above this many bytes are unpacked to a temporary file instead of memory.
const UNPACK_IN_MEMORY: u64 = 32 << 20;

/// Maps `path` into memory.
fn map(path: &Path) -> Result<Bytes, CalibError> {
    let file = InputFile::open(path).map_err(|source| CalibError::Read {
        file: path.to_owned(),
        source,
    })?;
    Ok(file.bytes)
}

/// Refuses a pipe or a device with that reason, whatever its name ends with: `/dev/stdin` and what a shell makes of `<(…)`
/// end with nothing.
///
/// # Errors
/// It is one. What is not there is refused where it is read.
pub(super) fn refuse_special(path: &Path) -> Result<(), CalibError> {
    match path.metadata() {
        Ok(meta) if !meta.is_file() && !meta.is_dir() => map(path).map(drop),
        _ => Ok(()),
    }
}

/// Reads one `.npy` file.
pub(super) fn read_npy(path: &Path) -> Result<FileArray, CalibError> {
    parse_npy(map(path)?).map_err(|problem| CalibError::Format {
        place: place(path, None),
        problem,
    })
}

/// Reads every array of a `.npz` file, sorted by name. `known` refuses names before anything is unpacked.
pub(super) fn read_npz(
    path: &Path,
    known: &dyn Fn(&str) -> Result<(), CalibError>,
) -> Result<Vec<(String, FileArray)>, CalibError> {
    let format = |array: Option<&str>, problem: String| CalibError::Format {
        place: place(path, array),
        problem,
    };
    let bytes = map(path)?;
    let mut zip =
        zip::ZipArchive::new(Cursor::new(&bytes)).map_err(|e| format(None, e.to_string()))?;
    let mut arrays: Vec<(String, FileArray)> = Vec::new();
    let mut names = Vec::new();
    let mut unpacked = 0u64;
    for i in 0..zip.len() {
        let entry = zip.by_index(i).map_err(|e| format(None, e.to_string()))?;
        let full_name = entry.name().to_owned();
        let Some(name) = full_name.strip_suffix(".npy").map(str::to_owned) else {
            return Err(format(
                Some(&full_name),
                "is not an array (its name does not end in .npy)".into(),
            ));
        };
        known(&name)?;
        unpacked = unpacked.saturating_add(entry.size());
        if let Some(problem) = too_packed(unpacked, bytes.len() as u64) {
            return Err(format(Some(&name), problem));
        }
        names.push(name);
    }
    for (i, name) in names.into_iter().enumerate() {
        let mut entry = zip.by_index(i).map_err(|e| format(None, e.to_string()))?;
        let size = entry.size();
        let data = unpack(&mut entry, size).map_err(|e| format(Some(&name), e.to_string()))?;
        let array = parse_npy(data).map_err(|problem| format(Some(&name), problem))?;
        arrays.push((name, array));
    }
    arrays.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(arrays)
}

/// What is unpacked may have this many bytes for each byte of the archive, or be as small as [`ALWAYS_UNPACKED`]. Masks of
/// ones shrink to a thousandth, data as a whole to a third; an archive made to fill a disk to a thousandth.
const MOST_PACKED: u64 = 200;

const ALWAYS_UNPACKED: u64 = 1 << 30;

fn too_packed(unpacked: u64, archive: u64) -> Option<String> {
    let fits = unpacked <= ALWAYS_UNPACKED.max(archive.saturating_mul(MOST_PACKED));
    (!fits).then(|| {
        format!(
            "takes what the archive unpacks to beyond {unpacked} bytes, {} times its own {archive}: \
             store it uncompressed (numpy.savez) if that is meant",
            unpacked / archive.max(1)
        )
    })
}

/// Decompresses one array into memory, or into a mapped temporary file if it is large.
fn unpack(entry: &mut impl Read, size: u64) -> std::io::Result<Bytes> {
    // One byte more than promised is enough to notice that the archive's size field lies.
    let mut entry = entry.take(size.saturating_add(1));
    let wrong = |found: u64| {
        let found = match found > size {
            true => "more".to_owned(),
            false => found.to_string(),
        };
        std::io::Error::other(format!(
            "unpacks to {found} bytes, where the archive says {size}"
        ))
    };
    if size <= UNPACK_IN_MEMORY {
        let mut data = Vec::new();
        let found = entry.read_to_end(&mut data)? as u64;
        return if found == size {
            Ok(data.into())
        } else {
            Err(wrong(found))
        };
    }
    let mut file = tempfile::tempfile()?;
    let found = std::io::copy(&mut entry, &mut file)?;
    if found != size {
        return Err(wrong(found));
    }
    file.flush()?;
    file.rewind()?;
    onnx::map(&file)
}

/// Reads one tensor of ONNX test data; also returns the tensor's own name, which may be empty.
pub(super) fn read_pb(path: &Path) -> Result<(String, FileArray), CalibError> {
    let format = |problem: String| CalibError::Format {
        place: place(path, None),
        problem,
    };
    let tensor = TensorProto::decode(map(path)?)
        .map_err(|e| format(format!("is not an ONNX tensor: {e}")))?;
    let array = tensor_array(&tensor).map_err(format)?;
    Ok((tensor.name().to_owned(), array))
}

fn tensor_array(tensor: &TensorProto) -> Result<FileArray, String> {
    let dtype = tensor_proto::DataType::try_from(tensor.data_type())
        .map_err(|_| format!("has unknown element type {}", tensor.data_type()))?;
    let element = Element::from_onnx(dtype).ok_or_else(|| {
        format!(
            "has element type {}, which no input takes",
            dtype.as_str_name()
        )
    })?;
    if !tensor.external_data.is_empty() {
        return Err("keeps its data in another file, which test data may not".into());
    }
    let shape = tensor
        .dims
        .iter()
        .map(|d| usize::try_from(*d).map_err(|_| format!("has the negative size {d}")))
        .collect::<Result<Vec<_>, _>>()?;
    check_rows_of_nothing(&shape)?;
    let data: Bytes = match &tensor.raw_data {
        Some(raw) => raw.clone(),
        None => {
            let size = element.size();
            let mut data = Vec::new();
            // ONNX keeps narrow integers, booleans and 16-bit floats in int32_data; the low bytes are the value.
            for v in &tensor.int32_data {
                data.extend_from_slice(&v.to_le_bytes()[..size.min(4)]);
            }
            for v in &tensor.int64_data {
                data.extend_from_slice(&v.to_le_bytes());
            }
            for v in &tensor.uint64_data {
                data.extend_from_slice(&v.to_le_bytes()[..size]);
            }
            for v in &tensor.float_data {
                data.extend_from_slice(&v.to_le_bytes());
            }
            for v in &tensor.double_data {
                data.extend_from_slice(&v.to_le_bytes());
            }
            data.into()
        }
    };
    let found = data.len();
    FileArray::new(element, shape.clone(), data)
        .ok_or_else(|| format!("holds {found} bytes, which does not fit {element} {shape:?}"))
}

/// Interprets the bytes of a `.npy` file.
fn parse_npy(data: Bytes) -> Result<FileArray, String> {
    check_header(&data)?;
    let mut cursor = Cursor::new(&data);
    let header =
        Header::from_reader(&mut cursor).map_err(|e| format!("is not a .npy array: {e}"))?;
    let start = cursor.position() as usize;
    let descr = header
        .type_descriptor
        .as_string()
        .ok_or("has a structured element type; plain numbers are needed")?;
    let (element, big_endian) = Element::from_numpy(descr).ok_or_else(|| {
        format!(
            "has element type {descr:?}; integers, booleans and floats of 16 to 64 bits can be read"
        )
    })?;
    let count = header
        .shape
        .iter()
        .try_fold(element.size(), |n, d| n.checked_mul(*d))
        .ok_or("is larger than this computer can address")?;
    check_rows_of_nothing(&header.shape)?;
    let available = data.len() - start;
    if available < count {
        return Err(format!(
            "is cut short: {element} {:?} needs {count} bytes, {available} are there",
            header.shape
        ));
    }
    let mut body = data.slice(start..start + count);
    if big_endian && element.size() > 1 {
        let mut swapped = body.to_vec();
        for chunk in swapped.chunks_exact_mut(element.size()) {
            chunk.reverse();
        }
        body = swapped.into();
    }
    if header.layout.is_fortran() && header.shape.len() > 1 {
        body = row_major(&body, &header.shape, element.size()).into();
    }
    FileArray::new(element, header.shape, body).ok_or_else(|| "has a wrong length".into())
}

/// Rows of an array without elements, such as an empty past: they cost no bytes in the file, and memory here.
const MOST_EMPTY: usize = 1 << 20;

fn check_rows_of_nothing(shape: &[usize]) -> Result<(), String> {
    let sizes = shape.iter().filter(|&&n| n > 0);
    let rows = sizes.fold(1usize, |n, &d| n.saturating_mul(d));
    match shape.contains(&0) && rows > MOST_EMPTY {
        true => Err(format!(
            "has the shape {shape:?}, which holds nothing; at most {MOST_EMPTY} rows of nothing are taken"
        )),
        false => Ok(()),
    }
}

/// Characters of a header; that of an array with 64 axes has 1,500.
const LONGEST_HEADER: usize = 10_000;

/// Brackets inside of each other; a shape in the dictionary has 2, a structured type 3 or 4.
const DEEPEST_HEADER: usize = 4;

/// Looks at the length and the brackets of a header before it is parsed: the time for that doubles with each bracket.
fn check_header(data: &[u8]) -> Result<(), String> {
    // Magic, version, length of the header: 2 bytes in version 1, 4 later. What is no such file the parser tells.
    let (Some(&version), Some(size)) = (data.get(6), data.get(8..12)) else {
        return Ok(());
    };
    let (length, start) = match version {
        1 => (usize::from(u16::from_le_bytes([size[0], size[1]])), 10),
        _ => (
            u32::from_le_bytes([size[0], size[1], size[2], size[3]]) as usize,
            12,
        ),
    };
    if length > LONGEST_HEADER {
        return Err(format!(
            "has a header of {length} bytes, at most {LONGEST_HEADER} are read"
        ));
    }
    let header = data.get(start..).unwrap_or_default();
    let mut depth = 0usize;
    for byte in header.iter().take(length) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST_HEADER {
            return Err(format!(
                "is not a .npy array: its header has more than {DEEPEST_HEADER} brackets inside of each other"
            ));
        }
    }
    Ok(())
}

/// Copies a column-major array of `size`-byte elements into row-major order.
fn row_major(data: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0usize; shape.len()];
    for _ in 0..data.len() / size {
        let mut at = 0;
        let mut stride = 1;
        for (i, n) in index.iter().zip(shape) {
            at += i * stride;
            stride *= n;
        }
        out.extend_from_slice(&data[at * size..][..size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}
