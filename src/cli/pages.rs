//! What shells and `man` read: completions and manual pages, made from the arguments.

use anyhow::Result;
use clap::Args;
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Usage, arguments};

/// The name under which the program is called.
const NAME: &str = "onnx-osplus";

/// Print completions of commands, options and their values for a shell
#[derive(Debug, Args)]
#[command(
    after_help = "bash: onnx-osplus completions bash > ~/.local/share/bash-completion/completions/onnx-osplus\n\
                  zsh:  onnx-osplus completions zsh > \"${fpath[1]}/_onnx-osplus\"\n\
                  fish: onnx-osplus completions fish > ~/.config/fish/completions/onnx-osplus.fish"
)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Print the manual page of the program or of one of its commands, for `man -l -`
#[derive(Debug, Args)]
#[command(
    name = "man",
    after_help = "Example: onnx-osplus man diff > ~/.local/share/man/man1/onnx-osplus-diff.1"
)]
pub(crate) struct Manual {
    /// The command; without it, the page of the program
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
}

/// Prints the completions.
pub(super) fn completions(arguments: &Completions) {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut arguments::command(), NAME, &mut text);
    let text = String::from_utf8_lossy(&text);
    super::print(&match arguments.shell {
        // clap_complete 4.6.11 names the states of a program with a hyphen in its name in two ways.
        Shell::Bash => text.replace("onnx__subcmd__osplus", "onnx__osplus").into(),
        _ => text,
    });
}

/// Prints the page.
pub(super) fn manual(arguments: &Manual) -> Result<()> {
    let mut program = arguments::command();
    program.build();
    let man = match &arguments.command {
        None => Man::new(program),
        Some(name) => match program.find_subcommand(name) {
            Some(command) => Man::new(command.clone()).title(format!("{NAME}-{name}")),
            None => {
                let all: Vec<_> = program
                    .get_subcommands()
                    .map(clap::Command::get_name)
                    .collect();
                return Err(Usage::error(format!(
                    "there is no command `{}`; there are {}",
                    onnx_osplus::onnx::shown(name),
                    all.join(", ")
                )));
            }
        },
    };
    let mut text = Vec::new();
    man.render(&mut text)?;
    super::print(&String::from_utf8_lossy(&text));
    Ok(())
}
