//! Columns of a `.parquet`, by the record API of the crate `parquet`: no Arrow is needed for text.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

use super::columns::Column;
use crate::prepare::config::bytes;
use crate::prepare::error::PrepareError;

fn wrong(path: &Path, error: &dyn std::fmt::Display) -> PrepareError {
    PrepareError::file(path, format!("is no Parquet that can be read: {error}"))
}

fn open(path: &Path) -> Result<SerializedFileReader<Bytes>, PrepareError> {
    SerializedFileReader::new(bytes(path)?).map_err(|e| wrong(path, &e))
}

/// The columns of the file.
///
/// # Errors
/// It is no Parquet file.
pub(super) fn columns(path: &Path) -> Result<Vec<Column>, PrepareError> {
    let reader = open(path)?;
    let schema = reader.metadata().file_metadata().schema();
    let columns = schema.get_fields().iter().map(|field| {
        let info = field.get_basic_info();
        let text = matches!(info.logical_type_ref(), Some(LogicalType::String))
            || info.converted_type() == ConvertedType::UTF8;
        Column {
            name: field.name().to_owned(),
            is_text: text
                && field.is_primitive()
                && field.get_physical_type() == Physical::BYTE_ARRAY,
        }
    });
    Ok(columns.collect())
}

/// The values of the columns numbered `chosen`, row by row. Nothing else is decoded.
///
/// # Errors
/// The file is damaged, or packed in a way that is not read here.
pub(super) fn rows(
    path: &Path,
    columns: &[Column],
    chosen: &[usize],
) -> Result<Vec<Vec<Option<String>>>, PrepareError> {
    let reader = open(path)?;
    let schema = reader.metadata().file_metadata().schema();
    // A projection keeps the order of the file, not that of the question.
    let mut kept: Vec<usize> = chosen.to_vec();
    kept.sort_unstable();
    kept.dedup();
    let fields = kept.iter().map(|&at| Arc::clone(&schema.get_fields()[at]));
    let projection = Type::group_type_builder(schema.name())
        .with_fields(fields.collect())
        .build()
        .map_err(|e| wrong(path, &e))?;
    let read = reader
        .get_row_iter(Some(projection))
        .map_err(|e| wrong(path, &e))?;
    let mut rows = Vec::new();
    for row in read {
        let row = row.map_err(|e| wrong(path, &e))?;
        let value = |at: &usize| {
            let name = &columns[*at].name;
            let (_, field) = row.get_column_iter().find(|(column, _)| *column == name)?;
            match field {
                Field::Str(text) => Some(text.clone()),
                Field::Bytes(bytes) => String::from_utf8(bytes.data().to_vec()).ok(),
                _ => None,
            }
        };
        rows.push(chosen.iter().map(value).collect());
    }
    Ok(rows)
}
