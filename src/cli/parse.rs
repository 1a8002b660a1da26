//! From the words of a command line, and a file of settings, to what is to be done.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, FromArgMatches};

use super::arguments::{Arguments, Command, command, named};
use super::config;

/// Reads the words of a command line, of which the first is the name of the program.
///
/// # Errors
/// Wrong usage; also where help or the version is asked for.
pub(crate) fn parse(words: &[OsString]) -> Result<Command, clap::Error> {
    // With a file of settings, the command line need not have what it has to have otherwise.
    let mut lenient = command()
        .mut_args(|arg| arg.required(false))
        .mut_arg("calib", |arg| arg.required_unless_present("config"));
    let given = lenient.try_get_matches_from_mut(words);
    let file = given.ok().filter(|m| m.subcommand().is_none());
    match file.and_then(|m| Some((m.get_one::<PathBuf>("config")?.clone(), m))) {
        Some((file, given)) => from_file(words, &lenient, &given, &file),
        None => without_file(words),
    }
}

fn without_file(words: &[OsString]) -> Result<Command, clap::Error> {
    let matches = command().try_get_matches_from(words)?;
    if let Some(command) = named(&matches) {
        return Ok(command);
    }
    let arguments = of_matches(&matches)?;
    match arguments.print_config {
        true => Ok(Command::PrintConfig(config::printed(
            &command(),
            &[arguments.effective],
        ))),
        false => Ok(Command::Quantize(Box::new(arguments))),
    }
}

fn from_file(
    words: &[OsString],
    lenient: &clap::Command,
    given: &ArgMatches,
    file: &Path,
) -> Result<Command, clap::Error> {
    let rows = config::rows(lenient, given, words, file).map_err(wrong)?;
    let mut all = Vec::new();
    for row in rows {
        let read = |words| of_matches(&command().try_get_matches_from(words)?);
        all.push(read(row.words).map_err(|error| match error.kind() {
            clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion => error,
            kind => {
                let text = error.to_string();
                let text = text.trim_start_matches("error: ").trim_end();
                clap::Error::raw(kind, format!("{}: {text}\n", row.place))
            }
        })?);
    }
    if all.iter().any(|arguments| arguments.print_config) {
        let all: Vec<_> = all
            .into_iter()
            .map(|arguments| arguments.effective)
            .collect();
        return Ok(Command::PrintConfig(config::printed(&command(), &all)));
    }
    Ok(match all.len() {
        1 => Command::Quantize(Box::new(all.remove(0))),
        _ => Command::Several(all),
    })
}

fn wrong(text: String) -> clap::Error {
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, text + "\n")
}

/// The main job's arguments.
fn of_matches(matches: &ArgMatches) -> Result<Arguments, clap::Error> {
    // Not by way of `CommandLine::quantize`: an optional group that holds another is never seen as given.
    match Arguments::from_arg_matches(matches) {
        Ok(mut arguments) if matches.contains_id("input") => {
            // Without names in UTF-8 there is no such list; it is needed to print it alone.
            match config::effective(&command(), matches) {
                Ok(effective) => arguments.effective = effective,
                Err(error) if arguments.print_config => return Err(wrong(error)),
                Err(_) => {}
            }
            Ok(arguments)
        }
        // clap asks for IN, OUT and --calib where there is no command.
        _ => Err(command().error(
            clap::error::ErrorKind::MissingRequiredArgument,
            match config::beside() {
                Some(_) => "IN, OUT and --calib are needed; or --config osplus.toml, which is in this folder",
                None => "IN, OUT and --calib are needed",
            },
        )),
    }
}
