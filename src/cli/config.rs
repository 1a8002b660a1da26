//! `--config FILE`: the options of the command line from a TOML file, under the same names.
//!
//! ```text
//! FILE ── a table per model: its own keys, then those above all tables ── words, before those of the command line
//! ```
//!
//! What a file says becomes words of a command line, and is read by the parser that reads those: a value has one meaning and
//! one message. An option that the command line gives, or that excludes one which it gives, is left out. Relative paths are
//! those of the file's folder.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, parser::ValueSource};
use onnx_osplus::onnx::{shown, shown_lines};
use toml::{Table, Value};

/// Options that are about the file itself.
const OWN: [&str; 2] = ["config", "print_config"];

/// The words for one model, and where they come from.
pub(super) struct Row {
    pub(super) words: Vec<OsString>,
    /// "osplus.toml, model 2".
    pub(super) place: String,
}

/// One command line per model of the file, from the words of this one and what the parser made of them.
///
/// # Errors
/// The file cannot be read, is no TOML, or has a key or a value that means nothing; in words.
pub(super) fn rows(
    command: &Command,
    given: &ArgMatches,
    words: &[OsString],
    file: &Path,
) -> Result<Vec<Row>, String> {
    let name = shown(&file.display().to_string()).into_owned();
    let mut common = read(file, &name)?;
    let models = match common.remove("model") {
        None => vec![Table::new()],
        Some(Value::Array(models)) if !models.is_empty() => models
            .into_iter()
            .map(|model| match model {
                Value::Table(table) => Ok(table),
                _ => Err(format!("{name}: `model` is for tables: [[model]]")),
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(format!("{name}: `model` is for tables: [[model]]")),
    };
    let positional = command.get_positionals().any(|arg| is_given(given, arg));
    if models.len() > 1 && positional {
        return Err(format!(
            "{name} has {} models; IN and OUT go with a file of one: leave them out, or the other tables",
            models.len()
        ));
    }
    let several = models.len() > 1;
    let mut rows = Vec::new();
    for (index, model) in models.into_iter().enumerate() {
        let place = match several {
            true => format!("{name}, model {}", index + 1),
            false => name.clone(),
        };
        let mut table = common.clone();
        table.extend(model);
        let folder = file.parent().unwrap_or(Path::new(""));
        let words =
            row(command, given, words, &table, folder).map_err(|e| format!("{place}: {e}"))?;
        rows.push(Row { words, place });
    }
    Ok(rows)
}

fn read(file: &Path, name: &str) -> Result<Table, String> {
    let text =
        std::fs::read_to_string(file).map_err(|error| format!("cannot read {name}: {error}"))?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(String::new(), |span| {
            let line = text
                .bytes()
                .take(span.start)
                .filter(|&b| b == b'\n')
                .count()
                + 1;
            format!(":{line}")
        });
        format!("{name}{line}: {}", shown_lines(error.message()))
    })
}

/// The program's name, the options of the file, the words of the command line, and IN and OUT where only the file has them.
fn row(
    command: &Command,
    given: &ArgMatches,
    words: &[OsString],
    table: &Table,
    folder: &Path,
) -> Result<Vec<OsString>, String> {
    let mut out: Vec<OsString> = words.iter().take(1).cloned().collect();
    let mut last = Vec::new();
    for (key, value) in table {
        let arg = find(command, key)?;
        if is_given(given, arg) || is_excluded(command, given, arg) {
            continue;
        }
        for value in values(arg, key, value)? {
            let value = match arg.get_value_hint() {
                _ if matches!(arg.get_id().as_str(), "calib" | "eval") => {
                    rebased_source(folder, &value)
                }
                ValueHint::AnyPath => folder.join(&value).into_os_string(),
                _ => OsString::from(&value),
            };
            if arg.is_positional() {
                last.push((arg.get_index(), bare(command, value)));
            } else if matches!(arg.get_action(), ArgAction::SetTrue) {
                out.push(format!("--{key}").into());
            } else {
                let mut word = OsString::from(format!("--{key}="));
                word.push(value);
                out.push(word);
            }
        }
    }
    out.extend(words.iter().skip(1).cloned());
    last.sort();
    out.extend(last.into_iter().map(|(_, word)| word));
    Ok(out)
}

fn is_given(given: &ArgMatches, arg: &Arg) -> bool {
    given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
}

/// Whether the command line has an option that does not go with this one.
fn is_excluded(command: &Command, given: &ArgMatches, arg: &Arg) -> bool {
    let excludes = |a: &Arg, b: &Arg| {
        let conflicts = command.get_arg_conflicts_with(a);
        conflicts.iter().any(|other| other.get_id() == b.get_id())
    };
    let mut others = command
        .get_arguments()
        .filter(|other| is_given(given, other));
    others.any(|other| excludes(arg, other) || excludes(other, arg))
}

/// The options that a file may have: those of the command line, IN and OUT as `input` and `output`.
fn options(command: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    let known = |arg: &&Arg| {
        let id = arg.get_id().as_str();
        !OWN.contains(&id) && !matches!(id, "help" | "version")
    };
    let named = |arg| Some((key_of(arg)?, arg));
    command.get_arguments().filter(known).filter_map(named)
}

/// The name of an option in the file.
fn key_of(arg: &Arg) -> Option<&str> {
    match arg.is_positional() {
        true => Some(arg.get_id().as_str()),
        false => arg.get_long(),
    }
}

fn find<'c>(command: &'c Command, key: &str) -> Result<&'c Arg, String> {
    if let Some((_, arg)) = options(command).find(|(name, _)| *name == key) {
        return Ok(arg);
    }
    let near = |name: &str| strsim::jaro_winkler(name, &key.replace('_', "-"));
    let nearest = options(command)
        .map(|(name, _)| (near(name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = match nearest {
        Some((_, name)) => format!("; the nearest is `{name}`"),
        None => String::new(),
    };
    Err(format!("no option is called `{}`{hint}", shown(key)))
}

/// The words that a value stands for: none of a flag that is false.
fn values(arg: &Arg, key: &str, value: &Value) -> Result<Vec<String>, String> {
    let wrong = |expected: &str| {
        Err(format!(
            "`{key}` takes {expected}, not {}",
            value.type_str()
        ))
    };
    let plain = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        _ => None,
    };
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, Value::Boolean(true)) => Ok(vec![String::new()]),
        (ArgAction::SetTrue, Value::Boolean(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => wrong("true or false"),
        (ArgAction::Append, Value::Array(all)) => match all.iter().map(plain).collect() {
            Some(all) => Ok(all),
            None => wrong("an array of strings"),
        },
        (ArgAction::Append, value) => plain(value).map_or_else(
            || wrong("a string or an array of them"),
            |text| Ok(vec![text]),
        ),
        (_, value) => {
            plain(value).map_or_else(|| wrong("a string or a number"), |text| Ok(vec![text]))
        }
    }
}

/// `[NAME=]PATH` with the path below `folder`. A file that is really called that wins, as on the command line.
fn rebased_source(folder: &Path, text: &str) -> OsString {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !folder.join(text).exists() => {
            let mut out = OsString::from(format!("{name}="));
            out.push(folder.join(path));
            out
        }
        _ => folder.join(text).into_os_string(),
    }
}

/// A path that is no option and no command.
fn bare(command: &Command, path: OsString) -> OsString {
    let named = |c: &Command| path == c.get_name();
    let option = path.as_encoded_bytes().first() == Some(&b'-');
    match option || path == "help" || command.get_subcommands().any(named) {
        true => Path::new(".").join(path).into_os_string(),
        false => path,
    }
}

/// Every option with its value, defaults included, by its name in the file; flags are "true" or "false".
///
/// # Errors
/// The option whose value is no UTF-8, which TOML and JSON cannot hold.
pub(super) fn effective(
    command: &Command,
    matches: &ArgMatches,
) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut out = BTreeMap::new();
    for (key, arg) in options(command) {
        let id = arg.get_id().as_str();
        let values = match arg.get_action() {
            ArgAction::SetTrue => vec![matches.get_flag(id).to_string()],
            _ => {
                let raw = matches.get_raw(id).into_iter().flatten();
                raw.map(OsStr::to_str)
                    .map(|text| text.map(ToOwned::to_owned))
                    .collect::<Option<Vec<_>>>()
                    .ok_or_else(|| format!("the value of `{key}` is no UTF-8"))?
            }
        };
        out.insert(key.to_owned(), values);
    }
    Ok(out)
}

/// A file that says all this, which gives the same again. Options without a value stand in comments.
pub(super) fn printed(command: &Command, models: &[BTreeMap<String, Vec<String>>]) -> String {
    let mut out = String::from(
        "# onnx-osplus --config FILE; the command line wins. Relative paths are those of this file's folder.\n",
    );
    for model in models {
        out += if models.len() > 1 {
            "\n[[model]]\n"
        } else {
            ""
        };
        for (key, arg) in options(command) {
            let values = model.get(key).map(Vec::as_slice).unwrap_or_default();
            let line = match (arg.get_action(), values) {
                (ArgAction::SetTrue, values) => format!("{key} = {}", values.concat()),
                (ArgAction::Append, []) => format!("# {key} = []"),
                (ArgAction::Append, values) => {
                    let all: Vec<_> = values.iter().map(|v| quoted(v)).collect();
                    format!("{key} = [{}]", all.join(", "))
                }
                (_, []) => format!("# {key} = "),
                (_, [value, ..]) if is_number(value) => format!("{key} = {value}"),
                (_, [value, ..]) => format!("{key} = {}", quoted(value)),
            };
            out += line.trim_end();
            out.push('\n');
        }
    }
    out
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

/// Whether TOML has a number that becomes this very text again.
fn is_number(text: &str) -> bool {
    text.parse::<i64>().is_ok_and(|n| n.to_string() == text)
}

/// The file of the working directory that `--config` would read.
pub(super) fn beside() -> Option<PathBuf> {
    let path = PathBuf::from("osplus.toml");
    path.is_file().then_some(path)
}
