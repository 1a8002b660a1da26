//! The command line of onnx-osplus: arguments in, the library's work, an account out.
//!
//! Exit status: 0 done, 1 failed, 2 usage, 3 no Linear could be quantized.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = cli::parse();
    match cli::catch_panics(|| cli::quantize(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The text of every error holds its causes already.
            eprintln!("error: {error}");
            cli::exit_status(&error)
        }
    }
}
