//! Any message as a list of its fields, for comparing two of them.
//!
//! The message is encoded, and the encoding is walked beside the table of the schema that [`wire`](super::wire) uses.
//! So nothing of a message can be forgotten here, whatever the schema gets.

use std::collections::HashMap;

use prost::Message;

use super::DataType;
use super::text::digest;
use super::wire::{self, Kind};

/// One scalar somewhere in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Where: `type.tensor_type.shape.dim[1].dim_value`. Elements of lists are told apart by name or key where they
    /// have one, and otherwise by number. No two fields of a message have the same path.
    pub path: String,
    /// What: a number (floats by their bits where they are no numbers), or a string in quotes; long ones as a digest.
    pub value: String,
}

/// More bytes than this are shown as length and digest.
const SHOWN_BYTES: usize = 80;

/// Every field that is set in a message of the type `name` ("NodeProto"), in the order of their numbers.
///
/// A name that is not in the schema gives one field with the digest of the whole encoding.
pub fn fields(message: &impl Message, name: &str) -> Vec<Field> {
    let data = message.encode_to_vec();
    let mut found = Vec::new();
    let done = match wire::message(name) {
        Some(schema) => walk(&data, schema, "", &mut found),
        None => None,
    };
    if done.is_none() {
        found = vec![field(name, quoted(&data))];
    }
    found
}

fn field(path: &str, value: String) -> Field {
    Field {
        path: path.to_owned(),
        value,
    }
}

/// `None` for an encoding that is not of the schema, which cannot come from prost.
fn walk(mut data: &[u8], schema: &wire::Message, at: &str, found: &mut Vec<Field>) -> Option<()> {
    let mut counts: HashMap<String, usize> = HashMap::new();
    while !data.is_empty() {
        let key = wire::varint(&mut data).ok()?;
        let known = |f: &&wire::Field| u64::from(f.number) == key >> 3;
        let own = schema.fields.iter().find(known)?;
        let mut path = match at {
            "" => own.name.to_owned(),
            at => format!("{at}.{}", own.name),
        };
        let mut count = |path: &str| {
            let count = counts.entry(path.to_owned()).or_default();
            *count += 1;
            *count - 1
        };
        match own.kind {
            Kind::Message(index) => {
                let (inner, schema) = (wire::chunk(&mut data).ok()?, wire::inner(index));
                if own.repeated {
                    let label = wire::own_name(inner, schema).unwrap_or_default();
                    let label = match label.is_empty() {
                        true => entry_key(inner, schema).unwrap_or_default(),
                        false => label.to_string(),
                    };
                    let number = count(&format!("{path}[{label}]"));
                    path += &match (label.as_str(), number) {
                        ("", number) => format!("[{number}]"),
                        (label, 0) => format!("[{label}]"),
                        (label, number) => format!("[{label} #{}]", number + 1),
                    };
                }
                // An empty message that is there differs from none.
                match inner.is_empty() {
                    true => found.push(field(&path, "{}".to_owned())),
                    false => walk(inner, schema, &path, found)?,
                }
            }
            Kind::Bytes => {
                let text = quoted(wire::chunk(&mut data).ok()?);
                let number = own.repeated.then(|| count(&path));
                found.push(field(&numbered(&path, number), text));
            }
            kind if key & 7 == 2 => {
                let mut packed = wire::chunk(&mut data).ok()?;
                while !packed.is_empty() {
                    let text = scalar(&mut packed, kind, own.name)?;
                    found.push(field(&numbered(&path, Some(count(&path))), text));
                }
            }
            kind => {
                let text = scalar(&mut data, kind, own.name)?;
                let number = own.repeated.then(|| count(&path));
                found.push(field(&numbered(&path, number), text));
            }
        }
    }
    Some(())
}

fn numbered(path: &str, number: Option<usize>) -> String {
    match number {
        Some(number) => format!("{path}[{number}]"),
        None => path.to_owned(),
    }
}

/// What tells the entries of a map or list apart that has no names.
fn entry_key(mut data: &[u8], schema: &wire::Message) -> Option<String> {
    let keys = ["key", "domain", "tensor_name", "configuration_id"];
    while !data.is_empty() {
        let key = wire::varint(&mut data).ok()?;
        let known = |f: &&wire::Field| u64::from(f.number) == key >> 3;
        let own = schema.fields.iter().find(known)?;
        match (own.kind, key & 7) {
            (Kind::Bytes, _) if keys.contains(&own.name) => {
                let text = String::from_utf8_lossy(wire::chunk(&mut data).ok()?).into_owned();
                return (!text.is_empty()).then_some(text);
            }
            (_, 2) => drop(wire::chunk(&mut data).ok()?),
            (kind, _) => drop(scalar(&mut data, kind, own.name)?),
        }
    }
    None
}

fn scalar(data: &mut &[u8], kind: Kind, name: &str) -> Option<String> {
    Some(match kind {
        Kind::Fixed32 => {
            let bits = u32::from_le_bytes(wire::take(data, 4).ok()?.try_into().ok()?);
            let value = f32::from_bits(bits);
            match value.is_nan() {
                true => format!("nan {bits:#x}"),
                false => format!("{value:?}"),
            }
        }
        Kind::Fixed64 => {
            let bits = u64::from_le_bytes(wire::take(data, 8).ok()?.try_into().ok()?);
            let value = f64::from_bits(bits);
            match value.is_nan() {
                true => format!("nan {bits:#x}"),
                false => format!("{value:?}"),
            }
        }
        _ => {
            let value = wire::varint(data).ok()? as i64;
            let types = ["elem_type", "data_type", "key_type"];
            let dtype = i32::try_from(value).ok().filter(|_| types.contains(&name));
            match dtype.and_then(|value| DataType::try_from(value).ok()) {
                Some(dtype) => dtype.as_str_name().to_lowercase(),
                None => value.to_string(),
            }
        }
    })
}

fn quoted(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.len() <= SHOWN_BYTES => format!("{text:?}"),
        _ => format!("{} bytes {:016x}", bytes.len(), digest(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::node::{float_attr, make_node};
    use super::*;

    #[test]
    fn every_field_has_a_path_of_its_own() {
        let mut node = make_node("Op", "n", &["x", ""], &["y"], vec![float_attr("f", -0.0)]);
        node.doc_string = Some(String::new());
        let found: Vec<_> = fields(&node, "NodeProto")
            .into_iter()
            .map(|f| format!("{} {}", f.path, f.value))
            .collect();
        let expected = [
            "input[0] \"x\"",
            "input[1] \"\"",
            "output[0] \"y\"",
            "name \"n\"",
            "op_type \"Op\"",
            "attribute[f].name \"f\"",
            "attribute[f].f -0.0",
            "attribute[f].type 1",
            "doc_string \"\"",
        ];
        assert_eq!(found, expected);
    }
}
