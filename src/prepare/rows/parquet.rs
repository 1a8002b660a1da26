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

/// The values of the columns numbered `chosen`, row by row: text, and `numbers` if they are wanted. Nothing else is decoded.
///
/// # Errors
/// The file is damaged, or packed in a way that is not read here.
pub(super) fn rows(
    path: &Path,
    columns: &[Column],
    chosen: &[usize],
    numbers: bool,
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
                _ if numbers => number(field),
                _ => None,
            }
        };
        rows.push(chosen.iter().map(value).collect());
    }
    Ok(rows)
}

/// A number or a truth value as text.
fn number(field: &Field) -> Option<String> {
    Some(match field {
        Field::Bool(value) => value.to_string(),
        Field::Byte(value) => value.to_string(),
        Field::Short(value) => value.to_string(),
        Field::Int(value) => value.to_string(),
        Field::Long(value) => value.to_string(),
        Field::UByte(value) => value.to_string(),
        Field::UShort(value) => value.to_string(),
        Field::UInt(value) => value.to_string(),
        Field::ULong(value) => value.to_string(),
        Field::Float(value) => value.to_string(),
        Field::Double(value) => value.to_string(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::rows::{Row, read};
    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    /// A table of a number and two texts, of which the last text of every third row is missing.
    fn write(path: &Path, compression: Compression, rows: usize) {
        let schema = "message table { REQUIRED INT64 label; OPTIONAL BYTE_ARRAY query (UTF8); \
                      OPTIONAL BYTE_ARRAY passage (STRING); }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = WriterProperties::builder().set_compression(compression);
        let file = std::fs::File::create(path).unwrap();
        let properties = Arc::new(properties.build());
        let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
        let text =
            |of: &str, row: usize| ByteArray::from(format!("{of} {row} ü").as_bytes().to_vec());
        for group in 0..2 {
            let numbers: Vec<usize> = (group * rows / 2..(group + 1) * rows / 2).collect();
            let mut columns = writer.next_row_group().unwrap();
            let mut column = columns.next_column().unwrap().unwrap();
            let labels: Vec<i64> = numbers.iter().map(|n| *n as i64).collect();
            column
                .typed::<Int64Type>()
                .write_batch(&labels, None, None)
                .unwrap();
            column.close().unwrap();
            for of in ["query", "passage"] {
                let there = |n: &usize| of == "query" || !n.is_multiple_of(3);
                let texts: Vec<_> = numbers
                    .iter()
                    .filter(|n| there(n))
                    .map(|n| text(of, *n))
                    .collect();
                let levels: Vec<i16> = numbers.iter().map(|n| i16::from(there(n))).collect();
                let mut column = columns.next_column().unwrap().unwrap();
                column
                    .typed::<ByteArrayType>()
                    .write_batch(&texts, Some(&levels), None)
                    .unwrap();
                column.close().unwrap();
            }
            columns.close().unwrap();
        }
        writer.close().unwrap();
    }

    #[test]
    fn every_packing_that_hubs_use_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(Default::default()),
            Compression::ZSTD(Default::default()),
        ] {
            write(&path, compression, 12);
            let table = read(&path, &["passage".to_owned(), "query".to_owned()], false).unwrap();
            assert_eq!(table.rows.len(), 8);
            let first = Row {
                first: "passage 1 ü".to_owned(),
                second: Some("query 1 ü".to_owned()),
            };
            assert_eq!(table.rows[0], first);
            assert!(
                table.notes[0].starts_with("4 rows have no text"),
                "{:?}",
                table.notes
            );
            let pairs = read(&path, &[], true).unwrap();
            assert_eq!(pairs.rows[7].first, "query 11 ü");
            let single = read(&path, &[], false).unwrap();
            assert_eq!((single.rows.len(), &single.rows[3].second), (12, &None));
        }
    }

    #[test]
    fn a_damaged_file_is_refused_wherever_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        write(&path, Compression::SNAPPY, 12);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            std::fs::write(&path, &damaged).unwrap();
            // An error or other text, but no panic.
            let _ = read(&path, &["query".to_owned()], false);
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(read(&path, &["query".to_owned()], false).is_err());
        }
    }
}
