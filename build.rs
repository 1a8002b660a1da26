//! Compiles `proto/onnx.proto` with protox, a pure-Rust compiler, so that no `protoc` is needed. Four results:
//!
//! - `onnx.rs`: the message types, by prost;
//! - `schema.rs`: a table of the fields of every message, by which `src/onnx/wire.rs` finds what prost would drop;
//! - `operators.rs`: a constant for the name of every operator, from `proto/operators.txt`;
//! - `onnx.fds`: the descriptor itself, for the test that compares it with the `onnx` Python package's.

use std::{env, error::Error, fmt::Write, fs, path::Path};

#[expect(
    clippy::disallowed_methods,
    reason = "cargo tells a build script by the environment where to write"
)]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/onnx.proto");
    println!("cargo:rerun-if-changed=proto/operators.txt");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.open_file("onnx.proto")?;
    let descriptors = compiler.file_descriptor_set();
    let out = env::var("OUT_DIR")?;
    let out = Path::new(&out);
    fs::write(out.join("onnx.fds"), compiler.encode_file_descriptor_set())?;
    fs::write(out.join("schema.rs"), schema_table(&compiler)?)?;
    let operators = fs::read_to_string("proto/operators.txt")?;
    fs::write(out.join("operators.rs"), operator_names(&operators)?)?;
    prost_build::Config::new()
        // `Bytes` fields are slices of the memory-mapped file: weights are not copied on load.
        .bytes(["."])
        .compile_fds(descriptors)?;
    Ok(())
}

/// Writes `static MESSAGES: &[Message]`, each message with its fields in the order of their numbers.
fn schema_table(compiler: &protox::Compiler) -> Result<String, Box<dyn Error>> {
    use protox::prost_reflect::Kind;
    let pool = compiler.descriptor_pool();
    let messages: Vec<_> = pool.all_messages().collect();
    let mut text = String::from("static MESSAGES: &[Message] = &[\n");
    for message in &messages {
        writeln!(
            text,
            "    Message {{ name: {:?}, fields: &[",
            message.name()
        )?;
        let mut fields: Vec<_> = message.fields().collect();
        fields.sort_by_key(|field| field.number());
        for field in fields {
            let kind = match field.kind() {
                Kind::Message(inner) => {
                    let index = messages
                        .iter()
                        .position(|other| *other == inner)
                        .ok_or_else(|| format!("{} is not in the file", inner.full_name()))?;
                    format!("Message({index})")
                }
                Kind::Int32 | Kind::Enum(_) => "Varint32".into(),
                Kind::Int64 | Kind::Uint64 => "Varint64".into(),
                Kind::Float => "Fixed32".into(),
                Kind::Double => "Fixed64".into(),
                Kind::String | Kind::Bytes => "Bytes".into(),
                other => return Err(format!("{}: no rule for {other:?}", field.full_name()).into()),
            };
            writeln!(
                text,
                "        Field {{ number: {}, name: {:?}, repeated: {}, kind: Kind::{kind} }},",
                field.number(),
                field.name(),
                field.is_list(),
            )?;
        }
        writeln!(text, "    ] }},")?;
    }
    text.push_str("];\n");
    Ok(text)
}

/// Writes `pub const MatMul: &str = "MatMul";` for every operator, with its domain.
fn operator_names(list: &str) -> Result<String, Box<dyn Error>> {
    let mut text = String::new();
    let mut domain = "";
    for line in list
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        match line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            Some(name) => domain = name,
            None => {
                writeln!(text, "/// `{domain}`")?;
                writeln!(text, "pub const {line}: &str = {line:?};")?;
            }
        }
    }
    Ok(text)
}
